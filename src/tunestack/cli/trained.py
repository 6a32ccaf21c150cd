"""The commands of `tunestack` on what was trained already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunestack.cli.terminal import console, errors, say, told_to_users
from tunestack.errors import UserError

Candidate = Annotated[
    str | None, typer.Option(help="Of a run, another one than the verdict ships.", show_default=False)
]
Seed = Annotated[
    int | None, typer.Option(help="Its seed. [default: the best on validation]", show_default=False)
]


def predict(
    path: Annotated[Path, typer.Argument(help="A run folder, or a saved candidate.")],
    source: Annotated[Path, typer.Argument(help="A file with the text column.")],
    text: Annotated[
        str | None,
        typer.Option(help="Column with the text. [default: as in training]", show_default=False),
    ] = None,
    text_pair: Annotated[
        str | None,
        typer.Option(help="Column with the second text. [default: as in training]", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where labels and probabilities go (CSV).")] = Path(
        "predictions.csv"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    candidate: Candidate = None,
    seed: Seed = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto: the fastest one found.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the base.")] = False,
) -> None:
    """Label new text with what was trained; files of any size."""
    with told_to_users():
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        from tunestack.choice import choose
        from tunestack.report.formatting import count as told
        from tunestack.saved import load

        chosen = choose(path, candidate, seed)
        predictor = load(chosen.folder, device=device, trust_remote_code=trust_remote_code)
        done = 0
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=errors, transient=True) as progress:
            task = progress.add_task("0 rows")
            rows = predictor.predict_file(source, out, text=text, text_pair=text_pair, overwrite=overwrite)
            for done in rows:
                progress.update(task, description=f"{done:,} rows")
        used = (
            f" with {chosen.candidate.name}, seed {chosen.seed.seed}"
            if chosen.candidate and chosen.seed
            else ""
        )
        say(console, f"{told(done, 'row')} labelled{used}: {out}")


def export(
    path: Annotated[Path, typer.Argument(help="A run folder, a saved candidate, or a PEFT adapter.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new folder for it.", show_default=False)
    ] = None,
    candidate: Candidate = None,
    seed: Seed = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="An adapter in its base's weights: a plain transformers folder.")
    ] = False,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16, float16: weights of a merged or whole model.", show_default=False
        ),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="For the model card: apache-2.0, mit, ...", show_default=False)
    ] = None,
    to_hub: Annotated[
        str | None,
        typer.Option("--to-hub", help="Upload it to this repository on the Hub.", show_default=False),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="In a private repository.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run code that comes with the base.")] = False,
) -> None:
    """Put what was trained into a folder to use elsewhere, or on the Hub, with a model card."""
    with told_to_users():
        import tempfile

        from tunestack.errors import Problem
        from tunestack.export.folder import Options, export_candidate

        if out is None and to_hub is None:
            raise UserError(Problem("export", "--out FOLDER or --to-hub NAME", "neither", "Add one of them."))
        if private and to_hub is None:
            raise UserError(Problem("--private", "--to-hub NAME", "none", "Add it, or leave --private out."))
        repository = None
        if to_hub is not None:
            from tunestack.export.hub import check_access, upload

            repository = check_access(to_hub)
        options = Options(merge, dtype, license, trust_remote_code)
        with tempfile.TemporaryDirectory() as spare:
            target = Path(spare) / "export" if out is None else out
            folder = export_candidate(path, target, candidate=candidate, seed=seed, options=options)
            if out is not None:
                say(console, f"Exported: {folder}")
            if repository is not None:
                say(console, f"Uploaded: {upload(folder, repository, private)}")


def report(
    run: Annotated[Path, typer.Argument(help="A run folder with results.json, or suite.json.")],
) -> None:
    """Write report.html and leaderboard.md anew from results.json; of a suite its page and table."""
    with told_to_users():
        from tunestack.choice import SUITE
        from tunestack.errors import Problem
        from tunestack.report.html import write_report
        from tunestack.report.leaderboard import write_leaderboard
        from tunestack.results import Results
        from tunestack.settings import read_json

        if (run / SUITE).is_file():
            from tunestack.report.suite import write_suite_report
            from tunestack.suites.results import SuiteResults

            write_suite_report(read_json(SuiteResults, run / SUITE), run)
            say(console, str(run / "suite.html"))
            return
        if not (run / "results.json").is_file():
            raise UserError(
                Problem(str(run), "a run folder", "no results.json in it", "Finish the run first.")
            )
        results = read_json(Results, run / "results.json")
        write_leaderboard(results, run / "leaderboard.md")
        say(console, str(write_report(results, run)))
