"""LoRA: low-rank updates of linear layers (Hu et al., 2021, arXiv:2106.09685), and its variants.

rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732) by `use_rslora`, DoRA by `use_dora`, LoRA+ (Hayou et al., 2024,
arXiv:2402.12354) by `loraplus_lr_ratio` in the training settings.
"""

from __future__ import annotations

import math
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from transformers import PreTrainedModel

from tunestack.bases.base import head_modules
from tunestack.bases.layout import default_targets
from tunestack.errors import Problems
from tunestack.methods.base import (
    PEFT_PREFIX,
    Adapter,
    Method,
    attach_copies,
    check_whole_modules,
    whole_modules,
)
from tunestack.methods.dora import DoraPart
from tunestack.methods.lowrank import LoraPart
from tunestack.methods.rowwise import place_biases, with_bias
from tunestack.methods.sites import Host, stable_hash
from tunestack.methods.targets import linear_size, target_names

_SUPPORTED = {
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "use_dora",
    "modules_to_save",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "peft_type",
    "peft_version",
    "auto_mapping",
    "revision",
    "runtime_config",
}


class Lora(Method):
    """LoRA with `peft.LoraConfig`; W0 x + (lora_alpha / r) B A x.

    The learning rate is the training settings' own: on MiniLM and 2,500 disaster tweets, two epochs, one
    seed, 0.0001, 0.0003 and 0.0005 ended at F1 0.779, 0.777 and 0.779 (DoRA with the last one at 0.779).
    """

    name = "lora"
    summary = "low-rank updates of linear layers"
    merges = True
    has_fast = True
    config_class = LoraConfig

    def defaults(self, model_type: str) -> dict[str, Any]:
        """r 8 on query and value (Hu et al.), alpha 16, as the articles that compare LoRA use them."""
        return {"r": 8, "lora_alpha": 16, "target_modules": default_targets(model_type)}

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse what this stacked LoRA does not do, an impossible rank, targets that match nothing."""
        assert isinstance(config, LoraConfig)
        problems = Problems()
        standard = LoraConfig()
        for field in set(config.__dataclass_fields__) - _SUPPORTED:
            if getattr(config, field) != getattr(standard, field):
                problems.add(
                    f"lora.{field}",
                    expected=f"its default {getattr(standard, field)!r}",
                    found=repr(getattr(config, field)),
                    fix="This variant is not available here: leave the field out.",
                )
        if config.init_lora_weights not in (True, False, "gaussian"):
            problems.add(
                "lora.init_lora_weights",
                expected="true, false or gaussian",
                found=repr(config.init_lora_weights),
                fix="Choose one of these.",
            )
        if not 0 <= config.lora_dropout < 1:
            problems.add(
                "lora.lora_dropout", expected="0 <= p < 1", found=str(config.lora_dropout), fix="Lower it."
            )
        head = head_modules(model, model.config.model_type)
        check_whole_modules(config, model, head, "lora", problems)
        modules = dict(model.named_modules())
        targets = target_names(config, model, "lora", problems)
        _check_patterns(config, targets, problems)
        for name in targets:
            smallest = min(linear_size(modules[name]))
            rank = _rank(config, name)
            if not 1 <= rank <= smallest:
                problems.add(
                    f"lora.r at {name}",
                    expected=f"1 <= r <= {smallest}, the layer's smaller side",
                    found=str(rank),
                    fix="Choose a rank in that range; 4 to 32 are usual.",
                )
                break
        problems.raise_if_any()

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place A and B at every target, own biases where asked for, and the slot's own head."""
        assert isinstance(config, LoraConfig)
        adapter = Adapter()
        targets = target_names(config, host.model, "lora")
        for name in targets:
            module = host.modules[name]
            rank = _rank(config, name)
            alpha = _for_module(config.alpha_pattern, name, config.lora_alpha)
            scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            size = linear_size(module)
            part = (
                DoraPart(*size, rank, scaling, config.lora_dropout, module)
                if config.use_dora
                else LoraPart(*size, rank, scaling, config.lora_dropout)
            )
            part.initialise(config.init_lora_weights, stable_hash(seed, name))
            part.to(next(module.parameters()).device)
            host.place(name, slot, part)
            adapter.add(f"{PEFT_PREFIX}{name}.lora_A.weight", part.A)
            adapter.add(f"{PEFT_PREFIX}{name}.lora_B.weight", part.B)
            if isinstance(part, DoraPart):
                part.start()
                adapter.add(f"{PEFT_PREFIX}{name}.lora_magnitude_vector", part.m, decay=False)
        if config.bias != "none":
            every = with_bias(host.model, whole_modules(host, config.modules_to_save or ()))
            chosen = [name for name in every if config.bias == "all" or name in targets]
            place_biases(host, slot, chosen, adapter, wrapped=targets)
        attach_copies(config, host, slot, seed, adapter)
        # As in the code of LoRA+'s authors and in PEFT: B, and every vector (biases, norms, magnitudes).
        adapter.fast = {
            name
            for name, parameter in adapter.parameters.items()
            if ".lora_B." in name or parameter.ndim == 1
        }
        return adapter


def _check_patterns(config: LoraConfig, targets: list[str], problems: Problems) -> None:
    """Note patterns for single modules that are the pattern of none."""
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field) or {}:
            if targets and not any(get_pattern_key([pattern], name) == pattern for name in targets):
                problems.add(
                    f"lora.{field}",
                    expected="names of targeted modules, or expressions that match some",
                    found=f"{pattern!r}, which matches none",
                    fix=f"Targeted are, for example, {', '.join(targets[:3])}.",
                )


def _rank(config: LoraConfig, name: str) -> int:
    return _for_module(config.rank_pattern, name, config.r)


def _for_module(pattern: Any, name: str, default: int) -> int:
    """A value that a pattern may set for single modules."""
    values = pattern or {}
    value: int = values.get(get_pattern_key(list(values), name), default)
    return value
