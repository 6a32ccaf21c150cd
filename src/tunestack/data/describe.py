"""What is in the data: counts, lengths, duplicates, and what a split leaks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from tunestack.config import DataConfig
from tunestack.data.labels import balanced_class_weights
from tunestack.data.load import Labelled, read_labelled, too_many_classes
from tunestack.data.sources import Table
from tunestack.data.split import (
    conflicting_texts,
    normal_form,
    repeated_rows,
    shared_rows,
    split_positions,
    text_keys,
)

Tokenizers = Mapping[str, Callable[[list[str]], list[int]]]
"""By base: texts in, their lengths in tokens out (special tokens included)."""

PERCENTILES = (50, 90, 95, 99)


class Record(BaseModel):
    """Base of every part of a description: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Lengths(Record):
    """How long texts are: `p90` is the least length that 90% of them do not exceed."""

    p50: int
    p90: int
    p95: int
    p99: int
    max: int


class TokenLengths(Lengths):
    """Lengths in tokens, a `max_length` that fits, and how many texts it would cut."""

    suggested_max_length: int
    cut: int


class FileDescription(Record):
    """A file (or Hub split) as it is: rows, and rows without a value by column."""

    where: str
    rows: int
    missing: dict[str, int]


class PartDescription(Record):
    """Some of the rows: all of them, or one split.

    class_weights: as scikit-learn's "balanced". characters, words: of the text (with its pair, for pairs).
    repeated_rows: rows whose exact text stood in an earlier row. conflicting_texts: distinct exact texts
    with more than one label.
    """

    rows: int
    label_counts: dict[str, int]
    class_weights: dict[str, float]
    characters: Lengths
    words: Lengths
    tokens: dict[str, TokenLengths] = {}
    repeated_rows: int
    conflicting_texts: int


class SplitDescription(Record):
    """One way to split: its parts, and for `"validation in train"` the rows there with a text from here.

    first_training_row: the row (from 0) that comes first in training, and what its other columns hold:
    it tells at a glance whether a published split was reproduced.
    """

    parts: dict[str, PartDescription]
    shared_rows: dict[str, int]
    first_training_row: dict[str, Any]


class Description(Record):
    """All that `describe` found.

    splits: "given" where the data brings its validation part, else "plain" (as `datasets` splits) and
    "grouped" (identical texts on one side); `used` is the one that a comparison with these settings uses.
    whole: all labelled rows together.
    """

    source: str
    label_names: list[str]
    files: dict[str, FileDescription]
    whole: PartDescription
    splits: dict[str, SplitDescription]
    used: str
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return self.model_dump()

    def to_markdown(self) -> str:
        """Headings and tables."""
        lines = [f"# {self.source}", ""]
        for title, header, rows in _sections(self):
            lines += [f"## {title}", "", _line(header), _line(["---", *["---:"] * (len(header) - 1)])]
            lines += [*map(_line, rows), ""]
        lines += [f"- {warning}" for warning in self.warnings]
        return "\n".join(lines).rstrip() + "\n"


def describe(
    config: DataConfig, tokenizers: Tokenizers | None = None, limits: Mapping[str, int] | None = None
) -> Description:
    """Describe the data. Raises UserError with all problems, as `load_text_data` does, save missing values.

    Rows without a text or a label are counted by column, and left out of everything else.
    limits: the most tokens that a base takes; no longer `max_length` is suggested for it.
    """
    labelled = read_labelled(config, leave_out_missing=True)
    classes = too_many_classes(labelled, config.label)
    rows = _measured(labelled, tokenizers or {})
    names = labelled.label_names
    splits = {
        way: _split(parts, labelled, names, limits or {})
        for way, parts in _ways_to_split(rows, labelled, config).items()
    }
    used = "given" if "given" in splits else "grouped" if config.group_duplicates else "plain"
    return Description(
        source=config.train,
        label_names=list(names),
        files={name: _file(table) for name, table in labelled.tables.items()},
        whole=_part(rows, names, limits or {}),
        splits=splits,
        used=used,
        warnings=[*labelled.warnings, *([str(classes)] if classes else []), *_leaks(splits)],
    )


def suggested_max_length(lengths: np.ndarray[Any, Any]) -> int:
    """A multiple of 8 that holds every text, or 99% of them where the longest is over twice as long.

    >>> suggested_max_length(np.array([10, 12, 30]))
    32
    """
    p99 = _percentile(lengths, 99)
    longest = int(lengths.max())
    return -(-(longest if longest <= 2 * p99 else p99) // 8) * 8


def render(description: Description) -> RenderableType:
    """The description as rich tables."""
    blocks: list[RenderableType] = []
    for title, header, rows in _sections(description):
        table = RichTable()
        for position, name in enumerate(header):
            table.add_column(Text(name), justify="right" if position else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        blocks += [Text(title, style="bold"), table, Text()]
    blocks += [Text(f"• {warning}", style="yellow") for warning in description.warnings]
    return Group(*blocks)


def _measured(labelled: Labelled, tokenizers: Tokenizers) -> pd.DataFrame:
    """All labelled rows with what is measured on each: `key`, `characters`, `words`, `tokens: BASE`."""
    rows = pd.concat(labelled.rows, names=["split"]).reset_index(level="split").reset_index(drop=True)
    texts = [rows[column].tolist() for column in labelled.text_columns]
    measures: dict[str, Callable[[list[str]], Iterable[int]]] = {
        "characters": lambda column: map(len, column),
        "words": lambda column: (len(text.split()) for text in column),
        **{f"tokens: {base}": tokenizer for base, tokenizer in tokenizers.items()},
    }
    rows["key"] = text_keys(rows, labelled.text_columns)
    for name, measure in measures.items():
        rows[name] = np.sum([list(measure(column)) for column in texts], axis=0)
    return rows


def _ways_to_split(
    rows: pd.DataFrame, labelled: Labelled, config: DataConfig
) -> dict[str, dict[str, pd.DataFrame]]:
    given = {name: rows[rows["split"] == name] for name in labelled.rows}
    if "validation" in given:
        return {"given": given}
    source = given["train"]
    groups = [tuple(map(normal_form, key)) for key in source["key"]]
    ways = {}
    for way, group in (("plain", None), ("grouped", groups)):
        train, validation = split_positions(len(source), config.train_size, config.seed, group)
        ways[way] = {**given, "train": source.iloc[train], "validation": source.iloc[validation]}
    return ways


def _split(
    parts: dict[str, pd.DataFrame], labelled: Labelled, names: tuple[str, ...], limits: Mapping[str, int]
) -> SplitDescription:
    order = [name for name in ("train", "validation", "test") if name in parts]
    shared = {
        f"{second} in {first}": shared_rows(parts[second]["key"], parts[first]["key"])
        for position, first in enumerate(order)
        for second in order[position + 1 :]
    }
    first = int(parts["train"]["row"].iloc[0])
    record = labelled.tables["train"].frame.iloc[first].to_dict()
    return SplitDescription(
        parts={name: _part(parts[name], names, limits) for name in order},
        shared_rows=shared,
        first_training_row={"row": first, **{str(name): value for name, value in record.items()}},
    )


def _part(rows: pd.DataFrame, names: tuple[str, ...], limits: Mapping[str, int]) -> PartDescription:
    ids = rows["label"].to_numpy()
    counts = np.bincount(ids, minlength=len(names)).tolist()
    prefix = "tokens: "
    bases = [column.removeprefix(prefix) for column in rows.columns if column.startswith(prefix)]
    return PartDescription(
        rows=len(rows),
        label_counts=dict(zip(names, counts, strict=True)),
        class_weights=dict(zip(names, balanced_class_weights(ids, len(names)), strict=True)),
        characters=Lengths(**_percentiles(rows["characters"].to_numpy())),
        words=Lengths(**_percentiles(rows["words"].to_numpy())),
        tokens={base: _token_lengths(rows[prefix + base].to_numpy(), limits.get(base)) for base in bases},
        repeated_rows=repeated_rows(rows["key"]),
        conflicting_texts=conflicting_texts(rows["key"], rows["label"])[0],
    )


def _percentile(lengths: np.ndarray[Any, Any], q: int) -> int:
    return int(np.percentile(lengths, q, method="inverted_cdf"))


def _percentiles(lengths: np.ndarray[Any, Any]) -> dict[str, int]:
    return {**{f"p{q}": _percentile(lengths, q) for q in PERCENTILES}, "max": int(lengths.max())}


def _token_lengths(lengths: np.ndarray[Any, Any], limit: int | None) -> TokenLengths:
    suggested = min(suggested_max_length(lengths), limit or sys.maxsize)
    cut = int((lengths > suggested).sum())
    return TokenLengths(**_percentiles(lengths), suggested_max_length=suggested, cut=cut)


def _file(table: Table) -> FileDescription:
    missing = (table.frame.isna() | (table.frame == "")).sum()
    return FileDescription(
        where=table.where,
        rows=len(table.frame),
        missing={str(column): int(count) for column, count in missing.items()},
    )


def _leaks(splits: dict[str, SplitDescription]) -> list[str]:
    """What each split shares, in sentences."""
    sentences = []
    for way, split in splits.items():
        for pair, rows in split.shared_rows.items():
            if rows:
                second, first = pair.split(" in ")
                sentences.append(
                    f"In the {way} split {rows:,} of {split.parts[second].rows:,} {second} rows have a text "
                    f"that is also in {first}."
                )
    grouped = splits.get("grouped")
    if grouped and splits["plain"].shared_rows["validation in train"]:
        sentences.append(
            "Grouping duplicates prevents that: the grouped split has "
            f"{grouped.shared_rows['validation in train']} such validation rows."
        )
    return sentences


Section = tuple[str, list[str], list[list[str]]]


def _sections(description: Description) -> list[Section]:
    """Title, header and rows of every table, for Markdown and the terminal alike."""
    parts = {"all rows": description.whole}
    for way, split in description.splits.items():
        parts |= {f"{name} ({way})": part for name, part in split.parts.items()}
    return [
        *(_missing_section(name, file) for name, file in description.files.items()),
        _label_section(description.label_names, parts),
        *_length_sections(parts),
        _duplicate_section(parts),
        _split_section(description),
    ]


def _missing_section(name: str, file: FileDescription) -> Section:
    rows = [[column, f"{missing:,}"] for column, missing in file.missing.items()]
    return f"{file.where} ({name}): {file.rows:,} rows", ["column", "missing values"], rows


def _label_section(names: list[str], parts: dict[str, PartDescription]) -> Section:
    """Parts down, labels across; beyond two labels the other way round, for they may be many and long."""
    header = ["rows", "total", *names, *(f"weight of {name}" for name in names)]
    rows = [
        [
            title,
            f"{part.rows:,}",
            *(f"{part.label_counts[name]:,}" for name in names),
            *(f"{part.class_weights[name]:.6f}" for name in names),
        ]
        for title, part in parts.items()
    ]
    if len(names) > 2:
        turned = [list(column) for column in zip(header, *rows, strict=True)]
        header, rows = turned[0], turned[1:]
    return "Labels and balanced class weights", header, rows


def _length_sections(parts: dict[str, PartDescription]) -> list[Section]:
    names = [*(f"p{q}" for q in PERCENTILES), "max"]
    rows = []
    tokens = []
    for title, part in parts.items():
        for unit, lengths in (("characters", part.characters), ("words", part.words)):
            rows.append([f"{title}: {unit}", *(f"{getattr(lengths, name):,}" for name in names)])
        for base, found in part.tokens.items():
            cells = (f"{getattr(found, name):,}" for name in [*names, "suggested_max_length", "cut"])
            tokens.append([f"{title}: {base}", *cells])
    sections: list[Section] = [("Length of the texts", ["length", *names], rows)]
    if tokens:
        header = ["tokens", *names, "max_length", "cut"]
        sections.append(
            ("Length in tokens, with a max_length that fits and how many texts it cuts", header, tokens)
        )
    return sections


def _duplicate_section(parts: dict[str, PartDescription]) -> Section:
    rows = [
        [title, f"{part.repeated_rows:,}", f"{part.conflicting_texts:,}"] for title, part in parts.items()
    ]
    return "Identical texts", ["rows", "repeated rows", "texts with conflicting labels"], rows


def _split_section(description: Description) -> Section:
    rows = []
    for way, split in description.splits.items():
        sizes = " / ".join(f"{part.rows:,}" for part in split.parts.values())
        shared = ", ".join(f"{rows:,} {pair}" for pair, rows in split.shared_rows.items())
        first = ", ".join(f"{name} {value}" for name, value in list(split.first_training_row.items())[:2])
        rows.append([way + (" (used)" if way == description.used else ""), sizes, shared, first])
    header = ["split", "rows", "rows with a text of another part", "first training row"]
    return "Splits", header, rows


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
