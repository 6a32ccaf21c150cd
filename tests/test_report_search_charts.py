"""A sweep's charts: marks, lines and bars stand where the trials say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from report_sweeps import sample_sweep, with_trials
from tunestack.report import formatting
from tunestack.report.occupancy import occupancy
from tunestack.report.scales import Linear, Steps, clock_ticks
from tunestack.report.search_plots import (
    ScoreAxis,
    history,
    parallel,
    parameter_axis,
    slices,
    trial_curves,
)
from tunestack.report.trials import TrialRow, log_searched, parameter_names, trial_rows
from tunestack.results import Results, SearchSummary, SearchTrial, Span


@pytest.fixture(scope="module")
def sweep() -> Results:
    return sample_sweep()


@pytest.fixture(scope="module")
def rows(sweep: Results) -> list[TrialRow]:
    return trial_rows(sweep)


def slope_of(axis: Linear) -> tuple[float, float]:
    """How a value becomes a height from the top, in percent: found from the axis' ends alone."""
    slope = -100 / (axis.high - axis.low)
    return slope, 100 - slope * axis.low


def test_the_line_of_the_best_so_far_rises_and_ends_at_the_best(rows: list[TrialRow]) -> None:
    axis = ScoreAxis.of(rows)
    chart = history(rows, axis)
    xs, ys = zip(*chart.steps)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)
    best = max(row.value for row in rows if row.complete)
    slope, offset = slope_of(axis.scale)
    assert ys[-1] == pytest.approx(slope * best + offset, abs=0.01)
    assert xs[-1] == 100
    # A corner wherever a complete trial beat all before it: that is, two less the first, and the end.
    complete = sorted(
        (row.trial.number, row.value) for row in rows if row.complete and not axis.off(row.value)
    )
    records = [
        value
        for place, (_, value) in enumerate(complete)
        if value > max([0, *(v for _, v in complete[:place])])
    ]
    assert len(records) >= 3
    assert len(chart.steps) == 2 * len(records)
    assert chart.best.row.name == rows[0].name


def test_every_trial_with_an_end_has_its_mark_at_its_number_and_value(rows: list[TrialRow]) -> None:
    axis = ScoreAxis.of(rows)
    chart = history(rows, axis)
    slope, offset = slope_of(axis.scale)
    assert [mark.row.trial.number for mark in chart.marks] == list(range(32))
    steps = np.diff([mark.x for mark in chart.marks])
    assert np.allclose(steps, steps[0], atol=0.02)
    shapes = {"complete": "dot", "pruned": "ring", "failed": "cross"}
    for mark in chart.marks:
        if mark.row.trial.state != "failed" and mark.row.value < axis.scale.low:
            assert (mark.shape, mark.y) == ("off", 100)
            continue
        assert mark.shape == shapes[mark.row.trial.state]
        if mark.shape != "cross":
            assert mark.y == pytest.approx(slope * mark.row.value + offset, abs=0.01)
    assert {mark.shape for mark in chart.marks} == {"dot", "ring", "cross", "off"}


def test_a_few_diverged_trials_do_not_flatten_the_others(rows: list[TrialRow]) -> None:
    values = [row.value for row in rows if row.complete]
    assert min(values) == 0
    axis = ScoreAxis.of(rows).scale
    assert sum(axis.low <= value <= axis.high for value in values) >= len(values) / 2
    assert axis.high - axis.low < 0.5


def test_equal_values_are_not_cut_from_the_lower_ones() -> None:
    """Where most have one value, an axis for it alone would show no difference at all."""
    trials = [
        SearchTrial(number=n, name=f"trial-{n}", method="lora", parameters={}, state="complete", value=value)
        for n, value in enumerate([0.68, 0.68, 0.68, 0.28, 0.0])
    ]
    axis = ScoreAxis.of(trial_rows(with_trials(trials)))
    assert not any(axis.off(trial.value) for trial in trials)


def test_parallel_coordinates_have_a_line_for_each_complete_trial(
    sweep: Results, rows: list[TrialRow]
) -> None:
    log = {name: log_searched(sweep).get(name) for name in parameter_names(sweep.search)}
    chart = parallel(rows, log, "F1")
    complete = [row for row in rows if row.complete]
    assert [thread.row.name for thread in chart.threads] == [row.name for row in reversed(complete)]
    names = [axis.title for axis in chart.axes]
    assert names[:3] == ["learning_rate", "method", "warmup_ratio"]  # by importance
    assert names[-1] == "F1"
    assert {axis.title for axis in chart.axes if axis.logarithmic} == {"learning_rate"}
    conditional = {"r", "target_modules", "reduction_factor", "non_linearity"}
    assert {axis.title for axis in chart.axes if axis.lacking} == conditional
    for thread in chart.threads:
        assert [x for x, _ in thread.points] == [axis.x for axis in chart.axes]
        for (_, y), axis in zip(thread.points[:-1], chart.axes):
            lacks = axis.title not in thread.row.trial.parameters
            assert (y == chart.lane) == lacks
            assert lacks or y <= chart.floor
    rate = np.array([[math.log(t.row.settings["learning_rate"]), t.points[0][1]] for t in chart.threads])
    assert np.allclose(np.polyval(np.polyfit(*rate.T, 1), rate[:, 0]), rate[:, 1], atol=0.02)
    shades = [thread.shade for thread in chart.threads]
    assert shades == sorted(shades)
    assert 0 == shades[0] < shades[-1] < 1


def test_slices_show_each_trial_that_has_the_parameter(sweep: Results, rows: list[TrialRow]) -> None:
    log = {name: log_searched(sweep).get(name) for name in parameter_names(sweep.search)}
    axis = ScoreAxis.of(rows)
    heights = {mark.row.name: mark.y for mark in history(rows, axis).marks}
    panels = slices(rows, log, axis)
    assert [panel.name for panel in panels] == list(log)
    scored = [row for row in rows if row.trial.state in ("complete", "pruned")]
    for panel in panels:
        having = {row.name for row in scored if panel.name in row.trial.parameters}
        assert {mark.row.name for mark in panel.marks} == having
        assert panel.without == len(scored) - len(having)
        for mark in panel.marks:
            assert mark.y == heights[mark.row.name]
    ranks = next(panel for panel in panels if panel.name == "r")
    assert [tick.text for tick in ranks.x_ticks] == ["2", "4", "8", "16", "32"]
    for mark in ranks.marks:
        assert mark.x == next(t.at for t in ranks.x_ticks if t.text == str(mark.row.settings["r"]))


def test_curves_end_where_their_trials_were_stopped(rows: list[TrialRow]) -> None:
    chart = trial_curves(rows, "f1")
    drawn = {thread.row.name: thread for thread in chart.threads}
    assert drawn.keys() == {row.name for row in rows if row.trial.curve}
    epochs = [point.epoch for row in rows for point in row.trial.curve]
    low, high = min(epochs), max(epochs)
    for thread in chart.threads:
        curve = thread.row.trial.curve
        assert len(thread.points) == len(curve)
        assert thread.end[0] == pytest.approx(100 * (curve[-1].epoch - low) / (high - low), abs=0.01)
        assert (thread.end[0] == 100) == (thread.row.trial.state == "complete")
    low = np.percentile([row.value for row in rows if row.complete], 5)
    below = {thread.row.name for thread in chart.threads if min(y for _, y in thread.points) > 100}
    assert below == {row.name for row in rows if row.complete and row.value < low}  # the one that diverged
    assert chart.off == len(below) == 1
    heights = [(p.metrics["f1"], y) for t in chart.threads for p, (_, y) in zip(t.row.trial.curve, t.points)]
    values, ys = np.array(heights).T
    assert np.allclose(np.polyval(np.polyfit(values, ys, 1), values), ys, atol=0.02)


def test_bars_of_a_slot_do_not_overlap_and_match_the_times(rows: list[TrialRow]) -> None:
    chart = occupancy(rows)
    timed = [span for row in rows for span in row.trial.spans]
    start, end = min(span.began for span in timed), max(span.ended for span in timed)
    assert [slot.slot for slot in chart.slots] == [0, 1, 2, 3]
    assert sum(len(slot.bars) for slot in chart.slots) == len(timed) == 31
    for slot in chart.slots:
        ends = 0.0
        for bar in slot.bars:
            (span,) = bar.row.trial.spans
            assert span.slot == slot.slot
            assert bar.left == pytest.approx(100 * (span.began - start) / (end - start), abs=0.001)
            assert bar.width == pytest.approx(100 * (span.ended - span.began) / (end - start), abs=0.002)
            assert bar.left >= ends - 0.002
            ends = bar.left + bar.width
    busy = sum(span.ended - span.began for span in timed) / (4 * (end - start))
    assert chart.busy == pytest.approx(busy)


def timed_trial(number: int, slot: int, began: float, ended: float) -> SearchTrial:
    return SearchTrial(
        number=number, name=f"trial-{number}", method="lora", parameters={}, state="complete", value=0.5,
        spans=[Span(slot=slot, began=began, ended=ended)],
    )  # fmt: skip


def test_a_night_between_two_runs_is_cut_out_and_said() -> None:
    night = 12 * 3600.0
    trials = [timed_trial(0, 0, 0, 100), timed_trial(1, 1, 0, 90), timed_trial(2, 0, night, night + 100)]
    chart = occupancy(trial_rows(with_trials(trials)))
    assert [(pause.at, pause.text) for pause in chart.pauses] == [(50.0, "11 h 58 min")]
    bars = {bar.row.trial.number: (bar.left, bar.width) for slot in chart.slots for bar in slot.bars}
    assert bars == {0: (0, 50), 1: (0, 45), 2: (50, 50)}
    assert chart.span == "3 min 20 s"
    assert chart.busy == pytest.approx(290 / 400)


def test_what_trained_before_a_stop_has_a_bar_of_its_own() -> None:
    first = timed_trial(0, 0, 0, 100)
    both = [timed_trial(1, 1, 0, 90).spans[0], Span(slot=0, began=200, ended=300)]
    resumed = timed_trial(1, 1, 0, 0).model_copy(update={"spans": both})
    chart = occupancy(trial_rows(with_trials([first, resumed])))
    bars = [
        (slot.slot, bar.row.trial.number, bar.left, bar.width) for slot in chart.slots for bar in slot.bars
    ]
    assert bars == [(0, 0, 0, 50), (0, 1, 50, 50), (1, 1, 0, 45)]
    assert chart.busy == pytest.approx(290 / 400)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1000), st.floats(0.1, 300)), min_size=1, max_size=15)
)
def test_slots_of_several_processes_never_overlap_in_a_row(spans: list[tuple[int, float, float]]) -> None:
    trials = [timed_trial(n, slot, began, began + long) for n, (slot, began, long) in enumerate(spans)]
    results = Results.model_construct(
        metric="f1", verdict=None, search=SearchSummary(sampler="tpe", pruner="none", trials=trials)
    )
    chart = occupancy(trial_rows(results))
    assert sorted(bar.row.trial.number for slot in chart.slots for bar in slot.bars) == list(
        range(len(spans))
    )
    for slot in chart.slots:
        for first, second in zip(slot.bars, slot.bars[1:]):
            assert first.left + first.width <= second.left + 0.01
        assert all(0 <= bar.left <= bar.left + bar.width <= 100.01 for bar in slot.bars)


@pytest.mark.parametrize(
    ("values", "log", "logarithmic", "named"),
    [
        ([1e-5, 3e-4, 1e-2], None, True, False),
        ([0.001, 0.02, 0.19], False, False, False),
        ([0.1, 0.15, 0.3], None, False, False),
        ([0.0, 0.5, 30.0], None, False, False),
        ([8, 2, 32, 2], None, False, True),
        ([0.1, 0.1, 0.2, 0.2], None, False, True),
        (["b", "a"], None, False, True),
        ([True, False], None, False, True),
        ([4, "all"], None, False, True),
        ([["q"], ["q", "v"], None], None, False, True),
        (list(range(1, 2000, 7)), None, True, False),
    ],
)
def test_an_axis_fits_what_was_searched(
    values: list[object], log: bool | None, logarithmic: bool, named: bool
) -> None:
    axis = parameter_axis("x", values, log)
    assert (axis.logarithmic, axis.named) == (logarithmic, named)
    places = [axis.at(value) for value in values]
    assert all(0 <= place <= 100 for place in places)
    if all(isinstance(value, int | float) for value in values) and not isinstance(values[0], bool):
        assert np.array_equal(np.argsort(places, kind="stable"), np.argsort(values, kind="stable"))
    if named:
        assert {tick.at for tick in axis.ticks} == set(places)


@given(st.floats(1e-3, 1e6))
def test_clock_ticks_are_few_and_within_the_span(span: float) -> None:
    ticks = clock_ticks(span, formatting.duration)
    assert ticks[0].at == 0
    assert 1 <= len(ticks) <= 8
    assert all(0 <= tick.at <= 100.01 for tick in ticks)


def test_steps_are_evenly_spaced() -> None:
    assert [tick.at for tick in Steps(("a", "b", "c", "d")).ticks()] == [12.5, 37.5, 62.5, 87.5]
    assert len(Steps(tuple(map(str, range(100)))).ticks()) <= 12
