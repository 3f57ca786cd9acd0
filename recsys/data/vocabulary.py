"""How declared features become numbers: vocabularies and scales, learnt only from what training knew."""

from __future__ import annotations

import itertools
import re
import zlib
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.schema import Feature
from recsys.data.sentences import SentenceModel

UNKNOWN = 0  # the code of a missing value, and of one that training never saw
MAX_VALUES = 16  # of a multi-valued feature, the first this many count
TEXT_BUCKETS = 1 << 14
MAX_NGRAMS = 48
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Input:
    """One encoded feature as a tower sees it: integer codes to embed, or values to project; plain data.

    Args:
        name: the feature's name.
        codes: number of distinct codes, the unknown one included; 0 if the input is values.
        width: number of values a row; 0 if the input is codes.
    """

    name: str
    codes: int = 0
    width: int = 0


@dataclass(frozen=True)
class FeatureEncoder:
    """Encodes a feature table; fitted once, then frozen, and saved with the towers that were trained on it.

    Args:
        features: the declared features, those with `embed` only.
        learnt: a feature's name to what was learnt of it: `vocabulary`, or `mean` and `std`, or `dimension`, and
            of text that a sentence model reads also the `model`, the digest of its content.
    """

    features: tuple[Feature, ...]
    learnt: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def fit(cls, features: tuple[Feature, ...], table: pa.Table, known: np.ndarray) -> Self:
        """Learns vocabularies and scales from the rows that training knew.

        Args:
            features: the declared features.
            table: one row an item or user, one column a feature (see `Dataset.item_features`).
            known: bool [rows], the rows to learn from.
        """
        used = tuple(feature for feature in features if feature.embed)
        rows = pa.array(known)
        return cls(used, {feature.name: _learn(feature, table.column(feature.name).filter(rows)) for feature in used})

    def grown(self, features: tuple[Feature, ...], table: pa.Table, known: np.ndarray) -> Self:
        """An encoder that knows new values, too; every code and scale of this one keeps its meaning.

        Values not met before follow the old ones, sorted among themselves. Means and deviations stay: the weights
        that read them were trained on that scale.

        Args:
            features: the features declared now.
            table: as for `fit`, of the grown data.
            known: bool [rows], the rows to learn from.

        Raises:
            ValueError: a feature came, went or is of another kind, its vectors are of another length, or another
                sentence model reads it.
        """
        old, now = ({said.name: said.kind for said in some if said.embed} for some in (self.features, features))
        if changed := sorted(name for name in old.keys() | now.keys() if old.get(name) != now.get(name)):
            was, is_now = old.get(changed[0], "not declared"), now.get(changed[0], "not declared")
            raise ValueError(f"feature {changed[0]!r} was {was} and is now {is_now}")
        declared = {said.name: said.model for said in features}
        for feature in self.features:
            _refuse_another_model(feature.name, self.learnt[feature.name].get("model"), declared[feature.name])
        rows = pa.array(known)
        learnt = {
            feature.name: _more(feature, self.learnt[feature.name], table.column(feature.name).filter(rows))
            for feature in self.features
        }
        return type(self)(self.features, learnt)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What a tower must embed, feature by feature."""
        return tuple(self._input(feature) for feature in self.features)

    def encode(self, table: pa.Table) -> dict[str, np.ndarray]:
        """Encodes rows.

        Returns:
            A feature's name to int32 codes [rows, values], 0 where there is none, or to float32 [rows, width], of
            which the last column tells whether the value is there.
        """
        return {feature.name: self._encode(feature, table.column(feature.name)) for feature in self.features}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        # Without the model where there is none, as checkpoints had it before there were any.
        features = [{k: v for k, v in vars(feature).items() if (k, v) != ("model", None)} for feature in self.features]
        return {"features": features, "learnt": self.learnt}

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> Self:
        return cls(tuple(Feature(**feature) for feature in said["features"]), said["learnt"])

    def load_models(self) -> None:
        """Loads the sentence models that read its texts, so that no request waits for them.

        Raises:
            SentenceModelError: one is missing, or another one than was trained with; the message names it.
        """
        for feature in self.features:
            if feature.model is not None:
                SentenceModel(feature.model, self.learnt[feature.name]["model"], loaded=True)

    def _input(self, feature: Feature) -> Input:
        learnt = self.learnt[feature.name]
        match feature.kind:
            case "categorical" | "multi":
                return Input(feature.name, codes=len(learnt["vocabulary"]) + 1)
            case "text" if feature.model is None:
                return Input(feature.name, codes=TEXT_BUCKETS + 1)
            case "text":
                return Input(feature.name, width=learnt["dimension"] + 1)
            case "vector":
                return Input(feature.name, width=learnt["dimension"] + 1)
            case _:
                return Input(feature.name, width=2)

    def _encode(self, feature: Feature, column: pa.ChunkedArray) -> np.ndarray:
        learnt = self.learnt[feature.name]
        match feature.kind:
            case "categorical":
                return _codes(column, learnt["vocabulary"])[:, None]
            case "multi":
                lists = column.combine_chunks()
                codes = _codes(pa.chunked_array([lists.flatten()], type=pa.string()), learnt["vocabulary"])
                return _padded(codes, pc.fill_null(pc.list_value_length(lists), 0), MAX_VALUES)
            case "text" if feature.model is not None:
                return _sentences(SentenceModel(feature.model, learnt["model"]), learnt["dimension"], column)
            case "text":
                grams = [hashed_ngrams(text) for text in column.to_pylist()]
                flat = np.fromiter((code for row in grams for code in row), dtype=np.int32)
                return _padded(flat, pa.array([len(row) for row in grams], pa.int64()), MAX_NGRAMS)
            case "vector":
                rows, width = len(column), learnt["dimension"]
                encoded = np.zeros((rows, width + 1), dtype=np.float32)
                present = pc.equal(pc.fill_null(pc.list_value_length(column), -1), width).to_numpy()
                flat = pc.list_flatten(column.filter(pa.array(present))).to_numpy()
                encoded[present, :width] = flat.reshape(-1, width)
                encoded[present, width] = 1
                return encoded
            case _:
                values = pc.cast(column, pa.float64()).to_numpy()
                present = np.isfinite(values)
                scaled = np.where(present, (values - learnt["mean"]) / learnt["std"], 0)
                # Clipped, so that one absurd value cannot carry a whole vector away.
                return np.stack([np.clip(scaled, -5, 5), present], axis=1).astype(np.float32)


def _sentences(model: SentenceModel, width: int, column: pa.ChunkedArray) -> np.ndarray:
    """float32 [rows, width + 1]: vectors of length 1, and whether there is a text, as vectors are encoded."""
    texts = column.to_pylist()
    encoded = np.zeros((len(texts), width + 1), dtype=np.float32)
    there = [row for row, text in enumerate(texts) if text]
    if there:
        encoded[there, :width] = model.encode([texts[row] for row in there])
        encoded[there, width] = 1
    return encoded


def _refuse_another_model(name: str, digest: str | None, declared: str | None) -> None:
    now = None if declared is None else SentenceModel(declared).digest
    if now != digest:
        was, is_now = ("hashed n-grams" if one is None else f"the model {one[:12]}" for one in (digest, now))
        raise ValueError(f"the text of feature {name!r} was read by {was} and is now by {is_now}")


def hashed_ngrams(text: str | None) -> list[int]:
    """Word unigrams, word bigrams and character trigrams of a text, hashed into 1 … TEXT_BUCKETS (the hashing trick:
    Weinberger et al., 2009, "Feature Hashing for Large Scale Multitask Learning"; subwords as in Bojanowski et al.,
    2017, "Enriching Word Vectors with Subword Information"). crc32, so that every machine agrees.
    """
    if not text:
        return []
    words = _WORD.findall(text.lower())
    grams = words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
    grams += [f"<{word}>"[i : i + 3] + "#" for word in words for i in range(len(word))]
    return [1 + zlib.crc32(gram.encode()) % TEXT_BUCKETS for gram in grams[:MAX_NGRAMS]]


def _learn(feature: Feature, column: pa.ChunkedArray) -> dict[str, Any]:
    match feature.kind:
        case "categorical" | "multi":
            return {"vocabulary": _values(feature, column)}
        case "text" if feature.model is not None:
            model = SentenceModel(feature.model)
            return {"model": model.digest, "dimension": model.width}
        case "text":
            return {}
        case "vector":
            lengths = _lengths(column)
            if not lengths:
                raise ValueError(f"no vector of feature {feature.name!r} is known to training; leave the feature out")
            if len(lengths) != 1:
                raise ValueError(f"the vectors of feature {feature.name!r} have lengths {lengths}; give all the same")
            return {"dimension": lengths[0]}
        case _:
            values = pc.cast(column, pa.float64()).to_numpy()
            values = values[np.isfinite(values)]
            spread = float(values.std()) if len(values) else 0.0
            return {"mean": float(values.mean()) if len(values) else 0.0, "std": spread or 1.0}


def _more(feature: Feature, learnt: dict[str, Any], column: pa.ChunkedArray) -> dict[str, Any]:
    match feature.kind:
        case "categorical" | "multi":
            old = set(learnt["vocabulary"])
            return {"vocabulary": learnt["vocabulary"] + [v for v in _values(feature, column) if v not in old]}
        case "vector":
            if others := [length for length in _lengths(column) if length != learnt["dimension"]]:
                raise ValueError(
                    f"the vectors of feature {feature.name!r} had length {learnt['dimension']} and now {others[0]}"
                )
    return learnt


def _values(feature: Feature, column: pa.ChunkedArray) -> list[str]:
    values = pc.list_flatten(column) if feature.kind == "multi" else column
    # Sorted, so that the same data gives the same codes whatever the order of its rows.
    return sorted(pc.unique(values).drop_null().to_pylist())


def _lengths(column: pa.ChunkedArray) -> list[int]:
    return pc.unique(pc.list_value_length(column)).drop_null().to_pylist()


def _codes(column: pa.ChunkedArray, vocabulary: list[str]) -> np.ndarray:
    found = pc.index_in(column, value_set=pa.array(vocabulary, type=column.type))
    return (pc.fill_null(found, -1).to_numpy() + 1).astype(np.int32)


def _padded(codes: np.ndarray, lengths: pa.Array, most: int) -> np.ndarray:
    counts = np.asarray(lengths, dtype=np.int64)
    width = int(min(most, counts.max(initial=1)))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    place = offsets[:-1, None] + np.arange(max(width, 1))
    padded = np.append(codes, UNKNOWN)[np.minimum(place, len(codes))]
    return np.where(np.arange(max(width, 1)) < counts[:, None], padded, UNKNOWN).astype(np.int32)
