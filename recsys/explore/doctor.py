"""The doctor: every finder asked once, what they found as findings, and what each took beside the floor."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import pandas as pd

from recsys.data.dataset import Dataset
from recsys.data.split import Split
from recsys.explore import judge_bundle, judge_items
from recsys.explore.attributes import guess, guessable
from recsys.explore.clusters import Clusters, clusters
from recsys.explore.collapse import Collapse, collapse
from recsys.explore.dial import dial
from recsys.explore.drift import Drift, drift
from recsys.explore.duplicates import Duplicates, duplicates
from recsys.explore.exposure import Exposure, exposure
from recsys.explore.findings import SEVERITIES, Finding, Severity, plain
from recsys.explore.leaks import leaks
from recsys.explore.outliers import Outliers, outliers
from recsys.explore.plane import plane
from recsys.explore.space import Space

FLOOR = "neighbours"  # of the parts: the one exact pass over the catalogue that the others share
Made = TypeVar("Made")


@dataclass(frozen=True)
class Report:
    """What the doctor says of one space.

    Attributes:
        name: of the bundle.
        about: items, users, dimension, unit and k.
        findings: the worst first; of equals, in the order asked.
        seconds: what each part took; the floor is not among them where the space had made that pass before.
        duplicates, clusters, outliers, exposure, collapse, drift: what the finders gave; drift only beside another.
        map: a row an item; see `recsys.explore.plane.plane`.
        dial: a row a trial; None if it was not asked for.
    """

    name: str
    about: dict[str, Any]
    findings: tuple[Finding, ...]
    seconds: dict[str, float]
    duplicates: Duplicates
    clusters: Clusters
    outliers: Outliers
    exposure: Exposure
    collapse: Collapse
    map: pd.DataFrame
    drift: Drift | None = None
    dial: pd.DataFrame | None = None

    @property
    def floor(self) -> float | None:
        """Seconds of the one exact pass that the finders share; None where it was made before, and so not timed."""
        return self.seconds.get(FLOOR)

    @property
    def worst(self) -> Severity:
        """The severity of the worst finding."""
        return max((one.severity for one in self.findings), key=SEVERITIES.index, default="fine")

    def counts(self) -> dict[Severity, int]:
        """How many findings there are of each severity, the worst first."""
        return {one: sum(f.severity == one for f in self.findings) for one in reversed(SEVERITIES)}


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, name: str, part: Callable[[], Made]) -> Made:
        begun = time.perf_counter()
        made = part()
        self.seconds[name] = time.perf_counter() - begun
        return made


def examine(
    space: Space,
    *,
    against: Space | None = None,
    dataset: Dataset | None = None,
    split: Split | None = None,
    resolution: float = 1.0,
    method: Literal["pca", "umap"] = "pca",
    with_dial: bool = True,
) -> Report:
    """Asks every finder.

    Args:
        space: to look into.
        against: an older space; drift is measured from it.
        dataset: what the bundle was trained on, or sealed with; leaks, and NDCG by dimension, are measured with it.
        split: of the dataset; that of the bundle's evaluation if left out.
        resolution: of the clusters.
        method: of the map.
        with_dial: whether to build and ask indexes at several dimensions.

    Raises:
        ImportError: the extra `explore` is not installed.
        ValueError: there are fewer than two items, or nothing can be compared.
    """
    if len(space) < 2:
        raise ValueError(f"{space.name} has {len(space)} items; there is nothing to look into")
    clock = _Clock()
    if "neighbours" not in vars(space):  # else it was made before: reading it again is no floor
        clock(FLOOR, lambda: space.neighbours)
    clock("lists", lambda: space.lists)
    twice = clock("duplicates", lambda: duplicates(space))
    grouped = clock("clusters", lambda: clusters(space, resolution=resolution))
    far = clock("outliers", lambda: outliers(space, grouped))
    seen = clock("exposure", lambda: exposure(space))
    filled = clock("collapse", lambda: collapse(space))
    guessed = clock("attributes", lambda: [guess(space, name) for name in guessable(space)])
    found = [
        *judge_bundle.of_collapse(filled, space),
        judge_items.of_duplicates(twice, space),
        *judge_items.of_outliers(far, space),
        *judge_items.of_exposure(seen, space),
        *judge_items.of_attributes(guessed),
        judge_items.of_clusters(grouped),
    ]
    if (index := judge_bundle.of_index(space)) is not None:
        found.append(index)
    changed = table = None
    if against is not None:
        changed = clock("drift", lambda: drift(against, space))
        found += judge_bundle.of_drift(changed, against)
    if dataset is not None and space.bundle is not None:
        leaked = clock("leaks", lambda: leaks(space, dataset, split=split, found=twice))
        found += judge_bundle.of_leaks(leaked)
    if with_dial:
        table = clock("dial", lambda: dial(space, dataset, split=split))
        found.append(judge_bundle.of_dial(table))
    places = clock("map", lambda: plane(space, grouped, method=method))
    return Report(
        name=space.name,
        about={
            "items": len(space),
            "users": len(space.users),
            "users_asked": len(space.lists.users),
            "dimension": space.vectors.shape[1],
            "unit": space.unit,
            "neighbours": space.k,
            "against": against.name if against is not None else None,
            "dataset": str(dataset.path) if dataset is not None else None,
        },
        findings=tuple(sorted(found, key=lambda one: -SEVERITIES.index(one.severity))),
        seconds=clock.seconds,
        duplicates=twice,
        clusters=grouped,
        outliers=far,
        exposure=seen,
        collapse=filled,
        map=places,
        drift=changed,
        dial=table,
    )


def to_json(report: Report) -> str:
    """Findings, clusters, dial and times; the map and every item's figures are for the API."""
    said = {
        "bundle": report.name,
        "worst": report.worst,
        "about": report.about,
        "findings": [asdict(one) for one in report.findings],
        "clusters": report.clusters.table.reset_index().to_dict(orient="records"),
        "dial": None if report.dial is None else report.dial.to_dict(orient="records"),
        "seconds": report.seconds,
    }
    return json.dumps(plain(said), indent=1, ensure_ascii=False, allow_nan=False)
