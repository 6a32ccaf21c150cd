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
from tunestack.kernels.attention import Texts
from tunestack.kernels.library import LANES, has_kernels
from tunestack.methods.block_attention import AllTokens, BlockAttention, FirstTokens
from tunestack.methods.block_layers import Layer, alike
from tunestack.methods.sites import Host, Member, Part

Parts = tuple[BlockAttention, Layer, Layer, Layer]
"""Of a block: attention, and the three linear layers after it, with what slots add to them."""


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
    fits = all(width % LANES == 0 for width in widths)
    pairs = norm.dtype == torch.float32 or block.head_size % 2 == 0
    return has_kernels(norm.dtype, norm.device) and fits and pairs


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
    if packed is None:
        return modules(hidden, *args, **kwargs)
    texts = (packed.of_first() if first else packed).texts
    if (parts := _parts(block, host, hidden, texts)) is None:
        return modules(hidden, *args, **kwargs)
    call = block, texts, parts, torch.is_grad_enabled()
    weights = [weight for part in parts for weight in part.weights]
    whole: Tensor = _WholeBlock.apply(hidden, call, *weights)  # type: ignore[no-untyped-call]
    return whole


def _parts(block: EncoderBlock, host: Host, hidden: Tensor, texts: Texts) -> Parts | None:
    """The block's attention and linear layers with what slots add to them; None where a slot does anything
    else in it, or the batch is none of this host's.
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
    members = _of(block.attention, acting)
    if not texts.first:
        joint = Layer(block.attention, members, same=alike(hidden, tokens) if block.first else None)
        out, up, down = (Layer(one, _of(one, acting)) for one in block.linears[1:])
        return AllTokens(block, joint, texts), out, up, down
    # Behind the last attention every text is one row, but dropout is drawn for what attention gives.
    asking = {name: host.rows.members(host.sites[name].parts, name) for name in acting}
    attention = FirstTokens(block, members, _of(block.attention, asking), texts)
    out = Layer(block.out, _of(block.out, asking), _of(block.out, acting))
    up, down = (Layer(one, _of(one, asking)) for one in (block.up, block.down))
    return attention, out, up, down


def _only_adds(kind: type[Part]) -> bool:
    """What a class says of itself: a subclass may do more."""
    return bool(vars(kind).get("low_rank", False))


def _of(linear: Linear, acting: Mapping[str, Mapping[type[Part], Sequence[Member]]]) -> list[Member]:
    """All updates of a linear layer, module by module."""
    kinds = [acting[name] for name in linear.columns if name in acting]
    return [member for own in kinds for members in own.values() for member in members]


class _WholeBlock(torch.autograd.Function):
    """A block of `EncoderBlock`'s equations. hidden: [tokens, 1, features]; returns as much, or [texts, 1,
    features] where it goes on with first tokens alone. call: the block, its texts and parts, and whether
    there will be a way back.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, call: tuple[EncoderBlock, Texts, Parts, bool], *weights: Tensor
    ) -> Tensor:
        block, texts, parts, trains = call
        attention, out, up, down = parts
        x = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        mixed, of_attention = attention.forward(x)
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
        own = [middle, moments, slope, end, last_moments]
        kept: list[list[Any]] = [own, of_attention, of_out, of_up, of_down]
        # The weights, too: who changes one before the way back is told so.
        ctx.save_for_backward(*itertools.chain.from_iterable(kept), *weights)
        ctx.counts = [len(part) for part in kept]
        ctx.block, ctx.texts, ctx.parts = block, texts, parts
        return y.unsqueeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        own, of_attention, of_out, of_up, of_down = (list(itertools.islice(tensors, n)) for n in ctx.counts)
        middle, moments, slope, end, last_moments = own
        block: EncoderBlock = ctx.block
        texts: Texts = ctx.texts
        attention, out, up, down = ctx.parts
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
        if not needs_x and not attention.weights:
            return (None, None, *found_out, *found_up, *found_down)

        grad_x, found = attention.back(grad_mixed, of_attention, needs_x)
        if grad_x is not None:
            grad_x = (
                grad_x.index_add_(0, texts.starts, grad_middle) if texts.first else grad_x.add_(grad_middle)
            )
        given = None if grad_x is None else grad_x.unsqueeze(1)
        return (given, None, *found, *found_out, *found_up, *found_down)
