"""Spaces compared where the answer is known by hand, and a bundle turned onto another without a score changing."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.artifacts import ArtifactError, Manifest, read_manifest, sha256_of
from recsys.bundle import FORMAT_VERSION, KIND, Bundle
from recsys.bundles import main as bundles
from recsys.ids import IdMap
from recsys.index.build import Hnsw, Ivf, IvfPq
from recsys.recommender import Event, Recommender
from recsys.registry import Registry
from recsys.seal import seal
from recsys.spaces import Comparison, align, compare, compare_vectors, rotation_onto

ITEMS, USERS, DIMENSION = 400, 60, 16
RANDOM = np.random.default_rng(0)
A = RANDOM.standard_normal((ITEMS, DIMENSION)).astype(np.float32)
A_USERS = RANDOM.standard_normal((USERS, DIMENSION)).astype(np.float32)
R = np.linalg.qr(RANDOM.standard_normal((DIMENSION, DIMENSION)))[0]


def compared(items: np.ndarray, users: np.ndarray, blocks: tuple[int, ...] = (DIMENSION,)) -> Comparison:
    return compare_vectors(A, items.astype(np.float32), A_USERS, users.astype(np.float32), blocks)


def test_a_space_is_itself() -> None:
    same = compared(A, A_USERS)
    assert np.allclose(same.rotation, np.eye(DIMENSION), atol=1e-6)
    for agreement in (same.before, same.after):
        assert agreement.cosine == pytest.approx(1, abs=1e-6)
        assert agreement.residual == pytest.approx(0, abs=1e-6)
    for kept, queries in ((same.items, ITEMS), (same.users, USERS)):
        assert (kept.raw, kept.rotated, kept.ceiling, kept.queries) == (1, 1, 1, queries)
    assert (same.shared_items, same.shared_users, same.k) == (ITEMS, USERS, 10)
    assert same.chance == pytest.approx(10 / 399)
    assert same.meaning == "the same"
    assert same.verdict.startswith("Old vectors still mean the same: of the 10 items nearest to each, 100.0% are found")


def test_a_rotation_is_found_and_undone() -> None:
    turned = compared(A @ R, A_USERS @ R)
    assert np.allclose(turned.rotation, R.T, atol=1e-5)
    assert abs(turned.before.cosine) < 0.3
    assert turned.before.residual == pytest.approx(np.linalg.norm(A - A @ R) / np.linalg.norm(A), rel=1e-5)
    assert turned.after.cosine == pytest.approx(1, abs=1e-5)
    assert turned.after.residual == pytest.approx(0, abs=1e-5)
    for kept in (turned.items, turned.users):
        assert kept.raw < 0.2
        assert min(kept.rotated, kept.ceiling) >= 0.999
    assert turned.meaning == "the same once rotated"
    assert turned.verdict.startswith("Old vectors need the rotation: ")


def test_items_that_changed_places_agree_on_nothing() -> None:
    permuted = compared(A[RANDOM.permutation(ITEMS)], A_USERS)
    assert max(permuted.items.raw, permuted.items.rotated, permuted.items.ceiling) < 0.1
    assert abs(permuted.before.cosine) < 0.1
    assert permuted.meaning == "nothing"
    assert permuted.verdict.startswith("Old vectors mean nothing here; embed them again: ")


def test_independent_spaces_agree_on_nothing() -> None:
    other = compared(RANDOM.standard_normal(A.shape), RANDOM.standard_normal(A_USERS.shape))
    assert other.before.residual == pytest.approx(2**0.5, abs=0.05)
    assert other.after.residual > 1
    assert other.meaning == "nothing"


def test_a_space_of_another_scale_ranks_the_same() -> None:
    doubled = compared(2 * A, 2 * A_USERS)
    assert doubled.before.cosine == pytest.approx(1, abs=1e-6)
    assert doubled.before.residual == pytest.approx(1, abs=1e-6)
    assert np.allclose(doubled.rotation, np.eye(DIMENSION), atol=1e-6)
    assert (doubled.items.raw, doubled.users.raw) == (1, 1)
    assert doubled.meaning == "the same"


def test_a_little_noise_keeps_the_meaning_and_shows_in_the_ceiling() -> None:
    noisy = compared(A + 0.2 * RANDOM.standard_normal(A.shape), A_USERS)
    assert 0.5 < noisy.items.ceiling < 0.9
    assert noisy.items.raw > noisy.items.ceiling  # old vectors have one noise less on their way
    assert noisy.meaning == "the same"


def test_what_one_query_keeps_is_counted_by_hand() -> None:
    """Four items on a line: 3 is nearest to every other, and −1 to none; turned around, all is upside down."""
    line = np.array([[3.0], [2.0], [1.0], [-1.0]], dtype=np.float32)
    nobody = np.empty((0, 1), dtype=np.float32)
    turned = compare_vectors(line, -line, nobody, nobody, (1,))
    assert (turned.k, turned.users) == (1, None)
    assert turned.rotation.tolist() == [[-1.0]]
    assert turned.items.raw == 0  # the best of 3, 2 and 1 becomes −1, and that of −1 (which was 1) becomes 3
    assert (turned.items.rotated, turned.items.ceiling) == (1, 1)


def test_few_items_are_said_to_be_few() -> None:
    few = compare_vectors(A[:20], A[:20] @ R.astype(np.float32), A_USERS, A_USERS, (DIMENSION,))
    assert few.k == 5
    assert few.verdict.endswith("; 20 shared items are few to know 16 dimensions by.")
    assert "few to know" not in compared(A, A_USERS).verdict


def test_the_best_rotation_is_the_best() -> None:
    B = RANDOM.standard_normal(A.shape) + A @ R
    best = rotation_onto(A, B, [DIMENSION])
    assert np.allclose(best @ best.T, np.eye(DIMENSION), atol=1e-9)
    for _ in range(50):
        nudge = np.linalg.qr(np.eye(DIMENSION) + 0.02 * RANDOM.standard_normal(best.shape))[0]
        nudge *= np.sign(np.diag(nudge))
        assert np.linalg.norm(A - B @ best @ nudge) > np.linalg.norm(A - B @ best)


def test_directions_in_which_nothing_lies_stay() -> None:
    flat = A.copy()
    flat[:, 10:] = 0
    turn = np.eye(DIMENSION)
    turn[:10, :10] = np.linalg.qr(RANDOM.standard_normal((10, 10)))[0]
    assert np.allclose(rotation_onto(flat, flat @ turn.T, [DIMENSION]), turn, atol=1e-4)
    assert np.allclose(rotation_onto(0 * A, 0 * A, [DIMENSION]), np.eye(DIMENSION))


def test_a_rotation_in_blocks_leaves_every_prefix_its_scores() -> None:
    turned = compared(A @ R, A_USERS @ R, (4, 8, DIMENSION))
    assert np.allclose(turned.rotation @ turned.rotation.T, np.eye(DIMENSION), atol=1e-9)
    assert (turned.rotation[:8, 8:] == 0).all()
    assert (turned.rotation[:4, 4:] == 0).all()
    assert (turned.rotation[4:8, :4] == 0).all()
    for size in (4, 8, DIMENSION):
        before, after = (vectors[:, :size] for vectors in (A, A @ turned.rotation))
        assert np.allclose(before @ before.T, after @ after.T, atol=1e-4)


def test_a_bundle_compared_with_itself(toy_bundle: Bundle) -> None:
    same = compare(toy_bundle, toy_bundle)
    assert (same.shared_items, same.shared_users, same.dimension) == (13, 80, 16)
    assert (same.meaning, same.items.raw, same.users.raw) == ("the same", 1, 1)
    assert same.before.residual == 0
    assert json.loads(json.dumps(same.figures()))["blocks"] == [16]


def test_items_are_matched_by_id_not_by_row(toy_bundle: Bundle) -> None:
    order, ids = np.arange(13)[::-1], toy_bundle.item_ids
    swapped = replace(toy_bundle, item_ids=IdMap(ids.array.take(order)), item_vectors=toy_bundle.item_vectors[order])
    assert compare(toy_bundle, swapped).before.residual == 0
    few = toy_bundle.item_vectors[ids.rows(["i3", "i0", "i5"])]
    fewer = replace(toy_bundle, item_ids=IdMap.of(["i3", "no such", "i5"]), item_vectors=few)
    assert compare(toy_bundle, fewer).shared_items == 2
    assert compare(fewer, toy_bundle).before.residual == 0


@pytest.mark.parametrize("unit", [False, True])
def test_other_dimensions_are_compared_by_the_prefix_that_both_may_be_cut_to(cuttable: Path, unit: bool) -> None:
    long = Bundle.open(cuttable)
    long = replace(long, manifest=replace(long.manifest, content=long.manifest.content | {"unit": unit}))
    content = long.manifest.content | {"dimension": 8, "dimensions": [8, 4]}
    items, users = long.item_vectors[:, :8], long.user_vectors[:, :8]
    if unit:
        items, users = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (items, users))
    manifest = replace(long.manifest, content=content)
    short = replace(long, manifest=manifest, item_vectors=items, user_vectors=users)
    compared = compare(long, short)
    assert (compared.dimension, compared.blocks) == (8, (4, 8))
    assert compared.before.residual == pytest.approx(0, abs=1e-6)
    assert compared.items.raw == 1


def test_bundles_of_other_things_are_refused(toy_bundle: Bundle, shop_bundle: Bundle) -> None:
    assert shop_bundle.manifest.content["dimension"] == 8
    with pytest.raises(ArtifactError, match=r"may be cut to \[16\] dimensions and .* to \[8\]: none is in both"):
        compare(toy_bundle, shop_bundle)


def test_bundles_without_a_common_item_are_refused(toy_bundle: Bundle) -> None:
    for ids in ([f"x{i}" for i in range(13)], list(range(13))):
        strange = replace(toy_bundle, item_ids=IdMap.of(ids))
        with pytest.raises(ArtifactError, match="share 0 items; their spaces cannot be compared"):
            compare(toy_bundle, strange)


@pytest.fixture(scope="module")
def cuttable(toy, tmp_path_factory) -> Path:
    """The toy's bundle, as if its loss had trained prefixes."""
    folder = tmp_path_factory.mktemp("cuttable")
    said = torch.load(toy.checkpoint, weights_only=True)
    torch.save({**said, "dimensions": [16, 8, 4]}, folder / "cut.ckpt")
    evaluation = json.loads(toy.evaluation.read_text()) | {"checkpoint": sha256_of(folder / "cut.ckpt")}
    seal(folder / "cut.ckpt", toy.dataset, folder / "bundle", evaluation=evaluation)
    return folder / "bundle"


@pytest.fixture(scope="module")
def aligned(cuttable: Path, stranger: Path, tmp_path_factory) -> Bundle:
    """That bundle in the stranger's space."""
    out = tmp_path_factory.mktemp("aligned") / "bundle"
    align(cuttable, stranger, out)
    return Bundle.open(out)


@pytest.fixture(scope="module")
def turned_toy(toy_bundle: Bundle, stranger: Path, tmp_path_factory) -> Bundle:
    """The toy's in the stranger's space, turned in all dimensions at once."""
    out = tmp_path_factory.mktemp("turned") / "bundle"
    align(toy_bundle.path, stranger, out)
    return Bundle.open(out)


def answers(bundle: Bundle) -> list[list[tuple[object, float]]]:
    """What a bundle says to known users, to histories, and of items."""
    asked = Recommender(bundle)
    said = [asked.recommend(user_id=f"u{user}", k=5) for user in range(0, 80, 7)]
    said += [asked.recommend(history=[Event(f"i{item}"), Event(f"i{(item + 1) % 12}")], k=5) for item in range(12)]
    said += [asked.recommend(user_id="u3", history=[Event("i9", 1_700_100_000_000)], k=5)]
    said += [asked.similar(f"i{item}", k=5) for item in range(12)]
    return [[(item.item_id, item.score) for item in answer.items] for answer in said]


@pytest.mark.parametrize("which", ["aligned", "turned_toy"])
def test_an_aligned_bundle_answers_as_before(request, which, toy_bundle: Bundle) -> None:
    bundle = request.getfixturevalue(which)
    assert not np.allclose(bundle.item_vectors, toy_bundle.item_vectors, atol=0.1)
    for before, after in zip(answers(toy_bundle), answers(bundle), strict=True):
        assert [item for item, _ in before] == [item for item, _ in after]
        assert [score for _, score in before] == pytest.approx([score for _, score in after], abs=1e-4)


def test_every_prefix_keeps_its_scores(aligned: Bundle, toy_bundle: Bundle) -> None:
    assert aligned.manifest.content["dimensions"] == [16, 8, 4]
    assert aligned.manifest.content["aligned_to"]["blocks"] == [4, 8, 16]
    for size in (4, 8, 16):
        before, after = (
            bundle.user_vectors[:, :size] @ bundle.item_vectors[:, :size].T for bundle in (toy_bundle, aligned)
        )
        np.testing.assert_allclose(before, after, atol=1e-4)


def test_an_aligned_bundle_says_to_what_and_what_is_kept(aligned: Bundle, stranger: Path, cuttable: Path) -> None:
    live, candidate = Bundle.open(stranger), Bundle.open(cuttable)
    said = aligned.manifest.content["aligned_to"]
    assert (said["bundle"], said["digest"]) == (live.id, live.manifest.digest)
    assert said["from"] == candidate.manifest.digest
    expected, now = compare(live, candidate), compare(live, aligned)
    assert said["items"]["raw"] == expected.items.raw
    assert said["users"]["rotated"] == expected.users.rotated
    assert now.before.residual == pytest.approx(expected.after.residual, abs=1e-5)
    assert now.before.residual < expected.before.residual
    assert now.users.raw == pytest.approx(expected.users.rotated, abs=0.02)  # float error decides between ties


def test_all_else_is_carried_over(aligned: Bundle, cuttable: Path) -> None:
    candidate = Bundle.open(cuttable)
    assert candidate.manifest.content["evaluation"] is not None
    for key, value in candidate.manifest.content.items():
        if key != "index":
            assert aligned.manifest.content[key] == value
    assert aligned.manifest.content["index"]["kind"] == "flat"
    assert aligned.manifest.content["index"]["recall@10"] == 1
    assert set(aligned.manifest.files) == set(candidate.manifest.files)
    changed = {name for name, said in candidate.manifest.files.items() if aligned.manifest.files[name] != said}
    assert changed == {
        "item_tower.safetensors", "user_tower.safetensors", "towers.json", "item_vectors.npy", "user_vectors.npy",
        "index.faiss",
    }  # fmt: skip


def test_aligning_again_gives_the_same_bundle(aligned: Bundle, cuttable: Path, stranger: Path, tmp_path: Path) -> None:
    assert align(cuttable, stranger, tmp_path / "again").digest == aligned.manifest.digest


def test_turned_away_and_back_it_is_where_it_was(turned_toy: Bundle, toy_bundle: Bundle, tmp_path: Path) -> None:
    away = compare(toy_bundle, turned_toy)
    assert away.before.residual > 0.3
    assert away.after.residual < 1e-5
    align(turned_toy.path, toy_bundle.path, tmp_path / "back")
    back = Bundle.open(tmp_path / "back")
    np.testing.assert_allclose(back.item_vectors, toy_bundle.item_vectors, atol=1e-4)
    np.testing.assert_allclose(back.user_vectors, toy_bundle.user_vectors, atol=1e-4)
    np.testing.assert_allclose(back.towers.item.rotation, np.eye(16), atol=1e-5)
    assert back.manifest.content["aligned_to"]["bundle"] == toy_bundle.id


def test_unit_vectors_stay_unit(shop_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((8, 8)))[0]
    monkeypatch.setattr("recsys.spaces.rotation_onto", lambda old, new, blocks: turn)
    align(shop_bundle.path, shop_bundle.path, tmp_path / "out")
    out = Bundle.open(tmp_path / "out")
    np.testing.assert_allclose(out.item_vectors, shop_bundle.item_vectors @ turn, atol=1e-6)
    np.testing.assert_allclose(out.embed_user(0), shop_bundle.embed_user(0) @ turn, atol=1e-5)
    assert np.allclose(np.linalg.norm(out.item_vectors, axis=1), 1, atol=1e-6)


def test_towers_that_were_never_turned_say_nothing_of_it(toy_bundle: Bundle, turned_toy: Bundle) -> None:
    assert "rotated" not in toy_bundle.towers.config()
    assert "rotation" not in toy_bundle.towers.item.state_dict()
    assert turned_toy.towers.config()["rotated"] is True
    assert "rotation" in turned_toy.towers.user.state_dict()


@pytest.mark.parametrize("kind", [Hnsw(4), Ivf(), IvfPq()])
def test_every_kind_of_index_is_turned(toy, toy_bundle: Bundle, stranger: Path, tmp_path: Path, kind) -> None:
    seal(toy.checkpoint, toy.dataset, tmp_path / "sealed", kind=kind)
    align(tmp_path / "sealed", stranger, tmp_path / "aligned")
    bundle = Bundle.open(tmp_path / "aligned")
    before = Bundle.open(tmp_path / "sealed")
    assert bundle.index.kind == before.index.kind != "flat"
    assert bundle.index.misfit(np.arange(13), bundle.item_vectors).max() < 1e-5
    found, expected = (one.index.search(one.user_vectors, 5)[1] for one in (bundle, before))
    assert (found == expected).mean() > 0.95


def test_bundles_of_other_dimensions_are_not_aligned(toy_bundle: Bundle, shop_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has 8 dimensions and .* 16; no rotation brings one onto the other"):
        align(shop_bundle.path, toy_bundle.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_commands_compare_and_align(toy, toy_bundle: Bundle, stranger: Path, tmp_path: Path, capsys) -> None:
    def copy(source: Path, out: Path) -> Manifest:
        shutil.copytree(source, out)
        return read_manifest(out, KIND, FORMAT_VERSION)

    registry = Registry(tmp_path / "registry")
    toys, other = (registry.publish(partial(copy, source)) for source in (toy_bundle.path, stranger))
    at = ["--registry", str(registry.path)]
    with pytest.raises(ValueError, match=r"no bundle is live in .*; name one, or promote one first"):
        bundles(["align", other, *at])
    registry.promote(toys, why="first")

    bundles(["compare", toys, other, *at])
    said = capsys.readouterr().out.splitlines()
    expected = compare(toy_bundle, Bundle.open(stranger))
    assert said[0] == "13 items and 80 users in both, 16 dimensions"
    assert said[1].split() == ["vectors", "of", "A", "as", "they", "are", "rotated", "B's", "own"]
    figures = [f"{share:.4f}" for share in (expected.users.raw, expected.users.rotated, expected.users.ceiling)]
    assert said[3].split() == ["users:", "neighbours", "kept,", "of", "3", *figures]
    assert said[-1] == expected.verdict
    bundles(["compare", toys, other, "--json", *at])
    assert json.loads(capsys.readouterr().out) == expected.figures()

    bundles(["align", other, *at])
    made, _, *_ = capsys.readouterr().out.split()
    assert registry.manifest(made).content["aligned_to"]["bundle"] == toys
    bundles(["align", toys, "--to", other, *at])
    assert f" is {toys} in the space of {other}" in capsys.readouterr().out
    assert registry.current == toys
    assert len(registry.bundles()) == 4
