"""Sequence classification: one label a text, or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from tunestack.arrays import FloatArray, IntArray
from tunestack.bases import Base
from tunestack.data.encode import Encoded, encode
from tunestack.tasks.metrics import classification_metrics

if TYPE_CHECKING:
    from datasets import Dataset


class SequenceClassification:
    """What is solved: which of `label_names` a text has; weighted cross-entropy, argmax.

    reads_first_token: of models whose classification head reads the first token, nothing else is read.
    """

    auto_class = AutoModelForSequenceClassification
    reads_first_token = True

    def __init__(self, label_names: Sequence[str]) -> None:
        self.label_names = tuple(label_names)

    def model_config(self, base: Base) -> PretrainedConfig:
        """The model's config, with this task's labels."""
        return base.model_config(
            len(self.label_names),
            id2label=dict(enumerate(self.label_names)),
            label2id={name: index for index, name in enumerate(self.label_names)},
        )

    def encode(self, base: Base, split: Dataset | Mapping[str, Any], max_length: int) -> Encoded:
        """Tokenise a split with columns `text`, perhaps `text_pair`, perhaps `label`."""
        columns = split.column_names if hasattr(split, "column_names") else list(split)
        return encode(
            base.tokenizer,
            list(split["text"]),
            list(split["text_pair"]) if "text_pair" in columns else None,
            list(split["label"]) if "label" in columns else None,
            min(max_length, base.longest_input),
        )

    def class_weights(
        self, wanted: Literal["balanced"] | list[float] | None, labels: IntArray, device: torch.device
    ) -> Tensor | None:
        """[classes] fp32 weights of the loss; balanced: n / (classes * count), as scikit-learn defines it."""
        if wanted is None:
            return None
        if wanted == "balanced":
            counts = np.bincount(labels, minlength=len(self.label_names))
            values = len(labels) / (len(counts) * np.maximum(counts, 1))
        else:
            values = np.asarray(wanted)
        return torch.tensor(values, dtype=torch.float32, device=device)

    def loss(self, logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy in fp32, averaged by weight: sum w_y l / sum w_y. logits [rows, classes]."""
        return torch.nn.functional.cross_entropy(logits.float(), labels, weights)

    def probabilities(self, logits: Tensor) -> FloatArray:
        """[rows, classes] in fp64, from fp32 logits."""
        result: FloatArray = torch.softmax(logits.double(), dim=-1).cpu().numpy()
        return result

    def metrics(self, labels: IntArray, probabilities: FloatArray) -> dict[str, float]:
        """All metrics of this task, by scikit-learn's names."""
        return classification_metrics(labels, probabilities)
