"""Where the time of tunestack's training step goes: torch.profiler's table over some steps, wall time, and
the share of the machine's peak that its matrix products reach.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import common
import torch
from torch.profiler import ProfilerActivity, profile
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from tunestack.stack.slot import Slot
    from tunestack.stack.stack import Stack


def peak_flops(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a large matrix product, the fastest of twenty."""
    size, seconds = 2048, []
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    for _ in range(20):
        started = time.perf_counter()
        left @ right
        common.wait_for(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def needed_flops(stack: Stack, slots: Sequence[Slot], steps: int) -> float:
    """What the products of the blocks' weights take in the first steps of an epoch: two operations a weight
    and token, forward and back to the inputs. Nothing is left out that could be (the first block's way back,
    what the last one does for tokens that nobody reads), nor is attention counted.
    """
    blocks = [one for one in stack.host.modules.values() if isinstance(one, GradientCheckpointingLayer)]
    inside = [module for block in blocks for module in block.modules()]
    weights = sum(module.weight.numel() for module in inside if isinstance(module, torch.nn.Linear))
    tokens = sum(int(slot.lengths[rows].sum()) for slot in slots for rows in slot.batches(0)[:steps])
    return 4.0 * weights * tokens


def main() -> None:
    """Train some steps, first unobserved for the wall time, then the same batches under the profiler."""
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--rows", type=int, default=30, help="of the table")
    parser.add_argument("--shapes", action="store_true", help="a row for every shape of an operator's inputs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _, stack, slots = common.lora_stack(common.settings_of(options, range(1, options.slots + 1)))

    def steps() -> float:
        """Wall seconds of the first steps of an epoch."""
        started = time.perf_counter()
        for position in range(min(options.steps, slots[0].steps_per_epoch)):
            for slot in slots:
                slot.progress.step = position
            stack.step(slots, lambda event: None)
        common.wait_for(options.device)
        return time.perf_counter() - started

    steps()  # allocates, and chooses kernels for every length
    seconds = min(steps() for _ in range(3))
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (options.device != "cpu")]
    with profile(activities=activities, record_shapes=options.shapes) as profiler:
        steps()
    order = "self_cpu_time_total" if options.device == "cpu" else "self_device_time_total"
    averages = profiler.key_averages(group_by_input_shape=options.shapes)
    print(averages.table(sort_by=order, row_limit=options.rows, max_name_column_width=40))
    count = min(options.steps, slots[0].steps_per_epoch)
    print(
        f"{1000 * seconds / count:.2f} ms a step of {options.slots} slots without the profiler (fastest of 3)"
    )
    dtype = stack.work.base.dtype
    peak, needed = peak_flops(dtype, options.device), needed_flops(stack, slots, count)
    share = needed / seconds / peak
    print(f"Products of frozen weights: {needed / 1e12:.2f} TFLOP, {share:.0%} of {peak / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    main()
