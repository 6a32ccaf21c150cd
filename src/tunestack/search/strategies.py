"""Samplers and pruners, as Optuna has them, with settings that follow from the sweep's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

REDUCTION = 3
"""One of so many trials goes on at a rung, which lies at so many times the evaluations of the one before."""

LEARNING = ("tpe", "bayes")
"""Samplers that learn from trials that have ended."""
WAITING = ("median",)
"""Pruners that compare with trials that have ended; the others compare with whoever came as far."""


def make_sampler(kind: str, seed: int, number: int, conditional: bool) -> BaseSampler:
    """The sampler of one trial.

    It depends on seed and number alone, so that a resumed sweep goes on as it would have, and repeats no
    random draw.

    conditional: whether some parameters exist with some methods only. Parzen estimators then model each
    method's together; a Gaussian process has only those that all share, and leaves the others to Parzen
    estimators. These take trials in training for bad ones (the constant liar), so that a full stack does not
    get one point several times.
    """
    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if kind == "random":
        return RandomSampler(seed=drawn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        parzen = TPESampler(seed=drawn, group=conditional and kind == "tpe", constant_liar=True)
    if kind == "tpe":
        return parzen
    return GPSampler(seed=drawn, independent_sampler=parzen, warn_independent_sampling=False)


def make_pruner(kind: str, evaluations: int) -> BasePruner:
    """Who stops trials early. Evaluations are counted from 1; so many has the longest trial.

    Nobody is stopped before about a ninth of the longest training. Successive halving keeps one trial in
    three there, and again after three times as much. Hyperband also has brackets that begin later. The
    median waits for five finished trials that had as much training, and compares with what they had then.
    """
    first = math.ceil(evaluations / REDUCTION**2)
    makers: dict[str, Callable[[], BasePruner]] = {
        "none": NopPruner,
        "halving": lambda: SuccessiveHalvingPruner(min_resource=first, reduction_factor=REDUCTION),
        "hyperband": lambda: HyperbandPruner(
            min_resource=first, max_resource=evaluations, reduction_factor=REDUCTION
        ),
        "median": lambda: MedianPruner(n_startup_trials=5, n_warmup_steps=first, n_min_trials=5),
    }
    return makers[kind]()
