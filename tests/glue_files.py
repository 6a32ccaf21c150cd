"""Tiny files in GLUE's own layout, and the same tables as the Hub has them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tiny

ROWS = {"train": 30, "dev": 18}
QUOTED = 'he said "no'
"""Quotes are literal in these files: this one is never closed."""

ENTAILMENT = ("entailment", "not_entailment")
MNLI = ("entailment", "neutral", "contradiction")


def rows(split: str, pairs: bool) -> list[dict[str, Any]]:
    """Examples as the Hub has them: text, perhaps other, and label 0 or 1."""
    seed = 1 + sorted([*ROWS, "dev_mismatched"]).index(split)
    count = ROWS.get(split, 18)
    first, second = tiny.texts(count, seed), tiny.texts(count, seed + 10)
    first["text"][0] = f"{QUOTED} {first['text'][0]}"
    other = {"other": second["text"]} if pairs else {}
    columns = {"text": first["text"], **other, "label": first["label"]}
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def number(row: dict[str, Any], index: int) -> str:
    """STS-B's score."""
    return f"{2.5 * row['label'] + 0.3 * (index % 4):.3f}"


def write_tsv(path: Path, header: list[str] | None, lines: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        writer.writerows([*([header] if header else []), *lines])


def write_glue(folder: Path) -> Path:
    """All nine tasks as GLUE has them: other columns between, names or ids, tests without labels."""
    for split in ROWS:
        one, two = rows(split, pairs=False), rows(split, pairs=True)
        here = {name: folder / name / f"{split}.tsv" for name in ("CoLA", "SST-2", "MRPC", "QQP", "STS-B")}
        here |= {name: folder / name / f"{split}.tsv" for name in ("QNLI", "RTE", "WNLI")}
        write_tsv(here["CoLA"], None, [["gj04", r["label"], "*" * (1 - r["label"]), r["text"]] for r in one])
        write_tsv(here["SST-2"], ["sentence", "label"], [[r["text"], r["label"]] for r in one])
        write_tsv(
            here["MRPC"],
            ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
            [[r["label"], i, i + 1, r["text"], r["other"]] for i, r in enumerate(two)],
        )
        header = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
        lines = [[i, i, i, r["text"], r["other"], r["label"]] for i, r in enumerate(two)]
        if split == "train":  # as in GLUE's file: a question over two lines, and an empty one
            lines += [[90, 90, 90, "broken", ""], ["over lines", "other", 1], [91, 91, 91, "", "empty", 1]]
        write_tsv(here["QQP"], header, lines)
        names = ["index", "genre", "filename", "year", "old_index", "source1", "source2"]
        write_tsv(
            here["STS-B"],
            [*names, "sentence1", "sentence2", "score"],
            [[i, *names[1:], r["text"], r["other"], number(r, i)] for i, r in enumerate(two)],
        )
        for name, header in (("QNLI", ["question", "sentence"]), ("RTE", ["sentence1", "sentence2"])):
            lines = [[i, r["text"], r["other"], ENTAILMENT[r["label"]]] for i, r in enumerate(two)]
            write_tsv(here[name], ["index", *header, "label"], lines)
        lines = [[i, r["text"], r["other"], r["label"]] for i, r in enumerate(two)]
        write_tsv(here["WNLI"], ["index", "sentence1", "sentence2", "label"], lines)
        test = [[i, r["text"], r["other"]] for i, r in enumerate(two)]
        write_tsv(folder / "RTE" / "test.tsv", ["index", "sentence1", "sentence2"], test)
    write_tsv(folder / "CoLA" / "test.tsv", ["index", "sentence"], [[0, "unlabelled"]])
    for split in ("train", "dev_matched", "dev_mismatched"):
        two = rows(split.replace("dev_matched", "dev"), pairs=True)
        lines = [[i, "x", r["text"], r["other"], "raw", MNLI[mnli(r, i)]] for i, r in enumerate(two)]
        header = ["index", "sentence1_parse", "sentence1", "sentence2", "label1", "gold_label"]
        write_tsv(folder / "MNLI" / f"{split}.tsv", header, lines)
    return folder


def mnli(row: dict[str, Any], index: int) -> int:
    """One of three classes."""
    return (row["label"] + index) % 3


HUB_COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "stsb": ("sentence1", "sentence2"),
    "mnli": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


def hub_table(key: str, split: str) -> pd.DataFrame:
    """A task's rows with the Hub's columns and ids. split: train, dev, dev_mismatched."""
    columns = HUB_COLUMNS[key]
    found = rows(split, pairs=len(columns) == 2)
    values: dict[str, list[Any]] = {columns[0]: [row["text"] for row in found]}
    if len(columns) == 2:
        values[columns[1]] = [row["other"] for row in found]
    if key == "stsb":
        values["label"] = [float(number(row, index)) for index, row in enumerate(found)]
    elif key == "mnli":
        values["label"] = [mnli(row, index) for index, row in enumerate(found)]
    else:
        values["label"] = [row["label"] for row in found]
    return pd.DataFrame({**values, "idx": np.arange(len(found))})


def write_hub_tables(folder: Path) -> Path:
    """The Hub's tables as Parquet files, a folder a task, with the Hub's names of splits."""
    for key in HUB_COLUMNS:
        (folder / key).mkdir(parents=True, exist_ok=True)
        names = {"train": "train", "validation": "dev"}
        if key == "mnli":
            names = {"train": "train", "validation_matched": "dev", "validation_mismatched": "dev_mismatched"}
        for name, split in names.items():
            hub_table(key, split).to_parquet(folder / key / f"{name}.parquet")
    return folder
