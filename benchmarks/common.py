"""What the benchmarks share: settings, processes of their own, peak memory, the trial, the table."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from tunestack.stack.slot import Slot, Trial
    from tunestack.stack.stack import Stack
    from tunestack.stack.work import Workload

SPLIT_SEED, TRAIN_SIZE = 42, 0.8
RANK, ALPHA = 8, 16
LEARNING_RATE, BATCH_SIZE = 5e-4, 8
WEIGHT_DECAY, MAX_GRAD_NORM, MAX_LENGTH = 0.001, 0.3, 512


class Settings(BaseModel):
    """What is trained on what.

    location, overrides: where transformers finds the base, and config fields to replace.
    fraction: how much of the training rows is used, from the first on. seeds: of the trials. evaluated: how
    many validation rows are, None for all. r and so on: LoRA's and training's own.
    """

    data: str
    text: str
    label: str
    base: str
    location: str
    overrides: dict[str, Any]
    device: str
    dtype: Literal["auto", "float32", "bfloat16"]
    quantize: Literal["nf4", "int8"] | None = None
    epochs: int
    schedule: Literal["linear", "constant"]
    fraction: float
    seeds: list[int]
    evaluated: int | None = None
    r: int = RANK
    lora_alpha: int = ALPHA
    lora_dropout: float = 0.0
    learning_rate: float = LEARNING_RATE

    def part(self, rows: int) -> int:
        """How many of so many training rows are used."""
        return max(BATCH_SIZE, round(rows * self.fraction))


class Measurement(BaseModel):
    """What one process found.

    seconds: of all training steps of all its trials. peak_memory_bytes: of the process (on a GPU: of what
    is allocated there), from its start to the last step. seeds, f1: a trial; the latter on validation. data:
    a digest of the training rows and their order.
    """

    trials: int
    seeds: list[int]
    seconds: float
    steps: int
    peak_memory_bytes: int
    trainable_parameters: int
    f1: list[float]
    class_weights: list[float]
    data: str


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a CSV file with texts and labels")
    parser.add_argument("--text", default="text", help="its column with the text")
    parser.add_argument("--label", default="target", help="its column with the label")
    parser.add_argument("--base", default="packaged:minilm-l6", help="packaged:NAME, a folder or a Hub id")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="of tunestack's frozen base")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--schedule", choices=["linear", "constant"], default="linear")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training rows, for quick runs")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("--threads", type=int, default=cores, help="of every process that is measured")
    return parser


def settings_of(options: argparse.Namespace, seeds: Sequence[int]) -> Settings:
    """The settings that the options ask for."""
    from tunestack.bases.sources import resolve
    from tunestack.config import BaseConfig

    source = resolve(BaseConfig(model=options.base))
    given = {name: value for name, value in vars(options).items() if name in Settings.model_fields}
    given |= {"location": source.location, "overrides": source.overrides, "seeds": list(seeds)}
    return Settings(**given)


def in_process(script: str, contender: str, settings: Settings, threads: int) -> Measurement:
    """Measure a contender in a process of its own. Raises RuntimeError with its last words if it fails."""
    command = [sys.executable, script, "--measure", contender, settings.model_dump_json()]
    environment = quiet_environment(threads)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-3000:]}")
    return Measurement.model_validate_json(done.stdout.strip().splitlines()[-1])


def quiet_environment(threads: int) -> dict[str, str]:
    """The environment of a process that is measured."""
    counts = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    quiet = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return {**os.environ, **counts, **quiet}


def answer_if_measuring(measure: Callable[[str, Settings], Measurement]) -> None:
    """In a process that `in_process` started: measure, print, and end."""
    if len(sys.argv) == 4 and sys.argv[1] == "--measure":
        print(measure(sys.argv[2], Settings.model_validate_json(sys.argv[3])).model_dump_json())
        raise SystemExit


def peak_memory_bytes(device: str) -> int:
    """The peak so far: of this process (VmHWM), or of what it has allocated on the GPU."""
    if device != "cpu":
        import torch

        return int(torch.cuda.max_memory_allocated())
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def wait_for(device: str) -> None:
    """Return when the GPU has done what it was given; nothing to wait for on a processor."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def digest(texts: Sequence[str], labels: Sequence[int]) -> str:
    """The same for the same rows in the same order."""
    return hashlib.sha256(json.dumps([list(texts), list(labels)]).encode()).hexdigest()[:16]


def lora_stack(settings: Settings) -> tuple[Workload, Stack, list[Slot]]:
    """tunestack with a slot for every seed, each the same LoRA trial; ready for the first step."""
    from tunestack.bases import load_base
    from tunestack.config import BaseConfig, DataConfig
    from tunestack.data import load_text_data
    from tunestack.stack.stack import Stack
    from tunestack.stack.work import Workload
    from tunestack.tasks.classification import SequenceClassification

    source = DataConfig(
        train=settings.data, text=settings.text, label=settings.label,
        train_size=TRAIN_SIZE, seed=SPLIT_SEED, group_duplicates=False,
    )  # fmt: skip
    data = load_text_data(source)
    base = load_base(
        BaseConfig(
            model=settings.base,
            dtype=settings.dtype,
            device_map=settings.device,
            quantize=settings.quantize,
        )
    )
    task = SequenceClassification(data.label_names)
    train = data.train.select(range(settings.part(len(data.train))))
    work = Workload(base, task, {"train": train, "validation": data.validation}, "f1")
    stack = Stack(work, base.load_model(task.auto_class, task.model_config(base)))
    trials = [_trial(settings, base.config.model_type, seed) for seed in settings.seeds]
    return work, stack, [stack.open(trial) for trial in trials]


def _trial(settings: Settings, model_type: str, seed: int) -> Trial:
    from tunestack.config import TrainingConfig
    from tunestack.methods.registry import find_method
    from tunestack.stack.slot import Trial

    method = find_method("lora")
    fields = {"r": RANK, "lora_alpha": ALPHA}  # on query and value, where the model type has them
    training = TrainingConfig(
        learning_rate=LEARNING_RATE,
        epochs=settings.epochs,
        lr_scheduler_type=settings.schedule,
        batch_size=BATCH_SIZE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        max_length=MAX_LENGTH,
    )
    return Trial(f"seed-{seed}", method, method.make_config(fields, model_type, []), training, seed)


def measure_stack(settings: Settings) -> Measurement:
    """Train tunestack's LoRA, one slot a seed, in one stack."""
    import numpy as np
    from sklearn.metrics import f1_score

    work, stack, slots = lora_stack(settings)
    train = work.splits["train"]
    work.encoded("validation", MAX_LENGTH)
    started = time.perf_counter()
    while not slots[0].finished:
        stack.step(slots, lambda event: None)
    wait_for(settings.device)
    seconds = time.perf_counter() - started
    memory = peak_memory_bytes(settings.device)
    if failures := [slot.failure for slot in slots if slot.failure]:
        raise RuntimeError(failures[0])
    validation = work.encoded("validation", MAX_LENGTH)
    predicted = stack.outputs(slots, validation).argmax(-1).numpy()
    average = "binary" if len(work.task.label_names) == 2 else "macro"
    weights = slots[0].class_weights
    assert weights is not None
    return Measurement(
        trials=len(slots),
        seeds=settings.seeds,
        seconds=seconds,
        steps=slots[0].progress.step,
        peak_memory_bytes=memory,
        trainable_parameters=sum(p.numel() for p in slots[0].adapter.parameters.values()),
        f1=[float(f1_score(np.asarray(validation.labels), row, average=average)) for row in predicted],
        class_weights=weights.tolist(),
        data=digest(train["text"][:], train["label"][:]),
    )


def numbers(text: str) -> list[int]:
    """Whole numbers from an option's text, with commas between them."""
    return [int(part) for part in text.split(",")]


def spread(values: Sequence[float], digits: int) -> str:
    """Median, with smallest and largest where there are several values."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def megabytes(values: Sequence[Measurement]) -> float:
    """The median of the peaks, in MB (10^6 bytes)."""
    return statistics.median(value.peak_memory_bytes for value in values) / 1e6


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for cells in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |")


def describe_run(options: argparse.Namespace, runs: Mapping[str, Sequence[Measurement]]) -> str:
    """One line on where and on how much this was measured."""
    from tunestack.environment import environment

    found = environment()
    steps = next(iter(runs.values()))[0].steps
    versions = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "peft"))
    return (
        f"{options.base}, {steps} steps of batch {BATCH_SIZE} a trial; {options.device}, {options.threads} "
        f"threads; {found['processor']}; {versions}"
    )


def write_json(path: str, options: argparse.Namespace, runs: Mapping[str, Sequence[Measurement]]) -> None:
    """All figures, with the options and the environment."""
    from tunestack.environment import environment

    contents = {
        "options": vars(options),
        "environment": environment(),
        "runs": {name: [run.model_dump() for run in values] for name, values in runs.items()},
    }
    Path(path).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
