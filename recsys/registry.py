"""The registry: a folder of bundles, of which one is live, and the log of who made it so."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from recsys.artifacts import ArtifactError, Manifest, read_manifest, verify, write_durably
from recsys.bundle import FORMAT_VERSION, KIND, Bundle, bundle_id

CURRENT = "CURRENT"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Promotion:
    """One line of the log: which bundle became live, instead of which, when, by whom and why."""

    bundle: str
    instead_of: str | None
    action: str
    when: str
    who: str
    why: str


class Registry:
    """Bundles in a folder: `bundles/<id>/`, `CURRENT` naming the live one, and `log.jsonl`.

    `CURRENT` is replaced in one step, so a reader always finds a whole, verified bundle.

    Args:
        path: the folder; made when the first bundle is published.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def publish(self, write: Callable[[Path], Manifest]) -> str:
        """Adds the bundle that `write` writes to the path it is given; it is not live yet.

        Returns:
            The bundle's id.

        Raises:
            ArtifactError: it is there already, or cannot be written.
        """
        draft = self.path / "bundles" / f".{uuid.uuid4().hex}"
        bundle = bundle_id(write(draft))
        place = self.path / "bundles" / bundle
        if place.exists():
            shutil.rmtree(draft)
            raise ArtifactError(f"{self.path} has bundle {bundle} already; use that one")
        os.rename(draft, place)
        return bundle

    def bundles(self) -> list[str]:
        """The ids of all bundles, oldest first."""
        folder = self.path / "bundles"
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))

    @property
    def current(self) -> str | None:
        """The id of the live bundle; None before the first promotion."""
        try:
            return str(json.loads((self.path / CURRENT).read_text(encoding="utf-8"))["bundle"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{self.path / CURRENT} cannot be read ({error}); promote a bundle again") from None

    def manifest(self, bundle: str) -> Manifest:
        """The manifest of a bundle; its files are not read."""
        return read_manifest(self.bundle_path(bundle), KIND, FORMAT_VERSION)

    def verify(self, bundle: str) -> Manifest:
        """Checks every file of a bundle against its manifest, and its name against its content."""
        manifest = verify(self.bundle_path(bundle), KIND, FORMAT_VERSION)
        if bundle_id(manifest) != bundle:
            raise ArtifactError(f"{self.bundle_path(bundle)} holds bundle {bundle_id(manifest)}; rename it to that")
        return manifest

    def open_current(self) -> Bundle:
        """Opens the live bundle.

        Raises:
            ArtifactError: none is live, or it does not verify.
        """
        bundle = self.current
        if bundle is None:
            raise ArtifactError(f"no bundle is live in {self.path}; run `recsys bundle promote` first")
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
        now, before = self.current, self._before_current()
        if before is None:
            raise ArtifactError(f"no bundle was live in {self.path} before {now}; there is nothing to go back to")
        self.verify(before)
        return self._make_live(before, "rollback", why)

    def log(self) -> list[Promotion]:
        """Every promotion and rollback, oldest first."""
        file = self.path / LOG
        if not file.exists():
            return []
        promotions = []
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                promotions.append(Promotion(**json.loads(line)))
            except (json.JSONDecodeError, TypeError) as error:
                raise ArtifactError(f"line {number} of {file} cannot be read ({error}); remove it") from None
        return promotions

    def bundle_path(self, bundle: str) -> Path:
        """Where a bundle lies.

        Raises:
            ArtifactError: there is none of that id; the message lists those there are.
        """
        if bundle not in self.bundles():
            raise ArtifactError(f"{self.path} has no bundle {bundle!r}; it has: {', '.join(self.bundles()) or 'none'}")
        return self.path / "bundles" / bundle

    def _before_current(self) -> str | None:
        """The bundle that the live one replaced when it was promoted; what was rolled back is not gone back to."""
        lived: list[str] = []
        for said in self.log():
            if said.action == "rollback":
                lived.pop()
            elif said.bundle not in lived[-1:]:
                lived.append(said.bundle)
        while lived and lived[-1] != self.current:  # written down, but stopped before it was so
            lived.pop()
        return lived[-2] if len(lived) > 1 else None

    def _make_live(self, bundle: str, action: str, why: str) -> Promotion:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            instead_of = self.current
        except ArtifactError:  # which this mends
            instead_of = self.log()[-1].bundle if self.log() else None
        promotion = Promotion(bundle, instead_of, action, when, getpass.getuser(), why)
        said = json.dumps(asdict(promotion), ensure_ascii=False)
        # The log first: a promotion that cannot be written down must leave the live bundle as it is.
        with open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(said + "\n")
            file.flush()
            os.fsync(file.fileno())
        write_durably(self.path / CURRENT, said)
        return promotion
