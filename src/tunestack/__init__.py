"""tunestack: which model and which fine-tuning method should I ship?"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from tunestack.plugin.hook import when_imported

if TYPE_CHECKING:
    from tunestack.api import compare, compare_suite, describe, load, sweep
    from tunestack.errors import UserError
    from tunestack.methods.bottleneck_config import BottleneckConfig

__all__ = ["BottleneckConfig", "UserError", "compare", "compare_suite", "describe", "load", "sweep"]

_HOMES = {
    "BottleneckConfig": "methods.bottleneck_config",
    "compare": "api",
    "compare_suite": "api",
    "describe": "api",
    "load": "api",
    "sweep": "api",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    """Import the interface on first use, so that `import tunestack` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


# PEFT imports bitsandbytes, which then warns that it found no optional kernels to download.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
when_imported("peft", lambda: importlib.import_module("tunestack.plugin.tuner"))
