"""Frozen linear layers on a processor: weights laid out for oneDNN once, not anew in every call.

For a few hundred tokens that layout, and adding the bias in a pass of its own, cost as much as the product.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOST_BYTES = 2**30
"""Weights beyond this are left as they are: the layout is a second copy of them."""
_ROWS = 256
"""About how many tokens a batch has; oneDNN chooses the layout for it."""


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b in bf16, x [..., features], with a gradient for x alone.

    What it gives is no view, so that whoever writes into it costs autograd no copies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        rows = x.reshape(-1, x.shape[-1])
        flat = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
        result: Tensor = torch.ops.aten._unsafe_view(flat, (*x.shape[:-1], flat.shape[-1]))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0] @ ctx.weight, None, None, None


def _forward(packed: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    result: Tensor = _FrozenLinear.apply(x, packed, weight, bias)  # type: ignore[no-untyped-call]
    return result


def pack_linears(model: nn.Module, head: Iterable[str]) -> None:
    """Let the frozen linear layers of a bf16 model on a processor use packed weights, where PyTorch has them.

    head: modules that are trained, and left alone. Weights and names of the model stay what they are.
    """
    trained = tuple(head)
    linears = [
        module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and not any(f"{name}.".startswith(f"{own}.") for own in trained)
        and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu"
    ]
    size = sum(module.weight.numel() * module.weight.element_size() for module in linears)
    if not linears or size > MOST_BYTES or not _available():
        return
    for module in linears:
        weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        module.forward = functools.partial(_forward, packed, weight, bias)  # type: ignore[method-assign]


def _available() -> bool:
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    found = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
    return found and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
