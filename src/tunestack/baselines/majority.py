"""Majority class: every text gets the share that each class or label has in training; of numbers the mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunestack.arrays import FloatArray
from tunestack.baselines.base import (
    Baseline,
    Fitted,
    SavedBaseline,
    read_saved,
    read_tensors,
    write_baseline,
)
from tunestack.config import Settings
from tunestack.tasks.base import Split, Target, Task

if TYPE_CHECKING:
    from tunestack.bases import Base


class MajorityOptions(Settings):
    """There is nothing to choose."""


class FittedMajority(Fitted):
    """prior: shares of classes or labels, or of numbers their mean [1]; fp64."""

    def __init__(self, prior: FloatArray, target: Target) -> None:
        self.prior = prior
        self.target = target
        self.trainable_parameters = self.total_parameters = len(prior)

    def answers(self, task: Task, split: Split) -> FloatArray:
        """The same for every text."""
        same = np.tile(self.prior, (len(split["text"]), 1))
        return same[:, 0] if self.target == "numbers" else same

    def save(self, folder: Path) -> None:
        """Write the shares, or the mean."""
        saved = SavedBaseline(baseline=Majority.name, label_count=len(self.prior), target=self.target)
        write_baseline(folder, saved, {"prior": self.prior})


class Majority(Baseline):
    """What any model must beat; on equal shares the lower class id wins."""

    name = "majority"
    targets = frozenset({"classes", "numbers", "flags"})
    reads_text = False
    options_class = MajorityOptions

    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> FittedMajority:
        """Count, or take the mean."""
        labels = np.asarray(split["label"])
        if task.target == "numbers":
            return FittedMajority(np.asarray([np.mean(labels)]), "numbers")
        if task.target == "flags":
            return FittedMajority(np.mean(labels, axis=0), "flags")
        counts = np.bincount(labels, minlength=len(task.label_names))
        return FittedMajority(counts / len(labels), "classes")

    def load(self, folder: Path, base: Base | None) -> FittedMajority:
        """Read the shares, or the mean."""
        return FittedMajority(read_tensors(folder, "prior")["prior"], read_saved(folder).target)
