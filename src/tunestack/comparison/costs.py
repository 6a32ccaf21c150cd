"""What one run of a candidate alone costs, measured in a process of its own.

`python -m tunestack.comparison.costs RUN NAME` prints the costs of one candidate as JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from tunestack.bases.quantised import parameters_in
from tunestack.comparison.plan import BaselineCandidate, MethodCandidate, Plan, make_plan
from tunestack.config import CompareConfig
from tunestack.results import Costs
from tunestack.settings import read_yaml, validated
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.base import Split, Task

BATCHES = 12
"""Training steps measured, from short batches to long ones."""
PROCESS = Path("/proc/self")
PROCESSORS = Path("/proc/stat")
REPEATS = 2
"""Each is measured so often; the fastest counts, since a busy machine only ever makes a step slower."""
EXAMPLES = 512
"""Validation examples measured for throughput, at most."""
SAMPLES = 6
"""They are measured in so many parts, alike in length; the fastest counts, for the same reason."""


def measure_alone(run: Path, name: str) -> Costs:
    """Measure a candidate of a run folder in a fresh process. Raises RuntimeError if that process fails."""
    command = [sys.executable, "-m", "tunestack.comparison.costs", str(run), name]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"its costs could not be measured: {finished.stderr.strip()[-500:]}")
    return Costs.model_validate_json(finished.stdout.strip().splitlines()[-1])


def main(run: str, name: str) -> None:
    """Measure here and print."""
    config = validated(CompareConfig, read_yaml(Path(run) / "config.yaml"))
    plan = make_plan(config.model_copy(update={"output": run}))
    candidate = next(candidate for candidate in plan.candidates if candidate.name == name)
    costs = (
        _measure_method(plan, candidate)
        if isinstance(candidate, MethodCandidate)
        else _measure_baseline(plan, candidate)
    )
    print(costs.model_dump_json())


def _measure_method(plan: Plan, candidate: MethodCandidate) -> Costs:
    base = plan.bases[candidate.base]
    memory = _Memory(base.device.type)
    work = Workload(base, plan.task, plan.data.splits(), plan.config.metric)
    dtype = candidate.method.weights_dtype(base.dtype)
    loaded = base.load_model(plan.task.auto_class_for(base.config), plan.task.model_config(base), dtype)
    stack = Stack(work, loaded, autocast=not candidate.method.stacks)
    slot = stack.open(candidate.trial(plan.config.seeds[0]))
    total_steps = slot.total_steps
    slot.adapter.on_step = None  # schedules follow the step's number, which jumps here

    def step(position: int) -> None:
        slot.progress.step = position
        stack.step([slot], lambda event: None)

    others = _Others()
    positions, longest = _short_to_long(slot)
    step(longest)  # the first step allocates and chooses kernels; the longest batch sets the peak
    seconds = float(np.mean([_fastest(partial(step, position)) for position in positions]))
    peak = memory.peak()

    def answer(split: Split) -> None:
        stack.answers([slot], plan.task.encode(base, split, slot.max_length))

    trained = sum(parameter.numel() for parameter in slot.adapter.parameters.values())
    ours = {id(parameter) for parameter in slot.adapter.parameters.values()}
    own = sum(parameter.numel() for parameter in loaded.model.parameters() if id(parameter) in ours)
    held = parameters_in(loaded.model) - own
    return Costs(
        train_seconds=seconds * total_steps,
        seconds_per_step=seconds,
        peak_memory_bytes=peak,
        trainable_parameters=trained,
        # As PEFT counts: the model's own head is there beside the trained one.
        total_parameters=trained if candidate.method.saves_whole_model else held + trained,
        inference_examples_per_second=_examples_per_second(plan.task, plan.data.validation, answer),
        others_share=others.share(),  # last: what stands above measures
    )


def _measure_baseline(plan: Plan, candidate: BaselineCandidate) -> Costs:
    base = plan.bases[candidate.base] if candidate.base else None
    # Baselines import their libraries when they first need them: no cost of a candidate's.
    for library in ("feature_extraction.text", "linear_model", "preprocessing"):
        importlib.import_module(f"sklearn.{library}")
    memory, others = _Memory(base.device.type if base else "cpu"), _Others()
    start = time.perf_counter()
    fitted = candidate.baseline.fit(plan.task, plan.data.train, candidate.options, base)
    seconds = time.perf_counter() - start

    def answer(split: Split) -> None:
        fitted.answers(plan.task, split)

    return Costs(
        train_seconds=seconds,
        peak_memory_bytes=memory.peak(),
        trainable_parameters=fitted.trainable_parameters,
        total_parameters=fitted.total_parameters,
        inference_examples_per_second=_examples_per_second(plan.task, plan.data.validation, answer),
        others_share=others.share(),  # last: what stands above measures
    )


def _examples_per_second(task: Task, validation: Dataset, answer: Callable[[Split], object]) -> float:
    """Inputs to answers. Inputs of their own in every sample: features of texts seen may be kept."""
    some = task.texts(validation.select(range(min(EXAMPLES, len(validation)))))
    order = np.argsort([sum(len(str(text)) for text in row) for row in zip(*some.values())], kind="stable")
    samples = [
        {name: [column[index] for index in order[start::SAMPLES]] for name, column in some.items()}
        for start in range(min(SAMPLES, len(order)))
    ]
    return 1 / min(
        _fastest(partial(answer, sample), 1) / len(next(iter(sample.values()))) for sample in samples
    )


def _short_to_long(slot: Slot) -> tuple[list[int], int]:
    """Positions in the first epoch whose batches stand for all of them, short to long; and the longest's."""
    longest = [int(slot.lengths[batch].max()) for batch in slot.batches(0)]
    order = np.argsort(longest, kind="stable")
    middles = (np.arange(BATCHES) + 0.5) * len(order) / BATCHES
    chosen = sorted({int(order[int(middle)]) for middle in middles}, key=lambda position: longest[position])
    return chosen, int(order[-1])


def _fastest(action: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


class _Memory:
    """Peak memory from now on: of the accelerator, or of this process beyond what it holds already.

    What is held already are the interpreter, its libraries and the texts, which no candidate causes.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._held = 0 if self._cuda else self._resident("VmRSS")
        if PROCESS.exists():
            with contextlib.suppress(OSError):  # not allowed everywhere; then it is the peak since the start
                (PROCESS / "clear_refs").write_text("5")  # resets VmHWM, see proc(5)

    def peak(self) -> int | None:
        """Bytes, or None where the system does not tell."""
        if self._cuda:
            return int(torch.cuda.max_memory_allocated())
        return self._resident("VmHWM") - self._held if PROCESS.exists() else None

    @staticmethod
    def _resident(field: str) -> int:
        if not PROCESS.exists():
            return 0
        lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class _Others:
    """What other programs take of the processors from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float | None:
        """Of all their time, idle or not, [0, 1]; None where the system does not tell, or not so soon."""
        if self._start is None or (now := self._now()) is None:
            return None
        there, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return min(1.0, max(0.0, (busy - own) / there)) if there > 0 else None

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Seconds that all processors have had, that they were busy, and that this process had of them."""
        if not PROCESSORS.exists():
            return None
        times = list(map(int, PROCESSORS.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]))
        there, idle = (count / os.sysconf("SC_CLK_TCK") for count in (sum(times), sum(times[3:5])))
        return there, there - idle, sum(os.times()[:4])


if __name__ == "__main__":
    main(*sys.argv[1:])
