"""The products of low-rank updates s B A x: all slots' updates of one linear layer, and their way back.

Never forms an update of the output's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tunestack.kernels import lowrank
from tunestack.methods.sites import Member


class Updates(Protocol):
    """The updates that all slots add to the output y of one linear layer, given its input x after dropout.

    weights: every A and B, in the order of the gradients that `back` returns.
    """

    weights: Sequence[Tensor]

    def add(self, y: Tensor, x: Tensor) -> list[Tensor]:
        """Add the updates to y, in place; returns what `back` wants to have again."""

    def back(self, grad: Tensor, x: Tensor, kept: Sequence[Tensor], grad_x: Tensor | None) -> list[Tensor]:
        """The weights' gradients, given y's; what x gets is added to `grad_x`."""


def updates(members: Sequence[Member], y: Tensor, x: Tensor) -> Updates:
    """Whatever is fastest for inputs and outputs like x and y."""
    if lowrank.covers(x, y):
        return Compiled([Term(member, 0) for member in members], math.prod(x.shape[1:-1]))
    return _Batched(members)


def drops(member: Member) -> bool:
    """Whether the member's input passes through dropout."""
    return member.span.noise is not None and member.part.p > 0


def _scaling(member: Member) -> float:
    """s, with dropout's 1 / (1 - p)."""
    part = member.part
    return float(part.scaling / (1 - part.p) if drops(member) else part.scaling)


@dataclass(frozen=True)
class Term:
    """One slot's update of a linear layer, or of the part of its output that begins at a column: the layer
    may stand for several that read the same input.
    """

    member: Member
    column: int


class Compiled:
    """`Updates` as compiled functions.

    tokens: how many rows of x each of the members' has. Raises ValueError where a slot has two updates in one
    place.
    """

    def __init__(self, terms: Sequence[Term], tokens: int = 1) -> None:
        by_place = {(term.member.span.start, term.column): term.member for term in terms}
        if len(by_place) < len(terms):
            raise ValueError("a slot has two low-rank updates in one place")
        found = []
        for start, column in sorted(by_place):
            member = by_place[start, column]
            part, stop = member.part, member.span.stop
            own = lowrank.Update(start * tokens, stop * tokens, column, part.A, part.B, _scaling(member))
            found.append(own)
        self.weights: Sequence[Tensor] = [weight for one in found for weight in (one.A, one.B)]
        self._updates = lowrank.Updates(found)

    def add(self, y: Tensor, x: Tensor) -> list[Tensor]:
        """As `Updates` says."""
        return [self._updates.add(y, x)]

    def back(
        self,
        grad: Tensor,
        x: Tensor,
        kept: Sequence[Tensor],
        grad_x: Tensor | None,
        keep: Tensor | None = None,
    ) -> list[Tensor]:
        """As `Updates` says. keep: what x gets is multiplied with, before it is added."""
        return self._updates.back(grad, x, kept[0], grad_x, keep)


class _Batched:
    """`Updates` as products over slots that lie side by side with as many rows each, ranks padded with
    zeros.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.groups = _groups(members)
        self.weights: Sequence[Tensor] = [
            weight for member in members for weight in (member.part.A, member.part.B)
        ]

    def add(self, y: Tensor, x: Tensor) -> list[Tensor]:
        """As `Updates` says."""
        kept: list[Tensor] = []
        for group in self.groups:
            a = _stacked([member.part.A for member in group]).to(x.dtype)
            b = _stacked([member.part.B.t() for member in group])
            b = b.mul_(_scalings(group, b.device)).to(x.dtype)
            low = torch.bmm(_rows(x, group), a.transpose(1, 2))
            _rows(y, group).baddbmm_(low, b)
            kept += [a, b, low]
        return kept

    def back(self, grad: Tensor, x: Tensor, kept: Sequence[Tensor], grad_x: Tensor | None) -> list[Tensor]:
        """As `Updates` says."""
        found: list[Tensor] = []
        factors = iter(kept)
        for group in self.groups:
            a, b, low = (next(factors) for _ in range(3))
            upper = _rows(grad, group)
            grad_low = torch.bmm(upper, b.transpose(1, 2))
            grad_a = torch.bmm(grad_low.transpose(1, 2), _rows(x, group)).float()  # weights are fp32
            grad_b = torch.bmm(low.transpose(1, 2), upper).float().mul_(_scalings(group, low.device))
            for member, its_a, its_b in zip(group, grad_a, grad_b, strict=True):
                r = member.part.A.shape[0]
                found += [its_a[:r], its_b[:r].t()]
            if grad_x is not None:
                _rows(grad_x, group).baddbmm_(grad_low, a)
        return found


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
    """The members' scalings, to multiply [members, r, features] with."""
    values = [_scaling(member) for member in group]
    return values[0] if len(set(values)) == 1 else torch.tensor(values, device=device).view(-1, 1, 1)
