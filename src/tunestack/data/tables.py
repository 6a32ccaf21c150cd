"""Reading files strictly: every row as it was written, or an error that names the line."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tunestack.data.readers import FORMATS, SHOWN, BadLines, read_records
from tunestack.errors import Problem, Problems, UserError, did_you_mean


def read_table(
    path: Path, header: Sequence[str] | None = None, skipped: list[Problem] | None = None
) -> pd.DataFrame:
    """All rows of a file, values untouched (dtype object, missing values None), index = row from 0.

    header: the columns of a CSV or TSV file that does not name them. skipped: takes lines that can be left
    out (too many or too few fields, no JSON record); they are no rows then. Raises UserError with every other
    malformed line, or if the file is missing, empty or of an unknown format.
    """
    return next(_chunks(path, None, header, skipped))


def iter_rows(
    path: Path, columns: Sequence[str] = (), chunk_rows: int = 1000, words: bool = False
) -> Iterator[pd.DataFrame]:
    """Rows of a file, `chunk_rows` at a time; the index goes on counting rows from 0.

    columns: those that must be there and hold text in every row. words: it may be a list of words. Large CSV,
    TSV, JSONL and Parquet files are never in memory as a whole; a JSON array is. What can be seen in the
    first chunk (a missing file or column, a bad value) raises UserError at once, the rest when it is reached.
    """
    chunks = (_checked(chunk, columns, path, words) for chunk in _chunks(path, chunk_rows))
    first = next(chunks)
    return itertools.chain([first], chunks)


def check_rows(
    path: Path, columns: Sequence[str], how: str = "", chunk_rows: int = 10_000, words: bool = False
) -> None:
    """Look through a whole file, a chunk at a time: its lines, these columns, text in each of their rows.

    how: a sentence on how to choose other columns. words: a text may be a list of words.
    Raises UserError with everything that `iter_rows` would come upon later.
    """
    problems = Problems()
    rows: dict[str, dict[str, list[int]]] = {column: {} for column in columns}
    total = 0
    try:
        for chunk in _chunks(path, chunk_rows):
            if not total:
                check_columns(chunk, columns, str(path), problems, how)
                problems.raise_if_any()
            for column, kinds in rows.items():
                values = chunk.get(column, pd.Series(None, chunk.index, dtype=object))
                for kind, found in _rows_by_kind(values, words).items():
                    kinds.setdefault(kind, []).extend(found)
            total += len(chunk)
    except UserError as error:
        problems.extend(error)
    for column, kinds in rows.items():
        _note_texts(kinds, total, f"{path}, column {column!r}", problems)
    problems.raise_if_any()


def is_file_name(name: str) -> bool:
    """Whether a source is meant as a local file or folder (and not as a Hub id)."""
    path = Path(name).expanduser()
    return path.suffix.lower() in FORMATS or path.exists() or name.startswith(("/", "./", "../", "~"))


def check_columns(
    frame: pd.DataFrame, columns: Iterable[str], where: str, problems: Problems, how: str = ""
) -> None:
    """Note every column that is not there, with the nearest names and how to choose another."""
    for column in columns:
        if column not in frame.columns:
            fix = f"{did_you_mean(column, map(str, frame.columns))} {how}".strip()
            header = " in the first line" if where.endswith((".csv", ".tsv")) else ""
            problems.add(where, expected=f"a column {column!r}{header}", found="none of this name", fix=fix)


def check_texts(
    values: pd.Series[Any], where: str, problems: Problems, words: bool = False, skip: str = ""
) -> None:
    """Note rows without text, rows with something that is not text, and text that cannot be encoded.

    words: a text may be a list of words. skip: the setting that leaves out rows without text.
    """
    _note_texts(_rows_by_kind(values, words), len(values), where, problems, skip)


def _rows_by_kind(values: pd.Series[Any], words: bool) -> dict[str, list[int]]:
    """The rows that hold no proper text, by what they hold."""
    kinds = values.map(_kind_of_words if words else _kind)
    return {kind: values.index[kinds == kind].tolist() for kind in sorted(set(kinds) - {"text"})}


def _note_texts(
    rows: dict[str, list[int]], total: int, where: str, problems: Problems, skip: str = ""
) -> None:
    for kind, numbers in sorted(rows.items()):
        found = f"{kind} in {listed(numbers, total)}"
        fix = _TEXT_FIXES.get(kind, _NOT_TEXT)
        if skip and kind == _NO_VALUE:
            fix = f"{fix} Or leave them out with {skip}."
        problems.add(where, expected="text in every row", found=found, fix=fix)


def listed(rows: Iterable[int], total: int) -> str:
    """Row numbers for people.

    >>> listed([4, 8], 10)
    '2 of 10 rows: 4, 8 (0 is the first)'
    """
    numbers = list(rows)
    more = f" and {len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else ""
    some = ", ".join(map(str, numbers[:SHOWN]))
    return f"{len(numbers):,} of {total:,} rows: {some}{more} (0 is the first)"


def _kind(value: object) -> str:
    if not isinstance(value, str):
        return _NO_VALUE if value is None else f"{type(value).__name__} values"
    if not value.strip():
        return _NO_VALUE
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return "text"


def _kind_of_words(value: object) -> str:
    if not isinstance(value, list):
        return _kind(value)
    others = {_kind(word) for word in value} - {"text"}
    return f"a list with {min(others)}" if others else "text" if value else _NO_VALUE


_NO_VALUE = "no value"
_TEXT_FIXES = {
    _NO_VALUE: "Remove these rows or fill them in.",
    "half a surrogate pair": "Remove the broken character: it cannot be written as UTF-8.",
}
_NOT_TEXT = "Choose the column that holds text, or write these values as text."


def _checked(chunk: pd.DataFrame, columns: Sequence[str], path: Path, words: bool) -> pd.DataFrame:
    problems = Problems()
    check_columns(chunk, columns, str(path), problems)
    problems.raise_if_any()
    for column in columns:
        check_texts(chunk[column], f"{path}, column {column!r}", problems, words)
    problems.raise_if_any()
    return chunk


def _chunks(
    path: Path,
    chunk_rows: int | None,
    header: Sequence[str] | None = None,
    skipped: list[Problem] | None = None,
) -> Iterator[pd.DataFrame]:
    """Frames of `chunk_rows` rows (None: one frame of all), at least one; raises at the first bad chunk."""
    bad = BadLines(path, skipped)
    records = read_records(path, bad, header)
    start = 0
    while batch := list(itertools.islice(records, chunk_rows)):
        bad.raise_if_any()
        frame = pd.DataFrame(batch, dtype=object)
        yield frame.where(frame.notna(), None).set_index(pd.RangeIndex(start, start + len(batch)))
        start += len(batch)
    bad.raise_if_any()
    if start == 0:
        if not path.read_bytes().strip():
            found = "none: the file is empty"
        else:
            found = "a header alone" if path.suffix.lower() in (".csv", ".tsv") else "none"
        raise UserError(Problem(str(path), "at least one row", found, "Give a file with data in it."))
