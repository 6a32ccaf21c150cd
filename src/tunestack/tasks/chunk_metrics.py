"""Metrics of tagged words: of the chunks that the tags mean, as conlleval has them, and of words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tunestack.arrays import FloatArray, IntArray
from tunestack.data.chunks import Scheme
from tunestack.tasks.metrics import Metric, ratio

_PER_ROW = 2
"""What a sentence adds beside counts a type: words that are tagged right, and words."""


def statistics_of(scheme: Scheme, gold: IntArray, given: IntArray) -> FloatArray:
    """What the metrics are functions of: [sentences, 3 x types + 2]. gold, given: tag ids, padded with -1."""
    hits, predicted, actual = scheme.count(gold, given)
    there = gold >= 0
    words = np.stack([((gold == given) & there).sum(axis=1), there.sum(axis=1)], axis=1)
    return np.concatenate([hits, predicted, actual, words], axis=1).astype(float)


def chunk_metrics(types: Sequence[str]) -> Mapping[str, Metric]:
    """The metrics of chunks of these types, by name."""

    def of_type(place: int, sums: FloatArray) -> FloatArray:
        hits, predicted, actual = _by_type(sums)
        return _f1(hits[..., place], predicted[..., place], actual[..., place])

    metrics = [
        Metric("f1", "F1", _micro(_f1)),
        Metric("precision", "precision", _micro(lambda hits, predicted, _: ratio(hits, predicted))),
        Metric("recall", "recall", _micro(lambda hits, _, actual: ratio(hits, actual))),
        Metric("f1_macro", "macro F1", _macro),
        Metric("accuracy", "accuracy", lambda sums: ratio(sums[..., -2], sums[..., -1])),
        *(
            Metric(f"f1_{name}", f"F1 of {name}", functools.partial(of_type, place))
            for place, name in enumerate(types)
        ),
    ]
    return {metric.name: metric for metric in metrics}


def _f1(hits: FloatArray, predicted: FloatArray, actual: FloatArray) -> FloatArray:
    return ratio(2 * hits, predicted + actual)


def _by_type(sums: FloatArray) -> list[FloatArray]:
    """Hits, predicted chunks and gold ones, each [..., types]."""
    return np.split(sums[..., :-_PER_ROW], 3, axis=-1)


def _micro(
    metric: Callable[[FloatArray, FloatArray, FloatArray], FloatArray],
) -> Callable[[FloatArray], FloatArray]:
    """A metric of the chunks of all types together."""
    return lambda sums: metric(*(part.sum(-1) for part in _by_type(sums)))


def _macro(sums: FloatArray) -> FloatArray:
    """The mean over the types that occur among gold or predicted chunks, as seqeval takes it."""
    hits, predicted, actual = _by_type(sums)
    occurs = predicted + actual > 0
    return ratio((_f1(hits, predicted, actual) * occurs).sum(-1), occurs.sum(-1))
