"""A warm start's towers: an older checkpoint's weights, grown to today's data; what means the same is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys.artifacts import ArtifactError
from recsys.data.warm import WarmStartError
from recsys.model.sequence import Transformer
from recsys.model.towers import Towers

_ITEM_IDS = "item.sum.parts.0.weight"


def grown(old: Towers, new: Towers, trained: np.ndarray, described: np.ndarray) -> dict[str, Tensor]:
    """The weights that `new` towers begin with: the old ones, and a start for every row that is new.

    An item's id row starts at zero where features speak for the item: hiding ids while training (`id_dropout`) taught
    the towers to do with those alone, and it is how the item was embedded until now. Without features it would start
    as no vector at all (and a unit one could not even be normalised), so it starts at the mean of the ids that
    training knew: like an item of which nothing is known but that it is one. Rows that the old training did not know
    start the same way, since noise and weight decay is all that they hold.

    A new value of a feature, or a new kind of event, starts at the mean of the old ones: nothing taught the towers to
    do without, so zero would put what shares everything else with the others at a place where none of them is.

    Args:
        old: trained, of the same architecture.
        new: of the grown sizes; only their shapes are read.
        trained: bool [N before], the items whose ids the old training knew.
        described: bool [N], the items of which some feature is known (see `described_by`).

    Returns:
        A state dict for `new`.

    Raises:
        WarmStartError: the towers are of another make, or something shrank; the message names it.
    """
    refuse_another_make(old, new)
    before, weights = old.state_dict(), {}
    for name, like in new.state_dict().items():
        table, kept = before[name], _kept_rows(name, before[name], trained)
        if name == _ITEM_IDS:
            start = torch.zeros_like(like)
            start[1:][torch.from_numpy(~described)] = _mean(table[kept[1:]])
        else:
            padding = getattr(new.get_submodule(name.rpartition(".")[0]), "padding_idx", None)
            start = like if table.shape == like.shape else _mean(table[0 if padding is None else 1 :])
        weights[name] = _with_rows(table, kept, start.expand_as(like))
    return weights


def carried(state: Mapping[int, Mapping[str, Tensor]], old: Towers, new: Towers, trained: np.ndarray) -> dict[int, Any]:
    """AdamW's state for `new` towers: each weight's moments stay with it, and new rows start without any.

    Steps are counted by whole tables, so the first steps of a new row are not corrected for its short past: some three
    times as long as in a new training, for an instant.

    Args:
        state: a checkpoint's, parameter number to `step`, `exp_avg` and `exp_avg_sq`.
        old: as for `grown`.
        new: as for `grown`.
        trained: as for `grown`.

    Returns:
        The same, for the parameters of `new`.
    """
    moments: dict[int, Any] = {}
    for place, (name, like) in enumerate(new.named_parameters()):
        if place in state:  # a parameter that no step has touched has none
            kept = _kept_rows(name, old.get_parameter(name), trained)
            moments[place] = {
                key: value if value.ndim == 0 else _with_rows(value, kept, torch.zeros_like(like, device=value.device))
                for key, value in state[place].items()
            }
    return moments


def described_by(codes: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """bool [count]: of which items some feature is known (codes as `FeatureEncoder.encode` gives)."""
    known = np.zeros(count, dtype=bool)
    for values in codes.values():
        known |= (values != 0).any(1) if np.issubdtype(values.dtype, np.integer) else values[:, -1] != 0
    return known


def refuse_another_make(old: Towers, new: Towers) -> None:
    """Raises WarmStartError unless every weight of `old` has its place in `new`, where it means the same."""
    refuse_another_architecture(old.config()["architecture"], new.config()["architecture"], WarmStartError)
    for kind in ("item_inputs", "user_inputs"):
        names, own = ([given.name for given in getattr(towers.sizes, kind)] for towers in (old, new))
        if names != own:
            raise WarmStartError(f"the checkpoint's {kind} are {names}, the data's {own}; train in full")
    before, now = old.state_dict(), new.state_dict()
    if others := sorted(before.keys() ^ now.keys()):
        has = "the checkpoint has" if others[0] in before else "the towers of today's data have"
        raise WarmStartError(f"{has} the weights {others[0]}, the other has not; train in full")
    for name, weight in now.items():
        table = isinstance(new.get_submodule(name.rpartition(".")[0]), nn.Embedding)
        same = before[name].shape[1:] == weight.shape[1:] and len(before[name]) <= len(weight) if table else False
        if not same and before[name].shape != weight.shape:
            raise WarmStartError(
                f"the checkpoint's {name} is {tuple(before[name].shape)}, today's data asks for {tuple(weight.shape)}, "
                "which it cannot grow to; train in full"
            )


def refuse_another_architecture(said: Mapping[str, Any], own: Mapping[str, Any], error: type[ArtifactError]) -> None:
    """Raises `error` unless a checkpoint's architecture is the configured one, in all that weights depend on."""
    before_a_choice = {"encoder": Transformer.__name__, "query_time": False}  # what older checkpoints do not say
    for name, value in (before_a_choice | dict(said)).items():
        if name not in ("dropout", "id_dropout", "recency") and value != own[name]:
            raise error(
                f"the checkpoint was trained with architecture.{name} {value}, the configuration says "
                f"{own[name]}; use the configuration it was trained with"
            )


def _kept_rows(name: str, table: Tensor, trained: np.ndarray) -> Tensor:
    """The rows that training taught something; of ids, the first stands for the unknown one."""
    if name == _ITEM_IDS:
        return torch.from_numpy(np.append(0, 1 + np.flatnonzero(trained)))
    return torch.arange(len(table))


def _with_rows(table: Tensor, kept: Tensor, start: Tensor) -> Tensor:
    new = start.clone()
    new[kept] = table[kept]
    return new


def _mean(rows: Tensor) -> Tensor:
    return rows.mean(0) if len(rows) else rows.new_zeros(rows.shape[1:])
