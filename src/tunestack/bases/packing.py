"""Batches without their padding, while they pass through the blocks of an encoder.

Texts of one trial are about equally long, those of trials at different steps are not: padded to the longest
one, half of a stack's work would be for nothing. So before the first block every token becomes a row of its
own, [tokens, 1, features], the tokens of a text beside each other and the texts in their order. To everything
that works on tokens one by one that is a batch like any other; attention knows where texts begin.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunestack.arrays import IntArray
from tunestack.bases.layout import LAYOUTS

ARGUMENT = "tunestack_packed"
"""Models hand keywords that they do not know down to their attention."""
ALIGN = 16
"""A trial's tokens are filled up to a multiple of so many: oneDNN prepares its products anew for every number
of rows, and keeps those of a thousand or so."""
STEP = 16
"""Attention pads a text to a multiple of so many tokens: fast lengths, and the same ones, so the same
rounding, in any company."""


@dataclass(frozen=True)
class Group:
    """Texts that attention pads to the same length.

    start, stop: their rows in the tensors of all groups. shape: [texts x heads, tokens]. mask: [texts, 1, 1,
    tokens] fp32, what is added to scores; None where all are equally long.
    """

    start: int
    stop: int
    shape: tuple[int, int]
    mask: Tensor | None

    def of(self, tensor: Tensor) -> Tensor:
        """The group's part of [places, head size], as [texts x heads, tokens, head size]."""
        return tensor[self.start : self.stop].view(*self.shape, -1)


@dataclass(frozen=True)
class HeadLayout:
    """Where attention finds the heads of tokens, [tokens x heads, head size], group by group.

    index: of every place in the groups, the row that lies there; in places without a token any row of the
    text. padding: the places without one. inverse: of every row, its place; of spare ones any. spare: these.
    """

    index: Tensor
    inverse: Tensor
    padding: Tensor
    spare: Tensor
    groups: tuple[Group, ...]


class Packed:
    """Where the tokens of a padded batch lie when they stand one after the other.

    mask: [rows, tokens], 0 at padding, on a processor; each row's tokens come first. owners: how many rows
    each trial has. starts: where each row's tokens begin, and at last their number. spare: the places that
    are left where an owner's tokens are filled up to a multiple of `ALIGN`; its first token lies there once
    more, and nothing comes of it.
    """

    def __init__(self, mask: Tensor, owners: Sequence[int]) -> None:
        self.shape = mask.shape
        real = mask.numpy() != 0
        self.lengths = real.sum(axis=1)
        self.starts: list[int] = []
        places, spare, end, row = [], [], 0, 0
        for rows in owners:
            first = row * real.shape[1]
            own = first + np.flatnonzero(real[row : row + rows])
            filled = -(-len(own) // ALIGN) * ALIGN
            places += [own, np.full(filled - len(own), first)]
            spare.append(np.arange(end + len(own), end + filled))
            self.starts += (end + np.cumsum([0, *self.lengths[row : row + rows - 1]])).tolist()
            end, row = end + filled, row + rows
        self.starts.append(end)
        self.places = torch.from_numpy(np.concatenate(places))
        self.spare = torch.from_numpy(np.concatenate(spare))
        self._heads: dict[int, HeadLayout] = {}

    def gather(self, hidden: Tensor) -> Tensor:
        """[rows, tokens, features] as [all tokens, 1, features]."""
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, self.places).unsqueeze(1)

    def spread(self, hidden: Tensor) -> Tensor:
        """Undo `gather`, with zeros at padding."""
        real = torch.ones(self.starts[-1], dtype=torch.bool)
        real[self.spare] = False
        padded = hidden.new_zeros(self.shape.numel(), hidden.shape[-1])
        return padded.index_copy(0, self.places[real], hidden[real].squeeze(1)).view(*self.shape, -1)

    def first(self, hidden: Tensor) -> Tensor:
        """Each row's first token: [rows, 1, features]."""
        return hidden.index_select(0, torch.tensor(self.starts[:-1]))

    def heads(self, count: int) -> HeadLayout:
        """For attention with so many heads."""
        if count not in self._heads:
            self._heads[count] = _head_layout(self, count)
        return self._heads[count]


def pack_encoder(model: PreTrainedModel) -> bool:
    """Let the model's encoder work without padding when it is called with `ARGUMENT`; says whether it can."""
    row = LAYOUTS.get(model.config.model_type)
    if row is None or row.encoder is None or model.config.is_decoder or model.device.type != "cpu":
        return False
    encoder = model.base_model.get_submodule(row.encoder)
    if not hasattr(encoder.forward, "packs"):
        forward = functools.partial(_without_padding, encoder.forward)
        forward.packs = True  # type: ignore[attr-defined]
        encoder.forward = forward
    return True


def _without_padding(forward: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
    packed: Packed | None = kwargs.get(ARGUMENT)
    if packed is None:
        return forward(hidden, *args, **kwargs)
    output = forward(packed.gather(hidden), *args, **kwargs)
    # Where the last block went on with first tokens alone there is nothing to undo.
    if len(output.last_hidden_state) == packed.starts[-1]:
        output.last_hidden_state = packed.spread(output.last_hidden_state)
    return output


def _head_layout(packed: Packed, heads: int) -> HeadLayout:
    starts, indices, paddings, groups, place = np.array(packed.starts), [], [], [], 0
    inverse = np.zeros(starts[-1] * heads, dtype=np.int64)
    for longest, rows in _grouped(packed.lengths):
        there = np.arange(longest) < packed.lengths[rows][:, None]
        tokens = starts[rows][:, None] + np.where(there, np.arange(longest), 0)
        own = (tokens[:, None, :] * heads + np.arange(heads)[:, None]).reshape(-1)
        real = np.broadcast_to(there[:, None, :], (len(rows), heads, longest)).reshape(-1)
        inverse[own[real]] = place + np.flatnonzero(real)
        paddings.append(place + np.flatnonzero(~real))
        indices.append(own)
        mask = None
        if not there.all():
            hidden = np.where(there, 0.0, np.finfo(np.float32).min).astype(np.float32)
            mask = torch.from_numpy(hidden)[:, None, None, :]
        groups.append(Group(place, place + len(own), (len(rows) * heads, longest), mask))
        place += len(own)
    index, padding = (torch.from_numpy(np.concatenate(arrays)) for arrays in (indices, paddings))
    spare = (packed.spare[:, None] * heads + torch.arange(heads)).flatten()
    return HeadLayout(index, torch.from_numpy(inverse), padding, spare, tuple(groups))


def _grouped(lengths: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Lengths after padding, each with its rows."""
    padded = -(-lengths // STEP) * STEP
    for longest in np.unique(padded):
        yield int(longest), np.flatnonzero(padded == longest)
