"""The support matrix: made by probing, and what the documentation says of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from families import FAMILIES
from fresh import Finished
from tunestack.baselines.registry import BASELINES
from tunestack.errors import UserError
from tunestack.matrix import Matrix, markdown, overview, probe
from tunestack.methods.registry import METHODS
from tunestack.tasks.classification import SequenceClassification

PAGE = Path(__file__).resolve().parents[1] / "docs" / "matrix.md"
SOME = ["roberta", "gpt2", "t5"]
STACKED = [method for method in METHODS.values() if method.stacks]


@pytest.fixture(scope="module")
def stacked() -> Matrix:
    return probe(methods=STACKED)


@pytest.fixture(scope="module")
def alone() -> Matrix:
    return probe(methods=[method for method in METHODS.values() if not method.stacks], kinds=SOME)


def documented() -> dict[str, set[str]]:
    """The architectures on which the page says that a method does not work."""
    page = PAGE.read_text()
    without: dict[str, set[str]] = {name: set() for name in METHODS}
    heads = re.search(r"^\| architecture \| (.*) \|$", page, re.MULTILINE)
    assert heads is not None
    names = [name.strip("` ") for name in heads.group(1).split("|")]
    for kind, cells in re.findall(r"^\| `([\w-]+)` \|((?: (?:yes|-) \|)+)$", page, re.MULTILINE):
        for name, cell in zip(names, cells.strip(" |").split(" | "), strict=True):
            without[name] |= {kind} if cell == "-" else set()
    for name, told in re.findall(r"^\| `([\w-]+)` \|.*\| all but (.*) \|$", page, re.MULTILINE):
        without[name] |= set(re.findall(r"`([\w-]+)`", told)) & set(tiny.CONFIGS)
    for name in re.findall(r"^- `([\w-]+)`: ", page, re.MULTILINE):
        without[name] = set(tiny.CONFIGS)
    return without


def test_the_page_names_every_method_baseline_and_architecture() -> None:
    page = PAGE.read_text()
    for name in [*METHODS, *BASELINES, *tiny.CONFIGS]:
        assert f"`{name}`" in page, name


def test_the_page_is_what_probing_finds(stacked: Matrix, alone: Matrix) -> None:
    """All cells of the methods that stack; of the others, all methods on three architectures."""
    page = PAGE.read_text()
    without = documented()
    for matrix in (stacked, alone):
        for family in matrix.families:
            assert set(family.refusals) == without[family.name] & set(matrix.kinds), family.name
    ours = markdown(stacked).split("## Methods that train alone")[0]
    assert ours in page
    rows = re.findall(r"^\| `[\w-]+` \|.*(?= \| all)", markdown(alone), re.MULTILINE)
    assert len(rows) > 20
    assert [row for row in rows if row not in page] == []


def test_the_contract_covers_every_cell_of_the_methods_that_stack(tmp_path: Path) -> None:
    """What the contract's tiny models are refused is what the page says, so nothing is left out silently."""
    assert {method.name for method in STACKED} <= {family.name for family in FAMILIES}
    without = documented()
    for kind in tiny.CONFIGS:
        base = tiny.random_base(tmp_path, kind)
        skeleton = base.skeleton(SequenceClassification.auto_class, base.model_config(2))
        for family in FAMILIES:
            refused = False
            try:
                made = tiny.trial(base, "one", method=family.name, **family.fields)
                family.method.check(made.config, skeleton)
            except UserError:
                refused = True
            assert refused == (kind in without[family.name]), f"{family.name} on {kind}"


def test_the_overview_counts_what_the_page_lists(stacked: Matrix) -> None:
    """As many rows as methods; the counts are those of the page's cells."""
    without = documented()
    row = r"^\| `([\w-]+)` \| (.*) \| (yes|-) \| (\d+) of (\d+) \|$"
    rows = re.findall(row, overview(stacked), re.MULTILINE)
    assert [row[0] for row in rows] == [method.name for method in STACKED]
    for name, summary, stacks, works, kinds in rows:
        assert (summary, stacks) == (METHODS[name].summary, "yes")
        assert (int(works), int(kinds)) == (len(tiny.CONFIGS) - len(without[name]), len(tiny.CONFIGS))
    assert len(overview(stacked)) < len(markdown(stacked)) / 3
    assert all(f"`{name}`" in overview(stacked) for name in BASELINES)


def test_json_and_help(command: Callable[..., Finished], alone: Matrix) -> None:
    values = alone.to_dict()
    assert values["architectures"] == SOME
    adalora = next(entry for entry in values["methods"] if entry["name"] == "adalora")
    assert adalora["works_on"] == dict.fromkeys(SOME, True)
    assert adalora["paper"] == "2303.10512"
    assert adalora["loads_in"] == "peft"
    never = next(entry for entry in values["methods"] if entry["name"] == "xlora")
    assert never["loads_in"] is None
    assert not any(never["works_on"].values())
    assert "tunestack methods" in command("compare", "--help").out
