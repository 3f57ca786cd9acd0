"""A finding: what is the matter, how bad it is, what shows it, and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

Severity = Literal["fine", "note", "warning", "serious"]
SEVERITIES: tuple[Severity, ...] = ("fine", "note", "warning", "serious")
EVIDENCE = 8  # examples of a finding
SURELY = 3.0  # standard errors from which a difference is believed


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        check: which finder it is of.
        severity: `fine`; `note`, worth knowing; `warning`, quality is lost; `serious`, do not serve or do not believe.
        what: a sentence or two, with the figures.
        fix: what to do; empty where nothing is to be done.
        figures: by name, as numbers.
        evidence: a few examples, each a row of the finder's DataFrame.
    """

    check: str
    severity: Severity
    what: str
    fix: str = ""
    figures: Mapping[str, float | None] = field(default_factory=dict)
    evidence: list[dict[str, Any]] = field(default_factory=list)


def graded(value: float, note: float, warning: float, serious: float) -> Severity:
    """How bad a value is that grows worse as it grows: each limit is the last value that is not yet so bad."""
    if value > serious:
        return "serious"
    return "warning" if value > warning else "note" if value > note else "fine"


def examples(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The first rows of a finder's DataFrame, as evidence."""
    rows: list[dict[str, Any]] = plain(frame.head(EVIDENCE).to_dict(orient="records"))
    return rows


def plain(value: Any) -> Any:
    """A value, and whatever is in it, as JSON has it: NumPy's as Python's, and what is not finite as None."""
    if isinstance(value, dict):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, np.bool_ | bool):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    return value
