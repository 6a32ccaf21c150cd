"""Vectors that scale or shift each slot's own rows, for all slots in one product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunestack.methods.base import PEFT_PREFIX, Adapter
from tunestack.methods.sites import Host, Member, Part


def by_row(vectors: Sequence[Tensor], members: Sequence[Member], like: Tensor) -> Tensor:
    """Each member's vector [features] at its own rows, zeros at the rows of others.

    like: activations [rows, ..., features]. Returns [rows, 1, ..., features] in the vectors' dtype.
    """
    pieces, done = [], 0
    for vector, member in zip(vectors, members, strict=True):
        pieces += [vector.new_zeros(member.span.start - done, len(vector))]
        pieces += [vector.expand(member.span.stop - member.span.start, -1)]
        done = member.span.stop
    pieces += [vectors[0].new_zeros(like.shape[0] - done, len(vectors[0]))]
    return torch.cat(pieces).view(like.shape[0], *[1] * (like.ndim - 2), -1)


def shift_rows(y: Tensor, shifts: Sequence[Tensor], members: Sequence[Member]) -> Tensor:
    """y + shift, each member's own."""
    return y + by_row([shift.to(y.dtype) for shift in shifts], members, y)


def scale_rows(y: Tensor, excesses: Sequence[Tensor], members: Sequence[Member]) -> Tensor:
    """y (1 + excess), each member's own fp32 excess.

    The excess over one is what a base in bf16 multiplies with: a scale near one would lose it to rounding.
    """
    scaled: Tensor = _ScaleRows.apply(y, by_row(excesses, members, y))  # type: ignore[no-untyped-call]
    return scaled


class _ScaleRows(torch.autograd.Function):
    """y + y e with one rounding; the gradient of e is summed over tokens in fp32."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, excess: Tensor) -> Tensor:
        small = excess.to(y.dtype)
        ctx.save_for_backward(y, small)
        return torch.addcmul(y, y, small)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        y, small = ctx.saved_tensors
        (grad,) = grads
        grad_y = torch.addcmul(grad, grad, small) if ctx.needs_input_grad[0] else None
        between = tuple(range(1, y.ndim - 1))
        grad_excess = None
        if ctx.needs_input_grad[1]:
            product = grad * y
            grad_excess = product.float() if not between else product.sum(between, True, dtype=torch.float32)
        return grad_y, grad_excess


class BiasPart(Part):
    """One slot's own bias of a module that adds one to its output: y + (b_slot - b_base)."""

    last = True  # DoRA scales the output without its bias

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().float().clone())
        self.base_bias = bias.detach()

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Shift the members' rows of y."""
        shifts = [member.part.bias - member.part.base_bias.float() for member in members]
        return shift_rows(y, shifts, members)


def with_bias(model: nn.Module, outside: Iterable[str] = ()) -> list[str]:
    """Full names of the modules that add a bias to their output, none of them inside those of `outside`."""
    outer = tuple(f"{name}." for name in outside)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(getattr(module, "bias", None), nn.Parameter) and not f"{name}.".startswith(outer)
    ]


def place_biases(
    host: Host, slot: int, names: Iterable[str], adapter: Adapter, wrapped: Iterable[str] = ()
) -> None:
    """Give the slot its own biases of these modules, `wrapped` ones named as PEFT's layers name them."""
    for name in names:
        part = BiasPart(host.modules[name].bias)
        host.place(name, slot, part)
        inner = ".base_layer.bias" if name in wrapped else ".bias"
        adapter.add(f"{PEFT_PREFIX}{name}{inner}", part.bias, decay=False)
