"""Weights & Biases: a run a trial and one for the comparison, in a group of the comparison's name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import wandb

from tunestack.errors import Problem, UserError
from tunestack.results import CurvePoint, SeedResult
from tunestack.trackers.base import (
    PATIENCE,
    PROJECT,
    Conclusion,
    TrackedRun,
    TrackedTrial,
    Tracker,
    check_server,
    curve_values,
    final_values,
)


class WandB(Tracker):
    """Entity, project, mode (online, offline) and folder are W&B's own settings."""

    def __init__(self) -> None:
        self._about: TrackedRun
        self._run: wandb.Run
        self._trials: dict[str, wandb.Run] = {}

    @classmethod
    def check(cls) -> None:
        """Raise UserError where W&B is to work online and nobody is logged in."""
        if _online() and not wandb.login(prompt=False, verify=False):
            found = f"no API key for {wandb.setup().settings.base_url}"
            fix = "Log in with `wandb login`, or set WANDB_MODE=offline."
            raise UserError(Problem("track", "a login to W&B", found, fix))

    def start(self, run: TrackedRun) -> None:
        """Begin the comparison's own run."""
        if _online():
            check_server(wandb.setup().settings.base_url)
        self._about = run
        self._run = self._begin(run.id, run.name, run.kind, run.config)

    def trial_started(self, trial: TrackedTrial) -> None:
        """Begin a run with the trial's parameters."""
        config = {"candidate": trial.group, **trial.parameters}
        run_id = f"{self._about.id}-{_allowed(trial.key)}"
        self._trials[trial.key] = self._begin(run_id, trial.key, "trial", config)

    def evaluated(self, key: str, point: CurvePoint) -> None:
        """Add to the trial's history, at the step of training."""
        self._trials[key].log(curve_values(point), step=point.step)

    def trial_finished(self, key: str, result: SeedResult, adapter: Path | None) -> None:
        """Summarise the trial, log its adapter as a model, and end its run."""
        run = self._trials.pop(key)
        run.summary.update(final_values(result))
        if result.failure is not None:
            run.summary["failure" if result.failed else "ended"] = result.failure
        if adapter is not None:
            artifact = wandb.Artifact(_allowed(f"{self._about.name}-{key}"), type="model")
            for file in adapter.iterdir():  # add_dir writes to the terminal
                artifact.add_file(str(file))
            run.log_artifact(artifact)
        run.finish(exit_code=1 if result.failed else 0)

    def finish(self, conclusion: Conclusion | None) -> None:
        """Log the table of candidates and the report, and end what is open."""
        for trial in self._trials.values():
            trial.finish(exit_code=1)
        if conclusion is not None:
            self._run.summary["verdict"] = conclusion.sentence
            self._run.log({"candidates": _table(conclusion.values)})
            artifact = wandb.Artifact(_allowed(f"{self._about.name}-report"), type="report")
            for file in conclusion.files:
                artifact.add_file(str(file))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if conclusion else 1)

    def _begin(self, run_id: str, name: str, job_type: str, config: Mapping[str, Any]) -> wandb.Run:
        settings = wandb.Settings(
            silent=True,  # the terminal belongs to the display
            console="off",
            x_disable_stats=True,  # all trials share one process, which is all that they would show
        )
        if "WANDB_FINISH_TIMEOUT" not in os.environ:  # by default it waits for ever, at exit too
            settings.finish_timeout, settings.finish_timeout_raises = PATIENCE, True
        return wandb.init(
            project=wandb.setup().settings.project or PROJECT,
            group=self._about.name,
            job_type=job_type,
            id=run_id,
            name=name,
            config=dict(config),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )


def _online() -> bool:
    return wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")


def _allowed(name: str) -> str:
    """A name without the characters that W&B refuses in ids and artifacts."""
    return re.sub(r"[^\w\-.]", "_", name)


def _table(values: Mapping[str, Mapping[str, float]]) -> wandb.Table:
    """A row a candidate, a column a metric or cost."""
    columns = list(dict.fromkeys(name for row in values.values() for name in row))
    rows: list[Iterable[Any]] = [
        [candidate, *(row.get(name) for name in columns)] for candidate, row in values.items()
    ]
    return wandb.Table(columns=["candidate", *columns], data=rows)
