"""Ridge regression as a plain set of arrays, so that it can be saved without pickle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from tunestack.arrays import FloatArray
from tunestack.baselines.base import Tensors
from tunestack.baselines.logistic import FOLDS
from tunestack.config import Settings

PENALTIES = tuple(float(10 ** (power / 2)) for power in range(-4, 11))
"""What alpha is chosen from: 0.01 to 100,000."""


class RidgeOptions(Settings):
    """scikit-learn's fields."""

    alpha: float | None = Field(default=None, gt=0)
    """Strength of the L2 penalty; none: chosen on the training rows, by cross-validation."""


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression. coef: [features], intercept: [1], fp64."""

    coef: FloatArray
    intercept: FloatArray

    NAMES = ("coef", "intercept")
    label_count = 1

    @property
    def parameters(self) -> int:
        """How many numbers were fitted."""
        return int(self.coef.size + 1)

    def answers(self, features: Any) -> FloatArray:
        """[rows] fp64, for dense or sparse features [rows, features]."""
        return np.asarray(features @ self.coef + self.intercept[0])

    def tensors(self) -> Tensors:
        """The arrays to save, by name."""
        return {name: getattr(self, name) for name in self.NAMES}

    @classmethod
    def from_tensors(cls, tensors: Tensors) -> Ridge:
        """What `tensors` gave."""
        return cls(tensors["coef"], tensors["intercept"])


def fit_ridge(features: Any, numbers: FloatArray, options: RidgeOptions) -> Ridge:
    """Fit scikit-learn's Ridge, with the penalty of the lowest cross-validated squared error."""
    from sklearn.linear_model import Ridge as SkRidge

    model: Any = SkRidge(alpha=options.alpha or 1.0)
    folds = min(FOLDS, len(numbers))
    if options.alpha is None and folds > 1:
        from sklearn.model_selection import GridSearchCV, KFold

        split = KFold(folds, shuffle=True, random_state=0)
        score = "neg_mean_squared_error"
        search = GridSearchCV(model, {"alpha": PENALTIES}, cv=split, scoring=score, refit=False)
        search.fit(features, numbers)
        model.set_params(**search.best_params_)
    model.fit(features, numbers)
    return Ridge(np.asarray(model.coef_, dtype=np.float64), np.asarray([model.intercept_], dtype=np.float64))
