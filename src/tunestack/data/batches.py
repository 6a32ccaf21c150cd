"""Which examples train together: batches of about equal length, in an order that a seed decides."""

from __future__ import annotations

import numpy as np

from tunestack.arrays import IntArray

WINDOW = 16
"""How many batches' worth of places an example may move away from its rank by length."""
STRATA = (0, 4, 2, 6, 1, 5, 3, 7)
"""Classes of length into which the batches fall, 0 the shortest, in the order in which they take turns."""
PERIOD = len(STRATA)
"""Steps after which they begin again: trials whose steps differ by a multiple of it meet batches alike."""


def epoch_batches(lengths: IntArray, batch_size: int, seed: int, epoch: int) -> list[IntArray]:
    """Batches of example indices for one epoch; every example once, the last rank's batch may be smaller.

    Examples are ranked by length (ties in random order), each rank is moved by a random amount of up to
    `WINDOW` batches, and the result is cut into batches: rows of a batch are about equally long, and no
    two epochs or seeds see the same batches. Batches of the classes of length take turns, counted from the
    first step of the first epoch, so trials that train side by side in step meet batches of about the same
    length, whatever their seeds, batch sizes and epochs. Every stretch has all lengths: length tells much
    about the label, and an epoch that ends on short texts leaves a model that expects them. The order within
    a class is random, by the epoch and the number of batches. The result is a function of the arguments: a
    trial sees the same order in any company and after a resume.
    """
    own = np.random.default_rng([seed, epoch])
    count = len(lengths)
    shuffled = own.permutation(count)
    by_length = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    moved = np.arange(count) + own.uniform(0, WINDOW * batch_size, count)
    ordered = by_length[np.argsort(moved, kind="stable")]
    batches = [ordered[start : start + batch_size] for start in range(0, count, batch_size)]
    shared = np.random.default_rng([epoch, len(batches)])
    steps = epoch * len(batches) + np.arange(len(batches))
    # The places of the shortest class, then those of the next one, ...: there the batches go by length.
    places = np.lexsort((shared.random(len(batches)), np.asarray(STRATA)[steps % PERIOD]))
    return [batches[index] for index in np.argsort(places)]


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
