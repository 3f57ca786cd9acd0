"""Sentence encoders: texts as vectors by a sentence-transformers model that lies here, each text computed once.

A model is named by a folder, or by an installed Python package that carries one. It is known by the digest of its
content, so that vectors of one model never pass for another's: a checkpoint and a bundle remember name and digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from recsys.artifacts import MANIFEST, ArtifactError
from recsys.data.text_cache import TextCache

MODELS, CACHE = "RECSYS_TEXT_MODELS", "RECSYS_TEXT_CACHE"  # environment variables, each a folder
_MARK = "modules.json"  # what every sentence-transformers folder holds
_CONTENT = (".json", ".txt", ".model", ".safetensors")  # what makes a model; not a README
_ABOUT = (MANIFEST,)  # says when it was made, too
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
_BATCH = 64
_LOCK = threading.Lock()  # tokenizers keep what a call sets: one text at a time


class SentenceModelError(ArtifactError):
    """A sentence model is missing, unsafe, or another one than was trained with; the message names it and the fix."""


def folder_of(name: str) -> Path:
    """Where the model of that name lies: a folder, or one in an installed package, whose code is not run.

    Args:
        name: a folder, or an installed package; where it is neither, a folder of that last name below the folder that
            the environment variable RECSYS_TEXT_MODELS names, for a machine that keeps models elsewhere.

    Raises:
        SentenceModelError: there is no such model here.
    """
    places = [Path(name)]
    if kept := os.environ.get(MODELS):
        places.append(Path(kept) / Path(name).name)
    for place in places:
        if (place / _MARK).is_file():
            return place
    package = name.replace("-", "_")
    if package.isidentifier() and (spec := find_spec(package)) is not None:
        for root in map(Path, spec.submodule_search_locations or ()):
            found = [file.parent for file in sorted(root.glob(f"*/{_MARK}"))]
            if found:
                return found[0]
    raise SentenceModelError(
        f"the sentence model {name!r} is not here: it is neither a folder with a {_MARK} nor an installed package that "
        f"carries one; install the package, copy the folder here, or let {MODELS} name the folder that holds it"
    )


def digest_of_model(folder: Path) -> str:
    """sha256 over names and bytes of a model's files.

    Raises:
        SentenceModelError: it holds weights that only unpickling could read, or wants code of its own.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _digest(folder, stamps)


@lru_cache(maxsize=16)
def _digest(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    files = [Path(name) for name, _, _ in stamps]
    _refuse_unsafe(folder, files)
    digest = hashlib.sha256()
    for file in files:
        if file.suffix in _CONTENT and file.name not in _ABOUT:
            name = file.relative_to(folder).as_posix()
            with open(file, "rb") as opened:
                digest.update(f"{name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def _refuse_unsafe(folder: Path, files: Sequence[Path]) -> None:
    """A model is data: no pickle, no code."""
    for file in files:
        if file.suffix == ".py":
            raise SentenceModelError(f"{file} is code that the model brings, which is never run; choose another model")
        if file.suffix in _PICKLED and not any(file.parent.glob("*.safetensors")):
            raise SentenceModelError(
                f"{file} is read by unpickling, which may run anything; save the model as safetensors"
            )
        if file.name == "config.json" and "auto_map" in _json(file):
            raise SentenceModelError(f"{file} asks for code of its own (auto_map), which is never run; choose another")
    for module in _json(folder / _MARK):
        if not str(module.get("type")).startswith("sentence_transformers."):
            raise SentenceModelError(
                f"{folder / _MARK} names {module.get('type')!r}; only modules of sentence_transformers are loaded"
            )


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SentenceModelError(f"{file} cannot be read ({error}); copy the model again") from None


class SentenceModel:
    """A model whose content has the digest that is expected.

    Args:
        name: as for `folder_of`.
        digest: of its content; whatever lies there now if left out.
        loaded: whether its weights are loaded at once, rather than with the first text that no cache knows.

    Raises:
        SentenceModelError: it is not here, unsafe, or another one now.
    """

    def __init__(self, name: str, digest: str | None = None, *, loaded: bool = False) -> None:
        self.name, self.folder = name, folder_of(name)
        self.digest = digest_of_model(self.folder)
        if digest is not None and self.digest != digest:
            raise SentenceModelError(
                f"the sentence model {name!r} in {self.folder} is another one ({self.digest[:12]}) than the towers "
                f"were trained with ({digest[:12]}); put that one back, or train in full with this one"
            )
        if loaded:
            _shared(self.folder, self.digest)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return int(_shared(self.folder, self.digest).get_embedding_dimension())

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of texts, of length 1, float32 [n, width]; each distinct text is computed once, ever."""
        distinct = list(dict.fromkeys(texts))
        place = {text: at for at, text in enumerate(distinct)}
        with TextCache.at(cache_folder(), self.digest) as cache:
            known = cache.read(distinct)
            missing = sorted((text for text in distinct if text not in known), key=len)
            for start in range(0, len(missing), _BATCH * 16):  # kept as it goes, so that a stopped run goes on
                block = missing[start : start + _BATCH * 16]
                made = dict(zip(block, self._computed(block), strict=True))
                cache.write(made)
                known.update(made)
        if not distinct:
            return np.zeros((0, self.width), dtype=np.float32)
        vectors = np.stack([known[text] for text in distinct])
        return vectors[[place[text] for text in texts]]

    def _computed(self, texts: Sequence[str]) -> np.ndarray:
        with _LOCK:
            vectors = _shared(self.folder, self.digest).encode(
                list(texts), batch_size=_BATCH, normalize_embeddings=True, show_progress_bar=False
            )
        return np.asarray(vectors, dtype=np.float32)


def cache_folder() -> Path | None:
    """Where vectors are kept: RECSYS_TEXT_CACHE, else `recsys/text` in the user's cache folder; None without either."""
    if said := os.environ.get(CACHE):
        return Path(said)
    with suppress(RuntimeError):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys" / "text"
    return None


@lru_cache(maxsize=2)
def _shared(folder: Path, digest: str) -> Any:
    """A model that nobody changes, loaded once a digest."""
    return loaded(folder)


def loaded(folder: Path) -> Any:
    """The model itself, in evaluation mode on the CPU, from this disk alone.

    Raises:
        SentenceModelError: sentence-transformers is not installed, or cannot read it.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a model is what lies here; nothing is fetched
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError:
        raise SentenceModelError(
            f"the sentence model {folder} needs sentence-transformers; pip install 'recsys[text]'"
        ) from None
    logging.disable_progress_bar()
    try:
        made = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:
        raise SentenceModelError(f"{folder} cannot be loaded as a sentence model: {error}") from error
    return made.eval()
