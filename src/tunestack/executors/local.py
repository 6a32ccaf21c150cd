"""Stacks in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tunestack.results import SeedResult
from tunestack.stack.loop import Notify, Outcome, Workload, train
from tunestack.stack.slot import Trial

SLOTS = {"cpu": 4}
"""How many trials train together where the user does not say; elsewhere as many as there are.

Four on a processor is what docs/benchmarks.md measured; memory grows with each slot.
"""


def default_slots(work: Workload) -> int | None:
    """How many trials train together where the user does not say; None: as many as there are."""
    return SLOTS.get(work.base.device.type)


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
        width = slots or default_slots(work) or len(trials)
        return [finish(outcome) for outcome in train(work, trials, width, notify, checkpoints)]
