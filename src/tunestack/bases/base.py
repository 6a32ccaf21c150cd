"""A base: a frozen pretrained model with its tokenizer, loaded once and shared by all trials on it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from tunestack.bases import attention, quantised
from tunestack.bases.frozen import pack_linears
from tunestack.bases.layout import LAYOUTS
from tunestack.bases.packing import ARGUMENT, Packed, pack_encoder
from tunestack.bases.sources import Source, load_tokenizer, resolve
from tunestack.config import BaseConfig
from tunestack.errors import Problem, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Base:
    """A base, opened: config and tokenizer are there, weights come with `load_model`.

    name: what the user called it; also what adapters record as their base.
    device, dtype: where and in what the frozen weights compute.
    """

    name: str
    settings: BaseConfig
    source: Source
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    dtype: torch.dtype

    @property
    def longest_input(self) -> int:
        """How many tokens the base takes at most, by its tokenizer and its table of positions.

        Bases with rotary or relative positions have no such table: they are limited by the tokenizer alone.
        """
        config = self.config.get_text_config()
        row = LAYOUTS.get(config.model_type)
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None or row is None or row.position_offset is None:
            return int(self.tokenizer.model_max_length)
        return int(min(self.tokenizer.model_max_length, positions - row.position_offset))

    def room_for_text(self, max_length: int, positions: int = 0) -> int:
        """How many tokens a text may have, where `positions` of the base's places are taken before it."""
        config = self.config.get_text_config()
        row = LAYOUTS.get(config.model_type)
        places = getattr(config, "max_position_embeddings", None)
        if places is None or not positions:
            return min(max_length, self.longest_input)
        unused = (row and row.position_offset) or 0
        return min(max_length, self.longest_input, int(places) - unused - positions)

    def ends(self, model: Any) -> list[int]:
        """The tokens that end a text that this base generates, by its tokenizer and by the model itself."""
        named = getattr(model.generation_config, "eos_token_id", None) if model.can_generate() else None
        several = named if isinstance(named, list) else [named]
        return sorted({int(end) for end in (self.tokenizer.eos_token_id, *several) if end is not None})

    def token_lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text has, special ones included, uncut."""
        return [len(ids) for ids in self.tokenizer(texts, verbose=False)["input_ids"]]

    def model_config(self, num_labels: int, **fields: Any) -> PretrainedConfig:
        """The config of a model for this many labels, padding token set."""
        config = copy.deepcopy(self.config)
        config.num_labels = num_labels
        for part in (config, config.get_text_config()):
            part.pad_token_id = self.tokenizer.pad_token_id  # decoders pool the last token that is another
        for name, value in fields.items():
            setattr(config, name, value)
        return config

    def skeleton(self, auto_class: type[_BaseAutoModelClass], config: PretrainedConfig) -> PreTrainedModel:
        """The model on the meta device, without weights: for checks and counts."""
        with torch.device("meta"):
            model: PreTrainedModel = auto_class.from_config(
                config, trust_remote_code=self.settings.trust_remote_code
            )
        return model

    def load_model(
        self,
        auto_class: type[_BaseAutoModelClass],
        config: PretrainedConfig,
        dtype: torch.dtype | None = None,
    ) -> LoadedModel:
        """Load the weights in evaluation mode, with a fast attention where there is one.

        dtype: default the base's own; a quantised base has no other. Raises UserError where weights cannot be
        read.
        """
        if self.settings.quantize is not None:
            model, missing, mismatched = self._load_quantised(auto_class, config)
        else:
            model, missing, mismatched = self.source.load_weights(
                auto_class, config, dtype or self.dtype, self.settings
            )
            model.to(self.device)  # type: ignore[arg-type]
        # Where transformers chose another kernel, the model needs something that ours does not have.
        short = self.device.type == "cpu" and model.config._attn_implementation == "sdpa"
        if short:
            model.set_attn_implementation(attention.register())
        # Keys and values of a whole batch that nobody reads again; T5's decoder has a config of its own.
        for inner in model.modules():
            if isinstance(inner, PreTrainedModel):
                inner.config.use_cache = False
        if self.settings.gradient_checkpointing:
            recompute_blocks(model)
        model.eval()
        head = head_modules(model, self.config.model_type, _owners(missing))
        self._refuse_other_sizes(
            [name for name in mismatched if not name.startswith(tuple(f"{one}." for one in head))]
        )
        fresh = _owners([*missing, *mismatched])
        pack_linears(model, [*head, *fresh])
        drawn = frozenset(head if self.source.random else fresh)
        return LoadedModel(model, tuple(head), drawn, packs=short and pack_encoder(model))

    def load_plain(
        self, auto_class: type[_BaseAutoModelClass], config: PretrainedConfig, dtype: torch.dtype
    ) -> LoadedModel:
        """The model with ordinary layers in this dtype; a quantised base with the values it computes with."""
        if self.settings.quantize is None:
            return self.load_model(auto_class, config, dtype)
        loaded = self.load_model(auto_class, config)
        plain = replace(self, settings=self.settings.plain()).load_model(auto_class, config, dtype)
        quantised.copy_values(loaded.model, plain.model)
        return plain

    def _load_quantised(
        self, auto_class: type[_BaseAutoModelClass], config: PretrainedConfig
    ) -> tuple[PreTrainedModel, list[str], list[str]]:
        """As `Source.load_weights`; what every trial trains whole, or embeddings share, is left as it is.

        What the checkpoint lacks is known only when it is read: where that is a layer that was to be
        quantised (a pooler), it is read again.
        """
        skeleton = self.skeleton(auto_class, config)
        plain = quantised.kept_plain(skeleton, head_modules(skeleton, self.config.model_type))
        while True:
            options = quantised.load_options(self.settings, self.dtype, self.device, plain)
            found = self.source.load_weights(auto_class, config, self.dtype, self.settings, options)
            model, missing, mismatched = found
            fresh = _owners([*missing, *mismatched]).intersection(quantised.stored_layers(model))
            if not fresh:
                quantised.take_over(model, self.dtype)
                return found
            plain |= fresh

    def _refuse_other_sizes(self, mismatched: list[str]) -> None:
        """A head for other labels is drawn afresh; a body of other sizes is not this model."""
        if mismatched:
            raise UserError(
                Problem(
                    self.name,
                    "weights of the sizes that its config.json names",
                    f"others, at {', '.join(mismatched[:3])}",
                    "The folder mixes two models: save both files anew with save_pretrained.",
                )
            )


def _owners(parameters: Iterable[str]) -> set[str]:
    """The modules that hold these parameters; those of the model itself have none to be trained with."""
    return {name.rpartition(".")[0] for name in parameters if "." in name}


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights.

    head: modules that every method trains whole. fresh: modules without pretrained weights, which every
    trial draws from its own seed. packs: whether its encoder takes batches without padding.
    """

    model: PreTrainedModel
    head: tuple[str, ...]
    fresh: frozenset[str]
    packs: bool = False


def recompute_blocks(model: PreTrainedModel) -> None:
    """Keep no activations inside the model's blocks: the backward pass computes them again.

    transformers does so in training mode alone, which would switch on dropout that we do not control.
    Raises UserError for a model whose blocks are not known.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise UserError(
            Problem(
                "gradient_checkpointing",
                "a model that transformers can checkpoint",
                type(model).__name__,
                "Leave gradient_checkpointing out for this base.",
            )
        )
    for block in blocks:
        block.forward = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def keep_first_token(model: PreTrainedModel) -> None:
    """Where nothing but the first token is read, let the last block work on no other after its attention.

    Models whose layout does not tell are left alone.
    """
    row = LAYOUTS.get(model.config.model_type)
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if row is not None and row.mixing is not None and blocks:
        mixing = blocks[-1].get_submodule(row.mixing)
        mixing.forward = functools.partial(_first_token, mixing.forward)


def _first_token(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    packed: Packed | None = kwargs.get(ARGUMENT)
    if packed is not None:
        kwargs[ARGUMENT] = packed.of_first()
    result = forward(*args, **kwargs)
    mixed: Tensor = result[0] if isinstance(result, tuple) else result
    first = mixed[:, :1] if packed is None else packed.first(mixed)
    return (first, *result[1:]) if isinstance(result, tuple) else first


def head_modules(model: nn.Module, model_type: str, fresh: Iterable[str] = ()) -> list[str]:
    """Full names of the head's modules, and of others whose weights the checkpoint lacks."""
    row = LAYOUTS.get(model_type)
    wanted = {*(row.head if row else ()), "classifier", "score", "qa_outputs"}
    named = [name for name, _ in model.named_modules() if name in wanted]
    return named + sorted(
        name for name in fresh if not any(name == head or name.startswith(f"{head}.") for head in named)
    )


def load_base(settings: BaseConfig) -> Base:
    """Open a base: resolve where it is, read config and tokenizer, choose device and dtype.

    Raises UserError: unknown packaged name, folder without a config, hub that cannot be reached.
    """
    source = resolve(settings)
    config = source.load_config(settings)
    tokenizer = load_tokenizer(source, config, settings)
    device = choose_device(settings.device_map)
    quantised.check_quantised(settings, config, device)
    dtype = DTYPES.get(settings.dtype) or fast_dtype(device)
    return Base(settings.model, settings, source, config, tokenizer, device, dtype)


def choose_device(device_map: str) -> torch.device:
    """The device named, or with "auto" the fastest one found: an accelerator before the processor.

    Raises UserError for a device that does not exist here.
    """
    if device_map == "auto":
        accelerator = torch.accelerator.current_accelerator()
        return accelerator if accelerator is not None else torch.device("cpu")
    try:
        device = torch.device(device_map)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = str(error).splitlines()[0]
        fix = "Name one that this machine has: cpu, cuda, cuda:1, mps; or auto. A base lies on one device."
        raise UserError(Problem("device_map", "a device", f"{device_map!r}: {found}", fix)) from error
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        native = (
            getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
            or getattr(torch.cpu, "_is_amx_tile_supported", bool)()
        )
        return torch.bfloat16 if native else torch.float32
    return torch.float32
