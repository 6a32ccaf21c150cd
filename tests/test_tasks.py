"""What every task promises: one suite that a new task joins with its sample in `task_samples.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tiny
import tunestack
from families import FAMILIES
from task_samples import SAMPLES, Sample
from tunestack.bases import Base
from tunestack.export.folder import export_candidate
from tunestack.results import Results
from tunestack.stack.events import Event
from tunestack.stack.slot import Trial
from tunestack.stack.work import Workload
from tunestack.tasks.registry import TASKS

CASES = [(name, kind) for name, sample in SAMPLES.items() for kind in sample.kinds]
FIELDS = {family.name: family.fields for family in FAMILIES}


def trials_of(sample: Sample, base: Base) -> list[Trial]:
    """One trial a family, that differ in seed, batch size and length of training."""
    return [
        tiny.trial(base, name, seed, name, batch_size=4 + seed, epochs=1.5 + seed / 2, **FIELDS[name])
        for seed, name in enumerate(sample.families)
    ]


def work_of(sample: Sample, base: Base) -> Workload:
    task = sample.make()
    return Workload(base, task, sample.splits, task.default_metric)


def test_every_task_has_a_sample() -> None:
    assert set(SAMPLES) == set(TASKS)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_stack_equals_solo_runs(name: str, kind: str, tmp_path: Path) -> None:
    """Weights, curves and answers, with methods of all kinds beside each other in two lanes."""
    sample = SAMPLES[name]
    base = tiny.random_base(tmp_path, kind, **sample.fields)
    work, trials = work_of(sample, base), trials_of(sample, base)
    together = tiny.run(work, trials, slots=3, lanes=2)
    for trial in trials:
        tiny.assert_same(together[trial.key], tiny.run(work, [trial])[trial.key], 1e-4)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_training_lowers_the_loss(name: str, kind: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    base = tiny.random_base(tmp_path, kind, **sample.fields)
    trial = tiny.trial(base, "lora", 1, epochs=8, learning_rate=1e-2, r=4, target_modules="all-linear")
    curve = tiny.run(work_of(sample, base), [trial])["lora"].curve
    assert curve[-1].train_loss < 0.97 * curve[0].train_loss


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_interrupted_trial_goes_on(name: str, kind: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    base = tiny.random_base(tmp_path, kind, **sample.fields)
    work, trials = work_of(sample, base), trials_of(sample, base)[:2]
    whole = tiny.run(work, trials)
    seen = 0

    def interrupt(event: Event) -> None:
        nonlocal seen
        seen += event.kind == "step"
        if seen == 9:
            raise KeyboardInterrupt

    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    with pytest.raises(KeyboardInterrupt):
        tiny.run(work, trials, notify=interrupt, checkpoints=checkpoints)
    resumed = tiny.run(work, trials, checkpoints=checkpoints)
    for trial in trials:
        tiny.assert_same(resumed[trial.key], whole[trial.key])


@pytest.fixture(scope="module", params=SAMPLES)
def compared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Any]:
    """A comparison of a task from files to report: its name, its folder, its results."""
    name = request.param
    sample, folder = SAMPLES[name], tmp_path_factory.mktemp(name)
    given = sample.write(folder)
    base = tiny.save_base(folder, sample.kinds[0], **sample.fields)
    results = tunestack.compare(
        str(given["data"].pop("train")),
        task={"name": name, **given.get("task", {})},
        bases={"model": str(base), "dtype": "float32", "device_map": "cpu"},
        methods=[{"method": "lora", "r": 2}, *sample.baselines],
        seeds=2,
        training={"epochs": 1, "learning_rate": 5e-3},
        measure_costs=False,
        output=folder / "run",
        progress=False,
        **given["data"],
    )
    return name, folder / "run", results


def test_a_comparison_from_files_to_the_report(compared: tuple[str, Path, Results]) -> None:
    name, run, results = compared
    sample = SAMPLES[name]
    assert results.task == name
    assert results.metric == sample.make().default_metric
    assert [candidate.name for candidate in results.candidates] == ["lora", *sample.baselines]
    for candidate in results.candidates:
        assert not [seed.failure for seed in candidate.seeds if seed.failure]
        for split in (candidate.validation, candidate.test):
            interval = split[results.metric].interval
            assert interval.low <= split[results.metric].mean <= interval.high
    assert results.verdict is not None
    assert results.verdict.sentence.split(":")[0] in (run / "report.html").read_text()
    assert Results.load(run / "results.json").model_dump(mode="json") == results.model_dump(mode="json")


def test_what_was_saved_answers_as_in_the_run(compared: tuple[str, Path, Results]) -> None:
    """Every candidate, loaded anew, gives the answers that its prediction file holds; the file's scores are
    those of the results.
    """
    name, run, results = compared
    for candidate in results.candidates:
        seed = candidate.seeds[0]
        predictor = tunestack.load(run / str(seed.adapter_path))
        task = predictor.task
        split = SAMPLES[name].splits["test"]
        assert seed.test is not None
        frame = pd.read_csv(run / seed.test.predictions_path, dtype=str, keep_default_na=False)
        stored = task.read(frame)
        np.testing.assert_allclose(predictor.answers(task.texts(split)), stored, atol=1e-4)
        assert task.scores(split, stored) == pytest.approx(seed.test.metrics, abs=1e-9)
        told = task.told(task.texts(split), stored)
        assert [str(one) for one in told["prediction"]] == frame["prediction"].tolist()


LIMITS = {
    "classification": ("always answers with one of its 2 labels", "cut at 512 tokens"),
    "multi-label": ("those of its 3 labels whose probability is 0.5 or more", "cut at 512 tokens"),
    "token-classification": ("each word one of its 4 tags", "read in rows of 512 tokens"),
    "instruction": ("always writes a response", "responses end after 8 at the latest"),
    "text-to-text": ("always answers with one of its 2 labels", "cut at 512 tokens"),
    "regression": ("always answers with a number", "cut at 512 tokens"),
    "question-answering": ("or with nothing where that scores higher", "read in windows of 512 tokens"),
}


def test_model_cards(compared: tuple[str, Path, Results], tmp_path: Path) -> None:
    """The data and the limits in words of the task, of what is trained and of a baseline."""
    name, run, results = compared
    sample = SAMPLES[name]
    for candidate in results.candidates[:2]:
        out = export_candidate(run, tmp_path / candidate.name, candidate=candidate.name)
        card = (out / "README.md").read_text()
        always, reads = LIMITS[name]
        assert always in card
        assert (reads in card) == (candidate.kind == "method")
        assert "```python" in card
        assert ("tunestack.load" in card) == (candidate.kind == "baseline")
        task = sample.make()
        labels = results.data.label_names
        assert (f"with so many rows, and {task.counted} of each label:" in card) == bool(labels)
        assert ("with so many rows:" in card) == (not labels)
        assert f"| {' | '.join(['split', 'rows', *labels])} |" in card
        for split, columns in sample.splits.items():
            counts = [len(columns[task.inputs[0]]), *task.label_counts(columns)]
            assert f"| {' | '.join([split, *map(str, counts)])} |" in card
        assert ("probabilities are calibrated" in card) == task.gives_probabilities
