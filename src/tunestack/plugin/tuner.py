"""Bottleneck adapters as a method of PEFT: its layer and its tuner, which PEFT knows once this is imported.

That happens while `peft` is being imported, often from inside another import: what is imported here at the
top must not import tunestack's bases, which import PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunestack.errors import Problem, Problems, UserError
from tunestack.methods.bottleneck_config import NAME, PEFT_TYPE, BottleneckConfig, initialise


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear layer with bottleneck adapters: y + the sum of s A(.) over the active ones.

    A reads y (series), the layer's input x (parallel, `target_modules`), or the input of the layer that the
    sublayer begins with, which a hook there keeps (parallel).
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_scaling")
    other_param_names = ("bottleneck_dropout", "configs")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_scaling = nn.ParameterDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.configs: dict[str, BottleneckConfig] = {}
        self.merged_adapters: list[str] = []
        self._hook: Any = None
        self._kept: Tensor | None = None

    def update_layer(self, name: str, config: BottleneckConfig, inlet: nn.Module | None) -> None:
        """Add an adapter. inlet: the linear layer that gets the sublayer's input, where A reads that."""
        in_features, out_features = _linear_size(self.get_base_layer())
        if config.placement == "series":
            in_features = out_features
        elif inlet is not None:
            in_features = _linear_size(inlet)[0]
            if self._hook is None:
                self._hook = inlet.register_forward_pre_hook(self._keep)
        size = config.size(in_features)
        if size < 1:
            fix = f"At this layer at most {in_features}; or give bottleneck_size."
            raise UserError(Problem("reduction_factor", "a smaller one", str(config.reduction_factor), fix))
        down, up = nn.Linear(in_features, size), nn.Linear(size, out_features)
        initialise(config, down.weight, up.weight)
        nn.init.zeros_(down.bias)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[name], self.bottleneck_up[name] = down, up
        self.bottleneck_dropout[name] = nn.Dropout(config.adapter_dropout)
        if config.scaling == "learned":
            self.bottleneck_scaling[name] = nn.Parameter(torch.ones(1))
        self.configs[name] = config
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x [rows, tokens, in] to [rows, tokens, out]."""
        kept, self._kept = self._kept, None
        y: Tensor = self.base_layer(x, *args, **kwargs)
        result = y
        for name in self._present():
            config = self.configs[name]
            source = y if config.placement == "series" else x if config.target_modules is not None else kept
            assert source is not None, "a sublayer ended that had not begun"
            result = result + self._adapter(name, source).to(y.dtype)
        return result

    def _adapter(self, name: str, x: Tensor) -> Tensor:
        """s dropout(up(f(down(x))))."""
        config = self.configs[name]
        down: Any = self.bottleneck_down[name]
        up = self.bottleneck_up[name]
        scaling = self.bottleneck_scaling[name] if config.scaling == "learned" else config.scaling
        x = self._cast_input_dtype(x, down.weight.dtype)
        adapted: Tensor = self.bottleneck_dropout[name](up(config.activation()(down(x)))) * scaling
        return adapted

    def _present(self) -> list[str]:
        """The adapters that act."""
        return (
            [] if self.disable_adapters else [name for name in self.active_adapters if name in self.configs]
        )

    def _keep(self, inlet: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Keep the sublayer's input until it ends; in a recomputed block (checkpointing) once more."""
        configs = [self.configs[name] for name in self._present()]
        if any(config.placement == "parallel" and config.target_modules is None for config in configs):
            self._kept = args[0]

    def close(self) -> None:
        """Leave no hook behind."""
        if self._hook is not None:
            self._hook.remove()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Raise UserError: there is no weight that it could become."""
        _refuse_merging()

    def unmerge(self) -> None:
        """Nothing was merged."""


class BottleneckModel(BaseTuner):
    """PEFT's tuner: finds the places in the model and puts a `BottleneckLayer` at each."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        return peft_config

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Find where the sublayers begin and end."""
        from tunestack.methods.sublayers import sublayers

        self._inlets: dict[str, str] = {}
        if peft_config.target_modules is None:
            problems = Problems()
            names = _linears(model, peft_config.modules_to_save or [])
            model_type = self.get_model_config(model).get("model_type", "")
            where = peft_config.placement
            self._inlets = sublayers(model_type, names, peft_config.after or (), where, problems)
            problems.raise_if_any()

    def _check_target_module_exists(  # type: ignore[override]
        self, peft_config: Any, key: str
    ) -> Any:
        if peft_config.target_modules is None:
            return key in self._inlets
        return check_target_module_exists(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        inlet = self._inlets.get(current_key)
        begin = None if inlet is None else self.model.get_submodule(inlet)
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config, begin)
            return
        layer = BottleneckLayer(target)
        layer.update_layer(adapter_name, peft_config, begin)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Raise UserError for adapters by row (`adapter_names`), which PEFT would drop and go on."""
        if kwargs.get("adapter_names") is not None:
            raise UserError(
                Problem(
                    "adapter_names",
                    "no adapters by row: those of bottleneck adapters act on the whole batch",
                    repr(kwargs["adapter_names"]),
                    "Choose one with set_adapter, and call the model once for each.",
                )
            )
        yield

    def _check_merge_allowed(self) -> None:
        _refuse_merging()

    def unload(self) -> nn.Module:
        """The base as it was."""
        for module in self.model.modules():
            if isinstance(module, BottleneckLayer):
                module.close()
        return super().unload()


def _refuse_merging() -> None:
    raise UserError(
        Problem(
            "merge",
            "an adapter that is one matrix",
            "a bottleneck adapter, which has a non-linearity inside",
            "Keep it beside the base (save_pretrained), or train LoRA, which merges.",
        )
    )


def _linears(model: nn.Module, saved_whole: list[str]) -> list[str]:
    """Full names of the linear layers, those of earlier adapters and those that train whole left out."""
    modules = dict(model.named_modules())
    inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, BaseTunerLayer))
    return [
        name
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, Conv1D, BaseTunerLayer))
        and not name.startswith(inside)
        and not any(f".{entry}." in f".{name}." for entry in saved_whole)
    ]


def _linear_size(module: nn.Module) -> tuple[int, int]:
    """(features in, features out). Raises UserError for a module that is no linear layer."""
    module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    if not isinstance(module, nn.Linear):
        kind = type(module).__name__
        raise UserError(Problem("target_modules", "linear layers", kind, "Name linear layers only."))
    return module.in_features, module.out_features


if PEFT_TYPE not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name=NAME.lower(), config_cls=BottleneckConfig, model_cls=BottleneckModel)
