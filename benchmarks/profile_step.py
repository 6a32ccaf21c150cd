"""Where the time of tunestack's training step goes: torch.profiler's table over some steps, and wall time."""

from __future__ import annotations

import time

import common
import torch
from torch.profiler import ProfilerActivity, profile


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
    each = seconds / min(options.steps, slots[0].steps_per_epoch)
    print(f"{1000 * each:.2f} ms a step of {options.slots} slots without the profiler (fastest of 3)")


if __name__ == "__main__":
    main()
