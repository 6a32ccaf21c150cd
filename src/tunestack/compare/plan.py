"""What a comparison will run: every candidate, checked against data and bases before anything trains."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from peft import PeftConfig

from tunestack.baselines.base import Baseline
from tunestack.baselines.registry import BASELINES
from tunestack.bases import Base, load_base
from tunestack.bases.base import head_modules
from tunestack.config import BaseConfig, CompareConfig, MethodConfig, Settings, TrainingConfig
from tunestack.data import TextData, load_text_data
from tunestack.errors import Problems, UserError, did_you_mean
from tunestack.methods.base import Method
from tunestack.methods.registry import METHODS
from tunestack.settings import validated
from tunestack.stack.slot import Trial
from tunestack.tasks.classification import SequenceClassification
from tunestack.tasks.metrics import known_metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """A comparison, checked: nothing in it can fail for a reason that the user could have known before.

    bases: opened, by name. candidates: in the order of the configuration.
    """

    config: CompareConfig
    data: TextData
    task: SequenceClassification
    bases: dict[str, Base]
    candidates: list[MethodCandidate | BaselineCandidate]


@dataclass(frozen=True)
class MethodCandidate:
    """A method with its hyper-parameters on a base; one trial a seed."""

    name: str
    base: str
    method: Method
    config: PeftConfig
    training: TrainingConfig
    fields: dict[str, Any]
    kind: ClassVar[Literal["method", "baseline"]] = "method"

    @property
    def method_name(self) -> str:
        """The registered name."""
        return self.method.name

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
    kind: ClassVar[Literal["method", "baseline"]] = "baseline"

    @property
    def method_name(self) -> str:
        """The registered name."""
        return self.baseline.name

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The baseline's options."""
        return self.options.model_dump()


def make_plan(config: CompareConfig) -> Plan:
    """Open the data and the bases, expand grids, check every candidate. Raises one UserError for all."""
    problems = Problems()
    check_output(Path(config.output), problems)
    data = _collected(problems, load_text_data, config.data)
    bases = _open_bases(config, problems)
    task = SequenceClassification(data.label_names if data else ("0", "1"))
    if data:
        _check_metric(config.metric, len(data.label_names), problems)
        _check_class_weights(config.training, data, problems)
    if len(set(config.seeds)) < len(config.seeds):
        problems.add("seeds", expected="different seeds", found=str(config.seeds), fix="Give each once.")
    candidates = list(_candidates(config, bases, task, problems))
    names = [candidate.name for candidate in candidates]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(
            "methods",
            expected="candidates that differ",
            found=f"{name!r} {names.count(name)} times",
            fix="Change a field, or give each its own `name`.",
        )
    problems.raise_if_any()
    assert data is not None  # or its problems would have been raised
    return Plan(config, data, task, bases, candidates)


def texts_of(split: Any) -> tuple[list[str], list[str] | None]:
    """The texts of a split, and the second texts of pairs."""
    return list(split["text"]), list(split["text_pair"]) if "text_pair" in split.column_names else None


def slug(name: str) -> str:
    """A candidate's name as a folder's name."""
    return re.sub(r"[^A-Za-z0-9=._-]+", "-", name).strip("-.")


def check_output(folder: Path, problems: Problems) -> None:
    """Note a problem where the run folder cannot be written."""
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        problems.add(
            "output",
            expected="a folder that can be written",
            found=f"{folder}: {error.strerror or error} (at {existing})",
            fix="Choose another folder with --output.",
        )


def _collected(problems: Problems, function: Callable[..., T], *arguments: Any) -> T | None:
    """Call; on a user's error note its problems and go on."""
    try:
        return function(*arguments)
    except UserError as error:
        problems.extend(error)
        return None


@contextmanager
def _collecting(problems: Problems) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems.extend(error)


def _open_bases(config: CompareConfig, problems: Problems) -> dict[str, Base]:
    bases: dict[str, Base] = {}
    for settings in config.bases:
        base = _collected(problems, load_base, settings)
        if base is not None:
            bases[_base_name(settings, config.bases)] = base
    if not config.bases and any(_needs_base(entry) for entry in config.methods):
        problems.add(
            "bases",
            expected="at least one base for methods that train a model",
            found="none",
            fix="Name one, for example --base packaged:minilm-l6.",
        )
    return bases


def _base_name(settings: BaseConfig, among: list[BaseConfig]) -> str:
    """The name users know a base by; dtype added where the same one is there twice."""
    twice = sum(other.model == settings.model for other in among) > 1
    return f"{settings.model} {settings.dtype}" if twice else settings.model


def _needs_base(entry: MethodConfig) -> bool:
    return entry.method in METHODS or (entry.method in BASELINES and BASELINES[entry.method].needs_base)


def _candidates(
    config: CompareConfig, bases: dict[str, Base], task: SequenceClassification, problems: Problems
) -> Iterator[MethodCandidate | BaselineCandidate]:
    known = [*METHODS, *BASELINES]
    checks = {name: _BaseCheck(base, task) for name, base in bases.items()}
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
            for base in bases if _needs_base(entry) else [None]:
                name = f"{_short(base)} {label}" if base and len(bases) > 1 else label
                with _collecting(problems):
                    yield _candidate(config, variant, name, base, checks, where)


@dataclass
class _BaseCheck:
    """A base's skeleton on the meta device, made when the first method is checked against it."""

    base: Base
    task: SequenceClassification
    _skeleton: Any = field(default=None)

    @property
    def skeleton(self) -> Any:
        if self._skeleton is None:
            self._skeleton = self.base.skeleton(self.task.auto_class, self.task.model_config(self.base))
        return self._skeleton


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
        of_training = {name: value for name, value in chosen.items() if name in TrainingConfig.model_fields}
        own = {name: value for name, value in chosen.items() if name not in of_training}
        yield _Variant(entry.method, {**entry.config, **own}, {**entry.training, **of_training}, chosen)


def _candidate(
    config: CompareConfig,
    variant: _Variant,
    name: str,
    base: str | None,
    checks: dict[str, _BaseCheck],
    where: str,
) -> MethodCandidate | BaselineCandidate:
    if variant.method in BASELINES:
        baseline = BASELINES[variant.method]
        problems = Problems()
        for unknown in variant.training:
            problems.add(
                f"{where}.training.{unknown}",
                expected="no training fields: this is a baseline",
                found=unknown,
                fix="Remove it.",
            )
        problems.raise_if_any()
        return BaselineCandidate(name, base, baseline, baseline.make_options(variant.fields))
    method = METHODS[variant.method]
    assert base is not None
    check = checks[base]
    model_type = check.base.config.model_type
    head = head_modules(check.skeleton, model_type)
    settings = method.make_config(variant.fields, model_type, head)
    method.check(settings, check.skeleton)
    given = config.training.model_dump(exclude_unset=True)
    values = {**method.training_defaults, **given, **variant.training}
    training = validated(TrainingConfig, values, f"{where}.training")
    fields = {**method.defaults(model_type), **variant.fields}
    return MethodCandidate(name, base, method, settings, training, fields)


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


def _short(base: str) -> str:
    return base.rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]


def _check_metric(metric: str, classes: int, problems: Problems) -> None:
    known = known_metrics(classes)
    if metric not in known:
        problems.add(
            "metric", expected="a metric of this task", found=repr(metric), fix=did_you_mean(metric, known)
        )


def _check_class_weights(training: TrainingConfig, data: TextData, problems: Problems) -> None:
    weights = training.class_weights
    if isinstance(weights, list) and (
        len(weights) != len(data.label_names) or not all(np.isfinite(weights)) or min(weights) < 0
    ):
        problems.add(
            "training.class_weights",
            expected=f"{len(data.label_names)} weights of 0 or more, for {', '.join(data.label_names)}",
            found=str(weights),
            fix="Give one a class, or `balanced`.",
        )
