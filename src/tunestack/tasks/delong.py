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
    return delong_of_flags(labels[:, None] == one_vs_rest, probabilities[:, :, one_vs_rest])


def delong_of_flags(
    positives: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[FloatArray, FloatArray]:
    """The mean over columns of ROC-AUC, for each seed [seeds], and its covariance [seeds, seeds].

    positives: ``[n, columns]``, both kinds in every column. scores: ``[seeds, n, columns]``.
    """
    columns = positives.shape[1]
    values = np.zeros(len(scores))
    influence = np.zeros(scores.shape[:2])
    for positive, own in zip(positives.T, np.moveaxis(scores, 2, 0), strict=True):
        n_positive, n_negative = int(positive.sum()), int((~positive).sum())
        ranks = stats.rankdata(own, axis=1)
        above = (ranks[:, positive] - stats.rankdata(own[:, positive], axis=1)) / n_negative
        below = 1 - (ranks[:, ~positive] - stats.rankdata(own[:, ~positive], axis=1)) / n_positive
        auc = above.mean(axis=1)
        values += auc / columns
        for rows, placements in ((positive, above), (~positive, below)):
            m = placements.shape[1]
            scale = np.sqrt(m * max(m - 1, 1)) * columns
            influence[:, rows] += (placements - auc[:, None]) / scale
    return values, influence @ influence.T
