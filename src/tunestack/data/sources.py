"""Where labelled text may lie: a file, a folder with a file a split, packaged data, the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import ClassLabel, Dataset, List, Value, load_dataset

import tunestack
from tunestack.config import DataConfig
from tunestack.data.readers import FORMATS
from tunestack.data.tables import is_file_name, read_table
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.hub import quiet_hub

PACKAGED = {"packaged:emergencies": Path(tunestack.__file__).parent / "corpus"}
"""Data that comes with tunestack."""

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "validation_matched", "dev_matched"),
    "test": ("test", "validation_mismatched", "dev_mismatched"),
}
"""What files in a folder and splits on the Hub may be called; MNLI has its validation in two genres."""


@dataclass(frozen=True)
class Table:
    """One file or Hub split as read.

    where: as errors name it. classes: by column, the class names that the data set declares, in id order.
    skipped: malformed lines that were left out.
    """

    where: str
    frame: pd.DataFrame
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: list[Problem] = field(default_factory=list)


def read_file(path: Path, config: DataConfig, where: str | None = None) -> Table:
    """One file, read as the settings say. Raises UserError with all that is malformed."""
    skipped: list[Problem] = []
    frame = read_table(path, config.header, skipped if config.skip_bad_rows else None)
    return Table(where or str(path), frame, skipped=skipped)


def read_source(config: DataConfig) -> dict[str, Table]:
    """The splits that a file, a folder, packaged data or a Hub id brings: at least train.

    Raises UserError if there are none, or with all that is malformed.
    """
    source, subset = config.train, config.subset
    if source.startswith("packaged:") and source not in PACKAGED:
        fix = did_you_mean(source, PACKAGED)
        raise UserError(Problem("data.train", "packaged data", repr(source), fix))
    local = source in PACKAGED or is_file_name(source)
    if local and subset is not None:
        fix = "Leave it out, or give a Hub id."
        raise UserError(Problem("data.subset", "a Hub data set", f"the local {source}", fix))
    if not local and config.header is not None:
        expected = "none: the Hub's columns have names"
        raise UserError(Problem("data.header", expected, str(config.header), "Leave it out."))
    if not local:
        return _read_hub(source, subset)
    path = PACKAGED.get(source, Path(source).expanduser())
    if path.is_dir():
        return _read_folder(path, config)
    return {"train": read_file(path, config, source)}


def _read_folder(folder: Path, config: DataConfig) -> dict[str, Table]:
    """Files that are called after their split."""
    problems = Problems()
    tables = {}
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in FORMATS)
    for name, stems in SPLIT_NAMES.items():
        matching = [file for file in files if file.stem.lower() in stems]
        if len(matching) > 1:
            found = ", ".join(file.name for file in matching)
            fix = "Keep one of them, or name the file that is meant."
            problems.add(str(folder), expected=f"one file for {name}", found=found, fix=fix)
        elif matching:
            try:
                tables[name] = read_file(matching[0], config)
            except UserError as error:
                problems.extend(error)
        elif name == "train":
            found = ", ".join(file.name for file in files) or "no data files"
            fix = "Name the file itself, or call it train.csv (or another format)."
            problems.add(str(folder), expected="a file called train", found=found, fix=fix)
    problems.raise_if_any()
    return tables


def _read_hub(name: str, subset: str | None) -> dict[str, Table]:
    """The splits of a Hub data set; columns of values and of lists and records of them, class ids turned into
    their names.
    """
    try:
        with quiet_hub():
            splits = load_dataset(name, subset)
    # Whatever fails in there (network, name, access, subset) is for the user to hear of, in one message.
    except Exception as error:
        local = f"a local file ({', '.join(FORMATS)}), a folder with train.csv, or {', '.join(PACKAGED)}"
        found = f"no file or folder of this name, and from the Hub: {type(error).__name__}: {error}"
        fix = f"Check the id, data.subset and the network; or give {local}."
        raise UserError(Problem(f"data.train {name!r}", "a Hub data set that loads", found, fix)) from error
    tables = {}
    for split, names in SPLIT_NAMES.items():
        matching = [given for given in names if given in splits]
        if matching:
            tables[split] = _hub_table(f"{name} {matching[0]}", splits[matching[0]])
    if "train" not in tables:
        fix = "Choose another subset, or save the data as a local file."
        raise UserError(Problem(f"data.train {name!r}", "a train split", ", ".join(splits), fix))
    return tables


def _hub_table(where: str, dataset: Dataset) -> Table:
    elements = {name: _element(kind) for name, kind in dataset.features.items()}
    classes = {name: kind for name, kind in elements.items() if isinstance(kind, ClassLabel)}
    kinds = (Value, ClassLabel, dict)  # and no images or sounds
    read = [name for name, kind in elements.items() if isinstance(kind, kinds)]
    values = {name: pd.Series(dataset[name][:], dtype=object) for name in read}
    for name, kind in classes.items():
        values[name] = values[name].map(lambda ids, kind=kind: _class_names(ids, kind))
    frame = pd.DataFrame(values, dtype=object)
    declared = {name: tuple(kind.names) for name, kind in classes.items()}
    return Table(where, frame.where(frame.notna(), None), declared)


def _element(kind: object) -> object:
    """What a column holds: of a list, what its elements are."""
    return kind.feature if isinstance(kind, List) else kind


def _class_names(ids: Any, kind: ClassLabel) -> Any:
    """Names in place of class ids; None where there is none."""
    if isinstance(ids, list):
        return [_class_names(one, kind) for one in ids]
    return None if ids is None or ids < 0 else kind.int2str(ids)
