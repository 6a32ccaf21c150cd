"""DoRA: low-rank updates of a weight's direction, and its magnitude (Liu et al., 2024, arXiv:2402.09353)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from tunestack.bases.quantised import plain_weight
from tunestack.methods.lowrank import LoraPart
from tunestack.methods.rowwise import scale_rows, shift_rows
from tunestack.methods.sites import Member, dropout, replace_rows
from tunestack.methods.updates import drops


class DoraPart(LoraPart):
    """One slot's update of one linear: b + g (W x + s B A x), with g = m / ||W + s B A||.

    m [out] is trained, fp32; the norm is that of each row of the weight, and no gradient passes through it
    (section 4.3 of the paper). With dropout, as PEFT has it, b + W x + (g - 1) W x' + g s B A x', where x' is
    what dropout leaves of x.
    """

    def __init__(
        self, in_features: int, out_features: int, r: int, scaling: float, p: float, module: nn.Module
    ) -> None:
        super().__init__(in_features, out_features, r, scaling, p)
        self.base_weight = functools.partial(plain_weight, module)
        bias = getattr(module, "bias", None)
        self.base_bias = None if bias is None else bias.detach()
        self.base_squares = self.base_weight().float().square().sum(1)
        self.m = nn.Parameter(self.base_squares.sqrt())

    def start(self) -> None:
        """Set the magnitudes to those of the weight, update included, so that training starts at the base."""
        with torch.no_grad():
            self.m.copy_(self.norms(self.base_weight()))

    @torch.no_grad()
    def norms(self, weight: Tensor) -> Tensor:
        """||W + s B A|| of each row, [out] fp32, without forming the sum of W's size.

        ||W||^2 + 2 s B (A W^T) + s^2 B (A A^T) B^T, row by row.
        """
        a, b = self.A, self.B
        cross = torch.mm(a.to(weight.dtype), weight.t()).float()
        mixed = 2 * cross + self.scaling * torch.mm(torch.mm(a, a.t()), b.t())
        return (self.base_squares + self.scaling * (b.t() * mixed).sum(0)).clamp_min(0).sqrt()

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Update every slot's own rows of y."""
        dry = [member for member in members if not drops(member)]
        wet = [member for member in members if drops(member)]
        weight = members[0].part.base_weight()  # once for all slots: a quantised one is dequantised here
        if dry:
            y = LoraPart.after(x, y, dry)
            excesses = [member.part.m / member.part.norms(weight) - 1 for member in dry]
            y = scale_rows(y, excesses, dry)
            if dry[0].part.base_bias is not None:
                y = shift_rows(y, [-excess * dry[0].part.base_bias for excess in excesses], dry)
        if wet:
            y = replace_rows(y, [_dropped(x, y, member, weight) for member in wet], wet)
        return y


def _dropped(x: Tensor, y: Tensor, member: Member, weight: Tensor) -> Tensor:
    """A slot's rows of the output where its input passes through dropout."""
    part, span = member.part, member.span
    x, y = x[span.start : span.stop], y[span.start : span.stop]
    own = [replace(member, span=replace(span, start=0, stop=x.shape[0]))]
    left = functional.linear(dropout(x, part.p, span, member.site), weight)
    updated = LoraPart.after(x, left.clone(), own)
    return y - left + scale_rows(updated, [part.m / part.norms(weight) - 1], own)
