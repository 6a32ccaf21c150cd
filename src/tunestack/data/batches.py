"""Which examples train together: batches of about equal length, in an order that a seed decides."""

from __future__ import annotations

import numpy as np

from tunestack.arrays import IntArray

WINDOW = 16
"""How many batches' worth of places an example may move away from its rank by length."""
STRATA = 8
"""Into how many classes of length the batches fall; all come equally often in every stretch of an epoch."""


def epoch_batches(lengths: IntArray, batch_size: int, seed: int, epoch: int) -> list[IntArray]:
    """Batches of example indices for one epoch; every example once, the last rank's batch may be smaller.

    Examples are ranked by length (ties in random order), each rank is moved by a random amount of up to
    `WINDOW` batches, and the result is cut into batches: rows of a batch are about equally long, and no
    two epochs or seeds see the same batches. The order of the batches depends on the epoch and the
    number of batches alone, so trials with different seeds that train side by side meet batches of
    about the same length in every step. It is random within strata of length, which come equally often
    in every stretch: length tells much about the label, and an epoch that ends on short texts leaves a
    model that expects them. The result is a function of the arguments: a trial sees the same order in any
    company and after a resume.
    """
    own = np.random.default_rng([seed, epoch])
    count = len(lengths)
    shuffled = own.permutation(count)
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    moved = np.arange(count) + own.uniform(0, WINDOW * batch_size, count)
    ordered = by_length[np.argsort(moved, kind="stable")]
    batches = [ordered[start : start + batch_size] for start in range(0, count, batch_size)]
    shared = np.random.default_rng([epoch, len(batches)])
    moments = [
        (shared.permutation(len(stratum)) + shared.random(len(stratum))) / len(stratum)
        for stratum in np.array_split(np.arange(len(batches)), min(STRATA, len(batches)))
    ]
    return [batches[index] for index in np.argsort(np.concatenate(moments))]


def evaluation_batches(lengths: IntArray, max_tokens: int) -> list[IntArray]:
    """All examples, sorted by length, in batches of at most `max_tokens` padded tokens (one row at least)."""
    order = np.argsort(lengths, kind="stable")[::-1]
    batches: list[IntArray] = []
    start = 0
    while start < len(order):
        rows = max(1, max_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches
