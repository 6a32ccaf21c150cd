"""What a run ran on: versions and hardware, for the reader who wants to repeat it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("tunestack", "torch", "transformers", "peft", "datasets", "scikit-learn", "numpy")


def environment() -> dict[str, str]:
    """Names and values: Python, packages, processor, cores, accelerator."""
    import torch

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["processor"] = _processor()
    found["cores"] = str(os.cpu_count())
    found["threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        found["accelerator"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
