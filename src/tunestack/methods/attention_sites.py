"""How learned keys and values get into a model's attention.

Two ways, both with the unchanged modelling code. Models that take a cache get one which holds the prefixes;
that is what PEFT does, also for the decoder behind an encoder that generates. Encoders that take none call
transformers' attention registry, where a function of ours puts the prefixes before a layer's own keys and
values.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, EncoderDecoderCache

from tunestack.bases.layout import LAYOUTS
from tunestack.methods.prefixes import KeyValueSizes, Prefixes
from tunestack.methods.sites import SharedInputError

NAME = "tunestack_prefix"
ARGUMENT = "tunestack_prefixes"
"""Models hand keywords that they do not know down to their attention."""


class Way(ABC):
    """How prefixes get into the attention of one model.

    moves_text: whether a text's positions begin after its prefix's. submodules: what PEFT calls
    `num_transformer_submodules`, 2 for prefixes in the decoder of an encoder-decoder.
    """

    moves_text: ClassVar[bool]
    submodules: ClassVar[int] = 1

    def sizes(self, model: PreTrainedModel) -> KeyValueSizes:
        """Of the keys and values that the prefixes stand before."""
        return KeyValueSizes.of(model.config)

    def saved(self, table: Tensor) -> Tensor:
        """A table [places, layers x 2 x width] as PEFT reads it."""
        return table

    def read(self, saved: Tensor, sizes: KeyValueSizes) -> Tensor:
        """The table that PEFT makes of what was saved."""
        return saved

    @abstractmethod
    def arguments(self, batch: dict[str, Any], prefixes: Prefixes) -> dict[str, Any]:
        """What the model is called with."""

    @abstractmethod
    def open(self, model: PreTrainedModel) -> None:
        """Make the model ready, if it is not yet."""

    @abstractmethod
    def close(self, model: PreTrainedModel) -> None:
        """Leave the model as it was before the first prefix came."""


def find_way(model: PreTrainedModel) -> Way | None:
    """How prefixes get into this model, None where they cannot."""
    config: Any = model.config
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        return None  # layers of other kinds keep other states than keys and values
    backbone: Any = model.base_model
    takes = inspect.signature(type(backbone).forward).parameters
    # Some encoders take a cache and use it only as decoders: those with code of their own must be known.
    row = LAYOUTS.get(config.model_type)
    if config.is_encoder_decoder and model.get_output_embeddings() is not None:
        # A table of the decoder's positions would count the longest prefix of the batch in every row.
        relative = row is not None and row.position_offset is None
        return ThroughDecoder(config.num_decoder_layers) if relative else None
    known = row is not None or any(_asks_registry(type(module)) for module in backbone.modules())
    if "past_key_values" in takes and not config.is_encoder_decoder:
        if not known:
            return None
        return ThroughCache(takes_positions(backbone), _position_padding(backbone), _longest_mask(backbone))
    encoder: nn.Module = backbone.get_encoder() if config.is_encoder_decoder else backbone
    modules = [module for module in encoder.modules() if _asks_registry(type(module))]
    if len(modules) != KeyValueSizes.of(config).layers:
        return None
    return ThroughRegistry({module: layer for layer, module in enumerate(modules)})


def _position_padding(backbone: nn.Module) -> int | None:
    """The entry of the table of positions that stands for padding, in models that count from it (RoBERTa)."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.padding_idx
    return None


def takes_positions(backbone: nn.Module) -> bool:
    """Whether the model must be told the tokens' positions where not all begin at the first place.

    Some have none (BLOOM); the table of others counts the open places of the mask itself (OPT).
    """
    if "position_ids" not in inspect.signature(type(backbone).forward).parameters:
        return False
    tables = [type(module).forward for module in backbone.modules() if isinstance(module, nn.Embedding)]
    return not any("attention_mask" in inspect.signature(forward).parameters for forward in tables)


def _longest_mask(backbone: nn.Module) -> float:
    """Places in the causal mask that the model keeps (GPT-Neo); most models make theirs to measure."""
    masks = [buffer for buffer in backbone.buffers() if buffer.dtype == torch.bool and buffer.ndim == 4]
    return min((mask.shape[-1] for mask in masks), default=math.inf)


def _asks_registry(kind: type[nn.Module]) -> bool:
    """Whether modules of this class look their attention up in transformers' registry."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


class ThroughCache(Way):
    """`past_key_values` that hold the prefixes, as PEFT has it.

    A text's positions begin after its own prefix, whose keys are not rotated.
    takes_positions: whether the model needs `position_ids`; others count the open places of the mask.
    padding: the position that stands for padding; the others follow it. longest: most places in all.
    """

    moves_text = True

    def __init__(self, takes_positions: bool, padding: int | None, longest: float) -> None:
        self.takes_positions = takes_positions
        self.padding = padding
        self.longest = longest

    def arguments(self, batch: dict[str, Any], prefixes: Prefixes) -> dict[str, Any]:
        """The batch with a cache, a mask over cache and tokens, and each row's positions.

        Raises SharedInputError where one slot's prefix and another's texts are too long together.
        """
        mask = batch["attention_mask"]
        if prefixes.shared and prefixes.places + mask.shape[1] > self.longest:
            raise SharedInputError("a prefix and the longest text of the batch fill the model's causal mask")
        layers: list[Any] = [_PrefixLayer(prefixes, layer) for layer in range(prefixes.sizes.layers)]
        changed = {
            **batch,
            "past_key_values": Cache(layers=layers),
            "attention_mask": torch.cat([prefixes.open.to(mask.dtype), mask], dim=1),
        }
        if self.takes_positions:
            # Padding stays where it is: company may have made the row as long as the table already.
            changed["position_ids"] = self._positions(batch) + prefixes.lengths[:, None] * mask
        return changed

    def open(self, model: PreTrainedModel) -> None:
        """Nothing to prepare."""

    def close(self, model: PreTrainedModel) -> None:
        """Nothing to undo."""

    def _positions(self, batch: dict[str, Any]) -> Tensor:
        """The tokens' positions without a prefix."""
        if "position_ids" in batch:
            given: Tensor = batch["position_ids"]
            return given
        mask = batch["attention_mask"]
        if self.padding is None:
            return torch.arange(mask.shape[1], device=mask.device)
        text: Tensor = batch["input_ids"].ne(self.padding).long()
        return text.cumsum(1) * text + self.padding


class ThroughDecoder(Way):
    """`past_key_values` of a decoder that generates, as PEFT has it: its self-attention alone has prefixes.

    For decoders with relative positions (T5): a row's own prefix stands right before its text. PEFT takes a
    table for one of four entries a layer, keys and values of self-attention and of the attention to the
    encoder, and drops the latter; where it made the table itself, there are half as many, used twice.
    """

    moves_text = False
    submodules = 2

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def sizes(self, model: PreTrainedModel) -> KeyValueSizes:
        """The decoder's: its number of layers may be another than the encoder's."""
        return replace(KeyValueSizes.of(model.config), layers=self.layers)

    def saved(self, table: Tensor) -> Tensor:
        """With nothing for the attention to the encoder: [places, layers x 4 x width]."""
        own = table.unflatten(1, (self.layers, -1))
        return torch.cat([own, torch.zeros_like(own)], dim=2).flatten(1)

    def read(self, saved: Tensor, sizes: KeyValueSizes) -> Tensor:
        """Every other pair of entries, from the beginning again where they end."""
        pairs = saved.unflatten(1, (-1, 2 * sizes.width))
        table: Tensor = pairs[:, [2 * layer % pairs.shape[1] for layer in range(self.layers)]].flatten(1)
        return table

    def arguments(self, batch: dict[str, Any], prefixes: Prefixes) -> dict[str, Any]:
        """The batch with a cache, and a mask over cache and decoder's tokens [rows, places + tokens]."""
        layers: list[Any] = [_PrefixLayer(prefixes, layer) for layer in range(prefixes.sizes.layers)]
        shape = (len(prefixes.open), batch["decoder_input_ids"].shape[-1])
        mask = batch.get("decoder_attention_mask", prefixes.open.new_ones(shape)).long()
        return {
            **batch,
            "past_key_values": _DecoderCache(Cache(layers=layers), _NoCache(layers=[])),
            "decoder_attention_mask": torch.cat([prefixes.open.to(mask.dtype), mask], dim=1),
        }

    def open(self, model: PreTrainedModel) -> None:
        """Nothing to prepare."""

    def close(self, model: PreTrainedModel) -> None:
        """Nothing to undo."""


class _NoCache(Cache):
    """Keeps nothing, for the encoder's keys and values, which a recomputed forward must compute anew."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What was given."""
        return key_states, value_states


class _DecoderCache(EncoderDecoderCache):
    """Of which attention always believes that the encoder's part is still empty."""

    def __init__(self, *caches: Cache) -> None:
        super().__init__(*caches)
        self.is_updated = _Forgetful()


class _Forgetful(dict[int, bool]):
    def __setitem__(self, layer: int, updated: bool) -> None:
        """Nothing is kept."""


class _PrefixLayer(CacheLayerMixin):
    """One layer of a cache that gives its prefixes and keeps nothing, for a recomputed forward must find it
    as the first one did.
    """

    def __init__(self, prefixes: Prefixes, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prefixes = prefixes
        self.layer = layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is kept."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values that the tokens attend to."""
        return self.prefixes.before(self.layer, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns the mask has, and where they begin."""
        return self.prefixes.places + query_length, 0

    def get_seq_length(self) -> int:
        """Places before the tokens."""
        return self.prefixes.places

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class ThroughRegistry(Way):
    """An attention function that puts the prefixes before the model's own keys and values.

    For encoders without a cache (DistilBERT, ModernBERT) and the encoder of T5. Positions stay as they are;
    a prefix is seen from everywhere, beyond local windows too, and has no relative position (T5's bias is 0).
    layers: the model's attention modules, and which layer's prefix is theirs.
    """

    moves_text = False

    def __init__(self, layers: Mapping[nn.Module, int]) -> None:
        self.layers = layers

    def arguments(self, batch: dict[str, Any], prefixes: Prefixes) -> dict[str, Any]:
        """The batch with the prefixes as a keyword, which the model hands down to its attention."""
        return {**batch, ARGUMENT: (prefixes, self.layers)}

    def open(self, model: PreTrainedModel) -> None:
        """Put our function before the attention that the model uses."""
        used = model.config._attn_implementation
        if used.startswith(NAME):
            return
        AttentionInterface.register(NAME + used, functools.partial(_attention, used))
        AttentionMaskInterface.register(NAME + used, AttentionMaskInterface()[used])
        model.set_attn_implementation(NAME + used)

    def close(self, model: PreTrainedModel) -> None:
        """Give the model its own attention back."""
        model.set_attn_implementation(model.config._attn_implementation.removeprefix(NAME))


def _attention(
    used: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tunestack_prefixes: tuple[Prefixes, Mapping[nn.Module, int]] | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The attention called `used`, with prefixes where the batch brings some and the module has a layer.

    query, key, value: [rows, heads, tokens, head_dim].
    """
    prefixes, layers = tunestack_prefixes or (None, {})
    if prefixes is not None and module in layers:
        key, value = prefixes.before(layers[module], key, value)
        attention_mask = prefixes.masked(attention_mask, query)
        if position_bias is not None:
            position_bias = nn.functional.pad(position_bias, (prefixes.places, 0))
    if position_bias is not None:
        kwargs["position_bias"] = position_bias
    eager = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    attend = AttentionInterface().get_interface(used, eager)
    return attend(module, query, key, value, attention_mask, **kwargs)
