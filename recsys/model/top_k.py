"""Writes every user's top k to Parquet while `recsys predict` runs: a mail campaign is a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytorch_lightning as pl
import torch

from recsys.data.module import HistoryData
from recsys.data.split import everyone
from recsys.ids import IdMap


class TopKWriter(pl.Callback):
    """One row for each user and rank: user_id, rank (from 1), item_id, score. What a user took before is left out.

    Args:
        path: the Parquet file; replaced when the run ends well.
        k: items a user gets.
    """

    def __init__(self, path: str, k: int = 10) -> None:
        if k < 1:
            raise ValueError(f"top_k.k is {k}; ask for at least 1 item")
        self.path = Path(path)
        self.k = k

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._beside = self.path.with_name(f".{self.path.name}.part")
        self._writer: pq.ParquetWriter | None = None
        self._asked = everyone(trainer.datamodule.dataset)  # type: ignore[attr-defined]

    def on_predict_batch_end(
        self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        data: HistoryData = trainer.datamodule  # type: ignore[attr-defined]
        query_Q, query_QD = outputs
        asked = self._asked.take(query_Q.cpu().numpy())
        score_QN = query_QD.float() @ module.item_ND.T
        score_QN[tuple(torch.from_numpy(place).to(score_QN.device) for place in data.seen(asked))] = -torch.inf
        scores, rows = (part.cpu() for part in score_QN.topk(min(self.k, score_QN.shape[1])))
        found = torch.isfinite(scores)
        ranks = torch.arange(1, scores.shape[1] + 1).expand_as(rows)
        users = torch.from_numpy(asked.user)[:, None].expand_as(rows)
        table = pa.table(
            {
                "user_id": _ids(data.dataset.user_ids, users[found]),
                "rank": ranks[found].to(torch.int32).numpy(),
                "item_id": _ids(data.dataset.item_ids, rows[found]),
                "score": scores[found].numpy(),
            }
        )
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._beside, table.schema)
        self._writer.write_table(table)

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._writer is not None:
            self._writer.close()
            self._beside.replace(self.path)
            print(f"the top {self.k} of {len(self._asked):,} users are in {self.path}")


def _ids(ids: IdMap, rows: torch.Tensor) -> pa.Array:
    return ids.array.take(pa.array(rows.numpy()))
