"""Tagged words: sentences as lists of words, with as many tags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, Features, List, Value

from tunestack.config import DataConfig
from tunestack.data.chunks import mixed_tags
from tunestack.data.labels import check_known_lists, is_missing, label_key, names_of_values
from tunestack.data.load import (
    TextData,
    contradictions,
    fingerprint,
    has_labels,
    overlaps,
    read_all,
    refuse_settings,
    unused_columns,
)
from tunestack.data.sources import Table
from tunestack.data.split import split_positions
from tunestack.data.tables import check_columns, check_texts, listed
from tunestack.data.words import words_of
from tunestack.errors import Problems

COLUMNS = ("tokens", "tags")
_CHOOSE = "Choose with data.columns: {tokens: ..., tags: ...}."
_SHOWN = 5


def load_tagged(config: DataConfig) -> TextData:
    """Read, check and split tagged sentences. Raises UserError with all problems.

    The datasets have the columns `tokens` (lists of text), `tags` (lists of ids) and `row`.
    """
    problems = Problems()
    _check_settings(config, problems)
    tokens, tags = (config.columns.get(name, name) for name in COLUMNS)
    tables, warnings = read_all(config, problems, lambda table: has_labels(table, [tags]))
    for table in tables.values():
        check_columns(table.frame, dict.fromkeys([tokens, tags]), table.where, problems, _CHOOSE)
    problems.raise_if_any()
    rows = {name: _sentences(table, tokens, tags, warnings, problems) for name, table in tables.items()}
    names = _encode(rows, tables, config, tags, problems)
    problems.raise_if_any()
    warnings += unused_columns(tables["train"], [tokens, tags])
    splits, ours = _split(rows, config)
    texts = {name: _as_text(split) for name, split in splits.items()}
    return TextData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        label_names=names,
        warnings=(
            *warnings,
            *_rare_tags(splits, names),
            *overlaps(texts, ["text"], ours and not config.group_duplicates),
            *contradictions({name: text.to_pandas() for name, text in texts.items()}, ["text"]),
        ),
        source=config.train,
        fingerprint=fingerprint(splits, names),
    )


def _check_settings(config: DataConfig, problems: Problems) -> None:
    """Note settings that mean nothing here."""
    others = ("text", "text_pair", "label", "positive_label")
    refuse_settings(config, others, "none: words and tags are read", _CHOOSE, problems)
    for name in config.columns.keys() - set(COLUMNS):
        problems.add(f"data.columns.{name}", expected=" or ".join(COLUMNS), found=repr(name), fix=_CHOOSE)


def _sentences(table: Table, tokens: str, tags: str, warnings: list[str], problems: Problems) -> pd.DataFrame:
    """`tokens` and `tags` as lists of text, by row; sentences without words are left out."""
    empty = table.frame[tokens].map(lambda value: not value or (isinstance(value, str) and not value.strip()))
    if empty.any():
        rows = listed(table.frame.index[empty], len(table.frame))
        warnings.append(f"{table.where}: no words in {rows}. They are left out.")
    if empty.all():
        fix = "Choose the column that holds the words."
        problems.add(table.where, expected="sentences", found="no words in any row", fix=fix)
    frame = table.frame[~empty]
    fine = Problems()
    check_texts(frame[tokens], f"{table.where}, column {tokens!r}", fine, words=True)
    problems.attempt(fine.raise_if_any)
    words = frame[tokens].map(lambda value: words_of(value) if isinstance(value, str | list) else [])
    listed_tags = frame[tags].map(lambda value: words_of(value) if isinstance(value, str | list) else [value])
    keys = listed_tags.map(lambda tags: [label_key(tag) for tag in tags])
    _check_tags(table, frame[tags], keys, None if fine else words, tags, problems)
    return pd.DataFrame({"tokens": words, "tags": keys, "row": frame.index})


def _check_tags(
    table: Table,
    given: pd.Series[Any],
    keys: pd.Series[Any],
    words: pd.Series[Any] | None,
    column: str,
    problems: Problems,
) -> None:
    """Note rows without tags, with more or fewer than words, and with tags that cannot be one."""
    where = f"{table.where}, column {column!r}"
    none = given.map(is_missing)
    if none.any():
        found = f"none in {listed(given.index[none], len(given))}"
        problems.add(where, expected="a tag for every word", found=found, fix="Tag or remove these rows.")
    if words is not None:
        pairs = {row: (len(words[row]), len(keys[row])) for row in given.index[~none]}
        wrong = {row: pair for row, pair in pairs.items() if pair[0] != pair[1]}
        if wrong:
            row, (many, tagged) = next(iter(wrong.items()))
            found = f"{many} words and {tagged} tags in row {row}; so in {listed(wrong, len(given))}"
            fix = "Correct these rows: a tag of a word stands at the place of its word."
            problems.add(where, expected="as many tags as words", found=found, fix=fix)
    broken = [row for row, tags in keys.items() if any(not tag or len(tag.split()) > 1 for tag in tags)]
    if broken:
        found = f"an empty tag, or one with a space in it, in {listed(broken, len(given))}"  # type: ignore[arg-type]
        fix = "Name tags without spaces; O is the usual name of none."
        problems.add(where, expected="names or ids of tags", found=found, fix=fix)


def _encode(
    rows: Mapping[str, pd.DataFrame],
    tables: Mapping[str, Table],
    config: DataConfig,
    column: str,
    problems: Problems,
) -> tuple[str, ...]:
    """Put ids in place of the tags; the tags' names in id order: those given, declared, or of training."""
    known = tables["train"].classes.get(column)
    found = {tag for tags in rows["train"]["tags"] for tag in tags}
    if not (config.labels or known) and found and all(tag.isdecimal() for tag in found):
        fix = "Name them in id order: data.labels: [O, B-PER, I-PER, ...]."
        shown = f"ids alone, such as {sorted(found)[0]}"
        problems.add(f"data.columns.tags {column!r}", expected="tags with names", found=shown, fix=fix)
    names, name_of = names_of_values(found, config.labels, known)
    if len(set(names)) < len(names):
        fix = "Give each tag a name of its own."
        problems.add("data.labels", expected="different names", found=", ".join(names), fix=fix)
    if len(names) < 2 and found:
        fix = "Choose the column with the tags."
        problems.add("data.labels", expected="at least two tags", found=f"only {names[0]!r}", fix=fix)
    if mixed := mixed_tags(names):
        problems.add(
            "data.labels",
            expected="tags such as B-PER, I-PER and O, or none with a prefix",
            found=f"{', '.join(map(repr, mixed[:_SHOWN]))} beside tags with a prefix",
            fix="Write all tags in one scheme; O is what belongs to nothing.",
        )
    ids = {name: position for position, name in enumerate(names)}
    for name, frame in rows.items():
        where = f"{tables[name].where}, column {column!r}"
        by_row = pd.Series(frame["tags"].tolist(), index=frame["row"], dtype=object)
        check_known_lists(by_row, name_of, where, problems)
        frame["tags"] = frame["tags"].map(lambda tags: [ids[name_of[tag]] for tag in tags if tag in name_of])
    return tuple(names)


def _split(rows: Mapping[str, pd.DataFrame], config: DataConfig) -> tuple[dict[str, Dataset], bool]:
    """The splits as datasets, and whether train and validation were split here."""
    given = dict(rows)
    ours = "validation" not in given
    if ours:
        whole = given["train"]
        groups = whole["tokens"].map(tuple).tolist() if config.group_duplicates else None
        train, validation = split_positions(len(whole), config.train_size, config.seed, groups)
        given = {**given, "train": whole.iloc[train], "validation": whole.iloc[validation]}
    features = Features(
        {"tokens": List(Value("string")), "tags": List(Value("int64")), "row": Value("int64")}
    )
    order = [name for name in ("train", "validation", "test") if name in given]
    return {
        name: Dataset.from_dict(
            {column: given[name][column].tolist() for column in features}, features=features
        )
        for name in order
    }, ours


def _as_text(split: Dataset) -> Dataset:
    """The sentences as text, and their tags as what can be compared."""
    texts = [" ".join(words) for words in split["tokens"]]
    return Dataset.from_dict({"text": texts, "label": [str(tags) for tags in split["tags"]]})


def _rare_tags(splits: Mapping[str, Dataset], names: tuple[str, ...]) -> list[str]:
    """Sentences on tags that training, or what is measured, does not show."""
    sentences = []
    for split, dataset in splits.items():
        counts = Counter(tag for tags in dataset["tags"] for tag in tags)
        absent = [name for tag, name in enumerate(names) if not counts[tag]]
        if absent:
            more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
            what = "cannot be learned" if split == "train" else "is not measured there"
            sentences.append(
                f"The {split} split has no word tagged {', '.join(absent[:_SHOWN])}{more}: that {what}."
            )
    return sentences


def padded_tags(split: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The tag ids [sentences, words of the longest], padded with -1."""
    rows = list(split["tags"])
    tags = np.full((len(rows), max(map(len, rows), default=0)), -1, dtype=np.int64)
    for row, own in zip(tags, rows, strict=True):
        row[: len(own)] = own
    return tags
