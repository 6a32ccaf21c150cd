"""All suites, by name. A new one is one file and one line here."""

from __future__ import annotations

from tunestack.errors import Problem, UserError, did_you_mean
from tunestack.suites.base import Suite
from tunestack.suites.glue import Glue

SUITES: dict[str, Suite] = {suite.name: suite for suite in (Glue(),)}


def find_suite(name: str) -> Suite:
    """The suite of that name. Raises UserError with the nearest names for an unknown one."""
    if name not in SUITES:
        raise UserError(Problem("suite", "a known suite", repr(name), did_you_mean(name, SUITES)))
    return SUITES[name]
