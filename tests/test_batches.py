"""Batches: every example once, about equally long, in an order that a seed decides."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tunestack.data.batches import STRATA, epoch_batches, evaluation_batches
from tunestack.data.encode import IntArray

LENGTHS = st.lists(st.integers(0, 300), min_size=1, max_size=120).map(lambda v: np.asarray(v, dtype=np.int64))


@given(LENGTHS, st.integers(1, 20), st.integers(0, 2**31), st.integers(0, 50))
def test_every_example_once_and_the_same_again(
    lengths: IntArray, batch_size: int, seed: int, epoch: int
) -> None:
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert sorted(map(len, batches))[1:] == [batch_size] * (len(batches) - 1)
    again = epoch_batches(lengths.copy(), batch_size, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def skewed(count: int, seed: int = 0) -> IntArray:
    """Lengths as texts have them: most are short, some are long."""
    return np.random.default_rng(seed).lognormal(3, 0.7, count).astype(np.int64) + 2


def contents(batches: list[IntArray]) -> set[tuple[int, ...]]:
    return {tuple(sorted(batch.tolist())) for batch in batches}


def test_seeds_and_epochs_see_other_batches_in_other_orders() -> None:
    lengths = skewed(1000)
    first = epoch_batches(lengths, 8, seed=1, epoch=0)
    for seed, epoch in ((2, 0), (1, 1), (3, 5)):
        other = epoch_batches(lengths, 8, seed, epoch)
        assert len(contents(first) & contents(other)) <= 2
    orders = [np.concatenate(epoch_batches(lengths, 8, 1, epoch)) for epoch in range(3)]
    assert np.abs(np.corrcoef(orders)[np.triu_indices(3, 1)]).max() < 0.1


def test_equal_lengths_are_shuffled_without_a_trace() -> None:
    """Where lengths say nothing, an example's place is uniform: its mean over seeds is the middle."""
    count, seeds = 64, 400
    places = np.empty((seeds, count))
    for seed in range(seeds):
        places[seed, np.concatenate(epoch_batches(np.full(count, 9), 4, seed, 0))] = np.arange(count)
    middle, spread = (count - 1) / 2, np.sqrt((count**2 - 1) / 12)
    assert np.abs(places.mean(axis=0) - middle).max() < 5 * spread / np.sqrt(seeds)


def padding_share(lengths: IntArray, batches: list[IntArray]) -> float:
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - float(lengths.sum()) / padded


def test_little_is_padded_where_random_batches_pad_much() -> None:
    lengths = skewed(4000)
    order = np.random.default_rng(1).permutation(len(lengths))
    random = padding_share(lengths, [order[i : i + 8] for i in range(0, len(order), 8)])
    ours = padding_share(lengths, epoch_batches(lengths, 8, seed=1, epoch=0))
    assert random > 0.45
    assert ours < 0.1


def test_batches_of_one_step_are_about_as_long_for_every_seed() -> None:
    lengths = skewed(4000)
    longest = np.array(
        [[lengths[batch].max() for batch in epoch_batches(lengths, 8, seed, 2)] for seed in range(4)]
    )
    assert np.corrcoef(longest).min() > 0.8
    together = longest.max(axis=0).sum() * 4 / longest.sum()
    shuffled = np.array([np.random.default_rng(i).permutation(row) for i, row in enumerate(longest)])
    apart = shuffled.max(axis=0).sum() * 4 / longest.sum()
    assert together < 1.25 < 1.6 < apart, "stacked rows would be padded to the longest slot's"


def test_every_stretch_of_an_epoch_has_all_lengths() -> None:
    """The last steps, too: they weigh most in what an epoch leaves behind."""
    lengths = skewed(4000)
    means = np.array([lengths[batch].mean() for batch in epoch_batches(lengths, 8, 1, 0)])
    ranks = means.argsort().argsort() / len(means)
    shuffled = np.random.default_rng(1).permutation(ranks)

    def unevenness(values: np.ndarray) -> float:
        stretch = 4 * STRATA
        return float(np.convolve(values, np.full(stretch, 1 / stretch), "valid").std())

    assert unevenness(ranks) < unevenness(shuffled) / 2
    patterns = {tuple((ranks[start : start + 4] * STRATA).astype(int)) for start in range(0, 400, 4)}
    assert len(patterns) > 90, "in no fixed order"


@given(LENGTHS, st.integers(1, 2000))
def test_evaluation_covers_everything_within_the_budget(lengths: IntArray, budget: int) -> None:
    batches = evaluation_batches(lengths, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert (
            len(batch) == 1 or len(batch) * int(lengths[batch].max()) <= budget or lengths[batch].max() == 0
        )
    maxima = [int(lengths[batch].max()) for batch in batches]
    assert maxima == sorted(maxima, reverse=True), "the first batch needs the most memory"


def test_evaluation_uses_the_budget() -> None:
    lengths = skewed(3000)
    batches = evaluation_batches(lengths, 4096)
    used = [len(batch) * int(lengths[batch].max()) for batch in batches[:-1]]
    assert min(used) > 4096 - max(lengths)
    assert padding_share(lengths, batches) < 0.1
