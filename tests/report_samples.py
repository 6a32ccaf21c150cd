"""Made-up but consistent results: every score is scikit-learn's, on predictions drawn from a seed."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

from tunestack.results import (
    Candidate,
    Comparison,
    Costs,
    CurvePoint,
    DataSummary,
    HardExample,
    Interval,
    Results,
    SeedResult,
    SplitScores,
    Summary,
    Verdict,
)

NASTY = '<script>alert(1)</script> </script><img src=x onerror=alert(2)> & "quotes" {{ 7 * 7 }} | pipe'
_TEXTS = [
    "The server room is on fire, everybody is out, waiting for the brigade",
    "this album is absolute FIRE, I am deceased",
    NASTY,
    "flood of emails this morning, send help",
    "Smoke on the second floor again. Not a drill this time #evacuate",
    "my inbox: a natural disaster in four acts",
]


@dataclass(frozen=True)
class Recipe:
    """How one candidate is drawn: `skill` is the share of easy enough examples."""

    name: str
    method: str
    base: str | None
    skill: float
    costs: Costs
    epochs: int = 0
    hyperparameters: dict[str, Any] = field(default_factory=dict)


def _costs(seconds: float, memory: float, trainable: int, total: int | None, disk: int, rate: float) -> Costs:
    return Costs(
        train_seconds=seconds,
        seconds_per_step=seconds / 2283,
        peak_memory_bytes=int(memory * 1e9),
        trainable_parameters=trainable,
        total_parameters=total,
        adapter_bytes=disk,
        inference_examples_per_second=rate,
    )


_LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "value"], "learning_rate": 5e-4}
RECIPES = [
    Recipe("majority", "majority", None, 0.0, _costs(0.0004, 0.21, 0, None, 312, 2.1e6)),
    Recipe("tfidf", "tfidf", None, 0.775, _costs(0.61, 0.29, 21_402, None, 742_118, 41_200), 0, {"C": 1.0}),
    Recipe(
        "linear-probe · minilm-l6",
        "linear-probe",
        "packaged:minilm-l6",
        0.79,
        _costs(19.4, 0.83, 770, 22_713_986, 3_480, 412),
        0,
        {"C": 1.0},
    ),
    Recipe(
        "lora r=8 · minilm-l3",
        "lora",
        "packaged:minilm-l3",
        0.80,
        _costs(58.2, 0.94, 37_634, 17_427_332, 151_300, 742),
        5,
        _LORA,
    ),
    Recipe(
        "lora r=8 · minilm-l6",
        "lora",
        "packaged:minilm-l6",
        0.822,
        _costs(131.0, 1.12, 74_498, 22_788_484, 299_900, 371),
        5,
        _LORA,
    ),
    Recipe(
        "full · minilm-l6",
        "full",
        "packaged:minilm-l6",
        0.85,
        _costs(402.0, 1.71, 22_713_986, 22_713_986, 90_861_040, 398),
        5,
        {"learning_rate": 5e-5},
    ),
]


def sample_results(
    folder: Path | None = None,
    *,
    recipes: list[Recipe] = RECIPES,
    label_names: tuple[str, ...] = ("not a disaster", "disaster"),
    seeds: tuple[int, ...] = (1, 2, 3),
    rows: int = 400,
    test: bool = True,
    ship: str = "lora r=8 · minilm-l6",
    behind: tuple[str, ...] = ("majority", "tfidf", "linear-probe · minilm-l6"),
) -> Results:
    """A comparison on disaster tweets; with a `folder`, its predictions are written there."""
    generator = np.random.default_rng(7)
    metric = "f1" if len(label_names) == 2 else "f1_macro"
    splits = {"validation": _Split(generator, rows, label_names)}
    if test:
        splits["test"] = _Split(generator, rows, label_names)
    candidates = [_candidate(recipe, splits, seeds, metric, generator, folder) for recipe in recipes]
    top = max(candidates, key=lambda candidate: candidate.validation[metric].mean)
    best = top.name
    compared = [
        candidate
        if candidate.name == best
        else candidate.model_copy(update={"comparison": _comparison(candidate, top, metric, behind)})
        for candidate in candidates
    ]
    counts = {
        name: np.bincount(split.truth, minlength=len(label_names)).tolist() for name, split in splits.items()
    }
    counts["train"] = [3_474, 2_616] if len(label_names) == 2 else [90] * len(label_names)
    return Results(
        created="2026-11-21T09:47:03+00:00",
        metric=metric,
        data=DataSummary(
            source="tweets.csv",
            rows={name: sum(counts[name]) for name in ("train", *splits)},
            label_names=list(label_names),
            label_counts={name: counts[name] for name in ("train", *splits)},
            warnings=[
                "110 texts occur more than once; identical texts were kept on one side of the split.",
                "18 texts carry both labels <b>somewhere</b>: their rows bound what any model can reach.",
            ],
        ),
        candidates=compared,
        verdict=Verdict(
            sentence=f"No clear winner: {best} scores highest, but {ship} cannot be told apart from it "
            "and trains in a third of the time.",
            best=best,
            ship=ship,
            clear=False,
        ),
        hard_examples=[
            HardExample(
                row=position * 3,
                text=_TEXTS[position % len(_TEXTS)],
                label=label_names[position % 2],
                predicted=label_names[(position + 1) % 2],
            )
            for position in range(23)
        ],
        environment={"python": "3.11.9", "torch": "2.13.0", "processor": "2 cores, AVX-512 bf16"},
        config={
            "data": {"train": "tweets.csv", "text": "text", "label": "target", "train_size": 0.8, "seed": 42},
            "bases": [{"model": "packaged:minilm-l6"}, {"model": "packaged:minilm-l3"}],
            "training": {"epochs": 5, "batch_size": 8, "learning_rate": 1e-4},
            "seeds": list(seeds),
            "output": "runs/tweets",
        },
    )


def many_recipes(count: int) -> list[Recipe]:
    """A grid of LoRA candidates beside a majority baseline, with one very long name."""
    grid = [
        Recipe(
            f"lora r={2 ** (1 + n % 6)} lr={(1 + n // 6) * 1e-4:g}"
            + (" a_very_long_name" * 9 if n == 3 else ""),
            "lora",
            "packaged:minilm-l6",
            0.76 + 0.0023 * n,
            _costs(60 * 1.09**n, 0.9 + 0.02 * n, 9_000 * (n + 1), 22_788_484, 40_000 * (n + 1), 371),
            4,
            {"r": 2 ** (1 + n % 6)},
        )
        for n in range(count - 1)
    ]
    return [RECIPES[0], *grid]


def bare_results() -> Results:
    """The least there can be: one candidate that failed, no verdict, no data on anything."""
    return Results(
        created="",
        metric="f1",
        data=DataSummary(source="x.csv", rows={}, label_names=[], label_counts={}, warnings=[]),
        candidates=[
            Candidate(
                name="lora",
                base="random:tiny.json",
                method="lora",
                kind="method",
                hyperparameters={},
                seeds=[SeedResult(seed=1, failure="out of memory <b>even</b> with one slot")],
            )
        ],
        verdict=None,
        environment={},
        config={},
    )


class _Split:
    """Labels, and how hard each example is: a candidate errs where the example is harder than its skill."""

    def __init__(self, generator: np.random.Generator, rows: int, label_names: tuple[str, ...]) -> None:
        self.label_names = label_names
        weights = np.array([0.57, 0.43]) if len(label_names) == 2 else None
        self.truth = generator.choice(len(label_names), rows, p=weights)
        self.truth[: len(label_names)] = np.arange(len(label_names))
        self.hardness = generator.uniform(size=rows)
        self.other = (self.truth + generator.integers(1, len(label_names), rows)) % len(label_names)

    def predict(self, skill: float, generator: np.random.Generator) -> np.ndarray:
        if skill == 0:
            return np.zeros_like(self.truth)
        wrong = self.hardness + generator.normal(0, 0.05, len(self.truth)) > skill
        return np.where(wrong, self.other, self.truth)


def _scores(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, float]:
    average = "binary" if classes == 2 else "macro"
    return {
        "f1" if classes == 2 else "f1_macro": float(
            f1_score(truth, predicted, average=average, zero_division=0)
        ),
        "accuracy": float(accuracy_score(truth, predicted)),
        "mcc": float(matthews_corrcoef(truth, predicted)),
    }


def _candidate(
    recipe: Recipe,
    splits: dict[str, _Split],
    seeds: tuple[int, ...],
    metric: str,
    generator: np.random.Generator,
    folder: Path | None,
) -> Candidate:
    runs = []
    for seed in seeds:
        scored: dict[str, SplitScores] = {}
        for name, split in splits.items():
            predicted = split.predict(recipe.skill, generator)
            path = f"predictions/{recipe.name.replace(' ', '_')}-{seed}-{name}.csv"
            scored[name] = SplitScores(
                metrics=_scores(split.truth, predicted, len(split.label_names)),
                confusion=confusion_matrix(
                    split.truth, predicted, labels=range(len(split.label_names))
                ).tolist(),
                predictions_path=path,
            )
            if folder is not None:
                _write_predictions(folder / path, split, predicted, np.random.default_rng(seed))
        runs.append(
            SeedResult(
                seed=seed,
                **scored,
                best_epoch=float(recipe.epochs - (seed % 2)) if recipe.epochs else None,
                curves=_curves(recipe.epochs, scored["validation"].metrics[metric], metric, generator),
                stacked_seconds=recipe.costs.train_seconds,
                adapter_path=f"adapters/{recipe.name}/seed-{seed}",
            )
        )
    return Candidate(
        name=recipe.name,
        base=recipe.base,
        method=recipe.method,
        reads_text=recipe.method != "majority",
        kind="baseline" if recipe.base is None or recipe.method == "linear-probe" else "method",
        hyperparameters=recipe.hyperparameters,
        seeds=runs,
        validation=_summaries(
            [run.validation for run in runs if run.validation], len(splits["validation"].truth)
        ),
        test=_summaries([run.test for run in runs if run.test], len(splits["validation"].truth)),
        costs=recipe.costs,
    )


def _summaries(scores: list[SplitScores], rows: int) -> dict[str, Summary]:
    summaries = {}
    for metric in scores[0].metrics if scores else ():
        values = [score.metrics[metric] for score in scores]
        mean = float(np.mean(values))
        half = 1.96 * math.sqrt(max(mean * (1 - mean), 0) / rows + float(np.var(values)))
        summaries[metric] = Summary(
            mean=mean, std=float(np.std(values)), interval=Interval(low=mean - half, high=mean + half)
        )
    return summaries


def _comparison(candidate: Candidate, best: Candidate, metric: str, behind: tuple[str, ...]) -> Comparison:
    difference = best.validation[metric].mean - candidate.validation[metric].mean
    significant = candidate.name in behind
    half = abs(difference) * 0.6 + 0.001 if significant else abs(difference) + 0.009
    return Comparison(
        best=best.name,
        difference=difference,
        interval=Interval(low=difference - half, high=difference + half),
        test="paired bootstrap",
        p_value=0.0002 if significant else 0.21,
        p_value_corrected=0.0008 if significant else 0.42,
        significant=significant,
    )


def _curves(epochs: int, final: float, metric: str, generator: np.random.Generator) -> list[CurvePoint]:
    return [
        CurvePoint(
            epoch=epoch,
            step=762 * epoch,
            train_loss=0.62 * 0.72**epoch + generator.normal(0, 0.004),
            validation_loss=0.44 + 0.03 * (epoch - 2.5) ** 2 / 3 + generator.normal(0, 0.004),
            metrics={metric: final - 0.09 * 0.4 ** (epoch - 1) + generator.normal(0, 0.004)},
        )
        for epoch in range(1, epochs + 1)
    ]


def _write_predictions(
    path: Path, split: _Split, predicted: np.ndarray, generator: np.random.Generator
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["row", "label", "prediction", *(f"prob_{name}" for name in split.label_names)])
        for row, (truth, guess) in enumerate(zip(split.truth, predicted)):
            probabilities = generator.dirichlet(np.ones(len(split.label_names)))
            top = int(np.argmax(probabilities))
            probabilities[[top, guess]] = probabilities[[guess, top]]
            names = split.label_names
            writer.writerow([row, names[truth], names[guess], *np.round(probabilities, 6)])


def with_candidate(results: Results, which: str, **changes: object) -> Results:
    """The same results, with one candidate changed."""
    candidates = [
        candidate.model_copy(update=changes) if candidate.name == which else candidate
        for candidate in results.candidates
    ]
    return results.model_copy(update={"candidates": candidates})
