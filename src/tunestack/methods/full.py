"""Full fine-tuning: every weight of the model is trained, on a model of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from peft import PeftConfig
from transformers import PreTrainedModel

from tunestack.methods.base import Adapter, Method, decays, initialise_fresh
from tunestack.methods.sites import Host, stable_hash


@dataclass
class FullConfig(PeftConfig):
    """Full fine-tuning has no fields of its own beyond what is trained whole anyway."""

    modules_to_save: list[str] | None = None


class Full(Method):
    """All weights in fp32, a head drawn from the seed; saved as a plain transformers model."""

    name = "full"
    summary = "every weight"
    stacks = False
    saves_whole_model = True
    config_class = FullConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 2e-5, "base_dropout": True}

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Full fine-tuning works on every model."""

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Make every weight trainable; heads without pretrained weights are drawn from the seed."""
        adapter = Adapter()
        for name, module in host.model.named_modules():
            if name in host.fresh:
                initialise_fresh(host, name, module, stable_hash(seed, name))
        for name, parameter in host.model.named_parameters():
            parameter.requires_grad_(True)
            adapter.add(name, parameter, decay=decays(name, parameter))
        return adapter

    def save(self, folder: Path, config: PeftConfig, adapter: Adapter, host: Host, base: str) -> None:
        """Write a plain transformers folder: `config.json` and `model.safetensors`."""
        host.model.save_pretrained(str(folder))  # type: ignore[operator]
