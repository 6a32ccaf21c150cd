"""Low-rank updates of linear layers, slot by slot: what LoRA and its variants place in the base."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from tunestack.methods.sites import Member, Part, draw_mask, given


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
        rows = _dropped(x, members).contiguous()
        updated: Tensor = _AddUpdates.apply(y.contiguous(), rows, members, *weights)  # type: ignore[no-untyped-call]
        return updated


class _AddUpdates(torch.autograd.Function):
    """Adds s B A x to y slot by slot, x after dropout; never forms an update of y's size.

    Slots that lie side by side with as many rows each share every product, ranks padded with zeros. y comes
    first: a linear's output is a view, and autograd takes the first input of a function that writes into a
    view to be that view.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, members: Sequence[Member], *weights: Tensor) -> Tensor:
        ctx.groups = _groups(members)
        ctx.whole = sum(m.span.stop - m.span.start for m in members) == x.shape[0]
        pairs = iter(zip(weights[::2], weights[1::2], strict=True))
        saved: list[Tensor] = []
        for group in ctx.groups:
            own = [next(pairs) for _ in group]
            a = _stacked([a for a, _ in own]).to(x.dtype)
            b = _stacked([b.t() for _, b in own]).mul_(_scalings(group, a.device)).to(x.dtype)
            low = torch.bmm(_rows(x, group), a.transpose(1, 2))
            _rows(y, group).baddbmm_(low, b)
            saved += [a, b, low]
        ctx.save_for_backward(x, *saved)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, *others = ctx.saved_tensors
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[1]:
            grad_x = torch.empty_like(x) if ctx.whole else torch.zeros_like(x)
        tensors = iter(others)
        grad_weights: list[Tensor | None] = []
        for group in ctx.groups:
            a, b, low = (next(tensors) for _ in range(3))
            upper = _rows(grad, group)
            grad_low = torch.bmm(upper, b.transpose(1, 2))
            grad_a = torch.bmm(grad_low.transpose(1, 2), _rows(x, group))
            grad_b = torch.bmm(low.transpose(1, 2), upper).mul_(_scalings(group, low.device))
            for member, its_a, its_b in zip(group, grad_a, grad_b, strict=True):
                r = member.part.A.shape[0]
                grad_weights += [its_a[:r], its_b[:r].t()]
            if grad_x is not None:
                torch.bmm(grad_low, a, out=_rows(grad_x, group))
        return (grad, grad_x, None, *grad_weights)


def drops(member: Member) -> bool:
    """Whether the member's input passes through dropout."""
    return member.span.noise is not None and member.part.p > 0


def _groups(members: Sequence[Member]) -> list[list[Member]]:
    """The members in runs that lie side by side with as many rows each."""
    groups: list[list[Member]] = []
    for member in members:
        span, last = member.span, groups[-1][-1].span if groups else None
        joins = last and last.stop == span.start and last.stop - last.start == span.stop - span.start
        if joins:
            groups[-1].append(member)
        else:
            groups.append([member])
    return groups


def _rows(x: Tensor, group: Sequence[Member]) -> Tensor:
    """The group's rows as matrices [members, rows x tokens, features]; a view of a contiguous x."""
    return x[group[0].span.start : group[-1].span.stop].view(len(group), -1, x.shape[-1])


def _stacked(weights: Sequence[Tensor]) -> Tensor:
    """Matrices [r, features] of different r as one [members, largest r, features], zeros below."""
    most = max(weight.shape[0] for weight in weights)
    if all(weight.shape[0] == most for weight in weights):
        return torch.stack(list(weights))
    stacked = weights[0].new_zeros(len(weights), most, weights[0].shape[1])
    for place, weight in zip(stacked, weights, strict=True):
        place[: weight.shape[0]] = weight
    return stacked


def _scalings(group: Sequence[Member], device: torch.device) -> Tensor | float:
    """The members' scalings, dropout's 1 / (1 - p) included, to multiply [members, r, features] with."""
    values = [
        member.part.scaling / (1 - member.part.p) if drops(member) else member.part.scaling
        for member in group
    ]
    return values[0] if len(set(values)) == 1 else torch.tensor(values, device=device).view(-1, 1, 1)


@dataclass
class _Seen:
    """What dropout made of a module's input, for the modules after it that read the same one.

    first: the site where each slot met it. begun: the same within each of the modules that hold sites. whose:
    whom `dropped` was made for.
    """

    first: dict[int, str] = field(default_factory=dict)
    begun: dict[tuple[int, str], str] = field(default_factory=dict)
    whose: list[tuple[object, ...]] = field(default_factory=list)
    dropped: Tensor | None = None


class _Latest(threading.local):
    """The input that a thread's dropout worked on last; what it made of those before is let go of, for an
    input may live on for long where forwards are computed again.
    """

    seen: weakref.ref[_Seen] | None = None

    def turn_to(self, seen: _Seen) -> None:
        """Go on with this one."""
        before = self.seen() if self.seen else None
        if before is not None and before is not seen:
            before.dropped = None
        self.seen = weakref.ref(seen)


_seen: MutableMapping[Tensor, _Seen] = WeakTensorKeyDictionary()
_latest = _Latest()


def _dropped(x: Tensor, members: Sequence[Member]) -> Tensor:
    """x after the members' dropout, without their factors 1 / (1 - p).

    Of modules that read the same input (query and value) a slot has one mask, as in the merged layers of
    LoRA's authors: that of the first one.
    """
    wet = [member for member in members if drops(member)]
    if not wet:
        return x
    own = given(x)
    seen = _seen.setdefault(own, _Seen())
    _latest.turn_to(seen)
    holder = wet[0].site.rpartition(".")[0]
    sites = [seen.first.setdefault(member.span.slot, member.site) for member in wet]
    whose: list[tuple[object, ...]] = [
        (x is own, x._version, holder, site, m.span, m.part.p) for site, m in zip(sites, wet, strict=True)
    ]
    # Each holder's first site begins anew: a block that is computed again must save as many tensors, whatever
    # another block, or thread, has left.
    begun = [seen.begun.setdefault((member.span.slot, holder), member.site) for member in wet]
    begins = any(site == member.site for site, member in zip(begun, wet, strict=True))
    if begins or seen.dropped is None or seen.whose != whose:
        keep, done = torch.empty_like(x), 0
        for site, member in zip(sites, wet, strict=True):
            keep[done : member.span.start] = 1
            done = member.span.stop
            draw_mask(keep[member.span.start : done], member.part.p, member.span, site)
        keep[done:] = 1
        seen.whose, seen.dropped = whose, x * keep
    return seen.dropped
