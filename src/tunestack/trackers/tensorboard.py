"""TensorBoard: event files in RUN/tensorboard, a folder a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from tunestack.results import CurvePoint, SeedResult
from tunestack.trackers.base import (
    Conclusion,
    TrackedRun,
    TrackedTrial,
    Tracker,
    curve_values,
    final_values,
)

FOLDER = "tensorboard"


class TensorBoard(Tracker):
    """Keeps no copies of files: the run folder has them."""

    def __init__(self) -> None:
        self._writer: SummaryWriter
        self._folder: Path
        self._trials: dict[str, tuple[TrackedTrial, SummaryWriter]] = {}

    def start(self, run: TrackedRun) -> None:
        """Show the settings."""
        self._folder = run.folder / FOLDER
        self._writer = SummaryWriter(str(self._folder))
        self._writer.add_text("config", _code(run.config))
        self._writer.flush()

    def trial_started(self, trial: TrackedTrial) -> None:
        """Begin the trial's folder."""
        self._trials[trial.key] = trial, SummaryWriter(str(self._folder / trial.key))

    def evaluated(self, key: str, point: CurvePoint) -> None:
        """Add to the trial's scalars."""
        _, writer = self._trials[key]
        for name, value in curve_values(point).items():
            writer.add_scalar(name, value, point.step)
        writer.flush()

    def trial_finished(self, key: str, result: SeedResult, adapter: Path | None) -> None:
        """Add the trial to the table of hyper-parameters, with its final metrics."""
        trial, writer = self._trials.pop(key)
        if result.failure is not None:
            writer.add_text("failure" if result.failed else "ended", result.failure)
        else:
            plain = {name: _plain(value) for name, value in trial.parameters.items()}
            # "." keeps them in this folder; by default they get one of their own, a run apart.
            writer.add_hparams({"candidate": trial.group, **plain}, final_values(result), run_name=".")
        writer.close()

    def finish(self, conclusion: Conclusion | None) -> None:
        """Show the verdict, the candidates' values and the leaderboard."""
        for _, trial in self._trials.values():
            trial.close()
        if conclusion is not None:
            self._writer.add_text("verdict", conclusion.sentence)
            for candidate, values in conclusion.values.items():
                for name, value in values.items():
                    self._writer.add_scalar(f"{candidate}/{name}", value)
            for file in conclusion.files:
                if file.suffix == ".md":
                    self._writer.add_text(file.stem, file.read_text(encoding="utf-8"))
        self._writer.close()


def _plain(value: object) -> bool | str | float | int:
    """What the table of hyper-parameters can hold."""
    return value if isinstance(value, bool | str | float | int) else str(value)


def _code(values: Mapping[str, object]) -> str:
    """Settings as a block of Markdown."""
    return "".join(f"    {line}\n" for line in json.dumps(values, indent=2).splitlines())
