"""Sequence classification: one label a text, or a pair of texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from tunestack.arrays import FloatArray, IntArray
from tunestack.config import DataConfig
from tunestack.data.encode import Encoded, encode
from tunestack.data.labels import balanced_class_weights
from tunestack.data.load import TextData, load_text_data
from tunestack.errors import Problems
from tunestack.tasks.answers import Answers, Predictions
from tunestack.tasks.base import Given, Split, Task, columns_of, literal
from tunestack.tasks.metrics import (
    METRICS,
    Metric,
    classification_metrics,
    confusion_matrix,
    metrics_of_labels,
)

if TYPE_CHECKING:
    from tunestack.bases import Base


class SequenceClassification(Task):
    """Which of `label_names` a text has; weighted cross-entropy, argmax.

    An answer is the probability of each label, [examples, labels] in fp64.
    """

    name = "classification"
    summary = "one label a text, or a pair of texts"
    title = "classify sequences"
    auto_class = AutoModelForSequenceClassification
    peft_type = TaskType.SEQ_CLS
    default_metric = "f1"
    target = "classes"
    gives_probabilities = True
    reads_first_token = True

    @classmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Texts with one label each. Raises UserError with all problems."""
        return load_text_data(config)

    def check_training(self, class_weights: object, where: str, problems: Problems) -> None:
        """Note class weights that are not one a class and above 0: a batch of weight 0 has no loss."""
        if not isinstance(class_weights, list):
            return
        names = self.label_names
        if len(class_weights) != len(names) or min(class_weights) <= 0:
            problems.add(
                f"{where}: class_weights" if where else "training.class_weights",
                expected=f"{len(names)} weights above 0, for {', '.join(names)}",
                found=str(class_weights),
                fix="Give one a class, or `balanced`.",
            )

    def encode(self, base: Base, split: Split, max_length: int) -> Encoded:
        """Tokenise a split with columns `text`, perhaps `text_pair`, perhaps `label`."""
        return encode_texts(base, split, max_length)

    def class_weights(
        self, wanted: Literal["balanced"] | list[float] | None, encoded: Encoded, device: torch.device
    ) -> Tensor | None:
        """[classes] fp32 weights of the loss; balanced: n / (classes * count), as scikit-learn defines it."""
        if wanted is None:
            return None
        if wanted == "balanced":
            wanted = balanced_class_weights(np.asarray(encoded.labels), len(self.label_names))
        return torch.tensor(wanted, dtype=torch.float32, device=device)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy in fp32, averaged by weight: sum w_y l / sum w_y. logits [rows, classes]."""
        return torch.nn.functional.cross_entropy(logits.float(), targets, weights)

    def answer(self, encoded: Encoded, outputs: Tensor) -> FloatArray:
        """Probabilities [examples, classes] in fp64, from fp32 logits."""
        result: FloatArray = torch.softmax(outputs.double(), dim=-1).cpu().numpy()
        return result

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Those for so many classes."""
        return metrics_of_labels(len(self.label_names))

    @classmethod
    def possible_metrics(cls) -> Collection[str]:
        """Those of any number of classes."""
        return METRICS.keys()

    def scores(self, split: Split, given: Given) -> dict[str, float]:
        """All metrics of this task, by scikit-learn's names."""
        return classification_metrics(labels_of(split), given)

    def answers(self, split: Split, given: NDArray[Any]) -> Answers:
        """The most probable classes, and the probabilities."""
        return Predictions.from_probabilities(labels_of(split), given)

    def confusion(self, split: Split, given: Given) -> list[list[int]] | None:
        """Examples by their class and the predicted one."""
        return confusion_matrix(labels_of(split), given)

    def label_counts(self, split: Split) -> list[int]:
        """Examples of each class."""
        return [int(count) for count in np.bincount(labels_of(split), minlength=len(self.label_names))]

    def truth(self, split: Split) -> dict[str, list[Any]]:
        """The label's name."""
        return {"label": [self.label_names[label] for label in labels_of(split)]}

    def told(self, split: Split, given: Given) -> dict[str, Any]:
        """The most probable label, and the probability of each."""
        probabilities = {f"prob_{name}": given[:, index] for index, name in enumerate(self.label_names)}
        return {"prediction": [self.label_names[index] for index in given.argmax(axis=1)], **probabilities}

    def read(self, frame: pd.DataFrame) -> FloatArray:
        """The probabilities."""
        columns = [f"prob_{name}" for name in self.label_names]
        values: FloatArray = frame[columns].to_numpy().astype(float)  # Python reads floats exactly
        return values

    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """The most probable label."""
        return (
            f"{encoding_of_texts(self, columns, max_length)}\n"
            f"labels = {literal(self.label_names)}\n"
            "print(labels[model(**batch).logits.argmax()])"
        )

    def pipeline_snippet(self, columns: Sequence[str], max_length: int) -> str | None:
        """The most probable label and its probability."""
        example = {name: self.example[name] for name in columns}
        return (
            'classify = pipeline("text-classification", model=model)\n'
            f"longest = min({max_length}, classify.tokenizer.model_max_length)\n"
            f"text = {literal(example if len(example) > 1 else self.example['text'])}\n"
            "print(classify(text, truncation=True, max_length=longest))"
        )

    @property
    def always(self) -> str:
        """One of the labels."""
        return f"always answers with one of its {len(self.label_names)} labels, also for texts that fit none"


def encoding_of_texts(task: Task, columns: Sequence[str], max_length: int) -> str:
    """Python that tokenises a text or a pair of texts as `batch`, cut as `encode_texts` does."""
    return (
        f"longest = min({max_length}, tokenizer.model_max_length)\n"
        f"texts = {literal([task.example[name] for name in columns])}\n"
        'batch = tokenizer(*texts, truncation=True, max_length=longest, return_tensors="pt")'
    )


def encode_texts(base: Base, split: Split, max_length: int) -> Encoded:
    """Tokenise a split with columns `text`, perhaps `text_pair`, perhaps `label` (an array of numbers)."""
    columns = columns_of(split)
    return encode(
        base.tokenizer,
        list(split["text"]),
        list(split["text_pair"]) if "text_pair" in columns else None,
        list(split["label"]) if "label" in columns else None,
        min(max_length, base.longest_input),
    )


def labels_of(split: Split) -> IntArray:
    """The label ids of a split."""
    return np.asarray(split["label"])
