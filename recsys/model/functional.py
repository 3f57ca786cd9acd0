"""Losses over inner products as pure functions, the formula's source beside each; `losses` has them to configure.

Shapes: P positions (queries), T targets, N items of the catalogue, S sampled negatives, D dimensions. A query has one
target, T = P; or `owner_T` int64 says which query each target belongs to, ascending, and each target counts alike
(the multinomial likelihood of Liang et al., 2018, "Variational Autoencoders for Collaborative Filtering", eq. 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

_CHUNK_ELEMENTS = 1 << 21  # logits held at once: small enough to stay in the processor's cache


def full_softmax(
    query_PD: Tensor,
    item_ND: Tensor,
    target_T: Tensor,
    scale: float = 1.0,
    owner_T: Tensor | None = None,
    bias_N: Tensor | None = None,
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
        bias_N: added to each item's logit, and no part of its score; it gets no gradient.

    Returns:
        A scalar, in float32.
    """
    return _FullSoftmax.apply(query_PD, item_ND, target_T, scale, owner_T, bias_N)


class _FullSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        query_PD: Tensor,
        item_ND: Tensor,
        target_T: Tensor,
        scale: float,
        owner_T: Tensor | None,
        bias_N: Tensor | None,
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
                logit = q @ item.T
                probability = torch.softmax(logit if bias_N is None else logit.float() + bias_N, dim=1).to(dtype)
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
    def backward(ctx, *grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:  # type: ignore[no-untyped-def]
        grad_query, grad_item = ctx.saved_tensors
        for_query, for_item = ctx.factor
        return grad_query * (grad[0] * for_query), grad_item * (grad[0] * for_item), None, None, None, None


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
    positive_T, negative_TS = _scores(query_PD, target_item_TD, target_T, negative_item_SD, negative_S, scale, owner_T)
    return (torch.logaddexp(positive_T, (negative_TS - log_expected_count_S).logsumexp(1)) - positive_T).mean()


def _scores(
    query_PD: Tensor,
    target_item_TD: Tensor,
    target_T: Tensor,
    negative_item_SD: Tensor,
    negative_S: Tensor,
    scale: float,
    owner_T: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Float32 scores of the targets [T] and of each one's negatives [T, S]; −∞ where a draw hit the target."""
    negative_TS = (query_PD @ negative_item_SD.T).float() * scale
    if owner_T is not None:
        query_PD, negative_TS = query_PD[owner_T], negative_TS[owner_T]
    positive_T = (query_PD * target_item_TD).sum(1).float() * scale
    return positive_T, negative_TS.masked_fill(negative_S == target_T[:, None], -math.inf)


def generalised_bce(
    query_PD: Tensor,
    target_item_TD: Tensor,
    target_T: Tensor,
    negative_item_SD: Tensor,
    negative_S: Tensor,
    beta: float | Tensor,
    scale: float = 1.0,
    owner_T: Tensor | None = None,
) -> Tensor:
    """Mean binary cross-entropy of each target against negatives, the target weighed by β: gBCE.

    −( β·log σ(s_y) + Σ_{j sampled, j≠y} log(1 − σ(s_j)) ) / (S + 1): Petrov & Macdonald, 2023, "gSASRec: Reducing
    Overconfidence in Sequential Recommendation Trained with Negative Sampling" (arXiv 2308.07192).
    Taken from log σ, never from σ^β, so that it is finite however far apart scores are. Unlike there, the negatives are
    shared by all queries instead of drawn for each, and a draw that hits the target is masked instead of drawn again.

    Args:
        query_PD: query vectors.
        target_item_TD: the vectors of the right answers.
        target_T: int64, their rows.
        negative_item_SD: the vectors of the sampled negatives, shared by all queries.
        negative_S: int64, their rows.
        beta: β, the power that the target's probability is taken to; see `calibrated_power`.
        scale: what inner products are multiplied by, 1/τ.
        owner_T: whose answers they are; one each, in order, if left out.
    """
    positive_T, negative_TS = _scores(query_PD, target_item_TD, target_T, negative_item_SD, negative_S, scale, owner_T)
    return ((beta * softplus(-positive_T) + softplus(negative_TS).sum(1)) / (len(negative_S) + 1)).mean()


def calibrated_power(alpha: float | Tensor, calibration: float) -> float | Tensor:
    """β of gBCE: α·(t·(1 − 1/α) + 1/α), which is 1 − t·(1 − α).

    With t = 0, β is 1: the plain loss, whose probabilities are too high since most negatives are missing. With t = 1 it
    is α: targets are made as rare as negatives, and probabilities are those of the loss over the whole catalogue.

    Args:
        alpha: α, how often each item that is no target is expected among the negatives.
        calibration: t, from 0 to 1.
    """
    return 1 - calibration * (1 - alpha)


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
        in_batch: number of draws that are targets of other positions, in this step or in earlier ones.
        frequency_N: each item's share of the training targets, which in-batch draws follow; sums to 1.
    """
    return torch.log(uniform / num_items + in_batch * frequency_N[negative_S])


def log_share(frequency_U: Tensor) -> Tensor:
    """log of each item's share of the targets; what was never one counts as the rarest that was."""
    return frequency_U.clamp_min(frequency_U[frequency_U > 0].min()).log()


def prefixes(vectors: Sequence[Tensor], dimension: int, *, unit: bool) -> list[Tensor]:
    """The first `dimension` numbers of each vector, normalised again where vectors are unit (Kusupati et al., 2022,
    "Matryoshka Representation Learning").
    """
    cut = [vector[..., :dimension] for vector in vectors]
    return [
        normalize(part, dim=-1) if unit and part.shape[-1] < vector.shape[-1] else part
        for part, vector in zip(cut, vectors, strict=True)
    ]
