"""A Recommender of known answers, so that the HTTP layer is tested without a trained bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from recsys.ids import Id, IdMap
from recsys.recommender import Answer, Event, Recommendation, RequestError, UnknownItem


class StandIn:
    """The best items of a user are those whose row is nearest to the user's; ids are `i/0`, `i 1`, `ï2`, …"""

    def __init__(self, num_items: int = 50, num_users: int = 20, dim: int = 16) -> None:
        rng = np.random.default_rng(7)
        self.bundle = SimpleNamespace(id="toy-1", about={"items": num_items})
        self.items = IdMap.of([("i/{}", "i {}", "ï{}")[row % 3].format(row) for row in range(num_items)])
        self.users = IdMap.of([f"u{row}" for row in range(num_users)])
        self.vectors = rng.normal(size=(num_items, dim)).astype(np.float32)
        self.queries = rng.normal(size=(num_users, dim)).astype(np.float32)
        self.calls: list[dict[str, Any]] = []

    def warm(self) -> None:
        pass

    def recommend(
        self,
        *,
        user_id: Id | None = None,
        history: Sequence[Event] = (),
        k: int = 10,
        exclude: Sequence[Id] = (),
        include_seen: bool = False,
        filter: Mapping[str, Any] | None = None,
    ) -> Answer:
        self.calls.append(
            {
                "user_id": user_id,
                "history": list(history),
                "k": k,
                "exclude": list(exclude),
                "include_seen": include_seen,
            }
        )
        if filter:
            raise RequestError(f"cannot filter by {next(iter(filter))!r}; valid: none")
        if user_id == "boom":
            raise RuntimeError("secret inside")
        rows = self.items.rows([event.item_id for event in history])
        unknown = [event.item_id for event, row in zip(history, rows, strict=True) if row < 0]
        user = None if user_id is None else self.users.row(user_id)
        if (rows >= 0).any():
            return self._best(self.vectors[rows[rows >= 0]].mean(0), k, "history", exclude, unknown)
        if user is None:
            return self._best(np.ones(self.vectors.shape[1], np.float32), k, "popular", exclude, unknown)
        return self._best(self.queries[user], k, "personalised", exclude, unknown)

    def similar(self, item_id: Id, *, k: int = 10, filter: Mapping[str, Any] | None = None) -> Answer:
        row = self.items.row(item_id)
        if row is None:
            raise UnknownItem(f"item {item_id!r} is not in bundle {self.bundle.id}; check the id")
        return self._best(self.vectors[row], k, "similar", [item_id], [])

    def _best(self, query: np.ndarray, k: int, strategy: Any, exclude: Sequence[Id], unknown: list[Id]) -> Answer:
        scores = self.vectors @ query
        order = np.argsort(-scores)
        left_out = set(self.items.rows(list(exclude)))
        order = np.array([row for row in order if row not in left_out][:k], dtype=np.int64)
        found = zip(self.items.ids(order), scores[order].tolist(), strict=True)
        items = [
            Recommendation(item_id, score, rank, {"title": f"Item {item_id}", "genres": ["Drama", "War"]})
            for rank, (item_id, score) in enumerate(found, start=1)
        ]
        return Answer(self.bundle.id, strategy, items, unknown)
