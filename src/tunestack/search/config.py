"""What a user asks of a sweep, as validated settings."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tunestack.config import (
    BaseConfig,
    DataConfig,
    MethodEntry,
    Seeds,
    Settings,
    TaskConfig,
    Trackers,
    TrainingConfig,
)

ASKED_FOR = "a list of values, or {min: ..., max: ...}"


def _number(value: Any) -> Any:
    """A number as it was written: 1 and 1.0 mean ranges of different kinds."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if value is not None and not is_number:
        raise ValueError("a number")
    return value


Number = Annotated[int | float | None, PlainValidator(_number)]


class Dimension(Settings):
    """What one field is searched over: a list of values, or a range.

    A range between whole numbers holds whole numbers; a `step` makes any range finite. Every value of a
    finite dimension has an index, from 0 to `size` - 1.
    """

    values: list[Any] | None = None
    """Anything that the field takes, lists and mappings as well; nothing is made of their order."""
    min: Number = None
    max: Number = None
    log: bool = False
    """Search the logarithm: for rates, sizes and ranks."""
    step: Number = None
    """Search min, min + step, ... up to max at most."""

    def __str__(self) -> str:
        return str(self.values) if self.values is not None else f"{self.min} to {self.max}"

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return {"values": list(value)}
        if not isinstance(value, dict) or not value:
            raise ValueError(f"{ASKED_FOR}; a single value is not searched: write it without `search`")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Dimension:
        if self.values is not None:
            if self.min is not None or self.max is not None or self.log or self.step is not None:
                raise ValueError("either a list of values, or min and max")
            try:
                texts = [json.dumps(value, sort_keys=True) for value in self.values]
            except TypeError as error:
                raise ValueError("numbers, texts, lists and mappings") from error
            if len(set(texts)) < len(texts):
                raise ValueError("every value once")
        elif self.min is None or self.max is None:
            raise ValueError(ASKED_FOR)
        elif self.step is not None and self.step <= 0:
            raise ValueError("step above 0")
        elif self.min > self.max:
            raise ValueError(f"min below max, as in {{min: {self.max}, max: {self.min}}}")
        elif self.log and self.min <= 0:
            raise ValueError("min above 0, for a logarithmic range")
        elif self.log and self.step is not None and Decimal(repr(self.min)) % Decimal(repr(self.step)):
            raise ValueError("min a multiple of step, for a logarithmic range")
        if self.size is not None and self.size < 2:
            raise ValueError("at least two values; a single one is not searched: write it without `search`")
        return self

    @model_serializer
    def _short(self) -> list[Any] | dict[str, Any]:
        """As a user writes it."""
        if self.values is not None:
            return self.values
        rest = {"log": self.log or None, "step": self.step}
        given = {name: value for name, value in rest.items() if value is not None}
        return {"min": self.min, "max": self.max, **given}

    @property
    def integral(self) -> bool:
        """Whether this is a range of whole numbers."""
        return isinstance(self.min, int) and isinstance(self.max, int) and not isinstance(self.step, float)

    @property
    def size(self) -> int | None:
        """How many values there are; None: a continuum."""
        if self.values is not None:
            return len(self.values)
        if (lattice := self.lattice) is None:
            return None if self.min != self.max else 1
        _, _, first, last = lattice
        return last - first + 1

    @property
    def lattice(self) -> tuple[Decimal, Decimal, int, int] | None:
        """Of a range with steps: offset, unit, first, last; the values are offset + k unit for k in between.

        Decimals, so that 0.1 + 2 x 0.1 is 0.3. Below the lowest multiple of the step lies the offset: a range
        of whole numbers is its own k, and a logarithmic one has none.
        """
        if self.min is None or self.max is None or (self.step is None and not self.integral):
            return None
        unit, low, high = (Decimal(repr(number)) for number in (self.step or 1, self.min, self.max))
        offset = low - unit * math.floor(low / unit)
        return offset, unit, math.floor((low - offset) / unit), math.floor((high - offset) / unit)

    def at(self, index: int) -> Any:
        """A value of a finite dimension."""
        if self.values is not None:
            return self.values[index]
        assert self.lattice is not None  # a continuum has no indices
        offset, unit, first, _ = self.lattice
        value = offset + (first + index) * unit
        return int(value) if self.integral else float(value)

    def corners(self) -> list[Any]:
        """Values to check a field with: both ends, all of a list, and what is no round number in between."""
        if self.values is not None:
            return list(self.values)
        if self.size is not None:
            return [self.at(index) for index in sorted({0, 1, self.size - 1})]
        assert self.min is not None
        assert self.max is not None
        return [self.min, self.min + (self.max - self.min) / math.pi, self.max]


Searched = dict[str, Dimension]


class SweepMethod(MethodEntry):
    """One entry of a sweep's `methods`: fields that stay beside the others, under `search` those that do not.

    `{method: lora, bias: none, search: {r: [4, 8, 16], learning_rate: {min: 1e-5, max: 1e-3, log: true}}}`
    """

    search: Searched = Field(default_factory=dict)
    """Fields (of the method or of training) and what they are searched over."""

    @property
    def title(self) -> str:
        """How this entry is called among the others."""
        return self.name or self.method


class SweepConfig(Settings):
    """A sweep: trials with searched hyper-parameters, on one base and one task."""

    data: DataConfig
    task: TaskConfig = TaskConfig()
    """What is to be solved, as in a comparison."""
    base: BaseConfig
    methods: list[SweepMethod] = Field(min_length=1)
    """With several, which one is searched as well, each with fields of its own."""
    search: Searched = Field(default_factory=dict)
    """What is searched for every method: fields of training, or that all these methods have."""
    training: TrainingConfig = TrainingConfig()
    trials: int = Field(default=30, ge=1)
    """How many trials at most; a finite space ends when every point of it was tried."""
    sampler: Literal["tpe", "bayes", "random", "grid"] = "tpe"
    """Who suggests: Parzen estimators; a Gaussian process, which learns from whole trials only; chance; or
    nobody: all points are tried, in random order."""
    pruner: Literal["none", "halving", "hyperband", "median"] = "median"
    """Which trials are stopped early: none, those that lose a successive halving or Hyperband, those below
    the median of the finished ones."""
    metric: str = "auto"
    """What trials are chosen by, on validation: the task's own metric, or f1, accuracy, mcc, ..."""
    seed: int = Field(default=0, ge=0)
    """The seed of the sampler and of the training of every trial."""
    slots: int | None = Field(default=None, ge=1)
    """How many trials train together at most; default: as many as memory holds and speed gains by, of a
    search that learns from its trials no more than a quarter of them."""
    confirm: int = Field(default=0, ge=0)
    """How many of the best trials are trained again, with several seeds."""
    seeds: Seeds = Field(default=[1, 2, 3, 4, 5])
    """The seeds of that, and of best.yaml: a list, or how many."""
    measure_costs: bool = True
    """Measure what each of those costs alone."""
    track: Trackers = Field(default=[])
    """Trackers that are told what happens: mlflow, tensorboard, wandb."""
    output: str = Field(default="runs/sweep", min_length=1)
    """The run folder."""

    @model_serializer(mode="wrap")
    def _without_searched(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without fields of training that have no value of their own, because every method's is searched."""
        values: dict[str, Any] = handler(self)
        if "training" in values:
            values["training"] = {
                name: value for name, value in values["training"].items() if name not in self.always_searched
            }
        return values

    @property
    def always_searched(self) -> set[str]:
        """Fields of training that are searched whatever the method."""
        everywhere = set.intersection(*(set(entry.search) for entry in self.methods))
        return (everywhere | set(self.search)) & set(TrainingConfig.model_fields)
