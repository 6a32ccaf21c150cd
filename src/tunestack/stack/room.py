"""How many slots a stack has, where the user does not say: as many as memory holds and speed gains by."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

import psutil
import torch

FIRST = 2
"""Slots to begin with, or one a lane where there are more lanes."""
GROWTH = 4
"""How many times as many are tried next: of twice as many, a busy machine hides what they gain."""
LOSS = 0.05
"""The share by which more slots may make a slot's step slower, and more yet are tried."""
ALIKE = 0.03
"""The share that makes no difference. Of numbers alike the largest is best: trials that are trained together
are evaluated together, and end together.
"""
SPARE = 1.5
"""How many times as much memory must be free as more slots would take."""


def release_memory() -> None:
    """Free models that nobody uses any more, and give what they had on an accelerator to other processes."""
    gc.collect()  # a model and the sites around its modules refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Room:
    """The number of slots: what the user says, or one that grows as long as that pays.

    slots: at present. decided: whether it grows no more. That is so where a slot's step gets slower than by
    `LOSS`, at `most`, where memory does not hold half as many again, or did not hold them. It is then the
    largest that is about as fast as the fastest.

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

    @property
    def fewer(self) -> int:
        """The number before this one; 0 at first."""
        return next(reversed(self._each), 0)

    def note(self, time: float) -> None:
        """Learn from a step of all slots: have more of them, or decide. time: of a slot's step, of what
        it takes with the number before; at first, anything.
        """
        before = list(self._each.values())
        each = self._each[self.slots] = before[-1] * time if before else 1.0
        fastest = min(self._each.values())
        more = min(GROWTH * self.slots, self.most, self.slots + self._fitting())
        if each > fastest * (1 + LOSS) or more < min(1.5 * self.slots, self.most) or more == self.slots:
            self.decided = True
            self.slots = max(count for count, found in self._each.items() if found <= fastest * (1 + ALIKE))
        else:
            self.slots = more

    def _fitting(self) -> int:
        """How many more slots there is memory for."""
        taken = self._used() - self._empty
        return int(self._free() * self.slots / (SPARE * taken)) if taken > 0 else sys.maxsize

    def limit(self, slots: int) -> None:
        """Never have more slots than so many: there is no more memory, or no more trials."""
        self.slots = max(1, min(self.slots, slots))
        self.decided = True
