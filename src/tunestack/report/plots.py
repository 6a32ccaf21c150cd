"""The geometry of the charts, in percent of their plot area: the template draws it as SVG of any width.

Text and strokes keep their size on a phone and on a wide screen, colours come from the page's theme, and the
charts print and work without scripts: that is why no charting library stands here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tunestack.report import formatting
from tunestack.report.scales import Linear, Log, Tick, focused
from tunestack.report.standings import Entry
from tunestack.results import Costs, CurvePoint, Interval, Results, SeedResult


@dataclass(frozen=True)
class Whisker:
    """A dot with its interval on a horizontal axis; `off`: the dot lies beyond the axis' low end."""

    low: float
    mid: float
    high: float
    off: bool


@dataclass(frozen=True)
class Forest:
    """The leaderboard's score axis: one whisker an entry (None without a score), the best one's place."""

    whiskers: list[Whisker | None]
    ticks: list[Tick]
    best: float

    @property
    def any_off(self) -> bool:
        """Whether a dot lies beyond the axis."""
        return any(whisker.off for whisker in self.whiskers if whisker)


def forest(entries: Sequence[Entry]) -> Forest | None:
    """Dots and whiskers of all entries on one axis; None if nothing has a score."""
    scores = [entry.score for entry in entries if entry.score]
    if not scores:
        return None
    axis = focused([s.mean for s in scores], [(s.interval.low, s.interval.high) for s in scores])
    whiskers = [
        None if entry.score is None else _whisker(axis, entry.score.mean, entry.score.interval)
        for entry in entries
    ]
    return Forest(whiskers, axis.ticks(about=5), axis.at(scores[0].mean))


def _whisker(axis: Linear, mean: float, bounds: Interval) -> Whisker:
    return Whisker(axis.at(bounds.low), axis.at(mean), axis.at(bounds.high), mean < axis.low)


@dataclass(frozen=True)
class CostMeasure:
    """A cost to plot quality against: lower is better. seconds: whether ticks go by minutes and hours."""

    key: str
    title: str
    axis: str
    value: Callable[[Costs], float | None]
    text: Callable[[float | None], str]
    seconds: bool = False


def _seconds_per_thousand(costs: Costs) -> float | None:
    rate = costs.inference_examples_per_second
    return 1000 / rate if rate else None


COST_MEASURES = (
    CostMeasure(
        "train",
        "Training time",
        "Time of one training run",
        lambda c: c.train_seconds,
        formatting.duration,
        True,
    ),
    CostMeasure(
        "memory", "Memory", "Peak memory in training", lambda c: c.peak_memory_bytes, formatting.size
    ),
    CostMeasure(
        "disk", "Size on disk", "Size of one trained candidate", lambda c: c.adapter_bytes, formatting.size
    ),
    CostMeasure(
        "inference",
        "Inference",
        "Time to classify 1,000 texts",
        _seconds_per_thousand,
        formatting.duration,
        True,
    ),
    CostMeasure(
        "parameters",
        "Trainable parameters",
        "Trainable parameters",
        lambda c: c.trainable_parameters,
        formatting.quantity,
    ),
)


@dataclass(frozen=True)
class Point:
    """A candidate in the plane of cost and quality."""

    entry: Entry
    x: float
    y: float
    low: float
    high: float
    frontier: bool
    cost: str


@dataclass(frozen=True)
class Scatter:
    """Quality against one cost. steps: corners of the line along the points that none beats on both.

    off: entries too far below the others to be drawn, with their cost in words.
    """

    measure: CostMeasure
    points: list[Point]
    steps: list[tuple[float, float]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    frontier_names: list[str]
    off: list[tuple[Entry, str]]
    without_cost: int
    starts_at: str


def scatters(entries: Sequence[Entry]) -> list[Scatter]:
    """One chart for each cost that at least one scored candidate has."""
    charts = (_scatter(measure, entries) for measure in COST_MEASURES)
    return [chart for chart in charts if chart is not None]


def _scatter(measure: CostMeasure, entries: Sequence[Entry]) -> Scatter | None:
    scored = [(entry, entry.score) for entry in entries if entry.score]
    placed = [
        (entry, summary, cost)
        for entry, summary in scored
        if (cost := measure.value(entry.candidate.costs)) is not None
    ]
    if not placed:
        return None
    bounds = [(summary.interval.low, summary.interval.high) for _, summary, _ in placed]
    y_axis = focused([summary.mean for _, summary, _ in placed], bounds)
    shown = [place for place in placed if place[1].mean >= y_axis.low]
    x_axis = Log.around([cost for _, _, cost in shown])
    frontier = pareto([(cost, summary.mean) for _, summary, cost in shown])
    points = [
        Point(
            entry=entry,
            x=x_axis.at(cost),
            y=100 - y_axis.at(summary.mean),
            low=100 - y_axis.at(summary.interval.low),
            high=100 - y_axis.at(summary.interval.high),
            frontier=position in frontier,
            cost=measure.text(cost),
        )
        for position, (entry, summary, cost) in enumerate(shown)
    ]
    line = sorted((point for point in points if point.frontier), key=lambda point: (point.x, -point.y))
    corners = [(point.x, point.y) for point in line]
    between = [(right[0], left[1]) for left, right in pairwise(corners)]
    y_ticks = y_axis.ticks(about=5)
    return Scatter(
        measure=measure,
        points=points,
        steps=[corner for pair in zip(corners, between) for corner in pair] + corners[-1:],
        x_ticks=x_axis.ticks(measure.text, seconds=measure.seconds),
        y_ticks=[Tick(round(100 - tick.at, 2), tick.text) for tick in y_ticks],
        frontier_names=[point.entry.name for point in line],
        off=[(entry, measure.text(cost)) for entry, summary, cost in placed if summary.mean < y_axis.low],
        without_cost=len(scored) - len(placed),
        starts_at=formatting.score(y_axis.low),
    )


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which (cost, quality) points no other beats on one without losing on the other."""

    def beaten(cost: float, quality: float) -> bool:
        return any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)

    return {position for position, point in enumerate(points) if not beaten(*point)}


@dataclass(frozen=True)
class Line:
    """A curve as SVG polyline points in a square of 100 x 100. kind: a seed, or the mean of the seeds."""

    kind: str
    dashed: bool
    points: list[tuple[float, float]]

    @property
    def path(self) -> str:
        """The points as SVG writes them."""
        return path(self.points)


def path(points: Sequence[tuple[float, float]]) -> str:
    """The points as SVG's polylines write them."""
    return " ".join(f"{x:g},{y:g}" for x, y in points)


@dataclass(frozen=True)
class Panel:
    """One candidate's curves; dots mark the epochs whose weights were kept."""

    entry: Entry
    lines: list[Line]
    dots: list[tuple[float, float]]
    best_epochs: str


@dataclass(frozen=True)
class CurveView:
    """Small multiples of one quantity, on common axes."""

    key: str
    title: str
    panels: list[Panel]
    x_ticks: list[Tick]
    y_ticks: list[Tick]


Reading = Callable[[CurvePoint], float | None]
Series = list[tuple[float, float]]


def curve_views(results: Results, entries: Sequence[Entry]) -> list[CurveView]:
    """The deciding metric and the losses over epochs, for the candidates that have curves."""
    name = formatting.metric_name(results.metric)
    losses: list[Reading] = [lambda point: point.validation_loss, lambda point: point.train_loss]
    views = (
        _curve_view("metric", f"{name} on validation", entries, [lambda p: p.metrics.get(results.metric)]),
        _curve_view("loss", "Loss: validation (solid), training (dashed)", entries, losses),
    )
    return [view for view in views if view is not None]


def _curve_view(key: str, title: str, entries: Sequence[Entry], readings: list[Reading]) -> CurveView | None:
    curves = [
        (entry, [[_series(seed, read) for seed in entry.candidate.seeds] for read in readings])
        for entry in entries
    ]
    drawn = [(entry, per_reading) for entry, per_reading in curves if any(map(any, per_reading))]
    if not drawn:
        return None
    points = [point for _, per_reading in drawn for per_seed in per_reading for s in per_seed for point in s]
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    first, last = min(epochs), max(epochs)
    x_axis = Linear(first if first < last else 0.0, last)  # of one evaluation, from the start to it
    y_axis = Linear.around(values)

    def place(series: Series) -> Series:
        return [(x_axis.at(epoch), round(100 - y_axis.at(value), 2)) for epoch, value in series]

    return CurveView(
        key=key,
        title=title,
        panels=[_panel(entry, per_reading, place) for entry, per_reading in drawn],
        x_ticks=x_axis.ticks(about=4),
        y_ticks=[Tick(round(100 - tick.at, 2), tick.text) for tick in y_axis.ticks(about=4)],
    )


def _panel(entry: Entry, per_reading: list[list[Series]], place: Callable[[Series], Series]) -> Panel:
    lines = []
    for number, per_seed in enumerate(per_reading):
        present = [series for series in per_seed if series]
        seeds = present if len(present) > 1 else []
        lines += [Line("seed", number > 0, place(series)) for series in seeds]
        lines.append(Line("mean", number > 0, place(mean_series(present))))
    kept = [
        (epoch, value)
        for seed, series in zip(entry.candidate.seeds, per_reading[0])
        for epoch, value in series
        if epoch == seed.best_epoch
    ]
    epochs = [f"{seed.best_epoch:g}" for seed in entry.candidate.seeds if seed.best_epoch is not None]
    return Panel(entry, lines, place(kept), ", ".join(epochs))


def _series(seed: SeedResult, read: Reading) -> Series:
    values = ((point.epoch, read(point)) for point in seed.curves)
    return [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]


def mean_series(per_seed: Sequence[Series]) -> Series:
    """The mean over seeds, at the epochs that every seed reached: elsewhere it would jump for no reason."""
    tables = [dict(series) for series in per_seed]
    if not tables:
        return []
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [(epoch, sum(table[epoch] for table in tables) / len(tables)) for epoch in shared]
