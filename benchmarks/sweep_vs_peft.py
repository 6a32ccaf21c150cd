"""Time a sweep of thirty LoRA trials with tunestack and with PEFT + transformers.Trainer.

  a         PEFT + Trainer, fp32, random batches, one trial after another
  b         the same at its best: bf16=True, train_sampling_strategy="group_by_length"
  c         b in one process per core, each with its share of the trials
  sweep     `tunestack sweep`, every trial to its end
  pruned    the same with successive halving, after two evaluations an epoch
  defaults  (with --defaults) with the sampler and the pruner that a sweep has without being told: TPE, which
            chooses its own trials, and the median; both learn, so that a quarter of them trains at once

All but the last train the same trials, which tunestack's random sampler draws from the published space (rank
4 to 32, alpha 16 to 64, dropout 0 to 0.1; rates 1e-4 to 2e-3, for a small base), on the same rows, as many
epochs, batch 8, and evaluate the same rows after each epoch (pruned: twice in it); F1 is of the best epoch.
`--share` trains that share of the trials on the peers' sides, evenly spread, and multiplies their time: a
trial's time depends little on what is searched. c's have to divide evenly among its processes.

What is timed: all from the first trial's loading of the base to the end of the last trial. Not: imports.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import train_vs_peft
from common import Settings
from pydantic import BaseModel

SPACE = {
    "r": [4, 8, 16, 32],
    "lora_alpha": [16, 32, 64],
    "lora_dropout": {"min": 0.0, "max": 0.1},
    "learning_rate": {"min": 1e-4, "max": 2e-3, "log": True},
}


class Job(BaseModel):
    """What one process does. trials: their parameters; empty for a sweep, which draws `count` of them."""

    settings: Settings
    trials: list[dict[str, Any]] = []
    count: int = 30
    sampler: str = "random"
    pruner: str = "none"
    evaluations_per_epoch: int = 1


class Found(BaseModel):
    """What it found. f1: of every trial that ended, in its best epoch. epochs: trained in all. data: a digest
    of the training rows and their order.
    """

    seconds: float
    f1: list[float]
    trials: list[dict[str, Any]] = []
    epochs: float
    peak_memory_bytes: int
    data: str


def run_peer(contender: str, job: Job) -> Found:
    """Trials one after another, each on a base that is loaded again."""
    warm_up()
    started = time.perf_counter()
    f1 = []
    for trial in job.trials:
        settings = job.settings.model_copy(update=trial)
        found = train_vs_peft.measure_peer("a" if contender == "a" else "b", settings, "epoch")
        f1 += found.f1
    seconds = time.perf_counter() - started
    memory = common.peak_memory_bytes(job.settings.device)
    epochs = len(f1) * job.settings.epochs
    return Found(seconds=seconds, f1=f1, epochs=epochs, peak_memory_bytes=memory, data=found.data)


def warm_up() -> None:
    """Import what is imported when it is first used."""
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import transformers
    from transformers import Trainer, TrainingArguments  # noqa: F401

    _ = transformers.AutoModelForSequenceClassification


def run_sweep(job: Job) -> Found:
    """A whole sweep, with its journal, checkpoints and report."""
    import pandas as pd

    import tunestack
    from tunestack.comparison import run  # noqa: F401
    from tunestack.search import run as search  # noqa: F401

    settings = job.settings
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        train, validation = Path(folder, "train.csv"), Path(folder, "validation.csv")
        write_split(settings, train, validation)
        rows = pd.read_csv(train)
        data = common.digest(list(rows[settings.text]), list(rows[settings.label]))
        assert len(pd.read_csv(validation)) == settings.evaluated
        started = time.perf_counter()
        results = tunestack.sweep(
            train,
            validation=str(validation),
            text=settings.text,
            label=settings.label,
            base={"model": settings.base, "dtype": settings.dtype, "device_map": settings.device},
            methods="lora",
            search=SPACE,
            trials=job.count,
            sampler=job.sampler,
            pruner=job.pruner,
            training={
                "epochs": settings.epochs,
                "evaluations_per_epoch": job.evaluations_per_epoch,
                "batch_size": common.BATCH_SIZE,
                "lr_scheduler_type": settings.schedule,
                "weight_decay": common.WEIGHT_DECAY,
                "max_grad_norm": common.MAX_GRAD_NORM,
                "max_length": common.MAX_LENGTH,
            },
            output=Path(folder, "run"),
            progress=False,
        )
        seconds = time.perf_counter() - started
    trials = results.search.trials
    return Found(
        seconds=seconds,
        f1=[trial.value for trial in trials if trial.state == "complete"],
        trials=[trial.parameters for trial in trials],
        epochs=sum(trial.curve[-1].epoch for trial in trials if trial.curve),
        peak_memory_bytes=common.peak_memory_bytes(settings.device),
        data=data,
    )


def write_split(settings: Settings, train: Path, validation: Path) -> None:
    """The rows that the peers use, as files."""
    import pandas as pd
    from datasets import Dataset

    frame = pd.read_csv(settings.data)[[settings.text, settings.label]]
    split = Dataset.from_pandas(frame).train_test_split(train_size=common.TRAIN_SIZE, seed=common.SPLIT_SEED)
    split["train"].select(range(settings.part(len(split["train"])))).to_csv(train, index=False)
    split["test"].select(range(settings.evaluated or len(split["test"]))).to_csv(validation, index=False)


def in_process(contender: str, job: Job, threads: int) -> Found:
    """Run a contender in a process of its own. Raises RuntimeError with its last words if it fails."""
    command = [sys.executable, __file__, "--measure", contender, job.model_dump_json()]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=common.quiet_environment(threads)
    )
    if done.returncode != 0:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-3000:]}")
    return Found.model_validate_json(done.stdout.strip().splitlines()[-1])


def measure(contender: str, job: Job, threads: int) -> Found:
    """One contender on all its trials."""
    if contender != "c":
        return in_process(contender, job, threads)
    parts = [job.model_copy(update={"trials": job.trials[core::threads]}) for core in range(threads)]
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(lambda part: in_process("c", part, 1), parts))
    whole = time.perf_counter() - started
    # Imports are left out here as for the others: the slowest process counts.
    seconds = min(whole, max(one.seconds for one in found))
    return Found(
        seconds=seconds,
        f1=[f1 for one in found for f1 in one.f1],
        epochs=sum(one.epochs for one in found),
        peak_memory_bytes=sum(one.peak_memory_bytes for one in found),
        data=found[0].data,
    )


def main() -> None:
    """Measure and print the table."""
    if len(sys.argv) == 4 and sys.argv[1] == "--measure":
        job = Job.model_validate_json(sys.argv[3])
        ours = sys.argv[2] in ("sweep", "pruned", "defaults")
        print((run_sweep(job) if ours else run_peer(sys.argv[2], job)).model_dump_json())
        return
    parser = common.arguments(__doc__ or "")
    parser.set_defaults(epochs=3, fraction=0.125)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--share", type=float, default=1.0, help="of the trials, that the peers train")
    parser.add_argument("--evaluated", type=int, default=500, help="validation rows")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peers", type=lambda text: text.split(","), default=["a", "b", "c"])
    parser.add_argument("--defaults", action="store_true", help="time the default sampler and pruner, too")
    options = parser.parse_args()
    step = round(1 / options.share)
    if "c" in options.peers and (some := len(range(0, options.trials, step))) % options.threads:
        parser.error(
            f"--share {options.share}: {some} trials do not divide among {options.threads} processes"
        )
    settings = common.settings_of(options, [0])
    runs: dict[str, list[tuple[float, Found]]] = {}

    def note(name: str, job: Job, share: float = 1.0) -> Found:
        found = measure(name, job, options.threads)
        runs.setdefault(name, []).append((found.seconds / share, found))
        if len(rows := {own.data for values in runs.values() for _, own in values}) > 1:
            raise RuntimeError(f"not the same rows: {rows}")
        print(f"{name}: {found.seconds:.0f} s, best F1 {max(found.f1):.4f}", file=sys.stderr)
        return found

    for _ in range(options.repeats):
        whole = Job(settings=settings, count=options.trials)
        pruned = whole.model_copy(update={"pruner": "halving", "evaluations_per_epoch": 2})
        trials = note("sweep", whole).trials
        some = trials[::step]
        ours = itertools.cycle([("pruned", pruned), ("sweep", whole)])
        for peer in options.peers:
            note(peer, Job(settings=settings, trials=some), len(some) / len(trials))
            note(*next(ours))
        if options.defaults:
            note("defaults", whole.model_copy(update={"sampler": "tpe", "pruner": "median"}))
    print_results(options, runs)


def print_results(options: argparse.Namespace, runs: dict[str, list[tuple[float, Found]]]) -> None:
    """The table: a contender a row."""
    rows = []
    for name, values in runs.items():
        seconds = [value for value, _ in values]
        scores = [f1 for _, found in values for f1 in found.f1]
        ratios = [
            common.spread([value / statistics.median(own for own, _ in runs[ours]) for value in seconds], 1)
            for ours in ("sweep", "pruned")
        ]
        memory = max(found.peak_memory_bytes for _, found in values) / 1e6
        best = f"{max(scores):.4f} ({len(values[0][1].f1)} trials to the end)"
        epochs = f"{values[0][1].epochs:g}"
        rows.append([name, common.spread(seconds, 0), *ratios, f"{memory:.0f}", epochs, best])
    rows_used = f"{options.fraction:g} of the rows, {options.epochs} epochs, {options.trials} trials"
    peers = f"peers trained {options.share:g} of the trials"
    print(f"{options.base}, {rows_used}; {peers}; {options.threads} threads\n")
    header = ["", "seconds, all trials", "/ sweep", "/ pruned", "peak MB", "epochs", "best F1"]
    common.print_table(header, rows)


if __name__ == "__main__":
    main()
