"""Stacks in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunestack.results import SeedResult
from tunestack.stack.loop import Notify, Outcome, Workload, train
from tunestack.stack.slot import Trial

SLOTS = {"cpu": 4}
"""How many trials train together where the user does not say; elsewhere as many as there are.

On a processor the gain levels off after a few slots (docs/benchmarks.md), and memory grows with each.
"""


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
        width = slots or SLOTS.get(work.base.device.type, len(trials))
        return [finish(outcome) for outcome in train(work, trials, width, notify, checkpoints)]
