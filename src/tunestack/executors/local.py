"""Stacks in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunestack.results import SeedResult
from tunestack.stack.events import Notify
from tunestack.stack.loop import train
from tunestack.stack.slot import Trial
from tunestack.stack.work import Outcome, Workload


class LocalExecutor:
    """Runs a stack here and now."""

    def run(
        self,
        work: Workload,
        trials: Sequence[Trial],
        slots: int | None,
        checkpoints: Path,
        finish: Callable[[Outcome], SeedResult],
        notify: Notify,
    ) -> list[SeedResult]:
        """Train all trials; `finish` saves each as it ends, while its weights are there."""
        return [finish(outcome) for outcome in train(work, trials, slots, notify, checkpoints)]
