"""What all tests share: real chips where MOS_DATA_ROOT names them, and one thread for small tensors."""

import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests of real chips where there are none, and say so."""
    root = os.environ.get("MOS_DATA_ROOT")
    if root and (Path(root) / "HOSS").is_dir():
        return
    skip = pytest.mark.skip(reason="needs real chips: MOS_DATA_ROOT names no folder with HOSS/")
    for item in items:
        if "real_data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def data_root() -> Path:
    """The folder that holds HOSS/ with real chips."""
    return Path(os.environ["MOS_DATA_ROOT"])
