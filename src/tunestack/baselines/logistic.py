"""Logistic regression as a plain set of arrays, so that it can be saved without pickle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from tunestack.arrays import FloatArray, IntArray
from tunestack.baselines.base import Tensors
from tunestack.config import Settings
from tunestack.errors import Problem, UserError

NAMES = ("coef", "intercept", "classes")


class LogisticOptions(Settings):
    """scikit-learn's fields."""

    C: float = Field(default=1.0, gt=0)
    """Inverse strength of the L2 penalty."""
    class_weight: Literal["balanced"] | list[float] | None = "balanced"
    """balanced: every class weighs the same in all, however many texts it has; or weights in id order."""
    max_iter: int = Field(default=1000, ge=1)
    """Iterations of L-BFGS at most."""


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic regression.

    coef: [rows, features] and intercept: [rows], fp64; one row for two classes, else one a class.
    classes: [k] ids of the classes that training held; others of the `label_count` get probability 0.
    """

    coef: FloatArray
    intercept: FloatArray
    classes: IntArray
    label_count: int

    @property
    def parameters(self) -> int:
        """How many numbers were fitted."""
        return int(self.coef.size + self.intercept.size)

    def probabilities(self, features: Any) -> FloatArray:
        """[rows, label_count] fp64, for dense or sparse features [rows, features]."""
        from scipy.special import softmax

        scores = np.asarray(features @ self.coef.T) + self.intercept
        if scores.shape[1] == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        probabilities = np.zeros((scores.shape[0], self.label_count))
        probabilities[:, self.classes] = softmax(scores, axis=1)
        return probabilities

    def tensors(self) -> Tensors:
        """The arrays to save, by name."""
        return {name: getattr(self, name) for name in NAMES}

    @classmethod
    def from_tensors(cls, tensors: Tensors, label_count: int) -> Logistic:
        """What `tensors` gave."""
        return cls(tensors["coef"], tensors["intercept"], tensors["classes"], label_count)


def fit_logistic(features: Any, labels: IntArray, label_count: int, options: LogisticOptions) -> Logistic:
    """Fit scikit-learn's LogisticRegression (L-BFGS; multinomial beyond two classes).

    Raises UserError where the labels are all the same.
    """
    from sklearn.linear_model import LogisticRegression

    found = np.unique(labels)
    if len(found) < 2:
        raise UserError(
            Problem(
                "training labels",
                "at least two classes",
                f"{len(found)} in {len(labels)} texts",
                "Check the label column, and the split.",
            )
        )
    wanted = options.class_weight
    weights = dict(enumerate(wanted)) if isinstance(wanted, list) else wanted
    model = LogisticRegression(C=options.C, class_weight=weights, max_iter=options.max_iter)
    model.fit(features, labels)
    return Logistic(model.coef_, model.intercept_, np.asarray(model.classes_, dtype=np.int64), label_count)
