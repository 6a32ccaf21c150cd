"""How costs are timed: a clock that the test turns is the oracle."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

from tunestack.comparison import costs
from tunestack.comparison.run import MOST_OTHERS, disturbed
from tunestack.results import Costs
from tunestack.tasks.base import Split
from tunestack.tasks.classification import SequenceClassification

TASK = SequenceClassification(["no", "yes"])


def test_inference_is_the_fastest_of_parts_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy five times of six changes nothing; no text is timed twice."""
    now = 0.0
    seen: list[list[str]] = []

    def answer(split: Split) -> None:
        nonlocal now
        texts = split["text"]
        seen.append(texts)
        slowed = 1 if len(seen) == 4 else 3
        now += slowed * 0.01 * len(texts)

    monkeypatch.setattr(costs.time, "perf_counter", lambda: now)
    texts = ["x" * (7 * row % 301) + str(row) for row in range(1000)]
    speed = costs._examples_per_second(TASK, Dataset.from_dict({"text": texts, "label": [0] * 1000}), answer)
    assert speed == pytest.approx(100)
    assert len(seen) == costs.SAMPLES
    timed = [text for sample in seen for text in sample]
    assert sorted(timed) == sorted(texts[: costs.EXAMPLES])
    lengths = [sum(map(len, sample)) / len(sample) for sample in seen]
    assert max(lengths) / min(lengths) < 1.05


@pytest.mark.parametrize("rows", [1, 4])
def test_few_rows_are_timed_too(rows: int) -> None:
    seen: list[str] = []
    dataset = Dataset.from_dict({"text": ["a"] * rows, "text_pair": ["b"] * rows})
    assert costs._examples_per_second(TASK, dataset, lambda split: seen.extend(split["text_pair"])) > 0
    assert seen == ["b"] * rows


def test_what_others_take_is_all_that_is_neither_idle_nor_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten seconds of two processors: eight idle or waiting, three ours, so nine of twenty are others'."""
    file, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    own = [1.0, 0.5, 0.0, 0.0, 100.0]

    def write(*seconds: float) -> None:
        file.write_text(f"cpu  {' '.join(str(round(one * ticks)) for one in seconds)} 7 7\ncpu0 1 2 3\n")

    monkeypatch.setattr(costs, "PROCESSORS", file)
    monkeypatch.setattr(costs.os, "times", lambda: tuple(own))
    write(10, 1, 2, 50, 3, 0, 0, 1)
    others = costs._Others()
    own[:2] = [3.0, 1.5]
    write(18, 2, 4, 57, 4, 0.5, 0.25, 1.25)
    assert others.share() == pytest.approx(9 / 20)
    monkeypatch.setattr(costs, "PROCESSORS", tmp_path / "none")
    assert costs._Others().share() is None


@pytest.mark.skipif(not costs.PROCESSORS.exists(), reason="no /proc/stat")
def test_another_program_is_noticed() -> None:
    others = costs._Others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        time.sleep(1.5)
        share = others.share()
        busy.kill()
    assert share is not None
    assert share * (os.cpu_count() or 1) > 0.2


def test_a_reader_is_told_of_disturbed_costs_and_how_to_measure_again() -> None:
    def candidate(name: str, share: float | None) -> Any:
        return SimpleNamespace(name=name, costs=Costs(others_share=share))

    folder = Path("runs/one")
    assert disturbed([candidate("a", None), candidate("b", MOST_OTHERS)], folder) == []
    (told,) = disturbed([candidate("a", 0.02), candidate("b", 0.4), candidate("c", 0.31)], folder)
    for part in ("(b, c)", "40%", "runs/one/candidates/*/costs.json"):
        assert part in told
