"""The linear layers of a block that is computed whole: the base's product, and what slots add to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tunestack.bases.blocks import Linear
from tunestack.kernels import rows
from tunestack.methods.lowrank import fill_keep
from tunestack.methods.sites import Member, Span
from tunestack.methods.updates import Compiled, Term, drops

Wet = Sequence[tuple[str, Member]]
"""Slots whose input passes through dropout, in their order, each with the site whose mask it is."""


def wet_of(members: Sequence[Member]) -> Wet:
    """Of all updates of a layer: of the layer's modules that a slot is in the first one's mask is its own."""
    wet: dict[int, Member] = {}
    for member in members:
        if drops(member):
            wet.setdefault(member.span.start, member)
    return [(wet[start].site, wet[start]) for start in sorted(wet)]


def dropped(x: Tensor, wet: Wet, of: tuple[int, Tensor] | None = None) -> tuple[Tensor, Tensor | None]:
    """x after dropout, without its factors 1 / (1 - p), and the mask; x itself and None where nobody drops.

    of: for how many rows dropout is drawn, and which of them x has; None where it has all.
    """
    if not wet:
        return x, None
    keep = fill_keep(x.new_empty(of[0] if of else len(x), x.shape[1]), wet)
    keep = keep.index_select(0, of[1]) if of else keep
    return rows.times(x, keep, torch.empty_like(x)), keep


def updates_of(members: Sequence[Member], linear: Linear | None = None) -> Compiled | None:
    """Their updates of a linear layer's output, or of one that is a single module's; None without members."""
    columns = {} if linear is None else linear.columns
    return Compiled([Term(one, columns.get(one.site, 0)) for one in members]) if members else None


def alike(hidden: Tensor, spans: Sequence[Span]) -> tuple[int, int] | None:
    """How many slots bring the same rows to the model, and how many rows each has; None where they do not.
    Trials of one seed in step do, and in evaluations all of a lane. The last may have more rows after these.

    hidden: [rows, ...]. spans: the slots' rows, in order.
    """
    slots, each = len(spans), spans[0].stop
    if slots == 1 or any(span.start != place * each for place, span in enumerate(spans)):
        return None
    same = hidden[each : slots * each].equal(hidden[: (slots - 1) * each])
    return (slots, each) if same else None


class Layer:
    """A linear layer and what slots add to its output.

    members: the updates, with the rows of its input. drawn: the same with the rows for which dropout is
    drawn; None where these are the same. same: as `alike` says of its input.
    """

    def __init__(
        self,
        linear: Linear,
        members: Sequence[Member],
        drawn: Sequence[Member] | None = None,
        same: tuple[int, int] | None = None,
    ) -> None:
        self.weight = linear.weight
        self._same = same
        self._updates = updates_of(members, linear)
        self._wet = wet_of(members if drawn is None else drawn)

    @property
    def weights(self) -> Sequence[Tensor]:
        """Those of the updates, in the order of the gradients that `back` returns."""
        return self._updates.weights if self._updates else ()

    def forward(self, x: Tensor, of: tuple[int, Tensor] | None = None) -> tuple[Tensor, list[Any]]:
        """The output of [rows, in], and what `back` wants to have again. of: as `dropped` says."""
        y = self._product(x)
        if self._updates is None:
            return y, []
        left, keep = dropped(x, self._wet, of)
        return y, [left, keep, *self._updates.add(y, left)]

    def _product(self, x: Tensor) -> Tensor:
        """The frozen layer's own output, computed once for all slots that bring the same rows."""
        if self._same is None:
            return self.weight.forward(x)
        slots, each = self._same
        last = self.weight.forward(x[(slots - 1) * each :])
        return torch.cat([*[last[:each]] * (slots - 1), last])

    def back(self, grad: Tensor, kept: Sequence[Any], grad_x: Tensor | None) -> list[Tensor]:
        """The gradients of the updates' weights; what x gets from them is added to `grad_x`."""
        if self._updates is None:
            return []
        left, keep, *low = kept
        return self._updates.back(grad, left, low, grad_x, keep)
