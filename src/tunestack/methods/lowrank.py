"""Low-rank updates of linear layers, slot by slot: what LoRA and its variants place in the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tunestack.methods.sites import Member, Part, keep_mask


class LoraPart(Part):
    """One slot's update of one linear: y + s B A dropout(x), with A [r, in], B [out, r], both fp32.

    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora` (Kalajdzievski, 2023).
    """

    def __init__(self, in_features: int, out_features: int, r: int, scaling: float, p: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(r, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, r))
        self.scaling = scaling
        self.p = p

    def initialise(self, kind: bool | str, seed: int) -> None:
        """As PEFT: A kaiming_uniform(a=sqrt 5) or, "gaussian", N(0, 1/r); B zero, with False random."""
        generator = torch.Generator().manual_seed(seed)
        if kind == "gaussian":
            nn.init.normal_(self.A, std=1 / self.A.shape[0], generator=generator)
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)
        if kind is False:
            nn.init.kaiming_uniform_(self.B, a=math.sqrt(5), generator=generator)

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Add every slot's update to its own rows of y, in place."""
        weights = [weight for member in members for weight in (member.part.A, member.part.B)]
        updated: Tensor = _AddUpdates.apply(y.contiguous(), x.contiguous(), members, *weights)  # type: ignore[no-untyped-call]
        return updated


class _AddUpdates(torch.autograd.Function):
    """Adds s B A x to y slot by slot; saves x once and never forms an update of y's size.

    y comes first: a linear's output is a view, and autograd takes the first input of a function that writes
    into a view to be that view.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, members: Sequence[Member], *weights: Tensor) -> Tensor:
        ctx.members = members
        ctx.whole = sum(m.span.stop - m.span.start for m in members) == x.shape[0]
        saved: list[Tensor] = [x]
        for index, member in enumerate(members):
            a, b = (weight.to(x.dtype) for weight in weights[2 * index : 2 * index + 2])
            rows, keep = _input(x, member)
            low = torch.mm(rows, a.t())
            _rows(y, member).addmm_(low, b.t(), alpha=member.part.scaling)
            saved += [a, b, low] + ([] if keep is None else [keep])
        ctx.save_for_backward(*saved)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, *saved = ctx.saved_tensors
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[1]:
            grad_x = torch.empty_like(x) if ctx.whole else torch.zeros_like(x)
        tensors = iter(saved)
        grad_weights: list[Tensor | None] = []
        for member in ctx.members:
            a, b, low = next(tensors), next(tensors), next(tensors)
            keep = next(tensors) if drops(member) else None
            rows = _rows(x, member) if keep is None else _rows(x, member) * keep
            upper = _rows(grad, member)
            scaling = member.part.scaling
            grad_low = torch.mm(upper, b).mul_(scaling)
            grad_weights += [torch.mm(grad_low.t(), rows), torch.mm(upper.t(), low).mul_(scaling)]
            if grad_x is not None:
                torch.mm(grad_low, a, out=_rows(grad_x, member))
                if keep is not None:
                    _rows(grad_x, member).mul_(keep)
        return (grad, grad_x, None, *grad_weights)


def drops(member: Member) -> bool:
    """Whether the member's input passes through dropout."""
    return member.span.noise is not None and member.part.p > 0


def _rows(x: Tensor, member: Member) -> Tensor:
    """The member's rows as a matrix [rows x tokens, features]; a view of a contiguous x."""
    return x[member.span.start : member.span.stop].view(-1, x.shape[-1])


def _input(x: Tensor, member: Member) -> tuple[Tensor, Tensor | None]:
    """The member's rows after dropout, and the mask (0 or 1 / (1 - p)) or None."""
    rows = _rows(x, member)
    if not drops(member):
        return rows, None
    own = x[member.span.start : member.span.stop]
    keep = keep_mask(own, member.part.p, member.span, member.site).view(rows.shape)
    keep.mul_(1 / (1 - member.part.p))
    return rows * keep, keep
