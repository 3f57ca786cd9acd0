"""What a night builds on: the night that made the live bundle, its dataset to add to and its weights to go on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.bundle import Bundle
from recsys.data import snapshot
from recsys.nightly import fitting
from recsys.nightly.fitting import Start, WarmStart
from recsys.nightly.night import Night, nights

_OF_THE_MODEL = frozenset({"training", "vectors", "live", "slices", "coverage", "overlap", "score shift"})


@dataclass(frozen=True)
class Origin:
    """The night that made the live bundle.

    Attributes:
        dataset: what it trained on, and tonight's rows are added to.
        checkpoint: what it trained.
        mark: up to where it had read the source.
    """

    night: Night
    dataset: Path
    checkpoint: Path
    mark: dict[str, Any]


def origin_of(live: Bundle | None, work: Path) -> Origin | None:
    """The night that made a bundle, if it is still here."""
    if live is None:
        return None
    wanted = live.manifest.content["checkpoint"], live.manifest.content["dataset"]
    for night in reversed(nights(work)):
        fit, dataset = night.folder / "fit", night.folder / "prepare"
        if night.result is None or not fit.exists():
            continue
        fitted = fitting.opened(fit).content
        if (fitted.get("checkpoint"), fitted["dataset"]) == wanted:
            mark = snapshot.manifest(night.folder / "snapshot").content["mark"]
            return Origin(night, dataset, fit / fitting.CHECKPOINT, mark)
    print("the night that made the live bundle is not here any more: the log is read from its beginning", flush=True)
    return None


def start(warm: WarmStart | None, live: Bundle | None, origin: Origin | None, base: Path | None, work: Path) -> Start:
    """Where tonight's training starts, and why there.

    Args:
        warm: the settings; None if no night goes on.
        live: the live bundle.
        origin: the night that made it.
        base: the dataset that tonight's rows were added to; None if the log was read anew.
        work: the folder of all nights.
    """
    if warm is None:
        return Start(None, "warm_start is switched off")
    if live is None:
        return Start(None, "nothing is live yet")
    if origin is None:
        return Start(None, "the night that made the live bundle is not here any more")
    if base is None:
        return Start(None, "the log was read anew, so that rows are others")
    trained = [night for night in nights(work) if night.result is not None and (night.folder / "fit").exists()]
    # Counted from the last night that trained, whatever became of it: where the live bundle is better than what a full
    # training gives, counting from the live one would train in full every night, in vain.
    last = fitting.opened(trained[-1].folder / "fit").content
    warm_nights = last["warm_nights"] + 1
    if warm_nights >= warm.full_every:
        return Start(None, f"{last['warm_nights']} nights in a row went on, and one in {warm.full_every} does not")
    if warm.full_after_drift and last["mode"] == "warm" and _drifted(trained[-1]):
        return Start(None, f"what {trained[-1].name} went on with was refused: {', '.join(trained[-1].failed)}")
    return Start(origin.checkpoint, f"goes on from {origin.night.name}, which is live", warm_nights)


def _drifted(night: Night) -> bool:
    """Whether a night's model was refused for itself: one that is no better than popularity tells of its questions."""
    return bool(_OF_THE_MODEL.intersection(night.failed)) and "popularity" not in night.failed
