"""How many slots there are, with made-up speeds and memory: what is decided, not what is measured."""

from __future__ import annotations

import pytest
import torch

from tunestack.stack.room import Room

GIB = 2**30


def widths(
    speed: dict[int, float], each: int = 0, free: int = 100 * GIB, most: int | None = None
) -> list[int]:
    """The numbers of slots that follow each other. speed: seconds of a slot's step by the number of slots.

    each: bytes that a slot takes of those that are free.
    """
    taken = 0
    room = Room(None, 1, lambda: taken, lambda: free - taken, most)
    found = [room.slots]
    while not room.decided:
        taken = room.slots * each
        room.note(speed[room.slots] / speed.get(room.fewer, 1))
        if room.slots != found[-1]:
            found.append(room.slots)
    return found


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        ({2: 1.0, 8: 0.7, 32: 0.6, 128: 0.68}, [2, 8, 32, 128, 32]),  # undone
        ({2: 1.0, 8: 0.7, 32: 0.74}, [2, 8, 32, 8]),  # slower, so it is over
        ({2: 1.0, 8: 0.7, 32: 0.72, 128: 0.6, 512: 0.8}, [2, 8, 32, 128, 512, 128]),  # a little slower: go on
        ({2: 1.0, 8: 1.06}, [2, 8, 2]),
        ({2: 1.0, 8: 1.02, 32: 1.06}, [2, 8, 32, 8]),  # all alike: the most of them
        ({2: 1.0, 8: 0.8, 32: 0.82, 128: 0.9}, [2, 8, 32, 128, 32]),
    ],
)
def test_slots_grow_as_long_as_that_pays(speed: dict[int, float], expected: list[int]) -> None:
    assert widths(speed) == expected


def test_memory_ends_it_before_it_is_full() -> None:
    ever_faster = {count: 1 / count for count in range(1, 200)}
    assert widths(ever_faster, each=GIB, free=40 * GIB, most=100) == [2, 8, 29]  # 8 taken, 32 free: 21 more
    assert widths(ever_faster, each=GIB, free=12 * GIB) == [2, 8]  # 8 taken, 4 free: 2 more are too few
    assert widths(ever_faster, each=GIB, free=9 * GIB) == [2, 6]  # 2 taken, 7 free
    assert widths(ever_faster, each=GIB, free=4 * GIB) == [2, 3]  # 2 taken, 2 free
    assert widths(ever_faster, each=GIB, free=3 * GIB) == [2]  # 2 taken, 1 free


def test_it_ends_at_the_most() -> None:
    assert widths({2: 1.0, 7: 0.7}, most=7) == [2, 7]
    assert widths({2: 1.0, 7: 1.2}, most=7) == [2, 7, 2]  # undone, to what was there
    assert widths({2: 1.0, 8: 0.8, 9: 0.8}, most=9) == [2, 8, 9]
    assert Room(None, 4, lambda: 0, lambda: GIB, most=3).slots == 3
    assert Room(9, 4, lambda: 0, lambda: GIB, most=3).slots == 9  # who says how many gets them


def test_it_begins_with_a_slot_a_lane() -> None:
    assert Room(None, 4, lambda: 0, lambda: GIB).slots == 4


def test_what_the_user_says_stays() -> None:
    room = Room(3, 1, lambda: 0, lambda: GIB)
    assert room.decided
    assert room.slots == 3


def test_it_never_grows_beyond_a_limit() -> None:
    room = Room(None, 8, lambda: 0, lambda: GIB)
    room.limit(3)
    assert room.decided
    assert room.slots == 3
    room.limit(0)
    assert room.slots == 1


def test_the_memory_of_this_machine_is_known() -> None:
    room = Room.on(torch.device("cpu"), None, 2)
    assert room._free() > 2**20
    assert room._used() > 2**20
