"""Frozen linear layers: their products, and on a processor weights laid out for them once, not anew in every
call.

For a few hundred tokens that layout, and adding the bias in a pass of its own, cost as much as the product.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from tunestack.kernels import dense

MOST_BYTES = 2**30
"""Weights beyond this are left as they are: each layout, forward and back, for many rows and on some
processors for few, is one more copy of them.
"""
_ROWS = 256
"""About how many tokens a batch has; oneDNN chooses the layout for it."""
_FEW = 512
"""Tokens up to which several threads are faster with a product of our own, where there is one: oneDNN divides
so few badly, or not at all.
"""


class FrozenWeight:
    """A weight W [out, in] and a bias [out], or none, that never change: x W^T + b, and g W for the way back.

    packs: whether products use copies of W that are laid out for them, each made when it is first asked for.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, packs: bool) -> None:
        self.weight = weight
        self.bias = bias
        self.packs = packs

    @functools.cached_property
    def _forth(self) -> _Packed:
        return _Packed(self.weight)

    @functools.cached_property
    def _back(self) -> _Packed:
        return _Packed(self.weight.t())

    def forward(self, rows: Tensor) -> Tensor:
        """x W^T + b of [rows, in]."""
        if not self.packs:
            return functional.linear(rows, self.weight, self.bias)
        return self._forth.product(rows, self.bias)

    def back(self, grad: Tensor) -> Tensor:
        """What x gets of the output's gradient: g W of [rows, out]."""
        return self._back.product(grad, None) if self.packs else grad @ self.weight


class _Packed:
    """Copies of a weight [out, in] laid out for products with many rows and with few, each made when it is
    first wanted.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._dense = dense.covers(weight)

    @functools.cached_property
    def _many(self) -> Tensor:
        with torch.inference_mode(False):  # training uses it after an evaluation, too
            packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(self._weight.contiguous(), _ROWS)
        return packed

    @functools.cached_property
    def _few(self) -> dense.Laid:
        return dense.Laid(self._weight)

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b of [rows, in]."""
        if self._dense and len(rows) <= _FEW and torch.get_num_threads() > 1:
            return self._few.product(rows.contiguous(), bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._many, bias, "none", [], "")
        return product


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b, x [..., features], with a gradient for x alone.

    What it gives is no view, so that whoever writes into it costs autograd no copies.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight) -> Tensor:
        ctx.weight = weight
        return _shaped(weight.forward(x.reshape(-1, x.shape[-1])), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        grad = grads[0].reshape(-1, grads[0].shape[-1]).contiguous()
        return _shaped(ctx.weight.back(grad), grads[0]), None


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    """[rows, features] with the leading sizes of another tensor."""
    shaped: Tensor = torch.ops.aten._unsafe_view(rows, (*like.shape[:-1], rows.shape[-1]))
    return shaped


_frozen: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the modules whose forwards use them."""


def _forward(weight: FrozenWeight, x: Tensor) -> Tensor:
    result: Tensor = _FrozenLinear.apply(x, weight)  # type: ignore[no-untyped-call]
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
        _frozen[module] = _plain(module)
        _frozen[module].packs = True
        module.forward = functools.partial(_forward, _frozen[module])  # type: ignore[method-assign]


def joined(modules: Sequence[nn.Linear]) -> FrozenWeight:
    """Linear layers that read the same input as one, their outputs side by side; all with a bias, or none.

    A single one shares its packed weight with its module; of several the modules' own weights become views of
    the one matrix.
    """
    if len(modules) == 1:
        own: FrozenWeight = _frozen.get(modules[0]) or _plain(modules[0])
        return own
    packs = all(module in _frozen for module in modules)
    weight = torch.cat([module.weight.detach() for module in modules])
    bias = None if modules[0].bias is None else torch.cat([module.bias.detach() for module in modules])
    parts = weight.split([module.out_features for module in modules])
    for module, part in zip(modules, parts, strict=True):
        module.weight.data = part
        if module in _frozen:
            _frozen[module].weight = part
    return FrozenWeight(weight, bias, packs)


def _plain(module: nn.Linear) -> FrozenWeight:
    bias = None if module.bias is None else module.bias.detach()
    return FrozenWeight(module.weight.detach(), bias, packs=False)


def _available() -> bool:
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    found = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)
    return found and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
