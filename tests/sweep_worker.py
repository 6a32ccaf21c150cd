"""Runs a sweep again and again in processes that are killed after random times, then to its end.

test_sweep.py starts it with the sweep's settings and how many kills; forks share its imports.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback

import torch

from tunestack.search.config import SweepConfig
from tunestack.search.run import run_sweep
from tunestack.settings import validated


def killed(config: SweepConfig, seconds: float) -> bool:
    """Run the sweep in a process of its own for so many seconds; whether it was still at work."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)
            run_sweep(config)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("a sweep failed by itself")
    return os.WIFSIGNALED(status)


def main() -> None:
    """Kill as often as wanted while the sweep is at work, then let it end; prints how often that was."""
    values, kills, longest = json.loads(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    config = validated(SweepConfig, values)
    chance = random.Random(7)
    count = 0
    while count < kills:
        if not killed(config, chance.uniform(0.02, longest)):
            raise SystemExit(f"the sweep was over after {count} kills")
        count += 1
    run_sweep(config)
    print(count)


if __name__ == "__main__":
    main()
