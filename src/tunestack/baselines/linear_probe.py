"""Linear probe: logistic (of numbers ridge) regression on a frozen base's mean-pooled last hidden state."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field
from transformers import AutoModelForSequenceClassification

from tunestack.arrays import FloatArray
from tunestack.baselines.base import (
    Baseline,
    Fitted,
    SavedBaseline,
    read_saved,
    texts_of,
    write_baseline,
)
from tunestack.baselines.features import Encoder, FeatureOptions
from tunestack.baselines.linear import Linear, fit_linear, fit_standardised, read_linear, target_of
from tunestack.baselines.logistic import LogisticOptions
from tunestack.baselines.ridge import RidgeOptions
from tunestack.config import Settings
from tunestack.tasks.base import Split, Task

if TYPE_CHECKING:
    from tunestack.bases import Base


class LinearProbeOptions(FeatureOptions, LogisticOptions):
    """scikit-learn's fields of LogisticRegression, and how much of a text is read.

    Features are many and rows often few, so the penalty is chosen by cross-validation unless it is given.
    """

    C: float | None = Field(default=None, gt=0)
    """Inverse strength of the L2 penalty; none: chosen on the training rows, by cross-validation."""


class LinearProbeNumberOptions(FeatureOptions, RidgeOptions):
    """scikit-learn's field of Ridge, and how much of a text is read."""


class FeatureCache:
    """Features on the base last worked on, by what was encoded; forgotten with that base.

    Candidates on one base share them. entries: how many splits are kept, the most recent ones.
    """

    def __init__(self, entries: int = 8) -> None:
        self.entries = entries
        self._base: weakref.ref[Base] | None = None
        self._features: OrderedDict[str, FloatArray] = OrderedDict()

    def get(self, base: Base, key: str, compute: Callable[[], FloatArray]) -> FloatArray:
        """The features kept under `key`, or those that `compute` gives."""
        if self._base is None or self._base() is not base:
            self._features.clear()
            self._base = weakref.ref(base, lambda _: self._features.clear())
        if key not in self._features:
            self._features[key] = compute()
        self._features.move_to_end(key)
        while len(self._features) > self.entries:
            self._features.popitem(last=False)
        return self._features[key]


class TextEncoder(Encoder):
    """A frozen base that turns whole texts into features."""

    def __init__(self, base: Base, cache: FeatureCache) -> None:
        super().__init__(base, AutoModelForSequenceClassification)
        self.cache = cache

    def features(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> FloatArray:
        """Mean of the last hidden state over each text's tokens: [texts, hidden size] fp32."""
        content = json.dumps([max_length, list(texts), None if pairs is None else list(pairs)])
        key = hashlib.sha256(content.encode()).hexdigest()
        return self.cache.get(self.base, key, lambda: self._compute(texts, pairs, max_length))

    def _compute(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> FloatArray:
        from tunestack.data.encode import encode

        limit = min(max_length, self.base.longest_input)
        encoded = encode(self.base.tokenizer, texts, pairs, None, limit)
        features = np.empty((len(texts), self.width), dtype=np.float32)
        for rows, hidden, own in self.states(encoded, np.arange(len(texts))):
            mask = own.unsqueeze(-1)
            features[rows] = ((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu().numpy()
        features.flags.writeable = False
        return features


class FittedLinearProbe(Fitted):
    """A linear model on a base's features; the standardisation is folded into its weights."""

    def __init__(self, options: FeatureOptions, encoder: TextEncoder, linear: Linear) -> None:
        self.options = options
        self.encoder = encoder
        self.linear = linear
        self.trainable_parameters = linear.parameters
        self.total_parameters = linear.parameters + encoder.parameters

    def answers(self, task: Task, split: Split) -> FloatArray:
        """[texts, classes] or [texts] fp64."""
        features = self.encoder.features(*texts_of(split), self.options.max_length)
        return self.linear.answers(features.astype(np.float64))

    def save(self, folder: Path) -> None:
        """Write the options, the base's name and the regression; the base itself is not copied."""
        saved = SavedBaseline(
            baseline=LinearProbe.name,
            label_count=self.linear.label_count,
            target=target_of(self.linear),
            base=self.encoder.base.name,
            options=self.options.model_dump(mode="json"),
        )
        write_baseline(folder, saved, self.linear.tensors())


class LinearProbe(Baseline):
    """What a frozen base knows already, before any fine-tuning: logistic regression."""

    name = "linear-probe"
    needs_base = True
    targets = frozenset({"classes", "flags"})
    options_class: ClassVar[type[Settings]] = LinearProbeOptions

    def __init__(self) -> None:
        self.cache = FeatureCache()

    def shared_options(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Texts are cut and classes weighed as in training."""
        names = {"class_weight": "class_weights", "max_length": "max_length"}
        return {name: shared[theirs] for name, theirs in names.items() if theirs in shared}

    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> FittedLinearProbe:
        """Encode with the frozen base, standardise, fit. Raises UserError for one class only."""
        assert isinstance(options, FeatureOptions)
        encoder = TextEncoder(self.base_of(base), self.cache)
        features = encoder.features(*texts_of(split), options.max_length)
        labels = np.asarray(split["label"])
        count = len(task.label_names)
        linear = fit_standardised(features, lambda own: fit_linear(own, labels, count, options))
        return FittedLinearProbe(options, encoder, linear)

    def load(self, folder: Path, base: Base | None) -> FittedLinearProbe:
        """Read the regression, to be used on the base that it was fitted on."""
        saved = read_saved(folder)
        options = self.make_options(saved.options)
        assert isinstance(options, FeatureOptions)
        linear, _ = read_linear(folder, saved)
        encoder = TextEncoder(self.base_of(base), self.cache)
        encoder.check_width(linear.coef.shape[-1], folder, saved.base)
        return FittedLinearProbe(options, encoder, linear)


class LinearProbeOfNumbers(LinearProbe):
    """The same with ridge regression."""

    targets = frozenset({"numbers"})
    options_class = LinearProbeNumberOptions
