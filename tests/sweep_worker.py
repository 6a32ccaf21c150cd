"""Runs a sweep again and again in processes that are killed at random points of their work, then to its end.

test_sweep.py starts it with the sweep's settings and how many kills; forks share its imports. It prints what
each kill hit: how many trials were over, and how many evaluations those had had that were in training.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import optuna
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tunestack.search.config import SweepConfig
from tunestack.search.run import run_sweep
from tunestack.settings import validated


def killed(config: SweepConfig, lines: int, seconds: float) -> bool:
    """Run the sweep in a process of its own until it has written so many lines more to its journal, and for
    so many seconds; whether it was still at work.
    """
    journal = Path(config.output, "study.journal")
    before = _lines(journal)
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            run_sweep(config)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ended = 0
    while _lines(journal) < before + lines and not ended:
        time.sleep(0.001)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("a sweep failed by itself")
    return os.WIFSIGNALED(status)


def hit(config: SweepConfig) -> tuple[int, int]:
    """How many trials are over, and how many evaluations the others have had."""
    backend = JournalFileBackend(str(Path(config.output, "study.journal")))
    trials = optuna.load_study(study_name="sweep", storage=JournalStorage(backend)).trials
    over = sum(trial.state.is_finished() for trial in trials)
    return over, sum(len(trial.intermediate_values) for trial in trials if not trial.state.is_finished())


def _lines(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def main() -> None:
    """Kill as often as wanted while the sweep is at work, then let it end."""
    values, kills = json.loads(sys.argv[1]), int(sys.argv[2])
    config = validated(SweepConfig, values)
    chance = random.Random(7)
    hits: list[tuple[int, int]] = []
    while len(hits) < kills:
        # What was running is handed out again first: three lines or so.
        if not killed(config, chance.randint(1, 12), chance.uniform(0, 0.02)):
            raise SystemExit(f"the sweep was over after {len(hits)} kills")
        hits.append(hit(config))
    run_sweep(config)
    print(json.dumps(hits))


if __name__ == "__main__":
    main()
