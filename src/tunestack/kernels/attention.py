"""Attention of texts whose tokens stand one after the other, without padding."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunestack.kernels.library import at, described, library


@dataclass(frozen=True)
class Texts:
    """Where texts lie among tokens.

    starts, lengths: int64, each text's first token and how many it has. rest: tokens of no text. first:
    whether the texts' first tokens alone ask; outputs are then [texts, features] in place of [tokens,
    features].
    """

    starts: Tensor
    lengths: Tensor
    rest: Tensor
    first: bool


class _Inputs(ctypes.Structure):
    _fields_ = (
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("row", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("rest", ctypes.c_void_p),
        ("texts", ctypes.c_int64),
        ("rests", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("scaling", ctypes.c_float),
        ("first", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def attend(inputs: Sequence[Tensor], texts: Texts, heads: int, scaling: float) -> tuple[Tensor, Tensor]:
    """softmax(Q K^T * scaling) V of every text and head.

    inputs: queries, keys and values, [tokens, heads x size] whose rows lie equally far apart. Returns the
    outputs, zeros for tokens of no text; and the logarithms of the softmax's denominators, [as many, heads]
    fp32, which `attend_back` wants again.
    """
    tokens, width = inputs[0].shape
    rows = len(texts.starts) if texts.first else tokens
    out = inputs[0].new_empty(rows, width)
    sums = torch.empty(rows, heads, dtype=torch.float32, device="cpu")
    _call("attention_forward", inputs, texts, heads, scaling, out.data_ptr(), sums.data_ptr())
    return out, sums


def attend_back(
    grad: Tensor,
    inputs: Sequence[Tensor],
    sums: Tensor,
    texts: Texts,
    heads: int,
    scaling: float,
    found: Sequence[Tensor],
) -> None:
    """Write the gradients of the inputs into `found`, of the same layout, zeros for tokens of no text; grad:
    of the outputs, contiguous.
    """
    _check([*inputs, *found])
    others = (at(grad, inputs[0].dtype), at(sums, torch.float32), *(own.data_ptr() for own in found))
    _call("attention_backward", inputs, texts, heads, scaling, *others)


def _check(matrices: Sequence[Tensor]) -> None:
    """Raises ValueError where they do not lie in memory in the same way."""
    first, *others = matrices
    alike = all(
        one.dtype == first.dtype and one.shape == first.shape and one.stride() == first.stride()
        for one in others
    )
    if not alike or first.stride(1) != 1 or not first.is_cpu:
        found = ", ".join(map(described, matrices))
        raise ValueError(f"matrices of one type and layout, on the processor, must come here, not {found}")


def _call(
    name: str, inputs: Sequence[Tensor], texts: Texts, heads: int, scaling: float, *others: Any
) -> None:
    _check(inputs)
    one = inputs[0]
    structure = _Inputs(
        *(tensor.data_ptr() for tensor in inputs),
        one.stride(0),
        at(texts.starts, torch.int64),
        at(texts.lengths, torch.int64),
        at(texts.rest, torch.int64),
        len(texts.starts),
        len(texts.rest),
        heads,
        one.shape[1] // heads,
        scaling,
        texts.first,
        torch.get_num_threads(),
    )
    getattr(library(one.dtype), name)(ctypes.byref(structure), *others)
