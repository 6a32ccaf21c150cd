"""Linear probe of spans: a frozen base under a linear layer that marks where an answer begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from tunestack.arrays import FloatArray
from tunestack.baselines.base import Baseline, Fitted, SavedBaseline, read_saved, read_tensors, write_baseline
from tunestack.baselines.features import Encoder, FeatureOptions
from tunestack.baselines.span_fit import fit_spans
from tunestack.config import Settings
from tunestack.tasks.base import Given, Split, Task
from tunestack.tasks.question_answering import QuestionAnswering
from tunestack.tasks.spans import Windows

if TYPE_CHECKING:
    from torch import Tensor

    from tunestack.bases import Base
    from tunestack.data.encode import Encoded

COEF = "coef"


class SpanProbeOptions(FeatureOptions):
    """scikit-learn's fields of LogisticRegression, and how much is read."""

    C: float | None = Field(default=None, gt=0)
    """Inverse strength of the L2 penalty; none: chosen on a fifth of the training contexts, held out."""
    max_iter: int = Field(default=1000, ge=1)
    """Iterations of L-BFGS at most."""
    max_windows: int = Field(default=4000, ge=2)
    """Windows that it is fitted on; where there are more, so many are taken at even distances."""


class FittedSpanProbe(Fitted):
    """coef: [2, hidden size] fp64, of beginnings and of ends; the standardisation is folded into it."""

    def __init__(self, options: SpanProbeOptions, encoder: Encoder, coef: FloatArray) -> None:
        self.options = options
        self.encoder = encoder
        self.coef = coef
        self.trainable_parameters = coef.size
        self.total_parameters = coef.size + encoder.parameters

    def answers(self, task: Task, split: Split) -> Given:
        """The best spans, [questions, 4]."""
        encoded = self._encoded(task, split)
        return task.answer(encoded, self.outputs(task, encoded))

    def n_best(self, task: Task, split: Split, count: int | None) -> list[list[dict[str, Any]]]:
        """The best spans by their scores."""
        encoded = self._encoded(task, split)
        return task.n_best(encoded, self.outputs(task, encoded), split, count)

    def outputs(self, task: Task, encoded: Encoded) -> Tensor:
        """What the task keeps of the logits of all rows: [rows, tokens of the longest, 2] fp32."""
        import torch

        outputs = torch.zeros(len(encoded), int(encoded.lengths.max()), 2)
        coef = torch.from_numpy(self.coef).float().to(self.encoder.base.device)
        for rows, hidden, _ in self.encoder.states(encoded, np.arange(len(encoded))):
            outputs[torch.from_numpy(rows)] = task.collect(hidden @ coef.T, encoded, rows).cpu()
        return outputs

    def _encoded(self, task: Task, split: Split) -> Encoded:
        return task.encode(self.encoder.base, split, self.options.max_length)

    def save(self, folder: Path) -> None:
        """Write the options, the base's name and the weights; the base itself is not copied."""
        saved = SavedBaseline(
            baseline=SpanProbe.name,
            target="spans",
            base=self.encoder.base.name,
            options=self.options.model_dump(mode="json"),
        )
        write_baseline(folder, saved, {COEF: self.coef})


class SpanProbe(Baseline):
    """What a frozen base knows already of where answers are, before any fine-tuning."""

    name = "linear-probe"
    needs_base = True
    targets = frozenset({"spans"})
    options_class = SpanProbeOptions

    def shared_options(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Windows are as long as in training."""
        return {"max_length": shared["max_length"]} if "max_length" in shared else {}

    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> FittedSpanProbe:
        """Encode with the frozen base, standardise, minimise the task's loss with a penalty."""
        assert isinstance(options, SpanProbeOptions)
        encoder = self._encoder(base)
        encoded = task.encode(encoder.base, split, options.max_length)
        assert isinstance(encoded, Windows)
        windows = min(options.max_windows, len(encoded))
        rows = np.arange(windows) * len(encoded) // windows
        groups = [split["context"][index] for index in encoded.example[rows]]
        coef = fit_spans(task, encoder, encoded, rows, groups, options.C, options.max_iter)
        return FittedSpanProbe(options, encoder, coef)

    def load(self, folder: Path, base: Base | None) -> FittedSpanProbe:
        """Read the weights, to be used on the base that they were fitted on."""
        saved = read_saved(folder)
        options = self.make_options(saved.options)
        assert isinstance(options, SpanProbeOptions)
        coef = read_tensors(folder, COEF)[COEF]
        encoder = self._encoder(base)
        encoder.check_width(coef.shape[-1], folder, saved.base)
        return FittedSpanProbe(options, encoder, coef)

    def _encoder(self, base: Base | None) -> Encoder:
        return Encoder(self.base_of(base), QuestionAnswering.auto_class)
