"""Majority class: every text gets the share that each class has in training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunestack.arrays import FloatArray, IntArray
from tunestack.baselines.base import (
    Baseline,
    Fitted,
    SavedBaseline,
    read_tensors,
    write_baseline,
)
from tunestack.config import Settings

if TYPE_CHECKING:
    from tunestack.bases import Base


class MajorityOptions(Settings):
    """There is nothing to choose."""


class FittedMajority(Fitted):
    """Class shares, [classes] fp64."""

    def __init__(self, prior: FloatArray) -> None:
        self.prior = prior
        self.trainable_parameters = self.total_parameters = len(prior)

    def probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> FloatArray:
        """The same row for every text."""
        return np.tile(self.prior, (len(texts), 1))

    def save(self, folder: Path) -> None:
        """Write the shares."""
        saved = SavedBaseline(baseline=Majority.name, label_count=len(self.prior))
        write_baseline(folder, saved, {"prior": self.prior})


class Majority(Baseline):
    """What any model must beat; on equal shares the lower class id wins."""

    name = "majority"
    reads_text = False
    options_class = MajorityOptions

    def fit(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        labels: IntArray,
        label_count: int,
        options: Settings,
        base: Base | None,
    ) -> FittedMajority:
        """Count."""
        return FittedMajority(np.bincount(labels, minlength=label_count) / len(labels))

    def load(self, folder: Path, base: Base | None) -> FittedMajority:
        """Read the shares."""
        return FittedMajority(read_tensors(folder, "prior")["prior"])
