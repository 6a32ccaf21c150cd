"""A linear model on features: logistic regression of classes, one a label of flags, ridge of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tunestack.arrays import FloatArray
from tunestack.baselines.base import SavedBaseline, Tensors, read_tensors
from tunestack.baselines.logistic import NAMES, Logistic, LogisticOptions, fit_logistic
from tunestack.baselines.one_vs_rest import OneVsRest, fit_one_vs_rest
from tunestack.baselines.ridge import Ridge, RidgeOptions, fit_ridge
from tunestack.config import Settings
from tunestack.tasks.base import Target

Linear = Logistic | Ridge
Fit = TypeVar("Fit", bound=Linear)


def fit_linear(features: Any, labels: NDArray[Any], label_count: int, options: Settings) -> Linear:
    """Fit what the options are for. Raises UserError where the labels of classes are all the same.

    labels: ids or numbers [texts], or flags [texts, labels].
    """
    if isinstance(options, RidgeOptions):
        return fit_ridge(features, labels, options)
    assert isinstance(options, LogisticOptions)
    if labels.ndim == 2:
        return fit_one_vs_rest(features, labels, options)
    return fit_logistic(features, labels, label_count, options)


def fit_standardised(features: FloatArray, fit: Callable[[FloatArray], Fit]) -> Fit:
    """Fit on features of mean 0 and variance 1, and express the result in the features as they are."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler(copy=False)
    fitted = fit(scaler.fit_transform(features.astype(np.float64)))
    coef = fitted.coef / scaler.scale_
    return replace(fitted, coef=coef, intercept=fitted.intercept - coef @ scaler.mean_)


def target_of(linear: Linear) -> Target:
    """What it answers."""
    if isinstance(linear, Ridge):
        return "numbers"
    return "flags" if isinstance(linear, OneVsRest) else "classes"


def read_linear(folder: Path, saved: SavedBaseline, *others: str) -> tuple[Linear, Tensors]:
    """A saved one, and all tensors in its file; `others` are to be among them.

    Raises UserError for a missing or damaged file, or a missing name.
    """
    if saved.target == "numbers":
        tensors = read_tensors(folder, *Ridge.NAMES, *others)
        return Ridge.from_tensors(tensors), tensors
    tensors = read_tensors(folder, *NAMES, *others)
    kind = OneVsRest if saved.target == "flags" else Logistic
    return kind.from_tensors(tensors, saved.label_count), tensors
