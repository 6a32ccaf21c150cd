"""The seam of the tasks: what is read, answered, minimised, judged. One file and one registry line each."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import TaskType
from torch import Tensor
from transformers import PretrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tunestack.arrays import IntArray
from tunestack.config import DataConfig, Settings
from tunestack.data.encode import Encoded, pad
from tunestack.data.load import TextData
from tunestack.errors import Problem, Problems, UserError
from tunestack.tasks.answers import Answers
from tunestack.tasks.metrics import Metric

if TYPE_CHECKING:
    from tunestack.bases import Base

Target = Literal["classes", "numbers", "flags", "spans", "tags"]
"""What baselines learn of a task: a class, a number, any number of labels, a part of a text, a tag a word."""
Split = Mapping[str, Any]
"""Columns by name: a `datasets.Dataset`, or plain lists."""
Given = NDArray[Any]
"""What was answered to the examples of a split, [examples, ...]; each task says what that is."""


@dataclass(frozen=True)
class Decoding:
    """How text is generated.

    max_new_tokens: where a text ends that does not end itself. num_beams: 1 is greedy. length_penalty: beams
    are ranked by log-probability / tokens ** length_penalty.
    """

    max_new_tokens: int
    num_beams: int = 1
    length_penalty: float = 1.0


class Forwards(Protocol):
    """Who runs the model for several trials at once: a stack."""

    def outputs(self, slots: Sequence[Any], encoded: Encoded) -> Tensor:
        """What `Task.collect` makes of every slot's outputs: [slots, rows, ...] fp32, on the processor."""

    def generate(self, slots: Sequence[Any], encoded: Encoded, decoding: Decoding) -> list[list[list[int]]]:
        """What every slot writes after every row, as token ids, by slot and row."""


@dataclass(frozen=True)
class Evaluation:
    """What a trial answered to a split. loss: None where there is nothing to compare with.

    finite: whether all outputs of the model are numbers.
    """

    given: Given
    loss: float | None
    finite: bool = True


class Task(ABC):
    """What is solved.

    name: what users type. summary: what it is, in a few words. title: what the model is asked to do, for
    sentences. pipeline_tag: what the Hub calls it. inputs: the columns of a split that the model reads;
    those that may be missing stand in `optional`, those that may be empty in a row too in `blank`.
    default_metric: what candidates are chosen by. target: what baselines learn of it, if any can.
    gives_probabilities: whether an answer is a probability of each label. reads_first_token: of models
    whose classification head reads the first token, nothing else is read. has_head: whether the model has
    modules that a base lacks, which every trial draws and trains whole. per_token: whether the model
    answers for every token. ranks: whether there are several answers to an example, `n_best`.
    several_tests: whether data may name further test sets. reads_words: whether a text may be given as
    the list of its words. long_texts: what is done to those longer than max_length, in words before "N
    tokens". options_class: the task's own settings. counted: what labels are counted by: examples, words.
    constant: what is answered without looking at the text; misses: what is done to an example whose
    answer is not right. Both as parts of sentences. example: something to read, for snippets.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    title: ClassVar[str]
    pipeline_tag: ClassVar[str] = "text-classification"
    auto_class: ClassVar[type[_BaseAutoModelClass]]
    peft_type: ClassVar[TaskType]
    inputs: ClassVar[tuple[str, ...]] = ("text", "text_pair")
    optional: ClassVar[tuple[str, ...]] = ("text_pair",)
    blank: ClassVar[tuple[str, ...]] = ()
    default_metric: ClassVar[str]
    target: ClassVar[Target | None] = None
    gives_probabilities: ClassVar[bool] = False
    reads_first_token: ClassVar[bool] = False
    has_head: ClassVar[bool] = True
    per_token: ClassVar[bool] = False
    reads_words: ClassVar[bool] = False
    long_texts: ClassVar[str] = "cut at"
    ranks: ClassVar[bool] = False
    several_tests: ClassVar[bool] = False
    options_class: ClassVar[type[Settings]] = Settings
    counted: ClassVar[str] = "examples"
    constant: ClassVar[str] = "the most frequent class"
    misses: ClassVar[str] = "gets wrong"
    example: ClassVar[Mapping[str, str]] = {"text": "A text", "text_pair": "and its partner"}

    def __init__(self, label_names: Sequence[str] = (), options: Settings | None = None) -> None:
        """label_names: in id order; empty where a task has none. options: of `options_class`."""
        self.label_names = tuple(label_names)
        self.options: Any = options or self.options_class()

    # Data

    @classmethod
    @abstractmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Read, check and split the data; options: the task's own. Raises UserError with all problems."""

    def check_training(self, class_weights: object, where: str, problems: Problems) -> None:
        """Note class weights that this task cannot use."""
        if isinstance(class_weights, list):
            problems.add(
                f"{where}.class_weights" if where else "training.class_weights",
                expected="none: this task has no classes to weigh",
                found=str(class_weights),
                fix="Leave it out.",
            )

    @classmethod
    def input_columns(cls, text: str, text_pair: str | None, columns: Mapping[str, str]) -> dict[str, str]:
        """How the columns that the model reads are called in a file, by our names for them.

        text, text_pair: the first and the second of them, as `DataConfig` has them. columns: any of them.
        """
        named = dict(zip(cls.inputs, (None if text == "text" else text, text_pair)))
        named = {**named, **columns}
        always = [name for name in cls.inputs if name not in cls.optional or name in cls.blank]
        wanted = [name for name in cls.inputs if name in always or named.get(name)]
        return {name: named.get(name) or name for name in wanted}

    def check_base(  # noqa: B027 - most need nothing beyond the model's class
        self, base: Base, splits: Mapping[str, Split], max_length: int, places: int
    ) -> None:
        """Raise UserError for a base that cannot do this task, or examples that it cannot take.

        max_length: how many tokens an example may have on it. places: how many there are places for at all.
        """

    def texts(self, split: Split) -> dict[str, list[Any]]:
        """The columns that the model reads."""
        return {name: list(split[name]) for name in self.inputs if name in columns_of(split)}

    # The model

    def auto_class_for(self, config: PretrainedConfig) -> type[_BaseAutoModelClass]:
        """What loads the model of a base with this config."""
        return self.auto_class

    def peft_type_for(self, config: PretrainedConfig) -> TaskType:
        """What PEFT calls the task on a base with this config."""
        return self.peft_type

    @property
    def outputs(self) -> int:
        """How many numbers the head gives, for a text or for a token: transformers' `num_labels`."""
        return max(1, len(self.label_names))

    def model_config(self, base: Base) -> PretrainedConfig:
        """The model's config, with this task's labels."""
        names = self.label_names
        return base.model_config(
            self.outputs,
            id2label=dict(enumerate(names)) or {0: "LABEL_0"},
            label2id={name: index for index, name in enumerate(names)} or {"LABEL_0": 0},
        )

    @abstractmethod
    def encode(self, base: Base, split: Split, max_length: int) -> Encoded:
        """A split as token ids: rows that the model reads, and what it is to answer where the split tells."""

    def batch(
        self, chosen: Sequence[tuple[Encoded, IntArray]], pad_id: int, leading: Sequence[int]
    ) -> dict[str, Tensor]:
        """One padded batch of the chosen rows of several encoded splits: what the model is called with."""
        # Padded on the right whatever the tokenizer prefers: on the left, models with a table of positions
        # would give a text other positions in other company.
        return pad(chosen, pad_id, leading=leading)

    def longest(self, encoded: Encoded, indices: IntArray) -> dict[str, int]:
        """Tokens of the longest of these examples, by the entry of the batch in which they are; what there
        is beyond pads for company. Entries whose length is the same in any company are not named.
        """
        return {"input_ids": int(encoded.lengths[indices].max())}

    def prompt_batch(
        self, chosen: Sequence[tuple[Encoded, IntArray]], pad_id: int, leading: Sequence[int]
    ) -> dict[str, Tensor]:
        """One batch of rows to go on from, for tasks that generate: padded so that all end together."""
        return pad(chosen, pad_id, side="left", leading=leading)

    def forward(self, model: Any, batch: dict[str, Any], training: bool) -> Tensor:
        """The model's answer to a batch that parts may have changed: [rows, ...]."""
        return self.logits(model(**batch))

    def logits(self, output: Any) -> Tensor:
        """The model's answer that the loss is about: [rows, ...]."""
        logits: Tensor = output.logits
        return logits

    # Learning

    def class_weights(
        self, wanted: Literal["balanced"] | list[float] | None, encoded: Encoded, device: torch.device
    ) -> Tensor | None:
        """[classes] fp32 weights of the loss; None where nothing is weighed."""
        return None

    def targets(self, encoded: Encoded, indices: IntArray) -> Tensor:
        """What the model is to answer to these rows."""
        if encoded.labels is None:
            raise ValueError("this split has no labels")
        return torch.from_numpy(np.asarray(encoded.labels)[indices])

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """What training minimises, in fp32: the mean over one trial's rows."""

    # Answering

    def evaluation_sizes(self, encoded: Encoded) -> IntArray:
        """What each row takes in a batch of evaluation, in tokens of a text."""
        return encoded.lengths

    def collect(self, logits: Tensor, encoded: Encoded, indices: IntArray) -> Tensor:
        """What evaluation keeps of the rows of one batch; the same shape for every row of the split."""
        return logits.float()

    @abstractmethod
    def answer(self, encoded: Encoded, outputs: Tensor) -> Given:
        """Answers to the examples, from what `collect` kept of all rows."""

    def evaluate(
        self, stack: Forwards, slots: Sequence[Any], encoded: Encoded, weights: Sequence[Tensor | None]
    ) -> list[Evaluation]:
        """What every slot answers, in shared forwards, and its loss where there are labels."""
        found = []
        for outputs, own in zip(stack.outputs(slots, encoded), weights, strict=True):
            finite = bool(torch.isfinite(outputs).all())
            loss = None
            if encoded.labels is not None:
                targets = self.targets(encoded, np.arange(len(encoded)))
                loss = float(self.loss(outputs, targets, None if own is None else own.cpu()))
            found.append(Evaluation(self.answer(encoded, outputs), loss, finite))
        return found

    def n_best(
        self, encoded: Encoded, outputs: Tensor, split: Split, count: int | None
    ) -> list[list[dict[str, Any]]]:
        """Several answers to each example, best first, from what `collect` kept of all rows.

        count: how many, at most; None for as many as the task's settings say. Only of a task that `ranks`.
        """
        raise NotImplementedError

    def decide(self, split: Split, given: Given, metric: str) -> dict[str, Any]:
        """Settings of the task that validation decides for a trial, a threshold say; saved with its weights.

        given: its answers to the validation split. metric: what is to be best.
        """
        return {}

    def decided(self, given: Given, settings: Mapping[str, Any]) -> Given:
        """Answers to any split with the settings that `decide` gave; a saved task has them from the start."""
        return given

    def several(self, given: Sequence[Given]) -> NDArray[Any]:
        """The answers of several seeds to one split, [seeds, examples, ...]."""
        return np.stack(given)

    # Judging

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """All metrics of this task, by name. Of every one, higher is better."""

    @classmethod
    def possible_metrics(cls) -> Collection[str]:
        """Names of metrics that this task has on some data."""
        return cls().metrics.keys()

    def defined(self, split: Split) -> Mapping[str, Metric]:
        """The metrics that mean something on this split."""
        return self.metrics

    @abstractmethod
    def scores(self, split: Split, given: Given) -> dict[str, float]:
        """The metrics of one trial's answers; those that are not defined are left out."""

    @abstractmethod
    def answers(self, split: Split, given: NDArray[Any]) -> Answers:
        """The answers of several seeds, [seeds, examples, ...], as statistics need them."""

    def confusion(self, split: Split, given: Given) -> list[list[int]] | None:
        """``matrix[i][j]``: examples of class i predicted as j; None where that means nothing."""
        return None

    def label_counts(self, split: Split) -> list[int]:
        """How many examples have each label; empty where there are no labels."""
        return []

    def remarks(self, means: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Sentences on what a candidate's metrics, by split and name, do not show by themselves."""
        return []

    # Telling

    @abstractmethod
    def truth(self, split: Split) -> dict[str, list[Any]]:
        """What is right, as columns of a file."""

    @abstractmethod
    def told(self, split: Split, given: Given) -> dict[str, Any]:
        """The answers as columns of a file, `prediction` first. split: the inputs at least."""

    @abstractmethod
    def read(self, frame: pd.DataFrame) -> Given:
        """The answers from the columns that `told` wrote, as text."""

    def typical(self, predictions: Sequence[Any]) -> str:
        """Several answers to one example as one, for a reader: the most frequent."""
        return Counter(map(str, predictions)).most_common(1)[0][0]

    def shown(self, split: Split, index: int) -> str:
        """An example as a reader sees it."""
        return "\n".join(str(split[name][index]) for name in self.inputs if name in columns_of(split))

    # Model cards

    @abstractmethod
    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """Python that answers `example` and prints the answer, with plain transformers.

        It stands where `model` and `tokenizer` are there. columns: the inputs that the data has. max_length:
        longest input in tokens. config: of the model, as far as classes depend on it.
        """

    def pipeline_snippet(self, columns: Sequence[str], max_length: int) -> str | None:
        """The same with transformers' pipeline, whole; `model` is there, the name of a folder or repository.

        None where transformers has no pipeline that answers as the task does.
        """
        return None

    @property
    @abstractmethod
    def always(self) -> str:
        """What it does whatever it reads, as the end of a sentence that begins with "it"."""

    def limits(self, max_length: int) -> str:
        """A sentence on how much it reads."""
        return f"Texts are {self.long_texts} {max_length} tokens, or fewer where the base takes fewer."


def literal(value: Any) -> str:
    """Texts, lists and mappings of texts, as Python has them."""
    return json.dumps(value, ensure_ascii=False)


def columns_of(split: Split) -> list[str]:
    """The names of a split's columns."""
    return list(split.column_names) if hasattr(split, "column_names") else list(split)


def not_for(base: str, task: Task, model_type: str) -> UserError:
    """The error for a base of which transformers has no model for this task."""
    expected = f"a model that transformers can {task.title} with"
    return UserError(Problem(base, expected, f"model_type {model_type!r}", "Choose another base."))
