"""BitFit: the base's biases alone (Ben Zaken et al., 2021, arXiv:2106.10199)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from peft import LoraConfig, PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from tunestack.bases.base import head_modules
from tunestack.errors import Problems
from tunestack.methods.base import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PEFT_PREFIX,
    Adapter,
    Method,
    attach_copies,
    check_whole_modules,
)
from tunestack.methods.rowwise import place_biases, with_bias
from tunestack.methods.sites import Host
from tunestack.methods.targets import matching_names, saved_whole


@dataclass
class BitFitConfig(PeftConfig):
    """Which biases are trained.

    target_modules: names of modules whose biases are trained, by PEFT's rules; None: all of the base's. The
    paper's smaller variant is that of the query and the FFN's first layer: on BERT `["query",
    "intermediate.dense"]`. modules_to_save: modules that are trained and saved whole.
    """

    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None


class BitFit(Method):
    """Every slot trains biases of its own, those of normalisation layers included.

    It is saved as PEFT's LoRA with `bias="all"` and no targets, which loads and merges there as it is. The
    learning rate was the best of 0.0005, 0.002 and 0.005 for MiniLM on 2,500 disaster tweets, two epochs, one
    seed (F1 0.774, 0.770, 0.764).
    """

    name = "bitfit"
    summary = "biases"
    merges = True
    config_class = BitFitConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 5e-4}

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse a base without biases, and targets that match none."""
        head = head_modules(model, model.config.model_type)
        problems = Problems()
        check_whole_modules(config, model, head, self.name, problems)
        self._targets(config, model, head, problems)
        problems.raise_if_any()

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place the slot's own biases and its own head."""
        adapter = Adapter()
        place_biases(host, slot, self._targets(config, host.model, host.head), adapter)
        attach_copies(config, host, slot, seed, adapter)
        return adapter

    def save(self, folder: Path, config: PeftConfig, adapter: Adapter, host: Host, base: str) -> None:
        """Write what plain PEFT reads: LoRA that targets nothing, with biases."""
        assert isinstance(config, BitFitConfig)
        lora = LoraConfig(
            task_type=config.task_type,
            target_modules=DUMMY_TARGET_MODULES,
            bias="all",
            modules_to_save=config.modules_to_save,
        )
        super().save(folder, lora, adapter, host, base)

    def read_config(self, folder: Path) -> PeftConfig:
        """The config that `save` wrote: its targets are the modules whose biases were saved."""
        fields = json.loads((folder / ADAPTER_CONFIG).read_text())
        whole = fields["modules_to_save"] or []
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            names = [name.removeprefix(PEFT_PREFIX) for name in file.keys()]  # noqa: SIM118
        biases = [name.removesuffix(".bias") for name in names if name.endswith(".bias")]
        return BitFitConfig(
            base_model_name_or_path=fields["base_model_name_or_path"],
            task_type=fields["task_type"],
            inference_mode=True,
            target_modules=[name for name in biases if not saved_whole(name, whole)],
            modules_to_save=whole,
        )

    def _targets(
        self, config: Any, model: nn.Module, head: Iterable[str], problems: Problems | None = None
    ) -> list[str]:
        whole = [*head, *(config.modules_to_save or ())]
        names = [name for name in with_bias(model) if not saved_whole(name, whole)]
        if names and config.target_modules is None:
            return names
        if names:
            return matching_names(config, names, self.name, problems, "modules with a bias")
        collected = Problems() if problems is None else problems
        collected.add(
            self.name,
            expected="a base whose layers have biases",
            found="none outside the head",
            fix="Use layernorm, ia3 or lora on this base.",
        )
        if problems is None:
            collected.raise_if_any()
        return []
