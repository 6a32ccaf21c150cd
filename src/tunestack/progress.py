"""The live display: a row a trial in work, with epoch, loss, metric, time left; of a sweep, how far it is."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tunestack.stack.events import Event

BAR = 16
SPARKS = "▁▂▃▄▅▆▇█"
COLUMNS = ("trial", "progress", "epoch", "loss", "best", "curve", "left")
NARROW = 84
"""Columns of a terminal that the table takes without the parameters of trials."""
AROUND = 4
"""Lines of the terminal that are no trial's: the table's head, how many more there are, how far all of it
is, and the cursor's.
"""


@dataclass
class _Row:
    """What is known of one trial."""

    key: str
    began: float
    first_step: int = 0
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    about: str = ""
    evaluating: bool = False
    curve: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """How much of it is done."""
        return self.step / self.steps if self.steps else 0.0

    @property
    def share_here(self) -> float:
        """How much of it was done since it began here."""
        return (self.step - self.first_step) / self.steps if self.steps else 0.0

    def left(self, now: float) -> str:
        """Time left, from the pace since it began here."""
        if self.evaluating:
            return "eval"
        done = self.step - self.first_step
        if done <= 0 or not self.steps:
            return ""
        return _clock((now - self.began) / done * (self.steps - self.step))


@dataclass
class _Count:
    """How many trials are done, since when these are counted, and of how many, where that is known.

    before: those that were done without being trained here meanwhile, and the parts of trials in work. about:
    what else is known of them.
    """

    began: float
    done: int = 0
    of: int | None = None
    before: float = 0
    about: str = ""

    def one_more(self, here: bool) -> None:
        """A trial is done; here: since the count began."""
        self.done += 1
        self.before += not here

    def corrected(self, event: Event, rows: Collection[_Row]) -> _Count:
        """The count after somebody who knows said it; from anew where that is of other trials."""
        if event.steps != self.of or event.step < self.done:
            before = event.step + sum(row.share_here for row in rows)
            return _Count(time.monotonic(), event.step, event.steps, before, event.message)
        return replace(self, done=event.step, about=event.message)

    def text(self, now: float, rows: Collection[_Row]) -> str:
        """How far all of it is. rows: the trials in work, of which a part is done."""
        if self.of is None:
            return f"{self.done} done"
        parts = [f"{self.done} of {self.of} trials done", *filter(None, [self.about])]
        done_here = self.done - self.before + sum(row.share_here for row in rows)
        left = self.of - self.done - sum(row.share for row in rows)
        if done_here > 0 and left > 0 and now > self.began:
            pace = done_here / (now - self.began)
            slow = 60 * pace < 0.1
            parts.append(f"{3600 * pace:.1f} trials an hour" if slow else f"{60 * pace:.1f} trials a minute")
            parts.append(f"{_clock(left / pace)} left")
        return " · ".join(parts)


class Display:
    """Shows events: live in a terminal, a line an evaluation elsewhere."""

    def __init__(self, console: Console, metric: str = "f1") -> None:
        self.console = console
        self.metric = metric
        self._rows: dict[str, _Row] = {}
        self._count = _Count(time.monotonic())
        self._note, self._noted = "Reading data and bases", time.monotonic()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def notify(self, event: Event) -> None:
        """Take note of an event."""
        row = self._rows.get(event.key)
        match event.kind:
            case "started":
                self._note = ""
                now, at = time.monotonic(), event.step
                self._rows[event.key] = _Row(
                    event.key, now, at, at, event.steps, event.epoch, about=event.message
                )
                for point in event.curve:
                    self._rows[event.key].curve.append(point.metrics[self.metric])
                    self._rows[event.key].loss = point.train_loss
                how = f"goes on at epoch {event.epoch:.3g}" if event.step else "started"
                self._line(f"{event.key}: {how}" + (f" with {event.message}" if event.message else ""))
            case "step" if row:
                self._note = ""
                row.step, row.epoch, row.evaluating = event.step, event.epoch, False
                row.loss = event.loss if event.loss is not None else row.loss
            case "evaluating" if row:
                row.evaluating = True
            case "evaluated" if row and event.point:
                value = event.point.metrics[self.metric]
                row.evaluating = False
                row.loss = event.point.train_loss
                row.curve.append(value)
                self._line(
                    f"{event.key}: epoch {event.point.epoch:g}, loss {event.point.train_loss:.3f}, "
                    f"{self.metric} {value:.3f}"
                )
            case "waits":
                self._rows.pop(event.key, None)
                self._line(f"{event.key}: waits for another slot")
            case "finished" | "pruned":
                self._count.one_more(here=self._rows.pop(event.key, None) is not None)
                self._line(f"{event.key}: {'done' if event.kind == 'finished' else 'pruned'}")
            case "failed":
                if self._rows.pop(event.key, None) is not None:  # or it was no trial in work
                    self._count.one_more(here=True)
                self.console.print(f"[red]{event.key} failed:[/] {escape(event.message)}")
            case "counted":
                self._note = ""
                self._count = self._count.corrected(event, self._rows.values())
            case "narrowed" | "note":
                self.console.print(f"[yellow]{escape(event.message)}[/]")
            case "measuring":
                self._note, self._noted = event.message, time.monotonic()
                self._line(self._note)

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        now = time.monotonic()
        table = Table(box=None, padding=(0, 1), header_style="dim")
        for title in COLUMNS:
            left = title in ("trial", "progress", "curve")
            title = f"best {self.metric}" if title == "best" else title
            table.add_column(title, justify="left" if left else "right", no_wrap=True)
        rows = list(self._rows.values())
        if (room := self.console.width - NARROW) > 0 and any(row.about for row in rows):
            table.add_column("parameters", no_wrap=True, overflow="ellipsis", max_width=room)
        shown = rows[: max(1, self.console.height - AROUND)]
        for row in shown:
            filled = round(row.share * BAR)
            table.add_row(
                row.key,
                Text("━" * filled, style="cyan") + Text("━" * (BAR - filled), style="dim")
                if row.steps
                else "",
                f"{row.epoch:.2f}" if row.steps else "",
                f"{row.loss:.3f}" if row.loss is not None else "",
                f"{max(row.curve):.3f}" if row.curve else "",
                sparkline(row.curve),
                row.left(now),
                *[Text(row.about)] * (len(table.columns) > len(COLUMNS)),
            )
        done = Text(self._count.text(now, rows), style="dim", no_wrap=True, overflow="ellipsis")
        parts: list[RenderableType] = [table] if self._rows else []
        if len(rows) > len(shown):
            parts.append(Text(f"  and {len(rows) - len(shown)} more", style="dim"))
        noted = Text(f"{self._note} {_clock(now - self._noted)}", no_wrap=True, overflow="ellipsis")
        return Group(*parts, Spinner("dots", noted) if self._note else done)


def sparkline(values: Sequence[float]) -> str:
    """A curve as a word: the lowest of its values is the lowest sign, the highest the highest."""
    if not values:
        return ""
    low, high = min(values), max(values)
    steps = len(SPARKS) - 1
    return "".join(
        SPARKS[round(steps * (value - low) / (high - low)) if high > low else 0] for value in values
    )


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return (
        f"{whole // 3600}:{whole % 3600 // 60:02}:{whole % 60:02}"
        if whole >= 3600
        else (f"{whole // 60}:{whole % 60:02}")
    )
