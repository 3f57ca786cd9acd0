"""Ways to damage an artefact, by accident and on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from recsys.artifacts import digest_of, sha256_of


def copied(artefact: Path, to: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(artefact, to))


def flip(file: Path) -> None:
    """Turns one bit round, in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def sealed_again(artefact: Path, **content: object) -> Path:
    """Writes a manifest that agrees with whatever lies there now, as only someone who means to would."""
    said = json.loads((artefact / "manifest.json").read_text())
    said["content"].update(content)
    said["files"] = {
        file.relative_to(artefact).as_posix(): {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in sorted(artefact.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    said["digest"] = digest_of({"content": said["content"], "files": said["files"]})
    (artefact / "manifest.json").write_text(json.dumps(said))
    return artefact
