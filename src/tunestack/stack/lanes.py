"""Lanes: parts of a stack side by side, each in a thread of its own."""

from __future__ import annotations

import bisect
import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

MOST = 4
"""Lanes at most: Python itself runs in one of them at a time."""


class Lanes:
    """Threads that share the processor's cores, each with its own forward and backward passes.

    A few hundred tokens are too little work to divide every operator among cores: they wait for each other
    after each one, and long where another program takes a core for a moment. Slots in lanes meet once a step.

    count: how many; 1 on an accelerator, which is no faster for being asked by several.
    """

    def __init__(self, device: torch.device) -> None:
        self.count = min(MOST, torch.get_num_threads()) if device.type == "cpu" else 1

    def divide(self, things: Sequence[T], lengths: Sequence[int] | None = None) -> list[Sequence[T]]:
        """The things in consecutive parts with about as much work each: one a lane, or less.

        lengths: how long the rows of each are, ascending; all of a part are padded to its last one. None: all
        are alike.
        """
        parts = max(1, min(self.count, len(things)))
        if lengths is None or parts == 1:
            ends = [round(len(things) * part / parts) for part in range(parts + 1)]
        else:
            longest = max(1, lengths[-1])
            most = range(longest, longest * len(things) + 1)
            work = most[bisect.bisect_left(most, True, key=lambda n: len(_ends(lengths, n)) <= parts + 1)]
            ends = _ends(lengths, work)
        return [things[start:stop] for start, stop in itertools.pairwise(ends)]

    def share(self, things: Sequence[T], work: Sequence[int]) -> list[Sequence[T]]:
        """The things in parts with about as much work each, one a lane, or less: the largest first, each to
        the lane that has least so far (Graham, 1969).
        """
        parts: list[list[T]] = [[] for _ in range(max(1, min(self.count, len(things))))]
        totals = [0] * len(parts)
        for place in sorted(range(len(things)), key=lambda place: -work[place]):
            least = totals.index(min(totals))
            parts[least].append(things[place])
            totals[least] += work[place]
        return list(parts)

    def run(self, function: Callable[[T], R], parts: Sequence[T]) -> Iterator[Future[R]]:
        """The function of every part, each in a lane; when all are done, their futures in order.

        One part alone runs in the caller's own thread, and has all cores. An interruption waits for the
        others, for what they change is whole only when they are done.
        """
        if len(parts) == 1:
            futures = [_now(function, parts[0])]
        else:
            threads = _threads(self.count, torch.get_num_threads())
            futures = [threads.submit(function, part) for part in parts]
        try:
            wait(futures)
        finally:
            wait(futures)
        yield from futures


def _ends(lengths: Sequence[int], work: int) -> list[int]:
    """Where parts end of which none has more work (things x longest) than this, filled from the last on."""
    ends = [len(lengths)]
    while ends[-1] > 0:
        ends.append(max(0, ends[-1] - work // max(1, lengths[ends[-1] - 1])))
    return ends[::-1]


@functools.cache
def _threads(count: int, cores: int) -> ThreadPoolExecutor:
    """One set of threads in a process, whatever stacks come and go; each with its share of the cores."""
    ready = threading.Barrier(count + 1)

    def prepare() -> None:
        torch.get_num_threads()  # a thread that was not asked yet takes the last number set anywhere, later
        torch.set_num_threads(max(1, cores // count))
        ready.wait()

    pool = ThreadPoolExecutor(count, "lane", initializer=prepare)
    for _ in range(count):
        pool.submit(lambda: None)
    ready.wait()
    torch.set_num_threads(cores)
    return pool


def _now(function: Callable[[T], R], part: T) -> Future[R]:
    future: Future[R] = Future()
    try:
        future.set_result(function(part))
    except Exception as error:
        future.set_exception(error)
    return future
