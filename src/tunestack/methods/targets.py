"""Which modules a config's `target_modules` means, by PEFT's own rules."""

from __future__ import annotations

import copy
import re
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunestack.errors import Problems, did_you_mean

ALL_LINEAR = "all-linear"


def linear_size(module: nn.Module) -> tuple[int, int]:
    """(input features, output features) of a linear layer."""
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def linear_names(model: nn.Module, outside: tuple[str, ...] = ()) -> list[str]:
    """Full names of all linear layers that are not inside the modules named in `outside`."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not _inside(name, outside)
    ]


def target_names(
    config: PeftConfig, model: nn.Module, where: str, problems: Problems | None = None
) -> list[str]:
    """Full names of the linear layers that the config targets, in the model's order.

    Notes a problem where nothing matches, or a name in the list does; raises it if `problems` is None.
    """
    fields: Any = config
    collected = Problems() if problems is None else problems
    outside = tuple(fields.modules_to_save or ())
    linears = linear_names(model, outside)
    suffixes = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in linears})
    wanted = fields.target_modules
    names: list[str] = []
    if wanted == ALL_LINEAR:
        every = copy.copy(config)
        every.target_modules = set(linears)  # type: ignore[attr-defined]
        names = [name for name in linears if check_target_module_exists(every, name)]
    elif not wanted:
        collected.add(
            f"{where}.target_modules",
            expected="names of linear layers (this architecture has no default)",
            found="none given",
            fix=f"Choose from: {', '.join(suffixes)}; or {ALL_LINEAR}.",
        )
    else:
        names = [name for name in linears if check_target_module_exists(config, name)]
        for target in [wanted] if isinstance(wanted, str) else sorted(wanted):
            hit = names if isinstance(wanted, str) else _ending(names, target)
            if not hit:
                collected.add(
                    f"{where}.target_modules",
                    expected="names that match linear layers of the base",
                    found=f"{target!r}, which matches none",
                    fix=did_you_mean(target, {*suffixes, *(name.rpartition(".")[2] for name in suffixes)}),
                )
    if problems is None:
        collected.raise_if_any()
    return names


def _ending(names: list[str], target: str) -> list[str]:
    return [name for name in names if name == target or name.endswith(f".{target}")]


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(f".{module}." in f".{name}." for module in modules)
