"""The shop as batches."""

import pytest

from recsys.data.module import HistoryData


@pytest.fixture(scope="session")
def shop_data(shop):
    """Training ends before item 19 is taken."""
    return HistoryData(shop, batch_positions=64, max_length=6)
