"""The seam of the baselines: fit once, answer, save, load. A new one is one file, one line."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field, JsonValue

from tunestack import files
from tunestack.config import Settings
from tunestack.errors import Problem, UserError
from tunestack.files import replacing, write_json
from tunestack.settings import validated
from tunestack.tasks.base import Given, Split, Target, Task, columns_of

if TYPE_CHECKING:
    from tunestack.bases import Base

Tensors = dict[str, np.ndarray[Any, np.dtype[Any]]]

DESCRIPTION = "baseline.json"
WEIGHTS = "baseline.safetensors"


class Fitted(ABC):
    """A baseline that was fitted.

    trainable_parameters: numbers that fitting chose. total_parameters: those and the frozen base's.
    """

    trainable_parameters: int
    total_parameters: int

    @abstractmethod
    def answers(self, task: Task, split: Split) -> Given:
        """Answers to the examples as the task has them, fp64. split: the columns that the task reads.

        Probabilities of classes [texts, classes], whose rows sum to 1; or of flags [texts, labels]; or
        numbers [texts]; or spans with their scores [questions, 4]; or tags [sentences, words].
        """

    def n_best(self, task: Task, split: Split, count: int | None) -> list[list[dict[str, Any]]]:
        """As `Task.n_best`. Only where the task ranks."""
        raise NotImplementedError

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write `baseline.json` and safetensors; `Baseline.load` makes the same baseline of them."""


class Baseline(ABC):
    """A candidate that trains no transformer. The same data gives the same result: there are no seeds.

    Several may have one name, and learn different things. needs_base: whether it works on a base's frozen
    features. targets: what it can learn. reads_text: whether its answers depend on the text at all.
    options_class: its fields and defaults.
    """

    name: ClassVar[str]
    needs_base: ClassVar[bool] = False
    targets: ClassVar[frozenset[str]] = frozenset({"classes"})
    reads_text: ClassVar[bool] = True
    options_class: ClassVar[type[Settings]]

    def base_of(self, base: Base | None) -> Base:
        """The base, of a baseline that needs one."""
        if base is None:
            raise ValueError(f"{self.name} needs a base")
        return base

    def make_options(self, fields: Mapping[str, Any], shared: Mapping[str, Any] = {}) -> Settings:
        """The options from the user's fields. Raises UserError with all unknown fields and bad values.

        shared: what trained candidates train with; it stands in for fields that the user left out.
        """
        kind = self.options_class
        taken = {name: v for name, v in self.shared_options(shared).items() if name in kind.model_fields}
        return validated(kind, {**taken, **fields}, self.name)

    def shared_options(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """The options that follow from settings of training, so that all candidates are treated alike."""
        return {}

    def check_base(self, base: Base) -> None:
        """Raise UserError for a base that has not one last hidden state for every token that it reads."""
        if base.config.is_encoder_decoder:
            where, found = f"{self.name} on {base.name}", "an encoder-decoder"
            raise UserError(Problem(where, "an encoder or a decoder", found, "Leave one of them out."))

    @abstractmethod
    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> Fitted:
        """Fit on a split with its labels or answers.

        task: one whose target is among `targets`. options: from `make_options`. base: where `needs_base` says
        so. Raises UserError for data that it cannot be fitted on.
        """

    @abstractmethod
    def load(self, folder: Path, base: Base | None) -> Fitted:
        """What `Fitted.save` wrote. Raises UserError for a missing or damaged file."""


class SavedBaseline(Settings):
    """What `baseline.json` holds: which baseline, on which base, with which options, what it answers.

    label_count: how many classes or flags it knows.
    """

    baseline: str
    label_count: int = 0
    target: Target = "classes"
    base: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)


def texts_of(split: Split) -> tuple[list[str], list[str] | None]:
    """The texts of a split, and the second texts of pairs."""
    return list(split["text"]), list(split["text_pair"]) if "text_pair" in columns_of(split) else None


def write_baseline(folder: Path, saved: SavedBaseline, tensors: Tensors) -> None:
    """Write `baseline.json` and `baseline.safetensors`, each atomically."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS) as path:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)
    write_json(folder / DESCRIPTION, saved.model_dump(mode="json"))


def read_saved(folder: Path) -> SavedBaseline:
    """Which baseline lies in a folder. Raises UserError for a missing or damaged file."""
    path = folder / DESCRIPTION
    return validated(SavedBaseline, read_json(path), str(path))


def read_tensors(folder: Path, *names: str) -> Tensors:
    """The tensors of a saved baseline. Raises UserError for a missing or damaged file, or a missing name."""
    path = folder / WEIGHTS
    tensors: Tensors = files.read_tensors(path, "np")
    if missing := [name for name in names if name not in tensors]:
        raise unreadable(path, f"no {', '.join(missing)}")
    return tensors


def read_json(path: Path) -> Any:
    """A JSON document. Raises UserError for a missing or damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, found: object) -> UserError:
    """The error for a file of a saved baseline that cannot be used."""
    return UserError(
        Problem(
            str(path), "a file of a saved baseline, whole", str(found), "Fit and save the baseline again."
        )
    )
