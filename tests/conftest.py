"""Fixtures that several test files share."""

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tiny models gain nothing from more


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the development data; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder}")
    return folder
