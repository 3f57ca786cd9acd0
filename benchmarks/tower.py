"""What the user tower costs one user at a time, by every way to run it on a CPU: `python -m benchmarks.tower`.

Towers of MovieLens's size and architecture, hardly trained, on one thread; calls of all ways take turns. The floor is
the towers' own forward, called as training calls it; `difference` is the largest of a vector's numbers to it. What is
not installed is said and left out. Other encoders stand below, untrained, each with its own floor. The second table is
what a request costs with its history, tower included, beside the raw forward and the search. `--registry` takes a live
bundle instead.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.served import synthetic_registry
from benchmarks.table import emit, parser
from recsys.bundle import Bundle
from recsys.index.engine import use_one_thread
from recsys.model.hstu import HSTU
from recsys.model.ligr import LiGR
from recsys.model.sequence import Transformer
from recsys.model.serving import UserEncoder
from recsys.model.towers import Towers
from recsys.recommender import Event, Recommender
from recsys.registry import Registry

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LENGTHS = (5, 20, 50, 200)
Asked = tuple[np.ndarray, np.ndarray | None, np.ndarray | None, dict[str, np.ndarray]]
Way = Callable[[np.ndarray, np.ndarray | None, np.ndarray | None, dict[str, np.ndarray]], np.ndarray]


class Encoder(nn.Module):
    """What compilers and exporters take: the served tower's blocks, from [1, L, D] to [1, D]."""

    def __init__(self, served: UserEncoder) -> None:
        super().__init__()
        self._newest = served._newest

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self._newest(x_BLD.clone(), None, None, None)


class Replaced(UserEncoder):
    """The served tower with its blocks run by somebody else."""

    def __init__(self, towers: Towers, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__(towers)
        if not isinstance(towers.user.encoder, Transformer):
            raise TypeError(f"it runs the blocks of a Transformer, not those of a {type(towers.user.encoder).__name__}")
        self._newest = lambda x_BLD, lengths_B, times_BL, asked_BL: run(x_BLD)


def compiled(towers: Towers, folder: Path) -> Way:
    """torch.compile with Inductor, for any length."""
    return Replaced(towers, torch.compile(Encoder(UserEncoder(towers)), dynamic=True))


def _example(towers: Towers) -> tuple[tuple[Tensor], dict[str, Any]]:
    length = torch.export.Dim("length", min=2, max=towers.architecture.max_length)
    return (torch.randn(1, 20, towers.architecture.dimension),), {"x_BLD": {1: length}}


def ahead_of_time(towers: Towers, folder: Path) -> Way:
    """torch.export and AOTInductor."""
    given, shapes = _example(towers)
    exported = torch.export.export(Encoder(UserEncoder(towers)).eval(), given, dynamic_shapes=shapes)
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "tower.pt2"))
    return Replaced(towers, torch._inductor.aoti_load_package(path))


def onnx(towers: Towers, folder: Path) -> Way:
    """ONNX Runtime."""
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    given, shapes = _example(towers)
    file = folder / "tower.onnx"
    encoder = Encoder(UserEncoder(towers)).eval()
    torch.onnx.export(encoder, given, file, dynamo=True, dynamic_shapes=shapes, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (name,) = (one.name for one in session.get_inputs())
    return Replaced(towers, lambda x_BLD: torch.from_numpy(session.run(None, {name: x_BLD.numpy()})[0]))


def half(towers: Towers, folder: Path) -> Way:
    """The towers' own forward with bfloat16 products."""

    def now(*asked: Any) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return towers.user_now(*asked)

    return now


def in_numpy(towers: Towers, folder: Path) -> Way:
    """The served tower's products, in NumPy."""
    return Replaced(towers, Numpy(UserEncoder(towers)))


class Numpy:
    """The blocks of a `UserEncoder` in NumPy, from [1, L, D] to [1, D]."""

    def __init__(self, served: UserEncoder) -> None:
        blocks: Any = served._newest
        self._blocks, self._last, self._norm = blocks._blocks, blocks._last, [part.numpy() for part in blocks._norm]
        future = np.full((served._max_length,) * 2, -np.inf, dtype=np.float32)
        self._future = np.triu(future, 1)

    def __call__(self, x_BLD: Tensor) -> Tensor:
        x_LD = x_BLD[0].numpy()
        for block in self._blocks:
            length, dimension = x_LD.shape
            width = dimension // block._heads
            qkv = _affine(block._query_key_value, _normal(x_LD)).reshape(length, 3, block._heads, width)
            query, key, value = qkv.transpose(1, 2, 0, 3)
            weight = _softmax(query * np.float32(width**-0.5) @ key.mT + self._future[:length, :length])
            x_LD = x_LD + _affine(block._output, (weight @ value).transpose(1, 0, 2).reshape(length, dimension))
            x_LD = _fed_forward(block._feedforward, x_LD)
        newest = x_LD[-1:]
        if (last := self._last) is not None:
            seen = _normal(x_LD)
            query = _affine(last._query, seen[-1:]).reshape(last._heads, -1)
            attended = _softmax(query @ seen.T) @ seen
            newest = _fed_forward(last._feedforward, newest + _affine(last._output, attended.reshape(1, -1)))
        return torch.from_numpy(_normal(newest) * self._norm[0] + self._norm[1])


def _affine(affine: Any, x: np.ndarray) -> np.ndarray:
    return x @ affine.weight.numpy() + affine.bias.numpy()


def _normal(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(np.einsum("ld,ld->l", centred, centred)[:, None] / x.shape[1] + np.float32(1e-5))


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def _fed_forward(part: Any, x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    hidden = _affine(part._expand, _normal(x))
    return x + _affine(part._contract, hidden * np.float32(0.5) * (1 + erf(hidden * np.float32(0.5**0.5))))


FLOOR, SERVED = "the towers' own forward", "as served: recsys.model.serving"
MAKERS: dict[str, Callable[[Towers, Path], Way]] = {
    FLOOR: lambda towers, folder: towers.user_now,
    "the same, bfloat16": half,
    SERVED: lambda towers, folder: UserEncoder(towers),
    "served, in NumPy": in_numpy,
    "served, torch.compile": compiled,
    "served, AOTInductor": ahead_of_time,
    "served, ONNX Runtime": onnx,
}
OTHERS = (Transformer, LiGR, HSTU)


def histories(bundle: Bundle, length: int) -> tuple[Asked, list[Event]]:
    """One user's history, as the tower reads it and as a request tells it."""
    random = np.random.default_rng(length)
    rows = random.integers(0, len(bundle.item_ids), length)
    times = 1_700_000_000_000 + 1000 * np.cumsum(random.integers(1, 10**6, length))
    profile = {name: values[[0]] for name, values in bundle.profiles.items()}
    codes = None if bundle.history_events is None else np.zeros(length, dtype=np.int64)
    known = None if bundle.history_times is None else times
    events = [Event(item, int(at)) for item, at in zip(bundle.item_ids.ids(rows), times, strict=True)]
    return (bundle.item_vectors[rows], known, codes, profile), events


def ways_of(bundle: Bundle, folder: Path, given: Asked) -> dict[str, tuple[Way, Way]]:
    """Every way that can be gone here, by name, and the forward whose numbers it must give."""
    ways: dict[str, tuple[Way, Way]] = {}
    for name, make in MAKERS.items():
        try:
            way = make(bundle.towers, folder)
            way(*given)
            ways[name] = way, bundle.towers.user_now
        except Exception as error:
            print(f"{name}: not tried, {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
    for encoder in OTHERS:
        if encoder is not bundle.towers.architecture.encoder:
            towers = Towers(bundle.towers.sizes, replace(bundle.towers.architecture, encoder=encoder)).eval()
            ways[f"{encoder.__name__}: own forward"] = towers.user_now, towers.user_now
            ways[f"{encoder.__name__}: as served"] = UserEncoder(towers), towers.user_now
    return ways


def in_turns(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median microseconds of each, after some rounds to warm up; one call a turn, so that few are interrupted."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 10):
        for name, call in ways.items():
            started = time.perf_counter()
            call()
            took[name].append(1e6 * (time.perf_counter() - started))
    return {name: float(np.median(each[10:])) for name, each in took.items()}


def measure(bundle: Bundle, rounds: int, folder: Path, *, as_json: bool) -> None:
    """Prints both tables."""
    lengths = [length for length in LENGTHS if length <= bundle.towers.architecture.max_length]
    asked = {length: histories(bundle, length) for length in lengths}
    ways = ways_of(bundle, folder, asked[lengths[0]][0])
    rows: list[dict[str, Any]] = [{"way": name} for name in ways]
    requests = []
    recommender = Recommender(bundle)
    for length, (given, events) in asked.items():
        times = in_turns({name: (lambda way=way, given=given: way(*given)) for name, (way, _) in ways.items()}, rounds)  # type: ignore[misc]
        expected = bundle.towers.user_now(*given)
        for row, (name, (way, floor)) in zip(rows, ways.items(), strict=True):
            row[f"{length} µs"] = times[name]
            row["difference"] = max(row.get("difference", 0.0), float(np.abs(way(*given) - floor(*given)).max()))
        query = expected[None]
        parts = {
            "raw forward µs": lambda given=given: bundle.towers.user_now(*given),
            "search µs": lambda query=query: bundle.index.search(query, 10),
            "request µs": lambda events=events: recommender.recommend(history=events, k=10),
        }
        taken = in_turns(parts, rounds)  # type: ignore[arg-type]
        share = taken["request µs"] / (taken["raw forward µs"] + taken["search µs"])
        requests.append({"history": length, **taken, "request / (forward + search)": share})
    items = len(bundle.item_ids)
    emit(f"user tower, D {bundle.towers.architecture.dimension}, one user, one thread", rows, as_json=as_json)
    emit(f"a request with its history, {items:,} items, k 10, in process", requests, as_json=as_json)


def main() -> None:
    """Takes the live bundle of a registry, or makes one of MovieLens's size, and measures."""
    made = parser(__doc__ or "")
    made.add_argument("--registry", default="", help="a registry with a live bundle; a synthetic one if left out")
    made.add_argument("--rounds", type=int, default=500, help="turns of each way")
    said = made.parse_args()
    torch.set_num_threads(1)
    use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(said.registry) if said.registry else Registry(synthetic_registry(Path(folder)))
        measure(registry.open_current(), said.rounds, Path(folder), as_json=said.json)


if __name__ == "__main__":
    if not ONE_THREAD.items() <= os.environ.items():  # BLAS reads these when it is loaded, so start again with them
        command = [sys.executable, "-m", "benchmarks.tower", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ONE_THREAD})
    main()
