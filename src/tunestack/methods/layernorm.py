"""LayerNorm tuning: the normalisation layers alone (Zhao et al., 2023, arXiv:2312.11420)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import LNTuningConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from tunestack.bases.base import head_modules
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
from tunestack.methods.sites import Copy, Host, Member, replace_rows
from tunestack.methods.targets import matching_names, saved_whole

OWN = ".ln_tuning_layers"
"""What PEFT calls a layer's copy."""


class NormCopy(Copy):
    """One slot's own copy of a normalisation layer, weight (and bias) [features].

    PyTorch's layers are fused: each slot calls its own. Others (RMSNorm, written in Python by each
    architecture) multiply by their weight, so one call with a weight for every row serves all slots.
    """

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Every slot's rows, normalised and with its own weight."""
        first = members[0].part
        if len(members) == 1 or isinstance(first.module, (nn.LayerNorm, nn.RMSNorm)):
            return super().after(x, y, members)
        sizes = [member.span.stop - member.span.start for member in members]
        rows = x
        if sum(sizes) < len(x):
            rows = torch.cat([x[member.span.start : member.span.stop] for member in members])
        weights = {
            name: torch.cat(
                [
                    parameter.expand(size, *[1] * (x.ndim - 2), -1)
                    for size, parameter in zip(
                        sizes, (member.part.module.get_parameter(name) for member in members), strict=True
                    )
                ]
            )
            for name, _ in first.module.named_parameters()
        }
        out = functional_call(first.module, weights, (rows.float(),)).to(first.dtype)
        return replace_rows(y, out.split(sizes), members)


class LayerNorm(Method):
    """Normalisation layers with `peft.LNTuningConfig`: each slot trains its own weights (and biases).

    The learning rate was the best of 0.001, 0.003 and 0.01 for MiniLM on 2,500 disaster tweets, two epochs,
    one seed (F1 0.773, 0.783, 0.739).
    """

    name = "layernorm"
    summary = "normalisation layers"
    merges = True
    config_class = LNTuningConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 3e-3}

    def defaults(self, model_type: str) -> dict[str, Any]:
        """PEFT's own targets where it knows the architecture; else every normalisation layer of the base."""
        known = TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING.get(model_type)
        return {} if known is None else {"target_modules": list(known)}

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse targets that match no normalisation layer, and bases without any."""
        head = head_modules(model, model.config.model_type)
        problems = Problems()
        check_whole_modules(config, model, head, self.name, problems)
        self._targets(config, model, head, problems)
        problems.raise_if_any()

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place a copy of every target, and the slot's own head."""
        adapter = Adapter()
        for name in self._targets(config, host.model, host.head):
            own = host.pristine(name)
            dtype = next(own.parameters()).dtype
            own = own.to(torch.float32).requires_grad_(True)
            host.place(name, slot, NormCopy(own, dtype))
            for path, parameter in own.named_parameters():
                adapter.add(f"{PEFT_PREFIX}{name}{OWN}.{path}", parameter, decay=False)
        attach_copies(config, host, slot, seed, adapter)
        return adapter

    def save(self, folder: Path, config: PeftConfig, adapter: Adapter, host: Host, base: str) -> None:
        """As every method; layers found by their class are written by name, for PEFT finds none itself."""
        fields: Any = copy.copy(config)
        if fields.target_modules is None:
            fields.target_modules = self._targets(config, host.model, host.head)
        super().save(folder, fields, adapter, host, base)

    def merge(self, folder: Path, model: PreTrainedModel) -> PreTrainedModel:
        """As every method. Written out, for PEFT 0.21 leaves its own wrapper around the head."""
        tensors = read_tensors(folder)
        put_in_place({name.replace(OWN, ""): tensor for name, tensor in tensors.items()}, model)
        return model

    def _targets(
        self, config: Any, model: nn.Module, head: Iterable[str], problems: Problems | None = None
    ) -> list[str]:
        whole = [*head, *(config.modules_to_save or ())]
        norms = [name for name in norm_names(model) if not saved_whole(name, whole)]
        if config.target_modules is None and norms:
            every = copy.copy(config)
            every.target_modules = norms
            if chosen := [name for name in norms if check_target_module_exists(every, name)]:
                return chosen
            collected = Problems() if problems is None else problems
            collected.add(
                f"{self.name}.exclude_modules",
                expected=f"names that leave some of the base's {len(norms)} normalisation layers",
                found=f"{config.exclude_modules!r}, which leaves none",
                fix="Exclude fewer.",
            )
            if problems is None:
                collected.raise_if_any()
            return []
        return matching_names(config, norms, self.name, problems, "normalisation layers")


def norm_names(model: nn.Module) -> list[str]:
    """Full names of the layers that normalise and then multiply by a weight [features]."""
    return [
        name
        for name, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        and not isinstance(module, nn.modules.batchnorm._NormBase)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and module.weight.ndim == 1
    ]
