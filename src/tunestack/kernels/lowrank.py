"""Low-rank updates of a linear layer, each in rows of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunestack.kernels.library import LANES, at, has_kernels, library


@dataclass(frozen=True)
class Update:
    """y += s B A x in the rows [start, stop), where y begins at a column. A: [r, in], B: [out, r], fp32."""

    start: int
    stop: int
    column: int
    A: Tensor
    B: Tensor
    scaling: float


class _Update(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_int64),
        ("stop", ctypes.c_int64),
        ("column", ctypes.c_int64),
        ("out", ctypes.c_int64),
        ("r", ctypes.c_int64),
        ("scaling", ctypes.c_float),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("own", ctypes.c_void_p * 3),  # the C functions' own notes
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("updates", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("threads", ctypes.c_int32),
    )


class Updates:
    """Updates s B A x of one linear layer.

    updates: in the order of their rows, those with the same ones after each other. Raises ValueError for
    weights that are not contiguous, or not fp32.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        if not all(w.is_contiguous() and w.dtype == torch.float32 for one in updates for w in (one.A, one.B)):
            raise ValueError("A and B must be contiguous and in fp32")
        self.updates = updates
        self._array = (_Update * len(updates))()
        for own, one in zip(self._array, updates, strict=True):
            own.start, own.stop, own.column, own.scaling = one.start, one.stop, one.column, one.scaling
            own.out, own.r = one.B.shape
            own.a, own.b = one.A.data_ptr(), one.B.data_ptr()

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """Add them to y [..., width], in place, given x [..., in]; returns what `back` wants again."""
        functions, layer = library(x.dtype), self._layer(x, y)
        low = x.new_empty(functions.lowrank_low(ctypes.byref(layer)))
        functions.lowrank_forward(ctypes.byref(layer), at(y, x.dtype), low.data_ptr())
        return low

    def back(
        self, grad: Tensor, x: Tensor, low: Tensor, grad_x: Tensor | None, keep: Tensor | None
    ) -> list[Tensor]:
        """The gradients of every A and B, given y's; what x gets, times `keep` if that is given, is added to
        `grad_x`.
        """
        sizes = [weight.numel() for one in self.updates for weight in (one.A, one.B)]
        found = torch.empty(sum(sizes), dtype=torch.float32, device="cpu")
        others = (None if tensor is None else at(tensor, x.dtype) for tensor in (grad_x, keep))
        library(x.dtype).lowrank_backward(
            *(ctypes.byref(self._layer(x, grad)), at(grad, x.dtype), at(low, x.dtype)),
            *(*others, found.data_ptr()),
        )
        parts = iter(found.split(sizes))
        return [next(parts).view_as(weight) for one in self.updates for weight in (one.A, one.B)]

    def _layer(self, x: Tensor, y: Tensor) -> _Layer:
        return _Layer(
            *(at(x, x.dtype), x.shape[-1], y.shape[-1], ctypes.addressof(self._array), len(self.updates)),
            torch.get_num_threads(),
        )


def covers(x: Tensor, y: Tensor) -> bool:
    """Whether there are functions for inputs and outputs like x and y."""
    fits = all(tensor.shape[-1] % LANES == 0 for tensor in (x, y))
    return x.dtype == y.dtype and fits and has_kernels(x.dtype, x.device)
