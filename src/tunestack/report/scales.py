"""From values to places on an axis, in percent of its length, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

ZERO_LANE = 9.0
"""Share of a logarithmic axis, in percent, kept at its start for values of zero where there are any."""

_ROUND_SECONDS = (
    *(m * 10.0**e for e in range(-6, 0) for m in (1, 2, 5)),
    *(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000, 86400),
    *(m * 10.0**e * 86400 for e in range(4) for m in (2, 5, 10)),
)
_SPARSE_SECONDS = (
    *(10.0**e for e in range(-6, 2)),
    60,
    600,
    3600,
    36000,
    *(86400 * 10.0**e for e in range(4)),
)


@dataclass(frozen=True)
class Tick:
    """A tick: its place in percent, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Linear:
    """A linear axis from `low` to `high`."""

    low: float
    high: float

    @classmethod
    def around(cls, values: Sequence[float], padding: float = 0.06) -> Linear:
        """An axis that holds all values, with a margin on both sides."""
        low, high = min(values), max(values)
        margin = (high - low) * padding or max(abs(high) * 0.05, 0.01)
        return cls(low - margin, high + margin)

    def at(self, value: float) -> float:
        """The value's place in percent; values beyond an end lie at that end."""
        return min(max(self.beyond(value), 0.0), 100.0)

    def beyond(self, value: float) -> float:
        """The value's place in percent, also where it lies outside: for lines that are cut off there."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, about: int = 4, *, whole: bool = False) -> list[Tick]:
        """Some `about` ticks at multiples of 1, 2 or 5 times a power of ten; `whole`: at whole numbers."""
        step = _round_step((self.high - self.low) / about)
        if whole:
            step = max(step, 1.0)
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [multiple * step for multiple in range(first, last + 1)]
        return [Tick(self.at(value), f"{value:.{decimals}f}".replace("-", "−")) for value in values]


@dataclass(frozen=True)
class Log:
    """A logarithmic axis from `low` to `high`; with `zeros`, zero has a lane of its own at the start."""

    low: float
    high: float
    zeros: bool

    @classmethod
    def around(cls, values: Sequence[float]) -> Log:
        """An axis that holds all values, none of them negative."""
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        margin = max((high / low) ** 0.08, 1.35)
        return cls(low / margin, high * margin, any(value <= 0 for value in values))

    def at(self, value: float) -> float:
        """The value's place in percent."""
        start = ZERO_LANE if self.zeros else 0.0
        if value <= 0:
            return ZERO_LANE / 3
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(start + (100 - start) * share, 2)

    def ticks(self, text: Callable[[float], str], *, seconds: bool = False, at_most: int = 6) -> list[Tick]:
        """Ticks at round values, as many as fit; `seconds` rounds to minutes and hours as clocks do."""
        for values in _time_steps() if seconds else _decade_steps(self.low, self.high):
            inside = [value for value in values if self.low <= value <= self.high]
            if len(inside) <= at_most:
                break
        zero = [Tick(self.at(0), text(0))] if self.zeros else []
        return zero + [Tick(self.at(value), text(value)) for value in inside]


@dataclass(frozen=True)
class Steps:
    """An axis of a few named values, evenly spaced in their order."""

    names: tuple[str, ...]

    def at(self, name: str) -> float:
        """The value's place in percent."""
        return round(100 * (self.names.index(name) + 0.5) / len(self.names), 2)

    def ticks(self, at_most: int = 12) -> list[Tick]:
        """A tick for each value; of very many, for every so many-th."""
        every = math.ceil(len(self.names) / at_most)
        return [Tick(self.at(name), name) for name in self.names[::every]]


def clock_ticks(span: float, text: Callable[[float], str], at_most: int = 7) -> list[Tick]:
    """Ticks for `span` seconds from 0, as clocks round them; places in percent of the span."""
    last = span * 1.000001
    step = next((step for step in sorted(_ROUND_SECONDS) if last / step < at_most), last)
    return [Tick(round(100 * n * step / span, 2), text(n * step)) for n in range(int(last / step) + 1)]


def focused(means: Sequence[float], bounds: Sequence[tuple[float, float]], *, at_least: int = 2) -> Linear:
    """An axis for scores with their intervals that keeps close candidates apart.

    Where one gap splits the scores so that more than half of the whole range is empty, and at least two
    (`at_least`) lie above it, the axis shows only those above: a majority baseline at 0 would otherwise
    flatten all others into one point. Whoever draws must mark those that fall off the low end.
    """
    ordered = sorted(means, reverse=True)
    gaps = [(high - low, position) for position, (high, low) in enumerate(pairwise(ordered), 1)]
    widest, above = max(gaps, default=(0.0, 0))
    threshold = -math.inf
    if above >= at_least and widest > (ordered[0] - ordered[-1]) / 2:
        threshold = ordered[above - 1]
    shown = [pair for mean, pair in zip(means, bounds) if mean >= threshold]
    return Linear.around([value for pair in shown for value in pair])


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(multiple * power for multiple in (1, 2, 5, 10) if multiple * power >= raw * 0.999)


def _decade_steps(low: float, high: float) -> list[list[float]]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [
        [m * 10.0**e for e in range(first, last + 1) for m in steps] for steps in ((1, 2, 5), (1, 3), (1,))
    ]
    return fine + [[10.0**e for e in range(first, last + 1) if e % every == 0] for every in (2, 3, 6)]


def _time_steps() -> list[tuple[float, ...]]:
    return [_ROUND_SECONDS, _SPARSE_SECONDS, _SPARSE_SECONDS[::2], _SPARSE_SECONDS[::4]]
