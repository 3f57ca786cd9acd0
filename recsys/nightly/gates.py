"""The gates between tonight's candidate and the front page: their limits, and what one says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Unit = Literal["share", "×", "s", "bytes", ""]
Sense = Literal["≤", "≥", ">"]


@dataclass(frozen=True)
class Outcome:
    """What one gate said.

    Attributes:
        gate: its name.
        passed: whether the candidate may go on.
        figure: what was measured; None if it could not be.
        limit: what it was compared with.
        said: one sentence for whoever is woken: what was measured, against what, and what it means or where to look.
        live: the live bundle's figure, where it has one.
        unit: what figure, limit and live are counted in: `share`, `×`, `s`, `bytes`, or nothing.
        sense: how the figure must stand to the limit.
    """

    gate: str
    passed: bool
    figure: float | None
    limit: float | None
    said: str
    live: float | None = None
    unit: Unit = ""
    sense: Sense = "≤"

    @property
    def measured(self) -> bool:
        """Whether it compared anything; a gate that could not, passes and says why."""
        return self.figure is not None or not self.passed


@dataclass(frozen=True)
class Gates:
    """The limits; None switches one off.

    Args:
        max_rejected: share of tonight's rows that could not be used. A log is clean or it is not: a format that changed
            breaks most rows, stray ones stay far below 1 %.
        min_volume, max_volume: tonight's rows a day over those of base's last week. Weekends and sales move traffic by
            two or three; a tenth is a broken export, ten times a doubled one.
        min_category: what each category that matters must keep of its former share of interactions. Taste moves a
            share by a few per cent a night, so a fifth is a category whose rows or attributes were lost.
        category_share: the share of interactions from which a category matters; chance rules below it.
        max_features_lost: share of the items that had a feature and have it no more. Items are delisted a few at a
            time; a column lost in an export takes all.
        max_loss_rise: how far, as a share, the last training loss may lie above the first, and above the loss of
            guessing. A warm start hardly falls and may rise a little with newer data.
        min_effective_rank: effective rank of the item vectors as a share of their dimensions. Collapsed towers give
            1 or 2 directions; trained ones use most of them.
        max_cosine: mean cosine of two items. Above it all items look alike, and small errors decide the order.
        max_duplicates: share of the items that training knows whose vector equals another's in every bit. Their ids
            should have told them apart.
        max_length_spread: longest item vector over the median one. With inner products a vector a hundred times as
            long is recommended to everyone it does not point away from.
        min_gain: NDCG@10 by which the candidate must credibly exceed the best popularity baseline; anything that
            learnt who wants what does.
        tolerance: share of live's NDCG@10 by which the candidate may be worse, the interval's lower end counting. One
            night's noise in training is 1 to 2 %, and some thousand queries tell differences of 2 to 3 %: at 5 % an
            equal candidate passes, and one that lost something does not. Losses below it can add up over nights;
            the popularity gate and full retrains bound that.
        min_recall: share of the exact ten nearest that the index must find. Below 0.95 the loss in the answers shows
            in NDCG, which is measured by exact search and would not tell.
        min_coverage: share of the items that could have been recommended to the test queries that were. The same few
            for everyone is below 1 %.
        min_live_coverage: share of live's coverage to keep. It moves by a few per cent; half is another kind of model.
        max_slice_loss: share of live's NDCG@10 by which a slice may be worse before the candidate is refused, if that
            is beyond chance. Twice the tolerance, since there are many slices and fewer queries in each.
        min_overlap: mean share of a user's ten items that stay. A warm start keeps most, a full retrain about half
            or a third; by chance hardly any stay, and then ids or users were mixed up.
        max_score_shift: factor by which the median score may grow or shrink. Whoever thresholds scores downstream
            breaks beyond it; a training that diverged goes far beyond.
        max_violations: broken rules (seen items, filters, k, order) in the sample. There is no acceptable number.
        max_size: bundle's bytes over live's. A day adds a per cent or so; twice is another index or a doubled table.
        max_load_seconds: what opening and checking may take, since a server does it beside answering.

    Raises:
        ValueError: a limit can never, or always, be met.
    """

    max_rejected: float | None = 0.01
    min_volume: float | None = 0.2
    max_volume: float | None = 5.0
    min_category: float | None = 0.2
    category_share: float = 0.02
    max_features_lost: float | None = 0.1
    max_loss_rise: float | None = 0.1
    min_effective_rank: float | None = 0.1
    max_cosine: float | None = 0.9
    max_duplicates: float | None = 0.01
    max_length_spread: float | None = 20.0
    min_gain: float | None = 0.0
    tolerance: float | None = 0.05
    min_recall: float | None = 0.95
    min_coverage: float | None = 0.01
    min_live_coverage: float | None = 0.5
    max_slice_loss: float | None = 0.1
    min_overlap: float | None = 0.1
    max_score_shift: float | None = 4.0
    max_violations: int | None = 0
    max_size: float | None = 2.0
    max_load_seconds: float | None = 60.0

    def __post_init__(self) -> None:
        factors = ("max_score_shift", "max_length_spread", "max_size", "max_volume")
        amounts = ("max_loss_rise", "min_gain", "max_violations", "max_load_seconds")
        for name, value in vars(self).items():
            low, high = (1.0, math.inf) if name in factors else (0.0, math.inf if name in amounts else 1.0)
            if value is not None and not low <= value <= high:
                raise ValueError(f"gates.{name} is {value}; it goes from {low:g} to {high:g}, and null switches it off")


def off(gate: str) -> Outcome:
    """A gate whose limit is None."""
    return Outcome(gate, True, None, None, "switched off in the settings")


def unmeasured(gate: str, why: str) -> Outcome:
    """A gate that has nothing to compare; it passes."""
    return Outcome(gate, True, None, None, f"not measured: {why}")


def percent(share: float) -> str:
    """A share for people: three digits that count."""
    return f"{signed(100 * share, '.3g')} %"


def signed(value: float, how: str) -> str:
    """A number as `format` writes it, with a minus that is one, and none before 0."""
    said = format(value, how)
    return said.replace("-", "−" if float(said) else "")
