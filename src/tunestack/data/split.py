"""Splitting rows as `datasets` does it, and keeping identical texts on one side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from tunestack.errors import Problem, UserError

Positions = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def normal_form(text: str) -> str:
    """The form in which grouped texts are compared: no spaces at the ends, one wherever there were several.

    >>> normal_form("  the  roof\\nis on fire ")
    'the roof is on fire'
    """
    return " ".join(text.split())


def split_train_validation(
    dataset: Dataset, train_size: float, seed: int, group_by: str | Sequence[str] | None
) -> tuple[Dataset, Dataset]:
    """Training and validation part.

    Without `group_by` exactly ``dataset.train_test_split(train_size=train_size, seed=seed)``. With the
    name(s) of text columns it is that split as well, except that rows with equal texts (`normal_form`) which
    it separates are moved together, to the side that brings the sizes nearest to `train_size`.

    Raises UserError if one side would be empty.
    """
    groups = None
    if group_by is not None:
        columns = [group_by] if isinstance(group_by, str) else list(group_by)
        groups = [tuple(map(normal_form, row)) for row in zip(*(dataset[column][:] for column in columns))]
    train, validation = split_positions(dataset.num_rows, train_size, seed, groups)
    return dataset.select(train), dataset.select(validation)


def split_positions(
    rows: int, train_size: float, seed: int, groups: Sequence[object] | None = None
) -> tuple[Positions, Positions]:
    """Positions of the rows of both parts, in the order in which `datasets` shuffles them.

    groups: one value a row; rows with equal values stay together. Raises UserError as above.
    """
    try:
        positions = Dataset.from_dict({"position": range(rows)})
        parts = positions.train_test_split(train_size=train_size, seed=seed)
    except ValueError as error:
        found = f"{rows} rows and train_size {train_size}"
        fix = "Give more rows or another train_size."
        raise UserError(Problem("data.train_size", "rows on both sides", found, fix)) from error
    train, validation = (np.asarray(parts[name]["position"][:], dtype=np.int64) for name in ("train", "test"))
    if groups is None:
        return train, validation
    numbers: dict[object, int] = {}
    code = np.asarray([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)
    in_train = np.zeros(rows, dtype=bool)
    in_train[train] = True
    sides = _sides(code, in_train)
    order = np.concatenate([train, validation])
    grouped_train, grouped_validation = order[sides[order]], order[~sides[order]]
    if not len(grouped_train) or not len(grouped_validation):
        found = f"{len(numbers)} distinct texts"
        fix = "Give more texts, or files of their own for each split."
        raise UserError(Problem("data.text", "distinct texts for both sides", found, fix))
    return grouped_train, grouped_validation


def _sides(code: Positions, in_train: Mask) -> Mask:
    """Whether each row is for training, after moving the groups that straddle.

    The largest group goes first, so that small ones even out what it left. Each goes where the training
    part ends up nearest to its planned size, so that a group's chance of a side stays its share of rows.
    """
    inside = np.bincount(code, weights=in_train).astype(np.int64)
    size = np.bincount(code)
    straddling = np.flatnonzero((inside > 0) & (inside < size))
    to_train = np.zeros(len(size), dtype=bool)
    surplus = 0  # rows that the training part has gained so far
    for group in straddling[np.argsort(-size[straddling], kind="stable")]:
        gain, loss = size[group] - inside[group], inside[group]
        to_train[group] = abs(surplus + gain) <= abs(surplus - loss)
        surplus += gain if to_train[group] else -loss
    return np.where(np.isin(code, straddling), to_train[code], in_train)


def repeated_rows(texts: pd.Series[Any]) -> int:
    """Rows whose exact text stood in an earlier row."""
    return int(texts.duplicated().sum())


def conflicting_texts(texts: pd.Series[Any], ids: pd.Series[Any]) -> tuple[int, int]:
    """Distinct texts (exact) that carry more than one label, and the rows that they fill."""
    labels = ids.groupby(texts.to_numpy()).agg(["nunique", "size"])
    conflicting = labels["nunique"] > 1
    return int(conflicting.sum()), int(labels.loc[conflicting, "size"].sum())


def shared_rows(texts: Iterable[object], others: Iterable[object]) -> int:
    """Rows of `texts` whose exact text is among `others`."""
    seen = set(others)
    return sum(text in seen for text in texts)


def text_keys(rows: pd.DataFrame, columns: Sequence[str]) -> pd.Series[Any]:
    """What makes a row's text the same as another's: all its text columns, exactly."""
    return pd.Series(list(zip(*(rows[column] for column in columns))), index=rows.index, dtype=object)
