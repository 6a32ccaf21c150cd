"""Reading files strictly: every row as it was written, or an error that names the line.

Values stay what the file says. In CSV and TSV everything is text and an empty field is missing; a text such
as ``NA`` or ``null`` stays text. In TSV quotes are literal, as GLUE's files have them. A CSV file whose first
line has semicolons or tabs and no comma is separated by these. CoNLL files (.conll, .txt) have the columns
`tokens` and `tags`, lists of text.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tunestack.errors import Problem, Problems, UserError, did_you_mean

Record = dict[str, Any]

SHOWN = 5
"""How many bad lines or rows one error lists; the rest is counted."""

_LARGEST_FIELD = 2**31 - 1
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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
    return path.suffix.lower() in _READERS or path.exists() or name.startswith(("/", "./", "../", "~"))


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
    reader = _reader(path, header)
    bad = _BadLines(path, skipped)
    records = _guarded(reader, path, bad)
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


class _BadLines:
    """Malformed lines of one file: the first few in full, the others counted.

    skipped: takes those that concern no other line, if it is given.
    """

    def __init__(self, path: Path, skipped: list[Problem] | None = None) -> None:
        self.path = path
        self._found: list[Problem] = []
        self._skipped = skipped

    def add(self, line: int | None, *, expected: str, found: str, fix: str, alone: bool = False) -> None:
        """alone: whether the lines around it can be read all the same."""
        where = str(self.path) if line is None else f"{self.path} line {line}"
        taken = self._found if self._skipped is None or not alone else self._skipped
        taken.append(Problem(where, expected, found, fix))

    def raise_if_any(self) -> None:
        if not self._found:
            return
        shown, more = self._found[:SHOWN], len(self._found) - SHOWN
        if more > 0:
            found = f"{more:,} more malformed lines"
            shown.append(Problem(str(self.path), "well-formed lines", found, "Mend them likewise."))
        raise UserError(*shown)


Reader = Callable[[Path, _BadLines], Iterator[Record]]


def _reader(path: Path, header: Sequence[str] | None) -> Reader:
    problems = Problems()
    reader = _READERS.get(path.suffix.lower())
    if header is not None and reader in (_read_csv, _read_tsv):
        reader = functools.partial(reader, header=header)
    elif header is not None:
        expected = "none: only CSV and TSV files need one"
        problems.add("data.header", expected=expected, found=f"one for {path}", fix="Leave it out.")
    if path.is_dir():
        problems.add(str(path), expected="a file", found="a folder", fix="Name a file in it.")
    elif not path.exists():
        near = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        near = [name for name in near if Path(name).suffix.lower() in _READERS]
        fix = did_you_mean(path.name, near) if near else f"There are no data files in {path.parent}."
        problems.add(str(path), expected="a file", found="nothing of this name", fix=fix)
    elif reader is None:
        found = repr(path.suffix) if path.suffix else "none"
        known = f"one of the endings {', '.join(_READERS)}"
        problems.add(str(path), expected=known, found=found, fix="Save it in one of these formats.")
    problems.raise_if_any()
    assert reader is not None
    return reader


def _guarded(reader: Reader, path: Path, bad: _BadLines) -> Iterator[Record]:
    """Records of a reader; what stops the reading (encoding, permissions) becomes a bad line."""
    try:
        yield from reader(path, bad)
    except UnicodeDecodeError:
        _note_encoding(path, bad)
    except OSError as error:
        found = error.strerror or str(error)
        bad.add(None, expected="a readable file", found=found, fix="Check the file and its permissions.")


def _read_csv(path: Path, bad: _BadLines, header: Sequence[str] = ()) -> Iterator[Record]:
    delimiter = _delimiter(path)
    name = {",": "comma", ";": "semicolon", "\t": "tab"}[delimiter]
    fixes = f'Quote a field that holds a {name} or a line break ("like{delimiter} this"); double a quote '
    fixes += "within it."
    return _read_delimited(path, bad, header, fixes, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL)


def _delimiter(path: Path) -> str:
    """What separates the fields of a CSV file: the comma, unless the first line has none but others."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = re.sub(r'"[^"]*"', "", next((line for line in file if line.strip()), ""))
    return "," if "," in header else max(",\t;", key=header.count)


def _read_tsv(path: Path, bad: _BadLines, header: Sequence[str] = ()) -> Iterator[Record]:
    fixes = "Quotes are literal in .tsv files: fields that hold tabs or line breaks need a .csv file."
    return _read_delimited(path, bad, header, fixes, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_delimited(
    path: Path, bad: _BadLines, given: Sequence[str], fix: str, *, delimiter: str, quoting: Any
) -> Iterator[Record]:
    csv.field_size_limit(_LARGEST_FIELD)  # the default refuses texts above 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True, delimiter=delimiter, quoting=quoting)
        header = list(given)
        line = 1  # where the record starts that is read next: records may span lines
        try:
            for fields in reader:
                if not header:
                    header = _header(fields, line, bad)
                elif len(fields) == len(header):
                    yield {name: field or None for name, field in zip(header, fields, strict=True)}
                elif fields:  # a blank line is no record
                    found = f"{len(fields)} ({'too many' if len(fields) > len(header) else 'too few'})"
                    expected = f"{len(header)} fields as in {'the header' if given else 'the first line'}"
                    bad.add(line, expected=expected, found=found, fix=fix, alone=True)
                line = reader.line_num + 1
        except csv.Error as error:
            unclosed = "unexpected end of data" in str(error)
            found = "a quote that is never closed" if unclosed else f"a stray quote ({error})"
            bad.add(line, expected="quotes in pairs", found=found, fix=fix)


def _header(fields: list[str], line: int, bad: _BadLines) -> list[str]:
    """Column names; one without a name (an index that pandas wrote) is called as pandas calls it."""
    names = [name or f"Unnamed: {position}" for position, name in enumerate(fields)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found = f"{', '.join(map(repr, twice))} more than once"
        fix = "The first line must be the header: rename the column or add the line."
        bad.add(line, expected="each column name once", found=found, fix=fix)
        return [f"{name}.{position}" for position, name in enumerate(names)]
    return names


def _read_jsonl(path: Path, bad: _BadLines) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                found = f"{error.msg} at column {error.colno}"
                fix = "Mend or remove this line."
                bad.add(number, expected="a JSON record", found=found, fix=fix, alone=True)
                continue
            if isinstance(record, dict):
                yield record
            else:
                fix = 'Write each line as {"text": ..., "label": ...}.'
                bad.add(number, expected="a JSON record", found=_json_kind(record), fix=fix, alone=True)


def _read_json(path: Path, bad: _BadLines) -> Iterator[Record]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig") or "[]")
    except json.JSONDecodeError as error:
        lines = error.msg == "Extra data"
        fix = "One record a line? Then name the file .jsonl." if lines else "Mend the file there."
        found = f"{error.msg} at column {error.colno}"
        bad.add(error.lineno, expected="one JSON document", found=found, fix=fix)
        return
    records = content.get("data") if isinstance(content, dict) else content
    fix = 'Write it as [{"text": ..., "label": ...}, ...] or as {"data": [...]}.'
    if not isinstance(records, list):
        bad.add(None, expected="an array of records", found=_json_kind(content), fix=fix)
        return
    for position, record in enumerate(records):
        if isinstance(record, dict):
            yield record
        else:
            found = f"{_json_kind(record)} as element {position}"
            bad.add(None, expected="an array of records", found=found, fix=fix)


def _read_parquet(path: Path, bad: _BadLines) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        bad.add(None, expected="a Parquet file", found=str(error), fix="Write the file again.")


def _read_conll(path: Path, bad: _BadLines) -> Iterator[Record]:
    """Sentences: a word a line, its tag in the last column if there is one, a blank line after each."""
    columns: int | None = None
    words: list[list[str]] = []
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(itertools.chain(file, [""]), start=1):
            fields = [field.strip() for field in line.split("\t" if "\t" in line else None)]
            comment = not words and line.startswith("# ") and "=" in line
            if not line.strip() or fields[0] == "-DOCSTART-":
                if words:
                    tags = {"tags": [word[-1] for word in words]} if len(words[0]) > 1 else {}
                    yield {"tokens": [word[0] for word in words], **tags}
                words = []
            elif not comment and len(fields) != (columns := columns or len(fields)):
                fix = "Write a word and its tag a line, and a blank line after each sentence."
                bad.add(number, expected=f"{columns} columns", found=str(len(fields)), fix=fix)
            elif not comment:
                words.append(fields)


def _json_kind(value: object) -> str:
    names = {dict: "an object without records", list: "an array", str: "a string", bool: "true or false"}
    return names.get(type(value), "null" if value is None else "a number")


def _note_encoding(path: Path, bad: _BadLines) -> None:
    """Find the first bytes that are not UTF-8, and whether other lines are UTF-8 beyond ASCII."""
    content = path.read_bytes()
    if content.startswith(_UTF16_MARKS):
        fix = f"Convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8-{path.name}"
        bad.add(None, expected="UTF-8", found="UTF-16", fix=fix)
        return
    first: tuple[int, int, int] | None = None  # line, byte offset, the byte
    lines, mixed, offset = 0, False, 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        try:
            mixed |= not line.decode().isascii()
        except UnicodeDecodeError as error:
            lines += 1
            first = first or (number, offset + error.start, line[error.start])
        offset += len(line)
    assert first is not None
    number, at, byte = first
    found = f"byte 0x{byte:02X} at offset {at} ({lines:,} such lines)"
    fix = f"Convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8-{path.name}"
    if mixed:
        found += ", while other lines are UTF-8: mixed encodings"
        fix = "Convert those lines alone, or export the file again as UTF-8."
    bad.add(number, expected="UTF-8", found=found, fix=fix)


_READERS: dict[str, Reader] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".txt": _read_conll,
}
FORMATS = tuple(_READERS)
"""The endings of files that can be read."""
