"""Losses over inner products: full and sampled softmax, pure functions with the formula's source beside them.

Shapes: P positions (queries), T targets, N items of the catalogue, S sampled negatives, D dimensions. A query has one
target, T = P; or `owner_T` int64 says which query each target belongs to, ascending, and each target counts alike
(the multinomial likelihood of Liang et al., 2018, "Variational Autoencoders for Collaborative Filtering", eq. 2).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

_CHUNK_ELEMENTS = 1 << 21  # logits held at once: small enough to stay in the processor's cache


def full_softmax(
    query_PD: Tensor, item_ND: Tensor, target_T: Tensor, scale: float = 1.0, owner_T: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of each target against the whole catalogue: −log softmax(scale · q·Vᵀ)[target].

    Never holds the [P, N] logits: a chunk of positions is scored, and its gradient taken, while it is in cache
    (as in Wijmans et al., 2024, "Cut Your Losses in Large-Vocabulary Language Models", by chunks rather than by a
    fused kernel). Products run in the dtype of autocast, where it is on; accumulation is in float32.

    Args:
        query_PD: query vectors.
        item_ND: item vectors.
        target_T: int64, the rows of the queries' right answers.
        scale: what inner products are multiplied by, 1/τ.
        owner_T: whose answers they are; one each, in order, if left out.

    Returns:
        A scalar, in float32.
    """
    return _FullSoftmax.apply(query_PD, item_ND, target_T, scale, owner_T)


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, query_PD: Tensor, item_ND: Tensor, target_T: Tensor, scale: float, owner_T: Tensor | None
    ) -> Tensor:
        device = query_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        with torch.no_grad(), torch.autocast(device, enabled=False):
            query = (query_PD * scale).to(dtype)
            item = item_ND.to(dtype)
            if owner_T is None:
                owner_T = torch.arange(len(query), device=query.device)
            count_P = torch.bincount(owner_T, minlength=len(query)).to(dtype)[:, None]
            grad_query = torch.empty_like(query_PD, dtype=dtype)
            grad_item = torch.zeros_like(item_ND, dtype=torch.float32)
            loss = torch.zeros((), dtype=torch.float32, device=query.device)
            step = max(16, _CHUNK_ELEMENTS // max(1, len(item)))
            starts = range(0, len(query), step)
            cuts = torch.searchsorted(owner_T, torch.tensor([*starts, len(query)], device=query.device)).tolist()
            one = -torch.ones((), dtype=dtype, device=query.device)
            for start, first, end in zip(starts, cuts, cuts[1:], strict=False):
                q, target, row = query[start : start + step], target_T[first:end], owner_T[first:end] - start
                probability = torch.softmax(q @ item.T, dim=1)
                loss -= probability[row, target].float().clamp_min(torch.finfo(torch.float32).tiny).log().sum()
                probability *= count_P[start : start + step]
                probability.index_put_((row, target), one, accumulate=True)  # now the gradient of the logits
                torch.mm(probability, item, out=grad_query[start : start + step])
                grad_item += probability.T @ q
        ctx.save_for_backward(grad_query, grad_item)
        targets = max(1, len(target_T))
        ctx.factor = scale / targets, 1 / targets
        return loss / targets

    @staticmethod
    def backward(ctx, *grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        grad_query, grad_item = ctx.saved_tensors
        for_query, for_item = ctx.factor
        return grad_query * (grad[0] * for_query), grad_item * (grad[0] * for_item), None, None, None


def sampled_softmax(
    query_PD: Tensor,
    target_item_TD: Tensor,
    target_T: Tensor,
    negative_item_SD: Tensor,
    negative_S: Tensor,
    log_expected_count_S: Tensor,
    scale: float = 1.0,
    owner_T: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy against a sample of the catalogue that estimates the full softmax.

    −log( e^{s_y} / (e^{s_y} + Σ_{j sampled, j≠y} e^{s_j} / c_j) ), with c_j = S·Q(j), the number of times that item j
    is expected among the S draws. A draw that hits the target is masked. The sum is then an unbiased estimate of
    Σ_{j≠y} e^{s_j}, so the loss tends to the full softmax as S grows. Correction by log Q: Bengio & Senécal, 2008,
    "Adaptive Importance Sampling"; for two towers: Yi et al., 2019, "Sampling-Bias-Corrected Neural Modeling". Unlike
    the latter, the target's own score is not corrected, since it is there with certainty, not by a draw
    (Khrylchenko et al., 2025, "Correcting the LogQ Correction").

    Args:
        query_PD: query vectors.
        target_item_TD: the vectors of the right answers.
        target_T: int64, their rows.
        negative_item_SD: the vectors of the sampled negatives, shared by all queries.
        negative_S: int64, their rows.
        log_expected_count_S: log(S·Q(j)) of each sampled j; see `mixed_log_expected_count`.
        scale: what inner products are multiplied by, 1/τ.
        owner_T: whose answers they are; one each, in order, if left out.
    """
    negative_TS = (query_PD @ negative_item_SD.T).float() * scale - log_expected_count_S
    if owner_T is not None:
        query_PD, negative_TS = query_PD[owner_T], negative_TS[owner_T]
    positive_T = (query_PD * target_item_TD).sum(1).float() * scale
    negative_TS = negative_TS.masked_fill(negative_S == target_T[:, None], -math.inf)
    return (torch.logaddexp(positive_T, negative_TS.logsumexp(1)) - positive_T).mean()


def mixed_log_expected_count(
    negative_S: Tensor, *, num_items: int, uniform: int, in_batch: int, frequency_N: Tensor
) -> Tensor:
    """log of how often each sampled item is expected among `uniform` + `in_batch` draws, pooled.

    c_j = uniform/K + in_batch·f_j: an item may come from either source, so its count is the sum whichever it came
    from (mixed negative sampling: Yang et al., 2020, "Mixed Negative Sampling for Learning Two-tower Neural Networks").

    Args:
        negative_S: int64, the sampled rows.
        num_items: how many items uniform draws choose from.
        uniform: number of uniform draws.
        in_batch: number of draws that are other positions' targets.
        frequency_N: each item's share of the training targets, which in-batch draws follow; sums to 1.
    """
    return torch.log(uniform / num_items + in_batch * frequency_N[negative_S])


def prefixes(vectors: Sequence[Tensor], dimension: int, *, unit: bool) -> list[Tensor]:
    """The first `dimension` numbers of each vector, normalised again where vectors are unit (Kusupati et al., 2022,
    "Matryoshka Representation Learning").
    """
    cut = [vector[..., :dimension] for vector in vectors]
    return [
        normalize(part, dim=-1) if unit and part.shape[-1] < vector.shape[-1] else part
        for part, vector in zip(cut, vectors, strict=True)
    ]


class Loss(ABC):
    """What a training step minimises, as an object that a configuration can name.

    Args:
        temperature: τ, which inner products are divided by.
        matryoshka: shorter prefixes whose losses are added, so that vectors may be cut to them.
    """

    def __init__(self, temperature: float = 1.0, matryoshka: Sequence[int] = ()) -> None:
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.scale = 1 / temperature
        self.matryoshka = tuple(matryoshka)

    def dimensions(self, full: int) -> tuple[int, ...]:
        """The full dimension and the prefixes that a loss is taken over."""
        if too_long := [size for size in self.matryoshka if not 0 < size < full]:
            raise ValueError(f"matryoshka has {too_long[0]}, which is no prefix of {full} dimensions; leave it out")
        return (full, *self.matryoshka)

    @abstractmethod
    def draw(self, target_T: Tensor, known_K: Tensor) -> Tensor | None:
        """The rows [S] to contrast the targets with; None for all K that training knows."""

    @abstractmethod
    def of(
        self,
        query_PD: Tensor,
        item_UD: Tensor,
        target_T: Tensor,
        owner_T: Tensor | None,
        negative_S: Tensor | None,
        log_count_S: Tensor | None,
    ) -> Tensor:
        """The loss of one prefix; targets and negatives are places in `item_UD`."""

    def log_expected_count(self, negative_S: Tensor, frequency_N: Tensor, num_known: int) -> Tensor | None:
        """log of how often each drawn row is expected, for the correction; None where nothing was drawn."""
        return None

    def __call__(
        self,
        query_PD: Tensor,
        item_UD: Tensor,
        target_T: Tensor,
        owner_T: Tensor | None,
        negative_S: Tensor | None,
        log_count_S: Tensor | None,
        *,
        unit: bool,
    ) -> Tensor:
        """The mean of the losses over the full vectors and each Matryoshka prefix."""
        sizes = self.dimensions(query_PD.shape[1])
        losses = [
            self.of(query, item, target_T, owner_T, negative_S, log_count_S)
            for query, item in (prefixes((query_PD, item_UD), size, unit=unit) for size in sizes)
        ]
        return torch.stack(losses).mean()


class FullSoftmax(Loss):
    """Cross-entropy against every item that training knows: the one to take while they fit.

    Items that nobody took yet are no negatives: they would be pushed away from everybody before their first day.
    """

    def draw(self, target_T: Tensor, known_K: Tensor) -> None:
        return None

    def of(
        self,
        query_PD: Tensor,
        item_UD: Tensor,
        target_T: Tensor,
        owner_T: Tensor | None,
        negative_S: Tensor | None,
        log_count_S: Tensor | None,
    ) -> Tensor:
        return full_softmax(query_PD, item_UD, target_T, self.scale, owner_T)


class SampledSoftmax(Loss):
    """Cross-entropy against negatives shared by the batch, corrected for how likely each was drawn.

    Args:
        uniform: negatives drawn evenly from the items that training knows.
        in_batch: negatives drawn from the batch's own targets, which follow popularity.
        temperature, matryoshka: as `Loss`.
    """

    def __init__(
        self, uniform: int = 512, in_batch: int = 0, temperature: float = 1.0, matryoshka: Sequence[int] = ()
    ) -> None:
        super().__init__(temperature, matryoshka)
        if min(uniform, in_batch) < 0 or uniform + in_batch == 0:
            raise ValueError(f"uniform {uniform} and in_batch {in_batch} draw no negatives; raise one of them")
        self.uniform = uniform
        self.in_batch = in_batch

    def draw(self, target_T: Tensor, known_K: Tensor) -> Tensor:
        even = known_K[torch.randint(len(known_K), (self.uniform,), device=target_T.device)]
        popular = target_T[torch.randint(len(target_T), (self.in_batch,), device=target_T.device)]
        return torch.cat([even, popular])

    def log_expected_count(self, negative_S: Tensor, frequency_N: Tensor, num_known: int) -> Tensor:
        return mixed_log_expected_count(
            negative_S,
            num_items=num_known,
            uniform=self.uniform,
            in_batch=self.in_batch,
            frequency_N=frequency_N,
        )

    def of(
        self,
        query_PD: Tensor,
        item_UD: Tensor,
        target_T: Tensor,
        owner_T: Tensor | None,
        negative_S: Tensor | None,
        log_count_S: Tensor | None,
    ) -> Tensor:
        if negative_S is None or log_count_S is None:
            raise ValueError("sampled softmax needs its negatives; draw them first")
        return sampled_softmax(
            query_PD, item_UD[target_T], target_T, item_UD[negative_S], negative_S, log_count_S, self.scale, owner_T
        )
