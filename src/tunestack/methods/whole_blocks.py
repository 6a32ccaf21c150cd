"""Encoder blocks computed whole where slots do nothing in them but add low-rank updates to linear layers.

Module by module, a step of one trial on a small base is mostly what stands around its products: calls of
modules, nodes of autograd, a few dozen operators a block that each take as long to start as to run. Here a
block is one node, forward and back written out, query, key and value one product. It gives what the modules
give; wherever a slot does anything else in a block, its modules run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from tunestack.bases.attention import attend, attend_back
from tunestack.bases.blocks import EncoderBlock, Linear, encoder_blocks
from tunestack.bases.packing import ARGUMENT, JointLayout, Packed
from tunestack.methods.lowrank import fill_keep
from tunestack.methods.sites import Host, Member, Part, Span
from tunestack.methods.updates import Term, Updates, drops


def open_whole(model: PreTrainedModel, host: Host, first_token: bool) -> None:
    """Let the model's blocks compute whole in batches without padding, where it has blocks that can.

    first_token: whether the last block goes on with first tokens alone.
    """
    for block in encoder_blocks(model):
        forward = functools.partial(_forward, block.module.forward, block, host, first_token and block.last)
        block.module.forward = forward


def _forward(
    modules: Callable[..., Any],
    block: EncoderBlock,
    host: Host,
    first: bool,
    hidden: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    packed: Packed | None = kwargs.get(ARGUMENT)
    if packed is None or (layers := _layers(block, host, hidden, first)) is None:
        return modules(hidden, *args, **kwargs)
    layout = (packed.of_first() if first else packed).joint(block.heads)
    weights = [weight for layer in layers for weight in layer.updates.weights]
    whole: Tensor = _WholeBlock.apply(hidden, block, layout, layers, *weights)  # type: ignore[no-untyped-call]
    return whole


def _layers(block: EncoderBlock, host: Host, hidden: Tensor, first: bool) -> list[_Layer] | None:
    """The block's linear layers with what slots add to them; None where a slot does anything else in it, or
    the batch is none of this host's.
    """
    tokens = host.rows.of(hidden)
    if not tokens:
        return None
    known = {name for linear in block.linears for name in linear.columns}
    for name, site in host.sites.items():
        if not name.startswith(f"{block.name}."):
            continue
        kinds = host.rows.members(site.parts, name, tokens)
        if kinds and not (name in known and all(map(_only_adds, kinds))):
            return None
    layers = []
    for linear in block.linears:
        # Behind the last attention every text is one row, but dropout is drawn for what attention gives.
        texts = first and linear is not block.attention
        members = _members(linear, host, None if texts else tokens)
        drawn = _members(linear, host, tokens) if texts and linear is block.out else members
        layers.append(_Layer(linear, members, drawn))
    return layers


def _only_adds(kind: type[Part]) -> bool:
    """What a class says of itself: a subclass may do more."""
    return bool(vars(kind).get("low_rank", False))


def _members(linear: Linear, host: Host, spans: Sequence[Span] | None) -> list[Member]:
    """All updates of a linear layer, module by module."""
    sites = [host.sites[name] for name in linear.columns if name in host.sites]
    kinds = [host.rows.members(site.parts, site.name, spans) for site in sites]
    return [member for own in kinds for members in own.values() for member in members]


class _Layer:
    """A linear layer and what slots add to its output.

    members: the updates, with the rows of its input. drawn: the same with the rows for which dropout is
    drawn. wet: of these the slots whose input passes through dropout, each with the first of the layer's
    modules that it is in: the mask is that one's.
    """

    def __init__(self, linear: Linear, members: Sequence[Member], drawn: Sequence[Member]) -> None:
        self.weight = linear.weight
        self.updates = Updates([Term(one, linear.columns[one.site]) for one in members], linear.width)
        wet: dict[int, Member] = {}
        for member in drawn:
            if drops(member):
                wet.setdefault(member.span.start, member)
        self.wet = [(wet[start].site, wet[start]) for start in sorted(wet)]

    def forward(self, x: Tensor, of: tuple[int, Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """The output of [rows, in], and what `back` wants to have again.

        of: for how many rows dropout is drawn, and which of them x has; None where it has all.
        """
        y = self.weight.forward(x)
        if not self.updates.weights:
            return y, []
        if not self.wet:
            return y, [x, *self.updates.add(y, x)]
        keep = fill_keep(x.new_empty(of[0] if of else len(x), x.shape[1]), self.wet)
        keep = keep.index_select(0, of[1]) if of else keep
        left = x * keep
        return y, [left, keep, *self.updates.add(y, left)]

    def back(self, grad: Tensor, kept: Sequence[Tensor], grad_x: Tensor | None) -> list[Tensor]:
        """The gradients of the updates' weights; what x gets from them is added to `grad_x`."""
        if not kept:
            return []
        if not self.wet:
            return self.updates.back(grad, kept[0], kept[1:], grad_x, beta=1)
        left, keep, *factors = kept
        own = None if grad_x is None else self.updates.room(left)
        found = self.updates.back(grad, left, factors, own, beta=0)
        if grad_x is not None and own is not None:
            grad_x.addcmul_(own, keep)
        return found


class _WholeBlock(torch.autograd.Function):
    """A block of `EncoderBlock`'s equations. hidden: [tokens, 1, features]; returns as much, or [texts, 1,
    features] where it goes on with first tokens alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        block: EncoderBlock,
        layout: JointLayout,
        layers: Sequence[_Layer],
        *weights: Tensor,
    ) -> Tensor:
        attention, out, up, down = layers
        x = hidden.reshape(-1, hidden.shape[-1])
        joint, of_attention = attention.forward(x)
        places = layout.inputs.take(joint.view(-1, block.head_size))
        mixed, probabilities = attend(places.split(layout.counts), layout.groups, block.scaling)
        firsts = layout.firsts
        drawn = None if firsts is None else (len(x), firsts)
        middle, of_out = out.forward(layout.outputs.give(mixed).view(-1, x.shape[1]), drawn)
        middle += x if firsts is None else x.index_select(0, firsts)
        h, *moments = block.norm.forward(middle)
        wide, of_up = up.forward(h)
        end, of_down = down.forward(functional.gelu(wide))
        end += h
        y, *last_moments = block.last_norm.forward(end)
        kept = [[places, middle, *moments, wide, end, *last_moments], probabilities]
        kept += [of_attention, of_out, of_up, of_down]
        ctx.save_for_backward(*itertools.chain.from_iterable(kept))
        ctx.counts = [len(part) for part in kept]
        ctx.block, ctx.layout, ctx.layers = block, layout, layers
        return y.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        own, probabilities, *kept = [list(itertools.islice(tensors, count)) for count in ctx.counts]
        places, middle, mean, rstd, wide, end, last_mean, last_rstd = own
        block: EncoderBlock = ctx.block
        layout: JointLayout = ctx.layout
        attention, out, up, down = ctx.layers
        of_attention, of_out, of_up, of_down = kept
        needs_x = ctx.needs_input_grad[0]

        grad = grads[0].reshape(-1, end.shape[-1])
        grad_end = block.last_norm.back(grad, end, last_mean, last_rstd)
        grad_wide = down.weight.back(grad_end)
        found_down = down.back(grad_end, of_down, grad_wide)
        torch.ops.aten.gelu_backward.grad_input(grad_wide, wide, grad_input=grad_wide)
        grad_h = up.weight.back(grad_wide, beside=grad_end)
        found_up = up.back(grad_wide, of_up, grad_h)
        grad_middle = block.norm.back(grad_h, middle, mean, rstd)
        grad_mixed = out.weight.back(grad_middle)
        found_out = out.back(grad_middle, of_out, grad_mixed)
        if not needs_x and not of_attention:
            return (None, None, None, None, *found_out, *found_up, *found_down)

        grad_mixed = layout.outputs.take(grad_mixed.view(-1, block.head_size))
        grad_mixed.index_fill_(0, layout.outputs.vacant, 0)
        grad_places = torch.empty_like(places)
        inputs, found = places.split(layout.counts), grad_places.split(layout.counts)
        attend_back(grad_mixed, inputs, probabilities, layout.groups, block.scaling, found)
        grad_joint = layout.inputs.give(grad_places).index_fill_(0, layout.inputs.silent, 0)
        grad_joint = grad_joint.view(-1, attention.updates.width)
        grad_x: Tensor | None = None
        if needs_x and layout.firsts is None:
            grad_x = attention.weight.back(grad_joint, beside=grad_middle)
        elif needs_x:
            grad_x = attention.weight.back(grad_joint).index_add_(0, layout.firsts, grad_middle)
        found_attention = attention.back(grad_joint, of_attention, grad_x)
        given = None if grad_x is None else grad_x.unsqueeze(1)
        return (given, None, None, None, *found_attention, *found_out, *found_up, *found_down)
