"""Generating text: greedy or beam search with a cache, for the rows of several trials at once.

The unchanged model runs a token at a time, each slot's adapters on its own rows. Prefixes and prompts take
part in the first forward; after that their keys and values lie in the cache with everybody else's.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from tunestack.methods.attention_sites import takes_positions
from tunestack.methods.sites import Host, Span
from tunestack.tasks.base import Decoding

_NEVER = -1e9
"""A log-probability that no text has."""


@torch.inference_mode()
def generate(
    host: Host, batch: dict[str, Tensor], spans: Sequence[Span], ends: Sequence[int], decoding: Decoding
) -> list[list[int]]:
    """What the model writes after every row, as token ids, without the one that ends it.

    batch: what the model is called with, [rows, tokens], padded on the left (for an encoder-decoder on the
    right, with its `decoder_input_ids`). spans: whose the rows are. ends: the tokens that end a text.
    """
    forwards = _Forwards(host, spans)
    logits = forwards.first(batch)
    if decoding.num_beams > 1:  # what is known of a text is known of all its beams
        beams = torch.arange(len(logits), device=logits.device).repeat_interleave(decoding.num_beams)
        forwards.keep(beams)
        logits = logits[beams]
    stop = torch.tensor(sorted(ends), device=logits.device)
    search: _Search = _Beams(len(logits), stop, decoding) if decoding.num_beams > 1 else _Greedy(stop)
    for step in range(decoding.max_new_tokens):
        tokens, sources = search.choose(logits, last=step + 1 == decoding.max_new_tokens)
        if tokens is None:
            break
        if sources is not None:
            forwards.keep(sources)
        logits = forwards.next(tokens)
    return search.texts()


class _Forwards:
    """The model's next logits, row by row, with a cache."""

    def __init__(self, host: Host, spans: Sequence[Span]) -> None:
        self.host = host
        self.spans = [replace(span, leading=0) for span in spans]
        self._starting = spans
        counts = [span.stop - span.start for span in spans]
        self._owners = torch.repeat_interleave(torch.arange(len(spans)), torch.tensor(counts))
        self._model: Any = host.model
        self._takes = inspect.signature(type(host.model).forward).parameters
        self._given: dict[str, Tensor] = {}
        self._cache: Any = None

    def first(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits [rows, vocabulary] after the texts."""
        tokens = batch["input_ids"].shape[1]
        self.host.rows.set(self._starting, tokens)
        if takes_positions(self._model.base_model):
            batch = {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)}
        given = self.host.arguments(batch)
        before = given.pop("past_key_values", None)
        if self._model.config.is_encoder_decoder:
            prefixes = None if before is None else before.self_attention_cache
            self._cache = EncoderDecoderCache(_begun(prefixes), DynamicCache())
            output = self._call(**given)
            self._encoded = output.encoder_last_hidden_state
        else:
            self._cache = _begun(before)
            output = self._call(**given)
        names = ("attention_mask", "decoder_attention_mask", "position_ids")
        self._given = {name: given[name] for name in names if name in given}
        return self._last(output)

    def next(self, tokens: Tensor) -> Tensor:
        """Logits [rows, vocabulary] after one more token a row, [rows]."""
        # Adapters of a slot whose texts have all ended have nothing to act on.
        self.host.rows.set([span for span in self.spans if span.start < span.stop], 1)
        given = self._given
        if self._model.config.is_encoder_decoder:
            encoded = BaseModelOutput(last_hidden_state=self._encoded)
            _longer(given, "decoder_attention_mask")
            return self._last(self._call(**given, encoder_outputs=encoded, decoder_input_ids=tokens[:, None]))
        _longer(given, "attention_mask")
        if "position_ids" in given:
            given["position_ids"] = given["position_ids"][:, -1:] + 1
        return self._last(self._call(**given, input_ids=tokens[:, None]))

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, [rows that go on]; each slot's in their place."""
        self._given = {name: tensor[rows] for name, tensor in self._given.items()}
        if self._model.config.is_encoder_decoder:
            self._encoded = self._encoded[rows]
        self._cache.reorder_cache(rows)
        self._owners = self._owners[rows.cpu()]
        counts = torch.bincount(self._owners, minlength=len(self.spans))
        ends = counts.cumsum(0).tolist()
        self.spans = [
            replace(span, start=stop - count, stop=stop)
            for span, stop, count in zip(self.spans, ends, counts.tolist(), strict=True)
        ]

    def _call(self, **given: Any) -> Any:
        last = {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {}
        return self._model(**given, **last, past_key_values=self._cache, use_cache=True)

    @staticmethod
    def _last(output: Any) -> Tensor:
        logits: Tensor = output.logits[:, -1].float()
        return logits


def _begun(prefixes: Cache | None) -> Cache:
    """A cache that begins with the prefixes, where there are some."""
    if prefixes is None:
        return DynamicCache()
    layers: list[Any] = prefixes.layers
    return Cache(layers=[_Kept(layer) for layer in layers])


def _longer(given: dict[str, Tensor], mask: str) -> None:
    """One open place more in the mask of that name, where there is one."""
    if mask in given:
        given[mask] = torch.cat([given[mask], given[mask].new_ones(len(given[mask]), 1)], dim=1)


class _Kept(DynamicLayer):
    """A layer of a cache that begins with what a prefix brings, and keeps it and all that comes after."""

    def __init__(self, before: CacheLayerMixin) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.before = before

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The keys and values that the tokens attend to."""
        if not self.is_initialized:
            key_states, value_states = self.before.update(key_states, value_states)
        return super().update(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns the mask has, and where they begin."""
        if not self.is_initialized:
            return self.before.get_mask_sizes(query_length)
        return super().get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        """Places before the tokens."""
        return super().get_seq_length() if self.is_initialized else self.before.get_seq_length()


class _Search(ABC):
    """Which tokens come next."""

    @abstractmethod
    def choose(self, logits: Tensor, last: bool) -> tuple[Tensor | None, Tensor | None]:
        """The next token of every row, and which of the present rows go on, in which order; None for all.

        logits: [rows, vocabulary], fp32. last: no more tokens come. Without tokens the search has ended.
        """

    @abstractmethod
    def texts(self) -> list[list[int]]:
        """What was found for every text."""


class _Greedy(_Search):
    """The most probable token, each time. Rows that have ended are left out once they are a quarter."""

    def __init__(self, ends: Tensor) -> None:
        self.ends = ends
        self._texts: list[list[int]] = []
        self._rows: list[int] = []

    def choose(self, logits: Tensor, last: bool) -> tuple[Tensor | None, Tensor | None]:
        """The most probable tokens of the rows that have not ended."""
        if not self._texts:
            self._texts = [[] for _ in logits]
            self._rows = list(range(len(logits)))
        tokens = logits.argmax(dim=-1)
        ended = torch.isin(tokens, self.ends).tolist()
        for row, token, end in zip(self._rows, tokens.tolist(), ended, strict=True):
            if row >= 0 and not end:
                self._texts[row].append(token)
        self._rows = [-1 if end else row for row, end in zip(self._rows, ended, strict=True)]
        going = [place for place, row in enumerate(self._rows) if row >= 0]
        if last or not going:
            return None, None
        if 4 * len(going) > 3 * len(self._rows):
            return tokens, None
        self._rows = [self._rows[place] for place in going]
        sources = torch.tensor(going, device=tokens.device)
        return tokens[sources], sources

    def texts(self) -> list[list[int]]:
        """What was found for every row."""
        return self._texts


class _Beams(_Search):
    """Beam search as transformers defines it (`early_stopping=False`).

    The n most probable beginnings of each text go on; texts that end among the n best are kept, the n best of
    them by log-probability / tokens ** length_penalty. A text is done when no beginning could, as long as it
    is, still be better than the worst of n kept ones.
    """

    def __init__(self, rows: int, ends: Tensor, decoding: Decoding) -> None:
        self.beams, self.ends, self.penalty = decoding.num_beams, ends, decoding.length_penalty
        count, device = rows // self.beams, ends.device
        self.going = torch.full((count, self.beams), _NEVER, device=device)
        self.going[:, 0] = 0  # all beams of a text begin alike
        self.kept = torch.full((count, self.beams), _NEVER, device=device)
        self.open = torch.ones(count, dtype=torch.bool, device=device)
        empty = torch.empty(count, self.beams, 0, dtype=torch.long, device=device)
        self._beginnings, self._found = empty, empty
        self._lengths = torch.zeros(count, self.beams, dtype=torch.long, device=device)

    def choose(self, logits: Tensor, last: bool) -> tuple[Tensor | None, Tensor | None]:
        """The next token of every beam, and the beam that each goes on from."""
        count, beams = self.going.shape
        scores = nn.functional.log_softmax(logits, dim=-1).view(count, beams, -1) + self.going[..., None]
        vocabulary = scores.shape[-1]
        best, places = scores.flatten(1).topk(max(2, 1 + len(self.ends)) * beams)
        sources, tokens = places // vocabulary, places % vocabulary
        longer = torch.cat([_pick(self._beginnings, sources), tokens[..., None]], dim=2)
        ended = torch.isin(tokens, self.ends) | last
        self._keep(best, longer, ended, tokens)
        going = (best + ended * _NEVER).topk(beams)
        self.going = going.values
        self._beginnings = _pick(longer, going.indices)
        full = (self.kept > _NEVER / 2).all(dim=1)
        worst = torch.where(full, self.kept.min(dim=1).values, _NEVER)
        self.open &= self.going[:, 0] / self._beginnings.shape[2] ** self.penalty > worst
        if last or not bool(self.open.any()):
            return None, None
        offsets = torch.arange(count, device=sources.device)[:, None] * beams
        return _pick(tokens, going.indices).flatten(), (_pick(sources, going.indices) + offsets).flatten()

    def _keep(self, best: Tensor, longer: Tensor, ended: Tensor, tokens: Tensor) -> None:
        """Take in texts that have just ended, of those that are still looked for."""
        new = best / longer.shape[2] ** self.penalty
        among = torch.arange(best.shape[1], device=best.device) < self.going.shape[1]
        new = new.masked_fill(~(ended & among & self.open[:, None]), _NEVER)
        merged = torch.cat([self.kept, new], dim=1)
        self.kept, places = merged.topk(self.going.shape[1])
        before = nn.functional.pad(self._found, (0, 1))
        self._found = _pick(torch.cat([before, longer], dim=1), places)
        length = longer.shape[2] - torch.isin(tokens, self.ends).long()
        self._lengths = _pick(torch.cat([self._lengths, length], dim=1), places)

    def texts(self) -> list[list[int]]:
        """The best text found, of each."""
        pairs = zip(self._found[:, 0].tolist(), self._lengths[:, 0].tolist(), strict=True)
        return [text[:length] for text, length in pairs]


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """values [texts, several, ...] at places [texts, fewer]."""
    while places.ndim < values.ndim:
        places = places[..., None]
    return torch.take_along_dim(values, places, dim=1)
