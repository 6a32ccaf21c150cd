"""Chunks of tagged words: entities in IOB, IOBES or BILOU tags, counted as conlleval and seqeval do.

A chunk ends where the next word begins another one, is outside, or has another type; it begins where the word
before ended one, was outside, or had another type. So tags that break their scheme (an I- after an O) still
mean chunks. Where no tag has a prefix (parts of speech), every word with a tag other than O is a chunk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunestack.arrays import IntArray

OUTSIDE = "O"
UNTYPED = "_"
"""The type of chunks that are tagged B and I alone."""
_O, _B, _I, _E, _S = range(5)
_PARTS = {"B": _B, "I": _I, "E": _E, "L": _E, "S": _S, "U": _S}
_TAG = re.compile(r"([BIESLU])(?:-(.+))?")


@dataclass(frozen=True)
class Chunks:
    """Chunks of several sentences, in order; each an array [chunks].

    sentence: which one it is in. first, stop: its words, from `first` to before `stop`. type: index of
    `types`.
    """

    sentence: IntArray
    first: IntArray
    stop: IntArray
    type: IntArray


class Scheme:
    """How tags mean chunks. types: of the chunks, sorted. prefixed: whether tags have B-, I- and the like."""

    def __init__(self, tags: Sequence[str]) -> None:
        """tags: in id order. Those of `mixed_tags` count as single words."""
        self.prefixed = is_prefixed(tags)
        read = [_read(tag) if self.prefixed else (_S, tag) for tag in tags]
        parsed = [(_O, "") if tag == OUTSIDE else one for tag, one in zip(tags, read, strict=True)]
        self.types = tuple(sorted({kind for part, kind in parsed if part != _O}))
        places = {kind: place for place, kind in enumerate(self.types)}
        # The last entry is what stands around a sentence, and for the padding -1.
        self._parts = np.asarray([*(part for part, _ in parsed), _O])
        self._kinds = np.asarray([*(places.get(kind, -1) for _, kind in parsed), -1])

    def chunks(self, ids: IntArray) -> Chunks:
        """The chunks of tagged words [sentences, words], padded with -1 on the right."""
        edge = ((0, 0), (1, 1))
        around = np.pad(ids, edge, constant_values=-1)
        part, kind = self._parts[around], self._kinds[around]
        before, now = part[:, :-1], part[:, 1:]
        differ = kind[:, :-1] != kind[:, 1:]
        over = _among(before, _E, _S) | (_among(before, _B, _I) & _among(now, _B, _S, _O))
        new = _among(now, _B, _S) | (_among(before, _E, _S, _O) & _among(now, _E, _I))
        sentence, first = np.nonzero(new | ((now != _O) & differ))
        _, stop = np.nonzero(over | ((before != _O) & differ))
        return Chunks(sentence, first, stop, kind[sentence, first + 1])

    def count(self, gold: IntArray, given: IntArray) -> tuple[IntArray, IntArray, IntArray]:
        """Hits, given chunks and gold chunks of every sentence by type, each [sentences, types]."""
        n, words = gold.shape
        theirs, ours = self.chunks(gold), self.chunks(given)
        size = words + 1

        def keys(found: Chunks) -> IntArray:
            place = (found.sentence * size + found.first) * size + found.stop
            return np.asarray(place * len(self.types) + found.type)

        def counted(found: Chunks, which: NDArray[np.bool_] | slice) -> IntArray:
            cells = (found.sentence * len(self.types) + found.type)[which]
            return np.bincount(cells, minlength=n * len(self.types)).reshape(n, len(self.types))

        hit = np.isin(keys(ours), keys(theirs))
        return counted(ours, hit), counted(ours, slice(None)), counted(theirs, slice(None))


def is_prefixed(tags: Sequence[str]) -> bool:
    """Whether any tag says which part of a chunk its word is."""
    named = [tag for tag in tags if tag != OUTSIDE]
    whole = bool(named) and all(_TAG.fullmatch(tag) for tag in named)
    return whole or any(tag[1:2] == "-" and _TAG.fullmatch(tag) for tag in named)


def mixed_tags(tags: Sequence[str]) -> list[str]:
    """Tags without a prefix where others have one: it is not known what they mean."""
    if not is_prefixed(tags):
        return []
    return [tag for tag in tags if tag != OUTSIDE and not _TAG.fullmatch(tag)]


def _read(tag: str) -> tuple[int, str]:
    found = _TAG.fullmatch(tag)
    return (_PARTS[found[1]], found[2] or UNTYPED) if found else (_S, tag)


def _among(parts: IntArray, *wanted: int) -> NDArray[np.bool_]:
    return np.isin(parts, wanted)
