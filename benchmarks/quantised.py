"""What a base in 4 or 8 bits saves in memory and costs in time, with one slot and with several.

All stacks lie in one process, and their steps take turns on batches of the same lengths: compared are steps
of one round. Wall seconds, and those of the processor, which other programs on the machine disturb less.
Memory is that of the weights, without the second, packed copy of a base in bf16 on a processor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import common

PLAIN = "plain"


@dataclass
class Side:
    """A base in one way, with so many slots in its stack. Seconds: a slot and step, in turn."""

    mode: str
    stack: Any
    slots: list[Any]
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def step(self, device: str) -> None:
        """One step of all slots, timed."""
        wall, processor = time.perf_counter(), time.process_time()
        self.stack.step(self.slots, lambda event: None)
        common.wait_for(device)
        self.wall.append((time.perf_counter() - wall) / len(self.slots))
        self.processor.append((time.process_time() - processor) / len(self.slots))


def open_sides(options: argparse.Namespace) -> list[Side]:
    """A stack for every way and number of slots."""
    sides = []
    for mode in options.modes:
        for count in options.slots:
            settings = common.settings_of(options, range(1, count + 1))
            chosen = settings.model_copy(update={"quantize": None if mode == PLAIN else mode})
            _, stack, slots = common.lora_stack(chosen)
            sides.append(Side(mode, stack, slots))
    return sides


def megabytes(stack: Any, linear: bool) -> float:
    """What the base's weights take, in MB (10^6 bytes). linear: those of its frozen linear layers alone."""
    from torch import nn

    from tunestack.bases.quantised import QuantisedLinear

    total = 0
    for name, module in stack.host.model.named_modules():
        if linear and (not isinstance(module, nn.Linear) or name.startswith(stack.host.head)):
            continue
        own = list(module.parameters(recurse=False))
        total += (
            module.stored_bytes()
            if isinstance(module, QuantisedLinear)
            else sum(one.numel() * one.element_size() for one in own)
        )
    return total / 1e6


def ratios(ours: list[float], theirs: list[float]) -> str:
    """How many times as long, round by round: median (lower-upper quartile)."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    """Measure and print the tables."""
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--slots", type=common.numbers, default=[1, 8], help="slots, with commas")
    parser.add_argument("--modes", type=lambda text: text.split(","), default=[PLAIN, "nf4", "int8"])
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    sides = open_sides(options)
    for turn in range(options.rounds + 1):
        for side in sides:
            side.step(options.device)
            if turn == 0:  # kernels are chosen, memory is taken
                side.wall, side.processor = [], []
    plain = {len(side.slots): side for side in sides if side.mode == options.modes[0]}
    alone = {side.mode: side for side in sides if len(side.slots) == options.slots[0]}
    memory, rows = [], []
    for side in sides:
        base, single = plain[len(side.slots)], alone[side.mode]
        rows.append(
            [
                side.mode,
                str(len(side.slots)),
                f"{statistics.median(side.processor) * 1e3:.0f}",
                ratios(side.processor, base.processor),
                ratios(side.wall, base.wall),
                ratios(side.processor, single.processor),
            ]
        )
        if side is single:
            whole, linear = megabytes(side.stack, False), megabytes(side.stack, True)
            shares = [whole / megabytes(base.stack, False), linear / megabytes(base.stack, True)]
            memory.append(
                [side.mode, f"{whole:.1f}", f"{shares[0]:.2f}", f"{linear:.1f}", f"{shares[1]:.2f}"]
            )
    first, dtype = options.modes[0], str(sides[0].stack.work.base.dtype).removeprefix("torch.")
    print(f"{options.base} computing in {dtype}, {options.rounds} rounds, {options.threads} threads\n")
    common.print_table(["base", "weights, MB", f"of {first}", "linear layers, MB", f"of {first}"], memory)
    print()
    header = ["base", "slots", "processor ms a slot and step", f"times {first}", f"wall, times {first}"]
    common.print_table([*header, f"times {options.slots[0]} slot"], rows)


if __name__ == "__main__":
    main()
