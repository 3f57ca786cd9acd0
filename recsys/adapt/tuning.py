"""Fine-tuning a sentence encoder on pairs, by contrast; a run that was stopped goes on from where it was."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional as F

from recsys.adapt.pairs import Mining, Pairs, mined, together
from recsys.artifacts import ArtifactError, digest_of, drafting, writing
from recsys.data.dataset import Dataset
from recsys.data.sentences import SentenceModel, loaded
from recsys.data.split import GivenSplit, LeaveOneOut, TimeSplit, described
from recsys.train import bf16_pays

KIND, FORMAT_VERSION = "sentence-model", 1
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Learning:
    """How the encoder is tuned.

    Args:
        steps: batches learnt from; about one pass over the pairs if left out.
        batch: pairs a batch, each other's negatives, too.
        learning_rate: of AdamW, at its highest: it rises over the first tenth of the steps and falls to 0.
        temperature: τ, which cosines are divided by.
        max_tokens: of a text, the first so many are learnt from; as many as the model reads if left out.
        keep_every: steps after which the state is kept, to go on from.
        seed: of the order of pairs and of dropout.
    """

    steps: int | None = None
    batch: int = 32
    learning_rate: float = 2e-5
    temperature: float = 0.05
    max_tokens: int | None = None
    keep_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or self.batch < 2 or self.keep_every < 1:
            raise ValueError(
                f"learning.steps {self.steps}, batch {self.batch} and keep_every {self.keep_every}: give at least 1, 2 "
                "(a pair alone has nothing to be told from) and 1"
            )
        if self.learning_rate <= 0 or self.temperature <= 0:
            raise ValueError(
                f"learning.learning_rate {self.learning_rate} and temperature {self.temperature} must be above 0"
            )


def adapt(
    dataset: Path,
    model: str,
    out: Path,
    *,
    feature: str | None = None,
    split: TimeSplit | LeaveOneOut | GivenSplit | None = None,
    mining: Mining = Mining(),  # noqa: B008 (frozen)
    learning: Learning = Learning(),
    tell: Tell = print,
) -> Path:
    """Tunes a sentence encoder to what is taken together, and writes it as a folder that a schema can name.

    Args:
        dataset: the directory that `recsys prepare` wrote.
        model: the encoder to start from, by folder or installed package.
        out: the folder to write; it must not exist. What is done so far is beside it, in `<out>.progress`.
        feature: the items' text that is read; the only one, if left out.
        split: as that of the training which will use the encoder, by time if left out; only its training part is read.
        mining: what counts as a pair.
        learning: how the encoder is tuned.
        tell: is given a line at a time.

    Returns:
        `out`.

    Raises:
        ArtifactError: `out` exists; or dataset, model or what was done so far cannot be used.
        ValueError: there is no such text, or nothing to learn.
    """
    if out.exists():
        raise ArtifactError(f"{out} exists already; choose another folder or remove it")
    data, split = Dataset.open(dataset), split or TimeSplit()
    name = _feature(data, feature)
    parent = SentenceModel(model)
    texts = data.item_features().column(name).to_pylist()
    tell(f"{parent.name} ({parent.digest[:12]}) reads {name!r} of {data.num_items:,} items")
    vectors = np.zeros((data.num_items, parent.width), dtype=np.float32)
    there = [row for row, text in enumerate(texts) if text]
    vectors[there] = parent.encode([texts[row] for row in there])
    cuts = split.cut(data)
    pairs = mined(data, cuts, texts, vectors, mining)
    hard = int((pairs.negative >= 0).sum())
    tell(f"{len(pairs):,} pairs of {len(np.unique(pairs.anchor)):,} items, {hard:,} hard negatives")
    if len(pairs) < 2:
        raise ValueError(
            f"{dataset} has {len(pairs)} pairs of items with texts that {mining.least} users took together in "
            "training; lower mining.least, or widen mining.window"
        )
    said = {
        "parent": {"name": parent.name, "digest": parent.digest},
        "dataset": data.manifest.digest,
        "split": described(split),
        "feature": name,
        "mining": asdict(mining),
        "learning": asdict(learning),
    }
    progress = out.with_name(f"{out.name}.progress")
    tuned, steps = tune(parent, pairs, texts, together(data, cuts, mining), learning, progress, said, tell)
    with writing(out, KIND, FORMAT_VERSION) as draft:
        tuned.save(str(draft.path), create_model_card=False)
        draft.content.update(said, pairs=len(pairs), steps=steps)
    shutil.rmtree(progress, ignore_errors=True)
    tell(f"{out}: {SentenceModel(str(out)).digest[:12]}; name it as `model` of {name!r} in the schema")
    return out


def contrast(anchor_BD: Tensor, other_MD: Tensor, false_BM: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each anchor's positive against all others of the batch: InfoNCE over cosines.

    −log( e^{s_ii/τ} / Σ_{j not false} e^{s_ij/τ} ): van den Oord et al., 2018, "Representation Learning with
    Contrastive Predictive Coding", eq. 4; with the other pairs' positives as negatives: Henderson et al., 2017,
    "Efficient Natural Language Response Suggestion", section 4.4 (multiple negatives ranking loss).

    Args:
        anchor_BD: of length 1.
        other_MD: of length 1: the positives in the anchors' order, then hard negatives.
        false_BM: bool, which of them are no negatives of the anchor, for they may be right; its own positive is not.
        temperature: τ.
    """
    score_BM = (anchor_BD @ other_MD.T).float() / temperature
    return F.cross_entropy(
        score_BM.masked_fill(false_BM, -math.inf), torch.arange(len(anchor_BD), device=anchor_BD.device)
    )


def false_negatives(
    anchor: np.ndarray, positive: np.ndarray, others: np.ndarray, counts: sparse.csr_array, codes: np.ndarray
) -> np.ndarray:
    """bool [B, M]: which of a batch's items must not be pushed away from an anchor.

    The anchor itself, what was ever together with it, and what reads the same as it or as its positive; but not the
    positive in its own place.

    Args:
        anchor: int64 [B], item rows.
        positive: int64 [B], item rows.
        others: int64 [M], item rows, of which the first B are the positives.
        counts: of `together`.
        codes: int64 [N], the same for items with the same text.
    """
    met = counts[anchor][:, others].toarray() > 0
    same = (codes[anchor][:, None] == codes[others]) | (codes[positive][:, None] == codes[others])
    found = met | same
    found[np.arange(len(anchor)), np.arange(len(anchor))] = False
    return found


def tune(
    parent: SentenceModel,
    pairs: Pairs,
    texts: Sequence[str | None],
    counts: sparse.csr_array,
    learning: Learning,
    progress: Path,
    said: dict[str, Any],
    tell: Tell,
) -> tuple[Any, int]:
    """Tunes a copy of the model; a run that was stopped goes on from its last kept state and ends as it would have.

    Returns:
        The model, in evaluation mode, and the number of steps.

    Raises:
        ArtifactError: what was done so far was asked for otherwise.
    """
    codes = np.unique([text or "" for text in texts], return_inverse=True)[1]
    steps = learning.steps or math.ceil(len(pairs) / learning.batch)
    model = loaded(parent.folder).to("cuda" if torch.cuda.is_available() else "cpu")
    if learning.max_tokens is not None:
        longest, model.max_seq_length = model.max_seq_length, learning.max_tokens
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning.learning_rate, weight_decay=0.01)
    done = _resumed(model, optimizer, progress, said, tell)
    model.train()
    began, start, total = time.monotonic(), done, 0.0
    for step in range(done, steps):
        torch.manual_seed(learning.seed * 1_000_003 + step)  # of dropout: a step is the same whenever it is done
        chosen = _batch(len(pairs), learning, step)
        anchor, positive, hard = pairs.anchor[chosen], pairs.positive[chosen], pairs.negative[chosen].ravel()
        others = np.concatenate([positive, hard[hard >= 0]])
        vectors = _embedded(model, [texts[row] for row in (*anchor, *others)])
        false = torch.from_numpy(false_negatives(anchor, positive, others, counts, codes)).to(vectors.device)
        loss = contrast(vectors[: len(anchor)], vectors[len(anchor) :], false, learning.temperature)
        rate = min((step + 1) / max(1, steps / 10), (steps - step) / max(1, steps * 0.9), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning.learning_rate * rate
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if not math.isfinite(total):
            raise ValueError(f"the loss is {loss.item()} at step {step + 1}; lower learning.learning_rate")
        if (step + 1) % 10 == 0 or step + 1 == steps:
            left = (time.monotonic() - began) / (step + 1 - start) * (steps - step - 1)
            tell(f"step {step + 1}/{steps}  loss {total / (step - start + 1):.4f}  {left:.0f} s left")
        if (step + 1) % learning.keep_every == 0 and step + 1 < steps:
            _keep(model, optimizer, step + 1, progress, said)
    if learning.max_tokens is not None:
        model.max_seq_length = longest
    return model.cpu().eval(), steps


def _batch(count: int, learning: Learning, step: int) -> np.ndarray:
    """The pairs of a step: all in an order drawn for each pass, so that a step knows its own without those before."""
    a_pass = max(1, count // learning.batch)
    rng = np.random.default_rng((learning.seed, step // a_pass))
    place = step % a_pass * learning.batch
    return rng.permutation(count)[place : place + learning.batch]


def _embedded(model: Any, texts: Sequence[str | None]) -> Tensor:
    """The vectors of texts, of length 1, with their gradient; each distinct text is read once."""
    distinct = list(dict.fromkeys(texts))
    place = {text: at for at, text in enumerate(distinct)}
    device = next(model.parameters()).device
    read = {name: values.to(device) for name, values in model.preprocess(distinct).items() if torch.is_tensor(values)}
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays()):
        vectors = model(read)["sentence_embedding"]
    return F.normalize(vectors.float(), dim=-1)[[place[text] for text in texts]]


def _resumed(model: Any, optimizer: torch.optim.Optimizer, progress: Path, said: dict[str, Any], tell: Tell) -> int:
    """Loads the kept state, if any; how many steps are done."""
    if not progress.exists():
        return 0
    kept = json.loads((progress / "asked.json").read_text(encoding="utf-8"))
    if kept["asked"] != digest_of(said):
        raise ArtifactError(f"{progress} was begun with other data or options; remove it, or choose another --out")
    state = torch.load(progress / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    tell(f"goes on after step {kept['steps']}")
    return int(kept["steps"])


def _keep(model: Any, optimizer: torch.optim.Optimizer, steps: int, progress: Path, said: dict[str, Any]) -> None:
    """Replaces the kept state, in one step."""
    with drafting(progress) as draft:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, draft / "state.pt")
        kept = {"asked": digest_of(said), "steps": steps}
        (draft / "asked.json").write_text(json.dumps(kept), encoding="utf-8")
        old = progress.with_name(f"{progress.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if progress.exists():
            os.rename(progress, old)
        os.rename(draft, progress)
        shutil.rmtree(old, ignore_errors=True)


def _feature(data: Dataset, name: str | None) -> str:
    """The text to read."""
    features = data.schema.items.features if data.schema.items else ()
    texts = [feature.name for feature in features if feature.kind == "text"]
    if name is None and len(texts) == 1:
        return texts[0]
    if name not in texts:
        said = "say which" if name is None else f"there is no text {name!r}"
        raise ValueError(f"items of {data.path} have the texts {', '.join(texts) or 'none'}; {said} (--feature)")
    return name
