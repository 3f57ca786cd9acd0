import csv
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from recsys.data.movielens import MovieLens
from recsys.data.prepare import prepare

CONFIGS = Path(__file__).parents[2] / "configs"


def parsed(config):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(prepare)
    return parser.instantiate(parser.parse_args(["--config", str(CONFIGS / config)]))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_example_of_ones_own_files_runs_as_it_stands():
    folder = Path("shop")
    folder.mkdir()
    with open(folder / "log.csv", "w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("customer", "sku", "at", "action", "page"),
                ("anna", "0042", "2026-01-05 10:00:00", "view", "3"),
                ("anna", "0042", "2026-01-05 10:01:00", "buy", "3"),
                ("ben", "0007", "2026-01-04T23:00:00+01:00", "view", "1"),
            ]
        )
    (folder / "items.csv").write_text(
        'sku,name,brand,tags,price,added\n0042,"Lamp, blue",Lux,home;light,19.90,2025-11-01\n0007,Chair,Sit,home,,\n'
    )
    said = parsed("csv-prepare.yaml")
    dataset = prepare(said.tables, Path(said.out), max_rejected=said.max_rejected)
    assert dataset.item_ids.array.to_pylist() == ["0007", "0042"]
    assert dataset.event_names == ["view", "buy"]
    assert dataset.item_features().to_pylist()[1] == {
        "name": "Lamp, blue",
        "brand": "Lux",
        "tags": ["home", "light"],
        "price": 19.9,
        "added": 1_761_955_200_000,
    }


def test_the_movielens_config_finds_the_folder_that_it_names():
    folder = Path("demo") / "ml-1m"
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_text("1::10::5::100\n")
    said = parsed("ml-1m-prepare.yaml")
    assert isinstance(said.tables, MovieLens)


@pytest.mark.parametrize("config", ["csv-prepare.yaml", "ml-1m-prepare.yaml"])
def test_the_first_line_is_the_command(config):
    first = (CONFIGS / config).read_text().splitlines()[0]
    assert first == f"# recsys prepare --config configs/{config}"
