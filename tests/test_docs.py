"""The documents say what the code does: drawings are those that the script draws."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

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
