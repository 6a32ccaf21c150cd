"""TF-IDF of word n-grams and a linear model: minutes of work saved, or the bar to clear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunestack.arrays import FloatArray
from tunestack.baselines.base import (
    Baseline,
    Fitted,
    SavedBaseline,
    read_saved,
    texts_of,
    write_baseline,
)
from tunestack.baselines.linear import Linear, fit_linear, read_linear, target_of
from tunestack.baselines.logistic import LogisticOptions
from tunestack.baselines.ridge import RidgeOptions
from tunestack.baselines.terms import IDF, TermOptions, fit_terms, read_terms, write_terms
from tunestack.config import Settings
from tunestack.tasks.base import Split, Task

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from tunestack.bases import Base


class TfidfOptions(TermOptions, LogisticOptions):
    """scikit-learn's fields of TfidfVectorizer and LogisticRegression."""


class TfidfNumberOptions(TermOptions, RidgeOptions):
    """scikit-learn's fields of TfidfVectorizer and Ridge."""


class FittedTfidf(Fitted):
    """A vocabulary in column order, its inverse document frequencies, and the linear model."""

    def __init__(self, options: TermOptions, vectorizer: TfidfVectorizer, linear: Linear) -> None:
        self.options = options
        self.vectorizer = vectorizer
        self.linear = linear
        self.trainable_parameters = self.total_parameters = linear.parameters + len(vectorizer.idf_)

    def answers(self, task: Task, split: Split) -> FloatArray:
        """[texts, classes] or [texts] fp64."""
        return self.linear.answers(self.vectorizer.transform(_documents(split)))

    def save(self, folder: Path) -> None:
        """Write the vocabulary as JSON and the numbers as safetensors."""
        saved = SavedBaseline(
            baseline=Tfidf.name,
            label_count=self.linear.label_count,
            target=target_of(self.linear),
            options=self.options.model_dump(mode="json"),
        )
        write_baseline(folder, saved, {IDF: self.vectorizer.idf_, **self.linear.tensors()})
        write_terms(folder, self.vectorizer)


class Tfidf(Baseline):
    """TfidfVectorizer and LogisticRegression; sentence pairs are joined to one text."""

    name = "tfidf"
    targets = frozenset({"classes", "flags"})
    options_class: ClassVar[type[Settings]] = TfidfOptions

    def shared_options(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The loss weighs classes as it does in training."""
        return {"class_weight": shared["class_weights"]} if "class_weights" in shared else {}

    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> FittedTfidf:
        """Fit both. Raises UserError where no term is left, or one class only."""
        assert isinstance(options, TermOptions)
        vectorizer, features = fit_terms(_documents(split), options)
        linear = fit_linear(features, np.asarray(split["label"]), len(task.label_names), options)
        return FittedTfidf(options, vectorizer, linear)

    def load(self, folder: Path, base: Base | None) -> FittedTfidf:
        """Build the vectorizer and the linear model from the files."""
        saved = read_saved(folder)
        options = self.make_options(saved.options)
        assert isinstance(options, TermOptions)
        linear, tensors = read_linear(folder, saved, IDF)
        return FittedTfidf(options, read_terms(folder, tensors, options), linear)


class TfidfOfNumbers(Tfidf):
    """TfidfVectorizer and Ridge."""

    targets = frozenset({"numbers"})
    options_class = TfidfNumberOptions


def _documents(split: Split) -> list[str]:
    texts, pairs = texts_of(split)
    return texts if pairs is None else [f"{text}\n{pair}" for text, pair in zip(texts, pairs, strict=True)]
