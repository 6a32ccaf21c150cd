"""TF-IDF of n-grams with its vocabulary in a file, so that it can be saved without pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from tunestack.baselines.base import Tensors, read_json, unreadable
from tunestack.config import Settings
from tunestack.errors import Problem, UserError
from tunestack.files import write_json

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

VOCABULARY = "vocabulary.json"
IDF = "idf"
"""The tensor of inverse document frequencies, in the order of the vocabulary."""


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


def fit_terms(documents: Sequence[str], options: TermOptions) -> tuple[TfidfVectorizer, Any]:
    """A vectorizer fitted on the documents, and what it makes of them: sparse [documents, terms] fp64.

    Raises UserError where no term is left.
    """
    vectorizer = _vectorizer(options)
    try:
        return vectorizer, vectorizer.fit_transform(documents)
    except ValueError as error:
        raise UserError(
            Problem(
                "tfidf",
                f"terms that min_df {options.min_df} and max_df {options.max_df} keep",
                f"{len(documents)} texts: {error}",
                "Lower min_df, raise max_df, or give more texts.",
            )
        ) from error


def write_terms(folder: Path, vectorizer: TfidfVectorizer) -> None:
    """Write the vocabulary as JSON, in column order."""
    write_json(folder / VOCABULARY, vectorizer.get_feature_names_out().tolist())


def read_terms(folder: Path, tensors: Tensors, options: TermOptions) -> TfidfVectorizer:
    """The vectorizer of a saved baseline. Raises UserError for a missing or damaged file."""
    terms = read_json(folder / VOCABULARY)
    if len(terms) != len(tensors[IDF]):
        raise unreadable(folder / VOCABULARY, f"{len(terms)} terms for {len(tensors[IDF])} weights")
    vectorizer = _vectorizer(options, vocabulary=terms)
    vectorizer.idf_ = tensors[IDF]
    return vectorizer


def _vectorizer(options: TermOptions, vocabulary: list[str] | None = None) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    fields: dict[str, Any] = options.model_dump(include=set(TermOptions.model_fields))
    return TfidfVectorizer(**fields, vocabulary=vocabulary, dtype=np.float64)
