"""The live bundle as a scorer: what it would answer tonight's questions, knowing only the items that it knows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from recsys.bundle import Bundle
from recsys.data.batches import query_loader
from recsys.data.dataset import Dataset
from recsys.data.split import Queries
from recsys.data.values import FEATURE_TYPES
from recsys.data.vocabulary import FeatureEncoder
from recsys.model.embed import Catalogue


class BundleScorer:
    """Scores all items of a dataset with a bundle made from another one, matched by id.

    An item that the bundle does not know cannot be recommended: −inf. In a history it stands as the bundle's own item
    tower sees it from its features.

    Args:
        bundle: what to measure.
        dataset: whose queries are asked.
    """

    def __init__(self, bundle: Bundle, dataset: Dataset) -> None:
        self._dataset = dataset
        self._towers = bundle.towers
        rows = bundle.item_ids.rows(dataset.item_ids.array)
        self._known = rows >= 0
        codes = bundle.item_encoder.encode(_declared(bundle.item_encoder, dataset.item_features()))
        self._item_ND = Catalogue(codes, np.zeros(len(rows), dtype=np.bool_)).embed(bundle.towers)
        self._item_ND[self._known] = torch.from_numpy(bundle.item_vectors[rows[self._known]])
        self._profiles = bundle.user_encoder.encode(_declared(bundle.user_encoder, dataset.user_features()))
        # Codes of events are numbered by appearance, so that another dataset's may mean others; an unknown one is 0.
        codes_of = {name: code for code, name in enumerate(bundle.manifest.content["event_names"])}
        self._event_code = torch.tensor([codes_of.get(name, 0) for name in dataset.event_names])

    def scores(self, queries: Queries) -> np.ndarray:
        """As `recsys.evaluate.baselines.Scorer.scores`."""
        length = self._towers.architecture.max_length
        vectors = torch.zeros(len(queries), self._item_ND.shape[1])
        with torch.inference_mode():
            for batch in query_loader(self._dataset, queries, self._profiles, length):
                history = batch.history
                if history.events_BL is not None:
                    history = replace(history, events_BL=self._event_code[history.events_BL])
                user_BLD = self._towers.user(F.embedding(history.items_BL, self._item_ND), history)
                vectors[batch.query_Q] = user_BLD.flatten(0, 1)[batch.position_Q]
            scores: np.ndarray = (vectors @ self._item_ND.T).numpy()
        scores[:, ~self._known] = -np.inf
        return scores


def _declared(encoder: FeatureEncoder, table: pa.Table) -> pa.Table:
    """The table with every feature that the encoder reads: null throughout where the dataset no longer has it."""
    for feature in encoder.features:
        if feature.name not in table.column_names:
            table = table.append_column(feature.name, pa.nulls(table.num_rows, FEATURE_TYPES[feature.kind]))
    return table
