"""Products of frozen weights with few rows, where the processor has a matrix unit."""

from __future__ import annotations

import torch
from torch import Tensor

from tunestack.kernels.library import at, has_kernels, library

PANEL = 32
"""Of this both sizes of a weight have to be multiples."""


def covers(weight: Tensor) -> bool:
    """Whether there are products of a weight [out, in] here."""
    fits = weight.dtype == torch.bfloat16 and all(size % PANEL == 0 for size in weight.shape)
    return fits and has_kernels(weight.dtype, weight.device) and bool(library(weight.dtype).dense_works())


class Laid:
    """A weight W [out, in] as products want it: a copy."""

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape
        with torch.inference_mode(False):  # training uses it after an evaluation, too
            self._words = torch.empty(weight.numel() // 2, dtype=torch.int32)
        own = weight.contiguous()
        library(torch.bfloat16).dense_lay_out(at(own, own.dtype), *own.shape, self._words.data_ptr())

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b of [rows, in]; b: [out], or none. Raises ValueError for other sizes."""
        out, wide = self.shape
        if x.shape[1] != wide or (bias is not None and bias.shape != (out,)):
            found = f"{list(x.shape)}" if bias is None else f"{list(x.shape)} and {list(bias.shape)}"
            raise ValueError(f"[rows, {wide}], and a bias of [{out}] or none, must come here, not {found}")
        y = x.new_empty(len(x), out)
        there = None if bias is None else at(bias, x.dtype)
        library(torch.bfloat16).dense(
            *(at(x, torch.bfloat16), *x.shape, self._words.data_ptr(), out),
            *(there, y.data_ptr(), torch.get_num_threads()),
        )
        return y
