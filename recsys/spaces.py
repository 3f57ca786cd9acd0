"""How far apart two bundles' embedding spaces are, and turning one bundle's space onto another's.

Spaces of two trainings may agree on every neighbourhood and still point elsewhere, since scores are inner products and
those do not notice a rotation. Whoever stored vectors of the older bundle then finds nonsense with them in the newer.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.torch import save_file

from recsys.artifacts import ArtifactError, Manifest, read_manifest, writing
from recsys.bundle import FORMAT_VERSION, KIND, Bundle
from recsys.ids import IdMap
from recsys.index.build import measured_recall, turned
from recsys.index.exact import Exact

Meaning = Literal["the same", "the same once rotated", "nothing"]

_K = 10
_QUERIES = 1000  # evenly spaced: a recall of them is known to about one part in a hundred
_CHUNK = 1 << 16
_SAME = 0.9  # of what the spaces agree on at best: so much must be left of old vectors to go on with them as they are
_SOMETHING = 0.5  # likewise, once rotated, to say that they still mean something
_AGREED = 0.1  # neighbours, beyond chance, below which the spaces agree on nothing that could be kept


@dataclass(frozen=True)
class Agreement:
    """How alike vectors of the same things are.

    Attributes:
        cosine: the mean over items.
        residual: ‖A − B‖ / ‖A‖ (Frobenius); 0 where they are the same, about √2 where they have nothing in common.
    """

    cosine: float
    residual: float


@dataclass(frozen=True)
class Kept:
    """Of the k nearest items that old vectors had in their own space, the share that they find in the new one.

    Attributes:
        raw: old vectors asked of the new items as they are.
        rotated: asked of the new items rotated onto the old.
        ceiling: new vectors asked of the new items: how far neighbourhoods themselves stayed.
        queries: over how many.
    """

    raw: float
    rotated: float
    ceiling: float
    queries: int


@dataclass(frozen=True)
class Comparison:
    """Two spaces compared over what both know.

    Attributes:
        dimension: of the vectors compared.
        blocks: where the rotation's blocks end; more than one where vectors may be cut.
        rotation: float64 [dimension, dimension], orthogonal; new vectors times it lie nearest to the old ones.
        shared_items, shared_users: how many of each both know.
        k: neighbours a query has.
        chance: the share of them that guessing would keep.
        before, after: items' agreement as they are, and rotated.
        items: of items asking for similar ones.
        users: of users asking for items; None where no user with a history is in both.
    """

    dimension: int
    blocks: tuple[int, ...]
    rotation: np.ndarray
    shared_items: int
    shared_users: int
    k: int
    chance: float
    before: Agreement
    after: Agreement
    items: Kept
    users: Kept | None

    @property
    def meaning(self) -> Meaning:
        """What old vectors mean in the new space."""
        raw, rotated, ceiling = (
            (share - self.chance) / (1 - self.chance)
            for share in (self.items.raw, self.items.rotated, self.items.ceiling)
        )
        if max(rotated, ceiling) < _AGREED:
            return "nothing"
        if raw >= _SAME * ceiling:
            return "the same"
        return "the same once rotated" if rotated >= _SOMETHING * ceiling else "nothing"

    @property
    def verdict(self) -> str:
        """What whoever stored old vectors should do, in a sentence."""
        items = self.items
        figures = f"of the {self.k} items nearest to each, {items.raw:.1%} are found as it is"
        figures += f", {items.rotated:.1%} rotated, {items.ceiling:.1%} by its new vector (by chance {self.chance:.1%})"
        said = {
            "the same": "Old vectors still mean the same",
            "the same once rotated": "Old vectors need the rotation",
            "nothing": "Old vectors mean nothing here; embed them again",
        }[self.meaning]
        if self.shared_items < 2 * self.dimension:
            figures += f"; {self.shared_items} shared items are few to know {self.dimension} dimensions by"
        return f"{said}: {figures}."

    def figures(self) -> dict[str, Any]:
        """All but the rotation itself, as JSON values."""
        values = {name: value for name, value in asdict(self).items() if name != "rotation"}
        return values | {"blocks": list(self.blocks), "meaning": self.meaning, "verdict": self.verdict}


def rotation_onto(old: np.ndarray, new: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """The orthogonal R for which ‖old − new R‖ is least: U Vᵀ of the SVD of newᵀ old (Schönemann 1966, "A generalized
    solution of the orthogonal Procrustes problem", doi 10.1007/BF02289451).

    Two things differ. Within blocks, each is solved by itself and R is zero elsewhere: no number leaves its block, so
    that every prefix ending with a block keeps its inner products. And next to nothing of the identity is added, so
    that directions in which nothing lies stay as they are instead of turning as rounding has it.

    Args:
        old: float [n, D], vectors of some things in the space to be met.
        new: likewise, vectors of the same things in the space to be turned.
        blocks: where each block ends, ascending; the last is D.

    Returns:
        float64 [D, D].
    """
    dimension = old.shape[1]
    product = np.zeros((dimension, dimension))
    for start in range(0, len(old), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        product += new[chunk].T.astype(np.float64) @ old[chunk].astype(np.float64)
    rotation = np.zeros_like(product)
    begin = 0
    for end in blocks:
        block = product[begin:end, begin:end]
        u, _, v = np.linalg.svd(block + 1e-10 * (np.linalg.norm(block) or 1.0) * np.eye(end - begin))
        rotation[begin:end, begin:end] = u @ v
        begin = end
    return rotation


def compare_vectors(
    old_items: np.ndarray,
    new_items: np.ndarray,
    old_users: np.ndarray,
    new_users: np.ndarray,
    blocks: Sequence[int],
) -> Comparison:
    """Compares two spaces by the vectors of the same things.

    Args:
        old_items: float32 [n, D]; n at least 2.
        new_items: float32 [n, D], of the same items.
        old_users: float32 [m, D]; m may be 0.
        new_users: float32 [m, D], of the same users.
        blocks: as `rotation_onto`.
    """
    rotation = rotation_onto(old_items, new_items, blocks)
    turned_items = (new_items @ rotation).astype(np.float32)
    count = len(old_items)
    k = min(_K, max(1, count // 4))  # of few items, ten would be most of them

    def kept(old: np.ndarray, new: np.ndarray, own: np.ndarray | None) -> Kept:
        had = _nearest(old_items, old, k, own)
        raw, rotated, ceiling = (
            float((had[:, :, None] == _nearest(items, queries, k, own)[:, None, :]).any(2).mean())
            for items, queries in ((new_items, old), (turned_items, old), (new_items, new))
        )
        return Kept(raw, rotated, ceiling, len(old))

    rows, users = _spread(count), _spread(len(old_users))
    return Comparison(
        dimension=old_items.shape[1],
        blocks=tuple(blocks),
        rotation=rotation,
        shared_items=count,
        shared_users=len(old_users),
        k=k,
        chance=k / (count - 1),
        before=_agreement(old_items, new_items),
        after=_agreement(old_items, turned_items),
        items=kept(old_items[rows], new_items[rows], rows),
        users=kept(old_users[users], new_users[users], None) if len(users) else None,
    )


def compare(old: Bundle, new: Bundle) -> Comparison:
    """Compares the spaces of two bundles, over the items and users that both know, matched by id.

    Where dimensions differ, the longest prefix that both may be cut to is compared.

    Raises:
        ArtifactError: they have no dimension in common, or share fewer than two items.
    """
    sizes = {size for size in _sizes(old) if size in _sizes(new)}
    if not sizes:
        raise ArtifactError(
            f"{old.id} may be cut to {_sizes(old)} dimensions and {new.id} to {_sizes(new)}: none is in both, "
            "so their vectors cannot be compared"
        )
    dimension = max(sizes)
    items = _shared(old.item_ids, new.item_ids)
    if len(items[0]) < 2:
        raise ArtifactError(f"{old.id} and {new.id} share {len(items[0])} items; their spaces cannot be compared")
    users = _shared(old.user_ids, new.user_ids)
    asking = old.user_vectors[users[0]].any(axis=1) & new.user_vectors[users[1]].any(axis=1)
    return compare_vectors(
        _cut(old, old.item_vectors[items[0]], dimension),
        _cut(new, new.item_vectors[items[1]], dimension),
        _cut(old, old.user_vectors[users[0][asking]], dimension),
        _cut(new, new.user_vectors[users[1][asking]], dimension),
        sorted(size for size in _sizes(new) if size <= dimension),
    )


def align(candidate: Path, live: Path, out: Path) -> Manifest:
    """Writes a bundle that answers as the candidate does, in a space turned onto the live bundle's.

    The towers turn what they make, so that vectors of new histories and new items lie in the same space; item vectors,
    user vectors and index are turned, all else is the candidate's, its evaluation too, since no score changes. Where
    vectors may be cut to prefixes, each block between two of them turns within itself.

    Args:
        candidate: the bundle to align; it stays as it is.
        live: the one whose space is kept.
        out: where the new bundle is to be.

    Raises:
        ArtifactError: the two have different dimensions, or share fewer than two items.
    """
    new, old = Bundle.open(candidate), Bundle.open(live)
    full = [int(bundle.manifest.content["dimension"]) for bundle in (new, old)]
    if full[0] != full[1]:
        raise ArtifactError(
            f"{new.id} has {full[0]} dimensions and {old.id} {full[1]}; no rotation brings one onto the other"
        )
    comparison = compare(old, new)
    rotation = comparison.rotation
    written = {"item_tower.safetensors", "user_tower.safetensors", "towers.json", "item_vectors.npy",
               "user_vectors.npy", "index.faiss"}  # fmt: skip
    with writing(out, KIND, FORMAT_VERSION) as draft:
        for name in set(new.manifest.files) - written:
            (draft.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new.path / name, draft.path / name)
        new.towers.rotate(rotation)
        for name, tower in (("item", new.towers.item), ("user", new.towers.user)):
            save_file(tower.state_dict(), draft.path / f"{name}_tower.safetensors")
        said = json.loads((new.path / "towers.json").read_text(encoding="utf-8")) | {"config": new.towers.config()}
        (draft.path / "towers.json").write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
        items, users = (_turned(vectors, rotation) for vectors in (new.item_vectors, new.user_vectors))
        np.save(draft.path / "item_vectors.npy", items)
        np.save(draft.path / "user_vectors.npy", users)
        index = turned(new.index, items)
        index.save(draft.path / "index.faiss")
        asking = users[np.flatnonzero(users.any(axis=1))[:_QUERIES]]
        draft.content.update(
            new.manifest.content,
            index={
                "kind": index.kind,
                "bytes": (draft.path / "index.faiss").stat().st_size,
                "recall@10": measured_recall(index, items, asking),
            },
            aligned_to={"bundle": old.id, "digest": old.manifest.digest, "from": new.manifest.digest}
            | comparison.figures(),
        )
    return read_manifest(out, KIND, FORMAT_VERSION)


def _turned(vectors: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    made = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), _CHUNK):
        made[start : start + _CHUNK] = vectors[start : start + _CHUNK] @ rotation
    return made


def _nearest(items: np.ndarray, queries: np.ndarray, k: int, own: np.ndarray | None) -> np.ndarray:
    """The k nearest rows of each query [q, k], without the query's own row where it is an item itself."""
    rows = Exact(items).search(queries, k + (own is not None))[1]
    if own is None:
        return rows
    last = (rows == own[:, None]).argsort(axis=1, kind="stable")  # its own row goes last, else the worst is last
    return np.take_along_axis(rows, last[:, :k], 1)


def _agreement(old: np.ndarray, new: np.ndarray) -> Agreement:
    lengths = np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1)
    cosines = np.einsum("nd,nd->n", old, new) / np.maximum(lengths, 1e-30)
    return Agreement(
        cosine=float(cosines.mean()),
        residual=float(np.linalg.norm(old - new) / max(float(np.linalg.norm(old)), 1e-30)),
    )


def _spread(count: int) -> np.ndarray:
    """Up to `_QUERIES` of so many rows, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, _QUERIES)).astype(np.int64)) if count else np.arange(0)


def _shared(old: IdMap, new: IdMap) -> tuple[np.ndarray, np.ndarray]:
    """The rows in each of what both know, in the order of the older."""
    if old.is_integer != new.is_integer:
        return np.arange(0), np.arange(0)
    rows = new.rows(old.array)
    return np.flatnonzero(rows >= 0), rows[rows >= 0]


def _sizes(bundle: Bundle) -> list[int]:
    """The dimensions that a bundle's vectors have or may be cut to."""
    return [int(size) for size in bundle.manifest.content["dimensions"]]


def _cut(bundle: Bundle, vectors: np.ndarray, dimension: int) -> np.ndarray:
    cut = np.ascontiguousarray(vectors[:, :dimension])
    if bundle.manifest.content["unit"] and dimension < vectors.shape[1]:
        cut /= np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-30)
    return cut
