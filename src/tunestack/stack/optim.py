"""The optimisers of a slot, and their state as tensors for a checkpoint."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunestack.bases.quantised import INSTALL
from tunestack.errors import Problem, UserError

_PREFIX = "optimizer."
_PLAIN = "adamw_torch"


def make_optimizer(name: str, groups: list[dict[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """AdamW by its name in transformers. groups: parameters in fp32, each with its own rate and decay."""
    if name == _PLAIN:
        return torch.optim.AdamW(groups, fused=device.type in ("cpu", "cuda"))
    from bitsandbytes.optim.adamw import AdamW8bit

    eight: torch.optim.Optimizer = AdamW8bit(groups)
    return eight


def check_optimizer(name: str, device: torch.device) -> None:
    """Raise UserError for an optimiser that does not work here."""
    if name == _PLAIN:
        return
    fix = f"or use optim: {_PLAIN}."
    if importlib.util.find_spec("bitsandbytes") is None:
        found = "it is not installed"
        raise UserError(Problem("optim", f"bitsandbytes, for {name}", found, f"{INSTALL}; {fix}"))
    if (reason := _why_not(name, device)) is not None:
        expected = f"a device on which bitsandbytes has {name}"
        raise UserError(Problem("optim", expected, f"{device}: {reason}", f"Choose another device; {fix}"))


@functools.cache
def _why_not(name: str, device: torch.device) -> str | None:
    """Why no step can be made there; None where one can. Small tensors keep states in fp32: this is none."""
    try:
        weight = nn.Parameter(torch.ones(8192, device=device))
        weight.grad = torch.ones_like(weight)
        make_optimizer(name, [{"params": [weight], "lr": 1e-3}], device).step()
        moved = float(weight.mean())
    except (RuntimeError, NotImplementedError, AttributeError, OSError, ValueError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None if moved < 1 else "a step moves nothing"


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All of its state, by names that `load_state` reads."""
    tensors = {}
    for index, group in enumerate(optimizer.param_groups):
        for name, value in optimizer.state.get(group["params"][0], {}).items():
            # bitsandbytes counts steps in an int, and its tables are one tensor for all groups.
            own = value.clone() if name.startswith("qmap") else torch.as_tensor(value)
            tensors[f"{_PREFIX}{index}.{name}"] = own
    return tensors


def load_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take up what `state_tensors` gave, from among the tensors of a checkpoint."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if key.startswith(_PREFIX):
            index, _, name = key.removeprefix(_PREFIX).partition(".")
            value = int(tensor) if tensor.dtype == torch.int64 else tensor
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
