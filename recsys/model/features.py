"""Encoded features as one vector: an embedding for codes, a projection for values, summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from recsys.data.vocabulary import UNKNOWN, Input

Combiner = Literal["mean", "sqrtn"]


class FeatureSum(nn.Module):
    """Embeds each encoded feature and sums them.

    Several codes of one row (genres, n-grams) are combined; a missing feature adds nothing.

    Args:
        inputs: what there is to embed.
        dimension: D, the size of the result.
        std: spread of the initial embeddings.
        combiner: what several codes become: their `mean`; or `sqrtn`, their sum over the square root of their number,
            which is about as long as one of them, however many there are, as long as they have little in common.
    """

    def __init__(self, inputs: Sequence[Input], dimension: int, std: float, combiner: Combiner = "mean") -> None:
        super().__init__()
        self.combiner = combiner
        self.names = [given.name for given in inputs]
        self.parts = nn.ModuleList()  # by place, not by name: a name may hold a dot or be a method's
        for given in inputs:
            if given.codes:
                embedding = nn.Embedding(given.codes, dimension, padding_idx=UNKNOWN)
                nn.init.normal_(embedding.weight, std=std)
                embedding.weight.data[UNKNOWN].zero_()
                self.parts.append(embedding)
            else:
                projection = nn.Linear(given.width, dimension, bias=False)
                nn.init.normal_(projection.weight, std=std)
                self.parts.append(projection)

    def forward(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Args:
            encoded: feature name to int codes [n, values] or float values [n, width].

        Returns:
            float [n, dimension].
        """
        total: Tensor | None = None
        for name, part in zip(self.names, self.parts, strict=True):
            given = encoded[name]
            vector = _combined(part, given, self.combiner) if isinstance(part, nn.Embedding) else part(given)
            total = vector if total is None else total + vector
        if total is None:
            raise ValueError("there is no feature to embed; declare one or leave this module out")
        return total


def _combined(embedding: nn.Embedding, codes: Tensor, combiner: Combiner) -> Tensor:
    if codes.shape[1] == 1:
        return cast(Tensor, embedding(codes[:, 0]))
    counts = (codes != UNKNOWN).sum(1, keepdim=True).clamp_min(1)
    # embedding_bag never holds the [n, values, D] tensor; its padding rows add nothing to the sum.
    total = F.embedding_bag(codes, embedding.weight, mode="sum", padding_idx=UNKNOWN)
    return total / (counts if combiner == "mean" else counts.sqrt())
