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
        room.note(room.slots * speed[room.slots])
        if room.slots != found[-1]:
            found.append(room.slots)
    return found


@pytest.mark.parametrize(
    ("speed", "expected"),
    [
        ({2: 1.0, 4: 0.8, 8: 0.7, 16: 0.68}, [2, 4, 8, 16]),  # no longer worth it, but no loss
        ({2: 1.0, 4: 0.8, 8: 0.81}, [2, 4, 8, 4]),  # undone
        ({2: 1.0, 4: 0.8, 8: 0.78, 16: 0.6}, [2, 4, 8]),  # it has paid before, so it is over
        ({2: 1.0, 4: 1.2}, [2, 4, 2]),
        ({2: 1.0, 4: 0.99, 8: 0.9, 16: 0.91}, [2, 4, 8, 16, 8]),  # the first time proves little
        ({2: 1.0, 4: 1.01, 8: 0.99}, [2, 4, 8, 2]),
        ({2: 1.0, 4: 1.04, 8: 0.9, 16: 0.9}, [2, 4, 8, 16, 8]),
        ({2: 1.0, 4: 0.8, 8: 0.77, 16: 0.77}, [2, 4, 8, 16, 8]),  # a few hundredths are worth it
    ],
)
def test_slots_are_doubled_as_long_as_that_pays(speed: dict[int, float], expected: list[int]) -> None:
    assert widths(speed) == expected


def test_memory_ends_it_before_it_is_full() -> None:
    ever_faster = {count: 1 / count for count in (2, 4, 8, 16, 32)}
    assert widths(ever_faster, each=GIB, free=12 * GIB) == [2, 4, 8]  # 4 taken, 8 free: 6 would do
    assert widths(ever_faster, each=GIB, free=9 * GIB) == [2, 4]  # 4 taken, 5 free
    assert widths(ever_faster, each=GIB, free=4 * GIB) == [2]  # 2 taken, 2 free


def test_it_ends_at_the_most() -> None:
    assert widths({2: 1.0, 4: 0.8, 7: 0.7}, most=7) == [2, 4, 7]
    assert widths({2: 1.0, 4: 0.8, 7: 0.9}, most=7) == [2, 4, 7, 4]  # undone, to what was there
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
