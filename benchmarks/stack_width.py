"""How much a wider stack saves: the same LoRA trial in 1, 2, 4, ... slots, seconds a trial and memory.

Every measurement is a process of its own; widths alternate within a repeat. What is timed and what peak
memory means is said in train_vs_peft.py.
"""

from __future__ import annotations

import sys

import common
from common import Measurement, Settings


def measure(width: str, settings: Settings) -> Measurement:
    """In a process of its own: train a stack with a slot for every seed."""
    return common.measure_stack(settings)


def main() -> None:
    """Measure and print the table."""
    common.answer_if_measuring(measure)
    parser = common.arguments(__doc__ or "")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--widths", type=common.numbers, default=[1, 2, 4, 8], help="slots, with commas")
    parser.add_argument("--json", help="write all figures to this file")
    options = parser.parse_args()
    runs: dict[str, list[Measurement]] = {str(width): [] for width in options.widths}
    for repeat in range(options.repeats):
        for width in options.widths:
            settings = common.settings_of(options, range(1, width + 1))
            found = common.in_process(__file__, str(width), settings, options.threads)
            runs[str(width)].append(found)
            seconds = found.seconds / width / options.epochs
            print(f"repeat {repeat + 1}, {width} slots: {seconds:.2f} s an epoch, a trial", file=sys.stderr)
    first = next(iter(runs))
    rows = []
    for name, values in runs.items():
        per_trial = [value.seconds / value.trials / options.epochs for value in values]
        gains = [
            (narrow.seconds / narrow.trials) / (wide.seconds / wide.trials)
            for narrow, wide in zip(runs[first], values, strict=True)
        ]
        memory, least = common.megabytes(values), common.megabytes(runs[first])
        more = (memory - least) / max(1, int(name) - int(first))
        rows.append(
            [name, common.spread(per_trial, 2), common.spread(gains, 2), f"{memory:.0f}", f"{more:.0f}"]
        )
    print(common.describe_run(options, runs))
    print(f"Median (smallest-largest) of {options.repeats} repeats.\n")
    header = ["slots", "training seconds an epoch, a trial", f"times faster than {first}", "peak MB"]
    common.print_table([*header, "MB a further slot"], rows)
    if options.json:
        common.write_json(options.json, options, runs)


if __name__ == "__main__":
    main()
