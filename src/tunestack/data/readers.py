"""Formats of files, each a function that gives records: values stay what the file says.

In CSV and TSV everything is text and an empty field is missing; a text such as ``NA`` or ``null`` stays
text. In TSV quotes are literal, as GLUE's files have them. A CSV file whose first line has semicolons or tabs
and no comma is separated by these. CoNLL files (.conll, .txt) have the columns `tokens` and `tags`, lists of
text.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunestack.errors import Problem, Problems, UserError, did_you_mean

Record = dict[str, Any]

SHOWN = 5
"""How many bad lines or rows one error lists; the rest is counted."""

_LARGEST_FIELD = 2**31 - 1
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class BadLines:
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
        """Raise UserError with what was found so far."""
        if not self._found:
            return
        shown, more = self._found[:SHOWN], len(self._found) - SHOWN
        if more > 0:
            found = f"{more:,} more malformed lines"
            shown.append(Problem(str(self.path), "well-formed lines", found, "Mend them likewise."))
        raise UserError(*shown)


Reader = Callable[[Path, BadLines], Iterator[Record]]


def read_records(path: Path, bad: BadLines, header: Sequence[str] | None = None) -> Iterator[Record]:
    """The records of a file, one after the other; what is malformed goes to `bad`.

    header: the columns of a CSV or TSV file that does not name them. Raises UserError at once where there is
    no such file, or its format is unknown.
    """
    return _guarded(_reader(path, header), path, bad)


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
        folder = path.parent.resolve()  # whole, as a relative name may have been looked for in a wrong place
        near = [file.name for file in folder.iterdir()] if folder.is_dir() else []
        near = [name for name in near if Path(name).suffix.lower() in _READERS]
        nothing = (
            f"There are no data files in {folder}." if folder.is_dir() else f"There is no folder {folder}."
        )
        fix = did_you_mean(path.name, near) if near else nothing
        problems.add(str(path), expected="a file", found="nothing of this name", fix=fix)
    elif reader is None:
        found = repr(path.suffix) if path.suffix else "none"
        known = f"one of the endings {', '.join(_READERS)}"
        problems.add(str(path), expected=known, found=found, fix="Save it in one of these formats.")
    problems.raise_if_any()
    assert reader is not None
    return reader


def _guarded(reader: Reader, path: Path, bad: BadLines) -> Iterator[Record]:
    """Records of a reader; what stops the reading (encoding, permissions) becomes a bad line."""
    try:
        yield from reader(path, bad)
    except UnicodeDecodeError:
        _note_encoding(path, bad)
    except OSError as error:
        found = error.strerror or str(error)
        bad.add(None, expected="a readable file", found=found, fix="Check the file and its permissions.")


def _read_csv(path: Path, bad: BadLines, header: Sequence[str] = ()) -> Iterator[Record]:
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


def _read_tsv(path: Path, bad: BadLines, header: Sequence[str] = ()) -> Iterator[Record]:
    fixes = "Quotes are literal in .tsv files: fields that hold tabs or line breaks need a .csv file."
    return _read_delimited(path, bad, header, fixes, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_delimited(
    path: Path, bad: BadLines, given: Sequence[str], fix: str, *, delimiter: str, quoting: Any
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


def _header(fields: list[str], line: int, bad: BadLines) -> list[str]:
    """Column names; one without a name (an index that pandas wrote) is called as pandas calls it."""
    names = [name or f"Unnamed: {position}" for position, name in enumerate(fields)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found = f"{', '.join(map(repr, twice))} more than once"
        fix = "The first line must be the header: rename the column or add the line."
        bad.add(line, expected="each column name once", found=found, fix=fix)
        return [f"{name}.{position}" for position, name in enumerate(names)]
    return names


def _read_jsonl(path: Path, bad: BadLines) -> Iterator[Record]:
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


def _read_json(path: Path, bad: BadLines) -> Iterator[Record]:
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


def _read_parquet(path: Path, bad: BadLines) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        bad.add(None, expected="a Parquet file", found=str(error), fix="Write the file again.")


def _read_conll(path: Path, bad: BadLines) -> Iterator[Record]:
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


def _note_encoding(path: Path, bad: BadLines) -> None:
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
