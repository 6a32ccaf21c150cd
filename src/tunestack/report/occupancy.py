"""When each slot of a sweep trained which trial: the geometry of that chart, in percent of its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tunestack.report import formatting
from tunestack.report.scales import Tick, clock_ticks
from tunestack.report.trials import TrialRow
from tunestack.results import Span

LONG_PAUSE = 0.1
"""A time when nothing ran is cut out where it is longer than this share of the time when something did."""

Times = tuple[float, float]
"""Of something: its begin and its end."""
Timed = tuple[Span, TrialRow]


@dataclass(frozen=True)
class Bar:
    """A trial, as long as it had a slot."""

    row: TrialRow
    left: float
    width: float


@dataclass(frozen=True)
class SlotRow:
    """One slot's bars, which do not overlap. again: of how many processes with that slot this is, from 0."""

    slot: int
    again: int
    bars: list[Bar]


@dataclass(frozen=True)
class Pause:
    """Where a time when nothing ran was cut out, and how long it was."""

    at: float
    text: str


@dataclass(frozen=True)
class Occupancy:
    """Slots over time. busy: share of slots and time that trained something; pauses are left out of it."""

    slots: list[SlotRow]
    ticks: list[Tick]
    pauses: list[Pause]
    span: str
    busy: float


def occupancy(rows: Sequence[TrialRow]) -> Occupancy | None:
    """A row for each slot, from the first start to the last end; None where no trial had a slot.

    Slots of the same number in several processes have rows of their own.
    """
    timed: list[Timed] = [(span, row) for row in rows for span in row.trial.spans]
    timed.sort(key=lambda pair: _times(pair[0]))
    if not timed:
        return None
    times = [_times(span) for span, _ in timed]
    pauses = _pauses(times)
    start, end = times[0][0], max(ended for _, ended in times)

    def elapsed(moment: float) -> float:
        cut = sum(min(max(moment - low, 0.0), high - low) for low, high in pauses)
        return moment - start - cut

    total = elapsed(end) or 1.0

    def place(moment: float) -> float:
        return round(100 * elapsed(moment) / total, 3)

    def bar(span: Span, row: TrialRow) -> Bar:
        left = place(span.began)
        return Bar(row, left, round(place(span.ended) - left, 3))

    slots = [
        SlotRow(slot, again, [bar(span, row) for span, row in taken])
        for slot in sorted({span.slot for span, _ in timed})
        for again, taken in enumerate(_apart([pair for pair in timed if pair[0].slot == slot]))
    ]
    trained = sum(ended - began for began, ended in times)
    return Occupancy(
        slots=slots,
        ticks=clock_ticks(total, formatting.duration),
        pauses=[Pause(place(low), formatting.duration(high - low)) for low, high in pauses],
        span=formatting.duration(total),
        busy=min(trained / (total * len(slots)), 1.0),
    )


def _times(span: Span) -> Times:
    return span.began, span.ended


def _pauses(spans: Sequence[Times]) -> list[Times]:
    """Long times when nothing ran: a stopped sweep may have been resumed the next day. `spans` by start."""
    gaps = list(_gaps(spans))
    ran = max(end for _, end in spans) - spans[0][0] - sum(high - low for low, high in gaps)
    return [(low, high) for low, high in gaps if high - low > LONG_PAUSE * ran]


def _gaps(spans: Sequence[Times]) -> Iterator[Times]:
    reached = spans[0][1]
    for began, ended in spans:
        if began > reached:
            yield reached, began
        reached = max(reached, ended)


def _apart(timed: Sequence[Timed]) -> list[list[Timed]]:
    """The spans of one slot in rows where none overlaps another: one row for each process."""
    lanes: list[list[Timed]] = []
    for span, row in timed:
        free = next((lane for lane in lanes if lane[-1][0].ended <= span.began), None)
        if free is None:
            free = []
            lanes.append(free)
        free.append((span, row))
    return lanes
