"""Metrics of classification. Of every metric here, higher is better.

`classification_metrics` is scikit-learn's answer for one set of predictions. `Metric.from_counts` is the same
number from counts alone, for many resampled data sets at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunestack.arrays import FloatArray, IntArray


@dataclass(frozen=True)
class Counts:
    """What the metrics of predicted labels need to know, for any number of data sets at once.

    hits: right answers of each class, ``[..., classes]``. predicted, actual: how often each class was
    predicted, and how often it is the label, same shape (or broadcastable to it).
    """

    hits: FloatArray
    predicted: FloatArray
    actual: FloatArray


@dataclass(frozen=True)
class Metric:
    """One metric.

    title: how a sentence calls it. lowest, highest: the ends of its range.
    from_counts: its value ``[...]`` from sums over the examples (`Answers.counts`); None where it is no
    function of sums. of_values: such a one from numbers, gold ``[n]`` and answered ``[seeds, n]``.
    per_example: whether it is a mean of right and wrong answers, one an example.
    test: what the paired test of it is called, where it is not the usual one.
    binary, multiclass: whether it is reported with two classes, and beyond.
    """

    name: str
    title: str
    from_counts: Callable[[Any], FloatArray] | None
    lowest: float = 0.0
    per_example: bool = False
    binary: bool = True
    multiclass: bool = True
    highest: float = 1.0
    of_values: Callable[[FloatArray, FloatArray], FloatArray] | None = None
    test: str | None = None


def ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Divide; 0 where the whole is 0 (scikit-learn's ``zero_division=0``)."""
    return np.asarray(np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), 0.0))


def _macro(per_class: FloatArray, counts: Counts) -> FloatArray:
    """Mean over the classes that occur among labels or predictions, as scikit-learn takes it."""
    occurs = counts.predicted + counts.actual > 0
    return np.asarray((per_class * occurs).sum(-1) / occurs.sum(-1))


def _precisions(counts: Counts) -> FloatArray:
    return ratio(counts.hits, counts.predicted + 0 * counts.actual)


def _recalls(counts: Counts) -> FloatArray:
    return ratio(counts.hits, counts.actual + 0 * counts.predicted)


def _f1s(counts: Counts) -> FloatArray:
    return ratio(2 * counts.hits, counts.predicted + counts.actual)


def _f1(counts: Counts) -> FloatArray:
    f1s = _f1s(counts)
    return np.asarray(f1s[..., 1]) if f1s.shape[-1] == 2 else _macro(f1s, counts)


def _accuracy(counts: Counts) -> FloatArray:
    return ratio(counts.hits.sum(-1), counts.actual.sum(-1))


def _mcc(counts: Counts) -> FloatArray:
    """Matthews' correlation for any number of classes (Gorodkin 2004)."""
    n = counts.actual.sum(-1)
    covariance = counts.hits.sum(-1) * n - (counts.predicted * counts.actual).sum(-1)
    of_predicted = n**2 - (counts.predicted**2).sum(-1)
    of_actual = n**2 - (counts.actual**2).sum(-1)
    return ratio(covariance, np.sqrt(of_predicted * of_actual))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("precision", "precision", lambda c: _precisions(c)[..., 1], multiclass=False),
        Metric("recall", "recall", lambda c: _recalls(c)[..., 1], multiclass=False),
        Metric("f1", "F1", _f1),
        Metric("precision_macro", "macro precision", lambda c: _macro(_precisions(c), c), binary=False),
        Metric("recall_macro", "macro recall", lambda c: _macro(_recalls(c), c), binary=False),
        Metric("f1_macro", "macro F1", lambda c: _macro(_f1s(c), c), binary=False),
        # With one label an example, pooling the counts of all classes gives the accuracy.
        Metric("f1_micro", "micro F1", _accuracy, per_example=True, binary=False),
        Metric("accuracy", "accuracy", _accuracy, per_example=True),
        Metric("mcc", "MCC", _mcc, lowest=-1.0),
        Metric("roc_auc", "ROC-AUC", None, test="DeLong"),
    )
}


def metrics_of_labels(n_classes: int) -> dict[str, Metric]:
    """The metrics reported for so many classes, by name."""
    return {name: m for name, m in METRICS.items() if (m.binary if n_classes == 2 else m.multiclass)}


def known_metrics(n_classes: int) -> list[str]:
    """Names of the metrics reported for so many classes: what `classification_metrics` returns."""
    return list(metrics_of_labels(n_classes))


def classification_metrics(labels: IntArray, probabilities: NDArray[np.floating]) -> dict[str, float]:
    """Metrics by name, computed by scikit-learn.

    labels: ids ``[n]``. probabilities: ``[n, classes]``; the prediction is the most probable class.
    With two classes precision, recall and F1 are about class 1; beyond two ``f1`` is the macro average and
    ROC-AUC the mean of one class against the rest. A ratio without cases is 0. ``roc_auc`` is left out where
    it is not defined: a class has no example, or is the only one, or a probability is not finite.
    """
    from sklearn import metrics as sk  # slow to import

    n_classes = probabilities.shape[1]
    predicted = probabilities.argmax(axis=1)
    averages = ["binary"] if n_classes == 2 else ["macro", "micro"]
    values: dict[str, float] = {"accuracy": sk.accuracy_score(labels, predicted)}
    for average in averages:
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            labels, predicted, average=average, zero_division=0
        )
        suffix = "" if average == "binary" else f"_{average}"
        values |= {f"precision{suffix}": precision, f"recall{suffix}": recall, f"f1{suffix}": f1}
    if n_classes > 2:
        values["f1"] = values["f1_macro"]
    # Where one class is all there is, scikit-learn warns and says 0.
    more_than_one = len(np.union1d(labels, predicted)) > 1
    values["mcc"] = sk.matthews_corrcoef(labels, predicted) if more_than_one else 0.0
    if _has_roc_auc(labels, probabilities):
        one_vs_rest = [1] if n_classes == 2 else range(n_classes)
        values["roc_auc"] = float(
            np.mean([sk.roc_auc_score(labels == k, probabilities[:, k]) for k in one_vs_rest])
        )
    return {name: float(values[name]) for name in known_metrics(n_classes) if name in values}


def confusion_matrix(labels: IntArray, probabilities: NDArray[np.floating]) -> list[list[int]]:
    """``matrix[i][j]``: examples of class i predicted as j, for all the classes in `probabilities`."""
    from sklearn.metrics import confusion_matrix as sk_confusion_matrix

    n_classes = probabilities.shape[1]
    matrix = sk_confusion_matrix(labels, probabilities.argmax(axis=1), labels=range(n_classes))
    return [[int(count) for count in row] for row in matrix]


def _has_roc_auc(labels: IntArray, probabilities: NDArray[np.floating]) -> bool:
    every_class = len(np.unique(labels)) == probabilities.shape[1] > 1
    return every_class and bool(np.isfinite(probabilities).all())
