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
from tunestack.methods.updates import Updates, drops, updates


class LoraPart(Part):
    """One slot's update of one linear: y + s B A dropout(x), with A [r, in], B [out, r], both fp32.

    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora` (Kalajdzievski, 2023).
    """

    low_rank = True

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
        rows = _dropped(x, members).contiguous()
        own = updates(members, y, rows)
        updated: Tensor = _AddUpdates.apply(y.contiguous(), rows, own, *own.weights)  # type: ignore[no-untyped-call]
        return updated


class _AddUpdates(torch.autograd.Function):
    """Updates for autograd. y comes first: a linear's output is a view, and autograd takes the first input
    of a function that writes into a view to be that view.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, own: Updates, *weights: Tensor) -> Tensor:
        ctx.updates = own
        ctx.save_for_backward(*weights, x, *own.add(y, x))
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, *kept = ctx.saved_tensors[len(ctx.updates.weights) :]
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grad_weights = ctx.updates.back(grad, x, kept, grad_x)
        return (grad, grad_x, None, *grad_weights)


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
        seen.whose, seen.dropped = (
            whose,
            x * fill_keep(torch.empty_like(x), list(zip(sites, wet, strict=True))),
        )
    return seen.dropped


def fill_keep(keep: Tensor, wet: Sequence[tuple[str, Member]]) -> Tensor:
    """Write ones where an input of keep's shape is kept, zeros where it is dropped: for every member the mask
    of the site given with it. Returns keep.
    """
    done = 0
    for site, member in wet:
        keep[done : member.span.start] = 1
        done = member.span.stop
        draw_mask(keep[member.span.start : done], member.part.p, member.span, site)
    keep[done:] = 1
    return keep
