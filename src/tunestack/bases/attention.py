"""A fast attention for short inputs on CPUs, behind transformers' attention registry.

softmax(Q K^T * scaling + mask) V as two batched matrix products in the base's own dtype. The softmax between
them is in fp32: PyTorch's in bf16 is several times slower on rows whose length is no multiple of 32. Its own
attention on CPU copies everything to fp32 (math) or has a slow backward on a few dozen tokens (flash).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tunestack.bases.packing import ARGUMENT, HeadLayout, Packed
from tunestack.kernels import attention
from tunestack.kernels.attention import Texts
from tunestack.kernels.library import has_kernels

NAME = "tunestack_short"
LONGEST = 256
"""Above this many tokens the [tokens, tokens] products cost more than PyTorch's own kernels."""


class _ShortAttention(torch.autograd.Function):
    """Attention over [batch x heads, tokens, head size]; saves the probabilities, never the raw scores."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        probabilities = _probabilities(query, key, mask, scaling)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scaling = scaling
        return torch.bmm(probabilities, value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, probabilities = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_value = torch.bmm(probabilities.transpose(1, 2), grad)
        grad_scores = _grad_scores(grad, value, probabilities, ctx.scaling)
        grad_query = torch.bmm(grad_scores, key)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
        return grad_query, grad_key, grad_value, None, None


class _PackedAttention(torch.autograd.Function):
    """The same for tokens that stand one after the other, [tokens x heads, head size], each with those of its
    own text.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: HeadLayout, scaling: float
    ) -> Tensor:
        query, key, value = layout.queries.take(query), layout.keys.take(key), layout.keys.take(value)
        output = torch.empty_like(query)
        saved = []
        for group in layout.groups:
            probabilities = _probabilities(group.asked(query), group.given(key), group.mask, scaling)
            torch.bmm(probabilities, group.given(value), out=group.asked(output))
            saved.append(probabilities)
        ctx.save_for_backward(query, key, value, *saved)
        ctx.layout = layout
        ctx.scaling = scaling
        return layout.queries.give(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *saved = ctx.saved_tensors
        layout: HeadLayout = ctx.layout
        grad = layout.queries.take(grads[0]).index_fill_(0, layout.queries.vacant, 0)
        found = [torch.empty_like(tensor) for tensor in (query, key, value)]
        grad_query, grad_key, grad_value = found
        for group, probabilities in zip(layout.groups, saved, strict=True):
            own = group.asked(grad)
            torch.bmm(probabilities.transpose(1, 2), own, out=group.given(grad_value))
            grad_scores = _grad_scores(own, group.given(value), probabilities, ctx.scaling)
            torch.bmm(grad_scores, group.given(key), out=group.asked(grad_query))
            torch.bmm(grad_scores.transpose(1, 2), group.asked(query), out=group.given(grad_key))
        by_place = zip((layout.queries, layout.keys, layout.keys), found, strict=True)
        one, two, three = (
            places.give(tensor).index_fill_(0, places.silent, 0) for places, tensor in by_place
        )
        return one, two, three, None, None


class _TextAttention(torch.autograd.Function):
    """The same compiled, [tokens, heads x head size]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, texts: Texts, heads: int, scaling: float
    ) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        output, sums = attention.attend((query, key, value), texts, heads, scaling)
        ctx.save_for_backward(query, key, value, sums)
        ctx.call = texts, heads, scaling
        if not texts.first:
            return output
        return torch.zeros_like(query).index_copy_(0, texts.starts, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, sums = ctx.saved_tensors
        texts, heads, scaling = ctx.call
        grad = grads[0].index_select(0, texts.starts) if texts.first else grads[0].contiguous()
        found = [torch.empty_like(tensor) for tensor in inputs]
        attention.attend_back(grad, inputs, sums, texts, heads, scaling, found)
        return (*found, None, None, None)


class _Scratch(threading.local):
    """Room for intermediate results that a thread uses over and over: the system hands fresh memory out page
    by page, which took several times as long as what is computed in it.
    """

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}

    def room(self, which: int, like: Tensor) -> Tensor:
        """Of a tensor's shape, in fp32; what lay in the room of this number is gone."""
        buffer = self.buffers.get(which)
        if buffer is None or buffer.numel() < like.numel():
            with torch.inference_mode(False):  # training uses it after an evaluation, too
                buffer = self.buffers[which] = torch.empty(like.numel())
        return buffer[: like.numel()].view(like.shape)


_scratch = _Scratch()
PIECE = 2**20
"""Scores that are worked on at once: what is computed of them in between stays near the processor."""


def _pieces(scores: Tensor, together: int = 1) -> Iterator[tuple[slice, Tensor]]:
    """Parts of a batch of scores with about `PIECE` of them, and where; multiples of `together` matrices."""
    count = max(1, PIECE // (together * scores.shape[1] * scores.shape[2])) * together
    for start in range(0, len(scores), count):
        part = slice(start, start + count)
        yield part, scores[part]


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(Q K^T * scaling + mask); mask: [batch, 1, 1 or tokens, tokens]."""
    result = query.new_empty(*query.shape[:2], key.shape[1])
    heads = 1 if mask is None else len(query) // len(mask)
    for part, own in _pieces(result, heads):
        torch.bmm(query[part], key[part].transpose(1, 2), out=own)
        wide = _scratch.room(0, own).copy_(own).mul_(scaling)
        if mask is not None:
            texts = slice(part.start // heads, part.stop // heads)
            wide.view(-1, heads, *own.shape[1:]).add_(mask[texts].float())
        own.copy_(torch.softmax(wide, dim=-1, out=_scratch.room(1, own)))
    return result


def _grad_scores(grad: Tensor, value: Tensor, probabilities: Tensor, scaling: float) -> Tensor:
    """The gradient of Q K^T, given that of the output."""
    result = torch.empty_like(probabilities)
    for part, own in _pieces(result):
        torch.bmm(grad[part], value[part].transpose(1, 2), out=own)
        wide, whole, found = (_scratch.room(number, own) for number in range(3))
        wide.copy_(own)
        whole.copy_(probabilities[part])
        torch._softmax_backward_data(wide, whole, -1, torch.float32, grad_input=found)
        torch.mul(found, scaling, out=own)
    return result


def _packed_attention(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float) -> Tensor:
    """Attention of tokens that are rows of their own, [tokens, heads, 1, head size]."""
    tokens, heads, _, size = query.shape
    output: Tensor
    if query.dtype == key.dtype == value.dtype and has_kernels(query.dtype, query.device):
        rows = [tensor.reshape(tokens, heads * size) for tensor in (query, key, value)]
        output = _TextAttention.apply(*rows, packed.texts, heads, scaling)  # type: ignore[no-untyped-call]
    else:
        flat = [tensor.reshape(tokens * heads, size) for tensor in (query, key, value)]
        output = _PackedAttention.apply(*flat, packed.heads(heads), scaling)  # type: ignore[no-untyped-call]
    return output.view(tokens, 1, heads, size)


def short_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it.

    query, key, value: [batch, heads, tokens, head size]; returns [batch, tokens, heads, head size].
    Hands over to PyTorch's own kernels whatever this path does not cover: dropout, long inputs, position
    biases, a mask that differs by head, causality without a mask.
    """
    packed: Packed | None = kwargs.pop(ARGUMENT, None)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if packed is not None:
        return _packed_attention(query, key, value, packed, scale), None
    causal = bool(kwargs.get("is_causal") or getattr(module, "is_causal", False))
    covered = (
        dropout == 0.0
        and max(query.shape[2], key.shape[2]) <= LONGEST
        and kwargs.get("position_bias") is None
        and not (attention_mask is None and causal and query.shape[2] > 1)
        and (attention_mask is None or attention_mask.shape[1] == 1)
    )
    if not covered:
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    if torch.is_autocast_enabled(query.device.type):  # rotated queries and keys are wider than values
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    batch, heads = query.shape[:2]
    mask = attention_mask
    if mask is not None and mask.shape[0] != batch:
        mask = mask.expand(batch, *mask.shape[1:])
    flat = [tensor.reshape(batch * heads, *tensor.shape[2:]) for tensor in (query, key, value)]
    output: Tensor = _ShortAttention.apply(*flat, mask, scale)  # type: ignore[no-untyped-call]
    return output.view(batch, heads, *output.shape[1:]).transpose(1, 2), None


def _mask(q_length: int, kv_length: int, dtype: torch.dtype = torch.float32, **kwargs: Any) -> Tensor | None:
    """An additive mask for short inputs; what PyTorch's kernels want for long ones."""
    make = eager_mask if max(q_length, kv_length) <= LONGEST else sdpa_mask
    mask: Tensor | None = make(q_length=q_length, kv_length=kv_length, dtype=dtype, **kwargs)
    return mask


def register() -> str:
    """Make the path known to transformers; returns its name."""
    AttentionInterface.register(NAME, short_attention)
    AttentionMaskInterface.register(NAME, _mask)
    return NAME
