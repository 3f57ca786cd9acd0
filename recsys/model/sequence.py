"""History encoders: from the vectors of what a user took, in order, to what they want next at each point."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dropout(nn.Module):
    """Dropout whose mask costs a byte of randomness a value on a CPU, not a draw.

    PyTorch's own draws a Bernoulli number for each, on one core: a tenth of a training step. Here the share dropped is
    rounded to 1/256, and the scale is that of the rounded share, so that the mean stays exact.

    Args:
        share: of activations dropped while training.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout is {share}; choose at least 0 and below 1")
        self.share = share
        self.dropped = min(255, round(share * 256))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropped:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.share)
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * (kept * (256 / (256 - self.dropped))).to(x.dtype)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention of each position to itself and those before it (Vaswani et al., 2017, eq. 1).

    Args:
        query: [B, H, L, D/H].
        key: likewise.
        value: likewise.

    Returns:
        [B, H, L, D/H].
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    # PyTorch's fused kernel has a slow backward pass on CPUs: 86 ms against 12 ms for this, at 160 histories of 50.
    length = query.shape[2]
    future = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)
    score = torch.baddbmm(future, (query * query.shape[3] ** -0.5).flatten(0, 1), key.flatten(0, 1).mT)
    return (score.softmax(-1).to(value.dtype) @ value.flatten(0, 1)).view(query.shape)


def self_attention(qkv_BLE: Tensor, heads: int) -> Tensor:
    """Causal attention of several heads over one history each.

    Histories are aligned left, so a causal mask alone keeps padding out of every real position.

    Args:
        qkv_BLE: [B, L, 3·D], queries, keys and values.
        heads: H; divides D.

    Returns:
        [B, L, D].
    """
    batch, length, width = qkv_BLE.shape
    query, key, value = qkv_BLE.view(batch, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
    return causal_attention(query, key, value).transpose(1, 2).reshape(batch, length, width // 3)


class Encoder(nn.Module, ABC):
    """From what a user took, in order, to what they want next at each point; a configuration names the class.

    Args:
        dimension: D.
        blocks: how many are stacked.
        heads: attention heads a block; must divide `dimension`.
        dropout: share of activations dropped while training.
        max_length: the longest history there will be.
        timed: whether the times of interactions are known.

    Attributes:
        ordered: whether positions say something, and are embedded.
    """

    ordered = True

    def __init__(
        self, *, dimension: int, blocks: int, heads: int, dropout: float, max_length: int, timed: bool
    ) -> None:
        super().__init__()
        if dimension % heads:
            raise ValueError(f"{heads} heads do not divide dimension {dimension}; choose another number of heads")
        self.blocks = nn.ModuleList(
            self.block(dimension=dimension, heads=heads, dropout=dropout, max_length=max_length, timed=timed)
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dimension)

    @staticmethod
    @abstractmethod
    def block(*, dimension: int, heads: int, dropout: float, max_length: int, timed: bool) -> nn.Module:
        """One of the blocks."""

    def forward(self, x_BLD: Tensor, times_BL: Tensor | None = None, asked_BL: Tensor | None = None) -> Tensor:
        """Args:
            x_BLD: the embedded interactions; position p sees positions 0 … p only.
            times_BL: int64 milliseconds, when each happened; needed if `timed`, and read by those that can.
            asked_BL: int64 milliseconds, when the question at each position is asked; when it happened if left out.

        Returns:
            [B, L, D], normalised.
        """
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return cast(Tensor, self.norm(x_BLD))


class TransformerBlock(nn.Module):
    """A pre-norm causal transformer block (Vaswani et al., 2017; pre-norm: Xiong et al., 2020).

    Args:
        dimension: D.
        heads: attention heads; must divide `dimension`.
        dropout: share of activations dropped while training.
    """

    def __init__(self, *, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = Dropout(dropout)
        self.norm_attention = nn.LayerNorm(dimension)
        self.query_key_value = nn.Linear(dimension, 3 * dimension)
        self.output = nn.Linear(dimension, dimension)
        self.norm_feedforward = nn.LayerNorm(dimension)
        self.expand = nn.Linear(dimension, 4 * dimension)
        self.contract = nn.Linear(4 * dimension, dimension)

    def forward(self, x_BLD: Tensor) -> Tensor:
        attended = self_attention(self.query_key_value(self.norm_attention(x_BLD)), self.heads)
        x_BLD = x_BLD + self.dropout(self.output(attended))
        hidden = self.contract(F.gelu(self.expand(self.norm_feedforward(x_BLD))))
        return x_BLD + self.dropout(hidden)


class Transformer(Encoder):
    """Plain pre-norm blocks: enough while there are two to four of them."""

    @staticmethod
    def block(*, dimension: int, heads: int, dropout: float, max_length: int, timed: bool) -> nn.Module:
        """As `Encoder.block`."""
        return TransformerBlock(dimension=dimension, heads=heads, dropout=dropout)
