"""Opens a bundle in a process that answers requests meanwhile: checked, warmed by real queries, and giving way to them.

What opening costs others is not its work but how long it holds Python's lock at a time. So the lock changes hands more
often than by default, digests are taken by a thread of low priority (which hardly needs the lock: one that does would
hold up everybody when the machine is busy), and no collection walks what was imported.
"""

from __future__ import annotations

import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from recsys.artifacts import ArtifactError, Manifest, verify
from recsys.bundle import FORMAT_VERSION, KIND, Bundle
from recsys.recommender import Answer, Event, Recommender
from recsys.registry import Registry

SWITCH_S = 0.0005  # a thread that computes gives way to one that answers after this long, not after ten times as long
_NICE = 10
_K = 10
_QUERIES = 8  # of each kind, spread over the rows
_POPULAR = 500  # what is read of the most popular items is kept, and they are returned most


def settle() -> None:
    """Readies the process for answering; call it once all is imported, before the first bundle is opened.

    A full collection of cycles walks a quarter of a million objects of the imported packages, in a fifth of a second in
    which nothing is answered. None of them is ever garbage, so none is walked again. A bundle must be: open it after.

    PyTorch is told that one history at a time is its work: handing a product as small as that to a second thread takes
    longer than doing it (four times the tower's time, on two cores with others on them), and setting up oneDNN's
    kernels a fifth of the tower's time more than they save.
    """
    torch.set_num_threads(1)
    torch.backends.mkldnn.set_flags(False)
    gc.collect()
    gc.freeze()


def opener(registry: str) -> Callable[[str], Recommender]:
    """What opens the bundles of a registry by id, whole and warm.

    The function raises ArtifactError if there is no such bundle, it is not sound, or its answers are not.
    """

    def opened(bundle: str) -> Recommender:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)  # while there is a thread that computes; else it only costs
        try:
            return _opened(bundle)
        finally:
            sys.setswitchinterval(usual)

    def _opened(bundle: str) -> Recommender:
        path = Registry(registry).bundle_path(bundle)
        with ThreadPoolExecutor(1, "verify", initializer=_give_way) as thread:
            manifest: Manifest = thread.submit(verify, path, KIND, FORMAT_VERSION).result()
        recommender = Recommender(Bundle.open(path, verified=manifest))
        if recommender.bundle.id != bundle:
            raise ArtifactError(f"{Path(path)} holds bundle {recommender.bundle.id}; rename it to that")
        recommender.warm()
        warm(recommender)
        return recommender

    return opened


def open_current(registry: str) -> Recommender:
    """A warm Recommender around the live bundle of a registry, as a replica opens it."""
    live = Registry(registry).current
    if live is None:
        raise ArtifactError(f"no bundle is live in {registry}; run `recsys bundle promote` first")
    return opener(registry)(live)


def warm(recommender: Recommender) -> None:
    """Asks queries of every kind, of users and items spread over the whole bundle, and looks at the answers.

    The first real query then finds everything loaded: maps from ids to rows, the pages of vectors and index, what is
    shown of popular items.

    Raises:
        ArtifactError: an answer has fewer items than there are, or a score that is not finite.
    """
    bundle = recommender.bundle
    count = len(bundle.item_ids)
    for what, expected, answer in _asked(recommender):
        if len(answer.items) != expected:
            raise ArtifactError(f"bundle {bundle.id}: {what} gave {len(answer.items)} items of {count}, not {expected}")
        if not all(math.isfinite(item.score) for item in answer.items):
            raise ArtifactError(f"bundle {bundle.id}: {what} gave a score that is not finite")


def _asked(recommender: Recommender) -> Iterator[tuple[str, int, Answer]]:
    """Each query in words, how many items it must give, and its answer."""
    bundle = recommender.bundle
    count = len(bundle.item_ids)
    k, popular = min(_K, count), min(_POPULAR, count)
    if not count:
        return
    yield "what is popular", popular, recommender.recommend(k=popular)
    for user in bundle.user_ids.ids(_spread(len(bundle.user_ids))):
        yield f"user {user!r}", k, recommender.recommend(user_id=user, k=k, include_seen=True)
    for item in bundle.item_ids.ids(_spread(count)):
        yield f"a history of {item!r}", k, recommender.recommend(history=[Event(item)], k=k, include_seen=True)
        if count > 1:
            yield f"similar to {item!r}", min(k, count - 1), recommender.similar(item, k=min(k, count - 1))


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, max(0, count - 1), min(_QUERIES, count)).astype(np.int64))


def _give_way() -> None:
    """Lowers the priority of the calling thread, where the system knows one of threads."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
