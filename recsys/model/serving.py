"""The user tower as a server runs it: one history at a time, and only the vector after its newest interaction.

The same numbers as `UserTower`, but for rounding, in a third to half of the time. What a training step needs and an
answer does not is left out, none of it by approximation:

- Only the newest position is wanted, so the last block attends from that one alone, and its MLP sees one row.
- There a head's only query q meets keys nK + b and values nV + c of normalised inputs n. As q·(nK + b) is (qKᵀ)·n plus
  what is the same at every position, and so nothing to a softmax, whose weights sum to 1, it may attend to n itself:
  keys and values of every position need not be made.
- What a normalisation scales and shifts is folded into the product that follows it.
- Modules cost more than short histories do: weights are bound once, and plain functions called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.data.vocabulary import UNKNOWN
from recsys.model.sequence import TransformerBlock
from recsys.model.towers import Towers


class UserEncoder:
    """Users' vectors from trained towers; safe from any number of threads.

    Args:
        towers: trained, on the CPU. Their weights are copied: training them further changes nothing here.
    """

    def __init__(self, towers: Towers) -> None:
        user, self._dimension = towers.user, towers.architecture.dimension
        self._unit = user.unit
        self._scale = np.float32(self._dimension**0.5)
        self._position = _table(user.position)
        self._event = None if user.event is None else _table(user.event)
        self._gap = None if user.gap is None else _table(user.gap)
        profile = user.profile
        self._profile = [] if profile is None else list(zip(profile.names, map(_feature, profile.parts), strict=True))
        self._rotation = None if user.rotation is None else user.rotation.detach().clone()
        blocks = cast(list[TransformerBlock], list(user.encoder.blocks))
        self._blocks = [_Block(block) for block in blocks[:-1]]
        self._last = _LastBlock(blocks[-1]) if blocks else None
        self._norm = user.encoder.norm.weight.detach().clone(), user.encoder.norm.bias.detach().clone()

    def __call__(
        self,
        item_LD: np.ndarray,
        gaps_L: np.ndarray | None,
        events_L: np.ndarray | None,
        profile: Mapping[str, np.ndarray],
    ) -> np.ndarray:
        """The vector of one user after the newest interaction of one history, as `Towers.user_now`.

        Args:
            item_LD: float32, the vectors of the items taken, oldest first.
            gaps_L: int64, `gap_buckets` of their times, where known.
            events_L: int64, event codes, where known.
            profile: encoded user features, feature name to [1, …].

        Returns:
            float32 [D].

        Raises:
            ValueError: the history is empty, or longer than the towers' `max_length`.
        """
        gaps_BL, events_BL = (None if values is None else values[None] for values in (gaps_L, events_L))
        vector: np.ndarray = self._encoded(item_LD[None], gaps_BL, events_BL, profile, None)[0]
        return vector

    def many(
        self,
        item_BLD: np.ndarray,
        gaps_BL: np.ndarray | None,
        events_BL: np.ndarray | None,
        profiles: Mapping[str, np.ndarray],
        lengths_B: np.ndarray,
    ) -> np.ndarray:
        """The vectors of many users in one pass, each as one call alone would give it.

        Args:
            item_BLD: float32, aligned left; what stands behind a history's end is ignored, but must be finite.
            gaps_BL: int64, likewise.
            events_BL: int64, likewise.
            profiles: feature name to [B, …], or to [1, …] where all have the same.
            lengths_B: int64, from 1 to L.

        Returns:
            float32 [B, D].

        Raises:
            ValueError: a history is empty, or longer than the towers' `max_length`.
        """
        if len(lengths_B) == 0:
            return np.empty((0, self._dimension), dtype=np.float32)
        if lengths_B.min() < 1:
            raise ValueError("a history is empty, and has no newest interaction; leave it out")
        return self._encoded(item_BLD, gaps_BL, events_BL, profiles, torch.from_numpy(lengths_B))

    def _encoded(
        self,
        item_BLD: np.ndarray,
        gaps_BL: np.ndarray | None,
        events_BL: np.ndarray | None,
        profiles: Mapping[str, np.ndarray],
        lengths_B: Tensor | None,
    ) -> np.ndarray:
        length = item_BLD.shape[1]
        if not 0 < length <= len(self._position):
            raise ValueError(
                f"a history has {length} interactions; give the newest of them, 1 to {len(self._position)}"
            )
        with torch.inference_mode():
            if self._rotation is not None:
                item_BLD = (torch.from_numpy(item_BLD) @ self._rotation.T).numpy()
            # In NumPy, whose calls on arrays as small as these cost a third of torch's.
            x_BLD = item_BLD * self._scale
            x_BLD += self._position[:length]
            if self._event is not None and events_BL is not None:
                x_BLD += self._event.take(events_BL, axis=0)
            if self._gap is not None and gaps_BL is not None:
                x_BLD += self._gap.take(gaps_BL, axis=0)
            for name, feature in self._profile:
                x_BLD += _embedded(profiles[name], *feature)[:, None]
            user_BD = self._encode(torch.from_numpy(x_BLD), lengths_B)
            if self._unit:
                user_BD = F.normalize(user_BD, dim=-1)
            vectors: np.ndarray = (user_BD if self._rotation is None else user_BD @ self._rotation).numpy()
            return vectors

    def _encode(self, x_BLD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """What the encoder makes of the newest positions [B, D]; lengths are None where all are L."""
        batch, length, dimension = x_BLD.shape
        x_ND = x_BLD.view(-1, dimension)
        for block in self._blocks:
            block(x_ND, batch)
        real_BL, newest_BD = None, x_ND[length - 1 :: length]
        if lengths_B is not None and (lengths_B < length).any():
            real_BL = torch.arange(length) < lengths_B[:, None]
            newest_BD = x_ND[torch.arange(0, len(x_ND), length) + lengths_B - 1]
        if self._last is not None:
            newest_BD = self._last(x_ND, newest_BD, real_BL)
        return torch.layer_norm(newest_BD, (dimension,), *self._norm)


@dataclass(frozen=True)
class _Affine:
    """A product and a sum: weight [in, out], bias [out]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, norm: nn.LayerNorm | None = None) -> Self:
        """What a layer does after a normalisation, whose own scale and shift it takes over."""
        weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
        if norm is not None:
            weight, bias = weight * norm.weight.detach(), bias + weight @ norm.bias.detach().double()
        return cls.rounded(weight.T, bias)

    @classmethod
    def rounded(cls, weight: Tensor, bias: Tensor) -> Self:
        return cls(weight.float().contiguous(), bias.float())

    def __call__(self, x_ND: Tensor) -> Tensor:
        return torch.addmm(self.bias, x_ND, self.weight)

    def add(self, to_ND: Tensor, x_ND: Tensor) -> Tensor:
        """Adds to `to_ND`, in place."""
        return to_ND.add_(self.bias).addmm_(x_ND, self.weight)


class _Feedforward:
    """The second half of a block."""

    def __init__(self, block: TransformerBlock) -> None:
        self._expand = _Affine.of(block.expand, block.norm_feedforward)
        self._contract = _Affine.of(block.contract)

    def __call__(self, x_ND: Tensor) -> Tensor:
        return self._contract.add(x_ND, F.gelu(self._expand(_normal(x_ND))))


class _Block:
    """A block, over all positions and in place."""

    def __init__(self, block: TransformerBlock) -> None:
        self._heads = block.heads
        self._query_key_value = _Affine.of(block.query_key_value, block.norm_attention)
        self._output = _Affine.of(block.output)
        self._feedforward = _Feedforward(block)

    def __call__(self, x_ND: Tensor, batch: int) -> None:
        """Replaces x_ND, the positions of `batch` histories of equal length one after the other."""
        dimension = x_ND.shape[1]
        qkv = self._query_key_value(_normal(x_ND)).view(batch, -1, 3, self._heads, dimension // self._heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        self._output.add(x_ND, attended.transpose(1, 2).reshape(x_ND.shape))
        self._feedforward(x_ND)


class _LastBlock:
    """A block of which only the newest positions' outputs are wanted."""

    def __init__(self, block: TransformerBlock) -> None:
        self._heads, dimension = block.heads, block.output.in_features
        qkv = _Affine.of(block.query_key_value, block.norm_attention)
        weight, bias = qkv.weight.double(), qkv.bias.double()
        query_DHd, key_DHd, value_DHd = weight.view(dimension, 3, self._heads, -1).unbind(1)
        query_Hd, _, value_Hd = bias.view(3, self._heads, -1).unbind()
        output = block.output.weight.detach().double().T.reshape(self._heads, -1, dimension)
        scale = query_Hd.shape[1] ** -0.5
        # A head's query against normalised inputs, [D, H · D], and its weighted sum of these straight to the output.
        self._query = _Affine.rounded(
            scale * torch.einsum("ihd,jhd->ihj", query_DHd, key_DHd).reshape(dimension, -1),
            scale * torch.einsum("hd,jhd->hj", query_Hd, key_DHd).flatten(),
        )
        self._output = _Affine.rounded(
            torch.einsum("ihd,hdj->hij", value_DHd, output).reshape(-1, dimension),
            block.output.bias.detach() + torch.einsum("hd,hdj->j", value_Hd, output),
        )
        self._feedforward = _Feedforward(block)

    def __call__(self, x_ND: Tensor, newest_BD: Tensor, real_BL: Tensor | None) -> Tensor:
        """The outputs [B, D] at the newest positions of x_ND; `real_BL` tells positions from padding."""
        batch, dimension = newest_BD.shape
        seen = _normal(x_ND).view(batch, 1, -1, dimension).expand(-1, self._heads, -1, -1)
        query = self._query(_normal(newest_BD)).view(batch, self._heads, 1, dimension)
        mask = None if real_BL is None else real_BL[:, None, None]
        attended = F.scaled_dot_product_attention(query, seen, seen, attn_mask=mask, scale=1.0)
        return self._feedforward(self._output(attended.view(batch, -1)).add_(newest_BD))


def _normal(x_ND: Tensor) -> Tensor:
    """Each row with mean 0 and variance 1."""
    return torch.layer_norm(x_ND, x_ND.shape[1:])


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
