"""The search space: from what Optuna draws to a method's fields, and back for spaces that can be listed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tunestack.config import TrainingConfig, split_fields
from tunestack.search.config import Dimension, SweepConfig, SweepMethod

METHOD = "method"
"""Optuna's name for the choice of a method."""


@dataclass(frozen=True)
class Suggestion:
    """What a trial trains.

    method: the registered name. fields: of the method's config, fixed and searched. training: all fields of
    `TrainingConfig`. parameters: what was searched, to be shown.
    """

    number: int
    method: str
    fields: dict[str, Any]
    training: dict[str, Any]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Branch:
    """A method with what is searched for it. dimensions: by field; names: of those fields in the study."""

    entry: SweepMethod
    shared: Mapping[str, Dimension]

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """What is searched for this method, by field."""
        return {**self.shared, **self.entry.search}

    def name(self, field: str) -> str:
        """A field's name in the study: those of different methods are different parameters."""
        return field if field in self.shared else f"{self.entry.title}.{field}"

    @property
    def size(self) -> int | None:
        """How many points this branch has; None: a continuum."""
        sizes = [dimension.size for dimension in self.dimensions.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def point(self, index: int) -> dict[str, Any]:
        """A point of a finite branch, as parameters of the study."""
        params = {}
        for field, dimension in self.dimensions.items():
            assert dimension.size is not None  # a continuum has no indices
            index, inner = divmod(index, dimension.size)
            params[self.name(field)] = _encode(dimension, inner)
        return params


@dataclass(frozen=True)
class Space:
    """All that a sweep searches."""

    config: SweepConfig

    @cached_property
    def branches(self) -> dict[str, Branch]:
        """Methods with what is searched for them."""
        return {entry.title: Branch(entry, self.config.search) for entry in self.config.methods}

    @cached_property
    def size(self) -> int | None:
        """How many points there are; None: a continuum."""
        sizes = [branch.size for branch in self.branches.values()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def listed(self) -> bool:
        """Whether points are tried one after the other, each once: in a grid, and where all will be tried."""
        few = self.size is not None and self.size <= self.config.trials
        return few or self.config.sampler == "grid"

    def points(self) -> Iterator[dict[str, Any]]:
        """As many points of a finite space as there may be trials, in random order, as parameters."""
        assert self.size is not None  # checked: a grid is finite
        count = min(self.size, self.config.trials)
        # Drawn from the indices: a grid may have more points than memory.
        for index in random.Random(self.config.seed).sample(range(self.size), count):
            yield self.point(index)

    def point(self, index: int) -> dict[str, Any]:
        """A point of a finite space, as parameters of the study."""
        for title, branch in self.branches.items():
            assert branch.size is not None  # a continuum has no indices
            if index < branch.size:
                return {**({METHOD: title} if len(self.branches) > 1 else {}), **branch.point(index)}
            index -= branch.size
        raise IndexError("the space has fewer points")

    def draw(self, trial: optuna.Trial) -> None:
        """Let the sampler choose every parameter that this trial has."""
        titles = list(self.branches)
        title = trial.suggest_categorical(METHOD, titles) if len(titles) > 1 else titles[0]
        branch = self.branches[title]
        for field, dimension in branch.dimensions.items():
            _suggest(trial, branch.name(field), distribution(dimension))

    def branch(self, params: Mapping[str, Any]) -> Branch:
        """The method that parameters of the study are those of."""
        return self.branches[params.get(METHOD, next(iter(self.branches)))]

    def distributions(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """What each parameter is one of."""
        branch = self.branch(params)
        own = {branch.name(field): distribution(found) for field, found in branch.dimensions.items()}
        titles = {METHOD: CategoricalDistribution(list(self.branches))} if METHOD in params else {}
        return {**titles, **own}

    def suggestion(self, number: int, params: Mapping[str, Any]) -> Suggestion:
        """What parameters of the study mean."""
        branch = self.branch(params)
        searched = {
            field: _decode(dimension, params[branch.name(field)])
            for field, dimension in branch.dimensions.items()
        }
        own, training = split_fields(searched)
        entry = branch.entry
        return Suggestion(
            number=number,
            method=entry.method,
            fields={**entry.config, **own},
            training={**self.config.training.model_dump(), **entry.training, **training},
            parameters={**({METHOD: entry.title} if METHOD in params else {}), **searched},
        )

    def evaluations(self, training: Mapping[str, Any]) -> int:
        """How often a trial with these fields of training is evaluated."""
        return math.ceil(_epochs(training["epochs"]) * self.config.training.evaluations_per_epoch)

    @property
    def most_evaluations(self) -> int:
        """How often the longest trial is evaluated."""
        shared = self.config.training.epochs
        longest = [
            max(map(_epochs, branch.dimensions["epochs"].corners()))
            if "epochs" in branch.dimensions
            else _epochs(branch.entry.training.get("epochs", shared))
            for branch in self.branches.values()
        ]
        return self.evaluations({"epochs": max(longest)})


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna has it: choices are their JSON text, values with steps are whole numbers."""
    if dimension.values is not None:
        return CategoricalDistribution([_text(value) for value in dimension.values])
    if dimension.lattice is not None:
        _, _, first, last = dimension.lattice
        return IntDistribution(first, last, log=dimension.log)
    assert dimension.min is not None
    assert dimension.max is not None
    return FloatDistribution(dimension.min, dimension.max, log=dimension.log)


def _suggest(trial: optuna.Trial, name: str, wanted: BaseDistribution) -> None:
    if isinstance(wanted, CategoricalDistribution):
        trial.suggest_categorical(name, wanted.choices)
    elif isinstance(wanted, IntDistribution):
        trial.suggest_int(name, wanted.low, wanted.high, log=wanted.log)
    elif isinstance(wanted, FloatDistribution):
        trial.suggest_float(name, wanted.low, wanted.high, log=wanted.log)


def _epochs(value: Any) -> float:
    """Epochs as training takes them, "3" as well."""
    return TrainingConfig(epochs=value).epochs


def _encode(dimension: Dimension, index: int) -> Any:
    """The parameter of the study for a value of a finite dimension."""
    if dimension.values is not None:
        return _text(dimension.values[index])
    assert dimension.lattice is not None
    return dimension.lattice[2] + index


def _decode(dimension: Dimension, param: Any) -> Any:
    """The field's value that a parameter of the study stands for."""
    if dimension.values is not None:
        return dimension.values[[_text(value) for value in dimension.values].index(param)]
    if dimension.lattice is not None:
        return dimension.at(param - dimension.lattice[2])
    return param


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
