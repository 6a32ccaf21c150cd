"""Linear probe of tags: logistic regression on a frozen base's last hidden state of a word's first token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from tunestack.arrays import FloatArray, IntArray
from tunestack.baselines.base import Baseline, Fitted, SavedBaseline, read_saved, write_baseline
from tunestack.baselines.features import Encoder, FeatureOptions
from tunestack.baselines.linear import fit_standardised, read_linear
from tunestack.baselines.logistic import STRENGTHS, Logistic, LogisticOptions, fit_logistic, held_out
from tunestack.config import Settings
from tunestack.data.words import EncodedWords, words_of
from tunestack.tasks.base import Given, Split, Task
from tunestack.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from tunestack.bases import Base


class TagProbeOptions(FeatureOptions):
    """scikit-learn's fields of LogisticRegression, and how much is read."""

    C: float | None = Field(default=None, gt=0)
    """Inverse strength of the L2 penalty; none: chosen on a fifth of the training sentences, held out."""
    max_iter: int = Field(default=1000, ge=1)
    """Iterations of L-BFGS at most."""
    max_words: int = Field(default=100_000, ge=1)
    """Words that it is fitted on; where there are more, sentences at even distances are taken."""


class FittedTagProbe(Fitted):
    """A regression on the states of words; the standardisation is folded into its weights."""

    def __init__(self, options: TagProbeOptions, encoder: Encoder, linear: Logistic) -> None:
        self.options = options
        self.encoder = encoder
        self.linear = linear
        self.trainable_parameters = linear.parameters
        self.total_parameters = linear.parameters + encoder.parameters

    def answers(self, task: Task, split: Split) -> Given:
        """Tag ids [sentences, words of the longest], padded with -1."""
        encoded = _encoded(task, self.encoder, split, self.options)
        tags = np.empty(int(encoded.words.sum()), dtype=np.int64)
        for words, states in _states(self.encoder, encoded):
            tags[words] = self.linear.answers(states.astype(np.float64)).argmax(axis=1)
        given = np.full((len(encoded.words), int(encoded.words.max(initial=0))), -1, dtype=np.int64)
        given[np.arange(given.shape[1]) < encoded.words[:, None]] = tags
        return given

    def save(self, folder: Path) -> None:
        """Write the options, the base's name and the regression; the base itself is not copied."""
        saved = SavedBaseline(
            baseline=TagProbe.name,
            label_count=self.linear.label_count,
            target="tags",
            base=self.encoder.base.name,
            options=self.options.model_dump(mode="json"),
        )
        write_baseline(folder, saved, self.linear.tensors())


class TagProbe(Baseline):
    """What a frozen base knows already of words in their sentences, before any fine-tuning."""

    name = "linear-probe"
    needs_base = True
    targets = frozenset({"tags"})
    options_class = TagProbeOptions

    def shared_options(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Rows are as long as in training. Classes are not weighed there."""
        return {"max_length": shared["max_length"]} if "max_length" in shared else {}

    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> FittedTagProbe:
        """Encode with the frozen base, standardise, fit. Raises UserError for one tag only."""
        assert isinstance(options, TagProbeOptions)
        encoder = self._encoder(base)
        some = _some_sentences(split, options.max_words)
        encoded = _encoded(task, encoder, some, options)
        tags = np.concatenate(encoded.labels)
        features = np.empty((len(tags), encoder.width), dtype=np.float32)
        for words, states in _states(encoder, encoded):
            features[words] = states
        fitted, _ = held_out([" ".join(words) for words in some["tokens"]])
        learnt = np.repeat(np.isin(np.arange(len(encoded.words)), fitted), encoded.words)

        def fit(standardised: FloatArray) -> Logistic:
            strength = options.C or _best_strength(standardised, tags, learnt, options.max_iter)
            own = LogisticOptions(C=strength, class_weight=None, max_iter=options.max_iter)
            return fit_logistic(standardised, tags, len(task.label_names), own)

        return FittedTagProbe(options, encoder, fit_standardised(features, fit))

    def load(self, folder: Path, base: Base | None) -> FittedTagProbe:
        """Read the regression, to be used on the base that it was fitted on."""
        saved = read_saved(folder)
        options = self.make_options(saved.options)
        assert isinstance(options, TagProbeOptions)
        linear, _ = read_linear(folder, saved)
        assert isinstance(linear, Logistic)
        encoder = self._encoder(base)
        encoder.check_width(linear.coef.shape[-1], folder, saved.base)
        return FittedTagProbe(options, encoder, linear)

    def _encoder(self, base: Base | None) -> Encoder:
        return Encoder(self.base_of(base), TokenClassification.auto_class)


def _encoded(task: Task, encoder: Encoder, split: Split, options: TagProbeOptions) -> EncodedWords:
    encoded = task.encode(encoder.base, split, options.max_length)
    assert isinstance(encoded, EncodedWords)
    return encoded


def _some_sentences(split: Split, max_words: int) -> dict[str, list[Any]]:
    """Tokens and tags of all sentences, or of as many at even distances as have about so many words."""
    sentences = [words_of(value) for value in split["tokens"]]
    share = min(1.0, max_words / sum(map(len, sentences)))
    count = max(1, int(len(sentences) * share))
    chosen = np.arange(count) * len(sentences) // count
    tags = list(split["tags"])
    return {"tokens": [sentences[i] for i in chosen], "tags": [tags[i] for i in chosen]}


def _states(encoder: Encoder, encoded: EncodedWords) -> Iterator[tuple[IntArray, FloatArray]]:
    """The last hidden states of words' first tokens, by batches.

    Yields which words, counted through all sentences, and their states [words, width] fp32.
    """
    counts = np.asarray([len(firsts) for firsts in encoded.firsts], dtype=np.int64)
    begins = np.cumsum(counts) - counts  # rows are in the order of the sentences and their words
    for rows, hidden, _ in encoder.states(encoded, np.arange(len(encoded))):
        own = torch.from_numpy(np.repeat(np.arange(len(rows)), counts[rows]))
        firsts = torch.from_numpy(np.concatenate([encoded.firsts[row] for row in rows]))
        words = np.concatenate([np.arange(begins[row], begins[row] + counts[row]) for row in rows])
        yield words, hidden[own, firsts].cpu().numpy()


def _best_strength(states: FloatArray, tags: IntArray, learnt: NDArray[np.bool_], max_iter: int) -> float:
    """The C with the least log loss on words that are not among those learnt; 1 where nothing tells.

    From strong to weak penalties, each begins where the last one ended; the first that does worse ends it. A
    held-out word whose tag no other sentence has says nothing about the penalty.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    held = ~learnt & np.isin(tags, tags[learnt])
    known = np.unique(tags[learnt])
    if len(known) < 2 or not held.any():
        return 1.0
    own, others = states[learnt], states[held]
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    least, best = np.inf, 1.0
    for strength in STRENGTHS:
        model.set_params(C=strength).fit(own, tags[learnt])
        loss = log_loss(tags[held], model.predict_proba(others), labels=known)
        if loss >= least:
            break
        least, best = loss, strength
    return best
