"""A made-up but consistent sweep: its scores are scikit-learn's, its slots are filled as trials end."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from report_samples import Recipe, _candidate, _comparison, _costs, _Split, sample_results
from tunestack.results import (
    Candidate,
    Costs,
    CurvePoint,
    Results,
    SearchSummary,
    SearchTrial,
    Span,
    Verdict,
)

EPOCHS = 4
EVERY = 0.5
"""Epochs between evaluations."""
START = 1_795_282_884.5


def sample_sweep(trials: int = 32, slots: int = 4, *, confirmed: bool = False, seed: int = 9) -> Results:
    """A sweep over two methods: conditional parameters, trials pruned at their middle, two that failed."""
    generator = np.random.default_rng(seed)
    split = _Split(generator, 1523, ("not a disaster", "disaster"))
    free = [START] * slots
    found: list[SearchTrial] = []
    candidates: list[Candidate] = []
    for number in range(trials):
        parameters = _parameters(number, trials, generator)
        skill = _skill(parameters)
        slot = int(np.argmin(free))
        trial = SearchTrial(
            number=number,
            name=f"trial-{number}",
            method=parameters["method"],
            parameters=parameters,
            state="complete",
        )
        began = free[slot] + 0.2
        if number == 5:  # never trained
            failure = "r=32 does not fit the base: expected at most 24"
            found.append(trial.model_copy(update={"state": "failed", "failure": failure}))
            continue
        candidate = _trained(trial.name, parameters, skill, split, generator)
        value = candidate.validation["f1"].mean
        curve = _curve(value, parameters["learning_rate"], generator)
        stopped = _stopped(curve, found)
        update: dict[str, Any] = {"curve": curve, "value": value}
        if number == 13:
            update = {"state": "failed", "failure": "the loss is not finite at step 190", "curve": curve[:1]}
        elif stopped:
            curve = curve[:stopped]
            update = {"state": "pruned", "curve": curve, "value": max(p.metrics["f1"] for p in curve)}
        else:
            candidates.append(candidate)
        seconds = 11.0 * len(update["curve"]) * (1 + 0.1 * generator.uniform())
        free[slot] = began + seconds
        update["spans"] = [Span(slot=slot, began=began, ended=free[slot])]
        found.append(trial.model_copy(update=update))
    return _results(found, candidates, confirmed)


def with_trials(trials: list[SearchTrial], **update: object) -> Results:
    """The sample with other trials; `update`: of the results themselves."""
    results = sample_sweep()
    return results.model_copy(
        update={"search": results.search.model_copy(update={"trials": trials})} | update
    )


def _parameters(number: int, trials: int, generator: np.random.Generator) -> dict[str, Any]:
    """Drawn wide at first and close to the best later, as a sampler would."""
    width = 1.1 * (1 - 0.75 * number / trials)
    method = "lora" if generator.uniform() < 0.5 + 0.3 * number / trials else "bottleneck"
    parameters: dict[str, Any] = {
        "method": method,
        "learning_rate": float(10 ** np.clip(generator.normal(-3.2, width), -5, -1.5)),
        "warmup_ratio": float(generator.uniform(0, 0.2)),
    }
    if method == "lora":
        parameters["r"] = int(generator.choice([2, 4, 8, 16, 32]))
        modules = [["query", "value"], ["query", "key", "value"], ["query", "key", "value", "dense"]]
        parameters["target_modules"] = modules[generator.integers(3)]
    else:
        parameters["reduction_factor"] = int(generator.choice([2, 4, 16]))
        parameters["non_linearity"] = str(generator.choice(["gelu", "relu"]))
    return parameters


def _skill(parameters: dict[str, Any]) -> float:
    away = math.log10(parameters["learning_rate"]) + 3.2
    if away > 1.3:
        return 0.0  # diverged: one class for everything
    gain = 0.004 * math.log2(parameters["r"]) if "r" in parameters else 0.002
    return 0.85 - 0.055 * away**2 + gain - 0.1 * (parameters["warmup_ratio"] - 0.08) ** 2


def _trained(
    name: str, parameters: dict[str, Any], skill: float, split: _Split, generator: np.random.Generator
) -> Candidate:
    recipe = Recipe(
        name, parameters["method"], "packaged:minilm-l6", skill, _costs(0, 0, 0, 0, 0, 1), EPOCHS, parameters
    )
    candidate = _candidate(recipe, {"validation": split}, (1,), "f1", generator, None)
    return candidate.model_copy(update={"costs": Costs()})


def _curve(value: float, learning_rate: float, generator: np.random.Generator) -> list[CurvePoint]:
    """Evaluations that rise to `value`: the faster, the higher the rate."""
    count = round(EPOCHS / EVERY)
    speed = 0.3 + 0.3 * (math.log10(learning_rate) + 5) * generator.uniform(0.6, 1)
    drop = generator.uniform(0.1, 0.35)
    values = [value * (1 - drop * math.exp(-speed * n)) + generator.normal(0, 0.008) for n in range(count)]
    values = [min(max(each, 0.0), value) for each in values]
    values[-1] = value
    return [
        CurvePoint(
            epoch=EVERY * (n + 1),
            step=381 * (n + 1),
            train_loss=0.62 * 0.8**n,
            validation_loss=0.45,
            metrics={"f1": each},
        )
        for n, each in enumerate(values)
    ]


def _stopped(curve: list[CurvePoint], before: list[SearchTrial]) -> int | None:
    """After how many evaluations, three or more, a trial was worse than most before it; None: never."""
    for n in range(2, len(curve) - 1):
        others = [trial.curve[n].metrics["f1"] for trial in before if len(trial.curve) > n]
        if len(others) >= 5 and curve[n].metrics["f1"] < np.quantile(others, 0.4):
            return n + 1
    return None


def _results(trials: list[SearchTrial], candidates: list[Candidate], confirmed: bool) -> Results:
    top = max(candidates, key=lambda candidate: candidate.validation["f1"].mean)
    behind = tuple(c.name for c in candidates if c.validation["f1"].mean < top.validation["f1"].mean - 0.02)
    compared = [
        c if c is top else c.model_copy(update={"comparison": _comparison(c, top, "f1", behind)})
        for c in candidates
    ]
    plain = sample_results(test=False, rows=1523)
    sentence = (
        f"{top.name} has the highest f1 on validation, {top.validation['f1'].mean:.3f}, of {len(candidates)} "
        f"complete trials of {len(trials)}."
    )
    return plain.model_copy(
        update={
            "candidates": compared,
            "verdict": Verdict(sentence=sentence, best=top.name, ship=top.name, clear=False),
            "hard_examples": plain.hard_examples[:4],
            "search": SearchSummary(
                sampler="tpe",
                pruner="median",
                trials=trials,
                importances={"learning_rate": 0.81, "method": 0.12, "warmup_ratio": 0.07},
                confirmed="confirmed" if confirmed else None,
            ),
            "config": {
                "search": {
                    "learning_rate": {"min": 1e-5, "max": 0.03, "log": True},
                    "warmup_ratio": {"min": 0.0, "max": 0.2},
                },
                "methods": [{"method": "lora", "search": {"r": [2, 4, 8, 16, 32]}}, {"method": "bottleneck"}],
                "trials": len(trials),
            },
        }
    )
