"""Classification by generation: an encoder-decoder reads a text and writes its label (Raffel et al., 2020).

The score of a label is the log-probability of its text t after x, end-of-text token included:

    s(y) = sum_i log p(t_i | x, t_1 .. t_i-1),    p(y | x) = exp s(y) / sum_z exp s(z)

which is the model's own distribution over texts, given that the text is one of the labels'. Scores divided by
the number of tokens would be none: training teaches the model to write the labels' texts and no others, after
which exp s(y) is p(y | x) however long a text is.

The encoder runs once for each text, and so do the decoder's keys and values of it; the decoder's own tokens
run once for each label. What is kept of a batch are the scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import TaskType
from pydantic import Field, field_validator
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PretrainedConfig
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tunestack.arrays import IntArray
from tunestack.config import DataConfig, Label, Settings
from tunestack.data.encode import Encoded, encode, widened
from tunestack.data.load import TextData, load_text_data
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.tasks.base import Split, columns_of, literal
from tunestack.tasks.classification import SequenceClassification
from tunestack.tasks.responses import fields_of

if TYPE_CHECKING:
    from tunestack.bases import Base

NOTHING = -100
"""Where a label's text has ended: not a token."""
NUMBERS_A_TOKEN = 8192
"""Logits that weigh in a batch of evaluation as much as one token of a text."""


class TextToTextOptions(Settings):
    """Settings of the task `text-to-text`."""

    prompt: str = "{text}"
    """What the encoder reads: a template with {text}, and {text_pair} for pairs. Where it gets too long, the
    text is cut and not the template."""
    label_texts: dict[Label, Label] = Field(default_factory=dict)
    """What is written for a label, by its name; default: the name itself."""

    @field_validator("prompt")
    @classmethod
    def _has_text(cls, prompt: str) -> str:
        if "text" not in (named := fields_of(prompt)) or not named <= {"text", "text_pair"}:
            raise ValueError(
                "a template with {text}, perhaps {text_pair}; other braces are written {{ and }}"
            )
        return prompt


@dataclass(frozen=True)
class LabelledByText(Encoded):
    """Tokenised texts, and what may be written for them.

    label_ids: tokens of each label's text, [labels, tokens], `NOTHING` where it has ended. start: the token
    that the decoder begins with. vocabulary: how many tokens there are to choose from.
    """

    label_ids: IntArray
    start: int
    vocabulary: int


class TextToText(SequenceClassification):
    """Which of `label_names` a text has, by the probability of writing it; cross-entropy of its tokens.

    An answer is the probability of each label, [examples, labels] in fp64. There is no head.
    """

    name = "text-to-text"
    summary = "one label a text, written by an encoder-decoder"
    title = "write texts"
    auto_class = AutoModelForSeq2SeqLM  # type: ignore[assignment]
    peft_type = TaskType.SEQ_2_SEQ_LM
    reads_first_token = False
    has_head = False
    options_class = TextToTextOptions

    @classmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Texts with one label each. Raises UserError with all problems, those of the options among them."""
        problems = Problems()
        paired = "text_pair" in fields_of(options.prompt)
        if paired != (config.text_pair is not None):
            problems.add(
                "task text-to-text: prompt",
                expected="a place for {text_pair}" if config.text_pair else "none for {text_pair}",
                found=repr(options.prompt),
                fix="Name {text_pair} in the prompt and its column in data.text_pair, or neither.",
            )
        data = problems.attempt(load_text_data, config)
        names = data.label_names if data else ()
        for label, text in options.label_texts.items():
            if data and label not in names:
                fix = did_you_mean(label, names)
                problems.add("task text-to-text: label_texts", expected="labels", found=repr(label), fix=fix)
            if not text.strip():
                problems.add(
                    f"task text-to-text: label_texts.{label}",
                    expected="a text to write",
                    found="none",
                    fix="Give one, or leave it out: the label's name is written then.",
                )
        problems.raise_if_any()
        assert data is not None  # or its problems would have been raised
        return data

    # The model

    def auto_class_for(self, config: PretrainedConfig) -> type[_BaseAutoModelClass]:
        """What loads an encoder-decoder. Raises UserError for a base that is none."""
        if not config.is_encoder_decoder:
            raise UserError(
                Problem(
                    "task text-to-text",
                    "a base that reads and writes (an encoder-decoder: T5, mT5, mT0)",
                    f"model_type {config.model_type!r}",
                    "Choose such a base, or the task classification for this one.",
                )
            )
        return self.auto_class

    def check_base(self, base: Base, splits: Mapping[str, Split], max_length: int, places: int) -> None:
        """Refuse labels that the base's tokenizer cannot tell apart or write, and prompts that fill it."""
        problems = Problems()
        problems.attempt(self._label_ids, base)
        filled = self.options.prompt.format(text="a", text_pair="a")
        if base.token_lengths([filled])[0] > max_length:
            problems.extend(_no_room(max_length))
        problems.raise_if_any()

    def _label_ids(self, base: Base) -> list[list[int]]:
        """The tokens of each label's text, the last of them ends it. Raises UserError with all problems."""
        problems = Problems()
        tokenizer: Any = base.tokenizer
        config: Any = base.config
        ids: dict[str, list[int]] = {}
        for place, what in ((config, "decoder_start_token_id"), (tokenizer, "eos_token_id")):
            if getattr(place, what, None) is None:
                fix = "Choose another base, or complete its files."
                problems.add(base.name, expected=f"a model with a {what}", found="none", fix=fix)
        problems.raise_if_any()
        for label in self.label_names:
            text = self.options.label_texts.get(label, label)
            where = f"label {label!r} on {base.name}"
            own = tokenizer(text, add_special_tokens=False)["input_ids"]
            if not own or tokenizer.unk_token_id in own:
                problems.add(
                    where,
                    expected="a text that the base's tokenizer can write",
                    found=f"{text!r}, with characters that it does not know"
                    if own
                    else f"{text!r}: no token",
                    fix="Give the label another text: label_texts in the task's settings.",
                )
            whole = list(tokenizer(text_target=text)["input_ids"])
            ids[label] = whole if tokenizer.eos_token_id in whole else [*whole, tokenizer.eos_token_id]
            for other, theirs in ids.items():
                if other != label and theirs == ids[label]:
                    problems.add(
                        where,
                        expected="tokens that no other label has",
                        found=f"those of {other!r}",
                        fix="Give one of them another text: label_texts in the task's settings.",
                    )
        problems.raise_if_any()
        return list(ids.values())

    def encode(self, base: Base, split: Split, max_length: int) -> LabelledByText:
        """Tokenise a split with columns `text`, perhaps `text_pair`, perhaps `label` (an array of numbers).

        Raises UserError where the prompt alone fills max_length.
        """
        rows = self._encode_prompts(base, split, min(max_length, base.longest_input))
        written = self._label_ids(base)
        table = np.full((len(written), max(map(len, written))), NOTHING, dtype=np.int64)
        for line, ids in zip(table, written, strict=True):
            line[: len(ids)] = ids
        config: Any = base.config
        start, vocabulary = config.decoder_start_token_id, config.vocab_size
        return LabelledByText(**vars(rows), label_ids=table, start=start, vocabulary=vocabulary)

    def _encode_prompts(self, base: Base, split: Split, limit: int) -> Encoded:
        columns = [name for name in self.inputs if name in columns_of(split)]
        labels = list(split["label"]) if "label" in columns_of(split) else None
        examples = [dict(zip(columns, row)) for row in zip(*(split[name] for name in columns))]
        prompts = [self.options.prompt.format(**example) for example in examples]
        rows = encode(base.tokenizer, prompts, None, labels, limit)
        if not rows.truncated:
            return rows
        for index in np.flatnonzero(rows.lengths >= limit).tolist():
            prompts[index] = self._cut(base, examples[index], limit)
        return replace(encode(base.tokenizer, prompts, None, labels, limit), truncated=rows.truncated)

    def _cut(self, base: Base, example: Mapping[str, str], limit: int) -> str:
        """The prompt with as many of the texts' first characters as fit."""

        def prompt(characters: int) -> str:
            filled: str = self.options.prompt.format(**{k: text[:characters] for k, text in example.items()})
            return filled

        fits, too_long = 0, max(map(len, example.values())) + 1
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            if base.token_lengths([prompt(middle)])[0] <= limit:
                fits = middle
            else:
                too_long = middle
        if not fits:
            raise _no_room(limit)
        return prompt(fits)

    def batch(
        self, chosen: Sequence[tuple[Encoded, IntArray]], pad_id: int, leading: Sequence[int]
    ) -> dict[str, Tensor]:
        """The texts; what the decoder reads for each label and what it is to write, [labels, tokens].

        label: of each row, where it is known.
        """
        batch = super().batch(chosen, pad_id, leading)
        first: Any = chosen[0][0]  # all are of one base, which has one tokenizer
        written = torch.from_numpy(first.label_ids)
        read = torch.where(written == NOTHING, pad_id, written).roll(1, dims=1)
        read[:, 0] = first.start
        if batch["input_ids"].shape[1] == written.shape[1]:
            batch = widened(batch, pad_id)
        if all(encoded.labels is not None for encoded, _ in chosen):
            labels = [np.asarray(encoded.labels)[indices] for encoded, indices in chosen]
            batch["label"] = torch.from_numpy(np.concatenate(labels))
        return {**batch, "decoder_input_ids": read, "label_ids": written}

    def forward(self, model: Any, batch: dict[str, Any], training: bool) -> Tensor:
        """The labels' scores, [rows, labels] fp32; in training of the rows' own labels, the others 0."""
        batch = dict(batch)
        written, read = batch.pop("label_ids"), batch.pop("decoder_input_ids")
        own = batch.pop("label", None)
        if not training:
            return torch.stack(list(self._scores(model, batch, written, read)), dim=1)
        logits = self.logits(model(**batch, decoder_input_ids=read[own]))
        scores = _log_probability(logits, written[own])
        return scores.new_zeros(len(own), len(written)).scatter(1, own[:, None], scores[:, None])

    def _scores(self, model: Any, batch: dict[str, Any], written: Tensor, read: Tensor) -> Iterable[Tensor]:
        """Each label's scores, [rows]. The rows' own keys and values are computed with the first label."""
        prefixes, places = batch.pop("past_key_values", None), batch.pop("decoder_attention_mask", None)
        mask = batch["attention_mask"]
        states = model.get_encoder()(**batch)
        of_texts = DynamicCache()
        for ids, before in zip(written, read, strict=True):
            tokens = int((ids != NOTHING).sum())
            own = DynamicCache() if prefixes is None else prefixes.self_attention_cache
            output = model(
                encoder_outputs=states,
                attention_mask=mask,
                decoder_input_ids=before[:tokens].expand(len(mask), -1),
                decoder_attention_mask=None if places is None else places[:, : tokens - len(ids) or None],
                past_key_values=EncoderDecoderCache(own, of_texts),
            )
            yield _log_probability(self.logits(output), ids[:tokens].expand(len(mask), -1))

    # Learning

    def targets(self, encoded: Encoded, indices: IntArray) -> Tensor:
        """The label of each row and how many tokens its text has, [rows, 2]."""
        labels = super().targets(encoded, indices)
        known: Any = encoded
        tokens = torch.from_numpy((known.label_ids != NOTHING).sum(axis=1))
        return torch.stack([labels, tokens[labels]], dim=1)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy of the labels' tokens in fp32, averaged over all tokens of all rows, as transformers
        has it; a token weighs what its row's label does. logits: scores [rows, labels].
        """
        labels, tokens = targets.unbind(dim=1)
        scores = logits.gather(1, labels[:, None])[:, 0]
        weight = torch.ones_like(scores) if weights is None else weights[labels]
        return -(weight * scores).sum() / (weight * tokens).sum()

    def evaluation_sizes(self, encoded: Encoded) -> IntArray:
        """Tokens of the text, and what the logits of one label's tokens weigh."""
        known: Any = encoded
        logits: int = known.label_ids.shape[1] * known.vocabulary
        return encoded.lengths + logits // NUMBERS_A_TOKEN

    # Model cards

    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """The label whose text is the most probable one."""
        written = {name: self.options.label_texts.get(name, name) for name in self.label_names}
        return (
            f"texts = {literal({name: self.example[name] for name in columns})}\n"
            f"prompt = {literal(self.options.prompt)}.format(**texts)\n"
            f"longest = min({max_length}, tokenizer.model_max_length)"
            "  # tunestack predict cuts the text, and not the prompt around it\n"
            'ids = tokenizer(prompt, truncation=True, max_length=longest, return_tensors="pt").input_ids\n'
            f"label_texts = {literal(written)}\n\n\n"
            "def log_probability(label):  # of what is written for it\n"
            "    written = tokenizer(text_target=label_texts[label]).input_ids\n"
            "    if tokenizer.eos_token_id not in written:\n"
            "        written.append(tokenizer.eos_token_id)\n"
            "    loss = model(input_ids=ids, labels=ids.new_tensor([written])).loss\n"
            "    return -loss.item() * len(written)\n\n\n"
            "print(max(label_texts, key=log_probability))"
        )

    def pipeline_snippet(self, columns: Sequence[str], max_length: int) -> str | None:
        """None: a pipeline may write what is no label."""
        return None


def _no_room(limit: int) -> UserError:
    """The error for a prompt that leaves nothing for a text."""
    expected = "room for a text beside the prompt"
    fix = "Shorten the prompt, or raise training.max_length where the base allows it."
    return UserError(Problem("task text-to-text: prompt", expected, f"{limit} tokens in all", fix))


def _log_probability(logits: Tensor, ids: Tensor) -> Tensor:
    """Of each row's tokens together, [rows] fp32. logits: [rows, tokens, vocabulary]; ids: [rows, tokens]."""
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), ids.flatten(), ignore_index=NOTHING, reduction="none"
    )
    return -losses.view(ids.shape).sum(dim=1)
