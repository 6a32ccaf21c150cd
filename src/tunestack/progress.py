"""The live display: a row a trial in work, with epoch, loss, metric, time left; of a sweep, how far it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    best: tuple[str, float] | None = None
    curve: list[float] = field(default_factory=list)

    def left(self, now: float) -> str:
        """Time left, from the pace since it began here."""
        done = self.step - self.first_step
        if done <= 0 or not self.steps:
            return ""
        return _clock((now - self.began) / done * (self.steps - self.step))


class Display:
    """Shows events: live in a terminal, a line an evaluation elsewhere.

    trials: how many there will be, where that is known; then it says how far they are, and the best so far.
    """

    def __init__(self, console: Console, metric: str = "f1", trials: int | None = None) -> None:
        self.console = console
        self.metric = metric
        self._rows: dict[str, _Row] = {}
        self._trials = trials
        self._began = time.monotonic()
        self._finished = 0
        self._pruned = 0
        self._best: tuple[float, str] | None = None
        self._note = "Reading data and bases"
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
                self._rows[event.key] = _Row(event.key, time.monotonic(), event.step, event.step, event.steps)
                self._line(f"{event.key}: started")
            case "step" if row:
                row.step, row.epoch = event.step, event.epoch
                row.loss = event.loss if event.loss is not None else row.loss
            case "evaluated" if row and event.point:
                value = event.point.metrics[self.metric]
                if row.best is None or value > row.best[1]:
                    row.best = (self.metric, value)
                row.loss = event.point.train_loss
                row.curve.append(value)
                if self._best is None or value > self._best[0]:
                    self._best = value, event.key
                self._line(
                    f"{event.key}: epoch {event.point.epoch:g}, loss {event.point.train_loss:.3f}, "
                    f"{self.metric} {value:.3f}"
                )
            case "finished":
                self._rows.pop(event.key, None)
                self._finished += 1
                self._line(f"{event.key}: done")
            case "pruned":
                self._rows.pop(event.key, None)
                self._finished += 1
                self._pruned += 1
                self._line(f"{event.key}: pruned")
            case "failed":
                self._rows.pop(event.key, None)
                self.console.print(f"[red]{event.key} failed:[/] {escape(event.message)}")
            case "narrowed" | "note":
                self.console.print(f"[yellow]{escape(event.message)}[/]")
            case "measuring":
                self._note = f"Measuring what {event.key} costs alone"
                self._line(self._note)

    def _summary(self, now: float) -> str:
        """How far all of it is."""
        if self._trials is None:
            return f"{self._finished} done"
        parts = [f"{self._finished} of {self._trials} trials done"]
        if self._pruned:
            parts[0] += f", {self._pruned} of them pruned"
        if self._best is not None:
            parts.append(f"best {self.metric} {self._best[0]:.3f} ({self._best[1]})")
        if self._finished:
            pace = self._finished / (now - self._began)
            parts.append(f"{60 * pace:.1f} trials a minute")
            parts.append(f"{_clock((self._trials - self._finished) / pace)} left")
        return " · ".join(parts)

    def _line(self, text: str) -> None:
        if not self.console.is_terminal:
            self.console.print(text, highlight=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        now = time.monotonic()
        table = Table(box=None, padding=(0, 2), header_style="dim")
        for title in ("trial", "progress", "epoch", "loss", f"best {self.metric}", "curve", "left"):
            left = title in ("trial", "progress", "curve")
            table.add_column(title, justify="left" if left else "right")
        for row in self._rows.values():
            share = row.step / row.steps if row.steps else 0.0
            filled = round(share * BAR)
            table.add_row(
                row.key,
                Text("━" * filled, style="cyan") + Text("━" * (BAR - filled), style="dim")
                if row.steps
                else "",
                f"{row.epoch:.2f}" if row.steps else "",
                f"{row.loss:.3f}" if row.loss is not None else "",
                f"{row.best[1]:.3f}" if row.best else "",
                sparkline(row.curve),
                row.left(now),
            )
        done = Text(self._summary(now), style="dim")
        parts: list[RenderableType] = [table] if self._rows else []
        return Group(*parts, Spinner("dots", Text(self._note)) if self._note else done)


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
