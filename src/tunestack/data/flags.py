"""Texts with any number of labels: from lists, joined names or 0/1 columns to one flag a label."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value

from tunestack.arrays import IntArray
from tunestack.config import DataConfig
from tunestack.data.labels import check_known_lists, is_missing, label_key, names_of_values
from tunestack.data.load import (
    NAMED,
    TextData,
    check_text_column,
    contradictions,
    fingerprint,
    has_labels,
    overlaps,
    read_all,
    refuse_settings,
    unused_columns,
)
from tunestack.data.sources import Table
from tunestack.data.split import normal_form, split_positions
from tunestack.data.tables import check_columns, listed
from tunestack.errors import Problems

COMMA = ","
_OTHERS = ("|", ";", "\t")
_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""How a CSV file may have them, in lower case: as pandas writes integers, floats and truth values."""
_CHOOSE = "Choose with data.text, data.text_pair, data.label or the task's label_columns."


def load_flags(config: DataConfig, separator: str | None, columns: Sequence[str]) -> TextData:
    """Read, check and split texts with any number of labels. Raises UserError with all problems.

    separator: between the labels of a text; None: a comma, where the data does not speak against it.
    columns: one column of 0 and 1 a label, in place of `config.label`.
    The datasets have `text`, perhaps `text_pair`, `label` (0 or 1 a label, in id order) and `row`.
    """
    problems = Problems()
    refuse_settings(config, ["columns"], NAMED, _CHOOSE, problems)
    if columns:
        fix = "Leave it out, or the task's label_columns."
        refuse_settings(config, ["label"], "none: label_columns name the labels", fix, problems)
    labels = list(columns) or [config.label]
    tables, warnings = read_all(config, problems, lambda table: has_labels(table, labels))
    texts = {"text": config.text, **({"text_pair": config.text_pair} if config.text_pair else {})}
    for table in tables.values():
        check_columns(table.frame, dict.fromkeys([*texts.values(), *labels]), table.where, problems, _CHOOSE)
        for column in texts.values():
            if column in table.frame:
                check_text_column(table.frame[column], f"{table.where}, column {column!r}", problems)
    problems.raise_if_any()
    fix = "Leave it out: every label counts alike."
    refuse_settings(config, ["positive_label"], "none", fix, problems)
    if columns:
        flags, names = _from_columns(tables, columns, config.labels, problems)
    else:
        flags, names = _from_lists(tables, config, separator, problems)
    problems.raise_if_any()
    rows = {
        name: pd.DataFrame(
            {
                **{ours: table.frame[given] for ours, given in texts.items()},
                "label": [tuple(row) for row in flags[name].tolist()],
                "row": table.frame.index,
            }
        )
        for name, table in tables.items()
    }
    warnings += unused_columns(tables["train"], [*texts.values(), *labels])
    splits, ours = _split(rows, list(texts), config)
    warnings += _check_flags(splits, names, ours)
    warnings += overlaps(splits, list(texts), ours and not config.group_duplicates)
    return TextData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        label_names=names,
        warnings=(*warnings, *contradictions(rows, list(texts))),
        source=config.train,
        fingerprint=fingerprint(splits, names),
    )


def _from_columns(
    tables: Mapping[str, Table],
    columns: Sequence[str],
    labels: dict[str, str] | list[str] | None,
    problems: Problems,
) -> tuple[dict[str, IntArray], tuple[str, ...]]:
    """Flags [rows, labels] by split from columns of 0 and 1; the columns' names, or those of `labels`."""
    flags = {}
    for name, table in tables.items():
        read = []
        for column in columns:
            keys = table.frame[column].map(label_key).str.lower()
            wrong = keys[~keys.isin(list(_FLAGS))]
            if len(wrong):
                found = f"{table.frame[column][wrong.index[0]]!r} and the like in "
                problems.add(
                    f"{table.where}, column {column!r}",
                    expected="0 or 1 in every row",
                    found=found + listed(wrong.index, len(keys)),
                    fix="Correct or remove these rows.",
                )
            read.append(keys.map(_FLAGS).fillna(0).astype("int64").to_numpy())
        flags[name] = np.stack(read, axis=1)
    named = labels if isinstance(labels, dict) else dict(zip(columns, labels or columns))
    if set(named) != set(columns) or (isinstance(labels, list) and len(labels) != len(columns)):
        problems.add(
            "data.labels",
            expected=f"a name for each of the columns {', '.join(columns)}",
            found=str(labels),
            fix="Give one a column, or leave it out: the columns' own names are used.",
        )
    names = tuple(named.get(column, column) for column in columns)
    _check_names(names, problems)
    return flags, names


def _from_lists(
    tables: Mapping[str, Table], config: DataConfig, separator: str | None, problems: Problems
) -> tuple[dict[str, IntArray], tuple[str, ...]]:
    """Flags [rows, labels] by split from a column with lists, or with text; and the labels' names."""
    places = {name: f"{table.where}, column {config.label!r}" for name, table in tables.items()}
    keys = {
        name: _keys(table.frame[config.label], separator or COMMA, places[name], problems)
        for name, table in tables.items()
    }
    found = {key for column in keys.values() for row in column for key in row}
    if separator is None:
        _check_separator(keys, found, problems)
    names, name_of = names_of_values(found, config.labels, tables["train"].classes.get(config.label))
    for name, column in keys.items():
        check_known_lists(column, name_of, places[name], problems)
    _check_names(names, problems)
    ids = {name: position for position, name in enumerate(names)}
    flags: dict[str, IntArray] = {}
    for split, column in keys.items():
        flags[split] = np.zeros((len(column), len(names)), dtype=np.int64)
        for position, row in enumerate(column):
            for key in row & name_of.keys():
                flags[split][position, ids[name_of[key]]] = 1
    return flags, tuple(names)


def _keys(values: pd.Series[Any], separator: str, where: str, problems: Problems) -> pd.Series[Any]:
    """The set of labels of every row, as `label_key` has them; no value means no label."""
    wrong: dict[str, list[int]] = {}

    def keys(row: int, value: Any) -> set[str]:
        if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            wrong.setdefault("lists written as text", []).append(row)
        if isinstance(value, str):
            return {label.strip() for label in value.split(separator) if label.strip()}
        many = value if isinstance(value, list) else [] if is_missing(value) else [value]
        if any(is_missing(label) or isinstance(label, list | dict) for label in many):
            wrong.setdefault("what is no label", []).append(row)
        return {label_key(label) for label in many}

    read = [keys(row, value) for row, value in values.items()]  # type: ignore[arg-type]
    for kind, rows in wrong.items():
        problems.add(
            where,
            expected=f"lists of labels, or labels with {separator!r} between them",
            found=f"{kind} in {listed(rows, len(values))}",
            fix="Write lists to JSONL or Parquet, or join the labels before writing CSV.",
        )
    return pd.Series(read, index=values.index, dtype=object)


def _check_separator(keys: Mapping[str, pd.Series[Any]], found: Collection[str], problems: Problems) -> None:
    """Where no text has two labels, but labels look as if another separator stood in them, ask."""
    several = any(len(row) > 1 for column in keys.values() for row in column)
    for other in _OTHERS:
        inside = [key for key in sorted(found) if other in key]
        if not several and inside:
            problems.add(
                "task multi-label.separator",
                expected="what stands between labels (a comma where nothing is said)",
                found=f"no text with two labels, but {other!r} in labels such as {inside[0]!r}",
                fix=f"Write task: {{name: multi-label, separator: {other!r}}}.",
            )


def _check_names(names: Sequence[str], problems: Problems) -> None:
    if len(set(names)) < len(names):
        fix = "Give each label a name of its own."
        problems.add("data.labels", expected="different names", found=", ".join(names), fix=fix)
    if len(names) < 2:
        found = f"only {names[0]!r}" if names else "none"
        fix = "Choose the column with the labels; for one yes or no a text there is the task classification."
        problems.add("data.label", expected="at least two labels", found=found, fix=fix)


def _split(
    rows: Mapping[str, pd.DataFrame], texts: Sequence[str], config: DataConfig
) -> tuple[dict[str, Dataset], bool]:
    """The splits as datasets, and whether train and validation were split here."""
    given = dict(rows)
    ours = "validation" not in given
    if ours:
        whole = given["train"]
        groups = [tuple(map(normal_form, row)) for row in zip(*(whole[column] for column in texts))]
        first, second = split_positions(
            len(whole), config.train_size, config.seed, groups if config.group_duplicates else None
        )
        flags = np.asarray(whole["label"].tolist())
        train, validation = with_every_label(first, second, flags, groups)
        given = {**given, "train": whole.iloc[train], "validation": whole.iloc[validation]}
    order = [name for name in ("train", "validation", "test") if name in given]
    return {name: _dataset(given[name]) for name in order}, ours


def with_every_label(
    train: IntArray, validation: IntArray, flags: IntArray, groups: Sequence[object]
) -> tuple[IntArray, IntArray]:
    """Both parts, after moving texts to training for labels that would not be in it.

    flags: [rows, labels]. groups: rows of equal value move together. The last row of validation is not moved.
    """
    for label in np.flatnonzero(flags.any(axis=0)):
        if flags[train, label].any():
            continue
        first = next(row for row in validation if flags[row, label])
        moved = np.asarray([groups[row] == groups[first] for row in validation])
        if not moved.all():
            train, validation = np.concatenate([train, validation[moved]]), validation[~moved]
    return train, validation


def _dataset(rows: pd.DataFrame) -> Dataset:
    kinds: dict[str, Any] = {
        "text": Value("string"),
        "text_pair": Value("string"),
        "label": List(Value("int64")),
        "row": Value("int64"),
    }
    features = Features({column: kinds[column] for column in rows.columns})
    values = {column: rows[column].tolist() for column in rows.columns}
    return Dataset.from_dict({**values, "label": [list(row) for row in values["label"]]}, features=features)


def _check_flags(splits: Mapping[str, Dataset], names: Sequence[str], ours: bool) -> list[str]:
    """Refuse labels that training never shows; sentences on what else a reader of results must know."""
    counts = {name: np.asarray(split["label"][:]).sum(axis=0) for name, split in splits.items()}
    problems = Problems()
    if (lacking := _absent(counts["train"], names)) is not None:
        fix = "Add rows with them, or leave them out of the data and of data.labels."
        problems.add("the train split", expected="rows with every label", found=lacking, fix=fix)
    problems.raise_if_any()
    warnings = []
    for name, split in splits.items():
        without = sum(not any(row) for row in split["label"])
        if without:
            warnings.append(f"{without:,} of {split.num_rows:,} {name} rows have no label.")
        if (lacking := _absent(counts[name], names)) is not None:
            warnings.append(f"The {name} split has {lacking}: nothing is measured about it there.")
    if not any(sum(row) > 1 for split in splits.values() for row in split["label"]):
        warnings.append("No text has more than one label: the task classification learns that with less.")
    return warnings


def _absent(counts: IntArray, names: Sequence[str]) -> str | None:
    """The labels without a row, in words."""
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if not absent:
        return None
    more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
    return f"no row with {', '.join(map(repr, absent[:5]))}{more}"
