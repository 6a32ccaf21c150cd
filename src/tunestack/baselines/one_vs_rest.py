"""One logistic regression a label, where a text has any number of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tunestack.arrays import FloatArray, IntArray
from tunestack.baselines.logistic import Logistic, LogisticOptions, fit_logistic


@dataclass(frozen=True)
class OneVsRest(Logistic):
    """A row of `coef` and `intercept` for each label; `classes` are all labels."""

    def answers(self, features: Any) -> FloatArray:
        """The probability of each label by itself [rows, label_count] fp64."""
        from scipy.special import expit

        scores: FloatArray = expit(np.asarray(features @ self.coef.T) + self.intercept)
        return scores


def fit_one_vs_rest(features: Any, flags: IntArray, options: LogisticOptions) -> OneVsRest:
    """Fit them; flags [texts, labels] are 0 or 1.

    Weights in id order are those of texts with the label against 1 of those without. A label that all texts
    have, or none, gets the same probability everywhere: its share, with half a text more on either side.
    """
    texts, labels = flags.shape
    coef, intercept = np.zeros((labels, features.shape[1])), np.zeros(labels)
    for label, own in enumerate(flags.T):
        there = int(own.sum())
        if there in (0, texts):
            intercept[label] = np.log((there + 0.5) / (texts - there + 0.5))
            continue
        wanted = options.class_weight
        weights = [1.0, wanted[label]] if isinstance(wanted, list) else wanted
        fitted = fit_logistic(features, own, 2, options.model_copy(update={"class_weight": weights}))
        coef[label], intercept[label] = fitted.coef[0], fitted.intercept[0]
    return OneVsRest(coef, intercept, np.arange(labels), labels)
