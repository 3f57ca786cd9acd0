"""Duplicates, clusters, outliers, exposure, attributes and maps, on spaces whose answers are known by hand."""

import builtins

import numpy as np
import pandas as pd
import pytest

from recsys.explore.attributes import guess, guessable
from recsys.explore.clusters import clusters, names_of
from recsys.explore.duplicates import duplicates
from recsys.explore.exposure import exposure, gini
from recsys.explore.outliers import outliers
from recsys.explore.plane import plane
from recsys.explore.space import K, Space


def crowd(items=400, dimension=8, seed=0):
    return np.random.default_rng(seed).normal(size=(items, dimension))


def test_copies_of_other_lengths_are_one_group_however_many_there_are():
    vectors = crowd()
    vectors[5] = 3 * vectors[9]
    many = slice(100, 100 + 3 * K)  # more than an item has neighbours
    vectors[many] = vectors[100] * np.linspace(0.5, 2, 3 * K)[:, None]
    found = duplicates(Space.made(vectors))
    assert found.groups.groupby("group").size().tolist() == [3 * K, 2]
    assert found.groups[found.groups["group"] == 1]["title"].tolist() == ["item 5", "item 9"]
    assert found.group_of[[5, 9]].tolist() == [1, 1]
    assert (found.group_of >= 0).sum() == 3 * K + 2
    assert found.pairs["cosine"].min() > 0.999


def test_a_cosine_that_was_given_is_the_threshold_of_all():
    angles = np.deg2rad([0, 10, 90, 91, 200])
    space = Space.made(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    pairs = duplicates(space, cosine=np.cos(np.deg2rad(5))).pairs
    assert pairs[["item_id", "other_id"]].to_numpy().tolist() == [[2, 3]]
    pairs = duplicates(space, cosine=np.cos(np.deg2rad(11))).pairs
    assert pairs[["item_id", "other_id"]].to_numpy().tolist() == [[2, 3], [0, 1]]  # nearest first
    with pytest.raises(ValueError, match=r"a cosine of 1\.5 cannot be"):
        duplicates(space, cosine=1.5)


def clustered(tight=0.1):
    """Sixty items in three clusters, whose titles and genres say so, in uneven numbers."""
    random = np.random.default_rng(0)
    of = np.repeat([0, 1, 2], [30, 20, 10])
    vectors = np.eye(3, 8)[of] + tight * random.normal(size=(60, 8))
    words = [["Space Ship", "Star Wars", "Star Trek"], ["Love Story", "Love Actually"], ["Scary House"]]
    titles = np.array([f"{words[one][at % len(words[one])]} {at}" for at, one in enumerate(of)], dtype=object)
    genres = np.array([["Sci-Fi", "Romance", "Horror"][one] for one in of], dtype=object)
    genres[[3, 33]] = None
    known = {"titles": titles, "attributes": pd.DataFrame({"genre": genres}), "kinds": {"genre": "categorical"}}
    return Space.made(vectors, **known), of


def test_clusters_are_named_after_what_sets_their_items_apart():
    space, of = clustered()
    found = clusters(space)
    np.testing.assert_array_equal(found.of, of)
    assert found.table["size"].tolist() == [30, 20, 10]
    said = [set(name.split(" · ")) for name in found.table["name"]]
    for words, expected in zip(
        said, ({"Sci-Fi", "star"}, {"love", "Romance"}, {"Horror", "scary", "house"}), strict=True
    ):
        assert expected <= words
    assert found.items.loc[0, "name"] == found.table["name"][0]
    assert found.modularity > 0.4


def test_a_higher_resolution_gives_more_clusters():
    space = Space.made(crowd(600, 4))
    numbers = [len(clusters(space, resolution=resolution).table) for resolution in (0.2, 1, 5)]
    assert numbers[0] < numbers[1] < numbers[2]
    with pytest.raises(ValueError, match="a resolution of 0 gives no clusters"):
        clusters(space, resolution=0)


def test_clusters_that_would_be_called_alike_go_by_their_most_central_item():
    space, of = clustered()
    names = names_of(space, np.where(of == 0, np.arange(60) % 2, of + 1), ["a", "b", "c", "d"])
    assert len(set(names)) == 4
    nameless = Space.made(np.ones((4, 2)), titles=np.array(["", "", "", ""], dtype=object))
    assert names_of(nameless, np.array([0, 0, 1, 1]), ["", ""]) == ["cluster 0", "cluster 1"]


@pytest.mark.parametrize(
    ("module", "use"), [("sknetwork", clusters), ("umap", lambda space: plane(space, method="umap"))]
)
def test_what_is_not_installed_names_its_extra(monkeypatch, module, use):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'recsys\[explore\]'"):
        use(Space.made(crowd(20)))


def test_an_item_away_from_all_is_an_outlier_and_nobodys_neighbour():
    vectors = np.abs(crowd(300, 6))
    vectors[17] = [-1, -1, -1, -1, -1, -1]
    history = np.array([3, 3, 4])
    found = outliers(Space.made(vectors, history=history, user_offsets=np.array([0, 3])))
    assert found.far["item_id"].iloc[0] == 17
    assert found.factor[17] > 2
    assert Space.made(vectors).occurrences[17] == 0
    assert 17 in found.orphans["item_id"].to_numpy()
    assert found.far["taken"].iloc[0] == 0
    told = outliers(Space.made(vectors), clusters(Space.made(vectors))).far
    assert told["cluster_cosine"].iloc[0] < 0.5


def test_outlier_factors_have_a_twin_by_definition():
    space = Space.made(crowd(60, 3))
    near, apart = space.neighbours.rows, space.neighbours.distances.astype(float)
    reach = [[max(apart[o, -1], apart[p, at]) for at, o in enumerate(near[p])] for p in range(60)]
    density = 1 / np.mean(reach, axis=1)
    np.testing.assert_allclose(outliers(space).factor, [density[near[p]].mean() / density[p] for p in range(60)])


def test_exposure_counts_neighbours_and_lists():
    vectors = np.array([[1.0, 0], [0.9, 0.1], [0, 0], [-1, 0.1]])
    users = np.array([[1.0, 0], [1.0, 0.2]], dtype=np.float32)
    known = {"user_vectors": users, "user_offsets": np.array([0, 1, 2]), "history": np.array([0, 0]), "user_ids": users}
    space = Space.made(vectors, **known)
    found = exposure(space)
    assert found.users == 2
    assert found.items["taken"].tolist() == [2, 0, 0, 0]
    assert found.items["recommended"].tolist() == [0, 2, 2, 2]  # all but what both have seen
    assert found.never["item_id"].tolist() == [0]
    assert found.dead["item_id"].tolist() == [2]
    assert found.coverage == pytest.approx(0.75)
    assert found.items["neighbour_of"].tolist() == np.bincount(space.neighbours.rows.ravel(), minlength=4).tolist()


def test_gini_of_equal_counts_is_0_and_of_one_that_has_all_near_1():
    assert gini(np.full(10, 7)) == pytest.approx(0)
    assert gini(np.array([0] * 99 + [5])) == pytest.approx(0.99)
    assert gini(np.array([1, 3])) == pytest.approx(0.25)  # |1 − 3| / 2 / 2 pairs of 4, over the mean
    assert gini(np.zeros(3)) == 0


def test_missing_values_are_guessed_and_wrong_ones_suspected():
    space, _ = clustered()
    space.attributes.loc[40, "genre"] = "Horror"  # among the romances
    assert guessable(space) == ["genre"]
    found = guess(space, "genre")
    assert dict(zip(found.missing["item_id"], found.missing["guess"], strict=True)) == {3: "Sci-Fi", 33: "Romance"}
    assert found.suspects[["item_id", "has", "guess"]].to_numpy().tolist() == [[40, "Horror", "Romance"]]
    assert found.accuracy == pytest.approx(57 / 58)  # all but the wrong one
    assert found.majority == pytest.approx(29 / 58)
    assert not found.hidden
    with pytest.raises(ValueError, match="'place' is no attribute of words; choose from genre"):
        guess(space, "place")


def test_a_bundles_own_items_are_embedded_without_what_is_guessed(toy_bundle):
    found = guess(Space.of(toy_bundle), "tags")
    assert found.hidden
    assert found.held_out == 13
    assert found.accuracy == 1.0  # every item is tagged "ring", and so are its neighbours


def test_the_map_of_a_plane_is_the_plane():
    flat = np.random.default_rng(0).normal(size=(200, 2))
    vectors = np.concatenate([np.full((200, 1), 30.0), flat], axis=1)  # nearly of one direction
    places = plane(Space.made(vectors))
    mapped = np.linalg.norm(places[["x", "y"]].to_numpy()[:50, None] - places[["x", "y"]].to_numpy()[None, :50], axis=2)
    true = np.linalg.norm(flat[:50, None] - flat[None, :50], axis=2) / 30
    np.testing.assert_allclose(mapped, true, atol=0.02)
    space, of = clustered()
    assert plane(space, clusters(space))["cluster"].tolist() == of.tolist()
    with pytest.raises(ValueError, match="there is no map 'tsne'"):
        plane(space, method="tsne")  # type: ignore[arg-type]


def test_the_map_of_umap_keeps_who_lies_near_whom_and_is_the_same_every_time():
    pytest.importorskip("umap", reason="umap-learn, of the extra explore, is not installed")
    space, of = clustered()
    places = plane(space, method="umap")
    at = places[["x", "y"]].to_numpy()
    apart = np.linalg.norm(at[:, None] - at[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (of[apart.argmin(axis=1)] == of).all()
    pd.testing.assert_frame_equal(plane(space, method="umap"), places)
    assert not plane(space, method="umap", seed=1).equals(places)
