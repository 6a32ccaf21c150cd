"""Norms, activations and dropout's masks of matrices, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from tunestack.kernels.library import at, library


def norm(x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalisation y of s = x + more, [rows, features]; returns y, and s and the rows' means and
    reciprocal deviations, [rows, 2] fp32, which `norm_back` wants again.
    """
    s, y, dtype = torch.empty_like(x), torch.empty_like(x), x.dtype
    moments = torch.empty(len(x), 2, dtype=torch.float32, device="cpu")
    library(dtype).norm_forward(
        *(at(x, dtype), at(more, dtype), *x.shape, at(weight, dtype), at(bias, dtype), eps),
        *(at(s, dtype), at(y, dtype), at(moments, torch.float32), torch.get_num_threads()),
    )
    return y, s, moments


def norm_back(grad: Tensor, more: Tensor | None, s: Tensor, moments: Tensor, weight: Tensor) -> Tensor:
    """What s gets, given y's gradient, grad or grad + more."""
    found, dtype = torch.empty_like(s), s.dtype
    library(dtype).norm_backward(
        *(at(grad, dtype), None if more is None else at(more, dtype), at(s, dtype)),
        *(at(moments, torch.float32), *s.shape, at(weight, dtype), at(found, dtype), torch.get_num_threads()),
    )
    return found


def gelu(x: Tensor, slope: bool = False) -> tuple[Tensor, Tensor | None]:
    """x Phi(x), and its derivative where that is asked for; as many numbers as fill vectors."""
    y, dtype = torch.empty_like(x), x.dtype
    found = torch.empty_like(x) if slope else None
    there = None if found is None else found.data_ptr()
    library(dtype).gelu(at(x, dtype), x.numel(), at(y, dtype), there, torch.get_num_threads())
    return y, found


def times(x: Tensor, y: Tensor, to: Tensor) -> Tensor:
    """x y, number by number, written into `to`, which may be x; as many numbers as fill vectors."""
    dtype = x.dtype
    library(dtype).times(at(x, dtype), at(y, dtype), x.numel(), at(to, dtype), torch.get_num_threads())
    return to


def draw_keep(keep: Tensor, p: float, seed: int) -> None:
    """Write zeros with probability p, else ones, into [rows, ...], which may lie in memory as it likes. The
    seed, of 64 bits, and an element's number among all decide.
    """
    if not keep.numel():
        return
    whole = keep[0].is_contiguous()
    flat = (keep if whole else torch.empty(keep.shape, dtype=keep.dtype)).view(len(keep), -1)
    dropped = round(p * (2**32 - 1))
    library(keep.dtype).keep_mask(flat.data_ptr(), *flat.shape, flat.stride(0), dropped, seed)
    if not whole:
        keep.copy_(flat.view(keep.shape))
