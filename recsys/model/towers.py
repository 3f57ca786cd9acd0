"""The two towers: one module that embeds items, one that embeds a user's history, into the same space."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from recsys.data.history import GAP_BUCKETS, History, gap_buckets, waits
from recsys.data.vocabulary import UNKNOWN, Input
from recsys.model.bag import Bag, Mean
from recsys.model.features import Combiner, FeatureSum
from recsys.model.hstu import HSTU
from recsys.model.ligr import LiGR
from recsys.model.sequence import Dropout, Encoder, Transformer

ITEM_ID = ""  # a declared feature always has a name
ENCODERS: tuple[type[Encoder], ...] = (Transformer, LiGR, HSTU, Bag, Mean)  # those that sealed towers may name


@dataclass(frozen=True)
class Sizes:
    """What the data decides about the towers; linked from the data module, never typed.

    Args:
        num_items: rows of the catalogue.
        item_inputs, user_inputs: encoded features.
        num_events: kinds of event; 0 if the log names none.
        has_times: whether interactions have times.
    """

    num_items: int
    item_inputs: tuple[Input, ...] = ()
    user_inputs: tuple[Input, ...] = ()
    num_events: int = 0
    has_times: bool = False


@dataclass(frozen=True)
class Architecture:
    """What a person decides about the towers.

    Args:
        dimension: D, of user and item vectors.
        max_length: L, how many of the newest interactions of a history count.
        encoder: what reads a history, by class: `Transformer`, `LiGR`, `HSTU`, or for sets `Bag` or `Mean`.
        blocks: how many of the encoder's blocks are stacked.
        heads: attention heads a block.
        dropout: share of activations dropped while training.
        unit: whether vectors are scaled to length 1, so that scores are cosines.
        item_bias: whether the last coordinate of an item's vector is left as it is, and 1 in every user's: the score is
            then the cosine of the others, and what the item is worth to everybody. Only with `unit`; without, lengths
            say that.
        recency: how fast an interaction counts less as others follow it, in a `Mean` or a `Bag`, when a user is asked
            about; 0 for histories that are sets.
        hidden: width of the item tower's MLP, as a multiple of `dimension`; 0 leaves the MLP out.
        id_dropout: share of items whose id is hidden in a training step, so that features alone learn to stand in.
        zero_ids: whether an id adds nothing until training says so; else it starts at random, and drowns the features
            of items that are taken too seldom for training to say much.
        combiner: what an item's several codes of one feature (words, tags) become: their `mean`, or their sum over the
            square root of their number (`sqrtn`), so that a title of ten words speaks as loud as a brand.
        use_times: whether the gaps between interactions are embedded, where the log has times.
        query_time: whether the towers are told when each question is asked; a user's vector then changes by the hour,
            and is made for each request.
    """

    dimension: int = 64
    max_length: int = 200
    encoder: type[Encoder] = Transformer
    blocks: int = 2
    heads: int = 2
    dropout: float = 0.2
    unit: bool = False
    item_bias: bool = False
    recency: float = 0.0
    hidden: int = 2
    id_dropout: float = 0.05
    zero_ids: bool = False
    combiner: Combiner = "mean"
    use_times: bool = True
    query_time: bool = False

    def __post_init__(self) -> None:
        if self.query_time and not self.use_times:
            raise ValueError(
                "query_time without use_times: towers that ignore times cannot be told when they are asked"
            )
        if self.item_bias and not self.unit:
            raise ValueError("item_bias without unit: lengths say already what an item is worth; set both, or neither")
        if self.recency < 0:
            raise ValueError(f"architecture.recency is {self.recency}; choose 0 or more, so that the newest count most")
        if self.recency and not issubclass(self.encoder, Mean):
            raise ValueError(
                f"architecture.recency {self.recency} with {self.encoder.__name__}, which reads the order itself; "
                "leave it out, or choose Mean or Bag"
            )


def unit(x_D: Tensor, last_1: Tensor | None = None) -> Tensor:
    """Vectors […, D] scaled to length 1, or all but the last coordinate, if `last_1` […, 1] says what that shall be."""
    if last_1 is None:
        return normalize(x_D, dim=-1)
    return torch.cat([normalize(x_D[..., :-1], dim=-1), last_1], dim=-1)


class ItemTower(nn.Module):
    """Embeds items from their id and every declared feature: a sum of embeddings, then a residual MLP.

    An id code of 0 is an item whose id was never trained: its features alone speak.
    """

    def __init__(self, sizes: Sizes, architecture: Architecture) -> None:
        super().__init__()
        dimension = architecture.dimension
        self.rotation: Tensor | None
        self.register_buffer("rotation", None)
        self.unit, self.item_bias = architecture.unit, architecture.item_bias
        self.id_dropout = architecture.id_dropout
        self.sum = FeatureSum(
            (Input(ITEM_ID, codes=sizes.num_items + 1), *sizes.item_inputs),
            dimension,
            std=0.25 * dimension**-0.5,
            combiner=architecture.combiner,
        )
        if architecture.zero_ids:
            if not sizes.item_inputs:
                raise ValueError("zero_ids without item features leaves all items alike; embed a feature, or leave it")
            nn.init.zeros_(cast(Tensor, self.sum.parts[0].weight))
        self.mlp: nn.Module | None = None
        if architecture.hidden and sizes.item_inputs:
            self.mlp = nn.Sequential(
                nn.LayerNorm(dimension),
                nn.Linear(dimension, architecture.hidden * dimension),
                nn.GELU(),
                nn.Linear(architecture.hidden * dimension, dimension),
            )
            # Starts as the plain sum, and learns how features combine from there.
            nn.init.zeros_(cast(Tensor, self.mlp[-1].weight))
            nn.init.zeros_(cast(Tensor, self.mlp[-1].bias))

    def forward(self, encoded: Mapping[str, Tensor]) -> Tensor:
        """Args:
            encoded: feature name to codes [n, values] or values [n, width], the id's codes under `ITEM_ID`.

        Returns:
            Item vectors [n, D], of length 1 if `unit`, but for a bias.
        """
        if self.training and self.id_dropout:
            codes = encoded[ITEM_ID]
            hidden = torch.rand(codes.shape, device=codes.device) < self.id_dropout
            encoded = {**encoded, ITEM_ID: codes.masked_fill(hidden, UNKNOWN)}
        x_ND = self.sum(encoded)
        if self.mlp is not None:
            x_ND = x_ND + self.mlp(x_ND)
        x_ND = x_ND.float()
        if self.unit:
            x_ND = unit(x_ND, x_ND[:, -1:] if self.item_bias else None)
        return cast(Tensor, x_ND if self.rotation is None else x_ND @ self.rotation)


class UserTower(nn.Module):
    """Embeds a user from the vectors of the items they took, in order; it knows no user ids."""

    def __init__(self, sizes: Sizes, architecture: Architecture) -> None:
        super().__init__()
        dimension = architecture.dimension
        self.rotation: Tensor | None
        self.register_buffer("rotation", None)
        self.unit, self.item_bias = architecture.unit, architecture.item_bias
        self.dropout = Dropout(architecture.dropout)
        ordered = architecture.encoder.ordered
        self.position = nn.Embedding(architecture.max_length, dimension) if ordered else None
        self.event = nn.Embedding(sizes.num_events, dimension) if sizes.num_events > 1 else None
        timed = sizes.has_times and architecture.use_times
        self.timed, self.query_time = timed, timed and architecture.query_time
        self.gap = nn.Embedding(GAP_BUCKETS, dimension) if timed else None
        self.wait = nn.Embedding(GAP_BUCKETS, dimension) if self.query_time else None
        self.profile = FeatureSum(sizes.user_inputs, dimension, std=0.02) if sizes.user_inputs else None
        self.encoder = architecture.encoder(
            dimension=dimension,
            blocks=architecture.blocks,
            heads=architecture.heads,
            dropout=architecture.dropout,
            max_length=architecture.max_length,
            timed=timed,
            **({"recency": architecture.recency} if issubclass(architecture.encoder, Mean) else {}),
        )
        for embedding in (self.position, self.event, self.gap, self.wait):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, item_BLD: Tensor, history: History) -> Tensor:
        """Args:
            item_BLD: the item tower's vectors of `history.items_BL`.
            history: the rest of what is known of these users.

        Returns:
            User vectors [B, L, D]: position p is the user right after interaction p. Of length 1 if `unit`, but for
            the 1 that an item's bias is multiplied by.
        """
        if self.rotation is not None:  # it was trained on item vectors as they were before
            item_BLD = item_BLD @ self.rotation.T
        # Item vectors have entries of about 1/√D; the encoder wants them of about 1.
        x_BLD = item_BLD * item_BLD.shape[-1] ** 0.5
        if self.position is not None:
            x_BLD = x_BLD + self.position.weight[: item_BLD.shape[1]]
        if self.event is not None and history.events_BL is not None:
            x_BLD = x_BLD + self.event(history.events_BL)
        if self.gap is not None and history.gaps_BL is not None:
            x_BLD = x_BLD + self.gap(history.gaps_BL)
        if self.profile is not None:
            x_BLD = x_BLD + self.profile(history.users)[:, None]
        times_BL, asked_BL = history.times_BL, history.asked_BL if self.query_time else None
        if self.wait is not None and times_BL is not None and asked_BL is not None:
            x_BLD = x_BLD + self.wait(waits(times_BL, asked_BL))
        x_BLD = self.encoder(self.dropout(x_BLD), times_BL if self.timed else None, asked_BL).float()
        if self.unit:
            x_BLD = unit(x_BLD, torch.ones_like(x_BLD[..., :1]) if self.item_bias else None)
        return x_BLD if self.rotation is None else x_BLD @ self.rotation


class Towers(nn.Module):
    """Both towers, and all that is needed to build them again.

    Args:
        sizes: what the data decides.
        architecture: what a person decides.
        rotated: whether the space was turned since training; see `rotate`.
    """

    def __init__(self, sizes: Sizes, architecture: Architecture, *, rotated: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.architecture = architecture
        self.item = ItemTower(sizes, architecture)
        self.user = UserTower(sizes, architecture)
        if rotated:
            self.rotate(np.eye(architecture.dimension))

    def rotate(self, rotation: np.ndarray) -> None:
        """Turns the space that both towers embed into; turned again, the second turn follows the first.

        Both multiply what they make by the rotation, and the user tower first undoes it on the item vectors that it is
        given, so that no score changes.

        Args:
            rotation: float64 [D, D], orthogonal.
        """
        before = self.item.rotation
        if before is not None:
            rotation = before.double().numpy() @ rotation
        for tower in (self.item, self.user):
            tower.rotation = torch.from_numpy(rotation.astype(np.float32))

    def config(self) -> dict[str, Any]:
        """Sizes and architecture as plain JSON values; `from_config` builds untrained towers from them."""
        architecture = dataclasses.asdict(self.architecture) | {"encoder": self.architecture.encoder.__name__}
        said = {"sizes": dataclasses.asdict(self.sizes), "architecture": architecture}
        return said if self.item.rotation is None else said | {"rotated": True}

    @classmethod
    def from_config(cls, said: Mapping[str, Any]) -> Self:
        sizes = dict(said["sizes"])
        for name in ("item_inputs", "user_inputs"):
            sizes[name] = tuple(Input(**given) for given in sizes[name])
        architecture = dict(said["architecture"])
        encoders = {encoder.__name__: encoder for encoder in ENCODERS}
        architecture["encoder"] = encoders[architecture.get("encoder", Transformer.__name__)]
        return cls(Sizes(**sizes), Architecture(**architecture), rotated=said.get("rotated", False))

    def user_now(
        self,
        item_LD: np.ndarray,
        times_L: np.ndarray | None,
        events_L: np.ndarray | None,
        profile: Mapping[str, np.ndarray],
        asked: int | None = None,
    ) -> np.ndarray:
        """The vector of one user after the newest interaction of one history.

        Args:
            item_LD: float32, the vectors of the items taken, oldest first.
            times_L: int64, milliseconds since 1970 of each, where known.
            events_L: int64, event codes, where known.
            profile: encoded user features, feature name to [1, …].
            asked: likewise milliseconds, the moment of the question; as soon as the newest interaction if left out.

        Returns:
            float32 [D].
        """

        def batched(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values)[None]

        with torch.inference_mode():
            item_BLD = torch.from_numpy(item_LD)[None]
            asked_L = None if times_L is None else np.append(times_L[1:], times_L[-1] if asked is None else asked)
            history = History(
                items_BL=torch.zeros(item_BLD.shape[:2], dtype=torch.int64),
                lengths_B=torch.tensor([len(item_LD)]),
                events_BL=batched(events_L),
                gaps_BL=None if times_L is None else batched(gap_buckets(times_L)),
                users={name: torch.from_numpy(values) for name, values in profile.items()},
                times_BL=batched(times_L),
                asked_BL=batched(asked_L),
            )
            return cast(np.ndarray, self.user(item_BLD, history)[0, -1].numpy())
