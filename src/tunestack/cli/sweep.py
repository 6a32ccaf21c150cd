"""`tunestack sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tunestack.cli.options import (
    Dtype,
    GroupDuplicates,
    Label,
    Labels,
    PositiveLabel,
    Quantize,
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
from tunestack.cli.terminal import console, errors, say, starting, told_to_users
from tunestack.errors import Problem, Problems, UserError


def sweep(
    source: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG.yaml|DATA",
            help="A sweep's settings, a W&B sweep file, or labelled text.",
            show_default=False,
        ),
    ],
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
    base: Annotated[
        str | None,
        typer.Option(help="Hub id, folder, packaged:NAME or random:CONFIG.json.", show_default=False),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="A method, in place of CONFIG.yaml's; with several, which one is searched too; repeat.",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="FIELD=VALUES",
            help="What to search, in YAML: r=4,8,16 or learning_rate=1e-5:1e-3:log or epochs=1:5; repeat.",
            show_default=False,
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="How many trials. [default: 30]", show_default=False)
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="tpe, bayes, random or grid. [default: tpe]", show_default=False)
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            help="Stop bad trials early: none, halving, hyperband or median. [default: median]",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What is maximised on validation. [default: the task's own]", show_default=False),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate, where it is not searched.", show_default=False),
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
    seed: Annotated[
        int | None, typer.Option(help="Of the search and of every trial. [default: 0]", show_default=False)
    ] = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the base.")
    ] = False,
    slots: Annotated[
        int | None, typer.Option(help="Trials that train together at most.", show_default=False)
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option(help="How many of the best to train again with --seeds seeds.", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="How many seeds --confirm and best.yaml take. [default: 5]", show_default=False),
    ] = None,
    costs: Annotated[
        bool | None,
        typer.Option(
            "--costs/--no-costs",
            help="Measure what each of those costs alone, in a process of its own. [default: on]",
            show_default=False,
        ),
    ] = None,
    track: Track = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", help="The run folder. [default: runs/sweep]", show_default=False),
    ] = None,
) -> None:
    """Search hyper-parameters, many trials at a time on one frozen base."""
    of_base = {"dtype": dtype, "quantize": quantize, "trust_remote_code": trust_remote_code or None}
    flags: dict[str, Any] = {
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
        "base": {"model": base, **of_base} if any(of_base.values()) else base,
        "methods": method or None,
        "trials": trials,
        "sampler": sampler,
        "pruner": pruner,
        "metric": metric,
        "seed": seed,
        "slots": slots,
        "confirm": confirm,
        "seeds": seeds,
        "measure_costs": costs,
        "track": track or None,
        "output": output,
    }
    with told_to_users():
        from tunestack.api import sweep_settings
        from tunestack.progress import Display
        from tunestack.report.leaderboard import render_terminal
        from tunestack.results import Results

        flags["search"] = searched(search or [])
        with starting():
            config, notes = sweep_settings(source, flags)

            from tunestack.search.run import run_sweep
        for note in notes:
            say(errors, note)
        folder = Path(config.output)
        try:
            with Display(errors, config.metric) as display:
                results = run_sweep(config, display.notify)
        except KeyboardInterrupt:
            say(errors, f"\nStopped. What was trained is in {folder}; the same command goes on from there.")
            raise
        again = folder / results.search.confirmed if results.search and results.search.confirmed else None
        console.print(render_terminal(results, Results.load(again / "results.json") if again else None))
        say(console, f"\nReport: {folder / 'report.html'}")
        if again:
            say(console, f"Of the best, with several seeds: {again / 'report.html'}")
        if results.verdict is None:  # every trial failed
            raise typer.Exit(1)
        if (best := folder / "best.yaml").exists():  # or others train on, and the last of them confirms
            say(console, f"The best, for tunestack compare: {best}")


def searched(given: Sequence[str]) -> dict[str, Any]:
    """What --search says. Raises UserError with every text that says nothing, or that says a field again."""
    found: dict[str, Any] = {}
    problems = Problems()
    for text in given:
        field, equals, values = (part.strip() for part in text.partition("="))
        if not (field and equals and values):
            fix = "Write for instance r=4,8,16 or learning_rate=1e-5:1e-3:log."
            problems.add("--search", expected="FIELD=VALUES", found=repr(text), fix=fix)
        elif field in found:
            fix = f"Give all values at once, with commas: --search {field}=A,B,C."
            problems.add("--search", expected="each field once", found=f"{field} more than once", fix=fix)
        else:
            with problems.collecting():
                found[field] = _dimension(values, text)
    problems.raise_if_any()
    return found


def _dimension(values: str, text: str) -> Any:
    """`4,8,16`; a range `1e-5:1e-3:log`; or in brackets what stands in YAML under `search`.

    text: the whole of what was given. Commas are YAML's: a value may be null, or a list in its brackets.
    """
    from tunestack.settings import read_value

    if ":" in values and not set(values) & set("[]{}'\""):
        low, _, rest = values.partition(":")
        high, is_log, kind = rest.partition(":")
        if not (low and high) or (is_log and kind.strip() != "log"):
            fix = "Write MIN:MAX or MIN:MAX:log; texts with a colon in quotes."
            raise UserError(Problem("--search", "a range", repr(text), fix))
        ends = {name: read_value(end, "--search", text) for name, end in (("min", low), ("max", high))}
        return {**ends, "log": True} if is_log else ends
    several = read_value(f"[{values}]", "--search", text)
    only = several[0] if len(several) == 1 else None
    return only if isinstance(only, list | dict) else several
