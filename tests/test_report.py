"""What the report says: right numbers, right order, nothing unescaped, whatever is missing."""

import base64
import doctest
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from report_samples import NASTY, RECIPES, bare_results, many_recipes, sample_results, with_candidate
from tunestack.report import formatting, render_terminal, write_leaderboard, write_report
from tunestack.report.standings import standings
from tunestack.results import Candidate, Costs, HardExample, Results

VOID = {"meta", "link", "input", "br", "img"}


class Page(HTMLParser):
    """Reads a page: its elements, its text, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page(results: Results, folder: Path) -> Page:
    return Page(write_report(results, folder).read_text(encoding="utf-8"))


def terminal(results: Results, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render_terminal(results))
    return console.export_text()


def renamed(name: str) -> Results:
    """Results whose recommended candidate has another name."""
    results = sample_results()
    ship = results.verdict.ship
    verdict = results.verdict.model_copy(update={"ship": name, "sentence": f"Ship {name}"})
    return with_candidate(results, ship, name=name).model_copy(update={"verdict": verdict})


def failed(candidate: Candidate) -> Candidate:
    seeds = [
        seed.model_copy(update={"validation": None, "test": None, "curves": [], "failure": "diverged"})
        for seed in candidate.seeds
    ]
    return candidate.model_copy(
        update={"seeds": seeds, "validation": {}, "test": {}, "comparison": None, "costs": Costs()}
    )


def with_a_failure() -> Results:
    results = sample_results()
    candidates = [failed(c) if c.method == "linear-probe" else c for c in results.candidates]
    return results.model_copy(update={"candidates": candidates})


def without_costs() -> Results:
    results = sample_results()
    candidates = [c.model_copy(update={"costs": Costs()}) for c in results.candidates]
    return results.model_copy(update={"candidates": candidates})


def one_candidate() -> Results:
    return sample_results(recipes=RECIPES[4:5])


def many_candidates() -> Results:
    return sample_results(recipes=many_recipes(30), ship="lora r=8 lr=0.0005", test=False, behind=())


VARIANTS = {
    "whole": sample_results,
    "no test": lambda: sample_results(test=False),
    "one seed": lambda: sample_results(seeds=(1,)),
    "a failure": with_a_failure,
    "no costs": without_costs,
    "one candidate": one_candidate,
    "baselines only": lambda: sample_results(recipes=RECIPES[:2], ship="tfidf"),
    "30 candidates": many_candidates,
    "5 classes": lambda: sample_results(label_names=tuple("abcde")),
    "20 classes": lambda: sample_results(label_names=tuple(f"label {n}" for n in range(20))),
    "nasty name": lambda: renamed(NASTY + " [red]\n" + "long" * 60),
    "no verdict": lambda: sample_results().model_copy(update={"verdict": None}),
    "no candidates": lambda: bare_results().model_copy(update={"candidates": []}),
    "bare": bare_results,
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Results:
    return VARIANTS[request.param]()


@pytest.fixture(scope="module")
def written(variant: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The variant's report."""
    return write_report(variant, tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


def test_the_examples_in_the_documentation_hold() -> None:
    assert doctest.testmod(formatting).failed == 0


def test_every_variant_gives_a_well_formed_page_with_its_verdict(variant: Results, written: str) -> None:
    report = Page(written)
    assert report.open == []
    assert report.count("h1") == 1
    if variant.verdict:
        assert variant.verdict.sentence in report.text
    for candidate in variant.candidates:
        assert candidate.name in report.text
    assert "None" not in re.sub(r"\bnone\b.*", "", report.text.split("tunestack-theme")[0])
    assert "nan" not in [attribute for _, attributes in report.elements for attribute in attributes.values()]


def test_the_page_asks_for_nothing_outside_itself(written: str) -> None:
    report = Page(written)
    for tag, attributes in report.elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:,")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")]
    styles = re.findall(r"<style>(.*?)</style>", written, re.S)
    assert not [style for style in styles if "url(" in style or "@import" in style]


def test_every_link_within_the_page_has_its_target(written: str) -> None:
    report = Page(written)
    ids = [attributes["id"] for _, attributes in report.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {attributes["href"] for tag, attributes in report.elements if tag in ("a", "use")}
    assert {link.removeprefix("#") for link in links if link} <= set(ids)


def test_texts_are_shown_and_never_run(tmp_path: Path) -> None:
    report = page(renamed(NASTY), tmp_path)
    assert report.count("script") == 1
    assert report.count("img") == 0
    assert report.text.count(NASTY) >= 2
    assert "<b>somewhere</b>" in report.text


def test_only_the_page_s_own_script_is_allowed(tmp_path: Path) -> None:
    text = write_report(sample_results(), tmp_path).read_text(encoding="utf-8")
    [script] = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_equal_results_give_an_equal_file_also_after_a_round_trip(tmp_path: Path) -> None:
    results = sample_results(tmp_path)
    first = write_report(results, tmp_path).read_bytes()
    results.save(tmp_path / "results.json")
    assert write_report(Results.load(tmp_path / "results.json"), tmp_path).read_bytes() == first
    assert len(first) < 200_000


def test_candidates_are_ranked_by_the_metric_and_failures_come_last() -> None:
    results = with_a_failure()
    entries = standings(results)
    means = [entry.score.mean for entry in entries if entry.score]
    assert means == sorted(means, reverse=True)
    assert [entry.rank for entry in entries] == [1, 2, 3, 4, 5, None]
    assert {entry.name: entry.standing for entry in entries} == {
        "full · minilm-l6": "best",
        "lora r=8 · minilm-l6": "ship",
        "lora r=8 · minilm-l3": "tied",
        "tfidf": "behind",
        "majority": "behind",
        "linear-probe · minilm-l6": "failed",
    }


def test_differences_are_shown_as_candidate_minus_best() -> None:
    results = sample_results()
    means = {c.name: c.validation["f1"].mean for c in results.candidates}
    for entry in standings(results):
        if entry.candidate.comparison is None:
            assert entry.difference is None
            continue
        assert entry.difference == pytest.approx(means[entry.name] - means[results.verdict.best])
        bounds = entry.candidate.comparison.interval
        assert (entry.difference_interval.low, entry.difference_interval.high) == (-bounds.high, -bounds.low)


def markdown_rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]


def test_markdown_has_one_whole_row_for_each_candidate(variant: Results, tmp_path: Path) -> None:
    write_leaderboard(variant, tmp_path / "leaderboard.md")
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    rows = markdown_rows(text)
    assert len(rows) == (len(variant.candidates) + 2 if variant.candidates else 0)
    assert len({len(row) for row in rows}) <= 1
    assert "<script>" not in text
    assert "None" not in text


def test_markdown_holds_the_numbers_of_the_results(tmp_path: Path) -> None:
    results = sample_results()
    write_leaderboard(results, tmp_path / "leaderboard.md")
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    heads, _, *rows = markdown_rows(text)
    assert results.verdict.sentence in text
    for row in rows:
        cells = dict(zip(heads, row))
        candidate = next(c for c in results.candidates if c.name == cells["candidate"])
        summary = candidate.validation["f1"]
        spread = f" ± {summary.std:.3f}" if summary.std else ""
        assert cells["F1, validation"] == (
            f"{summary.mean:.3f}{spread} \\[{summary.interval.low:.3f}, {summary.interval.high:.3f}\\]"
        )
        assert cells["Accuracy"] == f"{candidate.validation['accuracy'].mean:.3f}"
        assert cells["F1, test"].startswith(f"{candidate.test['f1'].mean:.3f} ")


def test_of_a_single_seed_nothing_is_said_about_seeds(tmp_path: Path) -> None:
    results = sample_results(seeds=(1,))
    first, *others = results.candidates
    unset = {**first.hyperparameters, "early_stopping_patience": None, "target_modules": ["query", "value"]}
    results = results.model_copy(
        update={"candidates": [first.model_copy(update={"hyperparameters": unset}), *others]}
    )
    write_leaderboard(results, tmp_path / "leaderboard.md")
    for text in ((tmp_path / "leaderboard.md").read_text(encoding="utf-8"), page(results, tmp_path).text):
        assert "±" not in text
        assert "very seed" not in text
        assert "over seeds" not in text
    text = page(results, tmp_path).text
    assert re.search(r"early_stopping_patience\s*none", text)
    assert "query, value" in text
    assert "every seed" in page(sample_results(), tmp_path).text


def test_failures_are_named_with_their_reason(tmp_path: Path) -> None:
    results = with_a_failure()
    write_leaderboard(results, tmp_path / "leaderboard.md")
    assert "linear-probe · minilm-l6, seed 2: diverged" in (tmp_path / "leaderboard.md").read_text()
    assert "seed 2: diverged" in page(results, tmp_path).text
    assert "linear-probe · minilm-l6, seed 2: diverged" in terminal(results, 120)


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_column_within_its_width(variant: Results, width: int) -> None:
    lines = terminal(variant, width).splitlines()
    assert max(map(len, lines)) <= width
    if variant.candidates:
        head = next(line for line in lines if "candidate" in line)
        measured = any(candidate.costs != Costs() for candidate in variant.candidates)
        assert ("memory" in head) == measured
        assert ("on disk" in head) == measured


def test_costs_that_nobody_measured_have_no_columns(tmp_path: Path) -> None:
    write_leaderboard(without_costs(), tmp_path / "leaderboard.md")
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert not {"training", "peak memory", "on disk", "speed", "trainable"} & set(markdown_rows(text)[0])
    labels = [a.get("data-label") for _, a in page(without_costs(), tmp_path).elements]
    assert not {"Training", "Memory", "On disk", "Speed", "Trainable"} & set(labels)
    results = without_costs()
    results.candidates[0].costs.train_seconds = 2.0  # of the majority baseline alone
    write_leaderboard(results, tmp_path / "leaderboard.md")
    heads, _, *rows = markdown_rows((tmp_path / "leaderboard.md").read_text(encoding="utf-8"))
    assert heads[-1] == "training"
    assert {row[1]: row[-1] for row in rows}["majority"] == "2 s"


def test_the_terminal_takes_names_literally() -> None:
    assert "[bold]x[/bold]" in terminal(renamed("[bold]x[/bold]"), 120)


def test_hard_examples_say_how_sure_the_recommended_candidate_is(tmp_path: Path) -> None:
    results = sample_results(tmp_path)
    ship = next(c for c in results.candidates if c.name == results.verdict.ship)
    tables = [pd.read_csv(tmp_path / seed.validation.predictions_path) for seed in ship.seeds]
    row = next(row for row in range(400) if tables[0].label[row] == "disaster")
    example = HardExample(row=row, text="the text", label="disaster", predicted="not a disaster")
    results = results.model_copy(update={"hard_examples": [example]})
    expected = np.mean([table.prob_disaster[row] for table in tables])
    assert f"{ship.name} gives “disaster” {expected:.0%}" in page(results, tmp_path).text
    assert "gives “disaster”" not in page(results, tmp_path / "elsewhere").text


def test_one_epoch_says_nothing_of_longer_training(tmp_path: Path) -> None:
    results = sample_results()
    for candidate in results.candidates:
        for seed in candidate.seeds:
            seed.curves = seed.curves[:1]
    page = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert "One evaluation does not tell" in page
    assert "best at its last epoch" not in page


def test_confusions_are_shown_as_shares_of_the_true_label(tmp_path: Path) -> None:
    results = sample_results()
    report = page(results, tmp_path)
    tips = [
        attributes["data-tip"]
        for tag, attributes in report.elements
        if tag == "td" and "data-tip" in attributes
    ]
    best = next(c for c in results.candidates if c.name == results.verdict.best)
    total = np.sum([seed.validation.confusion for seed in best.seeds], axis=0)
    shares = total / total.sum(axis=1, keepdims=True)
    names = results.data.label_names
    expected = [
        f"{shares[true, guess]:.0%} of {names[true]}\npredicted as {names[guess]}"
        for true in range(2)
        for guess in range(2)
    ]
    assert tips[:4] == expected


@pytest.mark.parametrize(("counted", "shares"), [("examples", ["75%", "50%"]), ("words", ["60%", "40%"])])
def test_labels_have_shares_of_what_is_counted(counted: str, shares: list[str], tmp_path: Path) -> None:
    """An example may have several labels, a word has one."""
    results = sample_results()
    update = {"rows": {"validation": 400}, "label_counts": {"validation": [300, 200]}, "counted": counted}
    data = results.data.model_copy(update=update)
    page = write_report(results.model_copy(update={"data": data}), tmp_path).read_text(encoding="utf-8")
    assert re.findall(r"class=\"muted\">[\d,]+ · (\d+%)", page) == shares


def test_metrics_of_types_keep_their_names() -> None:
    names = ["f1_PER", "roc_auc_macro", "hamming_accuracy", "f1_samples", "precision_micro"]
    told = [formatting.metric_name(name) for name in names]
    assert told == ["F1 PER", "ROC-AUC (macro)", "Hamming accuracy", "F1 (a text)", "Precision (micro)"]
