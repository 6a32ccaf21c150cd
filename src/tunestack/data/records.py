"""Instructions with their responses and gold answers: read, checked, split; with test sets of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from datasets import Dataset

from tunestack.config import DataConfig
from tunestack.data.labels import is_missing
from tunestack.data.load import TextData, fingerprint, read_all, refuse_settings, with_validation
from tunestack.data.sources import Table, read_file
from tunestack.data.split import shared_rows, text_keys
from tunestack.data.tables import check_columns, check_texts, listed
from tunestack.errors import Problems
from tunestack.files import slug

FIELDS = ("instruction", "input", "output", "answer")
PROMPT = ("instruction", "input")
_HOW = "Other names go into data.columns: {instruction: ..., output: ..., answer: ...}."
_SKIP = "task: {name: instruction, skip_incomplete: true}"
_RESERVED = ("train", "validation", "test")


def load_records(config: DataConfig, tests: Mapping[str, str], skip_incomplete: bool = False) -> TextData:
    """Read, check and split records.

    tests: files of further test sets, by name. skip_incomplete: records of train and validation without
    what they need are left out, with a warning; else they are a problem, as in test sets they always
    are. The datasets have the columns `instruction`, `input` (where any record has one; empty where this
    one has none), `output` (not in test sets), `answer` (where it is judged: validation and test sets)
    and `row`. Raises UserError with all problems.
    """
    problems = Problems()
    columns = _columns(config, problems)
    answer = columns["answer"]
    tables, warnings = read_all(config, problems, lambda table: _has_answers(table, answer), "answers")
    _check_names(tests, problems)
    for name, file in tests.items():
        with problems.collecting(f"data.tests.{name}"):
            tables[name] = read_file(Path(file).expanduser(), config, file)
    named = columns["input"]
    if tables and named != "input" and not any(named in table.frame for table in tables.values()):
        expected = f"a column {named!r} for inputs in some file"
        problems.add("data.columns", expected=expected, found="none of this name", fix=_HOW)
    needed = _needed(tables)
    if skip_incomplete:
        for name in tables.keys() & {"train", "validation"}:
            fields = dict.fromkeys((*needed[name], "output"))
            tables[name] = _complete(tables[name], [columns[field] for field in fields], warnings)
    rows = {
        name: _rows(table, columns, needed[name], name in ("train", "validation"), problems)
        for name, table in tables.items()
    }
    problems.raise_if_any()
    splits = _datasets(rows)
    prompt = [name for name in PROMPT if name in splits["train"].column_names]
    splits = with_validation(splits, config, prompt)
    return TextData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        label_names=(),
        warnings=(*warnings, *_overlaps(splits)),
        source=config.train,
        fingerprint=fingerprint(splits),
        tests={name: splits[name] for name in tests},
    )


def _columns(config: DataConfig, problems: Problems) -> dict[str, str]:
    """Their names for our columns."""
    for name in config.columns.keys() - set(FIELDS):
        expected = f"one of {', '.join(FIELDS)}"
        problems.add("data.columns", expected=expected, found=repr(name), fix=_HOW)
    others = ("text", "text_pair", "label", "labels", "positive_label", "skip_bad_rows")
    refuse_settings(config, others, "none: this task reads records", _HOW, problems)
    return {name: config.columns.get(name, name) for name in FIELDS}


def _check_names(tests: Mapping[str, str], problems: Problems) -> None:
    """Every set needs a name of its own, as a file's name too: its predictions have it."""
    taken = set(_RESERVED)
    for name in tests:
        if (file := slug(name).casefold()) in taken or not file:
            fix = "Give the set another name."
            problems.add("data.tests", expected="a name of its own for a set", found=repr(name), fix=fix)
        taken.add(file)


def _has_answers(table: Table, column: str) -> bool:
    return column in table.frame and not table.frame[column].map(is_missing).all()


def _complete(table: Table, columns: Sequence[str], warnings: list[str]) -> Table:
    """The records that have all of these columns; their index goes on naming the rows of the file."""
    there = [column for column in columns if column in table.frame]
    missing = table.frame[there].map(lambda value: is_missing(value) or not str(value).strip()).any(axis=1)
    if not missing.any() or missing.all():
        return table  # what is missing everywhere is told as a problem
    rows = listed(table.frame.index[missing], len(table.frame))
    warnings.append(f"{table.where}: records without what they need are left out: {rows}.")
    return replace(table, frame=table.frame[~missing])


def _needed(tables: Mapping[str, Table]) -> dict[str, tuple[str, ...]]:
    """The fields that every record of a split must have."""
    needed = dict.fromkeys(tables, ("instruction", "answer"))
    judged = () if "validation" in tables else ("answer",)  # a part of train will be validation
    return {**needed, "train": ("instruction", "output", *judged)}


def _rows(
    table: Table, columns: Mapping[str, str], needed: Sequence[str], learnt: bool, problems: Problems
) -> pd.DataFrame:
    """The records of a split under our names; texts as they stand, answers without spaces around them."""
    frame, where = table.frame, table.where
    check_columns(frame, [columns[name] for name in needed], where, problems, _HOW)
    found = {}
    kept = [name for name in FIELDS if name in needed or name == "input" or (name == "output" and learnt)]
    for name in kept:
        column = columns[name]
        if column not in frame:
            continue
        values = [_as_text(value) for value in frame[column]]
        if name == "input":
            values = ["" if value is None else value for value in values]
        elif name not in needed and all(value is None for value in values):
            continue
        # An input may be empty, but no list of several.
        texts = [value or "none" for value in values] if name == "input" else values
        given = pd.Series(texts, frame.index, dtype=object)
        check_texts(given, f"{where}, column {column!r}", problems, skip=_SKIP if learnt else "")
        found[name] = [
            value.strip() if name == "answer" and isinstance(value, str) else value for value in values
        ]
    return pd.DataFrame({**found, "row": frame.index})


def _as_text(value: object) -> object:
    """Numbers and truth values, as JSON has them, as text; what is missing as None."""
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _datasets(rows: Mapping[str, pd.DataFrame]) -> dict[str, Dataset]:
    """All with a column `input`, or none."""
    inputs = any("input" in frame and bool((frame["input"] != "").any()) for frame in rows.values())
    datasets = {}
    for name, frame in rows.items():
        own = frame.drop(columns="input", errors="ignore")
        if inputs:
            own["input"] = frame.get("input", "")
        datasets[name] = Dataset.from_dict({column: own[column].tolist() for column in own})
    return datasets


def _overlaps(splits: Mapping[str, Dataset]) -> list[str]:
    """Sentences on prompts that stand in the training data too."""
    keys = {
        name: text_keys(split.to_pandas(), [column for column in PROMPT if column in split.column_names])
        for name, split in splits.items()
    }
    counts = {name: shared_rows(own, keys["train"]) for name, own in keys.items() if name != "train"}
    return [
        f"{count:,} of {len(keys[name]):,} {name} records have an instruction that is also in train: "
        "scores on them reward memory."
        for name, count in counts.items()
        if count
    ]
