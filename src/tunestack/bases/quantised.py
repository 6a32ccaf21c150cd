"""Bases whose frozen linear layers are kept in 4 or 8 bits, and computed with in the base's own dtype.

NF4 with double quantisation (QLoRA, Dettmers et al., 2023, arXiv:2305.14314), or 8 bits with a scale a row
(LLM.int8(), arXiv:2208.07339; of that the weights alone: what it does to activations depends on the whole
batch). bitsandbytes stores and dequantises; the product is ours. Its own layers repack their weights in place
on some processors, which a later training step does not survive.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from tunestack.config import BaseConfig
from tunestack.errors import Problem, Problems, UserError, did_you_mean

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

_BLOCK = 64
"""So many weights in a row share a scale: bitsandbytes' own number for 4 bits."""
_LEAVE_OUT = "leave quantize out for this base."
INSTALL = "Run: pip install 'tunestack[quant]'"


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is stored in 4 or 8 bits.

    weight: as it is stored. state: what the 4 bits mean, by bitsandbytes; or the scale of each row of 8 bits,
    [out, 1] in the dtype that is computed in.
    """

    def __init__(
        self, sizes: tuple[int, int], weight: Tensor, state: QuantState | Tensor, bias: nn.Parameter | None
    ) -> None:
        super().__init__(*sizes, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias  # type: ignore[assignment]  # registered as None by nn.Linear
        self.state = state

    def dequantised(self) -> Tensor:
        """The weight that it computes with, [out, in]."""
        if isinstance(self.state, Tensor):
            return self.weight.to(self.state.dtype).mul_(self.state)
        from bitsandbytes.functional import dequantize_4bit

        weight: Tensor = dequantize_4bit(self.weight, self.state)
        return weight.view(self.out_features, self.in_features)

    def plain(self) -> nn.Linear:
        """An ordinary layer that computes the same."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(self.dequantised(), requires_grad=False)
        layer.bias = copy.deepcopy(self.bias)
        return layer

    def stored_bytes(self) -> int:
        """What weight, scales and bias take in memory."""
        state = self.state
        scales = (
            [state]
            if isinstance(state, Tensor)
            else [state.absmax, state.offset, state.state2 and state.state2.absmax]
        )
        tensors = [*self.parameters(), *(one for one in scales if one is not None)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b, with a gradient for x alone."""
        result: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    """x W^T + b for x [..., features]; W is dequantised in both passes and kept in none.

    What it gives is no view, so that whoever writes into it costs autograd no copies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        flat = nn.functional.linear(x.reshape(-1, x.shape[-1]), layer.dequantised(), layer.bias)
        result: Tensor = torch.ops.aten._unsafe_view(flat, (*x.shape[:-1], flat.shape[-1]))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.dequantised(), None


def check_quantised(settings: BaseConfig, config: PretrainedConfig, device: torch.device) -> None:
    """Raise UserError where this base cannot be quantised as it should, or its weights are so already."""
    if getattr(config, "quantization_config", None) is not None:
        fix = "Name the checkpoint that it was made from, with quantize: nf4 or int8."
        raise UserError(Problem(settings.model, "a checkpoint with plain weights", "a quantised one", fix))
    if settings.quantize is None:
        return
    where = f"quantize of {settings.model}"
    if importlib.util.find_spec("bitsandbytes") is None:
        expected = f"bitsandbytes, which quantises to {settings.quantize}"
        raise UserError(Problem(where, expected, "it is not installed", f"{INSTALL}; or {_LEAVE_OUT}"))
    if (reason := _why_not(settings.quantize, device)) is not None:
        expected = f"a device on which bitsandbytes can do {settings.quantize}"
        fix = f"Choose another with device_map; or {_LEAVE_OUT}"
        raise UserError(Problem(where, expected, f"{device}: {reason}", fix))


@functools.cache
def _why_not(quantize: str, device: torch.device) -> str | None:
    """Why a weight cannot be stored and read back there; None where it can."""
    import bitsandbytes.functional as bnb

    weight = torch.linspace(-1, 1, 64 * 64).view(64, 64)
    try:
        there = weight.to(device, torch.float16)
        if quantize == "nf4":
            stored, state = bnb.quantize_4bit(there, quant_type="nf4", compress_statistics=True)
            back = bnb.dequantize_4bit(stored, state)
        else:
            stored, scale, _ = bnb.int8_vectorwise_quant(there)
            back = stored.float() * scale[:, None] / 127
        far = float((back.cpu().float() - weight).abs().max())
    except (RuntimeError, NotImplementedError, AttributeError, OSError, ValueError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None if far < 0.2 else f"a weight of 1 comes back wrong by {far:.2g}"


def load_options(
    settings: BaseConfig, dtype: torch.dtype, device: torch.device, plain: Iterable[str]
) -> dict[str, Any]:
    """What `from_pretrained` needs beside, to quantise while it loads. plain: modules that are left alone."""
    nf4 = settings.quantize == "nf4"
    skipped = [*plain, *map(_pattern, settings.skip_modules or ())]
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=nf4,
            load_in_8bit=not nf4,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=settings.double_quant is not False,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=skipped,
        ),
        "device_map": {"": str(device)},
    }


def kept_plain(model: PreTrainedModel, head: Iterable[str]) -> set[str]:
    """What is quantised in no case: the head, which trials train whole; what shares weights with embeddings;
    layers that transformers calls too sensitive (T5's `wo`).
    """
    return {*head, *get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())}


def check_skipped(settings: BaseConfig, model: PreTrainedModel, head: Iterable[str]) -> None:
    """Raise UserError for `skip_modules` that name nothing that would be quantised.

    model: on any device.
    """
    plain = list(kept_plain(model, head))
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and should_convert_module(name, plain)
    ]
    parts = {part for name in names for part in name.split(".") if not part.isdigit()}
    problems = Problems()
    for wanted in settings.skip_modules or ():
        if not any(re.match(rf"{_pattern(wanted)}(\.|$)", name) for name in names):
            where = f"skip_modules of {settings.model}"
            expected = "a linear layer that would be quantised, or what has some inside"
            problems.add(where, expected=expected, found=repr(wanted), fix=did_you_mean(wanted, parts))
    problems.raise_if_any()


def _pattern(skipped: str) -> str:
    """For a module of this name, or with this end of a name, as transformers matches what it leaves out."""
    return rf"(?:.*\.)?{re.escape(skipped)}"


def stored_layers(model: nn.Module) -> dict[str, Any]:
    """bitsandbytes' layers in a model that transformers has loaded, by name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (Linear4bit, Linear8bitLt))
    }


def take_over(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Put our layers, which compute in this dtype, in place of bitsandbytes'."""
    for name, module in stored_layers(model).items():
        if (scale := getattr(module.weight, "SCB", None)) is None:
            state = module.weight.quant_state
            # Dequantised as blocks of 64: for rows of, say, 96, its AVX-512 kernel takes the wrong scales.
            numbers = module.in_features * module.out_features
            blocks = (1, numbers) if numbers % _BLOCK else (numbers // _BLOCK, _BLOCK)
            state.dtype, state.shape = dtype, torch.Size(blocks)
        else:
            state = (scale / 127).to(dtype).unsqueeze(1)
        sizes = (module.in_features, module.out_features)
        model.set_submodule(name, QuantisedLinear(sizes, module.weight.data, state, module.bias))


def plain_weight(module: nn.Module) -> Tensor:
    """The weight that a linear layer of the base computes with, [out, in]; dequantised anew in every call."""
    if isinstance(module, QuantisedLinear):
        return module.dequantised()
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    return weight.t() if isinstance(module, Conv1D) else weight


def dequantised_inside(module: nn.Module) -> nn.Module:
    """The module with ordinary layers in place of quantised ones, itself one of them or not."""
    if isinstance(module, QuantisedLinear):
        return module.plain()
    for name, inner in list(module.named_modules()):
        if isinstance(inner, QuantisedLinear):
            module.set_submodule(name, inner.plain())
    return module


@torch.no_grad()
def copy_values(quantised: nn.Module, plain: nn.Module) -> None:
    """Give an ordinary model the values that a quantised one of the same architecture computes with."""
    layers = {
        name: module for name, module in quantised.named_modules() if isinstance(module, QuantisedLinear)
    }
    values = dict(quantised.named_parameters())
    for name, parameter in plain.named_parameters():
        owner, _, kind = name.rpartition(".")
        if owner in layers and kind == "weight":
            weight = layers[owner].dequantised()
            turned = isinstance(plain.get_submodule(owner), Conv1D)
            parameter.copy_(weight.t() if turned else weight)
        else:
            parameter.copy_(values[name])


def parameters_in(model: nn.Module) -> int:
    """How many numbers the model's parameters stand for, however they are stored."""
    count = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, QuantisedLinear):
            count += module.in_features * module.out_features - module.weight.numel()
    return count
