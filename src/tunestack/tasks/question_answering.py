"""Extractive question answering: which part of a context answers a question, if any does."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import TaskType
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, PretrainedConfig

from tunestack.arrays import FloatArray, IntArray
from tunestack.config import DataConfig, Settings
from tunestack.data.encode import Encoded
from tunestack.data.load import TextData
from tunestack.data.squad import load_questions, name_of
from tunestack.errors import Problem, UserError
from tunestack.tasks import squad
from tunestack.tasks.answers import Table
from tunestack.tasks.base import Given, Split, Task, columns_of, literal
from tunestack.tasks.metrics import Metric
from tunestack.tasks.spans import Spans, Windows, best_spans, check_questions, encode_windows, null_scores

if TYPE_CHECKING:
    from tunestack.bases import Base

START, END, SCORE, NEEDED = range(4)
"""The columns of answers."""


class QuestionAnsweringOptions(Settings):
    """How contexts are cut and answers are found."""

    stride: int = Field(default=128, ge=0)
    """Tokens that a window of a long context shares with the one before; half of its own at most."""
    max_answer_tokens: int = Field(default=30, ge=1)
    """Longest answer in tokens."""
    n_best: int = Field(default=20, ge=1)
    """How many answers to a question `Predictor.n_best` tells, if nobody says."""
    null_threshold: Literal["tune"] | float = "tune"
    """With questions that have no answer: none is given where its score is higher than that of the best span
    by more than this. tune: what is best for the metric on validation, saved with the adapter."""
    skip_misplaced: bool = False
    """Leave out questions whose answer does not stand in the context where the data says."""


class QuestionAnswering(Task):
    """Which span of the context answers the question; cross-entropy of its first and its last token.

    An answer is [first character, the one after the last, score, score that is needed], in fp64. The score
    of a span is the sum of its two logits less that of no answer; with less than is needed, there is no
    answer. Where every question has one, -inf is needed, and there are no `label_names`, else two.
    """

    name = "question-answering"
    summary = "which part of a context answers a question"
    title = "answer questions from a context"
    pipeline_tag = "question-answering"
    auto_class = AutoModelForQuestionAnswering
    peft_type = TaskType.QUESTION_ANS
    inputs = ("question", "context")
    optional = ()
    default_metric = "f1"
    target = "spans"
    per_token = True
    long_texts = "read in windows of"
    ranks = True
    options_class = QuestionAnsweringOptions
    example: ClassVar[Mapping[str, str]] = {
        "question": "Who wrote to Charles?",
        "context": "In 1843 Ada wrote to Charles.",
    }

    @classmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Questions with contexts and answers. Raises UserError with all problems."""
        inputs = cls.input_columns(config.text, config.text_pair, config.columns)
        data = load_questions(config, inputs, options.skip_misplaced)
        if not data.label_names and options.null_threshold != "tune":
            found = f"{options.null_threshold:g}, and no question without an answer in the data"
            fix = "Leave it out."
            raise UserError(Problem("task.null_threshold", "a threshold that has an effect", found, fix))
        return data

    @property
    def unanswerable(self) -> bool:
        """Whether there are questions without an answer."""
        return bool(self.label_names)

    @property
    def _threshold(self) -> float:
        """By how much no answer has to be better, as long as validation has not decided."""
        threshold = self.options.null_threshold
        return 0.0 if threshold == "tune" else float(threshold)

    @property
    def outputs(self) -> int:
        """Two numbers a token."""
        return 2

    def model_config(self, base: Base) -> PretrainedConfig:
        """Without names: a number is no label's."""
        return base.model_config(self.outputs)

    def check_base(self, base: Base, splits: Mapping[str, Split], max_length: int, places: int) -> None:
        """Questions must leave room for their contexts."""
        limit = min(max_length, base.longest_input)
        for split in splits.values():
            check_questions(base.tokenizer, list(split["question"]), limit, _names(split))

    def encode(self, base: Base, split: Split, max_length: int) -> Windows:
        """Windows of tokens; nothing is cut off. Raises UserError for questions that leave no room."""
        answers = None
        if "answer_texts" in columns_of(split):
            # Several gold answers are alternatives; the first is learnt, as in the official baselines.
            answers = [
                (starts[0], starts[0] + len(texts[0])) if texts else None
                for texts, starts in zip(split["answer_texts"], split["answer_starts"])
            ]
        return encode_windows(
            base.tokenizer,
            list(split["question"]),
            list(split["context"]),
            answers,
            min(max_length, base.longest_input),
            self.options.stride,
            _names(split),
        )

    def logits(self, output: Any) -> Tensor:
        """[rows, tokens, 2]: that an answer begins there, that it ends there."""
        return torch.stack([output.start_logits, output.end_logits], dim=-1)

    def targets(self, encoded: Encoded, indices: IntArray) -> Tensor:
        """[rows, 3]: the first and the last token of the answer, and how many tokens the row has."""
        labels = super().targets(encoded, indices)
        return torch.cat([labels, torch.from_numpy(encoded.lengths[indices])[:, None]], dim=1)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The mean of both cross-entropies over the row's own tokens, in fp32; in fp64 of logits in that."""
        places = torch.arange(logits.shape[1], device=logits.device)
        padding = places >= targets[:, 2:]
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        own = exact.masked_fill(padding[..., None], -torch.inf)
        return torch.nn.functional.cross_entropy(own, targets[:, :2])

    def collect(self, logits: Tensor, encoded: Encoded, indices: IntArray) -> Tensor:
        """[rows, tokens of the longest row, 2] fp32; 0 behind a row's end."""
        lengths = torch.from_numpy(encoded.lengths[indices]).to(logits.device)
        padding = torch.arange(logits.shape[1], device=logits.device) >= lengths[:, None]
        own = logits.float().masked_fill(padding[..., None], 0.0)
        return torch.nn.functional.pad(own, (0, 0, 0, int(encoded.lengths.max()) - own.shape[1]))

    def answer(self, encoded: Encoded, outputs: Tensor) -> FloatArray:
        """The best span of each example over all its windows, [examples, 4]."""
        windows = _windows(encoded)
        return self.given(self._spans(windows, outputs, 1), len(windows.offsets))

    def n_best(
        self, encoded: Encoded, outputs: Tensor, split: Split, count: int | None
    ) -> list[list[dict[str, Any]]]:
        """The best spans of each example; no answer is one of them, an empty text, where that is known."""
        count = count or self.options.n_best
        return self.ranked(self._spans(_windows(encoded), outputs, count), split, count)

    def _spans(self, windows: Windows, outputs: Tensor, count: int) -> Spans:
        """The best of each example, with scores less that of no answer."""
        best = best_spans(windows, outputs, self.options.max_answer_tokens, count)
        return best._replace(score=best.score - null_scores(windows, outputs)[best.example])

    def given(self, best: Spans, examples: int) -> FloatArray:
        """Answers, [examples, 4]. best: one span an example at most; scores are less that of no answer."""
        given = np.zeros((examples, 4))
        given[:, SCORE] = -np.inf  # of examples without a span: outputs that are not numbers have none
        given[best.example, :NEEDED] = np.stack([best.start, best.end, best.score], axis=1)
        return self.decided(given, {"null_threshold": self._threshold})

    def ranked(self, spans: Spans, split: Split, count: int | None) -> list[list[dict[str, Any]]]:
        """The first `count` spans of each example as texts, and no answer among them where that is known.

        spans: the best of each example first; scores are less that of no answer.
        """
        found: list[list[dict[str, Any]]] = [[] for _ in split["context"]]
        for example, start, end, score in zip(*(column.tolist() for column in spans)):
            text = split["context"][example][start:end]
            found[example].append({"prediction": text, "score": score, "start": start, "end": end})
        if self.unanswerable:
            for own in found:
                own.append({"prediction": "", "score": -self._threshold, "start": 0, "end": 0})
                own.sort(key=lambda one: -one["score"])
        return [own[: count or self.options.n_best] for own in found]

    def decide(self, split: Split, given: Given, metric: str) -> dict[str, Any]:
        """The threshold on no answer with which the metric is best on these examples."""
        if not self.unanswerable or self.options.null_threshold != "tune":
            return {}
        golds = list(split["answer_texts"])
        exact, f1 = squad.overlap(_texts(split, given), golds, self.unanswerable)
        scores = exact if metric.endswith("exact_match") else f1
        return {"null_threshold": squad.best_threshold(-given[:, SCORE], scores, _has_answer(split))}

    def decided(self, given: Given, settings: Mapping[str, Any]) -> Given:
        """The answers with the score that the threshold asks for."""
        decided = given.copy()
        if not self.unanswerable:
            decided[:, NEEDED] = -np.inf
        elif "null_threshold" in settings:
            decided[:, NEEDED] = -settings["null_threshold"]
        return decided

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Exact match and F1, and those of questions with and without an answer where there are both."""
        return squad.OF_ALL | squad.OF_PARTS if self.unanswerable else squad.OF_ALL

    @classmethod
    def possible_metrics(cls) -> Collection[str]:
        """Those of data with questions that have no answer, too."""
        return [*squad.OF_ALL, *squad.OF_PARTS]

    def scores(self, split: Split, given: Given) -> dict[str, float]:
        """All metrics, 0 to 1; those of a part that has no examples are left out."""
        sums = self._judged(split, given).sum(axis=0)
        defined = self.defined(split).values()
        return {one.name: float(one.from_counts(sums)) for one in defined if one.from_counts}

    def answers(self, split: Split, given: NDArray[Any]) -> Table:
        """Exact match and F1 of each example; an answer is right as a whole where it matches exactly."""
        table = np.stack([self._judged(split, own) for own in given])
        has, defined = _has_answer(split), self.defined(split)
        counts = {"has_answer": int(has.sum()), "no_answer": int((~has).sum())}
        scarcest = min(counts.values()) if self.unanswerable else None
        parts = {name: n for name in defined for part, n in counts.items() if name.startswith(part)}
        right = table[..., squad.EXACT] == 1
        return Table(table.astype(np.float32), defined, right, scarcest or None, parts=parts)

    def defined(self, split: Split) -> dict[str, Metric]:
        """The metrics that have examples: those of questions with an answer, and of those without."""
        has = _has_answer(split)
        empty = {"has_answer": not has.any(), "no_answer": bool(has.all())}
        return {
            name: metric
            for name, metric in self.metrics.items()
            if not any(empty[part] and name.startswith(part) for part in empty)
        }

    def _judged(self, split: Split, given: Given) -> FloatArray:
        """What the metrics are functions of, [examples, k] in fp64."""
        exact, f1 = squad.overlap(_told(split, given), list(split["answer_texts"]), self.unanswerable)
        return squad.statistics(exact, f1, _has_answer(split), self.unanswerable)

    def confusion(self, split: Split, given: Given) -> list[list[int]] | None:
        """Questions by whether they have an answer and whether they got one."""
        if not self.unanswerable:
            return None
        matrix = np.zeros((2, 2), dtype=int)
        np.add.at(matrix, ((~_has_answer(split)).astype(int), (~_answered(given)).astype(int)), 1)
        return [[int(count) for count in row] for row in matrix]

    def label_counts(self, split: Split) -> list[int]:
        """How many questions have an answer, and how many have none."""
        has = _has_answer(split)
        return [int(has.sum()), int((~has).sum())] if self.unanswerable else []

    def remarks(self, means: Mapping[str, Mapping[str, float]]) -> list[str]:
        """Whether all that it scores are questions without an answer."""
        none = [split for split, own in means.items() if own.get("has_answer_f1") == 0]
        if not none:
            return []
        where = " and ".join(none)
        return [f"no question that has an answer got a word of it on {where}: it scores by giving none."]

    def truth(self, split: Split) -> dict[str, list[Any]]:
        """The first gold answer, empty where there is none, and the question's id."""
        return {
            "answer": [texts[0] if texts else "" for texts in split["answer_texts"]],
            "id": list(split["id"]) if "id" in columns_of(split) else list(range(len(split["question"]))),
        }

    def told(self, split: Split, given: Given) -> dict[str, Any]:
        """The text, empty where there is no answer; the best span's score, its place, the score needed."""
        columns: dict[str, Any] = {
            "prediction": _told(split, given),
            "score": given[:, SCORE],
            "start": given[:, START].astype(np.int64),
            "end": given[:, END].astype(np.int64),
        }
        return {**columns, "needed_score": given[:, NEEDED]} if self.unanswerable else columns

    def read(self, frame: pd.DataFrame) -> FloatArray:
        """Places and scores."""
        needed = frame["needed_score"] if self.unanswerable else pd.Series("-inf", frame.index)
        columns = [*(frame[name] for name in ("start", "end", "score")), needed]
        return np.stack([column.to_numpy().astype(float) for column in columns], axis=1)

    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """The best span of one window, or an empty text where no answer is the better one."""
        lines = [
            *(f"{name} = {literal(self.example[name])}" for name in self.inputs),
            f"longest = min({max_length}, tokenizer.model_max_length)",
            "batch = tokenizer(  # one window; tunestack predict reads all of a long context, and has n best",
            '    question, context, truncation="only_second", max_length=longest,',
            '    return_offsets_mapping=True, return_tensors="pt",',
            ")",
            'offsets = batch.pop("offset_mapping")[0].tolist()',
            "places = [",
            "    token",
            "    for token, (part, (begin, end)) in enumerate(zip(batch.sequence_ids(), offsets))",
            "    if part == 1 and context[begin:end].strip()",
            "]",
            "output = model(**batch)",
            "starts, ends = output.start_logits[0].tolist(), output.end_logits[0].tolist()",
            "score, first, last = max(",
            "    (starts[first] + ends[last], first, last)",
            "    for first in places",
            "    for last in places",
            f"    if first <= last < first + {self.options.max_answer_tokens}",
            ")",
            "answer = context[offsets[first][0] : offsets[last][1]].strip()",
        ]
        if self.unanswerable:
            lines += [
                f"if starts[0] + ends[0] - score > {self._threshold}:",
                '    answer = ""  # the score of the first token is that of no answer',
            ]
        return "\n".join([*lines, "print(answer)"])

    @property
    def always(self) -> str:
        """A span, or nothing where it knows of that."""
        if self.unanswerable:
            return (
                "answers with a part of the context, or with nothing where that scores higher by more than "
                f"{self._threshold:g}"
            )
        return "always answers with a part of the context, also where that holds no answer"


def _windows(encoded: Encoded) -> Windows:
    if not isinstance(encoded, Windows):
        raise TypeError("questions are encoded as windows")
    return encoded


def _names(split: Split) -> list[str]:
    """What errors call the examples: by their rows in the file and their ids, where these are known."""
    count = len(split["question"])
    rows = split["row"] if "row" in columns_of(split) else range(count)
    ids = split["id"] if "id" in columns_of(split) else [None] * count
    return [name_of(row, own) for row, own in zip(rows, ids)]


def _has_answer(split: Split) -> NDArray[np.bool_]:
    return np.asarray([len(texts) > 0 for texts in split["answer_texts"]], dtype=bool)


def _texts(split: Split, given: Given) -> list[str]:
    """The spans as texts."""
    places = given[:, [START, END]].astype(np.int64).tolist()
    return [context[start:end] for context, (start, end) in zip(split["context"], places, strict=True)]


def _told(split: Split, given: Given) -> Sequence[str]:
    """The answers as texts, empty where there is none."""
    answered = _answered(given).tolist()
    return [text if one else "" for text, one in zip(_texts(split, given), answered, strict=True)]


def _answered(given: Given) -> NDArray[np.bool_]:
    return np.asarray(given[:, SCORE] >= given[:, NEEDED])
