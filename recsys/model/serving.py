"""The user tower as a server runs it: one history at a time, and only the vector after its newest interaction.

The same numbers as `UserTower`, but for rounding, in a third to half of the time; `recsys.model.newest` says how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from recsys.data.history import gap_buckets, waits
from recsys.data.vocabulary import UNKNOWN
from recsys.model.hstu import HSTU
from recsys.model.newest import newest
from recsys.model.towers import Towers, unit


class UserEncoder:
    """Users' vectors from trained towers; safe from any number of threads.

    Args:
        towers: trained, on the CPU. Their weights are copied: training them further changes nothing here.
    """

    def __init__(self, towers: Towers) -> None:
        user, self._dimension = towers.user, towers.architecture.dimension
        self._unit, self._item_bias, self._max_length = user.unit, user.item_bias, towers.architecture.max_length
        self._scale = np.float32(self._dimension**0.5)
        self._position, self._event, self._gap, self._wait = (
            None if embedding is None else _table(embedding)
            for embedding in (user.position, user.event, user.gap, user.wait)
        )
        if self._gap is not None:
            self._at_once = self._gap.take(gap_buckets(np.zeros(self._max_length, dtype=np.int64)), axis=0)
        # What is added to items of which neither when nor what is told: they happened at once, and are all of code 0.
        plain = [] if self._position is None else [self._position]
        plain += [] if self._event is None else [self._event[:1]]
        plain += [] if self._gap is None else [self._at_once]
        self._plain = np.zeros((self._max_length, self._dimension), dtype=np.float32) + sum(plain)
        self._reads_moments = user.timed and (user.query_time or isinstance(user.encoder, HSTU))
        profile = user.profile
        self._profile = [] if profile is None else list(zip(profile.names, map(_feature, profile.parts), strict=True))
        self._rotation = None if user.rotation is None else user.rotation.detach().clone()
        self._newest = newest(user.encoder)

    def __call__(
        self,
        item_LD: np.ndarray,
        times_L: np.ndarray | None,
        events_L: np.ndarray | None,
        profile: Mapping[str, np.ndarray],
        asked: int | None = None,
    ) -> np.ndarray:
        """The vector of one user after the newest interaction of one history, as `Towers.user_now`.

        Args:
            item_LD: float32, the vectors of the items taken, oldest first.
            times_L: int64, milliseconds since 1970 of each, where known.
            events_L: int64, event codes, where known.
            profile: encoded user features, feature name to [1, …].
            asked: likewise milliseconds, the moment of the question, which towers made with `query_time` are told; as
                soon as the newest interaction happened, if left out.

        Returns:
            float32 [D].

        Raises:
            ValueError: the history is empty, or longer than the towers' `max_length`.
        """
        times_BL, events_BL = (None if values is None else values[None] for values in (times_L, events_L))
        asked_B = None if asked is None else np.array([asked])
        vector: np.ndarray = self._encoded(item_LD[None], times_BL, events_BL, profile, None, asked_B)[0]
        return vector

    def untold(self, item_LD: np.ndarray, profile: Mapping[str, np.ndarray], asked: int | None = None) -> np.ndarray:
        """As one call where neither when nor what is told: all happened when asked, or at once, and are of code 0.

        The same vector as with arrays that say so, for less work: most requests tell items alone.
        """
        length = len(item_LD)
        if self._reads_moments:
            times_L = np.full(length, 0 if asked is None else asked, dtype=np.int64)
            return self(item_LD, times_L, np.zeros(length, dtype=np.int64), profile, asked)
        self._check(length)
        with torch.inference_mode():
            x_BLD = self._scaled(item_LD[None])
            x_BLD += self._plain[:length]
            vector: np.ndarray = self._vectors(x_BLD, profile, None, None, None)[0]
            return vector

    def many(
        self,
        item_BLD: np.ndarray,
        times_BL: np.ndarray | None,
        events_BL: np.ndarray | None,
        profiles: Mapping[str, np.ndarray],
        lengths_B: np.ndarray,
        asked_B: np.ndarray | None = None,
    ) -> np.ndarray:
        """The vectors of many users in one pass, each as one call alone would give it.

        Args:
            item_BLD: float32, aligned left; what stands behind a history's end is ignored, but must be finite.
            times_BL: int64, likewise.
            events_BL: int64, likewise.
            profiles: feature name to [B, …], or to [1, …] where all have the same.
            lengths_B: int64, from 1 to L.
            asked_B: int64, the moments of the questions.

        Returns:
            float32 [B, D].

        Raises:
            ValueError: a history is empty, or longer than the towers' `max_length`.
        """
        if len(lengths_B) == 0:
            return np.empty((0, self._dimension), dtype=np.float32)
        if lengths_B.min() < 1:
            raise ValueError("a history is empty, and has no newest interaction; leave it out")
        same = None if (lengths_B == item_BLD.shape[1]).all() else lengths_B
        return self._encoded(item_BLD, times_BL, events_BL, profiles, same, asked_B)

    def _encoded(
        self,
        item_BLD: np.ndarray,
        times_BL: np.ndarray | None,
        events_BL: np.ndarray | None,
        profiles: Mapping[str, np.ndarray],
        lengths_B: np.ndarray | None,
        asked_B: np.ndarray | None,
    ) -> np.ndarray:
        """As `many`; lengths are None where all are L."""
        length = item_BLD.shape[1]
        self._check(length)
        with torch.inference_mode():
            # In NumPy, whose calls on arrays as small as these cost a third of torch's.
            x_BLD, when_BL, asked_BL = self._scaled(item_BLD), None, None
            if self._position is not None:
                x_BLD += self._position[:length]
            if self._event is not None and events_BL is not None:
                x_BLD += self._event.take(events_BL, axis=0)
            if self._gap is not None and times_BL is not None:
                # Where no time is known all are the same, and no gap need be worked out.
                same = (times_BL == times_BL[:, :1]).all()
                x_BLD += self._at_once[:length] if same else self._gap.take(gap_buckets(times_BL), axis=0)
                when_BL = torch.from_numpy(times_BL)
            if self._wait is not None and times_BL is not None and when_BL is not None:
                asked_BL = torch.from_numpy(_asked(times_BL, lengths_B, asked_B))
                x_BLD += self._wait.take(waits(when_BL, asked_BL).numpy(), axis=0)
            return self._vectors(x_BLD, profiles, lengths_B, when_BL, asked_BL)

    def _check(self, length: int) -> None:
        if not 0 < length <= self._max_length:
            raise ValueError(f"a history has {length} interactions; give the newest of them, 1 to {self._max_length}")

    def _scaled(self, item_BLD: np.ndarray) -> np.ndarray:
        """Item vectors as the encoder wants them, an array of its own."""
        if self._rotation is not None:
            item_BLD = (torch.from_numpy(item_BLD) @ self._rotation.T).numpy()
        scaled: np.ndarray = item_BLD * self._scale
        return scaled

    def _vectors(
        self,
        x_BLD: np.ndarray,
        profiles: Mapping[str, np.ndarray],
        lengths_B: np.ndarray | None,
        when_BL: Tensor | None,
        asked_BL: Tensor | None,
    ) -> np.ndarray:
        """Of embedded interactions, which are written to, what the encoder makes."""
        for name, feature in self._profile:
            x_BLD += _embedded(profiles[name], *feature)[:, None]
        lengths = None if lengths_B is None else torch.from_numpy(lengths_B)
        user_BD = self._newest(torch.from_numpy(x_BLD), lengths, when_BL, asked_BL)
        if self._unit:
            user_BD = unit(user_BD, torch.ones_like(user_BD[:, :1]) if self._item_bias else None)
        vectors: np.ndarray = (user_BD if self._rotation is None else user_BD @ self._rotation).numpy()
        return vectors


def known_moments(times_L: np.ndarray, asked: int | None = None) -> np.ndarray:
    """Times, where one that is not known is that of the interaction before, or at the start that of the one after.

    Args:
        times_L: int64, milliseconds since 1970, −1 where unknown.
        asked: the moment of the question, which all are taken to have happened at if none is known; 1970 if left out.
    """
    known_L = times_L >= 0
    if known_L.all():
        return times_L
    if not known_L.any():
        return np.full_like(times_L, 0 if asked is None else asked)
    place_L = np.maximum.accumulate(np.where(known_L, np.arange(len(times_L)), known_L.argmax()))
    moments_L: np.ndarray = times_L[place_L]
    return moments_L


def _asked(times_BL: np.ndarray, lengths_B: np.ndarray | None, asked_B: np.ndarray | None) -> np.ndarray:
    """When each position's question was asked, int64 [B, L]: when the next interaction happened, as in training."""
    asked_BL = np.concatenate([times_BL[:, 1:], times_BL[:, -1:]], axis=1)
    rows, last = np.arange(len(times_BL)), -1 if lengths_B is None else lengths_B - 1
    asked_BL[rows, last] = times_BL[rows, last] if asked_B is None else asked_B
    return asked_BL


def _table(embedding: nn.Embedding) -> np.ndarray:
    return embedding.weight.detach().numpy().copy()


def _feature(part: nn.Module) -> tuple[bool, np.ndarray]:
    """Whether a part of a `FeatureSum` embeds codes, and its weights, a code or a dimension of the values a row."""
    if isinstance(part, nn.Embedding):
        return True, _table(part)
    return False, cast(nn.Linear, part).weight.detach().numpy().T.copy()


def _embedded(given: np.ndarray, coded: bool, weight: np.ndarray) -> np.ndarray:
    """One feature [B, …] as vectors [B, D]; see `FeatureSum`."""
    if not coded:
        return given @ weight
    if given.shape[1] == 1:
        return weight[given[:, 0]]
    # The row of UNKNOWN is zeros, so it adds nothing.
    return weight[given].sum(axis=1) / np.maximum(np.count_nonzero(given != UNKNOWN, axis=1), 1)[:, None]
