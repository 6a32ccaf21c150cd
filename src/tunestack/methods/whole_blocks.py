"""Encoder blocks computed whole where slots do nothing in them but add low-rank updates to linear layers.

Module by module, a step of one trial on a small base is mostly what stands around its products: calls of
modules, nodes of autograd, a few dozen operators a block that each take as long to start as to run. Here a
block is one node, forward and back written out, query, key and value one product. It gives what the modules
give; wherever a slot does anything else in a block, its modules run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunestack.bases.blocks import EncoderBlock, Linear, encoder_blocks
from tunestack.bases.packing import ARGUMENT, Packed
from tunestack.kernels import rows
from tunestack.kernels.attention import Texts, attend, attend_back
from tunestack.kernels.library import LANES, has_kernels
from tunestack.methods.lowrank import fill_keep
from tunestack.methods.sites import Host, Member, Part
from tunestack.methods.updates import Compiled, Term, drops


def open_whole(model: PreTrainedModel, host: Host, first_token: bool) -> None:
    """Let the model's blocks compute whole in batches without padding, where it has blocks that can.

    first_token: whether the last block goes on with first tokens alone.
    """
    for block in encoder_blocks(model):
        if not _covered(block):
            return
        forward = functools.partial(_forward, block.module.forward, block, host, first_token and block.last)
        block.module.forward = forward


def _covered(block: EncoderBlock) -> bool:
    """Whether there are compiled kernels for it."""
    norm = block.norm.weight
    widths = [norm.shape[0], *(linear.width for linear in block.linears)]
    return has_kernels(norm.dtype, norm.device) and all(width % LANES == 0 for width in widths)


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
    texts = (packed.of_first() if first else packed).texts
    weights = [weight for layer in layers if layer.updates for weight in layer.updates.weights]
    call = block, texts, layers, torch.is_grad_enabled()
    whole: Tensor = _WholeBlock.apply(hidden, call, *weights)  # type: ignore[no-untyped-call]
    return whole


def _layers(block: EncoderBlock, host: Host, hidden: Tensor, first: bool) -> list[_Layer] | None:
    """The block's linear layers with what slots add to them; None where a slot does anything else in it, or
    the batch is none of this host's.
    """
    tokens = host.rows.of(hidden)
    if not tokens:
        return None
    known = {name for linear in block.linears for name in linear.columns}
    acting = {}
    for name, site in host.sites.items():
        if not name.startswith(block.prefix):
            continue
        acting[name] = kinds = host.rows.members(site.parts, name, tokens)
        if kinds and not (name in known and all(map(_only_adds, kinds))):
            return None
    if not first:
        return [_Layer(linear, members := _of(linear, acting), members) for linear in block.linears]
    # Behind the last attention every text is one row, but dropout is drawn for what attention gives.
    asking = {name: host.rows.members(host.sites[name].parts, name) for name in acting}
    layers = []
    for linear in block.linears:
        members = _of(linear, acting if linear is block.attention else asking)
        layers.append(_Layer(linear, members, _of(linear, acting) if linear is block.out else members))
    return layers


def _only_adds(kind: type[Part]) -> bool:
    """What a class says of itself: a subclass may do more."""
    return bool(vars(kind).get("low_rank", False))


def _of(linear: Linear, acting: Mapping[str, Mapping[type[Part], Sequence[Member]]]) -> list[Member]:
    """All updates of a linear layer, module by module."""
    kinds = [acting[name] for name in linear.columns if name in acting]
    return [member for own in kinds for members in own.values() for member in members]


class _Layer:
    """A linear layer and what slots add to its output.

    members: the updates, with the rows of its input. drawn: the same with the rows for which dropout is
    drawn. wet: of these the slots whose input passes through dropout, each with the first of the layer's
    modules that it is in: the mask is that one's.
    """

    def __init__(self, linear: Linear, members: Sequence[Member], drawn: Sequence[Member]) -> None:
        self.weight = linear.weight
        terms = [Term(one, linear.columns[one.site]) for one in members]
        self.updates = Compiled(terms) if terms else None
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
        if self.updates is None:
            return y, []
        if not self.wet:
            return y, [x, *self.updates.add(y, x)]
        keep = fill_keep(x.new_empty(of[0] if of else len(x), x.shape[1]), self.wet)
        keep = keep.index_select(0, of[1]) if of else keep
        left = rows.times(x, keep, torch.empty_like(x))
        return y, [left, keep, *self.updates.add(y, left)]

    def back(self, grad: Tensor, kept: Sequence[Tensor], grad_x: Tensor | None) -> list[Tensor]:
        """The gradients of the updates' weights; what x gets from them is added to `grad_x`."""
        if self.updates is None:
            return []
        x, *low = kept
        keep = low.pop(0) if self.wet else None
        return self.updates.back(grad, x, low, grad_x, keep)


class _WholeBlock(torch.autograd.Function):
    """A block of `EncoderBlock`'s equations. hidden: [tokens, 1, features]; returns as much, or [texts, 1,
    features] where it goes on with first tokens alone. call: the block, its texts and layers, and whether
    there will be a way back.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, call: tuple[EncoderBlock, Texts, Sequence[_Layer], bool], *weights: Tensor
    ) -> Tensor:
        block, texts, layers, trains = call
        attention, out, up, down = layers
        x = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        joint, of_attention = attention.forward(x)
        mixed, sums = attend(joint.chunk(3, 1), texts, block.heads, block.scaling)
        middle, of_out = out.forward(mixed, (len(x), texts.starts) if texts.first else None)
        residual = x.index_select(0, texts.starts) if texts.first else x
        norm, last = block.norm, block.last_norm
        h, middle, moments = rows.norm(middle, residual, norm.weight, norm.bias, norm.eps)
        wide, of_up = up.forward(h)
        wide, slope = rows.gelu(wide, trains)
        end, of_down = down.forward(wide)
        y, end, last_moments = rows.norm(end, h, last.weight, last.bias, last.eps)
        if slope is None:
            return y.unsqueeze(1)
        own = [joint, sums, middle, moments, slope, end, last_moments]
        kept = [own, of_attention, of_out, of_up, of_down]
        # The weights, too: who changes one before the way back is told so.
        ctx.save_for_backward(*itertools.chain.from_iterable(kept), *weights)
        ctx.counts = [len(part) for part in kept]
        ctx.block, ctx.texts, ctx.layers = block, texts, layers
        return y.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        own, of_attention, of_out, of_up, of_down = (list(itertools.islice(tensors, n)) for n in ctx.counts)
        joint, sums, middle, moments, slope, end, last_moments = own
        block: EncoderBlock = ctx.block
        texts: Texts = ctx.texts
        attention, out, up, down = ctx.layers
        needs_x = ctx.needs_input_grad[0]

        grad = grads[0].reshape(-1, end.shape[-1]).contiguous()
        grad_end = rows.norm_back(grad, None, end, last_moments, block.last_norm.weight)
        grad_wide = down.weight.back(grad_end)
        found_down = down.back(grad_end, of_down, grad_wide)
        rows.times(grad_wide, slope, grad_wide)
        grad_h = up.weight.back(grad_wide)
        found_up = up.back(grad_wide, of_up, grad_h)
        grad_middle = rows.norm_back(grad_h, grad_end, middle, moments, block.norm.weight)
        grad_mixed = out.weight.back(grad_middle)
        found_out = out.back(grad_middle, of_out, grad_mixed)
        if not needs_x and not of_attention:
            return (None, None, *found_out, *found_up, *found_down)

        grad_joint = torch.empty_like(joint)
        parts = joint.chunk(3, 1), grad_joint.chunk(3, 1)
        attend_back(grad_mixed, parts[0], sums, texts, block.heads, block.scaling, parts[1])
        grad_x: Tensor | None = None
        if needs_x:
            grad_x = attention.weight.back(grad_joint)
            grad_x = (
                grad_x.index_add_(0, texts.starts, grad_middle) if texts.first else grad_x.add_(grad_middle)
            )
        found_attention = attention.back(grad_joint, of_attention, grad_x)
        given = None if grad_x is None else grad_x.unsqueeze(1)
        return (given, None, *found_attention, *found_out, *found_up, *found_down)
