"""The report as one HTML file: it opens offline, asks nothing of the network and runs only its own script."""

from __future__ import annotations

import base64
import csv
import hashlib
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from tunestack.files import write_text
from tunestack.report import formatting
from tunestack.report.leaderboard import verdict_sentence
from tunestack.report.plots import curve_views, forest, scatters
from tunestack.report.search import sweep_view
from tunestack.report.sets import set_table
from tunestack.report.standings import (
    STANDING_WORDS,
    Entry,
    cost_columns,
    entry_named,
    has_test,
    level,
    several_seeds,
    side_metrics,
    standings,
)
from tunestack.results import Candidate, HardExample, Results, SeedResult

MATRIX_CLASSES = 12
"""Up to so many classes the page shows a matrix and every label; beyond, only the most telling ones."""
MOST_CONFUSIONS = 12
MOST_HARD_EXAMPLES = 300
LONGEST_TEXT = 1200
MOST_DETAILED = 10
"""Of a sweep, so many of the best trials have their errors and details on the page."""


def write_report(results: Results, folder: Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Reads, beside `results`, the predictions of the recommended candidate where they lie in `folder` (how sure
    it is of its errors); without them that remark is left out. Equal results give an equal file.
    """
    path = folder / "report.html"
    write_text(path, render_html(results, folder))
    return path


def render_html(results: Results, folder: Path) -> str:
    """The report's text; see `write_report`."""
    environment = Environment(
        loader=PackageLoader("tunestack.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here = Path(__file__).parent
    script = (here / "report.js").read_text(encoding="utf-8")
    entries = standings(results)
    detailed = entries[:MOST_DETAILED] if results.search else entries
    shipped = entry_named(entries, results.verdict.ship if results.verdict else None)
    return environment.get_template("template.html.j2").render(
        fmt=formatting,
        style=(here / "style.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        results=results,
        metric=formatting.metric_name(results.metric),
        sentence=verdict_sentence(results),
        entries=entries,
        shipped=shipped,
        best=entry_named(entries, results.verdict.best if results.verdict else None),
        words=STANDING_WORDS,
        level=level(entries),
        sides=side_metrics(results)[:1],
        has_test=has_test(results),
        several_seeds=several_seeds(entries),
        sets=set_table(results, entries),
        sweep=sweep_view(results),
        confirmed=_confirmed(results, folder),
        cost_columns=cost_columns(results),
        forest=forest(entries),
        scatters=scatters(entries),
        curve_views=curve_views(results, entries),
        detailed=detailed,
        still_rising=_still_rising(entries),
        one_epoch=all(len(seed.curves) < 2 for entry in entries for seed in entry.candidate.seeds),
        matrix_classes=MATRIX_CLASSES,
        confusions=_confusions(results, detailed),
        hard=_hard_examples(results, shipped, folder),
        hard_total=len(results.hard_examples),
        command=_predict_command(shipped, results),
        label_bars=_label_bars(results),
        config=yaml.safe_dump(results.config, sort_keys=False, allow_unicode=True) if results.config else "",
    )


@dataclass(frozen=True)
class Cell:
    """One cell of a confusion matrix: mean count over seeds, and its share of the true label's examples."""

    count: float
    share: float
    truth: str
    predicted: str
    right: bool


@dataclass(frozen=True)
class Confusion:
    """One candidate's confusions on validation. rows: as a matrix; pairs: the most frequent errors."""

    entry: Entry
    seeds: int
    rows: list[list[Cell]]
    pairs: list[Cell]


def _confusions(results: Results, entries: Sequence[Entry]) -> list[Confusion]:
    labels = results.data.label_names
    confusions = []
    for entry in entries:
        scored = [seed.validation.confusion for seed in entry.candidate.seeds if seed.validation]
        matrices = [matrix for matrix in scored if matrix is not None and len(matrix) == len(labels)]
        if not matrices:
            continue
        rows = [_confusion_row(matrices, labels, true) for true in range(len(labels))]
        errors = [cell for row in rows for cell in row if not cell.right and cell.count]
        pairs = sorted(errors, key=lambda cell: -cell.count)[:MOST_CONFUSIONS]
        confusions.append(Confusion(entry, len(matrices), rows, pairs))
    return confusions


def _confusion_row(matrices: Sequence[list[list[int]]], labels: Sequence[str], true: int) -> list[Cell]:
    counts = [sum(matrix[true][guess] for matrix in matrices) / len(matrices) for guess in range(len(labels))]
    total = sum(counts)
    return [
        Cell(count, count / total if total else 0.0, labels[true], labels[guess], true == guess)
        for guess, count in enumerate(counts)
    ]


@dataclass(frozen=True)
class Hard:
    """A hard example; probability: what the recommended candidate gives the label in the data, on average."""

    example: HardExample
    text: str
    probability: float | None


def _hard_examples(results: Results, shipped: Entry | None, folder: Path) -> list[Hard]:
    """The hard examples, those first that the recommended candidate gets wrong most confidently."""
    tables = [_probabilities(seed, folder) for seed in shipped.candidate.seeds] if shipped else []
    hard = []
    for example in results.hard_examples:
        found = [table[key] for table in tables if (key := (example.row, example.label)) in table]
        probability = sum(found) / len(found) if found else None
        hard.append(Hard(example, formatting.shortened(example.text, LONGEST_TEXT), probability))
    hard.sort(key=lambda one: math.inf if one.probability is None else one.probability)
    return hard[:MOST_HARD_EXAMPLES]


def _probabilities(seed: SeedResult, folder: Path) -> dict[tuple[int, str], float]:
    """The probability of the true label by row and label; empty where the file is missing or says nothing."""
    path = folder / seed.validation.predictions_path if seed.validation else None
    if path is None or not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as handle:
        return dict(_read_probabilities(csv.DictReader(handle)))


def _read_probabilities(rows: csv.DictReader[str]) -> Iterator[tuple[tuple[int, str], float]]:
    for row in rows:
        label = row.get("label")
        probability = row.get(f"prob_{label}")
        if label and probability:
            yield (int(row["row"]), label), float(probability)


def _still_rising(entries: Sequence[Entry]) -> list[Entry]:
    """Candidates whose every seed was best at its last epoch: longer training may help them."""

    def rising(seed: SeedResult) -> bool:
        return len(seed.curves) > 1 and seed.best_epoch == seed.curves[-1].epoch

    return [entry for entry in entries if entry.rank and all(rising(seed) for seed in entry.candidate.seeds)]


def _confirmed(results: Results, folder: Path) -> Candidate | None:
    """What the trial to ship reached when it was trained again with several seeds."""
    if results.search is None or results.search.confirmed is None or results.verdict is None:
        return None
    path = folder / results.search.confirmed / "results.json"
    again = Results.load(path).candidates if path.exists() else []
    return next((one for one in again if one.name == results.verdict.ship), None)


def _predict_command(shipped: Entry | None, results: Results) -> str | None:
    """How to use the recommended candidate: its seed with the highest validation score; of a sweep whose best
    were trained again, one of those.
    """
    seed = shipped.candidate.best_seed(results.metric) if shipped else None
    if seed is None or seed.adapter_path is None:
        return None
    again = results.search.confirmed if results.search else None
    return f"tunestack predict {shlex.quote(again or seed.adapter_path)} new.csv --out predictions.csv"


def _label_bars(results: Results) -> list[dict[str, Any]]:
    """Rows a split, with each label's count and share."""
    data = results.data
    bars = []
    for split, rows in data.rows.items():
        counts = data.label_counts.get(split, [])
        total = rows if data.counted == "examples" else sum(counts)
        parts = [
            {"label": label, "count": number, "share": number / total if total else 0.0}
            for label, number in zip(data.label_names, counts)
        ]
        bars.append({"split": split, "rows": rows, "parts": parts})
    return bars
