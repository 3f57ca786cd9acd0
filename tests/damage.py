"""Ways to damage an artefact, by accident and on purpose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from recsys.artifacts import digest_of, manifest_text, sha256_of


def copied(artefact: Path, to: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(artefact, to))


def flip(file: Path) -> None:
    """Turns one bit round, in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def vouched(artefact: Path, **entries: object) -> Path:
    """Writes a manifest with other entries and a checksum that agrees, as only someone who means to would."""
    said = json.loads((artefact / "manifest.json").read_text()) | entries
    del said["checksum"]
    (artefact / "manifest.json").write_text(manifest_text(said))
    return artefact


def sealed_again(artefact: Path, **content: object) -> Path:
    """Writes a manifest that agrees with whatever lies there now, as only someone who means to would."""
    content = json.loads((artefact / "manifest.json").read_text())["content"] | content
    files = {
        file.relative_to(artefact).as_posix(): {"sha256": sha256_of(file), "bytes": file.stat().st_size}
        for file in sorted(artefact.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    return vouched(artefact, content=content, files=files, digest=digest_of({"content": content, "files": files}))
