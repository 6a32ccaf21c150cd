"""The tasks that the contract suite tests, one sample each. A new task joins with its sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import tiny
from tunestack.data.squad import ANSWERABLE
from tunestack.tasks.base import Task
from tunestack.tasks.classification import SequenceClassification
from tunestack.tasks.instruction import Instruction, InstructionOptions
from tunestack.tasks.multi_label import MultiLabel
from tunestack.tasks.question_answering import QuestionAnswering, QuestionAnsweringOptions
from tunestack.tasks.regression import Regression
from tunestack.tasks.text_to_text import TextToText, TextToTextOptions
from tunestack.tasks.token_classification import TokenClassification


@dataclass(frozen=True)
class Sample:
    """A task on tiny data.

    kinds: architectures of the tiny models. make: the task. splits: train, validation and test, as the task's
    `load` gives them. write: puts the same data into a folder and returns the settings of a comparison that
    are about it (`data`, and `task` beyond its name). baselines: those that can do it. families: methods that
    train together in a stack. fields: of the tiny models' configs, where they are not as elsewhere.
    """

    kinds: tuple[str, ...]
    make: Callable[[], Task]
    splits: Mapping[str, Any]
    write: Callable[[Path], dict[str, Any]]
    baselines: tuple[str, ...] = ()
    families: tuple[str, ...] = ("lora", "series", "prompt", "prefix")
    fields: Mapping[str, Any] = field(default_factory=dict)


def write_jsonl(folder: Path, splits: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, Any]:
    """A file of records for every split; returns the settings `data`."""
    files = {}
    for name, columns in splits.items():
        path = folder / f"{name}.jsonl"
        rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(path)
    return {"data": files}


def rated(rows: int, seed: int) -> dict[str, list[Any]]:
    """Pairs of tiny texts; the number is larger where both are urgent."""
    first, second = tiny.texts(rows, seed), tiny.texts(rows, seed + 10)
    numbers = [
        one + other + 0.25 * (i % 3) for i, (one, other) in enumerate(zip(first["label"], second["label"]))
    ]
    return {"text": first["text"], "text_pair": second["text"], "label": numbers}


RATED = {"train": rated(26, 1), "validation": rated(14, 2), "test": rated(9, 3)}
TEXTS = {"train": tiny.texts(26, 1), "validation": tiny.texts(14, 2), "test": tiny.texts(9, 3)}

TAGGED = {
    "train": tiny.tagged(26, 1),
    "validation": tiny.tagged(14, 2),
    "test": tiny.tagged(9, 3),
}
FLAGS = {name: tiny.flagged(split["text"]) for name, split in TEXTS.items()}


def sums(count: int, seed: int, learnt: bool = True) -> dict[str, list[Any]]:
    """Sums of small numbers; some with an input of their own."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"instruction": [], "input": [], "output": [], "answer": []}
    for index, (first, second) in enumerate(random.integers(1, 20, size=(count, 2)).tolist()):
        rows["instruction"].append(f"{first} + {second}?" if index % 3 else "Add.")
        rows["input"].append("" if index % 3 else f"{first}, {second}")
        rows["output"].append(f"It is {first + second}.")
        rows["answer"].append(str(first + second))
    return rows if learnt else {name: column for name, column in rows.items() if name != "output"}


SUMS = {"train": sums(26, 1), "validation": sums(14, 2), "test": sums(9, 3, learnt=False)}
SUMS_SETTINGS = {
    "template": "{instruction}=",
    "template_with_input": "{instruction}{input}=",
    "max_new_tokens": 8,
}


def write_questions(folder: Path) -> dict[str, Any]:
    """Questions in the Hub's flattened form."""
    splits = {}
    for name, columns in QUESTIONS.items():
        pairs = zip(columns["answer_texts"], columns["answer_starts"])
        answers = [{"text": texts, "answer_start": starts} for texts, starts in pairs]
        splits[name] = {key: columns[key] for key in ("id", "question", "context")} | {"answers": answers}
    return {**write_jsonl(folder, splits), "task": {"stride": 8, "max_answer_tokens": 6}}


QUESTIONS = {
    "train": tiny.questions(26, 1),
    "validation": tiny.questions(14, 2),
    "test": tiny.questions(9, 3),
}

SAMPLES: dict[str, Sample] = {
    "classification": Sample(
        kinds=("bert", "llama"),
        make=lambda: SequenceClassification(tiny.LABELS),
        splits=TEXTS,
        write=lambda folder: write_jsonl(folder, TEXTS),
        baselines=("majority", "tfidf", "linear-probe"),
    ),
    "multi-label": Sample(
        kinds=("bert", "gpt2"),
        make=lambda: MultiLabel(tiny.FLAG_NAMES),
        splits=FLAGS,
        write=lambda folder: write_jsonl(
            folder, {name: {**split, "label": tiny.flag_names(split)} for name, split in FLAGS.items()}
        ),
        baselines=("majority", "tfidf", "linear-probe"),
    ),
    "token-classification": Sample(
        kinds=("bert", "roberta", "llama"),
        make=lambda: TokenClassification(tiny.TAGS),
        splits=TAGGED,
        write=lambda folder: write_jsonl(
            folder, {name: {**split, "tags": tiny.tag_names(split)} for name, split in TAGGED.items()}
        ),
        baselines=("most-frequent-tag", "linear-probe"),
    ),
    "instruction": Sample(
        kinds=("llama", "t5"),
        make=lambda: Instruction(options=InstructionOptions(**SUMS_SETTINGS)),
        splits=SUMS,
        write=lambda folder: {**write_jsonl(folder, SUMS), "task": SUMS_SETTINGS},
        fields={"tie_word_embeddings": True, "initializer_factor": 1.0},
    ),
    "text-to-text": Sample(
        kinds=("t5", "mt5"),
        make=lambda: TextToText(tiny.LABELS, TextToTextOptions(prompt="{text} ?")),
        splits=TEXTS,
        write=lambda folder: {**write_jsonl(folder, TEXTS), "task": {"prompt": "{text} ?"}},
        baselines=("majority", "tfidf"),
        # T5 does not divide its attention's scores: drawn wide, rounding errors grow a hundredfold.
        fields={"initializer_factor": 1.0, "vocab_size": 300},
    ),
    "regression": Sample(
        kinds=("bert", "llama"),
        make=Regression,
        splits=RATED,
        write=lambda folder: {"data": {**write_jsonl(folder, RATED)["data"], "text_pair": "text_pair"}},
        baselines=("majority", "tfidf", "linear-probe"),
    ),
    "question-answering": Sample(
        kinds=("bert", "llama"),
        make=lambda: QuestionAnswering(ANSWERABLE, QuestionAnsweringOptions(stride=8, max_answer_tokens=6)),
        splits=QUESTIONS,
        write=write_questions,
        baselines=("tfidf", "linear-probe"),
    ),
}
