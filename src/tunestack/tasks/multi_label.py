"""Multi-label classification: any number of labels a text, each a yes or no of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import TaskType
from pydantic import Field, field_validator
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from tunestack.arrays import FloatArray, IntArray
from tunestack.config import DataConfig, Settings
from tunestack.data.encode import Encoded
from tunestack.data.flags import COMMA, load_flags
from tunestack.data.load import TextData
from tunestack.errors import Problems
from tunestack.tasks.answers import Answers
from tunestack.tasks.base import Given, Split, Task, literal
from tunestack.tasks.classification import encode_texts, encoding_of_texts, labels_of
from tunestack.tasks.flag_metrics import METRICS, FlagAnswers, flag_metrics
from tunestack.tasks.metrics import Metric

if TYPE_CHECKING:
    from tunestack.bases import Base


class MultiLabelOptions(Settings):
    """How labels are written in the data, and when an answer counts as yes."""

    separator: str | None = Field(default=None, min_length=1)
    """What stands between the labels where a row has them as text: "|". Default: a comma."""
    label_columns: list[str] = Field(default_factory=list)
    """Columns of 0 and 1, one a label, in place of one column with all labels of a row."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """The probability from which on a label is predicted."""

    @field_validator("label_columns")
    @classmethod
    def _different(cls, value: list[str]) -> list[str]:
        if len(set(value)) < len(value):
            raise ValueError("each column once")
        return value


class MultiLabel(Task):
    """Which of `label_names` a text has: none, one or several; binary cross-entropy.

    A row's labels are flags, 0 or 1 in id order. An answer is the probability of each label by itself,
    [examples, labels] in fp64: sigmoid of its logit.
    """

    name = "multi-label"
    summary = "any number of labels a text"
    title = "classify sequences"
    auto_class = AutoModelForSequenceClassification
    peft_type = TaskType.SEQ_CLS
    default_metric = "f1_micro"
    target = "flags"
    gives_probabilities = True
    reads_first_token = True
    options_class = MultiLabelOptions
    constant = "the labels of most texts"

    @classmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Texts with lists of labels. Raises UserError with all problems."""
        return load_flags(config, options.separator, options.label_columns)

    def check_training(self, class_weights: object, where: str, problems: Problems) -> None:
        """Note weights that are not one a label and above 0."""
        if not isinstance(class_weights, list):
            return
        names = self.label_names
        if len(class_weights) != len(names) or min(class_weights) <= 0:
            problems.add(
                f"{where}: class_weights" if where else "training.class_weights",
                expected=f"{len(names)} weights above 0, for {', '.join(names)}",
                found=str(class_weights),
                fix="Give one a label, or `balanced`.",
            )

    def model_config(self, base: Base) -> PretrainedConfig:
        """The model's config; with its problem_type transformers computes the same loss."""
        config = super().model_config(base)
        config.problem_type = "multi_label_classification"
        return config

    def encode(self, base: Base, split: Split, max_length: int) -> Encoded:
        """Tokenise a split with columns `text`, perhaps `text_pair`, perhaps `label` [examples, labels]."""
        return encode_texts(base, split, max_length)

    def class_weights(
        self, wanted: Literal["balanced"] | list[float] | None, encoded: Encoded, device: torch.device
    ) -> Tensor | None:
        """[labels] fp32: how much more a text with the label weighs than one without (BCE's pos_weight).

        balanced: texts without it / texts with it, so that both weigh the same in all.
        """
        if wanted is None:
            return None
        if wanted == "balanced":
            positive = np.asarray(encoded.labels).sum(axis=0)
            values = np.maximum(len(encoded) - positive, 1) / np.maximum(positive, 1)
        else:
            values = np.asarray(wanted)
        return torch.tensor(values, dtype=torch.float32, device=device)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Binary cross-entropy in fp32, the mean over rows and labels. logits, targets: [rows, labels]."""
        return torch.nn.functional.binary_cross_entropy_with_logits(
            logits.float(), targets.float(), pos_weight=weights
        )

    def answer(self, encoded: Encoded, outputs: Tensor) -> FloatArray:
        """Probabilities [examples, labels] in fp64, from fp32 logits."""
        result: FloatArray = torch.sigmoid(outputs.double()).cpu().numpy()
        return result

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The same for any labels."""
        return METRICS

    def scores(self, split: Split, given: Given) -> dict[str, float]:
        """All metrics, by scikit-learn's names."""
        return flag_metrics(labels_of(split), given, self.options.threshold)

    def answers(self, split: Split, given: NDArray[Any]) -> Answers:
        """Counts a label and a text, and the probabilities."""
        return FlagAnswers.of(labels_of(split), given, self.options.threshold)

    def label_counts(self, split: Split) -> list[int]:
        """Examples with each label; one may count for several."""
        return [int(count) for count in labels_of(split).sum(axis=0)]

    def truth(self, split: Split) -> dict[str, list[Any]]:
        """The labels' names, joined."""
        return {"label": self._joined(labels_of(split))}

    def told(self, split: Split, given: Given) -> dict[str, Any]:
        """The labels that are probable enough, joined as in the data, and the probability of each."""
        probabilities = {f"prob_{name}": given[:, index] for index, name in enumerate(self.label_names)}
        return {"prediction": self._joined(given >= self.options.threshold), **probabilities}

    def read(self, frame: pd.DataFrame) -> FloatArray:
        """The probabilities."""
        columns = [f"prob_{name}" for name in self.label_names]
        values: FloatArray = frame[columns].to_numpy().astype(float)  # Python reads floats exactly
        return values

    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """The labels that are probable enough, joined as in the data."""
        return (
            f"{encoding_of_texts(self, columns, max_length)}\n"
            f"labels = {literal(self.label_names)}\n"
            "probabilities = model(**batch).logits[0].sigmoid().tolist()\n"
            f"likely = [one >= {self.options.threshold} for one in probabilities]\n"
            f"print({literal(self.options.separator or COMMA)}.join("
            "label for label, one in zip(labels, likely) if one))"
        )

    @property
    def always(self) -> str:
        """Any of the labels."""
        return (
            f"answers with those of its {len(self.label_names)} labels whose probability is "
            f"{self.options.threshold:g} or more, which may be none, and with no other"
        )

    def _joined(self, flags: IntArray | NDArray[np.bool_]) -> list[str]:
        separator = self.options.separator or COMMA
        return [
            separator.join(name for name, flag in zip(self.label_names, row, strict=True) if flag)
            for row in flags
        ]
