"""The registry: a folder of bundles, of which one is live, and the log of who made it so."""

from __future__ import annotations

import getpass
import json
import os
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
        """
        draft = self.path / "bundles" / f".{uuid.uuid4().hex}"
        bundle = bundle_id(write(draft))
        os.rename(draft, self.path / "bundles" / bundle)
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
            said = json.loads((self.path / CURRENT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(f"{self.path / CURRENT} cannot be read ({error}); promote a bundle again") from None
        return str(said["bundle"])

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
        """Makes live the bundle that was before the present one.

        Raises:
            ArtifactError: there was none, or it does not verify.
        """
        now = self.current
        for said in reversed(self.log()):
            if said.bundle == now and said.instead_of is not None:
                self.verify(said.instead_of)
                return self._make_live(said.instead_of, "rollback", why)
        raise ArtifactError(f"no bundle was live in {self.path} before {now}; there is nothing to go back to")

    def log(self) -> list[Promotion]:
        """Every promotion and rollback, oldest first."""
        file = self.path / LOG
        if not file.exists():
            return []
        return [Promotion(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]

    def bundle_path(self, bundle: str) -> Path:
        """Where a bundle lies.

        Raises:
            ArtifactError: there is none of that id; the message lists those there are.
        """
        if bundle not in self.bundles():
            raise ArtifactError(f"{self.path} has no bundle {bundle!r}; it has: {', '.join(self.bundles()) or 'none'}")
        return self.path / "bundles" / bundle

    def _make_live(self, bundle: str, action: str, why: str) -> Promotion:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        promotion = Promotion(bundle, self.current, action, when, getpass.getuser(), why)
        said = asdict(promotion)
        write_durably(self.path / CURRENT, json.dumps(said, ensure_ascii=False))
        with open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(said, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return promotion
