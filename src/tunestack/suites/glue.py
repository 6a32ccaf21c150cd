"""GLUE (Wang et al., 2018): nine tasks of one sentence or two. Its test split has no labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tunestack.data.readers import FORMATS
from tunestack.data.sources import SPLIT_NAMES
from tunestack.data.tables import iter_rows
from tunestack.errors import Problem, Problems, UserError
from tunestack.suites.base import Member, Score, Suite

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Layout:
    """How a task lies in files. columns: `DataConfig`'s text, text_pair and label, as its header names them.

    header: the columns of a file whose first line is data already.
    """

    columns: dict[str, str]
    header: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GlueTask(Member):
    """A task of GLUE. folder: of its files, as GLUE has it. layouts: the Hub's first, then GLUE's own."""

    folder: str = ""
    layouts: tuple[Layout, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


def _columns(label: str, text: str, text_pair: str | None = None) -> dict[str, str]:
    pair = {} if text_pair is None else {"text_pair": text_pair}
    return {"text": text, **pair, "label": label}


ACCURACY = Score("accuracy", "accuracy")
F1 = Score("f1", "F1")
SENTENCES = ("sentence1", "sentence2")
ENTAILMENT = ["entailment", "not_entailment"]

TASKS = (
    GlueTask(
        "cola",
        "CoLA",
        "classification",
        (Score("mcc", "MCC"),),
        "CoLA",
        (
            Layout(_columns("label", "sentence")),
            Layout(_columns("label", "sentence"), header=("source", "label", "mark", "sentence")),
        ),
        {"labels": ["unacceptable", "acceptable"]},
    ),
    GlueTask(
        "sst2",
        "SST-2",
        "classification",
        (ACCURACY,),
        "SST-2",
        (Layout(_columns("label", "sentence")),),
        {"labels": ["negative", "positive"]},
    ),
    GlueTask(
        "mrpc",
        "MRPC",
        "classification",
        (ACCURACY, F1),
        "MRPC",
        (Layout(_columns("label", *SENTENCES)), Layout(_columns("Quality", "#1 String", "#2 String"))),
        {"labels": ["not_equivalent", "equivalent"]},
    ),
    GlueTask(
        "qqp",
        "QQP",
        "classification",
        (ACCURACY, F1),
        "QQP",
        (
            Layout(_columns("label", "question1", "question2")),
            Layout(_columns("is_duplicate", "question1", "question2")),
        ),
        # A few questions of the training file are empty or broken over lines.
        {"labels": ["not_duplicate", "duplicate"], "skip_bad_rows": True},
    ),
    GlueTask(
        "stsb",
        "STS-B",
        "regression",
        (Score("pearson", "Pearson"), Score("spearman", "Spearman")),
        "STS-B",
        (Layout(_columns("label", *SENTENCES)), Layout(_columns("score", *SENTENCES))),
    ),
    GlueTask(
        "mnli",
        "MNLI",
        "classification",
        (Score("accuracy", "matched"), Score("accuracy", "mismatched", split="test")),
        "MNLI",
        (Layout(_columns("label", "premise", "hypothesis")), Layout(_columns("gold_label", *SENTENCES))),
        {"labels": ["entailment", "neutral", "contradiction"]},
    ),
    GlueTask(
        "qnli",
        "QNLI",
        "classification",
        (ACCURACY,),
        "QNLI",
        (Layout(_columns("label", "question", "sentence")),),
        {"labels": ENTAILMENT},
    ),
    GlueTask(
        "rte",
        "RTE",
        "classification",
        (ACCURACY,),
        "RTE",
        (Layout(_columns("label", *SENTENCES)),),
        {"labels": ENTAILMENT},
    ),
    GlueTask(
        "wnli",
        "WNLI",
        "classification",
        (ACCURACY,),
        "WNLI",
        (Layout(_columns("label", *SENTENCES)),),
        {"labels": ["not_entailment", "entailment"]},
    ),
)


class Glue(Suite):
    """GLUE's tasks, each by GLUE's own metrics. MNLI's test is its mismatched validation."""

    name = "glue"
    title = "GLUE"
    summary = "nine tasks of one sentence or two, in English"
    training: ClassVar[Mapping[str, Any]] = {"class_weights": None}
    members: ClassVar[Mapping[str, Member]] = {task.key: task for task in TASKS}

    def data(self, wanted: Sequence[Member], source: str | None, problems: Problems) -> dict[str, Any]:
        """From the Hub, or from folders: GLUE's own, or tables with the Hub's columns in folders so named."""
        tasks = [task for task in TASKS if task in wanted]
        if source is None:
            return {task.key: {"train": HUB, "subset": task.key, **_settings(task)} for task in tasks}
        folder = Path(source).expanduser()
        files = {task.key: _files(folder, task) for task in TASKS}
        there = [task.key for task in TASKS if not _lacking(task, files[task.key])]
        found = {}
        for task in tasks:
            if lacking := _lacking(task, files[task.key]):
                named = f"--tasks {','.join(there)}" if there else "another folder with --data"
                problems.add(
                    f"{Glue.title}, {task.title}",
                    expected=f"{folder / task.folder} with files for {', '.join(lacking)}",
                    found="none",
                    fix=f"Put them there (as train.tsv, dev.tsv), or name what is there: {named}.",
                )
                continue
            with problems.collecting(f"{Glue.title}, {task.title}"):
                found[task.key] = _local(task, files[task.key])
        return found


def _local(task: GlueTask, files: Mapping[str, list[Path]]) -> dict[str, Any]:
    """The settings for a task's files by split. Raises UserError unless it is one each, laid out alike."""
    problems = Problems()
    for split, several in files.items():
        if len(several) > 1:
            shown = ", ".join(f"{file.parent.name}/{file.name}" for file in several)
            problems.add("data", expected=f"one file for {split}", found=shown, fix="Keep one of them.")
    paths = {split: several[0] for split, several in files.items()}
    layouts = {split: problems.attempt(_layout, task, path) for split, path in paths.items()}
    problems.raise_if_any()
    if odd := [path.name for split, path in paths.items() if layouts[split] != layouts["train"]]:
        fix = "Take all of a task's files from GLUE's own download, or all from the Hub."
        expected = f"the columns of {paths['train'].name} in all of its files"
        raise UserError(Problem("data", expected, f"others in {', '.join(odd)}", fix))
    return {**{split: str(path) for split, path in paths.items()}, **_settings(task, layouts["train"])}


def _settings(task: GlueTask, layout: Layout | None = None) -> dict[str, Any]:
    """What is to be known beside the files: columns, header, names of labels."""
    layout = layout or task.layouts[0]
    header = {} if layout.header is None else {"header": list(layout.header)}
    return {**layout.columns, **header, **task.fields}


def _files(folder: Path, task: GlueTask) -> dict[str, list[Path]]:
    """A task's files by split; of tests only those with a score in the table: GLUE's own has no labels."""
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    names = (task.folder.lower(), task.key)
    inside = [file for place in places if place.name.lower() in names for file in sorted(place.glob("*"))]
    scored = {score.split for score in task.scores}
    found = {}
    for split in ("train", "validation", "test"):
        stems = [stem for stem in SPLIT_NAMES[split] if stem != "test"]
        matching = [file for file in inside if file.stem.lower() in stems and file.suffix.lower() in FORMATS]
        if matching and (split != "test" or split in scored):
            found[split] = matching
    return found


def _lacking(task: GlueTask, files: Collection[str]) -> list[str]:
    needed = dict.fromkeys(["train", *(score.split for score in task.scores)])
    words = {"test": "dev_mismatched", "validation": "dev"}
    return [words.get(split, split) for split in needed if split not in files]


def _layout(task: GlueTask, path: Path) -> Layout:
    """The layout whose columns the file has; else the one without a header, or the Hub's."""
    columns = set(next(iter_rows(path, chunk_rows=1)).columns)
    fitting = [one for one in task.layouts if one.header is None and columns.issuperset(one.columns.values())]
    without = [one for one in task.layouts if one.header is not None and path.suffix.lower() == ".tsv"]
    return [*fitting, *without, task.layouts[0]][0]
