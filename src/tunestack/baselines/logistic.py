"""Logistic regression as a plain set of arrays, so that it can be saved without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from tunestack.arrays import FloatArray, IntArray
from tunestack.baselines.base import Tensors
from tunestack.config import Settings
from tunestack.data.split import split_positions
from tunestack.errors import Problem, UserError

NAMES = ("coef", "intercept", "classes")
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""What C is chosen from."""
FOLDS = 5


class LogisticOptions(Settings):
    """scikit-learn's fields."""

    C: float | None = Field(default=1.0, gt=0)
    """Inverse strength of the L2 penalty; none: chosen on the training rows, by cross-validation."""
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

    def answers(self, features: Any) -> FloatArray:
        """Probabilities [rows, label_count] fp64, for dense or sparse features [rows, features]."""
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
    def from_tensors(cls, tensors: Tensors, label_count: int) -> Self:
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
                f"{len(found)} in {len(labels)} labels",
                "Check the label column, and the split.",
            )
        )
    wanted = options.class_weight
    weights = dict(enumerate(wanted)) if isinstance(wanted, list) else wanted
    model: Any = LogisticRegression(C=options.C or 1.0, class_weight=weights, max_iter=options.max_iter)
    if options.C is None:
        model.set_params(C=_best_strength(model, features, labels))
    model.fit(features, labels)
    return Logistic(model.coef_, model.intercept_, np.asarray(model.classes_, dtype=np.int64), label_count)


def _best_strength(model: Any, features: Any, labels: IntArray) -> float:
    """The C with the lowest cross-validated log loss; 1 where a class has too few examples to be split."""
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = min(FOLDS, int(np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        return 1.0
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    search = GridSearchCV(model, {"C": STRENGTHS}, cv=split, scoring="neg_log_loss", refit=False)
    search.fit(features, labels)
    return float(search.best_params_["C"])


def held_out(groups: Sequence[str]) -> tuple[IntArray, IntArray]:
    """Which rows to fit on and which to hold out, a fifth, for choosing C; none of these in one group alone.

    groups: of each row; those of one group stay together.
    """
    try:
        return split_positions(len(groups), 1 - 1 / FOLDS, 0, groups)
    except UserError:
        return np.arange(len(groups)), np.arange(0)
