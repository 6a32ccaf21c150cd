"""Which modules a config's `target_modules` means, by PEFT's own rules."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Set
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
    linears = linear_names(model, tuple(fields.modules_to_save or ()))
    if fields.target_modules == ALL_LINEAR:
        writes: Any = getattr(model, "get_output_embeddings", lambda: None)()  # PEFT leaves it out too
        every = copy.copy(fields)
        every.target_modules = {name for name in linears if model.get_submodule(name) is not writes}
        return [name for name in linears if check_target_module_exists(every, name)]
    return matching_names(config, linears, where, problems, "linear layers", f"; or {ALL_LINEAR}")


def matching_names(
    config: PeftConfig,
    names: list[str],
    where: str,
    problems: Problems | None,
    kind: str,
    also: str = "",
) -> list[str]:
    """Those of `names` that the config's `target_modules` matches, in their order.

    kind: what the names are of. also: what else a user may write. Problems as `target_names` has them.
    """
    fields: Any = config
    collected = Problems() if problems is None else problems
    suffixes = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in names})
    wanted = fields.target_modules
    chosen: list[str] = []
    if not wanted:
        collected.add(
            f"{where}.target_modules",
            expected=f"names of {kind} (this architecture has no default)",
            found="none given",
            fix=f"Choose from: {', '.join(suffixes)}{also}.",
        )
    else:
        chosen = [name for name in names if check_target_module_exists(config, name)]
        for target in [wanted] if isinstance(wanted, str) else sorted(wanted):
            hit = chosen if isinstance(wanted, str) else _ending(chosen, target)
            there = _ending(names, target)
            if there and chosen and getattr(fields, "exclude_modules", None):
                continue  # excluded; others are not
            layers = [] if hit else _layers(fields, there)
            if layers:
                collected.add(
                    f"{where}.layers_to_transform",
                    expected=f"layers that the base has: {', '.join(map(str, layers))}",
                    found=repr(fields.layers_to_transform),
                    fix="Choose from these, counted from 0; or leave it out.",
                )
            elif not hit:
                collected.add(
                    f"{where}.target_modules",
                    expected=f"names that match {kind} of the base",
                    found=f"{target!r}, which matches none",
                    fix=_mended(wanted, {*suffixes, *(name.rpartition(".")[2] for name in suffixes)}, target),
                )
    if problems is None:
        collected.raise_if_any()
    return chosen


def _mended(wanted: object, known: Set[str], target: str) -> str:
    """What to write in place of a target. A text is a pattern for whole names, with all that comes before."""
    if isinstance(wanted, str) and wanted in known:
        return f"A text is a pattern for whole names; for one module's name write a list: [{wanted}]."
    return did_you_mean(target, known)


def _layers(config: Any, names: list[str]) -> list[int]:
    """The layers in which these are, by PEFT's way of counting; none where the config asks for no layers, or
    for one of these.
    """
    wanted = getattr(config, "layers_to_transform", None)
    if wanted is None or wanted == []:
        return []
    probe = copy.copy(config)
    found = []
    for layer in sorted({int(number) for name in names for number in re.findall(r"\.(\d+)\.", name)}):
        probe.layers_to_transform = [layer]
        if any(check_target_module_exists(probe, name) for name in names):
            found.append(layer)
    asked = {wanted} if isinstance(wanted, int) else set(wanted)
    return [] if asked & set(found) else found


def _ending(names: list[str], target: str) -> list[str]:
    return [name for name in names if name == target or name.endswith(f".{target}")]


def _inside(name: str, modules: tuple[str, ...]) -> bool:
    return any(f".{module}." in f".{name}." for module in modules)


def saved_whole(name: str, entries: Iterable[str]) -> bool:
    """Whether a module is what `modules_to_save` means (its name ends so, as in PEFT), or inside that."""
    parts = name.split(".")
    outer = [".".join(parts[: count + 1]) for count in range(len(parts))]
    return any(path.endswith(entry) for path in outer for entry in entries)
