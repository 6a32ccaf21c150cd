"""The test sets of LLM-Adapters, by the names in its paper's tables, and where they lie in its repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tunestack.config import DataConfig
from tunestack.errors import Problems, did_you_mean

FOLDERS = {
    "MultiArith": "MultiArith",
    "GSM8K": "gsm8k",
    "AddSub": "AddSub",
    "AQuA": "AQuA",
    "SingleEq": "SingleEq",
    "SVAMP": "SVAMP",
    "MAWPS": "mawps",
    "BoolQ": "boolq",
    "PIQA": "piqa",
    "SIQA": "social_i_qa",
    "HellaSwag": "hellaswag",
    "WinoGrande": "winogrande",
    "ARC-e": "ARC-Easy",
    "ARC-c": "ARC-Challenge",
    "OBQA": "openbookqa",
}
"""Folders of the sets, each with a test.json."""
SUITES = {
    "math": ("MultiArith", "GSM8K", "AddSub", "AQuA", "SingleEq", "SVAMP"),
    "commonsense": ("BoolQ", "PIQA", "SIQA", "HellaSwag", "WinoGrande", "ARC-e", "ARC-c", "OBQA"),
}
"""The sets of its two tables."""


def files_of_tests(config: DataConfig, problems: Problems) -> dict[str, str]:
    """The file of each test set, in the order given. Notes names that are not known."""
    if isinstance(config.tests, dict):
        if config.tests_folder is not None:
            fix = "Leave it out, or name sets without files: tests: [math]."
            found = "a file for every set"
            problems.add("data.tests_folder", expected="sets that are named alone", found=found, fix=fix)
        return config.tests
    files = {}
    folder = Path(config.tests_folder or ".").expanduser()
    for name in _sets(config.tests, problems):
        files[name] = str(folder / FOLDERS[name] / "test.json")
    if config.tests_folder is None and files:
        fix = "Give the folder `dataset` of a copy of LLM-Adapters' repository, or tests: {NAME: file}."
        problems.add("data.tests_folder", expected="where the test sets lie", found="none", fix=fix)
        return {}
    return files


def _sets(names: Sequence[str], problems: Problems) -> list[str]:
    """Names of sets, those of suites in their place; each once."""
    known: dict[str, tuple[str, ...]] = {name.casefold(): (name,) for name in FOLDERS}
    known |= {folder.casefold(): (name,) for name, folder in FOLDERS.items()}
    known |= {name.casefold(): sets for name, sets in SUITES.items()}
    found: dict[str, None] = {}
    for name in names:
        if name.casefold() not in known:
            fix = did_you_mean(name, [*FOLDERS, *SUITES])
            problems.add("data.tests", expected="a known test set or suite", found=repr(name), fix=fix)
        found |= dict.fromkeys(known.get(name.casefold(), ()))
    return list(found)
