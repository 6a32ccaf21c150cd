"""A fast attention for short inputs on CPUs, behind transformers' attention registry.

softmax(Q K^T * scaling + mask) V as two batched matrix products in the base's own dtype. The softmax between
them is in fp32: PyTorch's in bf16 is several times slower on rows whose length is no multiple of 32. Its own
attention on CPU copies everything to fp32 (math) or has a slow backward on a few dozen tokens (flash).
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from tunestack.bases.packing import ARGUMENT, HeadLayout, Packed

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
    own text. Texts of about the same length go together.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: HeadLayout, scaling: float
    ) -> Tensor:
        asked, *given = layout.queries.take(query), layout.keys.take(key), layout.keys.take(value)
        output = torch.empty_like(asked)
        saved = []
        for group in layout.groups:
            own_key, own_value = map(group.given, given)
            probabilities = _probabilities(group.asked(asked), own_key, group.mask, scaling)
            torch.bmm(probabilities, own_value, out=group.asked(output))
            saved.append(probabilities)
        ctx.save_for_backward(asked, *given, *saved)
        ctx.layout = layout
        ctx.scaling = scaling
        return layout.queries.give(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *saved = ctx.saved_tensors
        layout: HeadLayout = ctx.layout
        grad = layout.queries.take(grads[0]).index_fill_(0, layout.queries.vacant, 0)
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        for group, probabilities in zip(layout.groups, saved, strict=True):
            own = group.asked(grad)
            torch.bmm(probabilities.transpose(1, 2), own, out=group.given(grad_value))
            grad_scores = _grad_scores(own, group.given(value), probabilities, ctx.scaling)
            torch.bmm(grad_scores, group.given(key), out=group.asked(grad_query))
            torch.bmm(grad_scores.transpose(1, 2), group.asked(query), out=group.given(grad_key))
        by_place = ((layout.queries, grad_query), (layout.keys, grad_key), (layout.keys, grad_value))
        one, two, three = (
            places.give(tensor).index_fill_(0, places.silent, 0) for places, tensor in by_place
        )
        return one, two, three, None, None


class _Scratch(threading.local):
    """Room for intermediate results that a thread uses over and over: the system hands fresh memory out page
    by page, which took several times as long as what is computed in it.
    """

    MOST_BYTES = 2**24
    """A larger result gets memory of its own, and gives it back."""

    def __init__(self) -> None:
        self.buffers: dict[int, Tensor] = {}

    def room(self, which: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Of a tensor's shape; what lay in the room of this number is gone."""
        size = like.numel() * dtype.itemsize
        if size > self.MOST_BYTES:
            return torch.empty_like(like, dtype=dtype)
        buffer = self.buffers.get(which)
        if buffer is None or buffer.numel() < size:
            buffer = self.buffers[which] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype).view(like.shape)


_scratch = _Scratch()


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(Q K^T * scaling + mask); mask: [batch, 1, 1 or tokens, tokens]."""
    scores = torch.bmm(query, key.transpose(1, 2))
    narrow = scores.dtype != torch.float32
    wide = _scratch.room(0, scores, torch.float32).copy_(scores) if narrow else scores
    wide.mul_(scaling)
    if mask is not None:
        heads = wide.shape[0] // mask.shape[0]
        wide.view(mask.shape[0], heads, *wide.shape[1:]).add_(mask.float())
    if not narrow:
        return torch.softmax(wide, dim=-1)
    return scores.copy_(torch.softmax(wide, dim=-1, out=_scratch.room(1, scores, torch.float32)))


def _grad_scores(grad: Tensor, value: Tensor, probabilities: Tensor, scaling: float) -> Tensor:
    """The gradient of Q K^T, given that of the output."""
    result = torch.bmm(grad, value.transpose(1, 2))
    if result.dtype == torch.float32:
        return torch._softmax_backward_data(result, probabilities, -1, torch.float32).mul_(scaling)
    wide, whole, own = (_scratch.room(number, result, torch.float32) for number in range(3))
    torch._softmax_backward_data(
        wide.copy_(result), whole.copy_(probabilities), -1, torch.float32, grad_input=own
    )
    return torch.mul(own, scaling, out=result)


def _packed_attention(query: Tensor, key: Tensor, value: Tensor, packed: Packed, scaling: float) -> Tensor:
    """Attention of tokens that are rows of their own, [tokens, heads, 1, head size]."""
    tokens, heads, _, size = query.shape
    layout = packed.heads(heads)
    flat = [tensor.reshape(tokens * heads, size) for tensor in (query, key, value)]
    output: Tensor = _PackedAttention.apply(*flat, layout, scaling)  # type: ignore[no-untyped-call]
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
