"""The item vectors of earlier steps, kept as negatives for later ones: Cross-Batch Negative Sampling.

Wang et al., 2021, "Cross-Batch Negative Sampling for Training Two-Tower Recommenders" (arXiv 2110.15154): item vectors
change slowly, so those of some steps ago still say nearly what the tower says now, and cost nothing to be had. They are
constants; only the vectors that they are compared with learn from them.

Shapes: T targets of a step, Q vectors held, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Queue:
    """The newest vectors that were pushed; the oldest leave first.

    Args:
        size: how many it holds at most; 0 for none.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise ValueError(f"queue is {size}; it holds 0 vectors or more")
        self.size = size
        self.clear()

    def clear(self) -> None:
        """Forgets all of them."""
        self._held: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return 0 if self._held is None else len(self._held[1])

    def held(self) -> tuple[Tensor, Tensor] | None:
        """Vectors [Q, D] and their rows, int64 [Q], oldest first; None while there are none."""
        return self._held

    def push(self, vector_TD: Tensor, row_T: Tensor) -> None:
        """Takes a step's vectors in, without their history; of more than it holds, the last ones.

        Args:
            vector_TD: item vectors.
            row_T: int64, whose they are.
        """
        if not self.size:
            return
        vector_QD, row_Q = vector_TD.detach()[-self.size :], row_T[-self.size :]
        if self._held is not None:  # joined, not written in place: the step's backward still reads the old ones
            vector_QD = torch.cat([self._held[0], vector_QD])[-self.size :]
            row_Q = torch.cat([self._held[1], row_Q])[-self.size :]
        self._held = vector_QD, row_Q
