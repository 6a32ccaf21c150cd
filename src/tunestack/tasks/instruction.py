"""Following instructions: a response is learnt and generated, and an answer in it judged (LLM-Adapters)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import TaskType
from pydantic import Field, field_validator
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from tunestack.arrays import FloatArray, IntArray
from tunestack.config import DataConfig, Settings
from tunestack.data.encode import Encoded
from tunestack.data.load import TextData
from tunestack.data.records import load_records
from tunestack.data.tables import listed
from tunestack.errors import Problem, Problems, UserError
from tunestack.tasks.answers import Table
from tunestack.tasks.base import Decoding, Evaluation, Forwards, Given, Split, Task, columns_of
from tunestack.tasks.extraction import KINDS, Kind, counted, judge, kind_of
from tunestack.tasks.metrics import Metric
from tunestack.tasks.reasoning import files_of_tests
from tunestack.tasks.responses import (
    NO_TARGET,
    Responses,
    as_numbers,
    as_texts,
    batch_of,
    check_places,
    encode_responses,
    fields_of,
    fill,
    prompt_batch_of,
    response_snippet,
    take,
    targets_of,
)

if TYPE_CHECKING:
    from tunestack.bases import Base

TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
LOGITS_A_TOKEN = 8192
"""Logits that weigh in a batch of evaluation as much as one token of a text."""
RIGHT, PARSED, ENDED, COUNT = range(4)
"""What every record adds to the sums that the metrics are functions of."""


def _share(name: str, title: str, part: int, per_example: bool = False) -> Metric:
    return Metric(name, title, lambda sums: sums[..., part] / sums[..., COUNT], per_example=per_example)


METRICS = {
    metric.name: metric
    for metric in (
        _share("accuracy", "accuracy", RIGHT, per_example=True),
        _share("parsed", "share of responses with an answer", PARSED, per_example=True),
        _share("ended", "share of responses that ended by themselves", ENDED, per_example=True),
    )
}


class InstructionOptions(Settings):
    """Settings of the task `instruction`."""

    template: str = TEMPLATE
    """The prompt, with {instruction}; default: Alpaca's, as in LLM-Adapters."""
    template_with_input: str = TEMPLATE_WITH_INPUT
    """The prompt of records with an input, with {instruction} and {input}."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Where a response ends that does not end by itself, in tokens."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of the search for a response; 1 is greedy."""
    length_penalty: float = 1.0
    """Beams are ranked by log-probability / tokens ** length_penalty."""
    answers: Literal["auto", "number", "choice", "true-false", "option", "text"] = "auto"
    """What the answer in a response looks like: 12.5, B, true, answer2, or the whole text. auto: as each
    record's gold answer does."""
    skip_incomplete: bool = False
    """Leave out records of train and validation that lack what they need; the report says which."""
    evaluation_records: int | None = Field(default=None, ge=1)
    """How many validation records are kept, drawn by data.seed; default: all. A response to each of them is
    generated whenever a trial is evaluated."""

    @field_validator("length_penalty")
    @classmethod
    def _ranks_beams(cls, value: float, info: Any) -> float:
        if value != 1 and info.data.get("num_beams") == 1:
            raise ValueError("1 where num_beams is 1: there are no beams to rank")
        return value

    @field_validator("template", "template_with_input")
    @classmethod
    def _names(cls, template: str, info: Any) -> str:
        wanted = {"instruction", "input"} if info.field_name == "template_with_input" else {"instruction"}
        if fields_of(template) != wanted:
            named = " and ".join(f"{{{name}}}" for name in sorted(wanted, reverse=True))
            raise ValueError(f"a template with {named}; other braces are written {{{{ and }}}}")
        return template


class Instruction(Task):
    """A response to an instruction; cross-entropy of its tokens, mean over the tokens of all responses.

    An answer is what was generated: [examples, 1 + longest text] int64, first whether it ended by itself,
    then its characters, then -1. There is no head.
    """

    name = "instruction"
    summary = "responses to instructions, with an answer in each"
    title = "follow instructions"
    pipeline_tag = "text-generation"
    auto_class = AutoModelForCausalLM
    peft_type = TaskType.CAUSAL_LM
    inputs = ("instruction", "input")
    optional = ("input",)
    blank = ("input",)
    default_metric = "accuracy"
    has_head = False
    several_tests = True
    options_class = InstructionOptions
    example: ClassVar[Mapping[str, str]] = {"instruction": "How many legs do two cats have?", "input": ""}

    @classmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Records with instructions, and test sets. Raises UserError with all problems."""
        problems = Problems()
        files = files_of_tests(config, problems)
        data = problems.attempt(load_records, config, files, options.skip_incomplete)
        problems.raise_if_any()
        assert data is not None  # or its problems would have been raised
        data = _fewer(data, options.evaluation_records, config.seed)
        judged = {name: split for name, split in data.splits().items() if name != "train"}
        kinds = {name: counted(split["answer"]) for name, split in judged.items()}
        if options.answers != "auto":
            _check_answers(KINDS[options.answers], judged, problems)
            problems.raise_if_any()
            return data
        told = "; ".join(f"{name} {kind}" for name, kind in kinds.items())
        return replace(data, warnings=(*data.warnings, f"Kinds of answers, by the gold ones: {told}."))

    # The model

    def auto_class_for(self, config: PretrainedConfig) -> type[_BaseAutoModelClass]:
        """By the base: one that goes on with a text, or an encoder-decoder."""
        return AutoModelForSeq2SeqLM if config.is_encoder_decoder else self.auto_class

    def peft_type_for(self, config: PretrainedConfig) -> TaskType:
        """By the base, too."""
        return TaskType.SEQ_2_SEQ_LM if config.is_encoder_decoder else self.peft_type

    def check_base(self, base: Base, splits: Mapping[str, Split], max_length: int, places: int) -> None:
        """Refuse encoders, and prompts that leave no room for a response, in training or in the model."""
        both = base.config.is_encoder_decoder
        if not both and base.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            found = f"model_type {base.config.model_type!r}, which reads in both directions"
            fix = "Choose a decoder (Llama, GPT, ...) or an encoder-decoder (T5, ...)."
            raise UserError(Problem(base.name, "a model that writes", found, fix))
        if both and getattr(base.config, "decoder_start_token_id", None) is None:
            fix = "Complete its config.json, or choose another base."
            raise UserError(Problem(base.name, "a decoder_start_token_id", "none", fix))
        problems = Problems()
        for name, split in splits.items():
            with problems.collecting(name):
                encoded = self._encode(base, split, max_length)
                if name != "train":  # nothing is generated after what is learnt
                    self._check_places(base, encoded, split, places)
        problems.raise_if_any()

    def encode(self, base: Base, split: Split, max_length: int) -> Responses:
        """Tokenise records. Raises UserError for those that leave no room for a response."""
        encoded = self._encode(base, split, max_length)
        if encoded.labels is None:  # records to answer; those of a comparison are checked with its bases
            self._check_places(base, encoded, split, base.longest_input)
        return encoded

    def _check_places(self, base: Base, encoded: Responses, split: Split, places: int) -> None:
        check_places(base, encoded, places, self.options.max_new_tokens, _rows(split))

    def _encode(self, base: Base, split: Split, max_length: int) -> Responses:
        columns = {name: list(split[name]) for name in self.inputs if name in columns_of(split)}
        prompts = [
            fill(self.options.template, self.options.template_with_input, dict(zip(columns, record)))
            for record in zip(*columns.values())
        ]
        outputs = list(split["output"]) if "output" in columns_of(split) else None
        return encode_responses(base, prompts, outputs, min(max_length, base.longest_input), _rows(split))

    def batch(
        self, chosen: Sequence[tuple[Encoded, IntArray]], pad_id: int, leading: Sequence[int]
    ) -> dict[str, Tensor]:
        """Prompts and responses, and where the responses stand."""
        return batch_of(chosen, pad_id, leading)

    def longest(self, encoded: Encoded, indices: IntArray) -> dict[str, int]:
        """What is read; of an encoder-decoder what each half reads."""
        known: Any = encoded
        own = super().longest(encoded, indices)
        if known.start is not None:
            own["decoder_input_ids"] = max(len(known.labels[index]) for index in indices)
        return own

    def prompt_batch(
        self, chosen: Sequence[tuple[Encoded, IntArray]], pad_id: int, leading: Sequence[int]
    ) -> dict[str, Tensor]:
        """Prompts to go on from."""
        return prompt_batch_of(chosen, pad_id, leading)

    def forward(self, model: Any, batch: dict[str, Any], training: bool) -> Tensor:
        """Logits for the tokens of the responses, [rows, longest response, vocabulary]; of no others."""
        batch = dict(batch)
        places = batch.pop("places", None)
        if places is None:
            return self.logits(model(**batch))
        kept, own = places.unique(return_inverse=True)
        return take(self.logits(model(**batch, logits_to_keep=kept)), own)

    # Learning

    def targets(self, encoded: Encoded, indices: IntArray) -> Tensor:
        """The responses' tokens, [rows, longest response]."""
        return targets_of(encoded, indices)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy in fp32, mean over the tokens of the responses."""
        own = logits[:, : targets.shape[1]].float()
        return torch.nn.functional.cross_entropy(own.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)

    # Answering

    def evaluation_sizes(self, encoded: Encoded) -> IntArray:
        """Tokens of the text, and what the logits of its response weigh."""
        known: Any = encoded
        written = np.asarray([len(ids) for ids in known.labels])
        sizes: IntArray = encoded.lengths + written * known.vocabulary // LOGITS_A_TOKEN
        return sizes

    def collect(self, logits: Tensor, encoded: Encoded, indices: IntArray) -> Tensor:
        """The sum of the losses of each response's tokens, and how many these are: [rows, 2]."""
        targets = self.targets(encoded, indices).to(logits.device)
        own = logits[:, : targets.shape[1]].float()
        losses = torch.nn.functional.cross_entropy(
            own.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="none"
        ).view(targets.shape)
        return torch.stack([losses.sum(dim=1), (targets != NO_TARGET).sum(dim=1).float()], dim=1)

    def answer(self, encoded: Encoded, outputs: Tensor) -> Given:
        """Not in one forward: `evaluate` generates."""
        raise NotImplementedError("responses are generated")

    def evaluate(
        self, stack: Forwards, slots: Sequence[Any], encoded: Encoded, weights: Sequence[Tensor | None]
    ) -> list[Evaluation]:
        """What every slot generates, and the loss of the given responses where there are some."""
        known: Any = encoded
        options = self.options
        sums: list[Tensor | None] = [None] * len(slots)
        if encoded.labels is not None:
            sums = list(stack.outputs(slots, encoded).double().sum(dim=1))
        found = []
        for texts, own in zip(stack.generate(slots, known.prompts, self._decoding), sums, strict=True):
            decoded = known.tokenizer.batch_decode(texts, skip_special_tokens=True)
            ended = [len(ids) < options.max_new_tokens for ids in texts]
            given = as_numbers([_clean(text) for text in decoded], ended)
            loss = None if own is None else float(own[0] / own[1])
            found.append(Evaluation(given, loss, own is None or bool(torch.isfinite(own).all())))
        return found

    @property
    def _decoding(self) -> Decoding:
        options = self.options
        return Decoding(options.max_new_tokens, options.num_beams, options.length_penalty)

    def several(self, given: Sequence[Given]) -> NDArray[Any]:
        """All as wide as the widest."""
        widest = max(own.shape[1] for own in given)
        return np.stack(
            [np.pad(own, ((0, 0), (0, widest - own.shape[1])), constant_values=-1) for own in given]
        )

    # Judging

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Accuracy, and of how many responses it could be read."""
        return METRICS

    def scores(self, split: Split, given: Given) -> dict[str, float]:
        """All metrics, 0 to 1."""
        shares = self._judged(split, given).mean(axis=0)
        return {name: float(shares[part]) for name, part in zip(METRICS, (RIGHT, PARSED, ENDED), strict=True)}

    def answers(self, split: Split, given: NDArray[Any]) -> Table:
        """Each record by whether it is answered rightly, at all, and to the end."""
        table = np.stack([self._judged(split, own) for own in given])
        return Table(table.astype(np.float32), self.metrics, table[..., RIGHT] == 1)

    def _judged(self, split: Split, given: Given) -> FloatArray:
        """[examples, 4]: right, parsed, ended, 1."""
        verdicts = [
            (right, found != "", ended, True)
            for (found, right), ended in zip(self._verdicts(split, given), given[:, 0] > 0, strict=True)
        ]
        return np.asarray(verdicts, dtype=np.float64)

    def _verdicts(self, split: Split, given: Given) -> list[tuple[str, bool]]:
        """The answer in each response, and whether it is right."""
        golds = list(split["answer"])
        return [
            judge(self._kind(gold), text, gold) for text, gold in zip(as_texts(given), golds, strict=True)
        ]

    def _kind(self, gold: str) -> Kind:
        return kind_of(gold) if self.options.answers == "auto" else KINDS[self.options.answers]

    def remarks(self, means: Mapping[str, Mapping[str, float]]) -> list[str]:
        """How many responses have no answer, which counts as wrong, and how many never ended."""
        never = f"cut at {self.options.max_new_tokens} tokens, as they did not end"
        found = []
        for metric, words, value in (
            ("parsed", "without an answer that could be read", "empty"),
            ("ended", never, "False"),
        ):
            shares = {split: 1 - own[metric] for split, own in means.items() if metric in own}
            told = [f"{part:.1%} on {split}" for split, part in shares.items() if part > 0]
            if told:
                where = f"In the prediction files their `{metric}` is {value}."
                found.append(f"Responses {words}: {', '.join(told)}. {where}")
        return found

    # Telling

    def truth(self, split: Split) -> dict[str, list[Any]]:
        """The gold answers."""
        return {"answer": list(split["answer"])}

    def told(self, split: Split, given: Given) -> dict[str, Any]:
        """The response, whether it ended by itself; where gold answers are known, its answer and the verdict.

        Where none are known, its answer is told if the settings say what answers look like.
        """
        told: dict[str, Any] = {"prediction": as_texts(given), "ended": [bool(end) for end in given[:, 0]]}
        if "answer" in columns_of(split):
            verdicts = self._verdicts(split, given)
            told |= {"parsed": [found for found, _ in verdicts], "right": [right for _, right in verdicts]}
        elif self.options.answers != "auto":
            find = KINDS[self.options.answers].find
            told["parsed"] = [find(text) for text in told["prediction"]]
        return told

    def read(self, frame: pd.DataFrame) -> IntArray:
        """The responses, and which ended."""
        return as_numbers(frame["prediction"].tolist(), (frame["ended"] == "True").tolist())

    # Model cards

    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """The response."""
        templates = self.options.template, self.options.template_with_input
        return response_snippet(self.example, *templates, self._decoding, config.is_encoder_decoder)

    @property
    def always(self) -> str:
        """A response."""
        return "always writes a response, also where it knows none, and what it writes may be wrong"

    def limits(self, max_length: int) -> str:
        """In training and after it."""
        return (
            f"Prompts and responses had at most {max_length} tokens in training, and responses end after "
            f"{self.options.max_new_tokens} at the latest; prompts are not cut."
        )


def _rows(split: Split) -> list[int]:
    """What errors call the records."""
    return list(split["row"] if "row" in columns_of(split) else range(len(split["instruction"])))


def _clean(text: str) -> str:
    """A response without spaces around it and what no table of text can hold."""
    return text.replace("\0", "").strip()


def _fewer(data: TextData, count: int | None, seed: int) -> TextData:
    """The data with so many validation records, drawn at random; told where that leaves some out."""
    rows = len(data.validation)
    if count is None or count >= rows:
        return data
    kept = np.sort(np.random.default_rng(seed).permutation(rows)[:count])
    note = f"{count:,} of {rows:,} validation records are used (evaluation_records)."
    return replace(data, validation=data.validation.select(kept), warnings=(*data.warnings, note))


def _check_answers(kind: Kind, splits: Mapping[str, Split], problems: Problems) -> None:
    """Note gold answers that are not of this kind."""
    for name, split in splits.items():
        golds = list(split["answer"])
        wrong = [row for row, gold in zip(split["row"], golds, strict=True) if not kind.gold(gold)]
        if wrong:
            first = next(gold for gold in golds if not kind.gold(gold))
            found = f"others, such as {first!r}, in {listed(wrong, len(golds))}"
            fix = "Set `answers` in the task's settings to what these answers are, or to auto."
            problems.add(
                f"{name} answers", expected=f"{kind.name} answers like {kind.example}", found=found, fix=fix
            )
