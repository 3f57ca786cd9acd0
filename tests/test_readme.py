"""What the README tells a new user to type works, on a shop that is not MovieLens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from recsys.recommender import Event, Recommender
from recsys.registry import Registry

README = Path("README.md").read_text(encoding="utf-8")


def own_data_commands() -> list[str]:
    """The commands of the section on bringing one's own data."""
    section = README.split("## Bring your own data")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)[0].strip().splitlines()


def write_shop(folder: Path) -> None:
    """Two aisles of twenty articles; a customer stays in one, and walks along it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["customer,sku,at,action"]
    for customer in range(150):
        aisle, place = "AB"[customer % 2], rng.integers(20)
        for step in range(rng.integers(4, 10)):
            moment = np.datetime64("2026-03-01") + np.timedelta64(int(customer * 300 + step), "m")
            rows.append(f"c-{customer},{aisle}{(place + step) % 20:02},{moment},{'view' if step % 3 else 'buy'}")
    (folder / "log.csv").write_text("\n".join(rows) + "\n")
    articles = ["sku,name,brand,tags,price,added"]
    for aisle, brand in (("A", "Acme"), ("B", "Knit")):
        articles += [
            f"{aisle}{i:02},Article {i} of aisle {aisle},{brand},{aisle};all,{i}.50,2026-01-02" for i in range(20)
        ]
    (folder / "items.csv").write_text("\n".join(articles) + "\n")


def test_bring_your_own_data(tmp_path: Path) -> None:
    write_shop(tmp_path / "shop")
    shutil.copytree("configs", tmp_path / "configs")
    *commands, serve = own_data_commands()
    assert serve == "recsys serve --registry shop/registry"
    for command in commands:
        arguments = command.removeprefix("recsys ").split()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [sys.executable, "-m", "recsys.cli", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    recommender = Recommender(Registry(tmp_path / "shop" / "registry").open_current())
    answer = recommender.recommend(history=[Event("A03", event="view"), Event("A04")], k=5, filter={"price": {"lt": 9}})
    assert [item.item_id[0] for item in answer.items] == ["A"] * 5
    assert answer.items[0].item_id == "A05"
