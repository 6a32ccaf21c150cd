"""In what two configurations differ, in a user's words: who resumes a run must ask for the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

MOST_DIFFERENCES = 5
"""So many are told; whoever chose a folder of something else needs no more."""
LONGEST_LIST = 8
"""Plain values that are told all together; of longer lists, those that differ."""

_ABSENT = object()


def same(there: Any, here: Any) -> bool:
    """Whether two settings say the same: 1 and 1.0 do not, as ranges between them are of different kinds."""
    return json.dumps(there, sort_keys=True) == json.dumps(here, sort_keys=True)


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The first settings in which two configurations differ, each with both values, and how many more do."""
    told = [f"{place}: {_short(a)} there, {_short(b)} here" for place, a, b in _differing(there, here)]
    more = len(told) - MOST_DIFFERENCES
    return "; ".join(told[:MOST_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")


def _differing(there: Any, here: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ by their places: ("methods.0.config.r", 8, 16). What stands on one side alone is
    one setting, however much is in it; so is a short list of plain values.
    """
    pairs: list[tuple[Any, Any, Any]] = []
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = dict.fromkeys([*here, *there])
        pairs = [(name, there.get(name, _ABSENT), here.get(name, _ABSENT)) for name in names]
    elif isinstance(there, list) and isinstance(here, list) and not (_is_short(there) and _is_short(here)):
        both = itertools.zip_longest(there, here, fillvalue=_ABSENT)
        pairs = [(index, *values) for index, values in enumerate(both)]
    elif _ABSENT in (there, here) or not same(there, here):
        yield place, there, here
    for name, theirs, ours in pairs:
        yield from _differing(theirs, ours, f"{place}.{name}" if place else str(name))


def _is_short(values: list[Any]) -> bool:
    return len(values) <= LONGEST_LIST and not any(isinstance(value, dict | list) for value in values)


def _short(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
