"""Options that several commands share: where labelled text is, and which bases."""

from __future__ import annotations

from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        help="A CSV, TSV, JSON, JSONL or Parquet file, a folder, a Hub data set id.", show_default=False
    ),
]
Text = Annotated[str | None, typer.Option(help="Column with the text. [default: text]", show_default=False)]
TextPair = Annotated[
    str | None, typer.Option(help="Column with the second text, for pairs.", show_default=False)
]
Label = Annotated[
    str | None, typer.Option(help="Column with the label. [default: label]", show_default=False)
]
Labels = Annotated[
    list[str] | None, typer.Option("--labels", help="Label names in id order; repeat.", show_default=False)
]
PositiveLabel = Annotated[
    str | None, typer.Option(help="With two classes: the one that F1 is about.", show_default=False)
]
Validation = Annotated[str | None, typer.Option(help="A file of its own for validation.", show_default=False)]
Test = Annotated[str | None, typer.Option(help="A file of its own for the final test.", show_default=False)]
Subset = Annotated[str | None, typer.Option(help="The Hub data set's configuration.", show_default=False)]
TrainSize = Annotated[
    float | None,
    typer.Option(help="Share of rows to train on, where we split. [default: 0.8]", show_default=False),
]
SplitSeed = Annotated[int | None, typer.Option(help="Seed of that split. [default: 42]", show_default=False)]
GroupDuplicates = Annotated[
    bool | None,
    typer.Option(
        "--group-duplicates/--no-group-duplicates",
        help="Keep identical texts on one side of our split. [default: on]",
        show_default=False,
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        help="What to solve, as `tunestack tasks` lists it. [default: classification]", show_default=False
    ),
]
Bases = Annotated[
    list[str] | None,
    typer.Option(
        "--base", help="Hub id, folder, packaged:NAME or random:CONFIG.json; repeat.", show_default=False
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(help="nf4 or int8: keep frozen bases in 4 or 8 bits (QLoRA).", show_default=False),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="auto, float32, bfloat16: what frozen bases compute in.", show_default=False),
]
Track = Annotated[
    list[str] | None,
    typer.Option("--track", help="Tell a tracker: mlflow, tensorboard, wandb; repeat.", show_default=False),
]
