"""SQuAD's metrics, as its official scripts (v1.1 and v2.0) define them."""

from __future__ import annotations

import functools
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tunestack.arrays import FloatArray
from tunestack.tasks.metrics import Metric, ratio

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@functools.lru_cache(maxsize=2**18)
def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, articles and spaces beyond one.

    >>> normalize_answer("The  U.S. Army's (an) example")
    'us armys example'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def token_f1(prediction: str, gold: str, empty_is_answer: bool) -> float:
    """F1 of the words that two answers share.

    empty_is_answer: whether an answer without words is right where the other has none (v2.0), or never
    (v1.1).
    """
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if empty_is_answer and not (ours and theirs):
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def overlap(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], unanswerable: bool
) -> tuple[FloatArray, FloatArray]:
    """Exact match and F1 of every answer with the gold answer that is nearest to it, [examples] each.

    golds: of every example; of a question without an answer none. unanswerable: whether there may be such
    questions (v2.0).
    """
    exact, f1 = np.zeros(len(predictions)), np.zeros(len(predictions))
    for index, (prediction, texts) in enumerate(zip(predictions, golds, strict=True)):
        if unanswerable:
            texts = [text for text in texts if normalize_answer(text)] or [""]
        ours = normalize_answer(prediction)
        exact[index] = any(normalize_answer(text) == ours for text in texts)
        f1[index] = max((token_f1(prediction, text, unanswerable) for text in texts), default=0.0)
    return exact, f1


def best_threshold(margins: FloatArray, scores: FloatArray, has_answer: NDArray[np.bool_]) -> float:
    """The threshold on the margin, above which no answer is given, that makes the metric best.

    margins: the score of no answer less that of the best span, [examples]. scores: the metric of that span.
    The search of the official script: from the surest span on, each answered question adds its score, or
    takes 1 away where none was to be answered. The threshold lies in the middle between the last margin below
    it and the first above it, where the script names the one below: as good on these examples, and it does
    not hang on rounding. Equal margins stay together; it is finite where margins are not, for want of a span.
    """
    known = margins[np.isfinite(margins)]
    margins = np.where(np.isfinite(margins), margins, known.max(initial=0.0) + 1)
    order = np.argsort(margins, kind="stable")
    gains = np.where(has_answer, scores, -1.0)[order]
    sums = np.append(0.0, np.cumsum(gains))  # of answering none, the surest one, the two surest, ...
    ordered = margins[order]
    ends = np.concatenate([ordered[:1] - 1, ordered, ordered[-1:] + 1])
    sums[ends[1:] == ends[:-1]] = -np.inf
    best = int(np.argmax(sums))
    return float((ends[best] + ends[best + 1]) / 2)


ALL, EXACT, F1, HAS, HAS_EXACT, HAS_F1, HAS_NOT, HAS_NOT_EXACT = range(8)
"""The columns of `statistics`: how many examples there are, of all and of both kinds, and their scores."""


def statistics(
    exact: FloatArray, f1: FloatArray, has_answer: NDArray[np.bool_], unanswerable: bool
) -> FloatArray:
    """What the metrics are functions of, [examples, k]: the columns above, or the first three of them."""
    columns = [np.ones_like(exact), exact, f1]
    if unanswerable:
        has = has_answer.astype(float)
        columns += [has, has * exact, has * f1, 1 - has, (1 - has) * exact]
    return np.stack(columns, axis=1)


def _mean(part: int, whole: int) -> Callable[[FloatArray], FloatArray]:
    """The mean of a column over the examples that another one counts; 0 where it counts none."""
    return lambda sums: ratio(sums[..., part], sums[..., whole])


OF_ALL = {
    metric.name: metric
    for metric in (
        Metric("f1", "F1", _mean(F1, ALL)),
        Metric("exact_match", "exact match", _mean(EXACT, ALL), per_example=True),
    )
}
"""Metrics of every data set."""

OF_PARTS = {
    metric.name: metric
    for metric in (
        Metric("has_answer_f1", "F1 where there is an answer", _mean(HAS_F1, HAS)),
        Metric("has_answer_exact_match", "exact match where there is an answer", _mean(HAS_EXACT, HAS)),
        # F1 is the same there: the answer is none, or wrong.
        Metric(
            "no_answer_exact_match", "exact match where there is no answer", _mean(HAS_NOT_EXACT, HAS_NOT)
        ),
    )
}
"""Metrics of data with questions that have no answer."""
