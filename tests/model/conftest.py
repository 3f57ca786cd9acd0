"""The shop as batches."""

import pytest

from recsys.data.module import HistoryData
from tests.nights import two_nights


@pytest.fixture(scope="session")
def shop_data(shop):
    """Training ends before item 19 is taken."""
    return HistoryData(shop, batch_positions=64, max_length=6)


@pytest.fixture(scope="session")
def nights(tmp_path_factory):
    """Two nights of a shop whose data grows."""
    return two_nights(tmp_path_factory.mktemp("nights"))
