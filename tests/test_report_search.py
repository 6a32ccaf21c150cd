"""The report of a sweep: right numbers, right order, nothing unescaped, and what is missing is said."""

from __future__ import annotations

import doctest
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from report_samples import NASTY
from report_sweeps import sample_sweep, with_trials
from test_report import markdown_rows, page, terminal
from tunestack.report import formatting, write_leaderboard, write_report
from tunestack.report.search import sweep_view
from tunestack.report.search_plots import (
    trial_curves,
)
from tunestack.report.trials import METHOD, TrialRow, importances, trial_rows
from tunestack.results import Results, SearchSummary, SearchTrial


def none_complete() -> Results:
    """Still running, or all failed."""
    trials = [
        SearchTrial(number=0, name="trial-0", method="lora", parameters={"r": 4}, state="running"),
        SearchTrial(
            number=1, name="trial-1", method="lora", parameters={"r": 8}, state="failed", failure="no room"
        ),
    ]
    return with_trials(trials, verdict=None, candidates=[])


def no_trials() -> Results:
    return with_trials([], verdict=None, candidates=[])


def nasty() -> Results:
    """Every text that a user chose may hold anything."""
    results = sample_sweep(12)
    ship = results.verdict.ship
    trials = [
        trial.model_copy(
            update={
                "parameters": {NASTY: NASTY, "list": [NASTY, None, True], "deep": {"a": [1e-7, NASTY]}},
                "method": NASTY,
                "failure": trial.failure and NASTY,
            }
        )
        for trial in results.search.trials
    ]
    assert ship in {trial.name for trial in trials}
    update = {"trials": trials, "importances": {NASTY: 1.0}, "sampler": NASTY, "confirmed": NASTY}
    return results.model_copy(update={"search": results.search.model_copy(update=update)})


def one_trial() -> Results:
    results = sample_sweep(1)
    return results.model_copy(
        update={"search": results.search.model_copy(update={"importances": {}}), "config": {}}
    )


VARIANTS: dict[str, Callable[[], Results]] = {
    "32 trials": sample_sweep,
    "confirmed": lambda: sample_sweep(confirmed=True),
    "150 trials": lambda: sample_sweep(150, 8),
    "one trial": one_trial,
    "none complete": none_complete,
    "no trials": no_trials,
    "nasty": nasty,
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Results:
    return VARIANTS[request.param]()


@pytest.fixture(scope="module")
def sweep() -> Results:
    return sample_sweep()


@pytest.fixture(scope="module")
def rows(sweep: Results) -> list[TrialRow]:
    return trial_rows(sweep)


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(formatting).failed == 0


def test_every_variant_gives_a_whole_page(variant: Results, tmp_path: Path) -> None:
    report = page(variant, tmp_path)
    assert report.open == []
    assert report.count("script") == 1
    assert report.count("img") == 0
    for trial in variant.search.trials:
        assert trial.name in report.text
    for _, attributes in report.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"nan", "nan%", "None", "None%"} & set(attributes.values())
    ids = [attributes["id"] for _, attributes in report.elements if "id" in attributes]
    links = [attributes["href"] for tag, attributes in report.elements if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    outside = [link for link in links if not link.startswith("#")]
    assert len(outside) == (variant.search.confirmed is not None)


def test_equal_results_give_an_equal_page_also_after_a_round_trip(tmp_path: Path, sweep: Results) -> None:
    first = write_report(sweep, tmp_path).read_bytes()
    sweep.save(tmp_path / "results.json")
    assert write_report(Results.load(tmp_path / "results.json"), tmp_path).read_bytes() == first
    assert len(first) < 300_000


def test_texts_are_shown_and_never_run(tmp_path: Path) -> None:
    results = nasty()
    report = page(results, tmp_path)
    assert report.text.count(NASTY) > len(results.search.trials)
    about = [attributes["data-about"] for _, attributes in report.elements if "data-about" in attributes]
    assert len(about) == len(results.search.trials)
    assert all(f"{NASTY} = {NASTY[:30]}" in text for text in about)
    [link] = [a["href"] for tag, a in report.elements if tag == "a" and not a["href"].startswith("#")]
    assert re.fullmatch(r"\./[\w%/.-]+/report\.html", link)
    write_leaderboard(results, tmp_path / "leaderboard.md")
    assert "<script>" not in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")


def test_the_reader_is_told_that_the_best_of_many_flatters_itself(tmp_path: Path) -> None:
    text = page(sample_sweep(), tmp_path).text
    assert "trials with one seed flatters itself" in text
    assert "--confirm 3" in text
    report = page(sample_sweep(confirmed=True), tmp_path)
    assert "./confirmed/report.html" in [a.get("href") for tag, a in report.elements if tag == "a"]
    assert "--confirm 3" not in report.text
    assert "flatters itself" not in page(one_trial(), tmp_path).text


def test_trials_are_ranked_by_value_and_the_complete_come_first(rows: list[TrialRow]) -> None:
    states = [row.trial.state for row in rows]
    assert states == sorted(states, key=("complete", "running", "pruned", "failed").index)
    complete = [row for row in rows if row.complete]
    assert [row.rank for row in rows] == [*range(1, len(complete) + 1), *[None] * (len(rows) - len(complete))]
    values = [row.value for row in complete]
    assert values == sorted(values, reverse=True)
    for row in rows:
        if row.trial.state == "pruned":
            assert row.value == row.trial.curve[-1].metrics["f1"]
    assert [row.standing for row in rows].count("ship") == 1
    assert rows[0].standing == "ship"


def test_one_evaluation_is_no_curve(tmp_path: Path, sweep: Results) -> None:
    trials = [trial.model_copy(update={"curve": trial.curve[:1]}) for trial in sweep.search.trials]
    results = with_trials(trials)
    assert trial_curves(trial_rows(results), "f1") is None
    assert "No trial was evaluated more than once" in page(results, tmp_path).text


def test_importances_are_named_as_the_trials_name_them(sweep: Results) -> None:
    summary = SearchSummary(
        sampler="tpe",
        pruner="none",
        trials=sweep.search.trials,
        importances={"lora.r": 0.2, "learning_rate": 0.7, "elsewhere.x": 0.1},
    )
    assert importances(summary) == [("learning_rate", 0.7), ("r", 0.2), ("elsewhere.x", 0.1)]


def test_importances_have_bars_as_long_as_their_shares(tmp_path: Path, sweep: Results) -> None:
    report = page(sweep, tmp_path)
    bars = [a["style"] for _, a in report.elements if a.get("class") == "amount"]
    assert bars == ["width:81.00%", "width:12.00%", "width:7.00%"]
    assert "too few complete trials" in page(one_trial(), tmp_path).text


def test_the_markdown_has_a_row_for_each_trial(variant: Results, tmp_path: Path) -> None:
    write_leaderboard(variant, tmp_path / "leaderboard.md")
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    found = markdown_rows(text)
    assert len(found) == (len(variant.search.trials) + 2 if variant.search.trials else 0)
    assert len({len(row) for row in found}) <= 1
    for row, cells in zip(trial_rows(variant), found[2:]):
        assert cells[1] == row.name
        assert cells[4] == ("–" if row.value is None else f"{row.value:.3f}")
    for trial in variant.search.trials:
        assert (trial.failure is not None) == (f"- {trial.name}: " in text)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_shows_the_best_ten_and_how_many_more(variant: Results, width: int) -> None:
    text = terminal(variant, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    trials = variant.search.trials
    if trials:
        head = next(line for line in lines if "parameters" in line)
        assert head.split() == ["trial", "state", "parameters", "F1"]
    shown = [
        line.split()[0] for line in lines if re.match(r" *trial-\d+ +(complete|pruned|failed|running)", line)
    ]
    assert shown == [row.name for row in trial_rows(variant)][:10]
    assert (f"{len(trials) - 10} more" in text) == (len(trials) > 10)


def test_what_the_page_says_is_counted_from_the_trials(sweep: Results) -> None:
    view = sweep_view(sweep)
    ends = Counter(trial.state for trial in sweep.search.trials)
    assert view.counts == f"32 trials: {ends['complete']} complete, {ends['pruned']} pruned, 2 failed"
    assert view.near == sum(
        c.comparison is not None and not c.comparison.significant for c in sweep.candidates
    )
    assert view.chosen == {METHOD: view.rows[0].trial.method, **view.rows[0].settings}
    pruned = [trial.curve[-1].epoch for trial in sweep.search.trials if trial.state == "pruned"]
    assert f"after {sum(pruned) / len(pruned):.2g} epochs on average" in view.saved
