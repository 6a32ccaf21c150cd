"""A process that takes part in a study: asks, reports, tells, and writes down what it was given.

test_study.py runs it. Training is a formula, so that processes can be killed by the dozen.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunestack.search.config import SweepConfig
from tunestack.search.space import Suggestion
from tunestack.search.study import Study
from tunestack.settings import validated

SLOTS = 3


def config(**fields: Any) -> SweepConfig:
    """A sweep over lists and ranges."""
    methods = [
        {
            "method": "lora",
            "search": {
                "r": [2, 4, 8],
                "lora_dropout": {"min": 0.0, "max": 0.1},
                "learning_rate": {"min": 1e-5, "max": 1e-2, "log": True},
            },
        }
    ]
    return validated(
        SweepConfig,
        {
            "data": {"train": "x"},
            "base": "b",
            "methods": methods,
            "search": {"epochs": {"min": 1, "max": 4}},
            **fields,
        },
    )


def metric(suggestion: Suggestion, step: int) -> float:
    """What a trial reaches at an evaluation: best near a learning rate of 1e-3, better with every step."""
    return 1 - 0.1 * abs(math.log10(suggestion.training["learning_rate"]) + 3) - 0.3 / step


def take_part(
    study: Study, note: Callable[[str, int], None] = lambda what, number: None, seconds: float = 0.0
) -> list[Suggestion]:
    """Run trials, as many at a time as there are slots, one evaluation after the other, to the end.

    seconds: how long training to an evaluation takes.
    """
    asked: list[Suggestion] = []
    running: list[tuple[Suggestion, int]] = []
    while True:
        while len(running) < SLOTS and (suggestion := study.ask()) is not None:
            note("asked", suggestion.number)
            asked.append(suggestion)
            running.append((suggestion, 1))
        if not running:
            return asked
        suggestion, step = running.pop(0)
        time.sleep(seconds)
        value = metric(suggestion, step)
        if study.report(suggestion.number, step, value):
            study.tell(suggestion.number, None, "pruned")
            note("told", suggestion.number)
        elif step == study.space.evaluations(suggestion.training):
            study.tell(suggestion.number, value, "complete")
            note("told", suggestion.number)
        else:
            running.append((suggestion, step + 1))


def main(folder: str, log: str, settings: str, company: int) -> None:
    """Take part once so many processes are there; every line of the log is one write."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, number: int) -> None:
        os.write(file, f"{os.getpid()} {what} {number}\n".encode())

    with Study.open(config(**json.loads(settings)), Path(folder)) as study:
        note("open", -1)
        while Path(log).read_text().count(" open ") < company:
            time.sleep(0.001)
        # In company it takes a moment, as training does: else one is through before the other has the lock.
        take_part(study, note, seconds=0.01 if company > 1 else 0.0)
    note("done", -1)
