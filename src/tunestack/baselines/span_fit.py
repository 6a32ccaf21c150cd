"""Fitting a linear layer on token states to the task's loss, with an L2 penalty: a convex problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunestack.arrays import FloatArray, IntArray
from tunestack.baselines.features import BATCH_TOKENS, Encoder
from tunestack.baselines.logistic import STRENGTHS, held_out
from tunestack.data.encode import Encoded
from tunestack.tasks.base import Task

TOLERANCE = 1e-4
"""Where no entry of the gradient is larger than this, the minimum is found; scikit-learn's `tol`."""


@dataclass(frozen=True)
class Tokens:
    """Token states of windows, one window after the other.

    states: [tokens, width] fp32. lengths: tokens of each window [windows]. targets: what the task's loss
    compares with, [windows, ...].
    """

    states: Tensor
    lengths: IntArray
    targets: Tensor

    @cached_property
    def _own(self) -> Tensor:
        """[windows, tokens of the longest], which of them there are."""
        return torch.arange(int(self.lengths.max())) < torch.from_numpy(self.lengths)[:, None]

    def loss(self, task: Task, weight: Tensor) -> Tensor:
        """The task's loss with this weight, [width, 2] fp64: the mean over windows."""
        logits = torch.zeros(*self._own.shape, weight.shape[1], dtype=torch.float64)
        logits[self._own] = (self.states @ weight.float()).double()
        return task.loss(logits, self.targets, None)

    def parts(self, windows: int) -> tuple[Tokens, Tokens]:
        """The first so many windows, and the others; nothing is copied."""
        stop = int(self.lengths[:windows].sum())
        return (
            Tokens(self.states[:stop], self.lengths[:windows], self.targets[:windows]),
            Tokens(self.states[stop:], self.lengths[windows:], self.targets[windows:]),
        )


def fit_spans(
    task: Task,
    encoder: Encoder,
    encoded: Encoded,
    rows: IntArray,
    groups: Sequence[str],
    strength: float | None,
    max_iter: int,
) -> FloatArray:
    """The weight with the least sum of the task's losses * strength + squares of the weight / 2, [2, width].

    That is scikit-learn's `C`, for features of mean 0 and variance 1; the weight is expressed in the features
    as they are. There is no intercept: added to all tokens, it changes no softmax. groups: of each row, its
    context. strength: none: the best of `STRENGTHS` on a fifth of the contexts, held out. Folds, as
    elsewhere, would take as many times as long, and every row has hundreds of tokens.
    """
    fitted, held = held_out(groups) if strength is None else (np.arange(len(rows)), np.arange(0))
    tokens = _tokens(task, encoder, encoded, rows[np.concatenate([fitted, held])])
    scale = _standardise(tokens.states)
    weight = torch.zeros(encoder.width, 2, dtype=torch.float64)
    if strength is None and len(held):
        strength, weight = _best_strength(task, *tokens.parts(len(fitted)), weight, max_iter)
    weight = minimum(task, tokens, strength or 1.0, weight, max_iter)
    return np.asarray((weight / scale[:, None]).T.numpy())


def _best_strength(
    task: Task, fitted: Tokens, held: Tokens, weight: Tensor, max_iter: int
) -> tuple[float, Tensor]:
    """The strength with the least loss on what was held out, and its weight.

    From strong to weak penalties, each begins where the last one ended; the first that does worse ends it,
    for the weaker a penalty, the longer it takes.
    """
    least, best = np.inf, (STRENGTHS[0], weight)
    for strength in STRENGTHS:
        weight = minimum(task, fitted, strength, weight, max_iter)
        loss = held.loss(task, weight).item()
        if loss >= least:
            break
        least, best = loss, (strength, weight)
    return best


def minimum(task: Task, tokens: Tokens, strength: float, start: Tensor, max_iter: int) -> Tensor:
    """The weight [width, 2] fp64 that minimises mean loss + squares / (2 * strength * windows), by L-BFGS."""
    from scipy.optimize import minimize

    penalty = 1 / (strength * len(tokens.lengths))

    def objective(flat: Any) -> tuple[float, FloatArray]:
        weight = torch.tensor(flat).view_as(start).requires_grad_()
        value = tokens.loss(task, weight) + penalty / 2 * weight.square().sum()
        (gradient,) = torch.autograd.grad(value, weight)
        return value.item(), gradient.flatten().numpy()

    options: Any = {"maxiter": max_iter, "maxls": 50, "gtol": TOLERANCE, "ftol": 64 * np.finfo(float).eps}
    found = minimize(objective, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x).view_as(start)


def _tokens(task: Task, encoder: Encoder, encoded: Encoded, rows: IntArray) -> Tokens:
    """The states of these rows, in their order."""
    lengths = encoded.lengths[rows]
    stops = np.cumsum(lengths)
    place = dict(zip(rows.tolist(), range(len(rows))))
    states = torch.empty(int(lengths.sum()), encoder.width)
    for batch, hidden, _ in encoder.states(encoded, rows):
        for row, own in zip(batch.tolist(), hidden.cpu()):
            stop, length = stops[place[row]], int(encoded.lengths[row])
            states[stop - length : stop] = own[:length]
    return Tokens(states, lengths, task.targets(encoded, rows))


def _standardise(states: Tensor) -> Tensor:
    """Give features mean 0 and variance 1, in place; what they were divided by, [width] fp64."""
    sums = torch.zeros(2, states.shape[1], dtype=torch.float64)
    for part in states.split(BATCH_TOKENS):
        sums += torch.stack([part.double().sum(dim=0), part.double().square().sum(dim=0)])
    mean, squares = sums / len(states)
    variance = squares - mean.square()
    scale = torch.where(variance > 1e-12 * squares, variance, 1.0).sqrt()
    states.sub_(mean.float()).div_(scale.float())
    return scale
