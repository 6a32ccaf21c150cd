"""The run folder: what is already there is not done again, what is written is written whole."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from pydantic import ValidationError

from tunestack.choice import Description
from tunestack.comparison.checks import IDENTITY
from tunestack.comparison.plan import BaselineCandidate, MethodCandidate, Plan
from tunestack.config import CompareConfig, Settings
from tunestack.differences import differences, same
from tunestack.environment import environment
from tunestack.errors import Problem, UserError
from tunestack.files import replacing, slug, write_json, write_text
from tunestack.results import Costs, SeedResult, SplitScores
from tunestack.settings import to_yaml
from tunestack.tasks.base import Given

FREE = ("output", "slots", "measure_costs", "track")
"""Settings that may differ when a run is resumed: they change no result."""


class RunFolder:
    """Where one comparison keeps everything.

    Layout: `config.yaml`, `environment.json`, `candidates/NAME/seed-S/{adapter/, predictions-SPLIT.csv,
    trial.json}`, `candidates/NAME/costs.json`, `checkpoints/`, and the results at the end.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = path
        self.plan = plan
        self.checkpoints = path / "checkpoints"

    @classmethod
    def open(cls, plan: Plan, free: Collection[str] = FREE) -> RunFolder:
        """Begin or resume. free: settings that may differ from those of the run that was begun.

        Raises UserError where the folder holds a run of another config or other data.
        """
        path = Path(plan.config.output)
        identity = {
            "data": plan.data.fingerprint,
            "weights": {name: base.source.fingerprint() for name, base in plan.bases.items()},
            "config": plan.config.model_dump(mode="json", exclude=set(FREE)),
        }
        known = path / IDENTITY
        if known.exists():
            _check_same(path, json.loads(known.read_text(encoding="utf-8")), identity, free)
        else:
            write_json(known, identity)
        write_json(path / "environment.json", environment())
        return cls(path, plan)

    def keep_settings(self, config: Settings) -> None:
        """Write the settings as the file with which the same command goes on."""
        write_text(self.path / "config.yaml", to_yaml(config.model_dump(mode="json")))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out meanwhile. Raises UserError where one is at work in this folder."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.checkpoints / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found = "another process at work in it"
            fix = "Wait for it or stop it; or choose another folder with --output."
            raise UserError(Problem(str(self.path), "a run folder to oneself", found, fix)) from None
        try:
            yield
        finally:
            lock.release()

    def finished(self, name: str, seed: int) -> SeedResult | None:
        """What a trial reached in an earlier run of the same command, if it finished."""
        path = self._seed(name, seed) / "trial.json"
        return SeedResult.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def adapter_folder(self, name: str, seed: int) -> Path:
        """Where the weights of one trial go."""
        return self._seed(name, seed) / "adapter"

    def describe(
        self, folder: Path, candidate: MethodCandidate | BaselineCandidate, decided: Mapping[str, Any] = {}
    ) -> None:
        """Write beside the weights what a tool needs to predict with them.

        decided: settings of the task that validation decided.
        """
        config, data = self.plan.config, self.plan.config.data
        base = self.plan.bases[candidate.base].settings if candidate.base else None
        Description(
            kind=candidate.kind,
            method=candidate.method_name,
            base=base,
            task=config.task.model_copy(update={"options": {**config.task.options, **decided}}),
            label_names=list(self.plan.data.label_names),
            text=data.text,
            text_pair=data.text_pair,
            columns=data.columns,
            max_length=candidate.max_length or config.training.max_length,
        ).save(folder)

    def finish(
        self, name: str, result: SeedResult, answers: dict[str, Given], checkpoint: str | None
    ) -> SeedResult:
        """Write predictions and scores of a trial; only then its checkpoint goes."""
        folder, task = self._seed(name, result.seed), self.plan.task
        scores: dict[str, SplitScores] = {}
        for split, given in answers.items():
            path, data = folder / f"predictions-{slug(split)}.csv", self.plan.data.splits()[split]
            columns = {"row": data["row"], **task.truth(data), **task.told(data, given)}
            with replacing(path) as temporary:
                # Quoted, as a carriage return in a text would end its row.
                pd.DataFrame(columns).to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)
            scores[split] = SplitScores(
                metrics=task.scores(data, given),
                confusion=task.confusion(data, given),
                predictions_path=self.relative(path),
            )
        own: dict[str, Any] = {name: scores.pop(name) for name in ("validation", "test") if name in scores}
        result = result.model_copy(update={"tests": scores, **own})
        write_text(folder / "trial.json", result.model_dump_json(indent=2))
        if checkpoint is not None:
            (self.checkpoints / f"{checkpoint}.safetensors").unlink(missing_ok=True)
        return result

    def answers(self, result: SeedResult, split: str) -> Given:
        """What a finished trial answered, as saved: [examples, ...]."""
        path = self.path / result.scores[split].predictions_path
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        return self.plan.task.read(frame)

    def costs(self, name: str) -> Costs | None:
        """What was measured for a candidate in an earlier run of the same command."""
        path = self._costs(name)
        return Costs.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def save_costs(self, name: str, costs: Costs) -> None:
        """Keep a candidate's costs."""
        write_text(self._costs(name), costs.model_dump_json(indent=2))

    def relative(self, path: Path) -> str:
        """A path as the results name it."""
        return path.relative_to(self.path).as_posix()

    def _seed(self, name: str, seed: int) -> Path:
        return self.path / "candidates" / slug(name) / f"seed-{seed}"

    def _costs(self, name: str) -> Path:
        return self.path / "candidates" / slug(name) / "costs.json"


def _check_same(path: Path, theirs: dict[str, Any], ours: dict[str, Any], free: Collection[str]) -> None:
    """Raise a UserError that names the settings that differ, or says that the data does."""
    theirs = {**theirs, "config": _without(free, _with_defaults(theirs["config"]))}
    ours = {**ours, "config": _without(free, ours["config"])}
    if same(theirs, ours):
        return
    differing = differences(theirs["config"], ours["config"])
    changed = [part for part in ("data", "weights") if theirs.get(part) != ours[part]]
    found = f"a run of another configuration ({differing})"
    raise UserError(
        Problem(
            str(path),
            "a new folder, or that of the very same run",
            found if differing else f"a run on other files: the {' and '.join(changed)} changed since",
            "Choose another --output. Only where nothing in it is of use any more, delete the folder.",
        )
    )


def _without(free: Collection[str], config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in free}


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run that an earlier version wrote, with what has come since at its default."""
    try:
        whole = CompareConfig.model_validate(config)
    except ValidationError:
        return config
    return whole.model_dump(mode="json", exclude=set(FREE))
