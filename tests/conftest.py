"""Fixtures that several test files share."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fresh
from fresh import Finished

torch.set_num_threads(1)  # tiny models gain nothing from more


def pytest_collection_finish() -> None:
    """What was imported stays: to look through it in every garbage collection takes a third of a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the development data; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the development data is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.csv, validation.csv, test.csv and saved-bert, a base with random weights."""
    import runs
    import tiny

    folder = tmp_path_factory.mktemp("data")
    runs.write_data(folder)
    tiny.save_base(folder, "bert")
    return folder


@pytest.fixture(scope="session")
def command() -> Callable[..., Finished]:
    """Run `tunestack ...` in a process of its own."""
    return fresh.tunestack


@dataclass(frozen=True)
class WholeRun:
    """One comparison of every kind of candidate, costs and all, as a user runs it."""

    data: Path
    folder: Path
    config: Path
    command: Finished


@pytest.fixture(scope="session")
def whole_run(tiny_data: Path, command: Callable[..., Finished]) -> WholeRun:
    """Run it, once for all tests that look at it."""
    import runs

    folder = tiny_data / "whole"
    methods = [
        "majority",
        {"method": "tfidf", "min_df": 1},
        "linear-probe",
        {"method": "lora", "grid": {"r": [2, 4]}, "lora_alpha": 8},
        {"method": "full", "training": {"learning_rate": 1e-3}},
    ]
    values = runs.settings(tiny_data, methods=methods, output=str(folder), measure_costs=True)
    config = runs.write_config(tiny_data / "whole.yaml", values)
    return WholeRun(tiny_data, folder, config, command("compare", config))
