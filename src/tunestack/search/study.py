"""The study: which trials there were, are and will be.

Several processes may share one, and any may be killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from tunestack.differences import differences, same
from tunestack.errors import Problem, UserError
from tunestack.search.config import SweepConfig
from tunestack.search.space import Space, Suggestion
from tunestack.search.strategies import make_pruner, make_sampler

State = Literal["running", "complete", "pruned", "failed"]

FREE = ("output", "slots", "trials", "confirm", "seeds", "measure_costs", "track")
"""Settings that may differ when a sweep is resumed: they change no suggestion and no result."""
FEWEST_FOR_IMPORTANCES = 10
"""Complete trials; with fewer, what a parameter explains is chance."""
NAME = "sweep"
"""Of the study, always the same: Hyperband spreads trials by it."""
CONFIG, WORKER, PRUNED = "config", "worker", "pruned"
"""What the study and its trials carry: the settings, who runs a trial, that it is to be stopped."""
STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class TriedPoint:
    """A trial as the study knows it.

    parameters: what was searched. value: of a complete trial its metric, of a pruned one the last that it
    had. intermediate: metrics by the number of the evaluation.
    """

    number: int
    method: str
    parameters: dict[str, Any]
    state: State
    value: float | None
    intermediate: dict[int, float]


class Study:
    """Suggests trials and keeps what became of them, in `study.journal` of the run folder.

    Every process that shares the study holds `workers/ID.lock` while it lives, and each trial names the
    one that runs it: a trial whose process is gone is handed out again. `study.lock` is held while the
    journal is written, and from looking at the trials to claiming one. Both locks go with their process.
    """

    def __init__(self, config: SweepConfig, folder: Path) -> None:
        self.config = config
        self.space = Space(config)
        self.folder = folder
        self._lock = JournalLock(folder)
        self._worker = uuid.uuid4().hex
        self._alive = FileLock(self._worker_file(self._worker))
        self._running: dict[int, tuple[optuna.Trial, int]] = {}

    @classmethod
    def open(cls, config: SweepConfig, folder: Path) -> Study:
        """Begin or resume. config: as a plan has it, checked and with every method's own defaults.

        Raises UserError where the folder holds a study of other settings, naming them, or a damaged one.
        """
        study = cls(config, folder)
        (folder / "workers").mkdir(parents=True, exist_ok=True)
        try:
            with study._lock:
                study._alive.acquire()
                study._load()
        except BaseException:
            study.close()
            raise
        return study

    def _load(self) -> None:
        path = self.folder / "study.journal"
        # The lock is entered and left, no more; Optuna's own outlive a killed process for 30 seconds.
        backend = JournalFileBackend(str(path), lock_obj=cast(Any, self._lock))
        try:
            with _quiet():
                self._study = optuna.create_study(
                    storage=JournalStorage(backend),
                    study_name=NAME,
                    direction="maximize",
                    pruner=make_pruner(self.config.pruner, self.space.most_evaluations),
                    load_if_exists=True,
                )
        except (ValueError, KeyError) as error:
            fix = "Restore the file, or delete the folder and begin anew."
            raise UserError(Problem(str(path), "the journal of a study", str(error), fix)) from error
        ours = self.config.model_dump(mode="json", exclude=set(FREE))
        if CONFIG not in self._study.user_attrs:  # new, or killed before this
            self._study.set_user_attr(CONFIG, ours)
        theirs = _with_defaults(self._study.user_attrs[CONFIG])
        if not same(theirs, ours):
            found = f"one of another sweep ({differences(theirs, ours)})"
            expected = "a new folder, or the study of the same sweep"
            fix = "Choose another --output. Only where nothing in it is of use any more, delete the folder."
            raise UserError(Problem(str(self.folder), expected, found, fix))

    def close(self) -> None:
        """Leave the study; trials that still run are for others to take. Nothing else may be called after."""
        with self._lock:
            if self._alive.is_locked:
                self._worker_file(self._worker).unlink(missing_ok=True)
                self._alive.release()

    def __enter__(self) -> Study:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self) -> Suggestion | None:
        """The next trial for this process: first those whose process is gone, then new ones.

        None once there are as many trials as wanted, whatever became of them and whoever runs them, or once
        every point of a finite space was tried.
        """
        with self._lock:
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if not trial.state.is_finished() and not self._is_run(trial):
                    if PRUNED not in trial.user_attrs:
                        return self._hand_out(trial)
                    self._study.tell(trial.number, state=TrialState.PRUNED)
            params = self._choose(trials) if len(trials) < self.config.trials else None
            if params is None:
                return None
            # One line of the journal: a trial is there with all its parameters, or not at all.
            new = optuna.trial.create_trial(
                state=TrialState.RUNNING, params=params, distributions=self.space.distributions(params)
            )
            self._study.add_trial(new)
            return self._hand_out(self._study.get_trials(deepcopy=False)[len(trials)])

    def report(self, number: int, step: int, value: float, ends: bool = False) -> bool:
        """Note the metric of a trial that `ask` gave to this process; whether the trial is to be stopped.

        step: which evaluation it is, from 1: after step / evaluations_per_epoch epochs, so that one step
        means as much data in every trial. An evaluation elsewhere, at the end of a broken epoch, is not
        reported. ends: the trial ends with this evaluation anyway. After its last evaluation no trial is
        stopped, and after one that an earlier process reported it goes on as it did there.
        """
        trial, last = self._running[number]
        with self._lock:
            if PRUNED in trial.user_attrs:
                return True
            if step in self._study.get_trials(deepcopy=False)[number].intermediate_values:
                return False
            trial.report(value, step)
            stop = trial.should_prune()  # asked at the end, too: halving notes there who came how far
            pruned = stop and step < last and not ends
            if pruned:  # kept, for a process that is killed before it tells
                trial.set_user_attr(PRUNED, step)
            return pruned

    def tell(self, number: int, value: float | None, state: Literal["complete", "pruned", "failed"]) -> None:
        """Say what became of a trial. One that is finished already is left as it is.

        value: of a complete trial its metric; one that is no number makes it a failed trial.
        """
        if state == "complete" and value is None:
            raise ValueError("a complete trial has a value")
        outcomes = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        outcome = outcomes[state]
        if outcome == TrialState.COMPLETE and math.isnan(cast(float, value)):
            outcome = TrialState.FAIL
        with self._lock:
            if not self._study.get_trials(deepcopy=False)[number].state.is_finished():
                self._study.tell(number, value if outcome == TrialState.COMPLETE else None, outcome)
        self._running.pop(number, None)

    def trials(self) -> list[TriedPoint]:
        """All trials by number, those of other processes too."""
        return [self._view(trial) for trial in self._study.get_trials(deepcopy=False)]

    def suggestion(self, number: int) -> Suggestion:
        """What a trial was asked to train."""
        trial = self._study.get_trials(deepcopy=False)[number]
        return self.space.suggestion(trial.number, trial.params)

    def importances(self) -> dict[str, float]:
        """How much of the metric's variance among complete trials each parameter explains (fANOVA; Hutter et
        al., 2014), the largest first; those that every trial has. Empty where too few trials are complete.
        """
        complete = [trial.value for trial in self.trials() if trial.state == "complete"]
        if len(complete) < FEWEST_FOR_IMPORTANCES or len(set(complete)) == 1:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.config.seed)
        return dict(optuna.importance.get_param_importances(self._study, evaluator=evaluator))

    def best(self) -> TriedPoint | None:
        """The complete trial with the highest metric, the earliest of several."""
        complete = [trial for trial in self.trials() if trial.state == "complete"]
        return max(complete, key=lambda trial: (cast(float, trial.value), -trial.number), default=None)

    def _hand_out(self, found: FrozenTrial) -> Suggestion:
        """Take a trial that nobody runs."""
        trial = optuna.Trial(self._study, found._trial_id)  # there is no public way from one to the other
        trial.set_user_attr(WORKER, self._worker)
        suggestion = self.space.suggestion(found.number, found.params)
        self._running[found.number] = trial, self.space.evaluations(suggestion.training)
        return suggestion

    def _choose(self, trials: list[FrozenTrial]) -> dict[str, Any] | None:
        """The parameters of a new trial; None where every point was tried."""
        if self.space.listed:
            tried = {frozenset(trial.params.items()) for trial in trials}
            return next((p for p in self.space.points() if frozenset(p.items()) not in tried), None)
        conditional = len(self.space.branches) > 1
        sampler = make_sampler(self.config.sampler, self.config.seed, len(trials), conditional)
        with _quiet():  # samplers choose one parameter after the other: on a copy
            copy = optuna.create_study(
                study_name=NAME, direction="maximize", sampler=sampler, pruner=self._study.pruner
            )
        copy.add_trials(trials)
        trial = copy.ask()
        self.space.draw(trial)
        return trial.params

    def _is_run(self, trial: FrozenTrial) -> bool:
        """Whether the process that runs a trial is alive. Asked under the lock: nobody claims one now."""
        worker = trial.user_attrs.get(WORKER)
        if worker is None or worker == self._worker:
            return worker is not None
        path = self._worker_file(worker)
        if not path.exists():
            return False
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        path.unlink(missing_ok=True)
        lock.release()
        return False

    def _worker_file(self, worker: str) -> Path:
        return self.folder / "workers" / f"{worker}.lock"

    def _view(self, trial: FrozenTrial) -> TriedPoint:
        suggestion = self.space.suggestion(trial.number, trial.params)
        return TriedPoint(
            number=trial.number,
            method=suggestion.method,
            parameters=suggestion.parameters,
            state=STATES[trial.state],
            value=trial.values[0] if trial.values else None,
            intermediate=dict(sorted(trial.intermediate_values.items())),
        )


class JournalLock:
    """The lock of a study folder, which may be taken again by whoever has it.

    Taking it also cuts off a line of the journal that was not written to its end, which the next one would
    be glued to.
    """

    def __init__(self, folder: Path) -> None:
        self._file = FileLock(folder / "study.lock")
        self._journal = folder / "study.journal"

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._file.acquire(poll_interval=0.005)
        with contextlib.suppress(FileNotFoundError):
            _cut_broken_line(self._journal)
        return True

    def release(self) -> None:
        """Give it back, or once less."""
        self._file.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna announces every study that it makes."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _cut_broken_line(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0 or (file.seek(end - 1), file.read(1))[1] == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a study that an earlier version began, with what has come since at its default."""
    try:
        return SweepConfig.model_validate(config).model_dump(mode="json", exclude=set(FREE))
    except ValidationError:
        return config
