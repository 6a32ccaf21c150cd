"""Attention in a block that is computed whole: with all its tokens, or where first tokens alone go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tunestack.bases.blocks import EncoderBlock
from tunestack.kernels import absorbed
from tunestack.kernels.attention import Texts, attend, attend_back
from tunestack.methods.block_layers import Layer, dropped, updates_of, wet_of
from tunestack.methods.sites import Member
from tunestack.methods.updates import Compiled


class BlockAttention(Protocol):
    """Attention before its output layer, with what slots add to query, key and value."""

    @property
    def weights(self) -> Sequence[Tensor]:
        """Those of the updates, in the order of the gradients that `back` returns."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """What the tokens that ask get, given all tokens [tokens, features], and what `back` wants again."""

    def back(self, grad: Tensor, kept: list[Any], needs_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """The gradients of x, if it needs one, and of the weights."""


class AllTokens:
    """Every token asks; query, key and value are one product. layer: it."""

    def __init__(self, block: EncoderBlock, layer: Layer, texts: Texts) -> None:
        self._layer = layer
        self._call = texts, block.heads, block.scaling

    @property
    def weights(self) -> Sequence[Tensor]:
        """As `BlockAttention` says."""
        return self._layer.weights

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """As `BlockAttention` says."""
        joint, of_layer = self._layer.forward(x)
        mixed, sums = attend(joint.chunk(3, 1), *self._call)
        return mixed, [joint, sums, *of_layer]

    def back(self, grad: Tensor, kept: list[Any], needs_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """As `BlockAttention` says."""
        joint, sums, *of_layer = kept
        found = torch.empty_like(joint)
        attend_back(grad, joint.chunk(3, 1), sums, *self._call, found.chunk(3, 1))
        grad_x = self._layer.weight.back(found) if needs_x else None
        return grad_x, self._layer.back(found, of_layer, grad_x)


class FirstTokens:
    """First tokens alone ask, and keys and values of the others are not computed.

    For head h, with W_k and W_v its part of key's and value's weights, q its query, tokens x_j,

        q . (W_k x_j + b_k + k_j) = (W_k^T q) . x_j + q . k_j + constant,
        sum_j p_j (W_v x_j + b_v + v_j) = W_v (sum_j p_j x_j) + b_v + sum_j p_j v_j

    where k_j and v_j are the slots' updates ("weight absorption", DeepSeek-AI, 2024): products of a row
    a text take the place of products of a row a token.

    members: the slots' updates of query, key and value with their rows among the tokens. asking: the same
    with their rows among the texts.
    """

    def __init__(
        self, block: EncoderBlock, members: Sequence[Member], asking: Sequence[Member], texts: Texts
    ) -> None:
        self._block, self._texts = block, texts
        query, key, value = block.attention.columns
        self._query = updates_of([member for member in asking if member.site == query])
        self._key, self._value = (
            updates_of([member for member in members if member.site == site]) for site in (key, value)
        )
        self._wet = wet_of(members)
        own = (self._query, self._key, self._value)
        self._weights = [weight for updates in own if updates for weight in updates.weights]

    @property
    def weights(self) -> Sequence[Tensor]:
        """As `BlockAttention` says."""
        return self._weights

    def forward(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """As `BlockAttention` says."""
        starts, block = self._texts.starts, self._block
        left, keep = dropped(x, self._wet)
        q = block.query.forward(x.index_select(0, starts))
        low = self._query.add(q, left.index_select(0, starts))[0] if self._query else None
        k, low_k = _beside(self._key, left, q.shape[1])
        v, low_v = _beside(self._value, left, q.shape[1])
        u = block.key.widen(q)
        m, o, sums = absorbed.attend(self._inputs(x, u, q, k, v))
        mixed = block.value.narrow(m).add_(block.value_bias)
        mixed = mixed if o is None else mixed.add_(o)
        return mixed, [x, u, q, k, v, sums, left, keep, low, low_k, low_v]

    def back(self, grad: Tensor, kept: list[Any], needs_x: bool) -> tuple[Tensor | None, list[Tensor]]:
        """As `BlockAttention` says."""
        x, u, q, k, v, sums, left, keep, low, low_k, low_v = kept
        starts, block = self._texts.starts, self._block
        inputs = self._inputs(x, u, q, k, v)
        grad_x, grad_u, beside, grad_k, grad_v = absorbed.attend_back(
            inputs, block.value.widen(grad), None if v is None else grad, sums
        )
        grad_q = block.key.narrow(grad_u)
        grad_q = grad_q if beside is None else grad_q.add_(beside)
        first = block.query.back(grad_q) if needs_x else None
        found: list[Tensor] = []
        if self._query is not None:
            its_keep = None if keep is None else keep.index_select(0, starts)
            found += self._query.back(grad_q, left.index_select(0, starts), [low], first, its_keep)
        others = ((self._key, grad_k, low_k), (self._value, grad_v, low_v))
        for updates, its_grad, its_low in others:
            if updates is not None:
                assert its_grad is not None
                found += updates.back(its_grad, left, [its_low], grad_x if needs_x else None, keep)
        return (grad_x.index_add_(0, starts, first) if first is not None else None), found

    def _inputs(
        self, x: Tensor, u: Tensor, q: Tensor, k: Tensor | None, v: Tensor | None
    ) -> absorbed.Absorbed:
        return absorbed.Absorbed(x, u, q, k, v, self._texts, self._block.scaling)


def _beside(updates: Compiled | None, x: Tensor, width: int) -> tuple[Tensor | None, Tensor | None]:
    """Updates by themselves, [rows, width], and what their way back wants again."""
    if updates is None:
        return None, None
    y = x.new_zeros(len(x), width)
    return y, updates.add(y, x)[0]
