"""Prompt tuning: learned embeddings before the input (Lester et al., 2021, arXiv:2104.08691).

The loop keeps n places before each of the slot's texts, and the prompt takes the place of their embeddings:
positions, token types and pooling follow as if there were n more tokens. So it is in PEFT, which hands the
model `[P; E(x)]` in place of the text. Models that pool the first token pool the first of the prompt.

PEFT differs in two places. Without ids, transformers' decoders pool the last place of the batch: there, PEFT
is right for rows of one length alone. T5's classifier takes ids only: there, PEFT has no prompts.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from peft import PeftConfig, PromptTuningConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tunestack.bases.base import head_modules
from tunestack.bases.layout import LAYOUTS
from tunestack.bases.sources import load_tokenizer, resolve
from tunestack.config import BaseConfig
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.methods.base import (
    PROMPT_PREFIX,
    Adapter,
    Method,
    attach_copies,
    check_whole_modules,
    decays,
)
from tunestack.methods.sites import Host, Member, Part, Span, stable_hash

SAVED = "prompt_embeddings"
SHORTEST_TEXT = 3
"""Tokens that a prompt has to leave room for: one of the text between two special ones."""
_INITS = ("RANDOM", "SAMPLE_VOCAB", "TEXT")


class Prompt(Protocol):
    """What makes a slot's prompt: [virtual tokens, features], fp32."""

    def __call__(self, span: Span | None, site: str) -> Tensor:
        """The prompt; with a span's noise, as it is in a step of training."""


class Table(nn.Module):
    """A prompt that is learned as it is."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, span: Span | None, site: str) -> Tensor:
        """The prompt [virtual tokens, features]."""
        return self.weight


class PromptPart(Part):
    """One slot's prompt, in place of the first embeddings of each of its rows."""

    def __init__(self, prompt: Prompt) -> None:
        super().__init__()
        self.prompt = prompt

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Write every slot's prompt over the embeddings y [rows, tokens, features] of its own rows.

        Rows that have no places for it are a text's later tokens, whose beginning lies in a cache.
        """
        members = [member for member in members if member.span.leading]
        if not members:
            return y
        prompts = [member.part.prompt(member.span, member.site) for member in members]
        replaced: Tensor = _ReplaceFirst.apply(y, members, *prompts)  # type: ignore[no-untyped-call]
        return replaced


class _ReplaceFirst(torch.autograd.Function):
    """y with the first embeddings of each member's rows replaced, in place; gradients are summed in fp32."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, members: Sequence[Member], *prompts: Tensor) -> Tensor:
        ctx.places = [
            (slice(member.span.start, member.span.stop), slice(len(prompt)))
            for member, prompt in zip(members, prompts, strict=True)
        ]
        for place, prompt in zip(ctx.places, prompts, strict=True):
            y[place] = prompt.to(y.dtype)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_prompts = [grads[0][place].sum(0, dtype=torch.float32) for place in ctx.places]
        of_y: Tensor | None = None
        if ctx.needs_input_grad[0]:
            of_y = grads[0].clone()
            for place in ctx.places:
                of_y[place] = 0
        return (of_y, None, *of_prompts)


class TextForDecoder(Part):
    """The decoder of an encoder-decoder reads the text alone: a prompt stands before the encoder's input.

    Such a classifier (T5) feeds its decoder the encoder's ids, moved right by one, and pools the decoder at
    the end-of-text token of these ids. Both stay as they are without a prompt: the start token moves to
    before the text, what stands before it is hidden. Relative positions do not see the difference.
    """

    def __init__(self, shift_right: Callable[[Tensor], Tensor], pad_id: int) -> None:
        super().__init__()
        self.shift_right = shift_right
        self.pad_id = pad_id

    @classmethod
    def arguments(cls, batch: dict[str, Any], members: Sequence[Member]) -> dict[str, Any]:
        """Give the decoder its own ids and mask, where the task has not."""
        if "decoder_input_ids" in batch:
            return batch
        ids = batch["input_ids"].clone()
        decoder = members[0].part.shift_right(ids)
        mask = batch.get("decoder_attention_mask", torch.ones_like(ids)).clone()
        for member in members:
            rows, leading = slice(member.span.start, member.span.stop), member.span.leading
            ids[rows, :leading] = member.part.pad_id  # a first token that ends a text would be pooled
            decoder[rows, leading] = decoder[rows, 0]
            mask[rows, :leading] = 0
        return {**batch, "input_ids": ids, "decoder_input_ids": decoder, "decoder_attention_mask": mask}


class PromptLearning(Method):
    """Families that learn what stands before the input, saved as PEFT saves them: the prompt itself."""

    starts_as_base = False

    @abstractmethod
    def prompt(self, config: Any, host: Host, seed: int) -> nn.Module:
        """A freshly initialised `Prompt` of `config.num_virtual_tokens`; all sizes in the config are set."""

    @abstractmethod
    def check_fields(self, config: Any, problems: Problems) -> None:
        """Note what is wrong with the fields that this family alone has."""

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse prompts that leave no room for a text, and sizes that are not the base's."""
        fields: Any = config
        problems = Problems()
        name = embeddings_name(model)
        self._check_room(fields, model, problems)
        own = {"token_dim": _width(model), "num_transformer_submodules": 1}
        for field, value in own.items():
            if getattr(fields, field) not in (None, value):
                problems.add(
                    f"{self.name}.{field}",
                    expected=f"{value}, as this base has it",
                    found=str(getattr(fields, field)),
                    fix="Leave it out.",
                )
        head = head_modules(model, model.config.model_type)
        check_whole_modules(config, model, head, self.name, problems)
        for entry in fields.modules_to_save or []:
            if name.endswith(entry):
                problems.add(
                    f"{self.name}.modules_to_save",
                    expected="modules behind the input embeddings (PEFT's prompts take the base's own)",
                    found=repr(entry),
                    fix="Leave it out, or train the embeddings with another method.",
                )
        self.check_fields(config, problems)
        problems.raise_if_any()

    def _check_room(self, config: Any, model: PreTrainedModel, problems: Problems) -> None:
        base = model.config.get_text_config()
        row = LAYOUTS.get(base.model_type)
        table = getattr(base, "max_position_embeddings", None)
        taken = ((row and row.position_offset) or 0) + SHORTEST_TEXT
        most = math.inf if table is None else table - taken
        if not 1 <= config.num_virtual_tokens <= most:
            problems.add(
                f"{self.name}.num_virtual_tokens",
                expected=f"1 to {most}, for the base takes {table} positions" if table else "at least 1",
                found=str(config.num_virtual_tokens),
                fix="Choose a number in that range; 10 to 100 are usual.",
            )

    def positions_taken(self, config: Any, model: PreTrainedModel) -> int:
        """One for every virtual token, where the base has a table of positions."""
        return int(config.num_virtual_tokens) if has_position_table(model) else 0

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place the prompt at the input embeddings, and the slot's own head."""
        model: Any = host.model
        fields: Any = with_sizes(config, model)
        name = embeddings_name(model)
        weight = model.get_submodule(name).weight
        count = fields.num_virtual_tokens
        adapter = Adapter(virtual_tokens=count, positions=self.positions_taken(config, model))
        if fields.inference_mode:
            prompt: nn.Module = Table(torch.zeros(count, fields.token_dim))
        else:
            prompt = self.prompt(fields, host, stable_hash(seed, SAVED))
        prompt.to(weight.device)
        if isinstance(prompt, Table):
            adapter.add(SAVED, prompt.weight)
        else:
            for path, parameter in prompt.named_parameters():
                adapter.add(f"prompt_encoder.{path}", parameter, decay=decays(path, parameter))
            adapter.training_only = set(adapter.parameters)
            adapter.derived[SAVED] = lambda: prompt(None, "")
        host.place(name, slot, PromptPart(prompt))
        if model.config.is_encoder_decoder:
            host.place("", slot, TextForDecoder(model._shift_right, model.config.pad_token_id))
        attach_copies(config, host, slot, seed, adapter, PROMPT_PREFIX)
        return adapter

    def save(self, folder: Path, config: PeftConfig, adapter: Adapter, host: Host, base: str) -> None:
        """Write what PEFT writes, the base's sizes in the config."""
        super().save(folder, with_sizes(config, host.model), adapter, host, base)


class PromptTuning(PromptLearning):
    """Prompt tuning with `peft.PromptTuningConfig`: the embeddings of the prompt are the weights.

    Learning rate: 1e-2, between PEFT's examples for classification (1e-3) and for language models (3e-2);
    on MiniLM and 1,600 tweets (2 epochs) F1 is 0.73, 0.74 and 0.75 at 3e-3, 1e-2 and 3e-2, but the head of a
    wide base learns at the same rate.
    """

    name = "prompt"
    summary = "embeddings before the input"
    config_class = PromptTuningConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-2}

    def defaults(self, model_type: str) -> dict[str, Any]:
        """20 virtual tokens: more gain little (Lester et al., section 3.2)."""
        return {"num_virtual_tokens": 20}

    def make_config(self, fields: Mapping[str, Any], model_type: str, head: list[str]) -> PeftConfig:
        """A text alone is enough to start from it: the tokenizer is then the base's own."""
        values = dict(fields)
        if values.get("prompt_tuning_init_text") is not None:
            values.setdefault("prompt_tuning_init", "TEXT")
        own = values.get("tokenizer_name_or_path") is None
        if own:
            values["tokenizer_name_or_path"] = "the base's"  # PEFT's config wants one with every text
        config: Any = super().make_config(values, model_type, head)
        if own:
            config.tokenizer_name_or_path = None
        made: PeftConfig = config
        return made

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """As every prompt; refuse a text that the tokenizer named for it cannot read."""
        super().check(config, model)
        fields: Any = config
        named = fields.tokenizer_name_or_path is not None and not fields.inference_mode
        if named and fields.prompt_tuning_init == "TEXT":
            embeddings: Any = model.get_submodule(embeddings_name(model))
            text_ids(fields, _named_tokenizer(fields, model), embeddings.num_embeddings)

    def check_fields(self, config: Any, problems: Problems) -> None:
        """Refuse an initialisation that there is not, a text that none starts from, an empty one."""
        init, text = config.prompt_tuning_init, config.prompt_tuning_init_text
        if init not in _INITS:
            problems.add(
                "prompt.prompt_tuning_init",
                expected=f"one of {', '.join(_INITS)}",
                found=repr(init),
                fix=did_you_mean(str(init).upper(), _INITS),
            )
        elif text is not None and (init != "TEXT" or not text.strip()):
            problems.add(
                "prompt.prompt_tuning_init_text",
                expected="a text to start from",
                found=repr(text) if init == "TEXT" else f"one beside prompt_tuning_init {init}",
                fix="Give the text alone, or leave it out.",
            )
        if config.tokenizer_kwargs:
            problems.add(
                "prompt.tokenizer_kwargs",
                expected="none: the tokenizer is loaded as it was saved",
                found=repr(config.tokenizer_kwargs),
                fix="Leave the field out.",
            )

    def prompt(self, config: Any, host: Host, seed: int) -> nn.Module:
        """As PEFT starts it: N(0, 1), or the embeddings of random tokens of the vocabulary, or of a text."""
        module: Any = host.model.get_submodule(embeddings_name(host.model))
        shape = (config.num_virtual_tokens, config.token_dim)
        if module.weight.is_meta:  # counted, never run
            return Table(torch.empty(shape, device="meta"))
        generator = torch.Generator().manual_seed(seed)
        if config.prompt_tuning_init == "RANDOM":
            return Table(torch.randn(shape, generator=generator))
        if config.prompt_tuning_init == "TEXT":
            named = config.tokenizer_name_or_path is not None
            tokenizer = _named_tokenizer(config, host.model) if named else host.tokenizer
            assert tokenizer is not None  # a host with weights has one
            ids = text_ids(config, tokenizer, module.num_embeddings)
        else:
            ids = torch.randint(module.num_embeddings, shape[:1], generator=generator)
        with torch.no_grad():
            # The class's own forward: the module's may be taken over, by slots whose rows are not here.
            embeddings = type(module).forward(module, ids.to(module.weight.device))
        return Table(embeddings.float().clone())

    def save(self, folder: Path, config: PeftConfig, adapter: Adapter, host: Host, base: str) -> None:
        """Write what PEFT writes; with a text its tokenizer too, which PEFT asks for and never reads."""
        config = copy.copy(config)
        fields: Any = config
        if fields.prompt_tuning_init == "TEXT":
            fields.tokenizer_name_or_path = fields.tokenizer_name_or_path or base
        super().save(folder, config, adapter, host, base)


def _named_tokenizer(config: Any, model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that the config names. Raises UserError where it cannot be had."""
    name = config.tokenizer_name_or_path
    settings = BaseConfig(model=name)
    try:
        return load_tokenizer(resolve(settings), model.config, settings)
    except UserError as error:
        raise UserError(
            Problem(
                "prompt.tokenizer_name_or_path",
                "a tokenizer that can be loaded",
                f"{name}: {error.problems[0].found}",
                "Leave it out: the base's own tokenizer reads the text then.",
            )
        ) from error


def text_ids(config: Any, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Tensor:
    """Token ids [virtual tokens] of the text, special ones included; cut, or repeated, to length as in PEFT.

    Raises UserError where the tokenizer finds none in it, or is one for another base.
    """
    ids = tokenizer(config.prompt_tuning_init_text)["input_ids"]
    if not ids or max(ids) >= vocabulary:
        raise UserError(
            Problem(
                "prompt.prompt_tuning_init_text",
                f"a text of tokens of this base, ids below {vocabulary}",
                f"id {max(ids)}" if ids else "no token",
                "Give another text; without tokenizer_name_or_path the base's own tokenizer reads it.",
            )
        )
    count = config.num_virtual_tokens
    return torch.tensor((ids * math.ceil(count / len(ids)))[:count])


def embeddings_name(model: nn.Module) -> str:
    """The full name of the module that embeds the input; of an encoder-decoder, the encoder's.

    Raises UserError where the model has none, or a decoder that a prompt would move.
    """
    whole: Any = model
    inner = whole.get_encoder() if whole.config.is_encoder_decoder else whole
    found = "none"
    if whole.config.is_encoder_decoder and not hasattr(whole, "_shift_right"):
        found = "a decoder that counts positions from the start of the encoder's input"
    else:
        try:
            embeddings = inner.get_input_embeddings()
            return str(next(name for name, module in whole.named_modules() if module is embeddings))
        except (NotImplementedError, AttributeError, StopIteration):
            pass
    raise UserError(
        Problem(
            type(model).__name__,
            "one module that embeds the input tokens (get_input_embeddings)",
            found,
            "Prompts do not work on this base: choose another method, such as lora.",
        )
    )


def has_position_table(model: nn.Module) -> bool:
    """Whether a prompt takes positions of a table from the text; taken to be so where nothing is known."""
    base: Any = model
    row = LAYOUTS.get(base.config.get_text_config().model_type)
    return row is None or row.position_offset is not None


def _width(model: nn.Module) -> int:
    weight: Any = model.get_submodule(embeddings_name(model)).weight
    return int(weight.shape[1])


def with_sizes(config: PeftConfig, model: nn.Module) -> PeftConfig:
    """The config with the base's sizes filled in, as PEFT does when it wraps a model.

    token_dim is the width of the embeddings, which is not everywhere the model's (ELECTRA).
    """
    fields: Any = copy.copy(config)
    base: Any = model
    base = base.config.get_text_config()
    sizes = {
        "token_dim": _width(model),
        "num_transformer_submodules": 1,
        "num_layers": getattr(base, "num_hidden_layers", None),
        "num_attention_heads": getattr(base, "num_attention_heads", None),
        "encoder_hidden_size": _width(model),
    }
    for name, size in sizes.items():
        if name in fields.__dataclass_fields__ and getattr(fields, name) is None:
            setattr(fields, name, size)
    result: PeftConfig = fields
    return result
