"""Batches without their padding, while they pass through the blocks of an encoder.

Texts of one trial are about equally long, those of trials at different steps are not: padded to the longest
one, half of a stack's work would be for nothing. So before the first block every token becomes a row of its
own, [tokens, 1, features], the tokens of a text beside each other and the texts in their order. To everything
that works on tokens one by one that is a batch like any other; attention knows where texts begin.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from tunestack.arrays import IntArray
from tunestack.bases.layout import LAYOUTS
from tunestack.kernels.attention import Texts

ARGUMENT = "tunestack_packed"
"""Models hand keywords that they do not know down to their attention."""
ALIGN, TOGETHER = 16, 64
"""A trial's tokens are filled up to a multiple of so many, and those of several trials together: oneDNN
prepares its products anew for every number of rows, and keeps a thousand of them.
"""
STEP = 16
"""Attention pads a text to a multiple of so many tokens: fast lengths, and the same ones, so the same
rounding, in any company."""


TEXTS = 8
"""Attention takes texts in multiples of so many, for oneDNN prepares a product anew for every number of them,
too.
"""


@dataclass(frozen=True)
class Places:
    """Rows of [tokens x heads, head size] in another order, in which some stand at several places or at none.

    index: of every place, the row that stands there. vacant: places that only fill up; what stands there
    counts for nothing. inverse: of every row, its place. silent: rows without one, which share that of a row
    before them.
    """

    index: Tensor
    vacant: Tensor
    inverse: Tensor
    silent: Tensor

    def take(self, rows: Tensor) -> Tensor:
        """Rows by place."""
        return rows.index_select(0, self.index)

    def give(self, places: Tensor) -> Tensor:
        """Places by row."""
        return places.index_select(0, self.inverse)


@dataclass(frozen=True)
class Group:
    """Texts that attention pads to the same length.

    texts: how many, times heads. queries, keys: where theirs begin among the places, and how many each text
    has. mask: [texts, 1, 1, keys] fp32, what is added to scores; None where nothing is padded.
    """

    texts: int
    queries: tuple[int, int]
    keys: tuple[int, int]
    mask: Tensor | None

    def asked(self, places: Tensor) -> Tensor:
        """The group's queries, [texts x heads, queries, head size]."""
        return self._of(places, *self.queries)

    def given(self, places: Tensor) -> Tensor:
        """The group's keys or values, [texts x heads, keys, head size]."""
        return self._of(places, *self.keys)

    def _of(self, places: Tensor, start: int, count: int) -> Tensor:
        return places[start : start + self.texts * count].view(self.texts, count, -1)


@dataclass(frozen=True)
class HeadLayout:
    """Where attention finds the heads of tokens, [tokens x heads, head size], group by group."""

    queries: Places
    keys: Places
    groups: tuple[Group, ...]


class Packed:
    """Where the tokens of a padded batch lie when they stand one after the other.

    mask: [rows, tokens], 0 at padding, on a processor; each row's tokens come first. owners: how many rows
    each trial has. starts: where each row's tokens begin, and at last their number. spare: the places that
    are left where an owner's tokens are filled up to a multiple, the last one's to that of all; its first
    token lies there once more, and nothing comes of it. asks_first: whether attention has to answer first
    tokens alone.
    """

    def __init__(self, mask: Tensor, owners: Sequence[int]) -> None:
        self.shape = mask.shape
        real = mask.numpy() != 0
        self.lengths = real.sum(axis=1)
        self.starts: list[int] = []
        places, spare, end, row = [], [], 0, 0
        for number, rows in enumerate(owners, start=1):
            first = row * real.shape[1]
            own = first + np.flatnonzero(real[row : row + rows])
            align = TOGETHER if 1 < number == len(owners) else ALIGN
            filled = -(-(end + len(own)) // align) * align - end
            places += [own, np.full(filled - len(own), first)]
            spare.append(np.arange(end + len(own), end + filled))
            self.starts += (end + np.cumsum([0, *self.lengths[row : row + rows - 1]])).tolist()
            end, row = end + filled, row + rows
        self.starts.append(end)
        self.places = torch.from_numpy(np.concatenate(places))
        self.spare = torch.from_numpy(np.concatenate(spare))
        self.asks_first = False
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

    def of_first(self) -> Packed:
        """The same for an attention of which nobody reads but the first tokens' outputs."""
        first = copy.copy(self)
        first.asks_first, first._heads = True, {}
        first.texts = replace(self.texts, first=True)
        return first

    def heads(self, count: int) -> HeadLayout:
        """For attention with so many heads."""
        if count not in self._heads:
            self._heads[count] = _head_layout(self, count)
        return self._heads[count]

    @functools.cached_property
    def texts(self) -> Texts:
        """For compiled attention."""
        starts, lengths = (torch.from_numpy(np.array(own)) for own in (self.starts[:-1], self.lengths))
        return Texts(starts, lengths, self.spare, self.asks_first)


def pack_encoder(model: PreTrainedModel) -> bool:
    """Let the model's encoder work without padding when it is called with `ARGUMENT`; says whether it can.

    Its attention must be the short one, for no other knows where texts begin.
    """
    row = LAYOUTS.get(model.config.model_type)
    own_code = not type(model).__module__.startswith("transformers.models.")
    if row is None or row.encoder is None or model.config.is_decoder or own_code:
        return False
    encoder = model.base_model.get_submodule(row.encoder)
    encoder.forward = functools.partial(_without_padding, encoder.forward)
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
    starts, first = np.array(packed.starts), packed.asks_first
    keys, asked = _Order(starts[-1], heads), _Order(starts[-1], heads)
    groups = []
    for longest, rows in _grouped(packed.lengths):
        there = np.arange(longest) < packed.lengths[rows][:, None]
        mask = None
        if not there.all():
            hidden = np.where(there, 0.0, np.finfo(np.float32).min).astype(np.float32)
            mask = torch.from_numpy(hidden)[:, None, None, :]
        own = keys.add(starts[rows], there)
        asking = asked.add(starts[rows], there[:, :1]) if first else own
        count = 1 if first else longest
        groups.append(Group(len(rows) * heads, (asking, count), (own, longest), mask))
    places = keys.places()
    return HeadLayout(asked.places() if first else places, places, tuple(groups))


class _Order:
    """Places that are filled group by group."""

    def __init__(self, tokens: int, heads: int) -> None:
        self.heads = heads
        self.count = 0
        self.index: list[IntArray] = []
        self.vacant: list[IntArray] = []
        self.inverse = np.full(tokens * heads, -1, dtype=np.int64)

    def add(self, starts: IntArray, there: NDArray[np.bool_]) -> int:
        """Texts by their first tokens, and which places after those they have; returns where theirs begin."""
        at = self.count
        tokens = starts[:, None] + np.where(there, np.arange(there.shape[1]), 0)
        own = (tokens[:, None, :] * self.heads + np.arange(self.heads)[:, None]).reshape(-1)
        real = np.repeat(there, self.heads, axis=0).reshape(-1)
        self.inverse[own[real]] = at + np.flatnonzero(real)
        self.vacant.append(at + np.flatnonzero(~real))
        self.index.append(own)
        self.count += len(own)
        return at

    def places(self) -> Places:
        """All of them."""
        silent = np.flatnonzero(self.inverse < 0)
        # Tokens without a place share that of the one before them, which is their owner's: what breaks one
        # trial must not reach another's rows, though nothing comes of these.
        tokens = self.inverse.reshape(-1, self.heads)
        before = np.maximum.accumulate(np.where(tokens[:, 0] < 0, 0, np.arange(len(tokens))))
        inverse = tokens[before].reshape(-1)
        arrays = (np.concatenate(self.index), np.concatenate(self.vacant), inverse, silent)
        return Places(*(torch.from_numpy(array) for array in arrays))


def _grouped(lengths: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Lengths after padding, each with its rows: a multiple of `TEXTS`, and those that are left."""
    padded = -(-lengths // STEP) * STEP
    for longest in np.unique(padded):
        rows = np.flatnonzero(padded == longest)
        whole = len(rows) // TEXTS * TEXTS
        for part in (rows[:whole], rows[whole:]):
            if len(part):
                yield int(longest), part
