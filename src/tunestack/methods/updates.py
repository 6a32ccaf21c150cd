"""The products of low-rank updates: all slots' updates of one linear layer, and their way back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunestack.methods.sites import Member, Span


@dataclass(frozen=True)
class Term:
    """One slot's update of a linear layer, or of the part of its output that begins at a column."""

    member: Member
    column: int


class _Group:
    """Slots that lie side by side with as many rows each, so that they share every product.

    terms: by column of the output, each slot's update, None where it has none. ranks: by column, the largest
    one; the others are padded with zeros. scaling: s of every term, dropout's 1 / (1 - p) included, one
    number or [slots, 1, ranks].
    """

    def __init__(self, spans: Sequence[Span], terms: Mapping[int, Sequence[Member | None]]) -> None:
        self.start, self.stop, self.slots = spans[0].start, spans[-1].stop, len(spans)
        self.terms = {column: own for column, own in terms.items() if any(own)}
        self.ranks = [max(member.part.A.shape[0] for member in own if member) for own in self.terms.values()]
        factors = [[_factor(member) for member in own] for own in self.terms.values()]
        found = {factor for own in factors for factor in own if factor is not None}
        self.scaling: float | Tensor = found.pop()
        if found:
            table = torch.tensor([[factor or 0.0 for factor in own] for own in factors])  # [columns, slots]
            self.scaling = table.t().repeat_interleave(torch.tensor(self.ranks), dim=1).unsqueeze(1)

    def members(self) -> Iterator[Member]:
        """All updates, in the order of their weights."""
        for own in self.terms.values():
            yield from (member for member in own if member is not None)

    def rows(self, x: Tensor) -> Tensor:
        """The group's rows as matrices [slots, rows x tokens, features]; a view of a contiguous x."""
        return x[self.start : self.stop].view(self.slots, -1, x.shape[-1])

    def scaled(self, low: Tensor) -> Tensor:
        """[slots, rows, ranks] times the scalings, in place."""
        return low.mul_(self.scaling if isinstance(self.scaling, float) else self.scaling.to(low.device))

    def parted(self, grad_a: Tensor, grad_b: Tensor) -> Iterator[Tensor]:
        """Each weight's own part of the gradients [slots, ranks, in] and [slots, ranks, out]."""
        done = 0
        for (column, own), ranks in zip(self.terms.items(), self.ranks, strict=True):
            for place, member in enumerate(own):
                if member is not None:
                    r, width = member.part.A.shape[0], member.part.B.shape[0]
                    yield grad_a[place, done : done + r]
                    yield grad_b[place, done : done + r, column : column + width].t()
            done += ranks


def _factor(member: Member | None) -> float | None:
    if member is None:
        return None
    part = member.part
    return float(part.scaling / (1 - part.p) if drops(member) else part.scaling)


class Updates:
    """The low-rank updates s B A x that all slots add to the output y of one linear layer, x after dropout.

    Never forms an update of y's size. The layer may stand for several that read the same input, their outputs
    side by side: a term's column says where its own begins. width: of the whole output. weights: every A and
    B, in the order of the gradients that `back` returns.
    """

    def __init__(self, terms: Sequence[Term], width: int) -> None:
        self.width = width
        self.groups = _groups(terms)
        self.weights = [
            weight
            for group in self.groups
            for member in group.members()
            for weight in (member.part.A, member.part.B)
        ]

    def room(self, x: Tensor) -> Tensor:
        """For `back` to write x's gradient into: zeros where it writes none."""
        whole = sum(group.stop - group.start for group in self.groups) == x.shape[0]
        return torch.empty_like(x) if whole else torch.zeros_like(x)

    def add(self, y: Tensor, x: Tensor) -> list[Tensor]:
        """Add the updates to y, in place; returns what `back` wants to have again."""
        kept: list[Tensor] = []
        for group in self.groups:
            a, b = self._factors(group, x)
            low = group.scaled(torch.bmm(group.rows(x), a.transpose(1, 2)))
            group.rows(y).baddbmm_(low, b)
            kept += [a, b, low]
        return kept

    def back(
        self, grad: Tensor, x: Tensor, kept: Sequence[Tensor], grad_x: Tensor | None, beta: int
    ) -> list[Tensor]:
        """The weights' gradients, given y's; `grad_x` becomes beta times itself and what x gets, in the rows
        of those that have updates.
        """
        found: list[Tensor] = []
        factors = iter(kept)
        for group in self.groups:
            a, b, low = (next(factors) for _ in range(3))
            upper = group.rows(grad)
            grad_low = group.scaled(torch.bmm(upper, b.transpose(1, 2)))
            grad_a = torch.bmm(grad_low.transpose(1, 2), group.rows(x))
            grad_b = torch.bmm(low.transpose(1, 2), upper)
            found += group.parted(grad_a.float(), grad_b.float())  # weights are fp32
            if grad_x is not None:
                group.rows(grad_x).baddbmm_(grad_low, a, beta=beta)
        return found

    def _factors(self, group: _Group, x: Tensor) -> tuple[Tensor, Tensor]:
        """A [slots, ranks, in] and B transposed [slots, ranks, out] of all terms, ranks after ranks."""
        terms = group.terms.values()
        every_a = [_stacked([None if one is None else one.part.A for one in own]) for own in terms]
        every_b = [_stacked([None if one is None else one.part.B.t() for one in own]) for own in terms]
        if len(every_a) == 1 and every_b[0].shape[2] == self.width:
            return every_a[0].to(x.dtype), every_b[0].to(x.dtype).contiguous()
        a = torch.cat(every_a, 1).to(x.dtype)
        b, done = x.new_zeros(group.slots, a.shape[1], self.width), 0
        for column, own in zip(group.terms, every_b, strict=True):
            b[:, done : done + own.shape[1], column : column + own.shape[2]] = own
            done += own.shape[1]
        return a, b


def drops(member: Member) -> bool:
    """Whether the member's input passes through dropout."""
    return member.span.noise is not None and member.part.p > 0


def _groups(terms: Sequence[Term]) -> list[_Group]:
    """The terms' slots in runs that lie side by side with as many rows each."""
    spans = {term.member.span.start: term.member.span for term in terms}
    runs: list[list[Span]] = []
    for start in sorted(spans):
        span, last = spans[start], runs[-1][-1] if runs else None
        joins = last and last.stop == span.start and last.stop - last.start == span.stop - span.start
        if joins:
            runs[-1].append(span)
        else:
            runs.append([span])
    by_place = {(term.column, term.member.span.start): term.member for term in terms}
    if len(by_place) < len(terms):
        raise ValueError("a slot has two low-rank updates in one place")
    columns = sorted({term.column for term in terms})
    return [
        _Group(run, {column: [by_place.get((column, span.start)) for span in run] for column in columns})
        for run in runs
    ]


def _stacked(weights: Sequence[Tensor | None]) -> Tensor:
    """Matrices [r, features] of different r as one [members, largest r, features], zeros below and where
    there is none.
    """
    there = [weight for weight in weights if weight is not None]
    if len(weights) == 1:
        return there[0].unsqueeze(0)
    most = max(weight.shape[0] for weight in there)
    if len(there) == len(weights) and all(weight.shape[0] == most for weight in there):
        return torch.stack(there)
    stacked = there[0].new_zeros(len(weights), most, there[0].shape[1])
    for place, weight in zip(stacked, weights, strict=True):
        if weight is not None:
            place[: weight.shape[0]] = weight
    return stacked
