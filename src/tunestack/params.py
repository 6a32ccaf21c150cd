"""How many parameters a method trains and a model then has, counted without any weights."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tunestack.config import BaseConfig
from tunestack.errors import Problem, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunestack.methods.sites import Host


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one trial's model, each counted once.

    by_part: what makes up `total`, frozen and trained. by_module: what makes up `trainable`, by module,
    with `*` in place of layer numbers.
    """

    trainable: int
    total: int
    by_part: dict[str, int]
    by_module: dict[str, int]


def count_parameters(
    base: BaseConfig | Path | str, method: str, fields: Mapping[str, Any], num_labels: int = 2
) -> ParameterCount:
    """Count what `method` with its own `fields` trains on `base`, for sequence classification.

    base: settings, anything that `BaseConfig.model` takes, or the path of a config (`*.json`). Only the
    config is read; the model is built on the meta device. total: the model as it is loaded, its own
    (replaced) head included, and what the trial adds.
    Raises UserError for an unknown method, wrong fields, a base without a config, or a method that starts
    from the weights themselves.
    """
    from tunestack.bases.base import head_modules
    from tunestack.methods.registry import find_method
    from tunestack.methods.sites import Host

    family = find_method(method)
    model = _skeleton(_settings(base), num_labels)
    head = head_modules(model, model.config.model_type)
    config = family.make_config(fields, model.config.model_type, head)
    family.check(config, model)
    host = Host(model, head)
    try:
        trained = family.attach(config, host, slot=0, seed=0).parameters
    except NotImplementedError as error:
        if "meta" not in str(error):
            raise
        expected = "a method that can be counted without weights"
        found = "one that computes what it trains from the base's weights"
        fix = "Choose another method, or read the count in the results of `tunestack compare`."
        raise UserError(Problem(family.name, expected, found, fix)) from error
    trained_ids = {id(parameter) for parameter in trained.values()}
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if id(parameter) not in trained_ids:
            part = "head as loaded (frozen)" if _inside(name, head) else "base (frozen)"
            parts[part] += parameter.numel()
    modules: Counter[str] = Counter()
    for name, parameter in trained.items():
        module = _module(name, host)
        parts["head (trained)" if _inside(module, head) else f"{family.name} (trained)"] += parameter.numel()
        modules[re.sub(r"\.\d+(?=\.|$)", ".*", module)] += parameter.numel()
    return ParameterCount(modules.total(), parts.total(), dict(parts), dict(modules))


def render_params(count: ParameterCount) -> Table:
    """A table for rich: the parts, all of them together, and the modules that are trained."""
    table = Table(show_footer=False)
    table.add_column("Parameters")
    table.add_column("Count", justify="right")
    table.add_column("Share", justify="right")

    def row(name: str, number: int, style: str = "") -> None:
        table.add_row(name, f"{number:,}", f"{number / count.total:.4%}", style=style)

    for part, number in count.by_part.items():
        row(part, number)
    table.add_section()
    row("all", count.total, "bold")
    row("trained", count.trainable, "bold")
    table.add_section()
    for module, number in count.by_module.items():
        row(f"  {module}", number)
    return table


def _settings(base: BaseConfig | Path | str) -> BaseConfig:
    from tunestack.bases.sources import RANDOM

    if isinstance(base, BaseConfig):
        return base
    model = str(base)
    is_config = model.endswith(".json") and not model.startswith(RANDOM)
    return BaseConfig(model=RANDOM + model if is_config else model)


def _skeleton(settings: BaseConfig, num_labels: int) -> PreTrainedModel:
    """The classification model on the meta device."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from tunestack.bases.sources import resolve

    config = resolve(settings).load_config(settings)
    config.num_labels = num_labels
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(
                config, trust_remote_code=settings.trust_remote_code
            )
    except ValueError as error:
        raise UserError(
            Problem(
                settings.model,
                "a model that transformers can classify sequences with",
                f"model_type {config.model_type!r}",
                "Choose another base.",
            )
        ) from error
    return model


def _module(name: str, host: Host) -> str:
    """The module that a trained parameter belongs to; the name itself where it belongs to none."""
    from tunestack.methods.base import PEFT_PREFIX, PROMPT_PREFIX

    for prefix in (PEFT_PREFIX, PROMPT_PREFIX):
        module = name.removeprefix(prefix)
        while module and module not in host.modules:
            module = module.rpartition(".")[0]
        if module:
            return module
    return name.removeprefix(PEFT_PREFIX)


def _inside(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
