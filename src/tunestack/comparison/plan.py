"""What a comparison will run: every candidate, checked against data and bases before anything trains."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from peft import PeftConfig

from tunestack.baselines.base import Baseline
from tunestack.baselines.features import FeatureOptions
from tunestack.baselines.registry import BASELINES, find_baseline, needs_base
from tunestack.bases import Base, load_base
from tunestack.comparison.checks import check_class_weights, check_metric, check_names, check_output
from tunestack.config import BaseConfig, CompareConfig, MethodConfig, Settings, TrainingConfig, split_fields
from tunestack.data import TextData
from tunestack.entries import BaseCheck, entry_training, method_config, training_defaults
from tunestack.errors import Problems, did_you_mean
from tunestack.files import slug
from tunestack.methods.base import Method
from tunestack.methods.registry import METHODS
from tunestack.stack.optim import check_optimizer
from tunestack.stack.slot import Trial
from tunestack.tasks.base import Task
from tunestack.tasks.registry import TASKS, open_task
from tunestack.trackers.registry import check_trackers

BASELINE_SEED = 0
"""Baselines are deterministic: they have one result, under this seed."""


@dataclass(frozen=True)
class Plan:
    """A comparison, checked: nothing in it can fail for a reason that the user could have known before.

    bases: opened, by name. candidates: in the order of the configuration.
    """

    config: CompareConfig
    data: TextData
    task: Task
    bases: dict[str, Base]
    candidates: list[MethodCandidate | BaselineCandidate]


@dataclass(frozen=True)
class MethodCandidate:
    """A method with its hyper-parameters on a base; one trial a seed.

    positions: how many of the base's places for a text the method takes for itself.
    """

    name: str
    base: str
    method: Method
    config: PeftConfig
    training: TrainingConfig
    fields: dict[str, Any]
    positions: int = 0
    kind: ClassVar[Literal["method", "baseline"]] = "method"

    @property
    def method_name(self) -> str:
        """The registered name."""
        return self.method.name

    @property
    def reads_text(self) -> bool:
        """Whether answers depend on the text: a trained model's do."""
        return True

    @property
    def max_length(self) -> int:
        """How many tokens of an example it reads at most."""
        return self.training.max_length

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """What the report shows: the method's fields and the training's."""
        return {**self.fields, **self.training.model_dump()}

    def trial(self, seed: int) -> Trial:
        """The trial with this seed."""
        return Trial(f"{slug(self.name)}.seed-{seed}", self.method, self.config, self.training, seed)


@dataclass(frozen=True)
class BaselineCandidate:
    """A candidate that trains no transformer."""

    name: str
    base: str | None
    baseline: Baseline
    options: Settings
    positions: ClassVar[int] = 0
    kind: ClassVar[Literal["method", "baseline"]] = "baseline"

    @property
    def method_name(self) -> str:
        """The registered name."""
        return self.baseline.name

    @property
    def reads_text(self) -> bool:
        """Whether answers depend on the text."""
        return self.baseline.reads_text

    @property
    def max_length(self) -> int | None:
        """How many tokens of an example it reads at most; None for one that does not read tokens."""
        return self.options.max_length if isinstance(self.options, FeatureOptions) else None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The baseline's options."""
        return self.options.model_dump()


def make_plan(config: CompareConfig) -> Plan:
    """Open the data and the bases, expand grids, check every candidate. Raises one UserError for all."""
    config = with_method_defaults(config)
    problems = Problems()
    check_output(Path(config.output), problems)
    check_trackers(config.track, problems)
    task, data = open_task(config.task, config.data, problems)
    bases = _open_bases(config, problems)
    config = with_metric(config)
    check_metric(config.metric, task, data, problems)
    candidates = list(_candidates(config, bases, task, problems))
    check_names([candidate.name for candidate in candidates], problems)
    for candidate in candidates:
        if isinstance(candidate, MethodCandidate):
            problems.attempt(check_optimizer, candidate.training.optim, bases[candidate.base].device)
    if data:
        own = {c.name: c.training for c in candidates if isinstance(c, MethodCandidate)}
        check_class_weights(config.training, own, task, problems)
        for candidate in candidates:
            if isinstance(candidate, MethodCandidate):
                steps = candidate.training.steps(len(data.train))
                problems.attempt(candidate.method.check_steps, candidate.config, steps)
        for base, limit, places in _rooms(candidates, bases):
            problems.attempt(task.check_base, bases[base], data.splits(), limit, places)
    problems.raise_if_any()
    assert data is not None  # or its problems would have been raised
    return Plan(config, data, task, bases, candidates)


def _rooms(
    candidates: Sequence[MethodCandidate | BaselineCandidate], bases: Mapping[str, Base]
) -> list[tuple[str, int, int]]:
    """The bases, how many tokens an example may have on them, and for how many there are places at all."""
    rooms: dict[tuple[str, int, int], None] = {}
    for candidate in candidates:
        if candidate.base is not None and candidate.max_length is not None:
            base, taken = bases[candidate.base], candidate.positions
            limit = base.room_for_text(candidate.max_length, taken)
            rooms[candidate.base, limit, base.room_for_text(sys.maxsize, taken)] = None
    return list(rooms)


def with_method_defaults(config: CompareConfig) -> CompareConfig:
    """The settings with each method's own training defaults written out where the user gave nothing.

    So the resolved configuration repeats the run, although it names a value for every shared field.
    """
    given = config.training.model_fields_set
    entries = []
    for entry in config.methods:
        wanted = training_defaults(entry.method, given, {*entry.training, *entry.grid})
        entries.append(entry.model_copy(update={"training": {**wanted, **entry.training}}))
    return config.model_copy(update={"methods": entries})


Chosen = TypeVar("Chosen", bound=Settings)


def with_metric(config: Chosen) -> Chosen:
    """The settings of a comparison or a sweep with the task's own metric, where the user gave none.

    A task that is not known leaves them as they are.
    """
    given: Any = config
    kind = TASKS.get(given.task.name)
    own = kind.default_metric if kind and given.metric == "auto" else given.metric
    return config.model_copy(update={"metric": own})


def _open_bases(config: CompareConfig, problems: Problems) -> dict[str, Base]:
    bases: dict[str, Base] = {}
    names = [base_name(settings, config.bases) for settings in config.bases]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(
            "bases",
            expected="each base once, or with different dtype, quantize, double_quant or skip_modules",
            found=f"{name!r} {names.count(name)} times",
            fix="Remove one, or compare them in runs of their own.",
        )
    for name, settings in zip(names, config.bases, strict=True):
        base = problems.attempt(load_base, settings)
        if base is not None:
            problems.attempt(base.source.check_weights, settings.model)
            bases[name] = base
    if not config.bases and any(_needs_base(entry) for entry in config.methods):
        problems.add(
            "bases",
            expected="at least one base for methods that train a model",
            found="none",
            fix="Name one: --base packaged:minilm-l6, or in YAML and Python `bases: [packaged:minilm-l6]`.",
        )
    return bases


def base_name(settings: BaseConfig, among: Sequence[BaseConfig] = ()) -> str:
    """The name users know a base by: how it is quantised, and what else tells it from the same one there."""
    same = [other for other in among if other.model == settings.model]
    parts: list[str | None] = [settings.model]
    if len({other.dtype for other in same}) > 1:
        parts.append(settings.dtype)
    parts.append(settings.quantize)
    if settings.double_quant is False and len({(other.quantize, other.double_quant) for other in same}) > 1:
        parts.append("single")
    left_out = {tuple(other.skip_modules or ()) for other in same if other.quantize == settings.quantize}
    if settings.skip_modules and len(left_out) > 1:
        parts.append(f"skip_modules={','.join(settings.skip_modules)}")
    return " ".join(filter(None, parts))


def _needs_base(entry: MethodConfig) -> bool:
    return entry.method in METHODS or (entry.method in BASELINES and needs_base(entry.method))


def _candidates(
    config: CompareConfig, bases: dict[str, Base], task: Task, problems: Problems
) -> Iterator[MethodCandidate | BaselineCandidate]:
    known = [*METHODS, *BASELINES]
    checks = {name: BaseCheck(base, task) for name, base in bases.items()}
    for check in checks.values():
        problems.attempt(check.check_skipped)
    shown = _short_names(list(bases))
    for position, entry in enumerate(config.methods):
        where = f"methods.{position}"
        if entry.method not in known:
            problems.add(
                where,
                expected="a known method",
                found=repr(entry.method),
                fix=did_you_mean(entry.method, known),
            )
            continue
        same = [other for other in config.methods if other.method == entry.method]
        for variant in _expand(entry):
            label = entry.name or _label(variant, alone=len(same) == 1 and not entry.grid)
            if entry.name and entry.grid:
                label = f"{entry.name} {_values(variant.chosen)}"
            training = None
            with problems.collecting():
                training = _training(config, variant, where)
            # Where no base could be opened, the rest is checked all the same.
            on: list[str | None] = [*bases] if bases and _needs_base(entry) else [None]
            for base in on:
                name = f"{shown[base]} {label}" if base and len(bases) > 1 else label
                with problems.collecting(where if name == label else f"{where} on {shown[base or '']}"):
                    yield from _candidate(variant, name, base, checks, training, task)


@dataclass(frozen=True)
class _Variant:
    """An entry of `methods` with one value for every field of its grid."""

    method: str
    fields: dict[str, Any]
    training: dict[str, Any]
    chosen: dict[str, Any]


def _expand(entry: MethodConfig) -> Iterator[_Variant]:
    for values in itertools.product(*entry.grid.values()):
        chosen = dict(zip(entry.grid, values, strict=True))
        own, of_training = split_fields(chosen) if entry.method in METHODS else (chosen, {})
        yield _Variant(entry.method, {**entry.config, **own}, {**entry.training, **of_training}, chosen)


def _training(config: CompareConfig, variant: _Variant, where: str) -> TrainingConfig:
    """What a variant trains with. Raises UserError for fields that do not belong where they are."""
    if variant.method in METHODS:
        return entry_training(config.training, variant.method, variant.fields, variant.training, where)
    problems = Problems()
    for name in variant.training:
        problems.add(
            f"{where}.training.{name}",
            expected="no training fields: this is a baseline",
            found=name,
            fix="Remove it.",
        )
    problems.raise_if_any()
    return config.training


def _candidate(
    variant: _Variant,
    name: str,
    base: str | None,
    checks: dict[str, BaseCheck],
    training: TrainingConfig | None,
    task: Task,
) -> Iterator[MethodCandidate | BaselineCandidate]:
    """The candidate, if its training is right. Raises UserError for what is wrong with its own fields.

    base: None for a baseline that needs none; for others where no base could be opened, which is a problem
    noted already: only what does not depend on it is checked then.
    """
    check = checks[base] if base else None
    if variant.method in BASELINES:
        if check is not None:
            _ = check.skeleton  # a base that cannot be a classifier is told of
        baseline = find_baseline(variant.method, task)
        if check is not None:
            baseline.check_base(check.base)
        shared = training.model_dump() if training is not None else {}
        options = baseline.make_options(variant.fields, shared)
        yield BaselineCandidate(name, base, baseline, options)
        return
    method = METHODS[variant.method]
    fields, _ = split_fields(variant.fields)
    if base is None or check is None or training is None:
        method_config(method, fields, check)
    else:
        yield method_candidate(name, base, check, method, fields, training)


def method_candidate(
    name: str, base: str, check: BaseCheck, method: Method, fields: dict[str, Any], training: TrainingConfig
) -> MethodCandidate:
    """A method with its own fields on a base. Raises UserError for what cannot work."""
    settings = method_config(method, fields, check)
    method.check_training(training)
    shown = {**method.defaults(check.base.config.model_type), **fields}
    taken = method.positions_taken(settings, check.skeleton)
    return MethodCandidate(name, base, method, settings, training, shown, taken)


def _label(variant: _Variant, alone: bool) -> str:
    """The method, and what sets this entry apart where there are several of it."""
    if alone:
        return variant.method
    return " ".join([variant.method, _values({**variant.fields, **variant.training})]).strip()


def _values(fields: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return (
            ",".join(map(str, value))
            if isinstance(value, list)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )

    return " ".join(f"{name}={text(value)}" for name, value in fields.items())


def _short_names(bases: Sequence[str]) -> dict[str, str]:
    """Bases by the last part of their names, where that tells them apart."""
    short = {base: base.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1] for base in bases}
    unique = len(set(short.values())) == len(bases)
    return short if unique else {base: base for base in bases}
