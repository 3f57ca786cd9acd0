"""Bags and means: encoders for histories that are sets, or whose order only says what is newer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.model.sequence import Dropout, Encoder


class BagBlock(nn.Module):
    """A pre-norm feed-forward block with a residual.

    Args:
        dimension: D.
        dropout: share of activations dropped while training.
    """

    def __init__(self, *, dimension: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dimension)
        self.expand = nn.Linear(dimension, 2 * dimension)
        self.contract = nn.Linear(2 * dimension, dimension)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return x_BLD + self.dropout(self.contract(F.gelu(self.expand(self.norm(x_BLD)))))


class Mean(Encoder):
    """The plain mean of what was taken; without blocks, there is nothing to learn but the items' own vectors.

    Vectors of rare items and words want a learning rate at which a `Bag`'s map would lose what it holds.

    Args:
        recency: when a user is asked about, an interaction that n others followed counts (n + 1)^−recency times as
            much. Not in training, where parts of a set are drawn at random: what newest means is not known there.
    """

    ordered = False

    def __init__(self, *, recency: float = 0.0, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.recency = recency
        self.norm = nn.Identity()  # type: ignore[assignment]
        self.map: nn.Module = nn.Identity()

    @staticmethod
    def block(*, dimension: int, heads: int, dropout: float, max_length: int, timed: bool) -> nn.Module:
        """As `Encoder.block`."""
        return BagBlock(dimension=dimension, dropout=dropout)

    def forward(self, x_BLD: Tensor, times_BL: Tensor | None = None, asked_BL: Tensor | None = None) -> Tensor:
        """As `Encoder.forward`; the last position has all of the set. A plain mean is not normalised at the end."""
        with torch.autocast(x_BLD.device.type, enabled=False):  # sums of hundreds want more than 8 bits
            weight_BL1 = self.weights(x_BLD)
            mean_BLD = self.faded(weight_BL1 * x_BLD) / self.faded(weight_BL1)
        return super().forward(self.map(mean_BLD))

    def faded(self, x_BLE: Tensor) -> Tensor:
        """At each position, the sum of what stands up to it, each as much of it as still counts there; [B, L, E]."""
        if self.training or not self.recency:
            return x_BLE.cumsum(1)
        place_L = torch.arange(x_BLE.shape[1], device=x_BLE.device, dtype=x_BLE.dtype)
        followed_LL = (place_L[:, None] - place_L).clamp(0)
        return ((followed_LL + 1) ** -self.recency).tril() @ x_BLE

    def weights(self, x_BLD: Tensor) -> Tensor:
        """What each interaction counts for, [B, L, 1]."""
        return torch.ones_like(x_BLD[..., :1])


class Bag(Mean):
    """A weighted mean of what was taken, mapped to what is wanted, and normalised.

    An item's weight is eˢ, with s linear in its vector.
    """

    def __init__(self, *, dimension: int, **sizes: Any) -> None:
        super().__init__(dimension=dimension, **sizes)
        self.norm = nn.LayerNorm(dimension)
        self.weight = nn.Linear(dimension, 1, bias=False)
        nn.init.zeros_(self.weight.weight)
        self.map = nn.Linear(dimension, dimension, bias=False)
        nn.init.eye_(self.map.weight)

    def weights(self, x_BLD: Tensor) -> Tensor:
        """As `Mean.weights`."""
        return cast(Tensor, self.weight(x_BLD).clamp(-8, 8).exp())
