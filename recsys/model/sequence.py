"""History encoders: from the vectors of what a user took, in order, to what they want next at each point."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F


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
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(dimension)
        self.query_key_value = nn.Linear(dimension, 3 * dimension)
        self.output = nn.Linear(dimension, dimension)
        self.norm_feedforward = nn.LayerNorm(dimension)
        self.expand = nn.Linear(dimension, 4 * dimension)
        self.contract = nn.Linear(4 * dimension, dimension)

    def forward(self, x_BLD: Tensor) -> Tensor:
        batch, length, dimension = x_BLD.shape
        qkv = self.query_key_value(self.norm_attention(x_BLD))
        query, key, value = qkv.view(batch, length, 3, self.heads, dimension // self.heads).permute(2, 0, 3, 1, 4)
        # Histories are aligned left, so a causal mask alone keeps padding out of every real position.
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        attended = self.output(attended.transpose(1, 2).reshape(batch, length, dimension))
        x_BLD = x_BLD + F.dropout(attended, self.dropout, self.training)
        hidden = self.contract(F.gelu(self.expand(self.norm_feedforward(x_BLD))))
        return x_BLD + F.dropout(hidden, self.dropout, self.training)


class Transformer(nn.Module):
    """A stack of causal blocks and a final normalisation; position p sees positions 0 … p only.

    Args:
        dimension: D.
        blocks, heads, dropout: as `TransformerBlock`.
    """

    def __init__(self, *, dimension: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        if dimension % heads:
            raise ValueError(f"{heads} heads do not divide dimension {dimension}; choose another number of heads")
        self.blocks = nn.ModuleList(
            TransformerBlock(dimension=dimension, heads=heads, dropout=dropout) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(dimension)

    def forward(self, x_BLD: Tensor) -> Tensor:
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return cast(Tensor, self.norm(x_BLD))
