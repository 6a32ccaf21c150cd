"""From the values of a label column to ids 0 .. classes - 1 and their names, or to numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tunestack.data.tables import listed
from tunestack.errors import Problems, did_you_mean


def label_key(value: object) -> str:
    """The text by which a label value is known: spaces around it and the type do not matter.

    >>> [label_key(value) for value in (" spam", 1, 1.0, True)]
    ['spam', '1', '1', 'true']
    """
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def is_missing(value: object) -> bool:
    """Whether a label or a text is none: absent, empty, or spaces alone."""
    return value is None or label_key(value) == ""


def encode_labels(
    columns: Mapping[str, pd.Series[Any]],
    labels: dict[str, str] | list[str] | None,
    positive_label: str | None,
    known: Sequence[str] | None,
    problems: Problems,
) -> tuple[dict[str, pd.Series[Any]], tuple[str, ...]]:
    """Label ids of every column (int64, same index) and the names in id order.

    columns: raw label values by the place they come from, as errors name it. labels: `DataConfig.labels`.
    known: names that the data set itself declares, in id order. Without either the names are the values,
    sorted as integers if all are integers, else as text. With two classes `positive_label` gets id 1.
    Problems are noted; ids are then meaningless.
    """
    keys = {where: _keys(values, where, problems) for where, values in columns.items()}
    found = set().union(*(set(column.dropna()) for column in keys.values()))
    names, name_of = names_of_values(found, labels, known)
    for where, column in keys.items():
        _check_known(column, name_of, where, problems)
    if len(names) < 2 and found:
        only = ", ".join(map(repr, names))
        fix = "Choose the column with the labels, or give data with both."
        problems.add("data.label", expected="at least two classes", found=f"only {only}", fix=fix)
    if len(set(names)) < len(names):
        fix = "Give each class a name of its own."
        problems.add("data.labels", expected="different names", found=", ".join(names), fix=fix)
    names = _positive_last(names, positive_label, problems)
    ids = {name: position for position, name in enumerate(names)}
    id_of = {key: ids[name] for key, name in name_of.items()}
    encoded = {where: column.map(id_of).fillna(-1).astype("int64") for where, column in keys.items()}
    return encoded, tuple(names)


def encode_numbers(columns: Mapping[str, pd.Series[Any]], problems: Problems) -> dict[str, pd.Series[Any]]:
    """The numbers of every column (float64, same index). Notes values that are missing or no finite number.

    columns: raw values by the place they come from, as errors name it.
    """
    encoded = {}
    for where, values in columns.items():
        kinds = values.map(_number_kind)
        for kind, fix in _NUMBER_FIXES.items():
            rows = values.index[kinds == kind]
            if len(rows):
                shown = "" if kind == _MISSING else f" such as {values[rows[0]]!r}"
                found = f"{kind}{shown} in {listed(rows, len(values))}"
                problems.add(where, expected="a finite number in every row", found=found, fix=fix)
        encoded[where] = values.where(kinds == _NUMBER, None).astype("float64")
    return encoded


_NUMBER, _MISSING, _OTHER, _INFINITE = "a number", "no value", "no numbers", "numbers that are not finite"
_NUMBER_FIXES = {
    _MISSING: "Fill in or remove these rows.",
    _OTHER: "Choose the column with the numbers; write them with a decimal point, without units.",
    _INFINITE: "Correct or remove these rows.",
}


def _number_kind(value: object) -> str:
    if isinstance(value, bool | np.bool_ | list | dict):
        return _OTHER
    if is_missing(value):
        return _MISSING
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return _OTHER
    return _NUMBER if math.isfinite(number) else _INFINITE


def balanced_class_weights(ids: Sequence[int] | np.ndarray[Any, Any], classes: int) -> list[float]:
    """Rows / (classes * rows of the class), in id order: scikit-learn's ``class_weight="balanced"``.

    >>> balanced_class_weights([0, 0, 0, 1], classes=2)
    [0.6666666666666666, 2.0]
    """
    counts = np.bincount(np.asarray(ids, dtype=np.int64), minlength=classes)
    return [len(ids) / (classes * int(count)) if count else 0.0 for count in counts]


def _keys(values: pd.Series[Any], where: str, problems: Problems) -> pd.Series[Any]:
    """Values as keys, missing ones None; missing and structured values are noted."""
    missing = values.map(is_missing)
    if missing.any():
        found = f"no label in {listed(values.index[missing], len(values))}"
        problems.add(where, expected="a label in every row", found=found, fix="Label or remove these rows.")
    structured = values.map(lambda value: isinstance(value, list | dict))
    if structured.any():
        found = f"lists or objects in {listed(values.index[structured], len(values))}"
        fix = "One label a row: choose another column."
        problems.add(where, expected="names or ids", found=found, fix=fix)
    return values.where(~(missing | structured), None).map(label_key, na_action="ignore").astype(object)


def names_of_values(
    found: set[str], labels: dict[str, str] | list[str] | None, known: Sequence[str] | None
) -> tuple[list[str], dict[str, str]]:
    """Names in id order, and the name of every value that may occur."""
    if isinstance(labels, dict):
        mapping = {label_key(value): name for value, name in labels.items()}
        return list(dict.fromkeys(mapping.values())), mapping
    names = labels or known
    if names:
        by_id = {str(position): name for position, name in enumerate(names)}
        by_name = {name: name for name in names}
        # One reading for the whole column, never a mixture: ids only where no value is a name.
        return list(names), by_id if found & by_id.keys() and not found & by_name.keys() else by_name
    integers = all(key.removeprefix("-").isdecimal() for key in found)
    names = sorted(found, key=int) if integers else sorted(found)
    return list(names), {name: name for name in names}


def _check_known(keys: pd.Series[Any], known: Mapping[str, str], where: str, problems: Problems) -> None:
    unknown = keys[keys.notna() & ~keys.isin(list(known))]
    for value in unknown.unique()[:5]:
        found = f"{value!r} in {listed(unknown.index[unknown == value], len(keys))}"
        fix = f"{did_you_mean(value, known)} Add it to data.labels, or correct the rows."
        problems.add(where, expected="a label of data.labels", found=found, fix=fix)
    more = unknown.nunique() - 5
    if more > 0:
        fix = "Is this the column with the labels?"
        problems.add(where, expected="labels of data.labels", found=f"{more:,} more unknown values", fix=fix)


def _positive_last(names: list[str], positive: str | None, problems: Problems) -> list[str]:
    """Names with the positive one second, where there are two and it is given."""
    if positive is None or not names:
        return names
    if positive not in names:
        fix = did_you_mean(positive, names)
        problems.add("data.positive_label", expected="one of the classes", found=repr(positive), fix=fix)
        return names
    if len(names) > 2:
        fix = "Leave it out: every class counts alike beyond two."
        problems.add("data.positive_label", expected="two classes", found=str(len(names)), fix=fix)
        return names
    return sorted(names, key=lambda name: name == positive)


def check_known_lists(
    column: pd.Series[Any], known: Mapping[str, str], where: str, problems: Problems
) -> None:
    """Note keys that are not known, where every row has any number of them."""
    rows: dict[str, list[int]] = {}
    for row, keys in column.items():
        for key in sorted(set(keys) - known.keys()):
            rows.setdefault(key, []).append(row)  # type: ignore[arg-type]
    for key, numbers in list(rows.items())[:5]:
        found = f"{key!r} in {listed(numbers, len(column))}"
        fix = f"{did_you_mean(key, known)} Add it to data.labels, or correct the rows."
        problems.add(where, expected="labels of data.labels", found=found, fix=fix)
    if len(rows) > 5:
        fix = "Is this the column with the labels?"
        found = f"{len(rows) - 5:,} more unknown labels"
        problems.add(where, expected="labels of data.labels", found=found, fix=fix)
