"""The Python interface, in the words of the command line."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunestack.config import BaseConfig, CompareConfig, DataConfig, TrainingConfig
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.saved import Predictor, load
from tunestack.settings import checked, overlay, read_settings, read_source, validated

if TYPE_CHECKING:
    from tunestack.data import Description
    from tunestack.results import Results
    from tunestack.search.config import SweepConfig
    from tunestack.stack.events import Notify
    from tunestack.suites.results import SuiteResults

__all__ = ["Predictor", "compare", "compare_suite", "describe", "load", "sweep"]


def compare(
    source: str | Path,
    *,
    task: str | Mapping[str, Any] | None = None,
    methods: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    bases: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    metric: str | None = None,
    training: Mapping[str, Any] | None = None,
    slots: int | None = None,
    measure_costs: bool | None = None,
    track: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    **data: Any,
) -> Results:
    """Train every candidate, compare them, and say which one to ship.

    source: a YAML configuration, or labelled text (a file, a folder, a Hub data set id). task, methods,
    bases: names, or mappings with their fields; the task is classification unless another is named. seeds:
    how many, or which. training: fields of `TrainingConfig`.
    measure_costs: False saves the seconds that it takes. track: who is told: mlflow, tensorboard, wandb.
    output: the run folder; the same call resumes it.
    data: fields of `DataConfig` (`text="text"`, `label="target"`, ...). What is given here stands above
    what the YAML file says.

    Returns the results, as `results.json` holds them; `results.verdict.sentence` is the answer. Raises
    UserError with all problems before anything trains.
    """
    _check_arguments(compare, source, data)
    given = {
        "data": data,
        "task": task,
        "training": training or {},
        "methods": _several(methods),
        "bases": _several(bases),
        "seeds": seeds if seeds is None or isinstance(seeds, int) else list(seeds),
        "metric": metric,
        "slots": slots,
        "measure_costs": measure_costs,
        "track": _several(track),
        "output": None if output is None else str(output),
    }
    config = comparison(read_settings(str(source), given))

    from rich.console import Console

    from tunestack.comparison.run import run_comparison
    from tunestack.progress import Display

    if not progress:
        return run_comparison(config)
    with Display(Console(stderr=True), config.metric) as display:
        return run_comparison(config, display.notify)


def compare_suite(
    source: str | Path,
    *,
    data: str | Path | None = None,
    tasks: Sequence[str] | None = None,
    methods: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    bases: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    seeds: int | Sequence[int] | None = None,
    training: Mapping[str, Any] | None = None,
    slots: int | None = None,
    measure_costs: bool | None = None,
    track: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
) -> SuiteResults:
    """Compare the same candidates on every task of a suite: one table, with the average.

    source: a suite's name (glue), or a YAML configuration with `suite`. data: the folder with its files; by
    default they come from the Hub. tasks: which of its tasks. The others are those of `compare`. Each task
    is a comparison in a folder of its own inside `output`.

    Returns the table, as `suite.json` holds it. Raises UserError with all problems before anything trains.
    """
    is_config = str(source).endswith((".yaml", ".yml"))
    chosen = {
        "name": None if is_config else str(source),
        "data": None if data is None else str(data),
        "tasks": None if tasks is None else list(tasks),
    }
    given = {
        "training": training or {},
        "methods": _several(methods),
        "bases": _several(bases),
        "seeds": seeds if seeds is None or isinstance(seeds, int) else list(seeds),
        "slots": slots,
        "measure_costs": measure_costs,
        "track": _several(track),
        "output": None if output is None else str(output),
    }

    from rich.console import Console

    from tunestack.progress import Display
    from tunestack.suites.base import with_choice
    from tunestack.suites.run import plan_suite, run_suite

    values = read_settings(str(source) if is_config else None, given)
    plan = plan_suite(with_choice(values, chosen))
    if not progress:
        return run_suite(plan)

    @contextmanager
    def watch(title: str, metric: str) -> Iterator[Notify]:
        with Display(Console(stderr=True), metric) as display:
            yield display.notify

    return run_suite(plan, watch)


def comparison(values: Mapping[str, Any]) -> CompareConfig:
    """A comparison's settings. Raises UserError with everything that is wrong, data and bases included."""
    from tunestack.suites.base import refuse_suite

    refuse_suite(values)
    _refuse_sweep(values)

    def plan(config: CompareConfig) -> object:
        from tunestack.comparison.plan import make_plan

        return make_plan(config)

    config = checked(CompareConfig, values, plan)

    from tunestack.comparison.plan import with_metric

    return with_metric(config)


def _refuse_sweep(values: Mapping[str, Any]) -> None:
    """Raise a UserError where settings of a sweep are given to what runs a comparison."""
    from tunestack.search.config import SweepConfig

    own = SweepConfig.model_fields.keys() - CompareConfig.model_fields.keys()
    found = sorted(own & values.keys())
    if set(found) - {"base", "seed"}:  # which are slips, for bases and seeds
        fix = "Run `tunestack sweep` with them; in Python, `tunestack.sweep`."
        raise UserError(Problem("compare", "a comparison's settings", f"a sweep's: {', '.join(found)}", fix))


def sweep(
    source: str | Path,
    *,
    task: str | Mapping[str, Any] | None = None,
    methods: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    base: str | Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    trials: int | None = None,
    sampler: str | None = None,
    pruner: str | None = None,
    metric: str | None = None,
    training: Mapping[str, Any] | None = None,
    seed: int | None = None,
    slots: int | None = None,
    confirm: int | None = None,
    seeds: int | Sequence[int] | None = None,
    measure_costs: bool | None = None,
    track: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    **data: Any,
) -> Results:
    """Search hyper-parameters, many trials at a time on one frozen base.

    source: a YAML file (a sweep's settings, or a sweep file of W&B), or labelled text. search: fields of
    methods and of training, each with a list of values or `{"min": ..., "max": ..., "log": ...}`. confirm:
    how many of the best to train again, with `seeds` seeds, which `best.yaml` has too; measure_costs: False
    saves the seconds that it takes to measure what each of them costs. What is given here stands above what
    the YAML file says; `SweepConfig` says what each setting is.

    Returns the results, as `results.json` holds them: `results.search` has every trial. Raises UserError
    with all problems before anything trains.
    """
    _check_arguments(sweep, source, data)
    given = {
        "data": data,
        "task": task,
        "training": training or {},
        "methods": _several(methods),
        "base": base,
        "search": search or {},
        "trials": trials,
        "sampler": sampler,
        "pruner": pruner,
        "metric": metric,
        "seed": seed,
        "slots": slots,
        "confirm": confirm,
        "seeds": seeds if seeds is None or isinstance(seeds, int) else list(seeds),
        "measure_costs": measure_costs,
        "track": _several(track),
        "output": None if output is None else str(output),
    }
    config, notes = sweep_settings(str(source), given)

    from rich.console import Console

    from tunestack.progress import Display
    from tunestack.search.run import run_sweep

    for note in notes:
        warnings.warn(note, stacklevel=2)
    if not progress:
        return run_sweep(config)
    with Display(Console(stderr=True), config.metric) as display:
        return run_sweep(config, display.notify)


def sweep_settings(source: str, given: Mapping[str, Any]) -> tuple[SweepConfig, tuple[str, ...]]:
    """A sweep's settings, and what in a file of W&B has no effect.

    Raises UserError with everything that is wrong, data and base included.
    """
    from tunestack.search.config import SweepConfig

    def plan(config: SweepConfig) -> object:
        from tunestack.search.plan import make_plan

        return make_plan(config)

    values = read_source(source, given)
    if isinstance(values.get("base"), str):  # so that a field of the base alone can be given on top
        values["base"] = {"model": values["base"]}
    settings, notes = _sweep_values(values, given)
    config = checked(SweepConfig, settings, plan)

    from tunestack.comparison.plan import with_metric

    return with_metric(config), notes


def _sweep_values(
    values: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A sweep's settings with what is given on top, and what in a file of W&B has no effect."""
    if "method" in values:
        from tunestack.search.wandb_file import is_wandb_file, read_wandb_file

        if is_wandb_file(values):
            return read_wandb_file(values, given)
    return overlay(values, given), ()


def describe(source: str | Path | DataConfig, *, bases: Sequence[str] = (), **data: Any) -> Description:
    """Look at the data before training: labels, lengths, duplicates, leaks.

    bases: count tokens with their tokenizers and suggest a max_length. data: fields of `DataConfig`.
    """
    from tunestack.data import describe as describe_data

    config = (
        source
        if isinstance(source, DataConfig)
        else validated(DataConfig, {"train": str(source), **data}, "data")
    )
    if not bases:
        return describe_data(config)
    from tunestack.bases import load_base

    opened = {name: load_base(BaseConfig(model=name)) for name in bases}
    limits = {name: base.longest_input for name, base in opened.items()}
    return describe_data(config, {name: base.token_lengths for name, base in opened.items()}, limits)


def _several(given: Any) -> list[Any] | None:
    """A list of what was given, one or several."""
    if given is None:
        return None
    return [given] if isinstance(given, str | Mapping) else list(given)


def _check_arguments(function: Callable[..., object], source: object, data: Mapping[str, Any]) -> None:
    """Raise UserError for a source that is no name, and for what is no argument and no field of the data."""
    problems = Problems()
    if not isinstance(source, str | Path):
        problems.add(
            "source",
            expected="the name of a file, a folder or a Hub data set",
            found=type(source).__name__,
            fix='Save it first, for instance with to_csv("train.csv", index=False), and give that name.',
        )
    for name in data.keys() & TrainingConfig.model_fields.keys():
        problems.add(
            name,
            expected="a field of the data",
            found="a field of training",
            fix=f"Write training={{{name!r}: {data[name]!r}}}.",
        )
    known = [*inspect.signature(function).parameters, *DataConfig.model_fields]
    for name in sorted(data.keys() - set(known) - TrainingConfig.model_fields.keys()):
        fix = did_you_mean(name, set(known) - {"source", "data"})
        problems.add(name, expected="an argument, or a field of the data", found=repr(name), fix=fix)
    problems.raise_if_any()
