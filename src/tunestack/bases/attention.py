"""A fast attention for short inputs on CPUs, behind transformers' attention registry.

softmax(Q K^T * scaling + mask) V as two batched matrix products in the base's own dtype. The softmax between
them is in fp32: PyTorch's in bf16 is several times slower on rows whose length is no multiple of 32. Its own
attention on CPU copies everything to fp32 (math) or has a slow backward on a few dozen tokens (flash).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

NAME = "tunestack_short"
LONGEST = 256
"""Above this many tokens the [tokens, tokens] products cost more than PyTorch's own kernels."""


class _ShortAttention(torch.autograd.Function):
    """Attention over [batch x heads, tokens, head size]; saves the probabilities, never the raw scores."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
    ) -> Tensor:
        scores = torch.bmm(query, key.transpose(1, 2)).mul_(scaling)
        if mask is not None:
            heads = scores.shape[0] // mask.shape[0]
            scores.view(mask.shape[0], heads, *scores.shape[1:]).add_(mask)
        probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scaling = scaling
        return torch.bmm(probabilities, value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, probabilities = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_value = torch.bmm(probabilities.transpose(1, 2), grad)
        grad_probabilities = torch.bmm(grad, value.transpose(1, 2)).float()
        grad_scores = torch._softmax_backward_data(
            grad_probabilities, probabilities.float(), -1, torch.float32
        )
        grad_scores = grad_scores.to(query.dtype).mul_(ctx.scaling)
        grad_query = torch.bmm(grad_scores, key)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
        return grad_query, grad_key, grad_value, None, None


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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
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
