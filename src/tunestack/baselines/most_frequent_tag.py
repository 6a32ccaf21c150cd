"""Most frequent tag: every word gets the tag that it has most often in training, whatever its sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunestack.baselines.base import (
    Baseline,
    Fitted,
    SavedBaseline,
    read_json,
    read_tensors,
    unreadable,
    write_baseline,
)
from tunestack.config import Settings
from tunestack.data.tagged import padded_tags
from tunestack.data.words import words_of
from tunestack.files import write_json
from tunestack.tasks.base import Given, Split, Task

if TYPE_CHECKING:
    from tunestack.bases import Base

WORDS = "words.json"


class MostFrequentTagOptions(Settings):
    """There is nothing to choose."""


class FittedMostFrequentTag(Fitted):
    """tags: the tag id of every word, as written and in lower case. unknown: that of all other words."""

    def __init__(self, tags: Mapping[str, int], unknown: int) -> None:
        self.tags = tags
        self.unknown = unknown
        self.trainable_parameters = self.total_parameters = len(tags) + 1

    def answers(self, task: Task, split: Split) -> Given:
        """Tag ids [sentences, words of the longest], padded with -1."""
        sentences = [words_of(value) for value in split["tokens"]]
        return padded_tags({"tags": [[self._tag(word) for word in words] for words in sentences]})

    def _tag(self, word: str) -> int:
        own = self.tags.get(word)
        return self.tags.get(word.lower(), self.unknown) if own is None else own

    def save(self, folder: Path) -> None:
        """Write the words as JSON, and their tags in the same order."""
        saved = SavedBaseline(baseline=MostFrequentTag.name, target="tags")
        tags = np.asarray(list(self.tags.values()), dtype=np.int64)
        write_baseline(folder, saved, {"tags": tags, "unknown": np.asarray([self.unknown])})
        write_json(folder / WORDS, list(self.tags))


class MostFrequentTag(Baseline):
    """What is known of words without their sentences.

    A word that training has not as written is looked up in lower case; what it has in other cases only,
    counts there. A new word gets the most frequent tag of words that training has once: new words are like
    rare ones, while the most frequent tag of all may be that of punctuation. Of a word's equally frequent
    tags, the one that is more frequent in all counts, then the lower id.
    """

    name = "most-frequent-tag"
    targets = frozenset({"tags"})
    options_class = MostFrequentTagOptions

    def fit(self, task: Task, split: Split, options: Settings, base: Base | None) -> FittedMostFrequentTag:
        """Count."""
        words = [word for value in split["tokens"] for word in words_of(value)]
        tags = [tag for row in split["tags"] for tag in row]
        lowered = [word.lower() for word in words]
        occurrences = Counter(lowered)
        once = [tag for word, tag in zip(lowered, tags, strict=True) if occurrences[word] == 1]
        common = Counter(once or tags)
        unknown = max(common, key=lambda tag: (common[tag], -tag))
        return FittedMostFrequentTag(
            {**_most_frequent(lowered, tags), **_most_frequent(words, tags)}, unknown
        )

    def load(self, folder: Path, base: Base | None) -> FittedMostFrequentTag:
        """Read the words and their tags."""
        words, tensors = read_json(folder / WORDS), read_tensors(folder, "tags", "unknown")
        if not isinstance(words, list) or len(words) != len(tensors["tags"]):
            raise unreadable(folder / WORDS, f"no list of {len(tensors['tags'])} words")
        return FittedMostFrequentTag(dict(zip(words, tensors["tags"].tolist())), int(tensors["unknown"][0]))


def _most_frequent(words: Sequence[str], tags: Sequence[int]) -> dict[str, int]:
    """The most frequent tag of every word."""
    counts, of_all = Counter(zip(words, tags, strict=True)), Counter(tags)
    rising = sorted(counts, key=lambda pair: (counts[pair], of_all[pair[1]], -pair[1]))
    return dict(rising)  # of a word's tags the last one stays
