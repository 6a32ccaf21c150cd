"""The report's charts: places and ticks mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from report_samples import sample_results, with_candidate
from tunestack.report import formatting
from tunestack.report.plots import curve_views, forest, mean_series, pareto, scatters
from tunestack.report.scales import Linear, Log, focused
from tunestack.report.standings import standings
from tunestack.results import Costs


def test_whiskers_lie_on_one_axis_and_a_far_baseline_is_marked() -> None:
    entries = standings(sample_results())
    chart = forest(entries)
    shown = [(w, e) for w, e in zip(chart.whiskers, entries) if w and not w.off]
    positions = [w.mid for w, _ in shown]
    means = [e.score.mean for _, e in shown]
    slope = np.polyfit(means, positions, 1)
    assert np.allclose(np.polyval(slope, means), positions, atol=0.02)
    for w, entry in shown:
        assert np.allclose(
            np.polyval(slope, [entry.score.interval.low, entry.score.interval.high]),
            [w.low, w.high],
            atol=0.02,
        )
    for tick in chart.ticks:
        assert np.polyval(slope, float(tick.text)) == pytest.approx(tick.at, abs=0.02)
    assert [e.name for w, e in zip(chart.whiskers, entries) if w and w.off] == ["majority"]


def test_scatter_places_costs_logarithmically_and_names_what_it_leaves_out() -> None:
    results = with_candidate(sample_results(), "tfidf", costs=Costs())
    chart = scatters(standings(results))[0]
    assert chart.measure.key == "train"
    seconds = [math.log(point.entry.candidate.costs.train_seconds) for point in chart.points]
    places = [point.x for point in chart.points]
    assert np.allclose(np.polyval(np.polyfit(seconds, places, 1), seconds), places, atol=0.02)
    assert [entry.name for entry, _ in chart.off] == ["majority"]
    assert chart.without_cost == 1


def test_curves_have_a_line_for_each_seed_and_their_mean() -> None:
    results = sample_results()
    metric, loss = curve_views(results, standings(results))
    assert [panel.entry.candidate.method for panel in metric.panels] == ["full", "lora", "lora"]
    for panel in metric.panels:
        assert [line.kind for line in panel.lines] == ["seed"] * 3 + ["mean"]
        seeds = np.array([line.points for line in panel.lines[:3]])
        assert np.allclose(seeds.mean(axis=0), panel.lines[3].points, atol=0.02)
        assert len(panel.dots) == 3
    assert {line.dashed for line in loss.panels[0].lines} == {False, True}


def test_the_mean_curve_ends_where_the_first_seed_stopped() -> None:
    short, long = [(1.0, 0.5), (2.0, 0.7)], [(1.0, 0.7), (2.0, 0.9), (3.0, 0.1)]
    assert np.allclose(mean_series([short, long]), [(1.0, 0.6), (2.0, 0.8)])
    assert mean_series([]) == []


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_the_frontier_holds_exactly_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    frontier = pareto(points)
    for position, (cost, quality) in enumerate(points):
        dominated = any((c < cost and q >= quality) or (c <= cost and q > quality) for c, q in points)
        assert (position in frontier) == (not dominated)


scores = st.floats(-1, 1).map(lambda value: round(value, 4))


@given(st.lists(scores, min_size=1, max_size=20), st.integers(3, 8))
def test_linear_ticks_stand_where_their_text_says(values: list[float], about: int) -> None:
    axis = Linear.around(values)
    assert all(0 <= axis.at(value) <= 100 for value in values)
    ticks = axis.ticks(about)
    assert 1 <= len(ticks) <= about + 2
    assert len({tick.text for tick in ticks}) == len(ticks)
    for tick in ticks:
        assert axis.at(float(tick.text.replace("−", "-"))) == pytest.approx(tick.at, abs=0.02)


@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-5, 1e12)), min_size=1, max_size=20),
    st.booleans(),
)
def test_log_ticks_are_few_and_ordered_and_zero_has_its_own_place(values: list[float], seconds: bool) -> None:
    axis = Log.around(values)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= place <= 100 for place in places)
    ticks = axis.ticks(str, seconds=seconds)
    assert len(ticks) <= 7
    assert [tick.at for tick in ticks] == sorted(axis.at(float(tick.text)) for tick in ticks)
    positive = [axis.at(value) for value in values if value > 0]
    assert axis.zeros == (0.0 in values)
    assert all(place > axis.at(0) for place in positive)


@given(st.lists(scores, min_size=1, max_size=10))
def test_a_focused_axis_always_shows_the_best_two(means: list[float]) -> None:
    axis = focused(means, [(mean - 0.01, mean + 0.01) for mean in means])
    for mean in sorted(means, reverse=True)[:2]:
        assert axis.low <= mean <= axis.high


@given(st.lists(st.tuples(scores, st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=10))
def test_no_interval_is_cut_by_the_axis(drawn: list[tuple[float, float, float]]) -> None:
    """Each lies on the axis as a whole, or below it as a whole."""
    bounds = [(mean - below, mean + above) for mean, below, above in drawn]
    axis = focused([mean for mean, _, _ in drawn], bounds)
    for low, high in bounds:
        assert axis.low <= low <= high <= axis.high or high < axis.low


def test_a_wide_interval_that_reaches_up_widens_the_axis() -> None:
    means, bounds = [0.9, 0.88, 0.3], [(0.88, 0.92), (0.86, 0.9), (0.0, 0.87)]
    assert focused(means, bounds).low < 0
    assert focused(means, [*bounds[:2], (0.0, 0.5)]).low > 0.8


def test_the_axis_of_one_epoch_ends_with_it() -> None:
    results = sample_results()
    for candidate in results.candidates:
        for seed in candidate.seeds:
            seed.curves[:] = seed.curves[:1]
    (epoch,) = {point.epoch for c in results.candidates for seed in c.seeds for point in seed.curves}
    for view in curve_views(results, standings(results)):
        assert (view.x_ticks[0].at, float(view.x_ticks[0].text)) == (0.0, 0.0)
        assert (view.x_ticks[-1].at, float(view.x_ticks[-1].text)) == (100.0, epoch)
        assert {x for panel in view.panels for line in panel.lines for x, _ in line.points} == {100.0}


@given(st.floats(1e-6, 1e7))
def test_durations_keep_two_digits_of_truth(seconds: float) -> None:
    units = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "days": 86400}
    words = formatting.duration(seconds).replace(",", "").split()
    shown = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2]))
    assert shown == pytest.approx(seconds, rel=0.06)


@given(st.integers(1, 10**15))
def test_sizes_keep_three_digits_of_truth(count: int) -> None:
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15}
    number, unit = formatting.size(count).split()
    assert float(number.replace(",", "")) * units[unit] == pytest.approx(count, rel=0.006)
