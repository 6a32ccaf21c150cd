"""The variance of ROC-AUC (DeLong et al., 1988, "Comparing the areas under two or more correlated ROCs")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tunestack.arrays import FloatArray, IntArray


def delong(labels: IntArray, probabilities: NDArray[np.floating]) -> tuple[FloatArray, FloatArray]:
    """ROC-AUC of each seed [seeds], its covariance [seeds, seeds]: what resampling would converge to.

    probabilities: ``[seeds, n, classes]``. Beyond two classes: the mean of one class against the rest.
    """
    classes = probabilities.shape[2]
    one_vs_rest = [1] if classes == 2 else list(range(classes))
    values = np.zeros(len(probabilities))
    influence = np.zeros(probabilities.shape[:2])
    for k in one_vs_rest:
        positive, scores = labels == k, probabilities[:, :, k]
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        ranks = stats.rankdata(scores, axis=1)
        above = (ranks[:, positive] - stats.rankdata(scores[:, positive], axis=1)) / n_negative
        below = 1 - (ranks[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)) / n_positive
        auc = above.mean(axis=1)
        values += auc / len(one_vs_rest)
        for rows, placements in ((positive, above), (~positive, below)):
            m = placements.shape[1]
            scale = np.sqrt(m * max(m - 1, 1)) * len(one_vs_rest)
            influence[:, rows] += (placements - auc[:, None]) / scale
    return values, influence @ influence.T
