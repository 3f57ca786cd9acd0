"""HSTU blocks: attention without a softmax, that knows how long ago everything was."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys.model.sequence import Dropout, Encoder

TIME_BUCKETS = 128
_LOG_WIDTH = 0.301  # of a bucket, in natural logarithms of seconds: as in the authors' code


class HSTUBlock(nn.Module):
    """A hierarchical sequential transduction unit: x + f₂(norm(A·V) ⊙ U), with A = silu(QKᵀ + bias) / L.

    Zhai et al., 2024, "Actions Speak Louder than Words" (arXiv 2402.17152), equations 1 to 3. U, V, Q and K are
    silu(f₁(norm(x))); the bias is one number for each distance in positions and one for each bucket of elapsed time,
    shared by the heads. There is no feed-forward part.

    Args:
        dimension: D.
        heads: attention heads; must divide `dimension`.
        dropout: share of activations dropped while training.
        max_length: L, the longest history.
        timed: whether elapsed times are known.
    """

    def __init__(self, *, dimension: int, heads: int, dropout: float, max_length: int, timed: bool) -> None:
        super().__init__()
        self.heads, self.max_length = heads, max_length
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dimension)
        self.project = nn.Linear(dimension, 4 * dimension)
        self.norm_attended = nn.LayerNorm(dimension)
        self.output = nn.Linear(dimension, dimension)
        self.by_distance = nn.Parameter(torch.randn(max_length) * 0.02)
        self.by_time = nn.Parameter(torch.randn(TIME_BUCKETS) * 0.02) if timed else None

    def forward(self, x_BLD: Tensor, distance_LL: Tensor, bucket_BLL: Tensor | None) -> Tensor:
        """Args:
        x_BLD: the input.
        distance_LL: int64, by how many positions the second is before the first; 0 where it is after it.
        bucket_BLL: int64, `elapsed` from the second to the first.
        """
        batch, length, dimension = x_BLD.shape
        projected = F.silu(self.project(self.norm(x_BLD))).view(batch, length, 4, self.heads, -1)
        gate, value, query, key = projected.permute(2, 0, 3, 1, 4).unbind()
        bias = self.by_distance[distance_LL]
        if self.by_time is not None and bucket_BLL is not None:
            bias = bias + cast(Tensor, _Looked.apply(self.by_time, bucket_BLL))[:, None]
        score = F.silu(query @ key.mT + bias.to(query.dtype)) / self.max_length
        attended = (score.tril() @ value).transpose(1, 2).reshape(batch, length, dimension)
        gate = gate.transpose(1, 2).reshape(batch, length, dimension)
        return x_BLD + self.output(self.dropout(gate * self.norm_attended(attended)))


class HSTU(Encoder):
    """HSTU blocks: cheaper than a transformer's, and the ones to take where times tell something, eight deep."""

    @staticmethod
    def block(*, dimension: int, heads: int, dropout: float, max_length: int, timed: bool) -> nn.Module:
        """As `Encoder.block`."""
        return HSTUBlock(dimension=dimension, heads=heads, dropout=dropout, max_length=max_length, timed=timed)

    def forward(self, x_BLD: Tensor, times_BL: Tensor | None = None, asked_BL: Tensor | None = None) -> Tensor:
        """As `Encoder.forward`."""
        place = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        distance_LL = (place[:, None] - place).clamp_min(0)
        bucket_BLL = None if times_BL is None else elapsed(times_BL, times_BL if asked_BL is None else asked_BL)
        for block in self.blocks:
            x_BLD = block(x_BLD, distance_LL, bucket_BLL)
        return cast(Tensor, self.norm(x_BLD))


def elapsed(times_BL: Tensor, asked_BL: Tensor) -> Tensor:
    """Buckets the time from each interaction to each question.

    Args:
        times_BL: int64 milliseconds.
        asked_BL: int64 milliseconds.

    Returns:
        int64 [B, L, L], question before interaction: ⌊ln(max(1, seconds)) / 0.301⌋, at most TIME_BUCKETS − 1.
    """
    seconds = (asked_BL[:, :, None] - times_BL[:, None, :]).float() / 1000
    return (seconds.clamp_min_(1).log_() / _LOG_WIDTH).long().clamp_max_(TIME_BUCKETS - 1)


class _Looked(torch.autograd.Function):
    """table[index], for a table of numbers; its gradient is a count, which PyTorch's own adds one by one."""

    @staticmethod
    def forward(ctx, table: Tensor, index: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(index)
        ctx.size = len(table)
        return table[index]

    @staticmethod
    def backward(ctx, *grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        (index,) = ctx.saved_tensors
        counted = torch.bincount(index.flatten(), grad[0].float().flatten(), minlength=ctx.size)
        return counted.to(grad[0].dtype), None
