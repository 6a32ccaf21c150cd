"""Regression: one number a text, or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from tunestack.arrays import FloatArray
from tunestack.config import DataConfig
from tunestack.data.encode import Encoded
from tunestack.data.load import TextData, load_text_data
from tunestack.tasks.answers import Answers, Table
from tunestack.tasks.base import Given, Split, Task
from tunestack.tasks.classification import encode_texts, encoding_of_texts
from tunestack.tasks.metrics import Metric

if TYPE_CHECKING:
    from tunestack.bases import Base


class Regression(Task):
    """A number for each text; mean squared error. Answers: numbers [examples] in fp64.

    Numbers are learned as they are: an adapter then answers the same in any tool that loads it.
    """

    name = "regression"
    summary = "one number a text, or a pair of texts"
    title = "rate sequences"
    auto_class = AutoModelForSequenceClassification
    peft_type = TaskType.SEQ_CLS
    default_metric = "spearman"
    target = "numbers"
    reads_first_token = True
    constant = "the mean of the training numbers"
    misses = "misses by more than a standard deviation of the true numbers"

    @classmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Texts with one finite number each. Raises UserError with all problems."""
        return load_text_data(config, "numbers")

    def encode(self, base: Base, split: Split, max_length: int) -> Encoded:
        """Tokenise a split with columns `text`, perhaps `text_pair`, perhaps `label`."""
        return encode_texts(base, split, max_length)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Mean squared error in fp32. logits [rows, 1], targets [rows]."""
        return torch.nn.functional.mse_loss(logits.squeeze(-1).float(), targets.float())

    def answer(self, encoded: Encoded, outputs: Tensor) -> FloatArray:
        """The numbers [examples] in fp64."""
        result: FloatArray = outputs.squeeze(-1).double().cpu().numpy()
        return result

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Correlations, and the error with its sign turned."""
        return METRICS

    def scores(self, split: Split, given: Given) -> dict[str, float]:
        """All metrics; a correlation with answers that are all the same is 0."""
        gold, answered = numbers_of(split), np.asarray(given)[None]
        sums = _table(gold, answered).sum(axis=1)
        values = {name: m.from_counts(sums) for name, m in METRICS.items() if m.from_counts}
        values["spearman"] = _spearman(gold, answered)
        return {name: float(values[name][0]) for name in METRICS}

    def answers(self, split: Split, given: NDArray[Any]) -> Answers:
        """The sums of which correlations are functions. Right: within a standard deviation of the truth."""
        gold = numbers_of(split)
        right = np.abs(given - gold) <= gold.std()
        return Table(_table(gold, given), METRICS, right, values=(gold, given))

    def truth(self, split: Split) -> dict[str, list[Any]]:
        """The number."""
        return {"label": numbers_of(split).tolist()}

    def told(self, split: Split, given: Given) -> dict[str, Any]:
        """The number."""
        return {"prediction": np.asarray(given).tolist()}

    def read(self, frame: pd.DataFrame) -> FloatArray:
        """The numbers; written in full, they come back as they were."""
        values: FloatArray = frame["prediction"].to_numpy().astype(float)
        return values

    def typical(self, predictions: Sequence[Any]) -> str:
        """The median, to three digits."""
        return f"{np.median(np.asarray(predictions, dtype=float)):.3g}"

    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """The number."""
        return f"{encoding_of_texts(self, columns, max_length)}\nprint(model(**batch).logits.item())"

    @property
    def always(self) -> str:
        """A number."""
        return (
            "always answers with a number, also for texts that cannot be rated, and not only with numbers "
            "in the range of those that it was trained on"
        )


def numbers_of(split: Split) -> FloatArray:
    """The true numbers of a split, fp64."""
    return np.asarray(split["label"], dtype=np.float64)


def _table(gold: FloatArray, answered: FloatArray) -> FloatArray:
    """Per example 1, x, y, x^2, y^2, xy, (x - y)^2 of gold x and answered y: [seeds, examples, 7].

    Both are counted from their own means: correlations are the same, and sums keep their digits.
    """
    x, y = np.broadcast_arrays(_centred(gold), _centred(answered))
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y, (answered - gold) ** 2], axis=-1)


def _centred(values: FloatArray) -> FloatArray:
    """Less their mean; exactly 0 where all are the same, whatever rounding says."""
    same = np.ptp(values, axis=-1, keepdims=True) == 0
    return np.where(same, 0.0, values - values.mean(axis=-1, keepdims=True))


def _pearson(sums: FloatArray) -> FloatArray:
    """Pearson's correlation from sums [..., 7]; 0 where either side does not vary."""
    n, x, y, xx, yy, xy = (sums[..., column] for column in range(6))
    return _correlation(n * xy - x * y, _spread(n, x, xx), _spread(n, y, yy))


def _spread(n: FloatArray, total: FloatArray, squares: FloatArray) -> FloatArray:
    """n times the sum of squared distances from the mean; what is mere rounding is 0."""
    spread = n * squares - total * total
    return np.asarray(np.where(spread > 1e-12 * n * squares, spread, 0.0))


def _correlation(shared: FloatArray, first: FloatArray, second: FloatArray) -> FloatArray:
    whole = np.sqrt(first * second)
    ratio = np.divide(shared, whole, out=np.zeros_like(whole), where=whole > 0)
    return np.asarray(np.clip(ratio, -1.0, 1.0))


def _spearman(gold: FloatArray, answered: FloatArray) -> FloatArray:
    """Pearson's correlation of ranks, equal numbers with the mean of their ranks: [seeds]."""
    from scipy.stats import rankdata

    return _pearson(_table(rankdata(gold), rankdata(answered, axis=-1)).sum(axis=1))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("pearson", "Pearson correlation", _pearson, lowest=-1.0),
        Metric("spearman", "Spearman correlation", None, lowest=-1.0, of_values=_spearman),
        Metric(
            "neg_root_mean_squared_error",
            "negative RMSE",
            lambda sums: -np.sqrt(sums[..., 6] / sums[..., 0]),
            lowest=-np.inf,
            highest=0.0,
        ),
    )
}
"""Of every one, higher is better."""
