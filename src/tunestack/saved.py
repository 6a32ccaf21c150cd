"""Using what was trained: every saved candidate describes itself, loads in a fresh process and predicts."""

from __future__ import annotations

import csv
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from tunestack.arrays import FloatArray
from tunestack.config import BaseConfig
from tunestack.errors import Problem, Problems, UserError
from tunestack.files import replacing, why_not_writable, write_text
from tunestack.results import Candidate, Results
from tunestack.settings import read_json

if TYPE_CHECKING:
    from tunestack.stack.loop import Stack

DESCRIPTION = "tunestack.json"


class Description(BaseModel):
    """`tunestack.json`, beside the weights: what a tool needs to know to predict with them.

    base: None for a baseline that needs none. max_length: longest input in tokens.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = 1
    kind: Literal["method", "baseline"]
    method: str
    base: BaseConfig | None
    label_names: list[str]
    text: str = "text"
    text_pair: str | None = None
    max_length: int = 512

    def save(self, folder: Path) -> None:
        """Write it into the folder, atomically."""
        write_text(folder / DESCRIPTION, self.model_dump_json(indent=2))


class Predictor(ABC):
    """A trained candidate, ready to predict.

    label_names: in id order. text, text_pair: the columns it was trained on.
    """

    def __init__(self, description: Description) -> None:
        self.description = description
        self.label_names = tuple(description.label_names)

    def predict_proba(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> FloatArray:
        """Probabilities [texts, classes], classes in the order of `label_names`.

        pairs: the second texts, for a candidate that was trained on sentence pairs. Raises UserError where
        they are missing, or too many.
        """
        problems = Problems()
        for name, given in (("texts", texts), ("pairs", pairs)):
            if isinstance(given, str):
                problems.add(name, expected="a list of texts", found="a single text", fix="Put it in a list.")
        wanted = len(texts) if self.description.text_pair else None
        found = None if pairs is None else len(pairs)
        if wanted != found and not problems:
            single = "none: it was trained on single texts"
            problems.add(
                "pairs",
                expected=single if wanted is None else f"{wanted} second texts",
                found="none" if found is None else str(found),
                fix="Give `pairs` to what was trained on sentence pairs, and to nothing else.",
            )
        problems.raise_if_any()
        return self._probabilities(texts, pairs) if len(texts) else np.empty((0, len(self.label_names)))

    @abstractmethod
    def _probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> FloatArray:
        """Probabilities [texts, classes] of at least one text."""

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[str]:
        """The most probable label of each text."""
        return [self.label_names[index] for index in self.predict_proba(texts, pairs).argmax(axis=1)]

    def predict_file(self, source: Path, target: Path, chunk_rows: int = 1000) -> Iterator[int]:
        """Predict a file of any size, a chunk at a time: its columns, `prediction` and `prob_<label>`.

        Yields the number of rows done after each chunk; `target` appears when all are. Raises UserError
        for a missing file or column, or where `target` cannot be written.
        """
        from tunestack.data import iter_rows

        _check_target(target)
        columns = [name for name in (self.description.text, self.description.text_pair) if name]
        chunks = iter_rows(source, columns, chunk_rows)
        done = 0
        with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            for frame in chunks:
                if not done:
                    new = ["prediction", *(f"prob_{name}" for name in self.label_names)]
                    kept = [name for name in frame.columns if name not in new]
                    writer.writerow([*kept, *new])
                pair = self.description.text_pair
                probabilities = self.predict_proba(
                    list(frame[self.description.text]), list(frame[pair]) if pair else None
                )
                labels = [self.label_names[index] for index in probabilities.argmax(axis=1)]
                others = frame.reindex(columns=kept).astype(object)  # a column may end before the file does
                values = others.where(others.notna(), "").to_numpy()
                for row, label, probability in zip(values, labels, probabilities, strict=True):
                    writer.writerow([*row, label, *(f"{value:.6f}" for value in probability)])
                done += len(frame)
                yield done


class _ModelPredictor(Predictor):
    """A saved adapter on its base, or a whole saved model, run through the same code as in training."""

    def __init__(self, description: Description, stack: Stack, seat: Any) -> None:
        super().__init__(description)
        self._stack = stack
        self._seat = seat

    def _probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> FloatArray:
        work = self._stack.work
        split = {"text": texts} if pairs is None else {"text": texts, "text_pair": pairs}
        encoded = work.task.encode(work.base, split, self.description.max_length)
        return work.task.probabilities(self._stack.logits([self._seat], encoded)[0])


class _BaselinePredictor(Predictor):
    def __init__(self, description: Description, fitted: Any) -> None:
        super().__init__(description)
        self._fitted = fitted

    def _probabilities(self, texts: Sequence[str], pairs: Sequence[str] | None) -> FloatArray:
        result: FloatArray = self._fitted.probabilities(list(texts), pairs)
        return result


def _check_target(target: Path) -> None:
    reason = "a folder" if target.is_dir() else why_not_writable(target.parent)
    if reason is not None:
        raise UserError(
            Problem(str(target), "a file that can be written", reason, "Choose another one with --out.")
        )


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

    Of the seeds, a run folder gives the best on validation. device: cpu, cuda, ...; auto: the fastest one
    found. trust_remote_code: run modelling code that comes with the base; what the folder says of that
    counts for nothing. Raises UserError where nothing can be loaded.
    """
    folder = Path(path).expanduser()
    if (folder / "results.json").is_file():
        folder = shipped_folder(folder)
    if not (folder / DESCRIPTION).is_file():
        raise UserError(
            Problem(
                str(path),
                f"a run folder (results.json) or a saved candidate ({DESCRIPTION})",
                "neither" if folder.is_dir() else "no such folder",
                "Give the folder that `tunestack compare` wrote, or one of its adapters.",
            )
        )
    description = read_json(Description, folder / DESCRIPTION)
    if description.base is not None:
        here = {"device_map": device, "trust_remote_code": trust_remote_code}
        description = description.model_copy(update={"base": description.base.model_copy(update=here)})
    return (_load_method if description.kind == "method" else _load_baseline)(folder, description)


def shipped_folder(run: Path) -> Path:
    """The folder of what a run's verdict ships, its best seed on validation."""
    results = read_json(Results, run / "results.json")
    if results.verdict is None:
        raise UserError(
            Problem(
                str(run), "a comparison with a candidate to ship", "none that finished", "See its report."
            )
        )
    candidate = next(entry for entry in results.candidates if entry.name == results.verdict.ship)
    return run / best_seed_path(candidate, results.metric)


def best_seed_path(candidate: Candidate, metric: str) -> str:
    """Where the seed with the highest validation metric was saved, relative to the run folder."""
    scored = [
        (seed.validation.metrics[metric], seed.adapter_path)
        for seed in candidate.seeds
        if seed.validation is not None and seed.adapter_path is not None
    ]
    return max(scored)[1]


def _load_method(folder: Path, description: Description) -> Predictor:
    from tunestack.bases import load_base
    from tunestack.methods.base import read_tensors
    from tunestack.methods.registry import find_method
    from tunestack.stack.loop import Stack, Workload
    from tunestack.tasks.classification import SequenceClassification

    method = find_method(description.method)
    assert description.base is not None  # a method always has one
    whole = {"model": str(folder)} if method.saves_whole_model else {}
    base = load_base(description.base.model_copy(update=whole))
    task = SequenceClassification(description.label_names)
    loaded = base.load_model(task.auto_class, task.model_config(base), method.weights_dtype(base.dtype))
    stack = Stack(Workload(base, task, {}, "accuracy"), loaded, autocast=not method.stacks)
    seat, positions = Seat(), 0
    if not method.saves_whole_model:
        adapter = method.attach(method.read_config(folder), stack.host, seat.index, seed=0)
        adapter.load(read_tensors(folder))
        seat, positions = replace(seat, leading=adapter.virtual_tokens), adapter.positions
    max_length = base.room_for_text(description.max_length, positions)
    return _ModelPredictor(description.model_copy(update={"max_length": max_length}), stack, seat)


def _load_baseline(folder: Path, description: Description) -> Predictor:
    from tunestack.baselines.registry import find_baseline

    base = None
    if description.base is not None:
        from tunestack.bases import load_base

        base = load_base(description.base)
    return _BaselinePredictor(description, find_baseline(description.method).load(folder, base))
