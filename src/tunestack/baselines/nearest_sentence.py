"""Nearest sentence: the sentence of the context whose words are most like those of the question."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunestack.arrays import FloatArray
from tunestack.baselines.base import Baseline, Fitted, SavedBaseline, read_saved, read_tensors, write_baseline
from tunestack.baselines.terms import IDF, TermOptions, fit_terms, read_terms, write_terms
from tunestack.config import Settings
from tunestack.tasks.base import Split, Task
from tunestack.tasks.question_answering import QuestionAnswering
from tunestack.tasks.spans import Span, Spans

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from tunestack.bases import Base

_END = re.compile(r"""[.!?…]["'”’»)\]]*[^\S\r\n]+|[。！？।]["”’」』）]*|[\r\n]+""")


class NearestSentenceOptions(TermOptions):
    """scikit-learn's fields of TfidfVectorizer. Sentences are short, and a term may be in one alone."""

    min_df: int | float = 1
    """Leave out terms in fewer sentences than this: a count (integer) or a share (0.0 to 1.0)."""


def sentences(context: str) -> list[Span]:
    """Where the sentences of a text begin and end, in characters, without the spaces around them.

    A sentence ends at . ! ? or … (and closing quotes and brackets) before a space, unless a lower-case letter
    follows; at 。！？ and ।; and with its line. So an abbreviation before a name ends one, too.

    >>> sentences("It was 3.5 m high. Who saw it?")
    [(0, 18), (19, 30)]
    """
    ends = [
        found.end()
        for found in _END.finditer(context)
        if found[0][0] not in ".!?…" or not context[found.end() : found.end() + 1].islower()
    ]
    spans = []
    for start, end in zip([0, *ends], [*ends, len(context)]):
        text = context[start:end]
        first = start + len(text) - len(text.lstrip())
        if text.strip():
            spans.append((first, first + len(text.strip())))
    return spans


class FittedNearestSentence(Fitted):
    """A vocabulary in column order and its inverse document frequencies."""

    def __init__(self, options: TermOptions, vectorizer: TfidfVectorizer) -> None:
        self.options = options
        self.vectorizer = vectorizer
        self.trainable_parameters = self.total_parameters = len(vectorizer.idf_)

    def answers(self, task: Task, split: Split) -> FloatArray:
        """The nearest sentence and its cosine similarity, [questions, 4]; that of no answer is 0."""
        spans = self._ranked(split)
        _, first = np.unique(spans.example, return_index=True)
        best = Spans(spans.example[first], spans.start[first], spans.end[first], spans.score[first])
        return _answering(task).given(best, len(split["context"]))

    def n_best(self, task: Task, split: Split, count: int | None) -> list[list[dict[str, Any]]]:
        """The sentences by their similarity."""
        return _answering(task).ranked(self._ranked(split), split, count)

    def _ranked(self, split: Split) -> Spans:
        """All sentences, the nearest of each question first; of equally near ones the earliest."""
        contexts = list(split["context"])
        cut = {context: sentences(context) for context in dict.fromkeys(contexts)}
        stops = dict(zip(cut, np.cumsum([len(spans) for spans in cut.values()]).tolist()))
        # Rows have the length 1, or 0 where no word is known: products are cosines.
        near = self.vectorizer.transform(_texts(cut) or [""])
        questions = self.vectorizer.transform(list(split["question"]))
        places: list[tuple[int, int, int]] = []
        scores: list[float] = []
        for index, context in enumerate(contexts):
            spans, stop = cut[context], stops[context]
            cosines = (near[stop - len(spans) : stop] @ questions[index].T).toarray().ravel()
            order = np.argsort(-cosines, kind="stable").tolist()
            places += [(index, *spans[place]) for place in order]
            scores += cosines[order].tolist()
        example, start, end = np.asarray(places, dtype=np.int64).reshape(-1, 3).T
        return Spans(example, start, end, np.asarray(scores))

    def save(self, folder: Path) -> None:
        """Write the vocabulary as JSON and the numbers as safetensors."""
        options = self.options.model_dump(mode="json")
        saved = SavedBaseline(baseline=NearestSentence.name, target="spans", options=options)
        write_baseline(folder, saved, {IDF: self.vectorizer.idf_})
        write_terms(folder, self.vectorizer)


class NearestSentence(Baseline):
    """What the words alone tell: the sentence with the highest cosine of TF-IDF with the question."""

    name = "tfidf"
    targets = frozenset({"spans"})
    options_class = NearestSentenceOptions

    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> FittedNearestSentence:
        """Weigh terms by the sentences of the contexts and the questions. Raises UserError without terms."""
        assert isinstance(options, TermOptions)
        cut = {context: sentences(context) for context in dict.fromkeys(split["context"])}
        vectorizer, _ = fit_terms([*_texts(cut), *split["question"]], options)
        return FittedNearestSentence(options, vectorizer)

    def load(self, folder: Path, base: Base | None) -> FittedNearestSentence:
        """Build the vectorizer from the files."""
        options = self.make_options(read_saved(folder).options)
        assert isinstance(options, TermOptions)
        return FittedNearestSentence(options, read_terms(folder, read_tensors(folder, IDF), options))


def _texts(cut: Mapping[str, Sequence[Span]]) -> list[str]:
    """The sentences of all contexts."""
    return [context[start:end] for context, spans in cut.items() for start, end in spans]


def _answering(task: Task) -> QuestionAnswering:
    if not isinstance(task, QuestionAnswering):
        raise TypeError(f"{task.name} has no contexts to take sentences from")
    return task
