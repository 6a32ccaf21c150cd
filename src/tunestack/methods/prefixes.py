"""Learned keys and values of the present batch, row by row.

Rows of one batch have prefixes of different lengths, or none. All get as many places as the longest prefix;
a row's own prefix lies in the last of them, beside its text, and the others are masked.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from tunestack.errors import Problem, UserError
from tunestack.methods.sites import Span

OTHERS = "Use lora, series, parallel, prompt or p-tuning on this base."


@dataclass(frozen=True)
class KeyValueSizes:
    """Of a model's keys and values. heads: fewer than the queries' where several queries share a key."""

    layers: int
    heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Numbers in one layer's key of one token."""
        return self.heads * self.head_dim

    @classmethod
    def of(cls, config: PretrainedConfig) -> KeyValueSizes:
        """As the model's config has them; of an encoder-decoder, the encoder's. Raises UserError for a config
        that does not say.
        """
        text: Any = config.get_text_config()
        try:
            queries = text.num_attention_heads
            heads = getattr(text, "num_key_value_heads", None) or queries
            head_dim = getattr(text, "head_dim", None) or text.hidden_size // queries
            return cls(text.num_hidden_layers, heads, head_dim)
        except AttributeError as error:
            raise UserError(
                Problem(
                    "prefix",
                    "a base whose config names its layers, heads and their size",
                    f"{type(text).__name__}: {error}",
                    OTHERS,
                )
            ) from error


class Prefixes:
    """The prefixes of the present batch, row by row.

    tables: of each span with a prefix, [places, layers x 2 x width]: key and value of layer 0, of layer 1...
    lengths: how many places each row's own prefix has, [rows].
    """

    def __init__(self, tables: Sequence[tuple[Span, Tensor]], sizes: KeyValueSizes, rows: int) -> None:
        device = tables[0][1].device
        self.sizes = sizes
        self.places = max(len(table) for _, table in tables)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._pieces: list[tuple[int, Sequence[Tensor] | None]] = []
        done = 0
        for span, table in tables:
            self.lengths[span.start : span.stop] = len(table)
            states = table.view(len(table), sizes.layers * 2, sizes.heads, sizes.head_dim)
            states = nn.functional.pad(states.permute(1, 2, 0, 3), (0, 0, self.places - len(table), 0))
            # Taken apart at once: the gradient of one index after another would be a whole table each.
            self._pieces += [(span.start - done, None), (span.stop - span.start, states.unbind())]
            done = span.stop
        self._pieces.append((rows - done, None))

    @property
    def shared(self) -> bool:
        """Whether rows of several slots are in the batch."""
        return sum(count > 0 for count, _ in self._pieces) > 1

    @functools.cached_property
    def open(self) -> Tensor:
        """Which places a row's tokens may look at: [rows, places]."""
        places = torch.arange(self.places, device=self.lengths.device)
        return places >= self.places - self.lengths[:, None]

    def before(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [rows, heads, tokens, head_dim] with the prefixes before them."""
        return self._before(layer, 0, key), self._before(layer, 1, value)

    def _before(self, layer: int, which: int, own: Tensor) -> Tensor:
        shape = (self.sizes.heads, self.places, self.sizes.head_dim)
        if (own.shape[1], own.shape[3]) != (self.sizes.heads, self.sizes.head_dim):
            raise UserError(
                Problem(
                    f"{'value' if which else 'key'} of layer {layer}",
                    f"{self.sizes.heads} heads of {self.sizes.head_dim}, by the base's config",
                    f"{own.shape[1]} of {own.shape[3]}",
                    OTHERS,
                )
            )
        none = own.new_zeros(shape)
        learned = [
            (none if states is None else states[2 * layer + which].to(own.dtype)).expand(count, *shape)
            for count, states in self._pieces
            if count
        ]
        return torch.cat([torch.cat(learned), own], dim=2)

    def masked(self, mask: Tensor | None, query: Tensor) -> Tensor:
        """An attention's mask with the prefixes' places before the tokens'.

        mask: [rows or 1, 1, queries or 1, tokens], added to the scores or true where open; None where all is
        open. query: [rows, heads, queries, head_dim].
        """
        if mask is None:
            mask = query.new_zeros(1, 1, 1, query.shape[2])
        closed = torch.finfo(mask.dtype).min if mask.is_floating_point() else 0
        open_ = self.open[:, None, None]
        own = open_ if mask.dtype == torch.bool else mask.new_zeros(open_.shape).masked_fill(~open_, closed)
        rows = query.shape[0]
        return torch.cat([own.expand(rows, *mask.shape[1:3], -1), mask.expand(rows, -1, -1, -1)], dim=-1)
