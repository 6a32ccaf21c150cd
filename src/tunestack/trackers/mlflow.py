"""MLflow: a parent run for the comparison, a nested run a trial."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tunestack.results import CurvePoint, SeedResult
from tunestack.trackers.base import (
    PROJECT,
    Conclusion,
    TrackedRun,
    TrackedTrial,
    Tracker,
    check_server,
    curve_values,
    final_values,
    one_process,
)

LONGEST_VALUE = 6000
"""Characters that MLflow takes as a parameter's value."""

ID = "tunestack.id"
KEY = "tunestack.trial"


class MLflow(Tracker):
    """Through a client of its own, so that no run becomes the active one of the process."""

    def __init__(self) -> None:
        self._client = mlflow.MlflowClient()
        self._id = ""
        self._experiment = ""
        self._parent = ""
        self._open: dict[str, str] = {}

    def start(self, run: TrackedRun) -> None:
        """Begin the comparison's own run, or reopen it."""
        uri = mlflow.get_tracking_uri()
        if uri.startswith(("http://", "https://")):
            check_server(uri)
        self._id = run.id
        with one_process(run.folder, "mlflow"):  # those that share a sweep have one run
            self._experiment = self._find_experiment()
            self._parent = self._open_run("", run.name, {"tunestack.kind": run.kind})
        self._client.log_dict(self._parent, dict(run.config), "config.yaml")

    def trial_started(self, trial: TrackedTrial) -> None:
        """Begin a nested run with the trial's parameters."""
        tags = {MLFLOW_PARENT_RUN_ID: self._parent, "tunestack.candidate": trial.group}
        run_id = self._open[trial.key] = self._open_run(trial.key, trial.key, tags)
        values = {name: str(value)[:LONGEST_VALUE] for name, value in trial.parameters.items()}
        params = [Param(_allowed(name), value) for name, value in values.items()]
        self._client.log_batch(run_id, params=params)

    def evaluated(self, key: str, point: CurvePoint) -> None:
        """Add to the histories of the trial's metrics."""
        self._log(self._open[key], curve_values(point), point.step)

    def trial_finished(self, key: str, result: SeedResult, adapter: Path | None) -> None:
        """Log final metrics and the adapter, and end the trial's run."""
        run_id = self._open.pop(key)
        self._log(run_id, final_values(result))
        if result.failure is not None:
            tag = "tunestack.failure" if result.failed else "tunestack.ended"
            self._client.set_tag(run_id, tag, result.failure)
        if adapter is not None:
            self._client.log_artifacts(run_id, str(adapter), "adapter")
        self._client.set_terminated(run_id, "FAILED" if result.failed else "FINISHED")

    def finish(self, conclusion: Conclusion | None) -> None:
        """Log the candidates' values and the report to the comparison's run, and end what is open."""
        for run_id in self._open.values():
            self._client.set_terminated(run_id, "KILLED")
        if conclusion is not None:
            for candidate, values in conclusion.values.items():
                self._log(self._parent, {f"{candidate}/{name}": value for name, value in values.items()})
            self._client.set_tag(self._parent, "mlflow.note.content", conclusion.sentence)
            for file in conclusion.files:
                self._client.log_artifact(self._parent, str(file))
        self._client.set_terminated(self._parent, "FINISHED" if conclusion else "KILLED")

    def _find_experiment(self) -> str:
        """The experiment that MLflow's environment variables name, else ours."""
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _open_run(self, key: str, name: str, tags: Mapping[str, str]) -> str:
        """The run of a trial (of the comparison: key ""), which another process may have begun."""
        ours = f"tags.`{ID}` = '{self._id}' AND tags.`{KEY}` = '{key}'"
        for found in self._client.search_runs([self._experiment], ours, max_results=1):
            self._client.update_run(found.info.run_id, status="RUNNING")
            return str(found.info.run_id)
        tags = {ID: self._id, KEY: key, **tags}
        return str(self._client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)

    def _log(self, run_id: str, values: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), value, now, step) for name, value in values.items()]
        self._client.log_batch(run_id, metrics=metrics)


def _allowed(name: str) -> str:
    """A name without the characters that MLflow refuses."""
    return re.sub(r"[^\w\-. /]", "_", name)
