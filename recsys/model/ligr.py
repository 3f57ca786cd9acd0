"""LiGR blocks: transformer blocks whose every step passes a gate that the input opens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from recsys.model.sequence import Dropout, Encoder, self_attention


class LiGRBlock(nn.Module):
    """A pre-norm block with gated residuals, x + f(norm(x)) · σ(xW), and SwiGLU for its feed-forward part.

    Borisyuk et al., 2025, "From Features to Transformers: Redefining Ranking for Scalable Impact" (arXiv 2502.03417),
    figure 2; SwiGLU: Shazeer, 2020, "GLU Variants Improve Transformer". As in eSASRec (Tikhonovich et al., 2025), the
    hidden width is 4·D.

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
        self.gate_attention = nn.Linear(dimension, dimension)
        self.norm_feedforward = nn.LayerNorm(dimension)
        self.expand = nn.Linear(dimension, 8 * dimension, bias=False)
        self.contract = nn.Linear(4 * dimension, dimension, bias=False)
        self.gate_feedforward = nn.Linear(dimension, dimension)

    def forward(self, x_BLD: Tensor) -> Tensor:
        attended = self.output(self_attention(self.query_key_value(self.norm_attention(x_BLD)), self.heads))
        x_BLD = x_BLD + self.dropout(attended * self.gate_attention(x_BLD).sigmoid())
        value, gate = self.expand(self.norm_feedforward(x_BLD)).chunk(2, dim=-1)
        hidden = self.contract(self.dropout(value * F.silu(gate)))
        return x_BLD + self.dropout(hidden * self.gate_feedforward(x_BLD).sigmoid())


class LiGR(Encoder):
    """LiGR blocks: they go on learning where plain ones, eight deep, collapse."""

    @staticmethod
    def block(*, dimension: int, heads: int, dropout: float, max_length: int, timed: bool) -> nn.Module:
        """As `Encoder.block`."""
        return LiGRBlock(dimension=dimension, heads=heads, dropout=dropout)
