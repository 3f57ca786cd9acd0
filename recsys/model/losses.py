"""Losses as objects that a configuration can name; the formulas, and what P, T, N, S and D are, stand in `functional`.

docs/losses.md says which to take when.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys.model.functional import (
    calibrated_power,
    full_softmax,
    generalised_bce,
    log_share,
    mixed_log_expected_count,
    prefixes,
    sampled_softmax,
)
from recsys.model.queue import Queue


@dataclass(frozen=True)
class Step:
    """What the towers made of a training batch.

    Attributes:
        query_PD: query vectors.
        item_UD: the vectors of the step's items, targets and new negatives among them.
        row_U: int64, their rows, ascending.
        target_T: int64, rows of the right answers.
        owner_T: whose answers they are; one each, in order, if None.
        unit: whether vectors have length 1, so that prefixes must have it, too.
        frequency_U: each of the items' share of the training targets.
    """

    query_PD: Tensor
    item_UD: Tensor
    row_U: Tensor
    target_T: Tensor
    owner_T: Tensor | None = None
    unit: bool = False
    frequency_U: Tensor | None = None

    def embedded(self, row_S: Tensor) -> Tensor:
        """The vectors [S, D] of some of the step's items, by their rows."""
        return self.item_UD[torch.searchsorted(self.row_U, row_S)]


@dataclass(frozen=True)
class Negatives:
    """What the targets of a step are contrasted with.

    Attributes:
        row_S: int64, their rows: first those to be embedded in this step, then those that come with a vector.
        log_count_S: log of how often each row is expected among them.
        past_QD: the vectors of the last Q of them, from earlier steps; None if there are none.
        gain_S: what the gradients of the new ones' vectors, S − Q, are multiplied by; None for 1. Of the push that an
            item gets as a negative, vectors of earlier steps pass nothing on, so what is embedded now stands for them.
    """

    row_S: Tensor
    log_count_S: Tensor
    past_QD: Tensor | None = None
    gain_S: Tensor | None = None

    @property
    def new(self) -> Tensor:
        """The rows, int64 [S − Q], that the item tower must embed."""
        return self.row_S if self.past_QD is None else self.row_S[: -len(self.past_QD)]

    def vectors(self, step: Step) -> Tensor:
        """[S, D], of all of them, the new ones as the step has embedded them."""
        new = step.embedded(self.new)
        if self.gain_S is not None:
            new = torch.lerp(new.detach(), new, self.gain_S[:, None].to(new.dtype))  # the value is that of both
        return new if self.past_QD is None else torch.cat([new, self.past_QD])


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

    def over_prefixes(self, of: Callable[..., Tensor], *vectors: Tensor, unit: bool) -> Tensor:
        """The mean of the losses `of` the full vectors and of each Matryoshka prefix."""
        sizes = self.dimensions(vectors[0].shape[1])
        return torch.stack([of(*prefixes(vectors, size, unit=unit)) for size in sizes]).mean()

    def start_epoch(self) -> None:  # noqa: B027 (most have nothing to forget)
        """Forgets earlier steps: an epoch that a run goes on with must be the one that it would have been."""

    @abstractmethod
    def draw(self, target_T: Tensor, known_K: Tensor, frequency_N: Tensor) -> Negatives | None:
        """What to contrast the targets with; None for all K items that training knows.

        Args:
            target_T: int64, rows.
            known_K: int64, the rows that training knows.
            frequency_N: each item's share of the training targets; sums to 1.
        """

    @abstractmethod
    def __call__(self, step: Step, negatives: Negatives | None) -> Tensor:
        """The mean of the losses over the full vectors and each Matryoshka prefix; `negatives` is what `draw` gave."""


class FullSoftmax(Loss):
    """Cross-entropy against every item that training knows: the one to take while they fit.

    Items that nobody took yet are no negatives: they would be pushed away from everybody before their first day.

    Args:
        prior: how much of an item's popularity its logit is given while training, and its score not: with 1, scores
            say how much more a user wants an item than others do, so that an item that nobody took yet stands beside
            the popular ones; with more, popular ones stand behind (logit adjustment: Menon et al., 2021, "Long-tail
            Learning via Logit Adjustment", arXiv 2007.07314, eq. 10, where it is called τ). Below 0, scores favour
            popular items more than training's answers do, for a time to come that does.
        temperature, matryoshka: as `Loss`.
    """

    def __init__(self, prior: float = 0.0, temperature: float = 1.0, matryoshka: Sequence[int] = ()) -> None:
        super().__init__(temperature, matryoshka)
        if prior < -1:
            raise ValueError(f"prior is {prior}; choose 0, which leaves popularity in scores, or from -1 up")
        self.prior = prior

    def draw(self, target_T: Tensor, known_K: Tensor, frequency_N: Tensor) -> None:
        return None

    def __call__(self, step: Step, negatives: Negatives | None) -> Tensor:
        place_T = torch.searchsorted(step.row_U, step.target_T)
        bias_U = None if self.prior == 0 or step.frequency_U is None else self.prior * log_share(step.frequency_U)

        def of(query: Tensor, item: Tensor) -> Tensor:
            return full_softmax(query, item, place_T, self.scale, step.owner_T, bias_U)

        return self.over_prefixes(of, step.query_PD, step.item_UD, unit=step.unit)


class SampledSoftmax(Loss):
    """Cross-entropy against negatives shared by the batch, corrected for how likely each was drawn.

    Args:
        uniform: negatives drawn evenly from the items that training knows.
        in_batch: negatives drawn from the batch's own targets, which follow popularity.
        queue: the newest targets of earlier steps of the epoch are negatives, too, at most this many, with the vectors
            that they had then: many negatives for little where the item tower is dear. See docs/losses.md.
        temperature, matryoshka: as `Loss`.
    """

    def __init__(
        self,
        uniform: int = 512,
        in_batch: int = 0,
        queue: int = 0,
        temperature: float = 1.0,
        matryoshka: Sequence[int] = (),
    ) -> None:
        super().__init__(temperature, matryoshka)
        if min(uniform, in_batch) < 0 or uniform + in_batch == 0:
            raise ValueError(f"uniform {uniform} and in_batch {in_batch} draw no negatives; raise one of them")
        self.uniform = uniform
        self.in_batch = in_batch
        self.queue = Queue(queue)

    def start_epoch(self) -> None:
        self.queue.clear()

    def draw(self, target_T: Tensor, known_K: Tensor, frequency_N: Tensor) -> Negatives:
        even = known_K[torch.randint(len(known_K), (self.uniform,), device=target_T.device)]
        popular = target_T[torch.randint(len(target_T), (self.in_batch,), device=target_T.device)]
        new = torch.cat([even, popular])
        log_count_S = self._log_count(new, self.in_batch, known_K, frequency_N)
        if (held := self.queue.held()) is None:
            return Negatives(new, log_count_S)
        past_QD, past = held
        row_S = torch.cat([new, past])
        # Earlier targets follow popularity as the batch's own do.
        pooled_S = self._log_count(row_S, self.in_batch + len(past), known_K, frequency_N)
        return Negatives(row_S, pooled_S, past_QD, (pooled_S[: len(new)] - log_count_S).exp())

    def _log_count(self, row_S: Tensor, in_batch: int, known_K: Tensor, frequency_N: Tensor) -> Tensor:
        return mixed_log_expected_count(
            row_S, num_items=len(known_K), uniform=self.uniform, in_batch=in_batch, frequency_N=frequency_N
        )

    def __call__(self, step: Step, negatives: Negatives | None) -> Tensor:
        if negatives is None:
            raise ValueError("sampled softmax needs its negatives; draw them first")
        row_S, log_count_S = negatives.row_S, negatives.log_count_S
        target_T, target_item_TD = step.target_T, step.embedded(step.target_T)

        def of(query: Tensor, target_item: Tensor, item: Tensor) -> Tensor:
            return sampled_softmax(query, target_item, target_T, item, row_S, log_count_S, self.scale, step.owner_T)

        loss = self.over_prefixes(of, step.query_PD, target_item_TD, negatives.vectors(step), unit=step.unit)
        self.queue.push(target_item_TD, target_T)
        return loss


class GeneralisedBCE(Loss):
    """Binary cross-entropy against uniform negatives shared by the batch, its probabilities calibrated: gBCE.

    α is S/K here, of S draws from K items, where the paper has S/(K − 1): draws that hit the target are masked, so that
    S·(K − 1)/K of them are expected to be negatives, of which there are K − 1.

    Args:
        negatives: S, drawn evenly from the items that training knows.
        calibration: t, from 0, plain binary cross-entropy, to 1, as if all items were negatives.
        temperature, matryoshka: as `Loss`.
    """

    def __init__(
        self,
        negatives: int = 256,
        calibration: float = 0.75,
        temperature: float = 1.0,
        matryoshka: Sequence[int] = (),
    ) -> None:
        super().__init__(temperature, matryoshka)
        if negatives < 1:
            raise ValueError(f"negatives is {negatives}; draw at least 1")
        if not 0 <= calibration <= 1:
            raise ValueError(f"calibration is {calibration}; choose from 0 to 1")
        self.negatives = negatives
        self.calibration = calibration

    def draw(self, target_T: Tensor, known_K: Tensor, frequency_N: Tensor) -> Negatives:
        row_S = known_K[torch.randint(len(known_K), (self.negatives,), device=target_T.device)]
        alpha = self.negatives / len(known_K)
        return Negatives(row_S, torch.full(row_S.shape, math.log(alpha), device=row_S.device))

    def __call__(self, step: Step, negatives: Negatives | None) -> Tensor:
        if negatives is None:
            raise ValueError("gBCE needs its negatives; draw them first")
        row_S, target_T = negatives.row_S, step.target_T
        beta = calibrated_power(negatives.log_count_S[0].exp(), self.calibration)  # each is expected as often

        def of(query: Tensor, target_item: Tensor, item: Tensor) -> Tensor:
            return generalised_bce(query, target_item, target_T, item, row_S, beta, self.scale, step.owner_T)

        vectors = step.query_PD, step.embedded(target_T), negatives.vectors(step)
        return self.over_prefixes(of, *vectors, unit=step.unit)
