"""Lanes: threads with their share of the cores, and no more."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunestack.stack import lanes
from tunestack.stack.lanes import Lanes


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Two lanes on a machine with six cores."""
    before = torch.get_num_threads()
    make: Any = lanes._threads
    threads: ThreadPoolExecutor = make.__wrapped__(2, 6)
    yield threads
    threads.shutdown()
    torch.set_num_threads(before)


def test_every_lane_has_its_share_of_the_cores(pool: ThreadPoolExecutor) -> None:
    """And whoever runs them still has all."""
    asked = [pool.submit(torch.get_num_threads) for _ in range(8)]
    assert {done.result() for done in asked} == {3}
    assert torch.get_num_threads() == 6
    assert {pool.submit(torch.get_num_threads).result() for _ in range(8)} == {3}


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (2, [1, 1]), (5, [2, 3]), (8, [4, 4]), (9, [4, 5])]
)
def test_things_are_divided_in_order_and_evenly(count: int, sizes: list[int]) -> None:
    two = Lanes(torch.device("cpu"))
    two.count = 2
    parts = two.divide(range(count))
    assert [number for part in parts for number in part] == list(range(count))
    assert sorted(map(len, parts)) == sizes or (not count and sum(map(len, parts)) == 0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 4))
def test_everything_is_shared_and_about_evenly(work: list[int], count: int) -> None:
    lanes_of = Lanes(torch.device("cpu"))
    lanes_of.count = count
    parts = lanes_of.share(range(len(work)), work)
    assert sorted(place for part in parts for place in part) == list(range(len(work)))
    assert len(parts) == min(count, len(work))
    assert all(parts)
    totals = [sum(work[place] for place in part) for part in parts]
    assert max(totals) - min(totals) <= max(work)
    assert max(totals) <= sum(work) / count + (1 - 1 / count) * max(work)  # Graham's bound


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9).map(sorted), st.integers(1, 4))
def test_the_lane_with_most_work_has_as_little_as_can_be(lengths: list[int], count: int) -> None:
    """Against every way to cut; work is rows times the longest."""
    lanes_of = Lanes(torch.device("cpu"))
    lanes_of.count = count

    def most(parts: Iterable[Sequence[int]]) -> int:
        return max(len(part) * max(part) for part in parts if part)

    parts = lanes_of.divide(lengths, lengths)
    assert [length for part in parts for length in part] == lengths
    assert all(parts)
    assert len(parts) <= count
    cuts = itertools.combinations_with_replacement(range(len(lengths) + 1), count - 1)
    ways = ([0, *cut, len(lengths)] for cut in cuts)
    assert most(parts) == min(most(lengths[a:b] for a, b in itertools.pairwise(way)) for way in ways)


def test_results_and_errors_come_in_order() -> None:
    two = Lanes(torch.device("cpu"))
    two.count = 2

    def halved(number: int) -> float:
        return 1 / number

    first, second, third = two.run(halved, [2, 0, 4])
    assert (first.result(), third.result()) == (0.5, 0.25)
    assert isinstance(second.exception(), ZeroDivisionError)


def test_an_interruption_waits_for_what_the_lanes_have_begun() -> None:
    """What they change is saved next, and must not change any more."""
    two = Lanes(torch.device("cpu"))
    two.count = 2
    begun, done, caller = threading.Barrier(2), [], threading.get_ident()

    def work(part: int) -> None:
        begun.wait()
        if part:
            signal.pthread_kill(caller, signal.SIGINT)
        time.sleep(0.3)
        done.append(part)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            list(two.run(work, [0, 1]))
    finally:
        signal.signal(signal.SIGINT, before)
    assert sorted(done) == [0, 1]
