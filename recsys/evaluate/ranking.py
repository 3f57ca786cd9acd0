"""Full ranking of all items for every held-out query: what is asked, what is left out, and how it is scored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from recsys.data.dataset import Dataset
from recsys.data.split import Cuts, HeldOut, Queries, Split, queries_of, seen_before, train_counts
from recsys.evaluate import metrics
from recsys.evaluate.baselines import Scorer, history_positions
from recsys.evaluate.metrics import Mean

SLICE_K = 10
HEAD_SHARE = 0.8  # the most popular items that make up this share of training are the head, the others the tail
_CELLS = 1 << 20  # scores ranked at a time: 4 MB, which stays in a core's cache


@dataclass(frozen=True)
class Conditions:
    """What was asked of a scorer, without which its figures say nothing.

    Attributes:
        split: how the data was cut, as the split describes itself.
        part: which part was held out.
        period: when the targets happened, first and last day, if the log has times.
        num_queries: how many queries are in the figures, of `num_users` users, with `num_targets` targets.
        num_asked: how many the part asks; the others were dropped or not sampled.
        dropped_targets: targets left out because the user had taken the item before, as the service leaves it out.
        repeated_targets: targets left out because their query names the item already.
        dropped_queries: queries left without a target by this.
        sample: how many queries were drawn at random, with which seed, or None if all count.
        num_candidates: how many items each query ranks: all of them.
        include_seen: whether items of the history compete too.
    """

    split: str
    part: HeldOut
    period: tuple[str, str] | None
    num_queries: int
    num_users: int
    num_targets: int
    num_asked: int
    dropped_targets: int
    repeated_targets: int
    dropped_queries: int
    sample: tuple[int, int] | None
    num_candidates: int
    include_seen: bool


@dataclass(frozen=True)
class Slice:
    """The figures over some of the targets: recall and NDCG at 10, empty if it has none."""

    num_queries: int
    num_users: int
    metrics: dict[str, Mean] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a scorer reached.

    Attributes:
        accuracy: mean over queries of `recall@k`, `ndcg@k`, `hit_rate@k`, `mrr@k`, with intervals clustered by user.
        catalogue: `coverage@k`, `novelty@k` (bits), `popularity_lift@k` (a ratio; None if it has none), `cold_share@k`
            (of the places in lists, those of items that training never saw).
        slices: `new users` (nothing in training), `tail items`, `cold items` (not in training), and those asked for.
        seconds: what scoring and ranking took.
        each: float64 [Q], NDCG@10 of every query, so that two scorers asked the same can be compared in pairs.
        users: int64 [Q], the user row of every query.
    """

    conditions: Conditions
    accuracy: dict[str, Mean]
    catalogue: dict[str, float | None]
    slices: dict[str, Slice]
    seconds: float
    each: np.ndarray
    users: np.ndarray


def evaluate(
    scorer: Scorer,
    dataset: Dataset,
    cuts: Cuts,
    part: HeldOut,
    *,
    split: Split | None = None,
    ks: Sequence[int] = (5, 10, 20, 50),
    max_queries: int | None = None,
    seed: int = 0,
    include_seen: bool = False,
    groups: Mapping[str, np.ndarray] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Result:
    """Ranks all items for every query of a part and compares with what the users took.

    Equal scores come by row, but a target comes after the items it ties with: a scorer that cannot tell items apart
    gets no credit for it.

    Args:
        scorer: what is measured.
        dataset: the interactions.
        cuts: the split.
        part: which held-out part asks.
        split: what made the cuts, for the report.
        ks: the cut-offs.
        max_queries: at most so many queries, drawn at random; all of them if None.
        seed: of that draw; equal seeds draw equal queries whatever the scorer.
        include_seen: whether items of the history compete too; if not, targets among them are dropped and counted.
        groups: further slices, by name: bool [N], the items of each.
        batch_size: queries scored at a time; by the number of items if None.
        progress: whether to show a bar.

    Raises:
        ValueError: no query is left, or the scorer returns another shape or NaN; the message names it.
    """
    ks = sorted(set(ks))
    if not ks or ks[0] < 1:
        raise ValueError(f"ks are {list(ks)}; give at least one, each at least 1")
    queries, conditions = _asked(dataset, cuts, part, include_seen)
    if max_queries is not None and max_queries < len(queries):
        chosen = np.random.default_rng(seed).choice(len(queries), max_queries, replace=False)
        queries = queries.take(np.sort(chosen))
        conditions = replace(conditions, sample=(max_queries, seed))
    if not len(queries):
        raise ValueError(
            f"no query of the {part} part has a target left: {conditions.num_asked} are asked, and "
            f"{conditions.dropped_targets} targets had been seen before; cut elsewhere, or include seen items"
        )
    conditions = replace(
        conditions,
        split=repr(split) if split is not None else "given cuts",
        num_queries=len(queries),
        num_users=len(np.unique(queries.user)),
        num_targets=len(queries.targets),
    )
    started = time.perf_counter()
    places, recommended = _ranked(scorer, dataset, queries, ks, include_seen, batch_size, progress)
    seconds = time.perf_counter() - started
    counts = train_counts(dataset, cuts)
    taken = np.bincount(queries.targets, minlength=dataset.num_items)
    catalogue: dict[str, float | None] = {}
    for k, lists in zip(ks, recommended, strict=True):
        catalogue[f"coverage@{k}"] = metrics.coverage(lists)
        catalogue[f"novelty@{k}"] = metrics.novelty(lists, counts)
        catalogue[f"popularity_lift@{k}"] = metrics.popularity_lift(lists, taken, counts)
        catalogue[f"cold_share@{k}"] = metrics.cold_share(lists, counts)
    return Result(
        conditions=conditions,
        accuracy=_means(places, queries, ks, ("ndcg", "recall", "hit_rate", "mrr")),
        catalogue=catalogue,
        slices={
            name: _slice(places, queries, chosen)
            for name, chosen in {
                "new users": (cuts.validation_start == dataset.user_offsets[:-1])[queries.user[_owner(queries)]],
                "tail items": ~head(counts)[queries.targets],
                "cold items": counts[queries.targets] == 0,
                **{name: items[queries.targets] for name, items in (groups or {}).items()},
            }.items()
        },
        seconds=seconds,
        each=metrics.ndcg(places, _owner(queries), SLICE_K),
        users=queries.user,
    )


def head(counts: np.ndarray) -> np.ndarray:
    """bool [N]: the fewest items that make up 80 % of the training interactions, counts int64 [N]."""
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    is_head = np.zeros(len(counts), dtype=np.bool_)
    is_head[order] = (before < HEAD_SHARE * counts.sum()) & (counts[order] > 0)
    return is_head


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """The k best items of every query, ties by row.

    Args:
        scores: float [Q, N], −inf where an item may not be returned.
        k: how many.

    Returns:
        int64 [Q, min(k, N)], −1 where fewer may be returned.
    """
    num_queries, num_items = scores.shape
    k = min(k, num_items)
    top = np.full((num_queries, k), -1, dtype=np.int64)
    if not top.size:
        return top
    at = np.flatnonzero(scores >= _at_most_kth(scores, k)[:, None])
    query, row = at // num_items, at % num_items
    order = np.lexsort((-scores.ravel()[at], query))  # stable, so that equal scores stay in the order of rows
    query, row = query[order], row[order]
    counts = np.bincount(query, minlength=num_queries)
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place < k
    top[query[kept], place[kept]] = row[kept]
    return top


def _at_most_kth(scores: np.ndarray, k: int) -> np.ndarray:
    """A close lower bound, finite, of each row's k-th highest score, [Q] for scores [Q, N]: that of block maxima.

    Selecting among a few maxima instead of all scores is twice as fast, and ten times where many scores are equal
    (masked, or zero), which NumPy's selection handles badly.
    """
    num_queries, num_items = scores.shape
    columns = max(4 * k, num_items // 32)
    height = num_items // columns
    if height < 2:
        columns, height = num_items, 1
    maxima = scores[:, : height * columns].reshape(num_queries, height, columns).max(axis=1)
    kth = np.partition(maxima, columns - k, axis=1)[:, columns - k]
    return np.maximum(kth, np.finfo(scores.dtype).min)


def _ranked(
    scorer: Scorer,
    dataset: Dataset,
    queries: Queries,
    ks: Sequence[int],
    include_seen: bool,
    batch_size: int | None,
    progress: bool,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The place of every target int64 [T], and for each k how often each item is recommended int64 [N]."""
    name, num_items = type(scorer).__name__, dataset.num_items
    depth = max(ks[-1], SLICE_K)
    size = batch_size or max(1, min(1024, _CELLS // num_items))
    places = np.empty(len(queries.targets), dtype=np.int64)
    recommended = [np.zeros(num_items, dtype=np.int64) for _ in ks]
    with tqdm(total=len(queries), desc=name, unit=" queries", disable=not progress) as bar:
        for start in range(0, len(queries), size):
            batch = queries.take(np.arange(start, min(start + size, len(queries))))
            scores = np.array(scorer.scores(batch), dtype=np.float32)  # a copy: it is written to
            if scores.shape != (len(batch), num_items):
                raise ValueError(f"{name} returned scores {list(scores.shape)}, expected [{len(batch)}, {num_items}]")
            if np.isnan(scores).any():
                at = np.isnan(scores).any(axis=1).argmax()
                raise ValueError(f"{name} returned NaN for user row {batch.user[at]}; a ranking with NaN says nothing")
            if not include_seen:
                query, position = history_positions(dataset, batch)
                scores[query, dataset.items[position]] = -np.inf
            owner = _owner(batch)
            scores[owner, batch.targets] = np.nextafter(scores[owner, batch.targets], np.float32(-np.inf))
            top = top_k(scores, depth)
            found = metrics.places(top, owner, batch.targets)
            first = queries.target_offsets[start]
            places[first : first + len(owner)] = np.where(found < top.shape[1], found, depth)
            for k, lists in zip(ks, recommended, strict=True):
                rows = top[:, :k]
                lists += np.bincount(rows[rows >= 0], minlength=num_items)
            bar.update(len(batch))
    return places, recommended


def _asked(dataset: Dataset, cuts: Cuts, part: HeldOut, include_seen: bool) -> tuple[Queries, Conditions]:
    """The queries that can be answered, and what was left out on the way."""
    asked = queries_of(dataset, cuts, part)
    owner = _owner(asked)
    _, first = np.unique(owner * dataset.num_items + asked.targets, return_index=True)
    kept = np.zeros(len(owner), dtype=np.bool_)
    kept[first] = True
    repeated = int(len(kept) - kept.sum())
    if not include_seen:
        kept &= ~seen_before(dataset, asked)
    counts = np.bincount(owner[kept], minlength=len(asked))
    answerable = counts > 0
    queries = Queries(
        asked.user[answerable],
        asked.end[answerable],
        np.concatenate([[0], np.cumsum(counts[answerable])]),
        asked.targets[kept],
    )
    return queries, Conditions(
        split="",
        part=part,
        period=_period(dataset, cuts, part),
        num_queries=len(queries),
        num_users=0,
        num_targets=len(queries.targets),
        num_asked=len(asked),
        dropped_targets=int(len(kept) - kept.sum()) - repeated,
        repeated_targets=repeated,
        dropped_queries=int(len(asked) - answerable.sum()),
        sample=None,
        num_candidates=dataset.num_items,
        include_seen=include_seen,
    )


def _period(dataset: Dataset, cuts: Cuts, part: HeldOut) -> tuple[str, str] | None:
    if dataset.times is None:
        return None
    start = cuts.validation_start if part == "validation" else cuts.test_start
    end = cuts.test_start if part == "validation" else np.asarray(dataset.user_offsets)[1:]
    lengths = np.diff(dataset.user_offsets)
    position = np.arange(len(dataset))
    held_out = np.asarray(dataset.times)[(position >= np.repeat(start, lengths)) & (position < np.repeat(end, lengths))]
    if not len(held_out):
        return None
    first, last = (datetime.fromtimestamp(int(t) / 1000, UTC).date() for t in (held_out.min(), held_out.max()))
    return first.isoformat(), last.isoformat()


def _owner(queries: Queries) -> np.ndarray:
    """int64 [T]: the query that each target belongs to."""
    return np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))


def _slice(places: np.ndarray, queries: Queries, chosen: np.ndarray) -> Slice:
    """The figures over the chosen targets, bool [T]; the other targets are as if nobody had taken them."""
    counts = np.bincount(_owner(queries)[chosen], minlength=len(queries))
    asking = counts > 0
    offsets = np.concatenate([[0], np.cumsum(counts[asking])])
    part = Queries(queries.user[asking], queries.end[asking], offsets, queries.targets[chosen])
    if not len(part):
        return Slice(0, 0)
    return Slice(len(part), len(np.unique(part.user)), _means(places[chosen], part, (SLICE_K,), ("ndcg", "recall")))


def _means(places: np.ndarray, queries: Queries, ks: Sequence[int], names: Sequence[str]) -> dict[str, Mean]:
    of = {
        "ndcg": metrics.ndcg,
        "recall": metrics.recall,
        "hit_rate": metrics.hit_rate,
        "mrr": metrics.reciprocal_rank,
    }
    owner = _owner(queries)
    return {
        f"{name}@{k}": metrics.clustered_mean(of[name](places, owner, k), queries.user) for name in names for k in ks
    }
