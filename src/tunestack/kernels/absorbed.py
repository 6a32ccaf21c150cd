"""Attention of one query a text over its tokens as they are, without keys and values of them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tunestack.kernels.attention import Texts
from tunestack.kernels.library import LANES, at, described, library


class HeadWeights:
    """A frozen matrix W_h [size, features] for every head; sizes are even, features fill vectors.

    weight: [heads, size, features].
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @functools.cached_property
    def _widening(self) -> Tensor:
        return _words(self.weight)

    @functools.cached_property
    def _narrowing(self) -> Tensor:
        return _words(self.weight.transpose(1, 2))

    def widen(self, rows: Tensor) -> Tensor:
        """Every head's own x_h W_h of [rows, heads x size]: [rows, heads, features]."""
        heads, size, features = self.weight.shape
        return _head_products(rows.view(-1, heads, size), self._widening, features)

    def narrow(self, rows: Tensor) -> Tensor:
        """Every head's own W_h x_h of [rows, heads, features]: [rows, heads x size]."""
        return _head_products(rows, self._narrowing, self.weight.shape[1]).flatten(1)


def _words(weight: Tensor) -> Tensor:
    """[heads, k, n] as C's products want it: n filled up, and in bf16 rows two by two."""
    with torch.inference_mode(False):  # training uses it after an evaluation, too
        filled = functional.pad(weight, (0, -weight.shape[2] % LANES))
        if weight.dtype == torch.float32:
            return filled.contiguous()
        pairs: Tensor = filled.unflatten(1, (-1, 2)).transpose(2, 3).contiguous()
        return pairs


def _head_products(rows: Tensor, words: Tensor, n: int) -> Tensor:
    dtype, found = rows.dtype, rows.new_empty(*rows.shape[:2], n)
    library(dtype).head_products(
        *(at(rows, dtype), *rows.shape, at(words, dtype), words.shape[2], n, at(found, dtype)),
        torch.get_num_threads(),
    )
    return found


@dataclass(frozen=True)
class Absorbed:
    """What is attended to, and by whom.

    x: tokens, [tokens, features], which fill vectors. u: queries of every text and head that ask them,
    [texts, heads, features]. q, k, v: queries, [texts, heads x size], for keys that each head has beside, and
    these keys and values beside, [tokens, heads x size]; k or v None where there are none.
    """

    x: Tensor
    u: Tensor
    q: Tensor
    k: Tensor | None
    v: Tensor | None
    texts: Texts
    scaling: float


class _Inputs(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "u", "q", "k", "v", "starts", "lengths", "rest")),
        *((name, ctypes.c_int64) for name in ("texts", "rests", "heads", "size", "features")),
        ("scaling", ctypes.c_float),
        ("threads", ctypes.c_int32),
    )


def attend(inputs: Absorbed) -> tuple[Tensor, Tensor | None, Tensor]:
    """m = sum_j p_j x_j and o = sum_j p_j v_j of every text and head, p = softmax((u x + q k) scaling).

    Returns m [texts, heads, features]; o [texts, heads x size], None without v; and the logarithms of the
    softmax's denominators, [texts, heads] fp32, which `attend_back` wants again.
    """
    u, dtype = inputs.u, inputs.x.dtype
    m, sums = torch.empty_like(u), torch.empty(u.shape[:2], dtype=torch.float32, device="cpu")
    o = None if inputs.v is None else torch.empty_like(inputs.q)
    written = [None if one is None else one.data_ptr() for one in (m, o, sums)]
    library(dtype).absorbed_forward(ctypes.byref(_structure(inputs)), *written)
    return m, o, sums


def attend_back(
    inputs: Absorbed, grad_m: Tensor, grad_o: Tensor | None, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, u, q, k and v, given those of m and o; None for what is not there, q's without k.
    Those of tokens of no text are zeros.
    """
    dtype = inputs.x.dtype
    x, u = torch.empty_like(inputs.x), torch.empty_like(inputs.u)
    q = None if inputs.k is None else torch.empty_like(inputs.q)
    k, v = (None if one is None else torch.empty_like(one) for one in (inputs.k, inputs.v))
    read = [
        _at(grad_m, dtype, inputs.u.shape),
        _at(grad_o, dtype, inputs.q.shape),
        _at(sums, torch.float32, inputs.u.shape[:2]),
    ]
    written = [None if one is None else one.data_ptr() for one in (x, u, q, k, v)]
    library(dtype).absorbed_backward(ctypes.byref(_structure(inputs)), *read, *written)
    return x, u, q, k, v


def _structure(inputs: Absorbed) -> _Inputs:
    x, u, q, texts, dtype = inputs.x, inputs.u, inputs.q, inputs.texts, inputs.x.dtype
    (tokens, features), (count, heads, _), width = x.shape, u.shape, q.shape[1]
    there = [
        _at(x, dtype, (tokens, features)),
        _at(u, dtype, (len(texts.starts), heads, features)),
        _at(q, dtype, (count, width)),
        _at(inputs.k, dtype, (tokens, width)),
        _at(inputs.v, dtype, (tokens, width)),
    ]
    places = [at(one, torch.int64) for one in (texts.starts, texts.lengths, texts.rest)]
    sizes = count, len(texts.rest), heads, width // heads, features
    return _Inputs(*there, *places, *sizes, inputs.scaling, torch.get_num_threads())


def _at(tensor: Tensor | None, dtype: torch.dtype, shape: Sequence[int]) -> int | None:
    """As `at`, for one of this shape, or none."""
    if tensor is None:
        return None
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"a tensor of shape {list(shape)} must come here, not {described(tensor)}")
    return at(tensor, dtype)
