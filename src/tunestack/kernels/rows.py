"""Norms and activations of matrices, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from tunestack.kernels.library import at, library


def norm(x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalisation y of s = x + more, [rows, features]; returns y, and s and the rows' means and
    reciprocal deviations, [rows, 2] fp32, which `norm_back` wants again.
    """
    (rows, features), s, y = x.shape, torch.empty_like(x), torch.empty_like(x)
    moments = torch.empty(rows, 2)
    where, threads = (at(s), at(y), at(moments)), torch.get_num_threads()
    library(x.dtype).norm_forward(at(x), at(more), rows, features, at(weight), at(bias), eps, *where, threads)
    return y, s, moments


def norm_back(grad: Tensor, more: Tensor | None, s: Tensor, moments: Tensor, weight: Tensor) -> Tensor:
    """What s gets, given y's gradient, grad or grad + more."""
    found = torch.empty_like(s)
    given, threads = (at(grad), at(more), at(s), at(moments)), torch.get_num_threads()
    library(s.dtype).norm_backward(*given, *s.shape, at(weight), at(found), threads)
    return found


def gelu(x: Tensor) -> Tensor:
    """x Phi(x)."""
    y = torch.empty_like(x)
    library(x.dtype).gelu_forward(at(x), x.numel(), at(y), torch.get_num_threads())
    return y


def gelu_back(grad: Tensor, x: Tensor) -> Tensor:
    """What x gets of the gradient of `gelu`, which it takes the place of."""
    library(x.dtype).gelu_backward(at(grad), at(x), x.numel(), torch.get_num_threads())
    return grad
