"""IA3: learned scales of keys, values and inner activations (Liu et al., 2022, arXiv:2205.05638)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import IA3Config, PeftConfig
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tunestack.bases.base import head_modules
from tunestack.bases.layout import LAYOUTS
from tunestack.errors import Problems
from tunestack.methods.base import (
    PEFT_PREFIX,
    Adapter,
    Method,
    attach_copies,
    check_whole_modules,
    put_in_place,
    read_tensors,
)
from tunestack.methods.rowwise import scale_rows
from tunestack.methods.sites import Host, Member, Part, stable_hash
from tunestack.methods.targets import linear_size, target_names

SCALE = ".ia3_l"
"""What PEFT calls a layer's scales."""


class OutputScale(Part):
    """One slot's scales of one linear's output: l * (W x + b), with l [out, 1] as PEFT holds it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(features, 1))

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Scale every slot's own rows of y."""
        return scale_rows(y, [member.part.scale.flatten() - 1 for member in members], members)


class InputScale(Part):
    """One slot's scales of one linear's input: W (l * x) + b, with l [1, in] as PEFT holds it."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, features))

    @classmethod
    def before(cls, x: Tensor, members: Sequence[Member]) -> Tensor:
        """Scale every slot's own rows of x."""
        return scale_rows(x, [member.part.scale.flatten() - 1 for member in members], members)


class Ia3(Method):
    """IA3 with `peft.IA3Config`: outputs are scaled, and the inputs of `feedforward_modules`.

    Scales start at one and do not decay, for one is where they change nothing. The learning rate is that of
    the paper's recipe, T-Few, and was the best of 0.003, 0.01 and 0.03 for MiniLM on 2,500 disaster tweets,
    two epochs, one seed (F1 0.795, 0.784, 0.764).
    """

    name = "ia3"
    summary = "scales of keys, values and inner activations"
    merges = True
    config_class = IA3Config
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 3e-3}

    def defaults(self, model_type: str) -> dict[str, Any]:
        """PEFT's own targets where it knows the architecture, else keys, values and the FFN's last layer."""
        targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(model_type)
        if targets is not None:
            feedforward = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[model_type]
            return {"target_modules": list(targets), "feedforward_modules": list(feedforward)}
        if model_type in LAYOUTS:
            row = LAYOUTS[model_type]
            targets = sorted({row.key, row.value, row.ffn_out})
            return {"target_modules": targets, "feedforward_modules": [row.ffn_out]}
        return {"feedforward_modules": []}

    def make_config(self, fields: Mapping[str, Any], model_type: str, head: list[str]) -> PeftConfig:
        """As every method; with targets of the user's own, the default feedforward modules among them."""
        targets = fields.get("target_modules")
        if isinstance(targets, list) and "feedforward_modules" not in fields:
            usual = self.defaults(model_type)["feedforward_modules"]
            fields = {**fields, "feedforward_modules": [name for name in usual if name in targets]}
        return super().make_config(fields, model_type, head)

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse targets that match nothing."""
        problems = Problems()
        check_whole_modules(config, model, head_modules(model, model.config.model_type), self.name, problems)
        target_names(config, model, self.name, problems)
        problems.raise_if_any()

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place the scales of every target, and the slot's own head."""
        assert isinstance(config, IA3Config)
        adapter = Adapter()
        for name in target_names(config, host.model, self.name):
            module = host.modules[name]
            inputs, outputs = linear_size(module)
            part = InputScale(inputs) if _is_feedforward(config, name) else OutputScale(outputs)
            if not config.init_ia3_weights:
                generator = torch.Generator().manual_seed(stable_hash(seed, name))
                nn.init.normal_(part.scale, generator=generator)
            part.to(next(module.parameters()).device)
            host.place(name, slot, part)
            adapter.add(f"{PEFT_PREFIX}{name}{SCALE}", part.scale, decay=False)
        attach_copies(config, host, slot, seed, adapter)
        return adapter

    @torch.no_grad()
    def merge(self, folder: Path, model: PreTrainedModel) -> PreTrainedModel:
        """As every method: W l and b l. Written out, for PEFT 0.21 fails where a head has several layers."""
        config = self.read_config(folder)
        assert isinstance(config, IA3Config)
        tensors = read_tensors(folder)
        for full in [name for name in tensors if name.endswith(SCALE)]:
            scale, name = tensors.pop(full), full.removeprefix(PEFT_PREFIX).removesuffix(SCALE)
            module: Any = model.get_submodule(name)
            module.weight.copy_(module.weight * (scale.t() if isinstance(module, Conv1D) else scale))
            if module.bias is not None and not _is_feedforward(config, name):
                module.bias.copy_(module.bias * scale.flatten())
        put_in_place(tensors, model)
        return model


def _is_feedforward(config: IA3Config, name: str) -> bool:
    """PEFT's rule: the whole name matches the pattern, or it ends like an entry of the list."""
    wanted = config.feedforward_modules or ()
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return name.endswith(tuple(wanted))
