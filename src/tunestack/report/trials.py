"""Who stands where in a sweep: its trials in rank order, with what every table and chart says about each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tunestack.report import formatting
from tunestack.results import Results, SearchSummary, SearchTrial

METHOD = "method"
"""The searched parameter that says which method a trial trains, where there are several."""

TrialStanding = Literal["ship", "complete", "running", "pruned", "failed"]
"""ship: the verdict's choice; else the trial's state."""

_ORDER = ("complete", "running", "pruned", "failed")


@dataclass(frozen=True)
class TrialRow:
    """A trial in a sweep's leaderboard.

    rank: from 1, None unless complete. value: the metric; of a trial that was stopped the last that it had.
    """

    trial: SearchTrial
    rank: int | None
    standing: TrialStanding
    value: float | None

    @property
    def name(self) -> str:
        """The trial's name."""
        return self.trial.name

    @property
    def method(self) -> str:
        """What the sweep calls the method."""
        return str(self.trial.parameters.get(METHOD, self.trial.method))

    @property
    def complete(self) -> bool:
        """Whether it trained to its end."""
        return self.trial.state == "complete"

    @property
    def epochs(self) -> float | None:
        """How many epochs it had trained at its last evaluation; None if it was never evaluated."""
        return self.trial.curve[-1].epoch if self.trial.curve else None

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What was searched, the choice of a method aside."""
        return {name: value for name, value in self.trial.parameters.items() if name != METHOD}

    @property
    def end(self) -> str:
        """How it ended, in words: ``pruned after 1.5 epochs``."""
        if self.epochs is None:
            return self.trial.state
        after = f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'}"
        return f"{self.trial.state} after {after}"


def trial_rows(results: Results) -> list[TrialRow]:
    """All trials of a sweep: the complete ones by value, then those without an end, the pruned, the failed.

    Empty for a comparison.
    """
    trials = results.search.trials if results.search else []
    ship = results.verdict.ship if results.verdict else None
    placed = [(_reached(trial, results.metric), trial) for trial in trials]

    def order(place: tuple[float | None, SearchTrial]) -> tuple[int, float, int]:
        value, trial = place
        return _ORDER.index(trial.state), float("inf") if value is None else -value, trial.number

    placed.sort(key=order)
    return [
        TrialRow(
            trial=trial,
            rank=position if trial.state == "complete" else None,
            standing="ship" if trial.name == ship else trial.state,
            value=value,
        )
        for position, (value, trial) in enumerate(placed, 1)
    ]


def parameter_names(search: SearchSummary) -> list[str]:
    """What was searched: the most important first, then as the trials name them."""
    named = dict.fromkeys(name for trial in search.trials for name in trial.parameters)
    return list(dict.fromkeys([name for name, _ in importances(search) if name in named] + list(named)))


def importances(search: SearchSummary) -> list[tuple[str, float]]:
    """Each parameter's share, the largest first, named as the trials name it.

    A study puts a method's name before what only that method has: ``lora.r``.
    """
    named = {name for trial in search.trials for name in trial.parameters}
    shares = []
    for name, share in search.importances.items():
        field = name.rpartition(".")[2]
        shares.append((field if name not in named and field in named else name, share))
    return sorted(shares, key=lambda pair: -pair[1])


def log_searched(results: Results) -> dict[str, bool]:
    """Of the parameters that were searched over a range: whether by their logarithm."""
    config = results.config
    spaces = [
        config.get("search"),
        *(m.get("search") for m in config.get("methods", []) if isinstance(m, dict)),
    ]
    return {
        name: bool(dimension.get("log"))
        for space in spaces
        if isinstance(space, dict)
        for name, dimension in space.items()
        if isinstance(dimension, dict) and "min" in dimension
    }


def state_counts(search: SearchSummary) -> str:
    """How many trials there are of each state: ``30 trials: 19 complete, 9 pruned, 2 failed``."""
    states = [trial.state for trial in search.trials]
    counted = [f"{states.count(state)} {state}" for state in _ORDER if state in states]
    total = formatting.count(len(states), "trial")
    return f"{total}: {', '.join(counted)}" if counted else total


def caution(search: SearchSummary) -> str:
    """What a reader must know of the highest value among many; empty without two complete trials."""
    complete = sum(trial.state == "complete" for trial in search.trials)
    if complete < 2:
        return ""
    return (
        f"The best of {complete} trials with one seed flatters itself: part of its lead is luck, so expect "
        "less of it on new data."
    )


def _reached(trial: SearchTrial, metric: str) -> float | None:
    if trial.state != "complete" and trial.curve:
        return trial.curve[-1].metrics.get(metric, trial.value)
    return trial.value
