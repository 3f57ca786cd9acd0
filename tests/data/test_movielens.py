import os
from pathlib import Path

import pytest

from recsys.data.movielens import MovieLens
from recsys.data.prepare import prepare
from recsys.data.sources import SourceError

DATA = os.environ.get("RECSYS_DATA_DIR")


def write_100k(folder):
    (folder / "u.data").write_text("1\t10\t5\t100\n2\t20\t3\t50\n")
    no_genres = ["0"] * 19
    war, odd = [*no_genres], [*no_genres]
    war[17] = war[1] = "1"
    odd[0] = "1"
    lines = ["10|Alien Été (1979)|01-Jan-1979||url|" + "|".join(war), "20|unknown||||" + "|".join(odd)]
    (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    (folder / "u.user").write_text("1|24|M|writer|85711\n2|53|F|other|94043\n")


def write_1m(folder):
    (folder / "ratings.dat").write_text("1::10::5::100\n2::20::3::50\n")
    films = '10::Alien Été (1979)::Action|War\n20::"unknown"::unknown\n'
    (folder / "movies.dat").write_text(films, encoding="latin-1")
    (folder / "users.dat").write_text("1::M::24::writer::85711\n2::F::53::other::94043\n")


def write_latest(folder):
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,5.0,100\n2,20,3.0,50\n")
    (folder / "movies.csv").write_text("movieId,title,genres\n10,Alien Été (1979),Action|War\n20,unknown,unknown\n")
    (folder / "links.csv").write_text("movieId,imdbId\n")


@pytest.mark.parametrize("write", [write_100k, write_1m, write_latest])
def test_every_layout_becomes_the_same_dataset(tmp_path, write):
    write(tmp_path)
    dataset = prepare(MovieLens(str(tmp_path)), tmp_path / "out")
    assert dataset.user_ids.array.to_pylist() == [2, 1]
    assert dataset.item_ids.array.to_pylist() == [20, 10]
    assert dataset.times is not None
    assert dataset.weights is not None
    assert dataset.times.tolist() == [50_000, 100_000]
    assert dataset.weights.tolist() == [3.0, 5.0]
    unknown, alien = dataset.item_features().to_pylist()
    assert alien == {"title": "Alien Été (1979)", "genres": ["Action", "War"], "year": 1979.0}
    assert unknown["title"].strip('"') == "unknown"
    assert unknown["year"] is None
    if write is not write_latest:
        assert dataset.user_features().to_pylist() == [
            {"gender": "F", "age": "53", "occupation": "other"},
            {"gender": "M", "age": "24", "occupation": "writer"},
        ]


def test_a_folder_without_a_layout_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"holds no MovieLens layout: there is no ratings\.dat"):
        MovieLens(str(tmp_path))


@pytest.mark.skipif(
    DATA is None, reason="set RECSYS_DATA_DIR to a folder that holds ml-1m, unpacked from grouplens.org"
)
def test_movielens_1m_is_counted_as_published(tmp_path):
    dataset = prepare(MovieLens(str(Path(str(DATA)) / "ml-1m")), tmp_path / "out", max_rejected=0)
    assert (len(dataset), dataset.num_users, dataset.num_items) == (1_000_209, 6_040, 3_883)
    said = dataset.manifest.content["counts"]
    assert said["rejected"] == said["values_not_read"] == {}
    assert said["items_without_interactions"] == 3_883 - 3_706
    features = dataset.item_features()
    assert [features.column(name).null_count for name in ("title", "genres", "year")] == [0, 0, 0]
    titles = features.column("title").to_pylist()
    assert titles[dataset.item_ids.row(73) or 0] == "Misérables, Les (1995)"
