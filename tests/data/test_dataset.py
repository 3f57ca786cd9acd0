import numpy as np
import pytest

from recsys.artifacts import ArtifactError
from recsys.data.dataset import Dataset
from recsys.ids import IdMap
from tests.damage import sealed_again

ROWS = [("u", "a", 1), ("u", "b", 2), ("v", "b", 3)]


@pytest.fixture
def path(prepared):
    return prepared(ROWS).path


def test_opens_what_was_prepared(path):
    dataset = Dataset.open(path)
    assert (len(dataset), dataset.num_users, dataset.num_items) == (3, 2, 2)
    assert dataset.user_rows.tolist() == [0, 0, 1]
    assert dataset.items.tolist() == [0, 1, 1]
    assert dataset.user_offsets.tolist() == [0, 2, 3]
    assert dataset.event_names == []
    assert isinstance(dataset.items, np.memmap)


def test_a_flipped_byte_is_found_unless_the_check_is_waived(path):
    data = bytearray((path / "items.npy").read_bytes())
    data[-4] ^= 1
    (path / "items.npy").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"items\.npy does not match its sha256"):
        Dataset.open(path)
    assert len(Dataset.open(path, check=False)) == 3


def shuffle_ids(path):
    ids = IdMap.load(path / "item_ids.arrow").array.to_pylist()
    (path / "item_ids.arrow").unlink()
    IdMap.of(ids[::-1]).save(path / "item_ids.arrow")


def keep(name, values):
    return lambda path: np.save(path / f"{name}.npy", values)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shuffle_ids, "item_ids.arrow is not the id map of this dataset"),
        (keep("items", np.array([0, 1, 2], dtype=np.int32)), "items.npy holds rows outside the id map"),
        (keep("items", np.array([0, -1, 1], dtype=np.int32)), "items.npy holds rows outside the id map"),
        (keep("items", np.array([0, 1], dtype=np.int32)), "user_offsets.npy' does not fit the interactions"),
        (keep("user_offsets", np.array([0, 3])), "does not fit the interactions"),
        (keep("times", np.array([1, 2])), "times.npy has 2 rows, not 3"),
    ],
)
def test_files_that_contradict_each_other_are_refused_even_with_right_digests(path, damage, message):
    damage(path)
    sealed_again(path)
    with pytest.raises(ArtifactError) as error:
        Dataset.open(path)
    assert message in str(error.value).replace("user_offsets.npy does", "user_offsets.npy' does")
