"""History encoders as a server runs them: what they make of the newest position alone, none of it by approximation.

The same numbers as the modules, but for rounding. What a training step needs and an answer does not is left out:

- Only the newest position is wanted, so the last block attends from that one alone, and what follows sees one row.
- There, under a softmax, a head's only query q meets keys nK + b and values nV + c of normalised inputs n. As
  q·(nK + b) is (qKᵀ)·n plus what is the same at every position, and so nothing to a softmax, whose weights sum to 1, it
  may attend to n itself: keys and values of every position need not be made.
- What a normalisation scales and shifts is folded into the product that follows it.
- Modules cost more than short histories do: weights are bound once, and plain functions called.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.model.hstu import HSTU, HSTUBlock, elapsed
from recsys.model.ligr import LiGR, LiGRBlock
from recsys.model.sequence import Encoder, Transformer, TransformerBlock

# From embedded interactions [B, L, D], which may be overwritten, the lengths int64 [B] of histories, None where all are
# L, and times and moments asked int64 [B, L] as for `Encoder.forward`, to what the newest positions become, [B, D].
Newest = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Tensor]


def newest(encoder: Encoder) -> Newest:
    """What an encoder makes of newest positions; its weights are copied, and any number of threads may call it."""
    if isinstance(encoder, (Transformer, LiGR)):
        return _Attending(encoder)
    return _Units(encoder) if isinstance(encoder, HSTU) else _Whole(encoder)


class _Whole:
    """Any encoder: all positions, of which the newest is taken."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = copy.deepcopy(encoder).eval().requires_grad_(False)

    def __call__(
        self, x_BLD: Tensor, lengths_B: Tensor | None, times_BL: Tensor | None, asked_BL: Tensor | None
    ) -> Tensor:
        return _taken(self._encoder(x_BLD, times_BL, asked_BL), lengths_B)


class _Attending:
    """A `Transformer` or a `LiGR`."""

    def __init__(self, encoder: Transformer | LiGR) -> None:
        blocks = cast(list[TransformerBlock | LiGRBlock], list(encoder.blocks))
        self._blocks = [_Block(block) for block in blocks[:-1]]
        self._last = _LastBlock(blocks[-1]) if blocks else None
        self._norm = encoder.norm.weight.detach().clone(), encoder.norm.bias.detach().clone()

    def __call__(
        self, x_BLD: Tensor, lengths_B: Tensor | None, times_BL: Tensor | None, asked_BL: Tensor | None
    ) -> Tensor:
        batch, length, dimension = x_BLD.shape
        x_ND = x_BLD.view(-1, dimension)
        for block in self._blocks:
            block(x_ND, batch)
        newest_BD = _taken(x_BLD, lengths_B)
        if self._last is not None:
            newest_BD = self._last(x_ND, newest_BD, _real(lengths_B, length))
        return torch.layer_norm(newest_BD, (dimension,), *self._norm)


class _Units:
    """An `HSTU`."""

    def __init__(self, encoder: HSTU) -> None:
        blocks = cast(list[HSTUBlock], list(encoder.blocks))
        self._blocks = [_Unit(block) for block in blocks[:-1]]
        self._last = _Unit(blocks[-1]) if blocks else None
        self._norm = encoder.norm.weight.detach().clone(), encoder.norm.bias.detach().clone()

    def __call__(
        self, x_BLD: Tensor, lengths_B: Tensor | None, times_BL: Tensor | None, asked_BL: Tensor | None
    ) -> Tensor:
        length, dimension = x_BLD.shape[1:]
        place, asked_BL = torch.arange(length), times_BL if asked_BL is None else asked_BL
        if self._blocks:
            distance_1LL = (place[:, None] - place).clamp_(min=0)[None]
            bucket_BLL = None if times_BL is None or asked_BL is None else elapsed(times_BL, asked_BL)
            for block in self._blocks:
                block(x_BLD, distance_1LL, bucket_BLL)
        newest_BD = _taken(x_BLD, lengths_B)
        if self._last is not None:
            newest_1 = torch.tensor([length - 1]) if lengths_B is None else lengths_B - 1
            distance_BL, bucket_BL = (newest_1[:, None] - place).clamp_(min=0), None
            if times_BL is not None and asked_BL is not None:
                bucket_BL = elapsed(times_BL, _taken(asked_BL, lengths_B)[:, None])[:, 0]
            newest_BD = self._last.newest(x_BLD, newest_BD, distance_BL, bucket_BL, _real(lengths_B, length))
        return torch.layer_norm(newest_BD, (dimension,), *self._norm)


def _taken(values_BL: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Those of the newest positions [B, …]."""
    return values_BL[:, -1] if lengths_B is None else values_BL[torch.arange(len(lengths_B)), lengths_B - 1]


def _real(lengths_B: Tensor | None, length: int) -> Tensor | None:
    """Which positions are no padding, bool [B, L]; None where none is."""
    return None if lengths_B is None else torch.arange(length) < lengths_B[:, None]


@dataclass(frozen=True)
class _Affine:
    """A product and a sum: weight [in, out], bias [out]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, norm: nn.LayerNorm | None = None) -> Self:
        """What a layer does after a normalisation, whose own scale and shift it takes over."""
        weight, bias = linear.weight.detach().double(), torch.zeros(linear.out_features, dtype=torch.float64)
        if linear.bias is not None:
            bias = linear.bias.detach().double()
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


@dataclass(frozen=True)
class _Gated:
    """A product whose sum passes a gate, which opens by what it is added to."""

    affine: _Affine
    gate: _Affine

    def add(self, to_ND: Tensor, x_ND: Tensor) -> Tensor:
        """Adds to `to_ND`, in place."""
        return to_ND.addcmul_(self.affine(x_ND), self.gate(to_ND).sigmoid_())


class _Feedforward:
    """The second half of a block."""

    def __init__(self, block: TransformerBlock | LiGRBlock) -> None:
        self._expand = _Affine.of(block.expand, block.norm_feedforward)
        self._contract: _Affine | _Gated = _Affine.of(block.contract)
        self._bent: Callable[[Tensor], Tensor] = F.gelu
        if isinstance(block, LiGRBlock):
            self._contract, self._bent = _Gated(self._contract, _Affine.of(block.gate_feedforward)), _swiglu

    def __call__(self, x_ND: Tensor) -> Tensor:
        return self._contract.add(x_ND, self._bent(self._expand(_normal(x_ND))))


class _Block:
    """A block, over all positions and in place."""

    def __init__(self, block: TransformerBlock | LiGRBlock) -> None:
        self._heads = block.heads
        self._query_key_value = _Affine.of(block.query_key_value, block.norm_attention)
        self._output = _gated(block, _Affine.of(block.output))
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

    def __init__(self, block: TransformerBlock | LiGRBlock) -> None:
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
        straight = _Affine.rounded(
            torch.einsum("ihd,hdj->hij", value_DHd, output).reshape(-1, dimension),
            block.output.bias.detach() + torch.einsum("hd,hdj->j", value_Hd, output),
        )
        self._output = _gated(block, straight)
        self._feedforward = _Feedforward(block)

    def __call__(self, x_ND: Tensor, newest_BD: Tensor, real_BL: Tensor | None) -> Tensor:
        """The outputs [B, D] at the newest positions of x_ND, in place; `real_BL` tells positions from padding."""
        batch, dimension = newest_BD.shape
        seen = _normal(x_ND).view(batch, 1, -1, dimension).expand(-1, self._heads, -1, -1)
        query = self._query(_normal(newest_BD)).view(batch, self._heads, 1, dimension)
        mask = None if real_BL is None else real_BL[:, None, None]
        attended = F.scaled_dot_product_attention(query, seen, seen, attn_mask=mask, scale=1.0)
        return self._feedforward(self._output.add(newest_BD, attended.view(batch, -1)))


class _Unit:
    """An HSTU block; see `HSTUBlock.forward`."""

    def __init__(self, block: HSTUBlock) -> None:
        self._heads, self._max_length, self._dimension = block.heads, block.max_length, block.output.in_features
        whole = _Affine.of(block.project, block.norm)
        order = torch.tensor([0, 2, 1, 3])  # gate and query, which one position may have alone, then value and key
        weight = whole.weight.view(self._dimension, 4, -1)[:, order].view(self._dimension, -1)
        bias, half = whole.bias.view(4, -1)[order].flatten(), 2 * self._dimension
        self._project = _Affine(weight, bias)
        self._gate_query, self._value_key = (
            _Affine(weight[:, :half], bias[:half]),
            _Affine(weight[:, half:], bias[half:]),
        )
        self._by_distance = block.by_distance.detach().clone()
        self._by_time = None if block.by_time is None else block.by_time.detach().clone()
        self._norm = block.norm_attended.weight.detach().clone(), block.norm_attended.bias.detach().clone()
        self._output = _Affine.of(block.output)

    def __call__(self, x_BLD: Tensor, distance_1LL: Tensor, bucket_BLL: Tensor | None) -> None:
        """Replaces x_BLD."""
        batch, length, dimension = x_BLD.shape
        x_ND = x_BLD.view(-1, dimension)
        projected = F.silu(self._project(_normal(x_ND)), inplace=True).view(batch, length, 4, self._heads, -1)
        gate, query, value, key = projected.permute(2, 0, 3, 1, 4).unbind()
        weight = self._weight(query, key, distance_1LL, bucket_BLL).tril_()
        attended, gate = ((part.transpose(1, 2).reshape(x_ND.shape)) for part in (weight @ value, gate))
        self._add(x_ND, gate, attended)

    def newest(
        self, x_BLD: Tensor, newest_BD: Tensor, distance_BL: Tensor, bucket_BL: Tensor | None, real_BL: Tensor | None
    ) -> Tensor:
        """The outputs [B, D] at the newest positions of x_BLD, in place; `real_BL` tells positions from padding."""
        batch, length, dimension = x_BLD.shape
        seen = F.silu(self._value_key(_normal(x_BLD.view(-1, dimension))), inplace=True)
        value, key = seen.view(batch, length, 2, self._heads, -1).permute(2, 0, 3, 1, 4)
        asking = F.silu(self._gate_query(_normal(newest_BD)), inplace=True)
        query = asking[:, dimension:].reshape(batch, self._heads, 1, -1)
        weight = self._weight(query, key, distance_BL[:, None], None if bucket_BL is None else bucket_BL[:, None])
        if real_BL is not None:
            weight *= real_BL[:, None, None]
        return self._add(newest_BD, asking[:, :dimension], (weight @ value).reshape(batch, dimension))

    def _weight(self, query: Tensor, key: Tensor, distance: Tensor, bucket: Tensor | None) -> Tensor:
        """Of what was taken, for some positions: [B, H, q, L] from distances and buckets [B or 1, q, L]."""
        bias = self._by_distance[distance]
        if self._by_time is not None and bucket is not None:
            bias = bias + self._by_time[bucket]
        return F.silu((query @ key.mT).add_(bias[:, None]), inplace=True).div_(self._max_length)

    def _add(self, to_ND: Tensor, gate_ND: Tensor, attended_ND: Tensor) -> Tensor:
        """Adds what was attended to, through its gate, in place."""
        attended_ND = torch.layer_norm(attended_ND, (self._dimension,), *self._norm)
        return self._output.add(to_ND, attended_ND.mul_(gate_ND))


def _gated(block: TransformerBlock | LiGRBlock, output: _Affine) -> _Affine | _Gated:
    """How what was attended to is added: through a gate, if the block has one."""
    return _Gated(output, _Affine.of(block.gate_attention)) if isinstance(block, LiGRBlock) else output


def _swiglu(hidden_ND: Tensor) -> Tensor:
    value, gate = hidden_ND.chunk(2, dim=-1)
    return value * F.silu(gate)


def _normal(x_ND: Tensor) -> Tensor:
    """Each row with mean 0 and variance 1."""
    return torch.layer_norm(x_ND, x_ND.shape[1:])
