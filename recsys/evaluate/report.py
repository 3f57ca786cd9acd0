"""Results as a table for people and as JSON for machines, never without the conditions they were measured under."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from recsys.evaluate.metrics import Mean
from recsys.evaluate.ranking import HEAD_SHARE, SLICE_K, Conditions, Result

_ACCURACY = {"ndcg": "NDCG", "recall": "recall", "hit_rate": "hit rate", "mrr": "MRR"}
_CATALOGUE = {"coverage": "coverage", "novelty": "novelty", "popularity_lift": "pop. lift"}
_SLICES = {
    "new users": "new users: nothing of theirs in training",
    "tail items": f"tail items: not among those which make up {HEAD_SHARE:.0%} of training",
    "cold items": "cold items: not in training at all",
}


def table(results: Mapping[str, Result], *, k: int = 10) -> str:
    """The results as aligned text: conditions, one row a scorer, then the slices.

    Args:
        results: by the scorer's name in the report, measured under the same conditions.
        k: which cut-off to show; JSON has them all.

    Raises:
        ValueError: there are no results, their conditions differ, or k was not measured.
    """
    conditions = _shared_conditions(results)
    if any(f"ndcg@{k}" not in result.accuracy for result in results.values()):
        raise ValueError(f"k = {k} was not measured; evaluate with it among ks")
    rows = [["", *(f"{said}@{k}" for said in (*_ACCURACY.values(), *_CATALOGUE.values())), "queries/s"]]
    for name, result in results.items():
        accuracy = (_mean(result.accuracy[f"{metric}@{k}"]) for metric in _ACCURACY)
        cover, bits, lift = (result.catalogue[f"{metric}@{k}"] for metric in _CATALOGUE)
        speed = f"{conditions.num_queries / max(result.seconds, 1e-9):,.0f}"
        rows.append(
            [name, *accuracy, f"{cover:.1%}", f"{bits:.2f} bits", "–" if lift is None else f"{lift:.2f}×", speed]
        )
    blocks = [_lines(conditions), _aligned(rows)]
    for slice_name, meaning in _SLICES.items():
        some = next(iter(results.values())).slices[slice_name]
        title = f"{meaning} ({some.num_queries:,} queries of {some.num_users:,} users)"
        if not some.num_queries:
            blocks.append(title)
            continue
        metrics = [f"ndcg@{SLICE_K}", f"recall@{SLICE_K}"]
        rows = [["", *(metric.replace("ndcg", "NDCG") for metric in metrics)]]
        rows += [[name, *(_mean(r.slices[slice_name].metrics[m]) for m in metrics)] for name, r in results.items()]
        if slice_name == "cold items":  # a scorer that puts them before all others finds them, too
            rows[0].append(f"share of lists@{k}")
            for row, result in zip(rows[1:], results.values(), strict=True):
                row.append(f"{result.catalogue[f'cold_share@{k}']:.1%}")
        blocks.append(f"{title}\n{_aligned(rows)}")
    return "\n\n".join(blocks)


def to_json(results: Mapping[str, Result]) -> str:
    """The results with everything that was measured.

    Raises:
        ValueError: there are no results, or their conditions differ.
    """
    conditions = asdict(_shared_conditions(results))
    measured = {name: asdict(result) for name, result in results.items()}
    for one in measured.values():
        for key in ("conditions", "each", "users"):  # said once; and too many for a file that people read
            del one[key]
    return json.dumps({"conditions": conditions, "results": measured}, indent=1, ensure_ascii=False, allow_nan=False)


def _shared_conditions(results: Mapping[str, Result]) -> Conditions:
    if not results:
        raise ValueError("there are no results to report; evaluate at least one scorer")
    (first, conditions), *others = ((name, result.conditions) for name, result in results.items())
    for name, said in others:
        for key, value in asdict(said).items():
            if value != (expected := getattr(conditions, key)):
                raise ValueError(
                    f"{name} and {first} cannot be compared: {key} is {value!r} for one and {expected!r} for the other"
                )
    return conditions


def _lines(said: Conditions) -> str:
    sampled = f", {said.sample[0]:,} drawn at random with seed {said.sample[1]}" if said.sample else ""
    period = f", {said.period[0]} to {said.period[1]}" if said.period else ""
    seen = "compete too" if said.include_seen else "are left out, as the service does"
    return "\n".join(
        [
            f"{said.part} part of {said.split}{period}",
            f"{said.num_queries:,} queries of {said.num_users:,} users, {said.num_targets:,} targets{sampled}; "
            f"every query ranks all {said.num_candidates:,} items; those of its history {seen}",
            f"dropped of {said.num_asked:,} queries: {said.dropped_targets:,} targets seen before, "
            f"{said.repeated_targets:,} repeated targets, {said.dropped_queries:,} queries with no target left",
            "± is the half width of a 95 % interval, clustered by user",
        ]
    )


def _mean(mean: Mean) -> str:
    return f"{mean.value:.4f} ± {'–':6}" if mean.half_width is None else f"{mean.value:.4f} ± {mean.half_width:.4f}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
