"""Reading files: the same rows come back, or an error that names the line."""

import csv
import json
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tunestack.data.tables import iter_rows, read_table
from tunestack.errors import UserError

nasty = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12
) | st.sampled_from(
    [
        "NA",
        "null",
        "None",
        "nan",
        "",
        '"',
        '""',
        "a,b",
        "a\nb",
        "a\r\nb",
        "\r",
        '🔥, "fire"\n',
        " x ",
        "#",
        "\\",
        "1e5",
    ]
)
rows_of_texts = st.lists(st.tuples(nasty, nasty), min_size=1, max_size=8)
one_line = nasty.filter(lambda text: not set(text) & set("\t\r\n"))


def rows_read(path: Path) -> list[tuple[object, ...]]:
    return list(read_table(path).itertuples(index=False, name=None))


def problems_of(path: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_table(path)
    return [str(problem) for problem in caught.value.problems]


def without_blanks(rows: list[tuple[str, str]]) -> list[tuple[str | None, str | None]]:
    return [(first or None, second or None) for first, second in rows]


@given(
    rows=rows_of_texts,
    terminator=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example(rows=[("", ""), ("x", "")], terminator="\n", quoting=csv.QUOTE_MINIMAL)
@settings(deadline=None)
def test_csv_as_written_by_pythons_csv(rows: list[tuple[str, str]], terminator: str, quoting: int) -> None:
    if quoting == csv.QUOTE_MINIMAL:  # the writer leaves a bare carriage return unquoted: a line end
        rows = [(first.replace("\r", "\n"), second.replace("\r", "\n")) for first, second in rows]
    with TemporaryDirectory() as folder:
        path = Path(folder, "data.csv")
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator=terminator, quoting=quoting).writerows([("text", "other"), *rows])
        assert rows_read(path) == without_blanks(rows)


@given(rows=rows_of_texts, bom=st.booleans())
@settings(deadline=None)
def test_csv_as_written_by_pandas(rows: list[tuple[str, str]], bom: bool) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "data.csv")
        frame = pd.DataFrame(rows, columns=["text", "other"])
        # pandas leaves a bare carriage return unquoted, which no reader can tell from a line end.
        frame = frame.map(lambda text: text.replace("\r", "\n"))
        frame.to_csv(path, index=False, encoding="utf-8-sig" if bom else "utf-8", lineterminator="\n")
        assert list(read_table(path).columns) == ["text", "other"]
        assert rows_read(path) == without_blanks(list(frame.itertuples(index=False, name=None)))


@given(rows=st.lists(st.tuples(one_line, one_line), min_size=1, max_size=8))
@settings(deadline=None)
def test_tsv_keeps_quotes_literally(rows: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "data.tsv")
        path.write_bytes("".join(f"{a}\t{b}\n" for a, b in [("text", "other"), *rows]).encode())
        assert rows_read(path) == without_blanks(rows)


@given(rows=rows_of_texts, ascii_only=st.booleans(), wrapped=st.booleans())
@settings(deadline=None)
def test_json_and_jsonl(rows: list[tuple[str, str]], ascii_only: bool, wrapped: bool) -> None:
    records = [{"text": first, "other": second} for first, second in rows]
    with TemporaryDirectory() as folder:
        path = Path(folder, "data.json")
        content = {"data": records} if wrapped else records
        path.write_bytes(json.dumps(content, ensure_ascii=ascii_only).encode())
        assert rows_read(path) == rows
        path = Path(folder, "data.jsonl")
        path.write_bytes(
            "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records).encode()
        )
        assert rows_read(path) == rows


@given(rows=st.lists(st.tuples(nasty | st.none(), nasty), min_size=1, max_size=8))
@settings(deadline=None)
def test_parquet(rows: list[tuple[str | None, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder, "data.parquet")
        columns = {"text": pa.array([row[0] for row in rows], pa.string()), "other": [row[1] for row in rows]}
        pq.write_table(pa.table(columns), path)
        assert rows_read(path) == rows


def test_json_values_keep_their_types_and_absent_fields_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "n": 1}\n\n{"text": null, "n": 2.5}\n{"n": true, "late": [1]}\n')
    assert rows_read(path) == [("a", 1, None), (None, 2.5, None), (None, True, [1])]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("names", [("text", "label"), ("a; b", "label")])
def test_what_separates_a_csv_file_is_seen_in_its_first_line(
    tmp_path: Path, delimiter: str, quoting: int, names: tuple[str, str]
) -> None:
    path = tmp_path / "data.csv"
    rows = [("fire, they said; no\tjoke", "1"), ('a "quote"', "0")]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=quoting).writerows([names, *rows])
    assert list(read_table(path).columns) == list(names)
    assert rows_read(path) == rows


def test_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('text\na; b\n"c, d"\n')
    assert rows_read(path) == [("a; b",), ("c, d",)]


def test_texts_beyond_the_default_field_limit(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "word " * 100_000 + ",1\n")
    assert len(read_table(path)["text"][0]) == 500_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("few.csv", "text,label\nfine,1\n\nshort\n", ["line 4: expected 2 fields", "found 1 (too few)"]),
        (
            "many.csv",
            "text,label\na,b,1\n",
            ["line 2: expected 2 fields", "found 3 (too many)", "Quote a field"],
        ),
        ("open.csv", 'text,label\nfine,1\n"never closed,1\nmore,0\n', ["line 3", "never closed"]),
        ("stray.csv", 'text,label\n"two\nlines",0\n"a" b,1\n', ["line 4", "stray quote"]),
        ("twice.csv", "text,text\na,b\n", ["line 1", "'text' more than once"]),
        ("empty.csv", "", ["at least one row", "the file is empty"]),
        ("header.csv", "text,label\n", ["at least one row, found a header alone"]),
        ("header.tsv", "text\tlabel\n", ["at least one row, found a header alone"]),
        ("rows.json", "[]", ["at least one row, found none."]),
        ("many-semicolons.csv", "text;label\na;b;1\n", ["found 3 (too many)", "a semicolon", "like; this"]),
        ("many.tsv", "text\tlabel\na\tb\t1\n", ["line 2", "found 3 (too many)", "Quotes are literal"]),
        ("bad.jsonl", '{"text": "a"}\n{"text": b}\n', ["line 2", "at column 10"]),
        ("array.jsonl", '["a"]\n', ["line 1", "found an array"]),
        ("bad.json", '[{"text": "a"},\n {"text" "b"}]', ["line 2", "':' delimiter"]),
        ("lines.json", '{"text": "a"}\n{"text": "b"}\n', ["line 2", "name the file .jsonl"]),
        ("scalar.json", "3", ["expected an array of records, found a number"]),
        ("element.json", '[{"text": "a"}, null]', ["found null as element 1"]),
        ("empty.json", "", ["at least one row"]),
        ("none.json", '{"data": []}', ["at least one row"]),
        ("bad.parquet", "not parquet at all", ["expected a Parquet file"]),
        ("data.xlsx", "x", ["'.xlsx'", ".parquet"]),
    ],
)
def test_malformed_files_name_the_place(tmp_path: Path, name: str, content: str, expected: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content)
    (problem,) = problems_of(path)
    for part in [str(path), *expected]:
        assert part in problem


def test_all_bad_lines_are_reported_and_many_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("text,label\n" + "short\n" * 3 + '"open,1\n')
    assert ["line 2" in p or "line 3" in p or "line 4" in p for p in problems_of(path)] == [True] * 3 + [
        False
    ]
    assert "line 5" in problems_of(path)[-1]
    path.write_text("text,label\n" + "short\n" * 100)
    assert len(problems_of(path)) == 6
    assert "95 more malformed lines" in problems_of(path)[-1]


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_other_encodings_are_located(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.{ending}"
    path.write_bytes(b"text,label\nplain,1\ncaf\xe9,0\n")
    (problem,) = problems_of(path)
    assert "line 3" in problem
    assert f"byte 0xE9 at offset {len('text,label plain,1 caf')}" in problem
    assert "iconv -f WINDOWS-1252" in problem
    path.write_bytes("text,label\nnaïve,1\n".encode() + b"caf\xe9,0\n")
    assert "mixed encodings" in problems_of(path)[-1]
    path.write_text("text,label\na,1\n", encoding="utf-16")
    assert "UTF-16" in problems_of(path)[-1]


def test_missing_file_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tweets.csv").write_text("text\na\n")
    assert "Did you mean 'tweets.csv'?" in problems_of(tmp_path / "tweet.csv")[0]
    assert f"There is no folder {tmp_path / 'absent'}." in problems_of(tmp_path / "absent" / "tweet.csv")[0]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert f"There are no data files in {tmp_path / 'empty'}." in problems_of(Path("tweet.csv"))[0]
    assert "a folder" in problems_of(tmp_path)[0]


def test_iter_rows_counts_on_and_checks_texts(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text\n" + "".join(f"text {i}\n" for i in range(25)))
    chunks = list(iter_rows(path, ["text"], chunk_rows=10))
    assert [len(chunk) for chunk in chunks] == [10, 10, 5]
    assert pd.concat(chunks)["text"].to_dict() == {i: f"text {i}" for i in range(25)}
    with pytest.raises(UserError, match="Did you mean 'text'"):
        iter_rows(path, ["texts"])  # raised by the call, before the first chunk is asked for
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n' * 3 + '{"text": 4}\n{"text": " "}\n{"text": "\\ud83d"}\n')
    chunks_of_two = iter_rows(path, ["text"], chunk_rows=2)
    assert len(next(chunks_of_two)) == 2
    with pytest.raises(UserError, match=r"int values in 1 of 2 rows: 3 \(0 is the first\)"):
        next(chunks_of_two)
    with pytest.raises(UserError) as caught:
        iter_rows(path, ["text"])
    found = [problem.found for problem in caught.value.problems]
    assert [text.split(" in ")[0] for text in found] == ["half a surrogate pair", "int values", "no value"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_large_files_are_streamed(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"large.{ending}"
    rows, text = 20_000, "a text of some length " * 20
    if ending == "parquet":
        pq.write_table(pa.table({"text": [f"{i} {text}" for i in range(rows)]}), path, row_group_size=1000)
    else:
        line = '{{"text": "{}"}}\n'.format if ending == "jsonl" else "{}\n".format
        header = "" if ending == "jsonl" else "text\n"
        path.write_text(header + "".join(line(f"{i} {text}") for i in range(rows)))
    tracemalloc.start()
    total = sum(len(chunk) for chunk in iter_rows(path, ["text"], chunk_rows=500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == rows
    assert peak < rows * len(text) / 4
