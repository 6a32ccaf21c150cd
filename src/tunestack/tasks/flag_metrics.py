"""Metrics of answers with any number of labels, by scikit-learn's names. Of every one, higher is better."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunestack.arrays import FloatArray, IntArray
from tunestack.tasks.answers import Estimated, Table
from tunestack.tasks.delong import delong_of_flags
from tunestack.tasks.metrics import Metric, ratio


def _by_label(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Hits, predictions and gold labels, each [..., labels]."""
    hits, predicted, actual = np.split(sums[..., :-_PER_ROW], 3, axis=-1)
    return hits, predicted, actual


def _micro(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    hits, predicted, actual = (part.sum(-1) for part in _by_label(sums))
    return hits, predicted, actual


def _f1_micro(sums: FloatArray) -> FloatArray:
    hits, predicted, actual = _micro(sums)
    return ratio(2 * hits, predicted + actual)


def _f1_macro(sums: FloatArray) -> FloatArray:
    hits, predicted, actual = _by_label(sums)
    return np.asarray(ratio(2 * hits, predicted + actual).mean(-1))


def _precision_micro(sums: FloatArray) -> FloatArray:
    hits, predicted, _ = _micro(sums)
    return ratio(hits, predicted)


def _recall_micro(sums: FloatArray) -> FloatArray:
    hits, _, actual = _micro(sums)
    return ratio(hits, actual)


def _mean_of(place: int, sums: FloatArray) -> FloatArray:
    """The mean over the examples of what stands at this place, from the end; the number of them is last."""
    return np.asarray(sums[..., place] / sums[..., -1])


_PER_ROW = 4
"""What an example adds beside counts a label: F1 of it, whether all is right, share of right labels, 1."""

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("f1_micro", "micro F1", _f1_micro),
        Metric("f1_macro", "macro F1", _f1_macro),
        Metric("f1_samples", "F1 a text", functools.partial(_mean_of, -4)),
        Metric("precision_micro", "micro precision", _precision_micro),
        Metric("recall_micro", "micro recall", _recall_micro),
        Metric("accuracy", "exact match", functools.partial(_mean_of, -3), per_example=True),
        Metric("hamming_accuracy", "Hamming accuracy", functools.partial(_mean_of, -2)),
        Metric("roc_auc_macro", "macro ROC-AUC", None, test="DeLong"),
    )
}


@dataclass(frozen=True)
class FlagAnswers(Table):
    """Answers of several seeds: sums for what is counted, and for ROC-AUC the probabilities themselves.

    values: gold flags [n, labels] and probabilities [seeds, n, labels].
    """

    @classmethod
    def of(cls, flags: IntArray, probabilities: FloatArray, threshold: float) -> FlagAnswers:
        """flags: [n, labels]. probabilities: [seeds, n, labels]; those of `threshold` and more say yes."""
        predicted = probabilities >= threshold
        actual = np.broadcast_to(flags > 0, predicted.shape)
        hits, right = predicted & actual, predicted == actual
        f1 = ratio(2 * hits.sum(-1), predicted.sum(-1) + actual.sum(-1))
        rows = [f1, right.all(-1), right.mean(-1), np.ones(f1.shape)]
        table = np.concatenate([hits, predicted, actual, np.stack(rows, axis=-1)], axis=-1)
        counts = flags.sum(axis=0)
        return cls(
            table.astype(np.float32),
            METRICS,
            right.all(-1),
            scarcest=max(1, int(counts[counts > 0].min(initial=len(flags)))),
            values=(flags.astype(np.float64), probabilities),
        )

    def estimate(self, metric: str, resamples: int, seed: int) -> Estimated | None:
        """ROC-AUC, where every label has rows with it and without it."""
        assert self.values is not None
        flags, probabilities = self.values
        return delong_of_flags(flags > 0, probabilities) if _has_roc_auc(flags, probabilities) else None


def flag_metrics(flags: IntArray, probabilities: FloatArray, threshold: float) -> dict[str, float]:
    """Metrics of one set of answers, computed by scikit-learn. flags, probabilities: [n, labels].

    A ratio without cases is 0. ``roc_auc_macro`` is left out where it is not defined.
    """
    from sklearn import metrics as sk  # slow to import

    predicted = (probabilities >= threshold).astype(np.int64)
    f1 = functools.partial(sk.f1_score, flags, predicted, zero_division=0)
    values = {
        "f1_micro": f1(average="micro"),
        "f1_macro": f1(average="macro"),
        "f1_samples": f1(average="samples"),
        "precision_micro": sk.precision_score(flags, predicted, average="micro", zero_division=0),
        "recall_micro": sk.recall_score(flags, predicted, average="micro", zero_division=0),
        "accuracy": sk.accuracy_score(flags, predicted),
        "hamming_accuracy": 1 - sk.hamming_loss(flags, predicted),
    }
    if _has_roc_auc(flags, probabilities):
        values["roc_auc_macro"] = sk.roc_auc_score(flags, probabilities, average="macro")
    return {name: float(value) for name, value in values.items()}


def _has_roc_auc(flags: NDArray[np.number], probabilities: FloatArray) -> bool:
    both = (flags > 0).any(axis=0) & (flags == 0).any(axis=0)
    return bool(both.all()) and bool(np.isfinite(probabilities).all())
