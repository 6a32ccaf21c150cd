"""Using what was trained: every saved candidate describes itself, loads in a fresh process and predicts."""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunestack.arrays import FloatArray
from tunestack.choice import Description, choose
from tunestack.errors import Problem, Problems, UserError
from tunestack.files import replacing, why_not_writable

if TYPE_CHECKING:
    import pandas as pd

    from tunestack.baselines.base import Fitted
    from tunestack.bases import Base
    from tunestack.data.encode import Encoded
    from tunestack.methods.base import Method
    from tunestack.stack.stack import Stack
    from tunestack.tasks.base import Given, Split, Task


class Predictor(ABC):
    """A trained candidate, ready to predict.

    task: what it solves. label_names: in id order; empty where the task has none.
    """

    def __init__(self, description: Description, task: Task) -> None:
        self.description = description
        self.task = task
        self.label_names = task.label_names

    def predict_proba(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> FloatArray:
        """Probabilities [texts, classes], classes in the order of `label_names`.

        pairs: the second texts, for a candidate that was trained on two columns. Raises UserError where
        they are missing, or too many, and for a task that has no probabilities.
        """
        if not self.task.gives_probabilities:
            found = f"the task {self.task.name}"
            fix = "Use `predict`."
            raise UserError(
                Problem("predict_proba", "a task that gives each label a probability", found, fix)
            )
        split = self._split(texts, pairs)
        return self.answers(split) if len(texts) else np.empty((0, len(self.label_names)))

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Any]:
        """The answer to each text: of a classification the most probable label."""
        split = self._split(texts, pairs)
        return list(self.task.told(split, self.answers(split))["prediction"]) if len(texts) else []

    def n_best(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, count: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """Several answers to each text, best first, each with its prediction and score.

        count: how many, at most; default as many as the task's settings say. Raises UserError for a task that
        gives one answer alone.
        """
        split = self._split(texts, pairs)
        return self._n_best(split, count) if len(texts) else []

    @abstractmethod
    def answers(self, split: Split) -> Given:
        """Answers to at least one example, as the task has them. split: the columns that the task reads."""

    def _n_best(self, split: Split, count: int | None) -> list[list[dict[str, Any]]]:
        found = f"{self.description.method} on the task {self.task.name}"
        raise UserError(Problem("n_best", "what ranks several answers", found, "Use `predict`."))

    def _split(self, texts: Sequence[str], pairs: Sequence[str] | None) -> dict[str, Any]:
        """One or two columns of texts, as the task calls them. Raises UserError where they are no texts."""
        problems = Problems()
        accepted = (str, list) if self.task.reads_words else str
        for name, given in (("texts", texts), ("pairs", pairs)):
            if isinstance(given, str):
                problems.add(name, expected="a list of texts", found="a single text", fix="Put it in a list.")
                continue
            others = [
                f"{text!r} at place {place}"
                for place, text in enumerate(() if given is None else given)
                if not isinstance(text, accepted)
            ]
            if others:
                shown = f"{others[0]}, and {len(others) - 1} more"
                problems.add(name, expected="texts", found=shown, fix="Leave them out, or make them texts.")
        names = list(self._columns())
        if pairs is None and names[-1] in self.task.blank:
            names = names[:1]
        wanted = len(texts) if len(names) > 1 else None
        found = None if pairs is None else len(pairs)
        if wanted != found and not problems:
            single = f"none: it was trained on the column {names[0]} alone"
            problems.add(
                "pairs",
                expected=single if wanted is None else f"{wanted} texts of the column {names[-1]}",
                found="none" if found is None else str(found),
                fix="Leave `pairs` out." if wanted is None else f"Give one `{names[-1]}` a text, as `pairs`.",
            )
        problems.raise_if_any()
        return dict(zip(names, (texts, pairs)))

    def predict_file(
        self,
        source: Path,
        target: Path,
        chunk_rows: int = 1000,
        *,
        text: str | None = None,
        text_pair: str | None = None,
        overwrite: bool = False,
    ) -> Iterator[int]:
        """Predict a file of any size, a chunk at a time: its columns, `prediction` and `prob_<label>`.

        The whole file is looked through first, so that nothing is predicted in vain. Yields the number of
        rows done after each chunk; `target` appears when all are. text, text_pair: the columns, where they
        are called otherwise than in training. overwrite: `target` may be there already. Raises UserError for
        a missing file or column, malformed lines, rows without text, or where `target` cannot be written.
        """
        from tunestack.data.tables import check_rows, iter_rows

        _check_target(source, target, overwrite)
        wanted = self._columns(text, text_pair)
        columns = [column for name, column in wanted.items() if name not in self.task.blank]
        ours = ("text", "text_pair")[: len(wanted)]
        options = " and ".join(f"--{name.replace('_', '-')}" for name in ours)
        words = self.task.reads_words
        how = f"Choose with {options} (in Python {'=, '.join(ours)}=)."
        check_rows(source, columns, how, words=words)
        chunks = iter_rows(source, columns, chunk_rows, words)
        done = 0
        with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for frame in chunks:
                split = {name: _column(frame, column) for name, column in wanted.items()}
                told = self.task.told(split, self.answers(split))
                if not done:
                    kept = [name for name in frame.columns if name not in told]
                    writer.writerow([*kept, *told])
                others = frame.reindex(columns=kept).astype(object)  # a column may end before the file does
                values = others.where(others.notna(), "").to_numpy()
                for row, answer in zip(values, zip(*told.values(), strict=True), strict=True):
                    writer.writerow([*map(_kept, row), *map(_written, answer)])
                done += len(frame)
                yield done

    def _columns(self, text: str | None = None, text_pair: str | None = None) -> dict[str, str]:
        """The columns in a file, by the task's names. text, text_pair: those that differ there."""
        trained = self.description
        known = self.task.input_columns(trained.text, trained.text_pair, trained.columns)
        if text_pair is not None and len(known) < 2:
            found = f"text_pair {text_pair!r}"
            fix = "Leave it out."
            raise UserError(Problem("text_pair", "none: it was trained on single texts", found, fix))
        return {name: given or known[name] for name, given in zip(known, (text, text_pair))}


def _kept(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _column(frame: pd.DataFrame, name: str) -> list[Any]:
    """The values of a column; empty texts where there is none."""
    return ["" if value is None else value for value in frame[name]] if name in frame else [""] * len(frame)


def _written(value: Any) -> Any:
    return f"{value:.6f}" if isinstance(value, float | np.floating) else value


class _ModelPredictor(Predictor):
    """A saved adapter on its base, or a whole saved model, run through the same code as in training."""

    def __init__(self, description: Description, stack: Stack, seat: Any) -> None:
        super().__init__(description, stack.work.task)
        self._stack = stack
        self._seat = seat

    def answers(self, split: Split) -> Given:
        """Answers to at least one example, as the task has them."""
        encoded = self._encoded(split)
        return self._stack.answers([self._seat], encoded)[0].given

    def _n_best(self, split: Split, count: int | None) -> list[list[dict[str, Any]]]:
        if not self.task.ranks:
            return super()._n_best(split, count)
        encoded = self._encoded(split)
        return self.task.n_best(encoded, self._stack.outputs([self._seat], encoded)[0], split, count)

    def _encoded(self, split: Split) -> Encoded:
        return self.task.encode(self._stack.work.base, split, self.description.max_length)


class _BaselinePredictor(Predictor):
    def __init__(self, description: Description, task: Task, fitted: Fitted) -> None:
        super().__init__(description, task)
        self._fitted = fitted

    def answers(self, split: Split) -> Given:
        """Answers to at least one example, as the task has them."""
        return self._fitted.answers(self.task, split)

    def _n_best(self, split: Split, count: int | None) -> list[list[dict[str, Any]]]:
        return (
            self._fitted.n_best(self.task, split, count) if self.task.ranks else super()._n_best(split, count)
        )


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    reason = "a folder" if target.is_dir() else why_not_writable(target.parent)
    if reason is None and target.exists() and source.exists() and target.samefile(source):
        reason = "the file to predict itself"
    elif reason is None and target.suffix.lower() != ".csv":
        reason = f"the ending {target.suffix!r}, where predictions are written as CSV"
    if reason is not None:
        raise UserError(
            Problem(str(target), "a file that can be written", reason, "Choose another one with --out.")
        )
    if target.exists() and not overwrite:
        fix = "Choose another one with --out; or replace it with --overwrite (in Python overwrite=True)."
        raise UserError(Problem(str(target), "a new file", "one that is there already", fix))


@dataclass(frozen=True)
class Seat:
    """A place in a stack for weights that only predict.

    leading: places that they need before each text.
    """

    index: int = 0
    leading: int = 0

    def span(self, start: int, stop: int, training: bool) -> Any:
        """The rows [start, stop) as this seat's; nothing is dropped."""
        from tunestack.methods.sites import Span

        return Span(self.index, start, stop, leading=self.leading)


def load(path: str | Path, *, device: str = "auto", trust_remote_code: bool = False) -> Predictor:
    """A trained candidate: from its folder, or from a run folder the one that the verdict ships.

    Of the seeds, a run folder gives the best on validation. A folder with a PEFT adapter for classification
    loads too; its labels are its base's, or LABEL_0, LABEL_1, ... device: cpu, cuda, ...; auto: the fastest
    one found. trust_remote_code: run modelling code that comes with the base; what the folder says of that
    counts for nothing. Raises UserError where nothing can be loaded.
    """
    choice = choose(path)
    here = {"device_map": device, "trust_remote_code": trust_remote_code}
    if choice.description is not None and choice.description.kind == "baseline":
        return _load_baseline(choice.folder, choice.description, here)
    return _load_method(choice.folder, choice.description, here)


def _load_method(folder: Path, description: Description | None, here: Mapping[str, Any]) -> Predictor:
    from tunestack.methods.registry import find_method

    if description is not None and find_method(description.method).saves_whole_model:
        return _load_whole(folder, description, here)

    from tunestack.adapters import open_adapter

    saved = open_adapter(folder, description, here)
    stack = _open_stack(saved.base, saved.task, saved.method)
    adapter = saved.place(stack.host, Seat.index)
    max_length = saved.base.room_for_text(saved.description.max_length, adapter.positions)
    seat = Seat(leading=adapter.virtual_tokens)
    return _ModelPredictor(saved.description.model_copy(update={"max_length": max_length}), stack, seat)


def _load_whole(folder: Path, description: Description, here: Mapping[str, Any]) -> Predictor:
    from tunestack.bases import load_base
    from tunestack.methods.registry import find_method
    from tunestack.tasks.registry import make_task

    assert description.base is not None  # a method always has one
    base = load_base(description.base.model_copy(update={**here, "model": str(folder)}))
    task = make_task(description.task, description.label_names)
    stack = _open_stack(base, task, find_method(description.method))
    max_length = base.room_for_text(description.max_length)
    return _ModelPredictor(description.model_copy(update={"max_length": max_length}), stack, Seat())


def _open_stack(base: Base, task: Task, method: Method) -> Stack:
    """The base with its weights, in what the method trains it in."""
    from tunestack.stack.stack import Stack
    from tunestack.stack.work import Workload

    loaded = base.load_model(
        task.auto_class_for(base.config), task.model_config(base), method.weights_dtype(base.dtype)
    )
    return Stack(Workload(base, task, {}, task.default_metric), loaded, autocast=not method.stacks)


def _load_baseline(folder: Path, description: Description, here: Mapping[str, Any]) -> Predictor:
    from tunestack.baselines.registry import find_baseline
    from tunestack.tasks.registry import make_task

    task, base = make_task(description.task, description.label_names), None
    if description.base is not None:
        from tunestack.bases import load_base

        base = load_base(description.base.model_copy(update=here))
    fitted = find_baseline(description.method, task).load(folder, base)
    return _BaselinePredictor(description, task, fitted)
