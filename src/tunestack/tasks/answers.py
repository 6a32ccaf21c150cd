"""What candidates answered, as statistics need it: for any number of resampled data sets at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tunestack.arrays import FloatArray, IntArray
from tunestack.tasks.delong import delong
from tunestack.tasks.metrics import Counts, Metric, metrics_of_labels

Estimated = tuple[FloatArray, FloatArray]
"""A metric for each seed [seeds], and its covariance [seeds, seeds] over the examples that could be drawn."""


class Answers(ABC):
    """All that one candidate answered on one split, every seed of it."""

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics that can be computed from it, by name."""

    @property
    @abstractmethod
    def right(self) -> NDArray[np.bool_]:
        """Whether an answer is right as a whole, [seeds, examples]."""

    @property
    def seeds(self) -> int:
        """How many seeds answered."""
        return len(self.right)

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return int(self.right.shape[1])

    @property
    def support(self) -> int:
        """How many examples a metric that looks at parts of the data rests on, at the least."""
        return self.examples

    def behind(self, metric: Metric) -> int:
        """How many examples a metric rests on, at the least."""
        return self.examples if metric.per_example else self.support

    @abstractmethod
    def joined(self, others: Sequence[Self]) -> Self:
        """These seeds and those of others, in order. Raises ValueError for answers to other examples."""

    @abstractmethod
    def informative(self) -> int:
        """Examples that not all seeds answer alike."""

    @abstractmethod
    def statistics(self) -> tuple[IntArray, FloatArray]:
        """What metrics are functions of, by groups of examples that are interchangeable.

        Returns how many examples each group has [groups], and what one of them adds to the sums
        [groups, seeds, k], fp32.
        """

    @abstractmethod
    def counts(self, sums: FloatArray) -> Any:
        """Sums [..., k] in the form that `Metric.from_counts` takes."""

    def estimate(self, metric: str, resamples: int, seed: int) -> Estimated | None:
        """A metric that is no function of sums; None where it is not defined for these answers."""
        return None


@dataclass(frozen=True)
class Predictions(Answers):
    """Answers of one label an example.

    labels: class ids ``[n]``. predicted: class ids ``[seeds, n]``. classes: how many there are.
    probabilities: ``[seeds, n, classes]``; only ROC-AUC needs them.
    """

    labels: IntArray
    predicted: IntArray
    classes: int
    probabilities: NDArray[np.floating] | None = None

    @classmethod
    def from_probabilities(cls, labels: IntArray, probabilities: NDArray[np.floating]) -> Predictions:
        """Predict the most probable class. probabilities: ``[seeds, n, classes]``."""
        return cls(labels, probabilities.argmax(axis=2), probabilities.shape[2], probabilities)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Those of so many classes."""
        return metrics_of_labels(self.classes)

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether the label is the predicted one, [seeds, n]."""
        return np.asarray(self.predicted == self.labels)

    @property
    def support(self) -> int:
        """The rows of the rarest class, on which F1 and its kin rest."""
        return int(np.unique(self.labels, return_counts=True)[1].min())

    def joined(self, others: Sequence[Self]) -> Self:
        """These seeds and those of others, in order."""
        every = [self, *others]
        if any(not np.array_equal(p.labels, self.labels) or p.classes != self.classes for p in others):
            raise ValueError("candidates can only be compared on the same examples")
        known = [p.probabilities for p in every if p.probabilities is not None]
        return type(self)(
            self.labels,
            np.concatenate([p.predicted for p in every]),
            self.classes,
            np.concatenate(known) if len(known) == len(every) else None,
        )

    def informative(self) -> int:
        """Examples that not all seeds answer alike."""
        return int((self.predicted != self.predicted[0]).any(axis=0).sum())

    def statistics(self) -> tuple[IntArray, FloatArray]:
        """Hits, predictions and labels of each class; examples with the same label and answers together."""
        patterns, rows = np.unique(np.vstack([self.labels, self.predicted]).T, axis=0, return_counts=True)
        is_predicted = patterns[:, 1:, None] == np.arange(self.classes)
        is_actual = np.broadcast_to(patterns[:, :1, None] == np.arange(self.classes), is_predicted.shape)
        parts = [is_predicted & is_actual, is_predicted, is_actual]
        # Float32 counts are exact up to 2^24 examples and multiply at twice the speed.
        return rows, np.concatenate(parts, axis=2).astype(np.float32)

    def counts(self, sums: FloatArray) -> Counts:
        """The sums by what they count."""
        return Counts(*np.split(sums, 3, axis=-1))

    def estimate(self, metric: str, resamples: int, seed: int) -> Estimated | None:
        """ROC-AUC, where there are probabilities and every class has an example."""
        every_class = len(np.unique(self.labels)) == self.classes > 1
        if self.probabilities is None or not every_class:
            return None
        return delong(self.labels, self.probabilities)


@dataclass(frozen=True)
class Table(Answers):
    """Answers by what each adds to the sums of which the metrics are functions.

    table: ``[seeds, n, k]``. known: the metrics; their `from_counts` takes sums ``[..., k]``.
    whole: whether an answer is right as a whole, ``[seeds, n]``. scarcest: `Answers.support`. parts: of the
    metrics that are about a part of the examples alone, how many these are.
    values: gold and answered numbers, ``[n]`` and ``[seeds, n]``, for metrics of ranks.
    """

    table: FloatArray
    known: Mapping[str, Metric]
    whole: NDArray[np.bool_]
    scarcest: int | None = None
    values: tuple[FloatArray, FloatArray] | None = field(default=None)
    parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Those that were given."""
        return self.known

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether an answer is right as a whole, [seeds, n]."""
        return self.whole

    @property
    def support(self) -> int:
        """How many examples the scarcest part has."""
        return self.examples if self.scarcest is None else self.scarcest

    def behind(self, metric: Metric) -> int:
        """How many examples a metric rests on, at the least."""
        return self.parts.get(metric.name, super().behind(metric))

    def joined(self, others: Sequence[Self]) -> Self:
        """These seeds and those of others, in order."""
        every = [self, *others]
        if any(one.table.shape[1:] != self.table.shape[1:] for one in others):
            raise ValueError("candidates can only be compared on the same examples")
        values = [one.values for one in every if one.values is not None]
        return type(self)(
            np.concatenate([one.table for one in every]),
            self.known,
            np.concatenate([one.whole for one in every]),
            self.scarcest,
            (values[0][0], np.concatenate([own for _, own in values])) if len(values) == len(every) else None,
            self.parts,
        )

    def informative(self) -> int:
        """Examples that do not add the same to the sums of all seeds."""
        return int((self.table != self.table[0]).any(axis=(0, 2)).sum())

    def statistics(self) -> tuple[IntArray, FloatArray]:
        """Every example by itself."""
        rows = np.ones(self.examples, dtype=np.int64)
        return rows, np.ascontiguousarray(self.table.transpose(1, 0, 2))

    def counts(self, sums: FloatArray) -> FloatArray:
        """The sums as they are."""
        return sums

    def estimate(self, metric: str, resamples: int, seed: int) -> Estimated | None:
        """A metric of ranks, by resampling the examples themselves."""
        of_values = self.known[metric].of_values
        if self.values is None or of_values is None:
            return None
        gold, answered = self.values
        generator = np.random.default_rng(seed)
        drawn = [
            of_values(gold[chosen], answered[:, chosen])
            for chosen in generator.integers(self.examples, size=(min(resamples, RANKED), self.examples))
        ]
        return of_values(gold, answered), np.atleast_2d(np.cov(np.stack(drawn).T))


RANKED = 500
"""How often examples are resampled, at most, for metrics that must rank them anew each time."""
