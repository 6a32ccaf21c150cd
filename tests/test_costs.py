"""How inference is timed: a clock that the test turns is the oracle."""

from __future__ import annotations

import pytest
from datasets import Dataset

from tunestack.comparison import costs
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
