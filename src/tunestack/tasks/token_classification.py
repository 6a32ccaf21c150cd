"""Token classification: a tag for every word, judged by the entities that the tags mean."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForTokenClassification, PretrainedConfig

from tunestack.arrays import IntArray
from tunestack.config import DataConfig
from tunestack.data.chunks import Scheme
from tunestack.data.encode import Encoded
from tunestack.data.load import TextData
from tunestack.data.tagged import load_tagged, padded_tags
from tunestack.data.words import EncodedWords, encode_words, words_of
from tunestack.errors import Problem, UserError
from tunestack.tasks.answers import Answers, Table
from tunestack.tasks.base import Evaluation, Forwards, Given, Split, Task, columns_of, literal
from tunestack.tasks.chunk_metrics import chunk_metrics, statistics_of
from tunestack.tasks.metrics import Metric

if TYPE_CHECKING:
    from tunestack.bases import Base

_NOTHING = -100
"""The target of tokens that carry no tag: cross-entropy leaves them out."""


class TokenClassification(Task):
    """Which of `label_names` each word of a sentence is tagged with; cross-entropy of words' first tokens.

    Sentences that are longer than max_length are read in several rows, so that every word is answered. An
    answer is the tag id of each word, [sentences, words of the longest], padded with -1.
    """

    name = "token-classification"
    summary = "a tag for every word: entities, parts of speech"
    title = "classify tokens"
    pipeline_tag = "token-classification"
    auto_class = AutoModelForTokenClassification
    peft_type = TaskType.TOKEN_CLS
    inputs = ("tokens",)
    optional = ()
    default_metric = "f1"
    target = "tags"
    per_token = True
    reads_words = True
    long_texts = "read in rows of"
    counted = "words"
    example: ClassVar[Mapping[str, str]] = {"tokens": "Ada wrote to Charles"}

    @cached_property
    def scheme(self) -> Scheme:
        """What the tags mean."""
        return Scheme(self.label_names)

    @classmethod
    def load(cls, config: DataConfig, options: Any) -> TextData:
        """Sentences of tagged words. Raises UserError with all problems."""
        return load_tagged(config)

    def check_base(self, base: Base, splits: Mapping[str, Split], max_length: int, places: int) -> None:
        """Refuse a tokenizer that does not tell where its tokens come from."""
        if not base.tokenizer.is_fast:
            raise UserError(
                Problem(
                    base.name,
                    "a fast tokenizer, which tells the word that each token belongs to",
                    f"{type(base.tokenizer).__name__}, written in Python",
                    "Save a tokenizer.json beside the model, or choose another base.",
                )
            )

    # Learning

    def encode(self, base: Base, split: Split, max_length: int) -> EncodedWords:
        """Tokenise a split with a column `tokens`, lists of words or text, perhaps `tags`, lists of ids."""
        return encode_words(
            base.tokenizer,
            [words_of(value) for value in split["tokens"]],
            list(split["tags"]) if "tags" in columns_of(split) else None,
            min(max_length, base.longest_input),
        )

    def targets(self, encoded: Encoded, indices: IntArray) -> Tensor:
        """[rows, tokens] the tag at the first token of every word, elsewhere what is left out."""
        assert isinstance(encoded, EncodedWords)
        targets = torch.full((len(indices), int(encoded.lengths[indices].max())), _NOTHING)
        for row, index in zip(targets, indices, strict=True):
            row[torch.from_numpy(encoded.firsts[index])] = torch.from_numpy(encoded.labels[index])
        return targets

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Cross-entropy in fp32, the mean over words. logits: [rows, tokens, tags], perhaps more tokens."""
        own = logits[:, : targets.shape[1]].float()
        return torch.nn.functional.cross_entropy(own.flatten(0, 1), targets.flatten(), ignore_index=_NOTHING)

    # Answering

    def collect(self, logits: Tensor, encoded: Encoded, indices: IntArray) -> Tensor:
        """[rows, words, 2] of every word the most probable tag and the loss; 0 where there is no word.

        Without tags to compare with, the second number is finite where the logits are.
        """
        assert isinstance(encoded, EncodedWords)
        kept = torch.zeros(len(indices), encoded.widest, 2)
        for row, own, index in zip(kept, logits, indices, strict=True):
            places = torch.from_numpy(encoded.firsts[index]).to(own.device)
            scores = torch.log_softmax(own[places].float(), dim=-1).cpu()
            tags = scores.argmax(dim=-1)
            target = tags if encoded.labels is None else torch.from_numpy(encoded.labels[index])
            row[: len(places), 0] = tags
            row[: len(places), 1] = -scores.gather(1, target[:, None])[:, 0]
        return kept

    def answer(self, encoded: Encoded, outputs: Tensor) -> IntArray:
        """Tag ids [sentences, words of the longest], padded with -1."""
        assert isinstance(encoded, EncodedWords)
        given = np.full((len(encoded.words), int(encoded.words.max())), -1, dtype=np.int64)
        for row, own in enumerate(outputs[..., 0].numpy()):
            begin, words = int(encoded.begin[row]), len(encoded.firsts[row])
            given[encoded.sentence[row], begin : begin + words] = own[:words]
        return given

    def evaluate(
        self, stack: Forwards, slots: Sequence[Any], encoded: Encoded, weights: Sequence[Tensor | None]
    ) -> list[Evaluation]:
        """What every slot answers, and the mean loss of the words where there are tags."""
        assert isinstance(encoded, EncodedWords)
        found = []
        for kept in stack.outputs(slots, encoded):
            losses = kept[..., 1].double()
            loss = float(losses.sum() / encoded.words.sum()) if encoded.labels is not None else None
            finite = bool(torch.isfinite(losses).all())
            found.append(Evaluation(self.answer(encoded, kept), loss, finite))
        return found

    # Judging

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Of entities, of each type of them, and of words."""
        return chunk_metrics(self.scheme.types)

    def scores(self, split: Split, given: Given) -> dict[str, float]:
        """All metrics, as seqeval has them."""
        sums = statistics_of(self.scheme, padded_tags(split), given).sum(axis=0)
        return {
            name: float(metric.from_counts(sums))
            for name, metric in self.metrics.items()
            if metric.from_counts
        }

    def answers(self, split: Split, given: NDArray[Any]) -> Answers:
        """Counts of entities and words, by sentence."""
        gold = padded_tags(split)
        table = np.stack([statistics_of(self.scheme, gold, own) for own in given]).astype(np.float32)
        there = (self.scheme.count(gold, gold)[2] > 0).sum(axis=0)
        return Table(
            table,
            self.metrics,
            whole=np.asarray((given == gold).all(axis=2)),
            scarcest=max(1, int(there[there > 0].min(initial=len(gold)))),
        )

    def confusion(self, split: Split, given: Given) -> list[list[int]] | None:
        """Words by their tag and the predicted one."""
        gold, tags = padded_tags(split), len(self.label_names)
        cells = (gold * tags + given)[gold >= 0]
        matrix: list[list[int]] = np.bincount(cells, minlength=tags**2).reshape(tags, tags).tolist()
        return matrix

    def label_counts(self, split: Split) -> list[int]:
        """Words with each tag."""
        tags = padded_tags(split)
        return [int(count) for count in np.bincount(tags[tags >= 0], minlength=len(self.label_names))]

    # Telling

    def truth(self, split: Split) -> dict[str, list[Any]]:
        """The tags' names, with spaces between them."""
        return {"tags": self._joined(list(split["tags"]))}

    def told(self, split: Split, given: Given) -> dict[str, Any]:
        """The tags of a sentence's words, with spaces between them; and the entities, as JSON."""
        sentences = [words_of(value) for value in split["tokens"]]
        rows = [row[: len(words)] for row, words in zip(given, sentences, strict=True)]
        found = [[] for _ in sentences]  # type: list[list[dict[str, Any]]]
        chunks = self.scheme.chunks(given)
        for sentence, first, stop, kind in zip(chunks.sentence, chunks.first, chunks.stop, chunks.type):
            text = " ".join(sentences[sentence][first:stop])
            entity = {"type": self.scheme.types[kind], "first": int(first), "stop": int(stop), "text": text}
            found[sentence].append(entity)
        entities = [json.dumps(own, ensure_ascii=False) for own in found]
        return {"prediction": self._joined(rows), **({"entities": entities} if self.scheme.prefixed else {})}

    def read(self, frame: pd.DataFrame) -> IntArray:
        """The tag ids."""
        ids = {name: tag for tag, name in enumerate(self.label_names)}
        return padded_tags({"tags": [[ids[tag] for tag in tags.split()] for tags in frame["prediction"]]})

    def shown(self, split: Split, index: int) -> str:
        """The words, with spaces between them."""
        return " ".join(words_of(split["tokens"][index]))

    def snippet(self, columns: Sequence[str], max_length: int, config: PretrainedConfig) -> str:
        """The tags of a sentence's words, which are found as `encode_words` finds them."""
        return (
            f"longest = min({max_length}, tokenizer.model_max_length)\n"
            f"text = {literal(self.example['tokens'])}  # words with spaces between them\n"
            "batch = tokenizer(\n"
            "    text, truncation=True, max_length=longest, return_offsets_mapping=True, "
            'return_tensors="pt"\n'
            ")  # words that this cuts off have no tag here; tunestack predict reads them in further rows\n"
            'offsets = batch.pop("offset_mapping")[0].tolist()\n'
            "begins = [-1 if own is None else one[0] for own, one in zip(batch.sequence_ids(), offsets)]\n"
            f"tags = {literal(self.label_names)}\n"
            "found = model(**batch).logits[0].argmax(dim=-1).tolist()\n"
            "answer, end = [], 0\n"
            "for word in text.split():\n"
            "    own = [tags[tag] for tag, begin in zip(found, begins) if begin >= end]\n"
            "    answer += own[:1]  # the tag of the word's first token, which may hold the space before it\n"
            "    end = text.index(word, end) + len(word)\n"
            "print(*answer)"
        )

    @property
    def always(self) -> str:
        """A tag a word."""
        return (
            f"always gives each word one of its {len(self.label_names)} tags, also in texts of another kind"
        )

    def _joined(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(self.label_names[tag] for tag in row) for row in rows]
