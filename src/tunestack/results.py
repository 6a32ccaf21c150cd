"""The schema of `results.json`: all that a comparison found out. The report reads this and nothing else.

Paths are relative to the run folder. Times are in seconds, sizes in bytes. A metric's value lies in
``metrics[name]`` under scikit-learn's name for it (``f1``, ``accuracy``, ``precision``, ``recall``,
``mcc``, ``roc_auc``; ``f1_macro``, ``f1_micro`` and so on beyond two classes).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tunestack.files import write_text

SCHEMA_VERSION = 1


class Record(BaseModel):
    """Base of every record: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Interval(Record):
    """A confidence interval; `level` is its coverage, 0.95 unless said otherwise."""

    low: float
    high: float
    level: float = 0.95


class Summary(Record):
    """One metric of one candidate: mean and standard deviation over seeds, interval of the mean."""

    mean: float
    std: float
    interval: Interval


class CurvePoint(Record):
    """One evaluation during training: mean training loss since the last one, validation metrics and loss."""

    epoch: float
    step: int
    train_loss: float
    validation_loss: float | None = None
    metrics: dict[str, float]


class SplitScores(Record):
    """One trained model on one split.

    `confusion[i][j]`: examples of class i predicted as j; None where a task has no classes to confuse.
    """

    metrics: dict[str, float]
    confusion: list[list[int]] | None
    predictions_path: str


PRUNED = "pruned"
"""The `failure` of a trial that a sweep has ended early."""


class SeedResult(Record):
    """One trial: one candidate with one seed.

    best_epoch: the epoch whose weights were kept (None for a candidate that has no epochs).
    stacked_seconds: wall seconds from this trial's first step to its last, in the company it had (its
    costs alone are in `Costs`). `failure`: why it did not finish, else None.
    adapter_path: folder of the saved adapter, model or baseline; None if it failed. tests: further test sets,
    by name.
    """

    seed: int
    validation: SplitScores | None = None
    test: SplitScores | None = None
    tests: dict[str, SplitScores] = {}
    best_epoch: float | None = None
    curves: list[CurvePoint] = []
    stacked_seconds: float | None = None
    adapter_path: str | None = None
    failure: str | None = None

    @property
    def failed(self) -> bool:
        """Whether something went wrong; not where a sweep has ended it early."""
        return self.failure not in (None, PRUNED)

    @property
    def scores(self) -> dict[str, SplitScores]:
        """What it reached, by split."""
        named = {"validation": self.validation, "test": self.test}
        return {name: scores for name, scores in named.items() if scores is not None} | self.tests


class Costs(Record):
    """What one run of this candidate alone costs, measured in a process of its own.

    train_seconds: seconds a step, measured, times the steps of the whole run; evaluation, loading and
    tokenising not counted. Of a baseline: the whole fit.
    inference_examples_per_second: from texts to probabilities, tokenising included.
    peak_memory_bytes: of the accelerator, else of the process, beyond the interpreter and its libraries;
    None where the system does not tell.
    adapter_bytes: what is stored on disk for one trained trial, head included, tokenizer files not.
    others_share: of all time of the processors meanwhile, what other programs took; None where the system
    does not tell, or it was over too soon. Much of it makes seconds too many and throughput too low.
    """

    train_seconds: float | None = None
    seconds_per_step: float | None = None
    peak_memory_bytes: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    adapter_bytes: int | None = None
    inference_examples_per_second: float | None = None
    others_share: float | None = None


class Comparison(Record):
    """A candidate against the best one, paired on the same validation examples.

    difference: best minus this, in the comparison's metric, with its interval; `p_value` of the paired
    bootstrap for F1-like metrics or McNemar's test for accuracy; `p_value_corrected` after Holm.
    """

    best: str
    difference: float
    interval: Interval
    test: Literal["paired bootstrap", "McNemar", "DeLong"]
    p_value: float
    p_value_corrected: float
    significant: bool


class Candidate(Record):
    """One base x method x hyper-parameters, with all its seeds.

    name: unique in the run. base: None for a candidate that needs none (majority, tfidf).
    kind: "baseline" trains no transformer. comparison: None for the best candidate and for one that failed.
    reads_text: False for a candidate that answers the same whatever the text (majority). tests: summaries of
    further test sets, by their names.
    """

    name: str
    base: str | None
    method: str
    kind: Literal["method", "baseline"]
    hyperparameters: dict[str, Any]
    reads_text: bool = True
    seeds: list[SeedResult]
    validation: dict[str, Summary] = {}
    test: dict[str, Summary] = {}
    tests: dict[str, dict[str, Summary]] = {}
    costs: Costs = Costs()
    comparison: Comparison | None = None

    @property
    def summaries(self) -> dict[str, dict[str, Summary]]:
        """What it reached over all seeds, by split; empty where it has no scores on one."""
        return {"validation": self.validation, "test": self.test, **self.tests}

    def best_seed(self, metric: str) -> SeedResult | None:
        """The seed with the highest validation metric (of equals the first), of those that were saved."""
        scored = [
            (seed.validation.metrics.get(metric, -math.inf), seed)
            for seed in self.seeds
            if seed.validation is not None and seed.adapter_path is not None
        ]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None


class Verdict(Record):
    """What to ship.

    sentence: for people. best: highest on validation. ship: the one to ship (equal to `best` when it wins
    clearly, else the cheapest that is not clearly worse). clear: whether `best` beats every other one.
    """

    sentence: str
    best: str
    ship: str
    clear: bool


class DataSummary(Record):
    """The data: rows a split, label names in id order, rows per label a split, warnings for the reader.

    Labels and their counts are empty for a task without labels. counted: what has a label, examples or words;
    an example may have several.
    """

    source: str
    rows: dict[str, int]
    label_names: list[str]
    label_counts: dict[str, list[int]]
    counted: str = "examples"
    warnings: list[str]


class HardExample(Record):
    """A validation example that every candidate (majority aside) gets wrong with every seed.

    What wrong means where answers can be nearly right, `Results.hard_how` says.
    """

    row: int
    text: str
    label: str
    predicted: str


class Span(Record):
    """A time in which a trial had a slot. began, ended: Unix time in seconds. slot: its place in the stack of
    the process that trained it, from 0.
    """

    slot: int
    began: float
    ended: float


class SearchTrial(Record):
    """One trial of a sweep.

    name: of its candidate, where it is complete. parameters: what was searched. value: the metric that the
    search maximises, best of its evaluations, as far as it came. spans: each time that it had a slot, in one
    process or in several; of a trial that runs, up to its last evaluation.
    """

    number: int
    name: str
    method: str
    parameters: dict[str, Any]
    state: Literal["running", "complete", "pruned", "failed"]
    value: float | None = None
    curve: list[CurvePoint] = []
    spans: list[Span] = []
    failure: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_one_span(cls, value: Any) -> Any:
        """Accept what was written when a trial had one span, the last, as fields of its own."""
        if not isinstance(value, dict) or "slot" not in value:
            return value
        rest = {name: field for name, field in value.items() if name not in Span.model_fields}
        span = {name: value.get(name) for name in Span.model_fields}
        return {**rest, "spans": [span] if None not in span.values() else []}


class SearchSummary(Record):
    """The search that a sweep was.

    importances: how much of the metric's variance among complete trials each parameter explains (fANOVA);
    empty with too few trials. confirmed: the folder of the comparison that trained the best again with
    several seeds; None where none was asked for, or none of them finished.
    """

    sampler: str
    pruner: str
    trials: list[SearchTrial]
    importances: dict[str, float] = {}
    confirmed: str | None = None


class Results(Record):
    """A whole comparison, as `results.json` holds it; or a whole sweep, whose complete trials are the
    candidates.
    """

    schema_version: int = SCHEMA_VERSION
    created: str
    metric: str
    task: str = "classification"
    data: DataSummary
    candidates: list[Candidate]
    verdict: Verdict | None
    hard_examples: list[HardExample] = []
    hard_how: str = "gets wrong"
    search: SearchSummary | None = None
    environment: dict[str, str]
    config: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write atomically as JSON."""
        write_text(path, self.model_dump_json(indent=2))

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read `results.json`. Raises pydantic's ValidationError if it is of another schema."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))
