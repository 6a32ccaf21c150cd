"""How many slots a stack has, where the user does not say: as many as memory holds and speed gains by."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import psutil
import torch

FIRST = 2
"""Slots to begin with, or one a lane where there are more lanes."""
REHEARSALS = 3
"""Steps to look at before the next decision, of which the fastest counts: a moment's disturbance does not."""
GAIN, ALIKE = 0.03, 0.02
"""The share by which twice as many slots must make a slot's step faster, and one that makes no difference."""
LOSS = 0.05
"""The share by which the first doubling may make it slower, and the next one is tried."""
SPARE = 1.5
"""How many times as much memory must be free as the slots so far have taken, to have twice as many."""


def release_memory() -> None:
    """Free models that nobody uses any more, and give what they had on an accelerator to other processes."""
    gc.collect()  # a model and the sites around its modules refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Room:
    """The number of slots: what the user says, or one that is doubled as long as that pays.

    slots: at present. decided: whether it grows no more. Doubling ends where a slot's step gets less than
    `GAIN` faster (the first doubling may fail to: it measures little work), at `most`, where memory would not
    hold what the slots so far took once more, or did not hold them. It is then the fewest that are about as
    fast as the fastest.

    used, free: bytes that this process has taken on the device, and that are free there.
    """

    def __init__(
        self,
        slots: int | None,
        lanes: int,
        used: Callable[[], int],
        free: Callable[[], int],
        most: int | None = None,
    ) -> None:
        self.most = most or sys.maxsize
        self.slots = slots or min(max(FIRST, lanes), self.most)
        self.decided = slots is not None
        self._used, self._free = used, free
        self._empty = used()
        self._each: dict[int, float] = {}

    @classmethod
    def on(cls, device: torch.device, slots: int | None, lanes: int, most: int | None = None) -> Room:
        """With the memory of a device."""
        if device.type == "cuda":
            return cls(
                slots,
                lanes,
                lambda: torch.cuda.max_memory_allocated(device),
                lambda: torch.cuda.mem_get_info(device)[0],
                most,
            )
        process = psutil.Process()
        return cls(
            slots,
            lanes,
            lambda: process.memory_info().rss,
            lambda: psutil.virtual_memory().available,
            most,
        )

    def note(self, seconds: float) -> None:
        """Learn from a step of all slots: double them, or decide. seconds: of the whole step."""
        before = list(self._each.values())
        each = self._each[self.slots] = seconds / self.slots
        pays = not before or each <= min(before) * (1 - GAIN)
        may_pay_yet = len(before) == 1 and each <= before[0] * (1 + LOSS)
        full = self._free() < SPARE * (self._used() - self._empty) or self.slots >= self.most
        if full or not (pays or may_pay_yet):
            self.decided = True
            enough = min(self._each.values()) * (1 + ALIKE)
            self.slots = next(slots for slots, found in self._each.items() if found <= enough)
        else:
            self.slots = min(2 * self.slots, self.most)

    def limit(self, slots: int) -> None:
        """Never have more slots than so many: there is no more memory, or no more trials."""
        self.slots = max(1, min(self.slots, slots))
        self.decided = True
