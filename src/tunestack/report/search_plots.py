"""The geometry of a sweep's charts, in percent of their plot area, as `plots` has that of a comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunestack.report import formatting
from tunestack.report.plots import path
from tunestack.report.scales import Linear, Log, Steps, Tick, focused
from tunestack.report.trials import TrialRow

FEW_VALUES = 8
"""Numbers that take so few values are evenly spaced, each with its tick."""
MOST_AXES = 9
"""Parallel coordinates have so many parameters at most: the most important ones."""
LANE = 12.0
"""Share of a parallel axis, in percent, kept at its foot for trials without that parameter."""
LONGEST_TICK = 22
WIDEST_TICKS = 36
"""A small panel has room for ticks of so many characters together."""

Place = tuple[float, float]
LogSearched = Mapping[str, bool | None]
"""The parameters, the most important first; whether their logarithm was searched, None where not known."""


@dataclass(frozen=True)
class ScoreAxis:
    """An axis of the metric; places count from the top."""

    scale: Linear

    @classmethod
    def of(cls, rows: Sequence[TrialRow]) -> ScoreAxis | None:
        """An axis for these trials' values; None without any."""
        values = [row.value for row in rows if row.value is not None and math.isfinite(row.value)]
        if not values:
            return None
        return cls(_focused(values))

    def y(self, value: float) -> float:
        """The value's place; one below the axis lies at its foot."""
        return round(100 - self.scale.at(value), 2)

    def off(self, value: float) -> bool:
        """Whether the value lies below the axis."""
        return value < self.scale.low

    def shade(self, value: float) -> float:
        """How high the value is, from 0 to 1: what lines are coloured by."""
        return round(self.scale.at(value) / 100, 3)

    @property
    def ticks(self) -> list[Tick]:
        """Ticks, from the bottom up."""
        return _upward(self.scale.ticks(about=5))


@dataclass(frozen=True)
class Mark:
    """A trial as a mark. shape: dot (complete), ring (pruned), cross (failed), off (below the axis)."""

    row: TrialRow
    x: float
    y: float
    shape: Literal["dot", "ring", "cross", "off"]


@dataclass(frozen=True)
class History:
    """Values by trial number. steps: corners of the line of the best complete value so far."""

    marks: list[Mark]
    steps: list[Place]
    best: Mark | None
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    @property
    def steps_path(self) -> str:
        """The line as SVG writes it."""
        return path(self.steps)


def history(rows: Sequence[TrialRow], axis: ScoreAxis) -> History:
    """Every trial that has a value or failed, in the order of their numbers."""
    ordered = sorted(rows, key=lambda row: row.trial.number)
    x_axis = Linear(ordered[0].trial.number - 0.6, ordered[-1].trial.number + 0.6)
    marks = [mark for row in ordered if (mark := _mark(row, x_axis.at(row.trial.number), axis))]
    steps: list[Place] = []
    best: Mark | None = None
    for mark in marks:
        if mark.shape == "dot" and (best is None or (mark.row.value or 0.0) > (best.row.value or 0.0)):
            steps += [*([(mark.x, best.y)] if best else []), (mark.x, mark.y)]
            best = mark
    return History(
        marks=marks,
        steps=[*steps, (100.0, best.y)] if best else [],
        best=best,
        x_ticks=x_axis.ticks(about=8, whole=True),
        y_ticks=axis.ticks,
    )


def _mark(row: TrialRow, x: float, axis: ScoreAxis) -> Mark | None:
    if row.trial.state == "failed":
        return Mark(row, x, 100.0, "cross")
    if row.value is None or row.trial.state == "running":
        return None
    if axis.off(row.value):
        return Mark(row, x, 100.0, "off")
    return Mark(row, x, axis.y(row.value), "dot" if row.complete else "ring")


@dataclass(frozen=True)
class ParameterAxis:
    """One parameter's axis. at: a value's place in percent; named: of single values, evenly spaced."""

    name: str
    at: Callable[[Any], float]
    ticks: list[Tick]
    logarithmic: bool = False
    named: bool = False


def parameter_axis(name: str, values: Sequence[Any], log: bool | None = None) -> ParameterAxis:
    """The axis that fits a parameter's values: named ones, decades, or a plain range.

    Numbers that take few values count as named ones in their order: ranks and batch sizes do. log: whether
    its logarithm was searched; where that is not known, it is logarithmic if the values span a decade.
    """
    numbers = [value for value in values if _is_number(value)]
    if len(numbers) < len(values):
        names = tuple(sorted({formatting.parameter(value) for value in values}))
        return _named(name, names)
    distinct = tuple(dict.fromkeys(map(formatting.parameter, sorted(numbers))))
    listed = all(isinstance(value, int) for value in numbers) or 2 * len(distinct) <= len(numbers)
    if len(distinct) <= FEW_VALUES and listed:
        return _named(name, distinct)
    if min(numbers) > 0 and (log or (log is None and max(numbers) >= 10 * min(numbers))):
        decades = Log.around(numbers)
        ticks = decades.ticks(formatting.parameter, at_most=5)
        return ParameterAxis(name, decades.at, ticks, logarithmic=True)
    linear = Linear.around(numbers)
    return ParameterAxis(name, linear.at, linear.ticks(about=4))


def _named(name: str, names: tuple[str, ...]) -> ParameterAxis:
    steps = Steps(names)
    return ParameterAxis(name, lambda value: steps.at(formatting.parameter(value)), steps.ticks(), named=True)


def _fitted(ticks: Sequence[Tick], length: int) -> list[Tick]:
    """The ticks with texts of at most `length` characters: what is too long loses its middle."""
    tail = length // 2
    return [
        tick
        if len(tick.text) <= length
        else Tick(tick.at, f"{tick.text[: length - tail - 1].rstrip()}…{tick.text[-tail:].lstrip()}")
        for tick in ticks
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Upright:
    """An upright axis of the parallel coordinates. lacking: whether some trial has no such parameter."""

    x: float
    title: str
    ticks: list[Tick]
    logarithmic: bool = False
    lacking: bool = False


@dataclass(frozen=True)
class Thread:
    """A trial as a line. shade: how high its value is, from 0 to 1. end: where the line ends."""

    row: TrialRow
    points: list[Place]
    shade: float

    @property
    def path(self) -> str:
        """The points as SVG writes them."""
        return path(self.points)

    @property
    def end(self) -> Place:
        """The last point."""
        return self.points[-1]


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: parameters from left to right, the metric last. left_out: parameters without an
    axis; off: how many trials lie below the metric's axis, where their lines end at its foot; floor: where
    the axes end if some trials lack a parameter, whose place is `lane`.
    """

    axes: list[Upright]
    threads: list[Thread]
    left_out: list[str]
    off: int
    floor: float = 100 - LANE
    lane: float = 100 - LANE / 3


def parallel(rows: Sequence[TrialRow], log: LogSearched, metric: str) -> Parallel | None:
    """A line for each complete trial, the best drawn last; None without a complete trial or a parameter."""
    drawn = [(row, row.value) for row in reversed(rows) if row.complete and row.value is not None]
    axis = ScoreAxis.of([row for row, _ in drawn])
    found = {name: _values([row for row, _ in drawn], name) for name in log}
    shown = [name for name in log if found[name]]
    if not shown or axis is None:
        return None
    kept, left_out = shown[:MOST_AXES], shown[MOST_AXES:]
    scales = [parameter_axis(name, found[name], log[name]) for name in kept]
    some_lack = any(len(found[name]) < len(drawn) for name in kept)
    foot = LANE if some_lack else 0.0
    places = [round(100 * position / len(kept), 2) for position in range(len(kept) + 1)]

    def height(scale: ParameterAxis, row: TrialRow) -> float:
        if scale.name not in row.trial.parameters:
            return 100 - LANE / 3
        return _above(scale.at(row.trial.parameters[scale.name]), foot)

    threads = [
        Thread(
            row=row,
            points=[
                *((x, height(scale, row)) for x, scale in zip(places, scales)),
                (100.0, _above(axis.scale.at(value), foot)),
            ],
            shade=axis.shade(value),
        )
        for row, value in drawn
    ]
    axes = [
        Upright(
            x=x,
            title=scale.name,
            ticks=[Tick(_above(tick.at, foot), tick.text) for tick in _fitted(scale.ticks, LONGEST_TICK)],
            logarithmic=scale.logarithmic,
            lacking=len(found[scale.name]) < len(drawn),
        )
        for x, scale in zip(places, scales)
    ]
    ticks = [Tick(_above(tick.at, foot), tick.text) for tick in axis.scale.ticks(about=5)]
    off = sum(axis.off(value) for _, value in drawn)
    return Parallel([*axes, Upright(100.0, metric, ticks)], threads, left_out, off, floor=100 - foot)


def _values(rows: Sequence[TrialRow], name: str) -> list[Any]:
    return [row.trial.parameters[name] for row in rows if name in row.trial.parameters]


def _above(percent: float, foot: float) -> float:
    """From a place along an axis to one from the top, `foot` percent above the bottom."""
    return round((100 - foot) * (1 - percent / 100), 2)


@dataclass(frozen=True)
class Slice:
    """The metric against one parameter; `without`: how many trials with a value lack it; `wordy`: whether
    its ticks need a wide panel."""

    name: str
    logarithmic: bool
    wordy: bool
    marks: list[Mark]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    without: int


def slices(rows: Sequence[TrialRow], log: LogSearched, axis: ScoreAxis) -> list[Slice]:
    """A panel for each parameter, on one axis of the metric; the best trials are drawn last."""
    scored = [row for row in reversed(rows) if row.trial.state != "failed" and _mark(row, 0, axis)]
    panels = []
    for name in log:
        having = [row for row in scored if name in row.trial.parameters]
        if not having:
            continue
        scale = parameter_axis(name, _values(having, name), log[name])
        ticks = _fitted(scale.ticks, WIDEST_TICKS // len(scale.ticks)) if scale.named else scale.ticks
        placed = (_mark(row, scale.at(row.trial.parameters[name]), axis) for row in having)
        panels.append(
            Slice(
                name=name,
                logarithmic=scale.logarithmic,
                wordy=sum(len(tick.text) for tick in ticks) > WIDEST_TICKS // 2,
                marks=[mark for mark in placed if mark],
                x_ticks=ticks,
                y_ticks=axis.ticks,
                without=len(scored) - len(having),
            )
        )
    return panels


@dataclass(frozen=True)
class Curves:
    """The metric over epochs: a line for each trial that was evaluated, the best drawn last. off: how many
    lie below the axis from their first point to their last."""

    threads: list[Thread]
    off: int
    x_ticks: list[Tick]
    y_ticks: list[Tick]


def trial_curves(rows: Sequence[TrialRow], metric: str) -> Curves | None:
    """Learning curves, each as far as its trial went; None where no trial was evaluated twice.

    Complete trials have the colours that they have in the parallel coordinates. Points below the axis lie
    outside the plot area: whoever draws cuts the lines off there.
    """
    series = [(row, _curve(row, metric)) for row in reversed(rows)]
    series = [(row, points) for row, points in series if points]
    if not any(len(points) > 1 for _, points in series):
        return None
    epochs = [epoch for _, points in series for epoch, _ in points]
    values = [value for _, points in series for _, value in points]
    x_axis = Linear(min(epochs), max(epochs))
    scale = _focused(values)
    final = ScoreAxis.of([row for row in rows if row.complete])
    threads = [
        Thread(
            row=row,
            points=[(x_axis.at(epoch), round(100 - scale.beyond(value), 2)) for epoch, value in points],
            shade=final.shade(row.value) if final and row.complete and row.value is not None else 0.0,
        )
        for row, points in series
    ]
    off = sum(all(y > 100 for _, y in thread.points) for thread in threads)
    return Curves(threads, off, x_axis.ticks(about=8), _upward(scale.ticks(about=5)))


def _curve(row: TrialRow, metric: str) -> list[Place]:
    found = ((point.epoch, point.metrics.get(metric)) for point in row.trial.curve)
    return [(epoch, value) for epoch, value in found if value is not None and math.isfinite(value)]


def _focused(values: Sequence[float]) -> Linear:
    """An axis for at least half of the values: a few that diverged must not flatten the others."""
    axis = focused(values, [(v, v) for v in values], at_least=max(2, (len(values) + 1) // 2))
    shown = {value for value in values if value >= axis.low}
    return axis if len(shown) > 1 else Linear.around(values)


def _upward(ticks: Sequence[Tick]) -> list[Tick]:
    return [Tick(round(100 - tick.at, 2), tick.text) for tick in ticks]
