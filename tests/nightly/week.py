"""A small shop, day by day, whose answers are known: everyone takes items in the order of a ring."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recsys.cli import main

RING = 30
DAY = 86_400
START = 1_700_006_400  # midnight
BEFORE = 8  # days in the log before the first night
VISITS, ITEMS = 50, 6  # a day; items a visit
BRANDS = ("Acme", "Knit", "Peak")


class Shop:
    """A folder with a log of a file a day, a catalogue, and a nightly configuration.

    Args:
        folder: where to put it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept = folder.with_name(f"{folder.name} as it was")
        self.work, self.registry = folder / "nights", folder / "registry"
        self.config = folder / "nightly.yaml"
        (folder / "log").mkdir(parents=True)
        for day in range(BEFORE):
            self.day(day)
        self.catalogue()
        self.config.write_text(yaml.safe_dump(self.settings()))

    def settings(self) -> dict[str, Any]:
        """What the configuration says."""
        source = "recsys.data.sources.Csv"
        return {
            "tables": {
                "class_path": "recsys.data.sources.Tables",
                "init_args": {
                    "schema": {
                        "interactions": {"user": "user", "item": "item", "time": "time"},
                        "items": {
                            "id": "item",
                            "features": {"name": {"kind": "text", "show": True}, "brand": "categorical"},
                        },
                    },
                    "interactions": {"class_path": source, "init_args": {"path": str(self.folder / "log")}},
                    "items": {"class_path": source, "init_args": {"path": str(self.folder / "items.csv")}},
                },
            },
            "registry": str(self.registry),
            "work": str(self.work),
            "fit": {
                "trainer": {"max_epochs": 12, "check_val_every_n_epoch": 2, "precision": "32-true"},
                "data": {
                    "split": {
                        "class_path": "recsys.data.split.TimeSplit",
                        "init_args": {"validation": "1d", "test": "1d"},
                    },
                    "batch_positions": 256,
                },
                "model": {
                    "architecture": {"dimension": 16, "max_length": 8, "blocks": 1, "heads": 2, "dropout": 0.1},
                    "learning_rate": 0.02,
                    "warmup_steps": 5,
                },
            },
            "warm_start": {"fit": {"trainer": {"max_epochs": 2}, "model": {"learning_rate": 0.005}}},
        }

    def day(self, day: int, poison: str | None = None) -> None:
        """Writes one day's log: visits of items in the order of the ring, from anywhere on it."""
        rng = np.random.default_rng(day)
        rows = []
        for visit in range(VISITS):
            user, first = int(rng.integers(200)), int(rng.integers(RING))
            at = START + DAY * day + int(rng.integers(DAY - 3600))
            for step in range(ITEMS):
                rows.append([f"u{user}", (first + step) % RING, str(at + 60 * step)])
            if visit < 2:  # something new every day: it follows the ring's last item
                rows.append([f"u{user}", f"new{day}", str(at + 60 * ITEMS)])
        items = [row[1] for row in rows]
        match poison:
            case "half the rows broken":
                for row in rows[::2]:
                    row[2] = "yesterday"
            case "labels shuffled":
                rng.shuffle(items)
            case "one category gone":
                keep = [not isinstance(item, int) or item % len(BRANDS) != 0 for item in items]
                rows = [row for row, kept in zip(rows, keep, strict=True) if kept]
                items = [row[1] for row in rows]
        lines = [
            f"{row[0]},{item if isinstance(item, str) else f'i{item}'},{row[2]}"
            for row, item in zip(rows, items, strict=True)
        ]
        (self.folder / "log" / f"{day:03}.csv").write_text("user,item,time\n" + "\n".join(lines) + "\n")

    def catalogue(self) -> None:
        """Writes the table of items."""
        rows = [f"i{item},Item number {item},{BRANDS[item % len(BRANDS)]}" for item in range(RING)]
        rows += [f"new{day},New on day {day},{BRANDS[day % len(BRANDS)]}" for day in range(40)]
        (self.folder / "items.csv").write_text("item,name,brand\n" + "\n".join(rows) + "\n")

    def run(self, *options: str) -> tuple[int, str]:
        """Runs the job in this process: its exit status, and how it says it ended; `said` has its last line."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.status = main(["nightly", "--config", str(self.config), *options])
        self.said = json.loads(printed.getvalue().splitlines()[-1])
        return self.status, self.said["outcome"]

    def change(self, **warm_start: Any) -> None:
        """Says something else of warm starts from now on."""
        said = self.settings()
        said["warm_start"] |= warm_start
        self.config.write_text(yaml.safe_dump(said))

    def keep(self) -> None:
        """Remembers all files as they are now, and what the last night said."""
        shutil.copytree(self.folder, self._kept)
        self._kept_said = self.status, self.said

    def restore(self) -> None:
        """Puts back what was kept, under the same path: a night remembers where its source lies."""
        shutil.rmtree(self.folder)
        shutil.copytree(self._kept, self.folder)
        self.status, self.said = self._kept_said
