"""The registry: a place of bundles, of which one is live, and the log of who made it so.

How safe a promotion is. The bundle is opened and checked, every byte of it, before anything changes. Then its entry is
added to the log under the next number, which is created and never replaced, and only then is CURRENT replaced:

- A reader finds the bundle before or the one after, each whole. In a folder that holds across kill -9 and power cuts;
  at an fsspec address as far as the store replaces an object in one step and shows it at once, as S3, GCS and Azure do.
- A promotion killed between the two leaves an entry in the log that took no effect, and is counted as such.
- Of two at once the one that replaces CURRENT last is live; both are in the log, with what each of them replaced.
  At a store without exclusive creation one of the two entries may be lost, never a bundle.
- Pruning and promoting the same bundle at once ends with one of them refused, not with a live bundle that is gone.

Not guaranteed: that whoever may write to the store means well. Digests catch damage, not forgery.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from recsys.artifacts import MANIFEST, ArtifactError, Manifest, manifest_of, read_manifest, verify
from recsys.bundle import FORMAT_VERSION, KIND, Bundle, bundle_id
from recsys.store import FolderStore, Store, entry_name, open_store

CURRENT = "CURRENT"
BUNDLES = "bundles"
LOG = "log"
_ATTEMPTS = 100  # at a number that others took; each failure is another one's success


@dataclass(frozen=True)
class Promotion:
    """One entry of the log: which bundle became live, instead of which, when, by whom and why.

    `action` is promote or rollback; or prune, for a bundle that was removed.
    """

    bundle: str
    instead_of: str | None
    action: str
    when: str
    who: str
    why: str


class Registry:
    """Bundles in a folder or at an fsspec address: `bundles/<id>/`, `CURRENT` naming the live one, and `log/<number>`.

    `CURRENT` is replaced in one step, so a reader always finds a whole, verified bundle.

    Args:
        address: the folder, or an address such as s3://bucket/registry; made when the first bundle is published.
    """

    def __init__(self, address: Path | str) -> None:
        self.store: Store = open_store(address)
        self.address = self.store.address

    @property
    def path(self) -> Path:
        """The registry's folder; ArtifactError if it is kept elsewhere."""
        if not isinstance(self.store, FolderStore):
            raise ArtifactError(f"{self.address} is not a folder; ask `bundle_path` for a copy of a bundle")
        return self.store.path

    def publish(self, write: Callable[[Path], Manifest]) -> str:
        """Adds the bundle that `write` writes to the path it is given; it is not live yet.

        Returns:
            The bundle's id.

        Raises:
            ArtifactError: it is there already, or cannot be written.
        """
        with self.store.drafting(BUNDLES) as folder:
            draft = folder / "bundle"
            bundle = bundle_id(write(draft))
            if bundle in self.bundles():
                raise ArtifactError(f"{self.address} has bundle {bundle} already; use that one")
            self.store.put(draft, f"{BUNDLES}/{bundle}")
        return bundle

    def bundles(self) -> list[str]:
        """The ids of all bundles, oldest first."""
        return self.store.artefacts(BUNDLES)

    @property
    def current(self) -> str | None:
        """The id of the live bundle; None before the first promotion."""
        said = self.store.read(CURRENT)
        if said is None:
            return None
        try:
            return str(json.loads(said)["bundle"])
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{self.address}/{CURRENT} cannot be read ({error}); promote a bundle again") from None

    @property
    def previous(self) -> str | None:
        """The id of the bundle that a rollback would make live; None if there is none to go back to."""
        here = set(self.bundles())
        lived = [bundle for bundle in self._lived() if bundle in here]
        if lived[-1:] == [self.current]:
            lived.pop()
        return lived[-1] if lived else None

    def manifest(self, bundle: str) -> Manifest:
        """The manifest of a bundle; its files are not read."""
        name = self._name(bundle)
        data = self.store.read(f"{name}/{MANIFEST}")
        if data is None:
            raise ArtifactError(f"{self.address}/{name} is not a bundle: it has no {MANIFEST}; remove it")
        return manifest_of(data, f"{self.address}/{name}", KIND, FORMAT_VERSION)

    def verify(self, bundle: str) -> Manifest:
        """Checks every file of a bundle, where it is kept, against its manifest, and its name against its content."""
        path = self.store.fetch(self._name(bundle), _check, again=True)
        manifest = read_manifest(path, KIND, FORMAT_VERSION)
        if bundle_id(manifest) != bundle:
            raise ArtifactError(
                f"{self.address}/{BUNDLES}/{bundle} holds bundle {bundle_id(manifest)}; rename it to that"
            )
        return manifest

    def open_current(self) -> Bundle:
        """Opens the live bundle.

        Raises:
            ArtifactError: none is live, or it does not verify.
        """
        bundle = self.current
        if bundle is None:
            raise ArtifactError(f"no bundle is live in {self.address}; run `recsys bundle promote` first")
        return Bundle.open(self.bundle_path(bundle))

    def promote(self, bundle: str, *, why: str) -> Promotion:
        """Makes a bundle live, after opening and checking all of it; the one before stays if that fails."""
        self.verify(bundle)
        Bundle.open(self.bundle_path(bundle))
        return self._make_live(bundle, "promote", why)

    def rollback(self, *, why: str) -> Promotion:
        """Makes live the bundle that was before the present one; done again, the one before that.

        Raises:
            ArtifactError: there was none, or it does not verify.
        """
        now, before = self.current, self.previous
        if before is None:
            raise ArtifactError(f"no bundle was live in {self.address} before {now}; there is nothing to go back to")
        self.verify(before)
        return self._make_live(before, "rollback", why)

    def prune(self, keep: int, *, why: str = "", dry_run: bool = False) -> list[str]:
        """Removes all but the newest bundles; the live one, and the one a rollback would go to, always stay.

        Args:
            keep: how many to keep; refused ones count too, the two that are safe come on top if they are older.
            why: for the log.
            dry_run: say what would go, and leave it.

        Returns:
            The ids of what was removed, oldest first.

        Raises:
            ValueError: `keep` is negative.
            ArtifactError: which bundle is live cannot be read, so nothing is removed.
        """
        if keep < 0:
            raise ValueError(f"keep must be 0 or more, got {keep}")
        bundles = self.bundles()
        safe = {self.current, self.previous, *bundles[max(0, len(bundles) - keep) :]}
        going = [bundle for bundle in bundles if bundle not in safe]
        if dry_run:
            return going
        self.store.sweep(BUNDLES)
        return [bundle for bundle in going if self._remove(bundle, why)]

    def log(self) -> list[Promotion]:
        """Every promotion, rollback and removal, oldest first."""
        log = []
        for name, said in self.store.entries(LOG).items():
            try:
                log.append(Promotion(**json.loads(said)))
            except (ValueError, TypeError) as error:
                raise ArtifactError(f"{self.address}/{LOG}/{name} cannot be read ({error}); remove it") from None
        return log

    def bundle_path(self, bundle: str) -> Path:
        """Where a bundle lies; if the registry is at an address, a verified copy of it on this machine.

        Raises:
            ArtifactError: there is none of that id; the message lists those there are.
        """
        return self.store.fetch(self._name(bundle), _check)

    def _name(self, bundle: str) -> str:
        if bundle not in (here := self.bundles()):
            raise ArtifactError(f"{self.address} has no bundle {bundle!r}; it has: {', '.join(here) or 'none'}")
        return f"{BUNDLES}/{bundle}"

    def _lived(self) -> list[str]:
        """The bundles that were live one after the other, without those that were rolled back."""
        log = [said for said in self.log() if said.action != "prune"]
        # What an entry replaced was live. So one that the next did not replace was written down but took no effect.
        replaced = [*(said.instead_of for said in log[1:]), self.current]
        lived: list[str] = []
        for said, then in zip(log, replaced, strict=False):
            if said.bundle != then:
                continue
            if said.action == "rollback":
                lived = lived[: lived.index(said.bundle)] if said.bundle in lived else []
            if lived[-1:] != [said.bundle]:
                lived.append(said.bundle)
        return lived

    def _make_live(self, bundle: str, action: str, why: str) -> Promotion:
        before = self.store.read(CURRENT)

        def promotion() -> Promotion:
            return Promotion(bundle, self._replaced(), action, _now(), getpass.getuser(), why)

        # The log first: a promotion that cannot be written down must leave the live bundle as it is.
        said = self._write_down(promotion)
        self.store.write(CURRENT, _json(said))
        if bundle not in self.bundles():  # removed while it was checked
            if before is None:
                self.store.delete(CURRENT)
            else:
                self.store.write(CURRENT, before.decode("utf-8"))
            raise ArtifactError(f"{bundle} was pruned from {self.address} while it was promoted; promote another one")
        return said

    def _remove(self, bundle: str, why: str) -> bool:
        # Asked when nobody can promote it any more: whoever did so before has by now replaced CURRENT.
        if not self.store.remove(f"{BUNDLES}/{bundle}", unless=lambda: self.current == bundle):
            return False
        # After it, not before: a full disk is what pruning is for.
        self._write_down(lambda: Promotion(bundle, None, "prune", _now(), getpass.getuser(), why))
        return True

    def _replaced(self) -> str | None:
        try:
            return self.current
        except ArtifactError:  # which this mends
            return next((said.bundle for said in reversed(self.log()) if said.action != "prune"), None)

    def _write_down(self, entry: Callable[[], Promotion]) -> Promotion:
        for _ in range(_ATTEMPTS):
            number = max(self.store.numbered(LOG), default=0) + 1
            said = entry()
            if self.store.create(f"{LOG}/{entry_name(number)}", _json(said)):
                return said
        raise ArtifactError(f"{self.address}/{LOG} took none of {_ATTEMPTS} entries; can it be written and listed?")


def _check(path: Path) -> Manifest:
    return verify(path, KIND, FORMAT_VERSION)


def _json(said: Promotion) -> str:
    return json.dumps(asdict(said), ensure_ascii=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
