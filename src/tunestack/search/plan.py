"""What a sweep will run, checked against data and base before anything trains."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunestack.baselines.registry import BASELINES
from tunestack.bases import Base, load_base
from tunestack.comparison.checks import check_class_weights, check_metric, check_output
from tunestack.comparison.plan import MethodCandidate, base_name, method_candidate, with_metric
from tunestack.config import TrainingConfig, split_fields
from tunestack.data import TextData
from tunestack.entries import BaseCheck, entry_training, method_config, own_fields, training_defaults
from tunestack.errors import Problems, UserError, did_you_mean
from tunestack.methods.registry import METHODS
from tunestack.search.config import SweepConfig, SweepMethod
from tunestack.search.names import nearest_name, usual_name
from tunestack.search.space import Branch, Space, Suggestion
from tunestack.search.strategies import LEARNING, WAITING
from tunestack.settings import validated
from tunestack.stack.optim import check_optimizer
from tunestack.stack.room import FIRST
from tunestack.tasks.base import Task
from tunestack.tasks.registry import open_task
from tunestack.trackers.registry import check_trackers

RUNGS = "evaluations_per_epoch"

ROUNDS = 4
"""A search that learns from trials that ended has no more than one in so many in training at once."""
Room = tuple[int, int]
"""How many tokens an example may have, and for how many there are places at all."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep, checked.

    config: with every method's own defaults written out. notes: what a user should know.
    """

    config: SweepConfig
    space: Space
    data: TextData
    task: Task
    base: Base
    check: BaseCheck
    notes: tuple[str, ...]

    @property
    def most_slots(self) -> int | None:
        """How many trials may train at once where `slots` does not say. With all of them at once, there is
        nothing that a sampler could learn from, nor a pruner that looks at those that have ended. None: any
        number.
        """
        return self.most_in_hand if learns(self.space) else None

    @property
    def most_in_hand(self) -> int:
        """How many trials a process may have taken and not ended where some of them wait, because they cannot
        share the base: what they wait for could be learned from, or be trained by another process.
        """
        return _round(self.space)

    def candidate(self, suggestion: Suggestion, name: str) -> MethodCandidate:
        """A suggestion as a candidate of that name. Raises UserError for values that do not go together."""
        training = validated(TrainingConfig, suggestion.training, f"{name}.training")
        method, base = METHODS[suggestion.method], base_name(self.config.base)
        candidate = method_candidate(name, base, self.check, method, suggestion.fields, training)
        method.check_steps(candidate.config, training.steps(len(self.data.train)))
        return candidate


def make_plan(config: SweepConfig) -> SweepPlan:
    """Open data and base, check the space and its corners. Raises one UserError for all that is wrong."""
    config = with_method_defaults(config)
    problems = Problems()
    check_output(Path(config.output), problems)
    check_trackers(config.track, problems)
    task, data = open_task(config.task, config.data, problems)
    config = with_metric(config)
    base = problems.attempt(load_base, config.base)
    if base is not None:
        problems.attempt(base.source.check_weights, config.base.model)
    check_metric(config.metric, task, data, problems)
    check = BaseCheck(base, task) if base else None
    if check is not None:
        problems.attempt(check.check_skipped)
    space = Space(config)
    sound = check_space(config, problems)
    rooms: set[Room] = set()
    for position in sound:
        rooms |= _check_corners(config, position, check, task, data, problems)
    if base is not None and data is not None:
        rooms = rooms or {(base.room_for_text(config.training.max_length), base.longest_input)}
        for limit, places in sorted({min(rooms), max(rooms), min(rooms, key=lambda room: room[1])}):
            problems.attempt(task.check_base, base, data.splits(), limit, places)
    problems.raise_if_any()
    assert data is not None  # or its problems would have been raised
    assert base is not None
    assert check is not None
    return SweepPlan(config, space, data, task, base, check, notes(space))


def with_method_defaults(config: SweepConfig) -> SweepConfig:
    """The settings with each method's own training defaults, where nothing is given or searched."""
    given = config.training.model_fields_set
    entries = []
    for entry in config.methods:
        wanted = training_defaults(entry.method, given, {*entry.training, *entry.search, *config.search})
        entries.append(entry.model_copy(update={"training": {**wanted, **entry.training}}))
    return config.model_copy(update={"methods": entries})


def learns(space: Space) -> bool:
    """Whether a sampler or a pruner learns from trials that have ended."""
    samples = space.config.sampler in LEARNING and not space.listed
    return samples or (space.config.pruner in WAITING and space.most_evaluations > 1)


def _round(space: Space) -> int:
    """How many trials train at once where somebody learns from those that have ended."""
    return max(FIRST, math.ceil(min(space.config.trials, space.size or space.config.trials) / ROUNDS))


def notes(space: Space) -> tuple[str, ...]:
    """What a user should know of a sweep that will do less than its settings say."""
    config, size = space.config, space.size
    found = []
    if size is not None and size < config.trials:
        found.append(f"The space has {size} points: the sweep ends when each was tried, after {size} trials.")
    if size is not None and size > config.trials and config.sampler == "grid":
        found.append(f"{config.trials} of the {size} points of the grid are tried, chosen at random.")
    if config.pruner != "none" and space.most_evaluations == 1:
        more = "more `epochs`, or `evaluations_per_epoch` under `training` in a file, would change that"
        found.append(f"Trials are evaluated once, at their end: none can be stopped early; {more}.")
    if config.slots is not None and config.slots > 2 * _round(space) and learns(space):
        who = config.sampler if config.sampler in LEARNING and not space.listed else f"the {config.pruner}"
        found.append(
            f"With {config.slots} slots, {who} knows little: many trials begin before any has ended. Of "
            f"{config.trials} trials, {_round(space)} at once leave it more to learn from."
        )
    if size is not None and config.confirm > size:
        found.append(f"The space has {size} points: {size} are confirmed in place of {config.confirm}.")
    return tuple(found)


def check_space(config: SweepConfig, problems: Problems) -> list[int]:
    """Note what is wrong with a space, whatever the base; the positions of the methods that are sound."""
    titles = [entry.title for entry in config.methods]
    for title in sorted({title for title in titles if titles.count(title) > 1}):
        problems.add(
            "methods",
            expected="methods that can be told apart",
            found=f"{title!r} {titles.count(title)} times",
            fix="Give each its own `name`, in a file: methods: [{method: lora, name: one}, ...].",
        )
    if len(config.methods) == 1 and not config.search and not config.methods[0].search:
        problems.add(
            "search",
            expected="at least one field to search",
            found="none",
            fix="Name some, for example search: {learning_rate: {min: 1e-5, max: 1e-3, log: true}}.",
        )
    if config.confirm > config.trials:
        problems.add(
            "confirm",
            expected=f"at most {config.trials}, as many as there are trials",
            found=str(config.confirm),
            fix="Lower it, or raise `trials`.",
        )
    sound = []
    for position, entry in enumerate(config.methods):
        found = Problems()
        _check_entry(config, entry, f"methods.{position}", found)
        if not found:
            sound.append(position)
        problems.attempt(found.raise_if_any)
    _check_shared(config, problems)
    _check_rungs(config, problems)
    if config.sampler == "grid":
        _check_grid(config, problems)
    return sound


def _check_entry(config: SweepConfig, entry: SweepMethod, where: str, problems: Problems) -> None:
    if entry.method not in METHODS:
        is_baseline = entry.method in BASELINES
        problems.add(
            where,
            expected="a method that trains" if is_baseline else "a known method",
            found=repr(entry.method),
            fix="Put it beside the best trial in a comparison: `tunestack compare`."
            if is_baseline
            else did_you_mean(entry.method, METHODS),
        )
        return
    if "grid" in entry.config:
        problems.add(
            f"{where}.grid", expected="`search`, in a sweep", found="grid", fix="Write it under `search`."
        )
    own = own_fields(METHODS[entry.method])
    for field in entry.search:
        if field not in own | set(TrainingConfig.model_fields):
            problems.add(
                f"{where}.search.{field}",
                expected=f"a field of {entry.method} or of training",
                found=repr(field),
                fix=nearest_name(field, [own], TrainingConfig.model_fields.keys()),
            )
        if field in entry.config or field in entry.training:
            _contradiction(f"{where}.search.{field}", where, problems)
        if field in config.search:
            problems.add(
                f"{where}.search.{field}",
                expected="a field that is searched in one place",
                found="the same field under `search` for all methods",
                fix="Remove it there, or here.",
            )
    for field in config.search:
        if field in entry.config or field in entry.training:
            _contradiction(f"search.{field}", where, problems)


def _check_shared(config: SweepConfig, problems: Problems) -> None:
    """Note fields that are searched for all methods, and that some do not have or that stand in training."""
    known = [entry.method for entry in config.methods if entry.method in METHODS]
    common = set.intersection(*(own_fields(METHODS[name]) for name in known)) if known else set()
    for field in config.search:
        if known and field not in common | set(TrainingConfig.model_fields):
            problems.add(
                f"search.{field}",
                expected=f"a field of training, or of {', '.join(dict.fromkeys(known))}",
                found=repr(field),
                fix=_of_some(field, known)
                or nearest_name(field, [common], TrainingConfig.model_fields.keys()),
            )
    for field in config.always_searched & config.training.model_fields_set:
        _contradiction(f"search.{field}", "training", problems)


def _of_some(field: str, methods: Sequence[str]) -> str:
    """How to mend a field that only some methods have, or each by another name; empty for any other."""
    own = {name: own_fields(METHODS[name]) for name in methods}
    names = {name: usual for name in own if (usual := usual_name(field, [own[name]])) in own[name]}
    if len(names) == len(own) and len(set(names.values())) == 1:
        return ""
    return " ".join(
        f"Of {name} it is `{usual}`: write that under `search` of {name} alone, in a file."
        for name, usual in names.items()
    )


def _contradiction(where: str, fixed: str, problems: Problems) -> None:
    field = where.rpartition(".")[2]
    problems.add(
        where,
        expected="a field that is either searched or fixed",
        found=f"a value for {field} in {fixed}",
        fix="Remove it there, or here.",
    )


def _check_rungs(config: SweepConfig, problems: Problems) -> None:
    """Trials are compared at the same evaluations: how often there is one is the same for all."""
    places: dict[str, Mapping[str, Any]] = {"search": config.search}
    for position, entry in enumerate(config.methods):
        places |= {f"methods.{position}.training": entry.training, f"methods.{position}.search": entry.search}
    for place, fields in places.items():
        if RUNGS in fields:
            problems.add(
                f"{place}.{RUNGS}",
                expected="one number for all trials",
                found=str(fields[RUNGS]),
                fix=f"Write it under `training`, beside `methods`: training: {{{RUNGS}: 2}}.",
            )


def _check_grid(config: SweepConfig, problems: Problems) -> None:
    """Note what has no list of values."""
    places = {f"search.{field}": dimension for field, dimension in config.search.items()}
    for position, entry in enumerate(config.methods):
        places |= {f"methods.{position}.search.{field}": found for field, found in entry.search.items()}
    for place, dimension in places.items():
        if dimension.size is None:
            problems.add(
                place,
                expected="values that can be counted, for a grid",
                found=f"all numbers from {dimension.min:g} to {dimension.max:g}",
                fix="Give a list, or a `step`; or use another sampler.",
            )


def _check_corners(
    config: SweepConfig,
    position: int,
    check: BaseCheck | None,
    task: Task,
    data: TextData | None,
    problems: Problems,
) -> set[Room]:
    """Build the method's config and training at the corners of its space: every value once, and both ends.

    Returns the room that examples have there.
    """
    entry, where = config.methods[position], f"methods.{position}"
    method = METHODS[entry.method]
    fixed = problems.attempt(
        entry_training, config.training, entry.method, entry.config, entry.training, where
    )
    known = own_fields(method) | set(TrainingConfig.model_fields)
    shared = {field: dimension for field, dimension in config.search.items() if field in known}
    rooms: set[Room] = set()
    for corner in corners(Branch(entry, shared)):
        own, of_training = split_fields(corner)
        settings, training = None, None
        with problems.collecting(where):
            settings = method_config(method, {**entry.config, **own}, check)
        if fixed is not None:
            training = _corner_training(fixed, of_training, shared, where, problems)
        if training is not None and check is not None:
            problems.attempt(check_optimizer, training.optim, check.base.device)
        if settings is not None and training is not None and data is not None:
            check_class_weights(config.training, {where: training}, task, problems)
            with problems.collecting(where):
                method.check_training(training)
                method.check_steps(settings, training.steps(len(data.train)))
        if settings is not None and training is not None and check is not None:
            taken = method.positions_taken(settings, check.skeleton)
            room = check.base.room_for_text
            rooms.add((room(training.max_length, taken), room(sys.maxsize, taken)))
    return rooms


def _corner_training(
    fixed: TrainingConfig,
    searched: Mapping[str, Any],
    shared: Collection[str],
    where: str,
    problems: Problems,
) -> TrainingConfig | None:
    """The training at a corner; what is wrong with it is told of where it is searched."""
    try:
        return validated(TrainingConfig, {**fixed.model_dump(), **searched})
    except UserError as error:
        for problem in error.problems:
            is_shared = problem.where.partition(".")[0] in shared
            place = f"search.{problem.where}" if is_shared else f"{where}.search.{problem.where}"
            problems.extend(UserError(replace(problem, where=place)))
        return None


def corners(branch: Branch) -> Iterator[dict[str, Any]]:
    """The values to check a branch with: everything at its first, then each field at each of its others."""
    values = {field: dimension.corners() for field, dimension in branch.dimensions.items()}
    first = {field: options[0] for field, options in values.items()}
    yield first
    for field, options in values.items():
        for value in options[1:]:
            yield {**first, field: value}
