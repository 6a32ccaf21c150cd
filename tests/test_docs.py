"""The documents say what the code does: drawings are those that the script draws."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from tunestack.config import TrainingConfig
from tunestack.methods.registry import METHODS

DOCS = Path(__file__).parent.parent / "docs"


def drawings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_methods", DOCS / "draw_methods.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawings_are_up_to_date() -> None:
    script = drawings()
    stored = {path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "images").glob("*.svg")}
    assert stored == {name: script.svg(name) for name in script.DRAWINGS}


def test_the_table_of_defaults_has_the_rates_of_the_code() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| [^|]* \| ([0-9e.-]+) \|", page, re.MULTILINE)
    usual = TrainingConfig().learning_rate
    rates = {name: METHODS[name].training_defaults.get("learning_rate", usual) for name, _ in rows}
    assert {name: float(rate) for name, rate in rows} == rates
    assert {name for name, method in METHODS.items() if method.stacks} <= set(rates)


def test_every_drawing_is_shown() -> None:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"images/([a-z0-9-]+)\.svg", page)) == set(drawings().DRAWINGS)
