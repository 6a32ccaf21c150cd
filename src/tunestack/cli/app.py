"""The commands of `tunestack`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunestack.cli.options import (
    Bases,
    Dtype,
    GroupDuplicates,
    Label,
    Labels,
    PositiveLabel,
    Quantize,
    Source,
    SplitSeed,
    Subset,
    Task,
    Test,
    Text,
    TextPair,
    Track,
    TrainSize,
    Validation,
)
from tunestack.cli.suite import SuiteData, SuiteName, SuiteTasks, compare_suite, with_suite
from tunestack.cli.sweep import sweep
from tunestack.cli.terminal import console, errors, say, starting, told_to_users
from tunestack.cli.trained import export, predict, report
from tunestack.errors import Problem, UserError

if TYPE_CHECKING:
    from tunestack.config import DataConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tunestack {metadata.version('tunestack')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Which model and which fine-tuning method should I ship? Train every candidate on one frozen base."""


@app.command()
def compare(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="CONFIG.yaml|DATA",
            help="A configuration, or labelled text: a file, a folder, a Hub data set id.",
            show_default=False,
        ),
    ] = None,
    suite: SuiteName = None,
    data: SuiteData = None,
    tasks: SuiteTasks = None,
    train: Annotated[
        str | None, typer.Option(help="Data in place of what CONFIG.yaml names.", show_default=False)
    ] = None,
    task: Task = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    labels: Labels = None,
    positive_label: PositiveLabel = None,
    validation: Validation = None,
    test: Test = None,
    subset: Subset = None,
    train_size: TrainSize = None,
    split_seed: SplitSeed = None,
    group_duplicates: GroupDuplicates = None,
    base: Bases = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Of `tunestack methods`, or a baseline, in place of those of CONFIG.yaml; repeat.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds a candidate. [default: 3]", show_default=False)
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What candidates are chosen by. [default: the task's own; f1 for classification]",
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate, of every method.", show_default=False)
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data. [default: 5]", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step. [default: 8]", show_default=False)
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Longest input in tokens. [default: 512]", show_default=False)
    ] = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    trust_remote_code: Annotated[
        list[str] | None,
        typer.Option(help="Name a base whose own code may run; repeat.", show_default=False),
    ] = None,
    slots: Annotated[
        int | None, typer.Option(help="Trials that train together at most.", show_default=False)
    ] = None,
    costs: Annotated[
        bool | None,
        typer.Option(
            "--costs/--no-costs",
            help="Measure what each candidate costs alone, in a process of its own. [default: on]",
            show_default=False,
        ),
    ] = None,
    track: Track = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The run folder. [default: runs/comparison]", show_default=False),
    ] = None,
) -> None:
    """Train every candidate, compare them, and say which one to ship."""
    flags = {
        "task": task,
        "data": {
            "train": train,
            "text": text,
            "text_pair": text_pair,
            "label": label,
            "labels": labels,
            "positive_label": positive_label,
            "validation": validation,
            "test": test,
            "subset": subset,
            "train_size": train_size,
            "seed": split_seed,
            "group_duplicates": group_duplicates,
        },
        "training": {
            "learning_rate": learning_rate,
            "epochs": epochs,
            "batch_size": batch_size,
            "max_length": max_length,
        },
        "bases": base or None,
        "methods": method or None,
        "seeds": seeds,
        "metric": metric,
        "slots": slots,
        "measure_costs": costs,
        "track": track or None,
        "output": output,
    }
    with told_to_users():
        from tunestack.api import comparison
        from tunestack.settings import read_settings

        if source is None and suite is None:
            fix = "Name one: tunestack compare data.csv, or --suite glue."
            raise UserError(Problem("compare", "a configuration, data, or a suite", "none", fix))
        each = {"dtype": dtype, "quantize": quantize}
        values = _with_base_flags(read_settings(source, flags), each, trust_remote_code or [])
        values = with_suite(values, suite, data, tasks)
        if "suite" in values:
            if not compare_suite(values):
                raise typer.Exit(1)
            return

        from tunestack.progress import Display
        from tunestack.report.leaderboard import render_terminal

        with starting():
            config = comparison(values)

            from tunestack.comparison.run import run_comparison

        folder = Path(config.output)
        try:
            with Display(errors, config.metric) as display:
                results = run_comparison(config, display.notify)
        except KeyboardInterrupt:
            say(errors, f"\nStopped. What was trained is in {folder}; the same command goes on from there.")
            raise
        console.print(render_terminal(results))
        say(console, f"\nReport: {folder / 'report.html'}")
        if results.verdict is None:  # every candidate failed
            raise typer.Exit(1)


app.command()(sweep)


@app.command()
def describe(
    source: Source,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    labels: Labels = None,
    positive_label: PositiveLabel = None,
    validation: Validation = None,
    test: Test = None,
    subset: Subset = None,
    train_size: TrainSize = None,
    split_seed: SplitSeed = None,
    group_duplicates: GroupDuplicates = None,
    base: Bases = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at the data before training: labels, lengths, duplicates, leaks."""
    values = {
        "train": source,
        "text": text,
        "text_pair": text_pair,
        "label": label,
        "labels": labels,
        "positive_label": positive_label,
        "validation": validation,
        "test": test,
        "subset": subset,
        "train_size": train_size,
        "seed": split_seed,
        "group_duplicates": group_duplicates,
    }
    with told_to_users():
        import json

        from tunestack.api import describe as describe_data
        from tunestack.config import DataConfig
        from tunestack.data import render
        from tunestack.settings import validated

        config: DataConfig = validated(DataConfig, _given(values), "data")
        description = describe_data(config, bases=base or [])
        if as_json:
            print(json.dumps(description.to_dict(), indent=2, ensure_ascii=False))
        else:
            console.print(render(description))


@app.command()
def params(
    base: Annotated[str, typer.Option("--base", help="Hub id, folder, or a CONFIG.json.")],
    method: Annotated[
        str, typer.Option("--method", help="The method's name, as `tunestack methods` lists them.")
    ] = "lora",
    r: Annotated[int | None, typer.Option("--r", help="LoRA's rank.", show_default=False)] = None,
    target_modules: Annotated[
        str | None, typer.Option(help="Module names, with commas; or all-linear.", show_default=False)
    ] = None,
    bias: Annotated[str | None, typer.Option(help="none, all or lora_only.", show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Any field of the method, in YAML; repeat.",
            show_default=False,
        ),
    ] = None,
    num_labels: Annotated[int, typer.Option(help="Classes of the head.")] = 2,
) -> None:
    """Count trainable and total parameters without any weights."""
    with told_to_users():
        from tunestack.params import count_parameters, render_params
        from tunestack.settings import read_fields

        targets: Any = target_modules
        if target_modules is not None and target_modules != "all-linear":
            targets = [name.strip() for name in target_modules.split(",")]
        fields = read_fields(settings or [], _given({"r": r, "target_modules": targets, "bias": bias}))
        console.print(render_params(count_parameters(base, method, fields, num_labels)))


@app.command()
def methods(
    as_matrix: Annotated[
        bool, typer.Option("--matrix", help="Print which works on which architecture, and why not.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """List all methods, and on how many architectures each works: it is tried on tiny random models."""
    import json
    import warnings

    import torch
    from rich.markdown import Markdown
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from tunestack.matrix import markdown, overview, probe

    torch.set_num_threads(1)  # tiny models gain nothing from more
    warnings.simplefilter("ignore")  # of PEFT and PyTorch, about fields that nobody gave
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("")
        matrix = probe(lambda kind: progress.update(task, description=kind))
    if as_json:
        print(json.dumps(matrix.to_dict(), indent=2))
        return
    page = markdown(matrix) if as_matrix else overview(matrix)
    if console.is_terminal:
        console.print(Markdown(page))
    else:
        print(page)


@app.command()
def tasks() -> None:
    """List all tasks: what they are about, the columns that they read, what candidates are chosen by."""
    from rich.table import Table

    from tunestack.tasks.registry import TASKS

    table = Table("task", "what", "columns", "metric", box=None)
    for name, task in TASKS.items():
        columns = ", ".join(f"({column})" if column in task.optional else column for column in task.inputs)
        table.add_row(name, task.summary, columns, task.default_metric)
    console.print(table)


def _with_base_flags(values: dict[str, Any], each: dict[str, Any], trusted: list[str]) -> dict[str, Any]:
    """Settings with the flags that are about each base. Raises UserError for trusting one not among them."""
    from tunestack.errors import did_you_mean

    bases = values.get("bases", [])
    if not isinstance(bases, list):
        return values  # the validation refuses it
    entries = [{"model": entry} if isinstance(entry, str) else entry for entry in bases]
    models = [entry.get("model") for entry in entries if isinstance(entry, dict)]
    if unknown := [name for name in trusted if name not in models]:
        fix = did_you_mean(unknown[0], map(str, models))
        raise UserError(Problem("--trust-remote-code", "the name of one of the bases", repr(unknown[0]), fix))

    def flagged(entry: Any) -> Any:
        trust = {"trust_remote_code": True} if entry.get("model") in trusted else {}
        return {**entry, **_given(each), **trust}

    return {**values, "bases": [flagged(entry) if isinstance(entry, dict) else entry for entry in entries]}


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """What was given: values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


for command in (predict, export, report):
    app.command()(command)


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
