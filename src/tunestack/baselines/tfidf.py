"""TF-IDF of word n-grams and a linear model: minutes of work saved, or the bar to clear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from tunestack.arrays import FloatArray, IntArray
from tunestack.baselines.base import (
    Baseline,
    Fitted,
    SavedBaseline,
    Target,
    read_json,
    read_saved,
    unreadable,
    write_baseline,
)
from tunestack.baselines.linear import Linear, fit_linear, read_linear, target_of
from tunestack.baselines.logistic import LogisticOptions
from tunestack.baselines.ridge import RidgeOptions
from tunestack.config import Settings
from tunestack.errors import Problem, UserError
from tunestack.files import write_json

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from tunestack.bases import Base

VOCABULARY = "vocabulary.json"


class TermOptions(Settings):
    """scikit-learn's fields of TfidfVectorizer."""

    ngram_range: tuple[int, int] = (1, 2)
    """Shortest and longest n-gram."""
    analyzer: Literal["word", "char", "char_wb"] = "word"
    """What n-grams are made of: words, characters, or characters inside words."""
    lowercase: bool = True
    """Compare texts without upper case."""
    strip_accents: Literal["ascii", "unicode"] | None = None
    """Remove accents."""
    min_df: int | float = 2
    """Leave out terms in fewer texts than this: a count (integer) or a share (0.0 to 1.0)."""
    max_df: int | float = 1.0
    """Leave out terms in more texts than this: a count (integer) or a share (0.0 to 1.0)."""
    max_features: int | None = Field(default=None, ge=1)
    """Keep only this many of the most frequent terms."""
    sublinear_tf: bool = True
    """Count a term as 1 + ln(occurrences)."""

    @field_validator("ngram_range")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("two integers, 1 <= shortest <= longest")
        return value

    @field_validator("min_df", "max_df", mode="plain")
    @classmethod
    def _count_or_share(cls, value: object) -> int | float:
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return value
        if isinstance(value, float) and 0 <= value <= 1:
            return value
        raise ValueError("a count of texts (an integer of at least 1) or a share of them (0.0 to 1.0)")


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

    def answers(self, texts: Sequence[str], pairs: Sequence[str] | None) -> FloatArray:
        """[texts, classes] or [texts] fp64."""
        return self.linear.answers(self.vectorizer.transform(_documents(texts, pairs)))

    def save(self, folder: Path) -> None:
        """Write the vocabulary as JSON and the numbers as safetensors."""
        saved = SavedBaseline(
            baseline=Tfidf.name,
            label_count=self.linear.label_count,
            target=target_of(self.linear),
            options=self.options.model_dump(mode="json"),
        )
        write_baseline(folder, saved, {"idf": self.vectorizer.idf_, **self.linear.tensors()})
        write_json(folder / VOCABULARY, self.vectorizer.get_feature_names_out().tolist())


class Tfidf(Baseline):
    """TfidfVectorizer and LogisticRegression, or Ridge; sentence pairs are joined to one text."""

    name = "tfidf"
    targets = frozenset({"classes", "numbers", "flags"})
    options_class = TfidfOptions
    numbers_class = TfidfNumberOptions

    def shared_options(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The loss weighs classes as it does in training."""
        return {"class_weight": shared["class_weights"]} if "class_weights" in shared else {}

    def fit(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        labels: IntArray | FloatArray,
        label_count: int,
        options: Settings,
        base: Base | None,
        target: Target = "classes",
    ) -> FittedTfidf:
        """Fit both. Raises UserError where no term is left, or one class only."""
        assert isinstance(options, TermOptions)
        vectorizer = _vectorizer(options)
        try:
            features = vectorizer.fit_transform(_documents(texts, pairs))
        except ValueError as error:
            raise UserError(
                Problem(
                    "tfidf",
                    f"terms that min_df {options.min_df} and max_df {options.max_df} keep",
                    f"{len(texts)} texts: {error}",
                    "Lower min_df, raise max_df, or give more texts.",
                )
            ) from error
        return FittedTfidf(options, vectorizer, fit_linear(features, labels, label_count, options))

    def load(self, folder: Path, base: Base | None) -> FittedTfidf:
        """Build the vectorizer and the linear model from the files."""
        saved = read_saved(folder)
        options = self.make_options(saved.options, target=saved.target)
        assert isinstance(options, TermOptions)
        linear, tensors = read_linear(folder, saved, "idf")
        terms = read_json(folder / VOCABULARY)
        if len(terms) != len(tensors["idf"]):
            raise unreadable(folder / VOCABULARY, f"{len(terms)} terms for {len(tensors['idf'])} weights")
        vectorizer = _vectorizer(options, vocabulary=terms)
        vectorizer.idf_ = tensors["idf"]
        return FittedTfidf(options, vectorizer, linear)


def _vectorizer(options: TermOptions, vocabulary: list[str] | None = None) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    fields: dict[str, Any] = options.model_dump(include=set(TermOptions.model_fields))
    return TfidfVectorizer(**fields, vocabulary=vocabulary, dtype=np.float64)


def _documents(texts: Sequence[str], pairs: Sequence[str] | None) -> Sequence[str]:
    return texts if pairs is None else [f"{text}\n{pair}" for text, pair in zip(texts, pairs, strict=True)]
