"""All baselines, by name. A new one is one file and one line here."""

from __future__ import annotations

from tunestack.baselines.base import Baseline
from tunestack.baselines.linear_probe import LinearProbe
from tunestack.baselines.majority import Majority
from tunestack.baselines.tfidf import Tfidf
from tunestack.errors import Problem, UserError, did_you_mean

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline for baseline in (Majority(), Tfidf(), LinearProbe())
}


def find_baseline(name: str) -> Baseline:
    """The baseline of that name. Raises UserError with the nearest names for an unknown one."""
    if name not in BASELINES:
        raise UserError(Problem("method", "a known baseline", repr(name), did_you_mean(name, BASELINES)))
    return BASELINES[name]
