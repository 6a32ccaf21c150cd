"""From where the user keeps labelled text to `TextData`: read, checked, labelled, split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from datasets import Dataset, Features, Value

from tunestack.config import DataConfig
from tunestack.data.labels import encode_labels, encode_numbers, is_missing, label_key
from tunestack.data.sources import SPLIT_NAMES, Table, read_file, read_source
from tunestack.data.split import (
    conflicting_texts,
    repeated_rows,
    shared_rows,
    split_train_validation,
    text_keys,
)
from tunestack.data.tables import check_columns, check_texts, listed
from tunestack.errors import Problem, Problems, UserError

Kind = Literal["classes", "numbers"]
"""What the label column holds."""

_CHOOSE = "Choose with --text, --text-pair and --label (elsewhere data.text, data.text_pair, data.label)."
NAMED = "none: data.text, data.text_pair and data.label name what is read"
"""Of `data.columns`, for tasks that read texts with labels."""


@dataclass(frozen=True)
class TextData:
    """Labelled text, split.

    The datasets have the columns `text` (str), `text_pair` (str; for sentence pairs only), `label` (int:
    the id; or the number itself) and `row` (int: the row in its file, from 0).
    label_names: in id order; with `positive_label` and two classes the positive one is id 1. None of numbers.
    warnings: sentences for the reader of a report.
    fingerprint: sha256 over texts, labels and splits. tests: further test sets, by name.
    """

    train: Dataset
    validation: Dataset
    test: Dataset | None
    label_names: tuple[str, ...]
    warnings: tuple[str, ...]
    source: str
    fingerprint: str
    tests: Mapping[str, Dataset] = field(default_factory=dict)

    def splits(self) -> dict[str, Dataset]:
        """The splits that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        there = {name: dataset for name, dataset in named.items() if dataset is not None}
        return {**there, **self.tests}


@dataclass(frozen=True)
class Labelled:
    """Labelled rows by given split, checked, before any split of our own.

    tables: everything that was read; rows: columns `text`, `text_pair` where there is one, `label`, `row`.
    """

    tables: dict[str, Table]
    rows: dict[str, pd.DataFrame]
    label_names: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def text_columns(self) -> list[str]:
        """`text`, and `text_pair` for sentence pairs."""
        return [column for column in ("text", "text_pair") if column in self.rows["train"]]


def load_text_data(config: DataConfig, kind: Kind = "classes") -> TextData:
    """Read, check, label and split the data. Raises UserError with all problems."""
    labelled = read_labelled(config, kind)
    if kind == "classes" and (problem := too_many_classes(labelled, config.label)) is not None:
        raise UserError(problem)
    splits = {name: _dataset(rows) for name, rows in labelled.rows.items()}
    ours = "validation" not in splits
    splits = with_validation(splits, config, labelled.text_columns)
    if kind == "classes":
        _check_classes(splits, labelled.label_names, ours)
    return TextData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        label_names=labelled.label_names,
        warnings=labelled.warnings + tuple(_warnings(splits, labelled, ours and not config.group_duplicates)),
        source=config.train,
        fingerprint=fingerprint(splits, labelled.label_names),
    )


def read_labelled(config: DataConfig, kind: Kind = "classes", *, leave_out_missing: bool = False) -> Labelled:
    """Read and check all given splits. Raises UserError with all problems.

    leave_out_missing: rows without a text or a label are no problem; they are left out, with a warning.
    """
    problems = Problems()
    refuse_settings(config, ["columns"], NAMED, _CHOOSE, problems)
    tables, warnings = read_all(config, problems, lambda table: has_labels(table, [config.label]))
    text_columns = {"text": config.text, **({"text_pair": config.text_pair} if config.text_pair else {})}
    complete = {name: table.frame for name, table in tables.items()}
    if leave_out_missing or config.skip_bad_rows:
        here = "." if config.skip_bad_rows else " here; training refuses them."
        for name, table in tables.items():
            left_out: list[str] = []
            complete[name] = _complete(table, [*text_columns.values()], config.label, left_out, problems)
            warnings += [f"{sentence} They are left out{here}" for sentence in left_out]
    _check_tables(tables, complete, list(text_columns.values()), config.label, problems)
    labels = {
        f"{name} labels ({table.where}, column {config.label!r})": complete[name][config.label]
        for name, table in tables.items()
        if config.label in table.frame
    }
    names: tuple[str, ...] = ()
    if kind == "numbers":
        fix = "Leave it out; or choose the task classification."
        refuse_settings(config, ("labels", "positive_label"), "none: labels are numbers", fix, problems)
        encoded = encode_numbers(labels, problems)
    else:
        declared = tables["train"].classes.get(config.label) if "train" in tables else None
        encoded, names = encode_labels(labels, config.labels, config.positive_label, declared, problems)
    problems.raise_if_any()
    rows = {}
    for (name, frame), ids in zip(complete.items(), encoded.values(), strict=True):
        texts = {ours: frame[given] for ours, given in text_columns.items()}
        rows[name] = pd.DataFrame({**texts, "label": ids, "row": frame.index})
    warnings += unused_columns(tables["train"], [*text_columns.values(), config.label])
    return Labelled(tables, rows, names, tuple(warnings))


def refuse_settings(
    config: DataConfig, names: Iterable[str], expected: str, fix: str, problems: Problems
) -> None:
    """Note settings of the data that mean nothing to a task, and so would be ignored."""
    for name in names:
        if (value := getattr(config, name)) != DataConfig.model_fields[name].default:
            problems.add(f"data.{name}", expected=expected, found=repr(value), fix=fix)


def too_many_classes(labelled: Labelled, label: str) -> Problem | None:
    """What is wrong with labels of which most occur once: no such class can be learnt and measured."""
    counts = pd.concat([rows["label"] for rows in labelled.rows.values()]).value_counts()
    once = int((counts == 1).sum())
    if len(counts) < 3 or 2 * once <= len(counts):
        return None
    columns = ", ".join(map(str, labelled.tables["train"].frame.columns))
    return Problem(
        "data.label",
        "a few classes, each with several rows",
        f"{len(counts):,} values in {counts.sum():,} rows, {once:,} of them once",
        f"Is {label!r} the column with the labels? The columns are {columns}.",
    )


def unused_columns(table: Table, used: Sequence[str]) -> list[str]:
    """A sentence that names the columns that nothing reads, if there are any."""
    unused = [str(column) for column in table.frame.columns if column not in used]
    return [f"Columns that are not used: {', '.join(unused)}."] if unused else []


def _complete(
    table: Table, texts: list[str], label: str, left_out: list[str], problems: Problems
) -> pd.DataFrame:
    """The rows with every text and a label; their index goes on naming the rows of the table."""
    frame = table.frame
    given = [column for column in (*texts, label) if column in frame]
    missing = frame[given].map(is_missing).any(axis=1)
    if missing.any():
        rows = listed(frame.index[missing], len(frame))
        left_out.append(f"{table.where}: no text or no label in {rows}.")
    if missing.all():
        fix = "Choose other columns for the text and the label."
        problems.add(table.where, expected="rows with a text and a label", found="none", fix=fix)
    return frame[~missing]


def _check_tables(
    tables: dict[str, Table],
    complete: dict[str, pd.DataFrame],
    texts: list[str],
    label: str,
    problems: Problems,
) -> None:
    columns = [*texts, label]
    if len(set(columns)) < len(columns):
        found = ", ".join(map(repr, columns))
        fix = "Name different columns for text, text_pair and label."
        problems.add("data", expected="a column for each", found=found, fix=fix)
    for name, table in tables.items():
        check_columns(table.frame, dict.fromkeys(columns), table.where, problems, _CHOOSE)
        for column in texts:
            if column in table.frame:
                check_text_column(complete[name][column], f"{table.where}, column {column!r}", problems)


def read_all(
    config: DataConfig, problems: Problems, judged: Callable[[Table], bool], gold: str = "labels"
) -> tuple[dict[str, Table], list[str]]:
    """Every given split that can be read, train first; and sentences on what is left out of them.

    judged: whether a split has what answers are compared with, which `gold` names. A test split that came
    along without is left out; one that was asked for must have it.
    """
    tables: dict[str, Table] = {}
    with problems.collecting():
        tables = read_source(config)
    for name, file in (("validation", config.validation), ("test", config.test)):
        if file is not None:
            with problems.collecting():
                tables[name] = read_file(Path(file).expanduser(), config, file)
    left_out = [
        f"{table.where}: {len(table.skipped):,} malformed lines are left out, such as line "
        f"{table.skipped[0].where.rpartition(' line ')[2]}."
        for table in tables.values()
        if table.skipped
    ]
    with problems.collecting():
        if "test" in tables and config.test is None and not judged(tables["test"]):
            left_out.append(f"{tables.pop('test').where} has no {gold} and is not used.")
    return {name: tables[name] for name in SPLIT_NAMES if name in tables}, left_out


def has_labels(table: Table, columns: Iterable[str]) -> bool:
    """Whether any of these columns is there and holds a label."""
    there = [column for column in columns if column in table.frame]
    return any(not table.frame[column].map(_is_no_label).all() for column in there)


def _is_no_label(value: object) -> bool:
    return is_missing(value) or label_key(value) == "-1"


def check_text_column(values: pd.Series[Any], where: str, problems: Problems) -> None:
    """Note rows without text, and a column that holds numbers alone."""
    check_texts(values, where, problems)
    texts = values[values.map(lambda value: isinstance(value, str))]
    if len(texts) and pd.to_numeric(texts, errors="coerce").notna().all():
        found = f"numbers only, such as {texts.iloc[0]}"
        problems.add(where, expected="text", found=found, fix="Choose the column that holds the text.")


def with_validation(
    splits: Mapping[str, Dataset], config: DataConfig, texts: Sequence[str]
) -> dict[str, Dataset]:
    """The splits; where there is no validation among them, a part of train is it.

    texts: the columns by which rows are the same, and then on one side where the settings say so.
    """
    if "validation" in splits:
        return dict(splits)
    groups = texts if config.group_duplicates else None
    train, validation = split_train_validation(splits["train"], config.train_size, config.seed, groups)
    return {**splits, "train": train, "validation": validation}


def _dataset(rows: pd.DataFrame) -> Dataset:
    kinds = {"text": "string", "text_pair": "string", "label": str(rows["label"].dtype), "row": "int64"}
    features = Features({column: Value(kinds[column]) for column in rows.columns})
    return Dataset.from_dict({column: rows[column].tolist() for column in rows.columns}, features=features)


def _check_classes(splits: dict[str, Dataset], names: Sequence[str], ours: bool) -> None:
    """Every class must be in every split: nothing can be learnt or measured about one that is not."""
    problems = Problems()
    for split, dataset in splits.items():
        counts = pd.Series(dataset["label"][:], dtype="int64").value_counts()
        absent = [name for position, name in enumerate(names) if position not in counts.index]
        if absent:
            fix = "Add rows of them, or leave these classes out of the data and of data.labels."
            if ours and split != "test":
                fix = "Give more rows of them, another data.seed, or a file of its own for each split."
            found = f"none of {', '.join(map(repr, absent[:5]))}"
            found += f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            problems.add(f"the {split} split", expected="rows of every class", found=found, fix=fix)
    problems.raise_if_any()


def _warnings(splits: dict[str, Dataset], labelled: Labelled, plain: bool) -> list[str]:
    """What a reader of results on these splits must know."""
    return [
        *overlaps(splits, labelled.text_columns, plain),
        *contradictions(labelled.rows, labelled.text_columns),
        *(
            _imbalance(splits["train"], labelled.label_names)
            if labelled.label_names
            else _scale(splits["train"])
        ),
    ]


def overlaps(splits: Mapping[str, Dataset], columns: Sequence[str], plain: bool) -> list[str]:
    """Sentences on texts that are in two splits. plain: whether we split, without keeping them together."""
    texts = {name: list(zip(*(split[column][:] for column in columns))) for name, split in splits.items()}
    sentences = []
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if second in texts and (shared := shared_rows(texts[second], texts[first])):
            advise = plain and second == "validation"
            sentences.append(
                f"{shared:,} of {len(texts[second]):,} {second} rows have a text that is also in {first}: "
                "scores on them reward memory."
                + (" The plain split puts them there; group_duplicates keeps them on one side." * advise)
            )
    return sentences


def contradictions(given: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> list[str]:
    """Sentences on texts that come several times, and on those of them whose labels differ."""
    rows = pd.concat(given.values(), ignore_index=True)
    keys = text_keys(rows, columns)
    sentences = []
    if repeated := repeated_rows(keys):
        sentences.append(f"{repeated:,} of {len(rows):,} rows repeat the text of an earlier row.")
    texts, count = conflicting_texts(keys, rows["label"])
    if texts:
        sentences.append(
            f"{texts:,} texts carry different labels in different rows ({count:,} rows): no model can get "
            "all of them right."
        )
    return sentences


def _imbalance(train: Dataset, names: Sequence[str]) -> list[str]:
    counts = pd.Series(train["label"][:], dtype="int64").value_counts()
    rarest, most = counts.index[-1], counts.index[0]
    if counts[rarest] * 10 > counts[most]:
        return []
    return [
        f"Classes are imbalanced: {counts[rarest]:,} training rows of {names[rarest]!r} against "
        f"{counts[most]:,} of {names[most]!r}; look at F1 and MCC rather than accuracy."
    ]


FAR = 10.0
"""Beyond this, or with a spread below its inverse, numbers are far from what a new head answers."""


def _scale(train: Dataset) -> list[str]:
    """Heads begin near 0, and learning rates are made for targets around 1."""
    values = np.asarray(train["label"][:])
    mean, spread = float(values.mean()), float(values.std())
    if spread == 0:
        return [f"All numbers in training are {mean:g}: there is nothing to learn."]
    if abs(mean) <= FAR and 1 / FAR <= spread <= FAR:
        return []
    return [
        f"The numbers in training have mean {mean:g} and standard deviation {spread:g}: models learn such "
        "slowly, or not at all. Numbers around 0 to 10 suit them; divide these before training."
    ]


def fingerprint(splits: Mapping[str, Dataset], names: Sequence[str] = ()) -> str:
    """sha256 over the label names and all that the splits hold, but for the rows' numbers."""
    digest = hashlib.sha256(json.dumps(list(names)).encode())
    for name, split in splits.items():
        columns = [column for column in split.column_names if column != "row"]
        digest.update(json.dumps([name, columns, split.num_rows]).encode())
        for row in zip(*(split[column][:] for column in columns)):
            digest.update(json.dumps(row).encode())
    return digest.hexdigest()
