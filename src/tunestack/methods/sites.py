"""Where adapters meet the base: rows know their slot, sites apply each slot's weights to its own rows.

One batch holds the rows of all slots, slot after slot. The Hugging Face model runs unchanged on all of
them (blocks that `whole_blocks` computes give the same); a `Site` takes over the forward of one of its
modules and lets every slot's `Part` act there. Names of modules and parameters stay what they are.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef, WeakTensorKeyDictionary
from transformers import PreTrainedTokenizerBase

from tunestack.bases.quantised import dequantised_inside
from tunestack.kernels import rows
from tunestack.kernels.library import has_kernels


@dataclass(frozen=True)
class Span:
    """The rows [start, stop) of the present batch belong to one slot.

    noise: a number that, with a site's name, decides this slot's dropout masks in this step; None in
    evaluation, where nothing is dropped. It depends on the trial and its step alone, so a trial's masks
    are the same in any company, after a resume, and in a recomputed forward, as long as there are compiled
    kernels or there are none.
    lengths: how many tokens this slot's own longest row has, by how many the batch has, which may be more for
    the sake of company; of an encoder-decoder for what each half reads. What has another number of tokens is
    not padded for company.
    leading: how many places stand before each of its texts, for embeddings that the slot brings itself.
    """

    slot: int
    start: int
    stop: int
    noise: int | None = None
    lengths: Mapping[int, int] = field(default_factory=dict)
    leading: int = 0


@dataclass(frozen=True)
class _Batch:
    """Whose the rows of a batch are. packed: the same where every token is a row of its own."""

    spans: tuple[Span, ...] = ()
    packed: tuple[Span, ...] = ()
    tokens: int = 0


class Rows:
    """Which rows of the present batch belong to which slot, and how many tokens each has; set before every
    forward. Each thread has a batch of its own. One that never had any works for whoever had the last: on an
    accelerator, autograd's own thread computes forwards again.
    """

    def __init__(self) -> None:
        self._threads = threading.local()
        self._last = _Batch()

    @property
    def _batch(self) -> _Batch:
        batch: _Batch = getattr(self._threads, "batch", self._last)
        return batch

    def set(self, spans: Iterable[Span], tokens: int = 0, starts: Sequence[int] | None = None) -> None:
        """Say whose rows come next. starts: where each row's tokens begin when they stand one after the
        other, and at last their number; None where they never do.
        """
        own = tuple(spans)
        packed: tuple[Span, ...] = ()
        if starts is not None:
            packed = tuple(
                replace(span, start=starts[span.start], stop=starts[span.stop], lengths={}) for span in own
            )
        self._threads.batch = self._last = _Batch(own, packed, tokens)

    def of(self, x: Tensor) -> tuple[Span, ...]:
        """Whose the rows of a module's input are."""
        batch = self._batch
        return batch.packed if batch.packed and x.shape[0] == batch.packed[-1].stop else batch.spans

    def members(
        self, parts: Mapping[int, Sequence[Part]], site: str, spans: Sequence[Span] | None = None
    ) -> dict[type[Part], list[Member]]:
        """The parts that act on the present batch, by their class, in the order in which they act.

        spans: as `of` says; None for the rows of the padded batch.
        """
        kinds: dict[type[Part], list[Member]] = {}
        for span in self._batch.spans if spans is None else spans:
            for part in parts.get(span.slot, ()):
                kinds.setdefault(type(part), []).append(Member(part, span, site))
        # Not in the order of the slots: what a slot's own parts find must not depend on its company.
        return dict(sorted(kinds.items(), key=lambda item: item[0].last))

    def shared(self, x: Tensor, rows: int) -> bool:
        """Whether a module's input is one for all rows: neither an entry a row nor one a row and token."""
        return x.is_floating_point() and x.shape[0] not in (rows, rows * self._batch.tokens)


def dropout(x: Tensor, p: float, span: Span, site: str) -> Tensor:
    """Inverted dropout whose mask is a function of the slot's noise and the site: x m / (1 - p).

    x: the slot's own rows, any shape. Returns x itself where nothing is to be dropped.
    """
    if span.noise is None or p == 0.0:
        return x
    return x * keep_mask(x, p, span, site).mul_(1 / (1 - p))


def keep_mask(x: Tensor, p: float, span: Span, site: str) -> Tensor:
    """Ones where dropout keeps, zeros where it drops, in x's shape and dtype; p is met to 1 / 65,536.

    x: [rows, tokens, features] or [rows, features]. The mask is drawn for the slot's own longest row and
    kept open beyond it, for company that needs more padding must not change it.
    """
    keep = x.new_empty(x.shape)
    draw_mask(keep, p, span, site)
    return keep


def draw_mask(keep: Tensor, p: float, span: Span, site: str) -> None:
    """Write `keep_mask` into `keep`."""
    if keep.ndim == 3:
        own = span.lengths.get(keep.shape[1], keep.shape[1])
        keep[:, own:] = 1
        keep = keep[:, :own]
    count, seed = keep.numel(), stable_hash(span.noise, site)
    if has_kernels(keep.dtype, keep.device):
        rows.draw_keep(keep, p, seed)
        return
    generator = torch.Generator(keep.device).manual_seed(seed)
    # 16 random bits an element, four elements a draw: several times faster than bernoulli_ on a CPU.
    draws = torch.empty((count + 3) // 4, dtype=torch.int64, device=keep.device)
    draws.random_(-(2**63), None, generator=generator)
    torch.ge(draws.view(torch.int16)[:count].view(keep.shape), round(p * 65536) - 32768, out=keep)


def stable_hash(*values: object) -> int:
    """A 63-bit number from values, the same in every process."""
    digest = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Part(nn.Module):
    """One slot's weights at one site. A family overrides what it needs.

    replaces: the part's output takes the place of the module's own, which is not computed for its rows.
    low_rank: it adds s B A dropout(x) to its linear layer's output and does nothing else; A, B, `scaling` (s)
    and `p` are attributes, one such part a slot and site. Said by a class of itself: no subclass inherits it.
    last: it acts after parts that are not, where a slot has several at one site.
    """

    replaces: ClassVar[bool] = False
    low_rank: ClassVar[bool] = False
    last: ClassVar[bool] = False

    @classmethod
    def before(cls, x: Tensor, members: Sequence[Member]) -> Tensor:
        """Change the module's input [rows, ..., features]; only the members' rows."""
        return x

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Change the module's output `y`, given its input `x`; only the members' rows. May write into y."""
        return y

    @classmethod
    def arguments(cls, batch: dict[str, Any], members: Sequence[Member]) -> dict[str, Any]:
        """Change what the model is called with; for parts placed at the model itself (`""`)."""
        return batch

    def forget(self) -> None:
        """Let go of what a forward kept for later, for that forward did not come to its end."""

    def removed(self, host: Host) -> None:
        """Undo what placing it at the model itself did beside; called when its slot has left."""


@dataclass(frozen=True)
class Member:
    """A part that acts on the present batch, with its rows and its site's name."""

    part: Any
    span: Span
    site: str


class SharedInputError(RuntimeError):
    """A module's input is the same for all rows, so slots cannot share a forward (DeBERTa's positions)."""


class Site:
    """One module of the base, its forward taken over by the parts that slots placed there."""

    def __init__(self, name: str, module: nn.Module, rows: Rows) -> None:
        self.name = name
        self.module = module
        self.rows = rows
        self.parts: dict[int, list[Part]] = {}
        self.original: Callable[..., Any] = module.forward
        self._own = "forward" in vars(module)  # others take forwards over in the same way
        self.open()

    def open(self) -> None:
        """Take the module's forward over."""
        self.module.forward = self.forward

    def close(self) -> None:
        """Give the module its own forward back."""
        if self._own:
            self.module.forward = self.original
        else:
            del self.module.forward

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The module's forward with every slot's parts applied to its own rows."""
        spans = self.rows.of(x)
        kinds = self.rows.members(self.parts, self.name, spans)
        if not kinds:
            return self.original(x, *args, **kwargs)
        replaced = sum(len(members) for kind, members in kinds.items() if kind.replaces)
        rows = spans[-1].stop
        if self.rows.shared(x, rows):
            if len(spans) > 1:
                raise SharedInputError(f"{self.name} gets one input for the rows of all slots")
            rows = x.shape[0]
            kinds = {
                kind: [replace(m, span=replace(m.span, start=0, stop=rows, lengths={})) for m in members]
                for kind, members in kinds.items()
            }
        shape, called = x.shape, x
        x = _by_rows(x, rows)
        for kind, members in kinds.items():
            x = kind.before(x, members)
        if x is not called:
            _given[x] = TensorWeakRef(called)
        # Where every slot brings a module of its own, the base's is not needed.
        whole = replaced and replaced == len(spans)
        y = x if whole else _by_rows(self.original(_as_before(x, shape), *args, **kwargs), rows)
        for kind, members in kinds.items():
            y = kind.after(x, y, members)
        return _as_before(y, shape)


_given: MutableMapping[Tensor, TensorWeakRef] = WeakTensorKeyDictionary()


def given(x: Tensor) -> Tensor:
    """What a module was called with, where `x` is what parts have it read: company that changes its own rows
    of an input does not make it another one for the others.
    """
    before = _given[x]() if x in _given else None
    return x if before is None else before


def _by_rows(x: Tensor, rows: int) -> Tensor:
    """x with one entry a row of the batch, where a model has folded the tokens in, or shares one for all."""
    if x.shape[0] == 1 < rows:
        return x.expand(rows, *x.shape[1:])
    return x if x.shape[0] == rows else x.view(rows, -1, *x.shape[1:])


def _as_before(y: Tensor, shape: torch.Size) -> Tensor:
    """Undo `_by_rows` where it took folded tokens apart."""
    return y.flatten(0, 1) if shape[0] > y.shape[0] else y


class Host:
    """A frozen model that adapters of many slots share.

    model: the Hugging Face model, evaluation mode, no gradients of its own. head: names of its head's
    modules. fresh: names of modules without pretrained weights. tokenizer: the base's own, where weights are
    (and not only shapes). rows: set before a forward.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Iterable[str] = (),
        fresh: Iterable[str] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model = model.requires_grad_(False)
        self.head = tuple(head)
        self.fresh = frozenset(fresh)
        self.tokenizer = tokenizer
        self.rows = Rows()
        self.sites: dict[str, Site] = {}
        self.entrance: dict[int, list[Part]] = {}
        self.modules = dict(model.named_modules())

    def place(self, name: str, slot: int, part: Part) -> None:
        """Let `part` act for `slot` at the module `name`; at `""`, on what the model is called with."""
        if not name:
            self.entrance.setdefault(slot, []).append(part)
            return
        if name not in self.sites:
            self.sites[name] = Site(name, self.modules[name], self.rows)
        self.sites[name].parts.setdefault(slot, []).append(part)

    def arguments(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the model is called with: the padded batch of the present rows, as parts change it."""
        for kind, members in self.rows.members(self.entrance, "").items():
            batch = kind.arguments(batch, members)
        return batch

    def pristine(self, name: str) -> nn.Module:
        """A copy of the base's module of that name, without what slots placed in it, and not quantised."""
        inside = [site for place, site in self.sites.items() if f"{place}.".startswith(f"{name}.")]
        for site in inside:
            site.close()
        try:
            # Whatever stands in for a forward is about the base's own frozen weights.
            inner = [module for module in self.modules[name].modules() if "forward" in vars(module)]
            stand_ins = [(module, vars(module).pop("forward")) for module in inner]
            copied = dequantised_inside(copy.deepcopy(self.modules[name]))
            for module, forward in stand_ins:
                module.forward = forward
            return copied
        finally:
            for site in inside:
                site.open()

    def forget(self) -> None:
        """Let go of what an interrupted forward left behind."""
        for site in self.sites.values():
            for part in itertools.chain.from_iterable(site.parts.values()):
                part.forget()

    def remove(self, slot: int) -> None:
        """Take a slot's parts out everywhere; the base is then what it was before for that slot."""
        for part in self.entrance.pop(slot, []):
            part.removed(self)
        for name, site in list(self.sites.items()):
            site.parts.pop(slot, None)
            if not site.parts:
                site.close()
                del self.sites[name]


class Copy(Part):
    """A slot's own copy of a whole module, in fp32: heads, and whatever `modules_to_save` names.

    dtype: of the output, which the base goes on with; None leaves it in fp32, for heads.
    """

    replaces = True

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Each slot's rows through its own copy."""
        pieces = []
        for member, part in ((member, member.part) for member in members):
            rows = x[member.span.start : member.span.stop]
            out = part.module(rows.float() if rows.is_floating_point() else rows)
            pieces.append(out.to(part.dtype or out.dtype))
        return replace_rows(y, pieces, members)


def replace_rows(y: Tensor, pieces: Sequence[Tensor], members: Sequence[Member]) -> Tensor:
    """`y` with each member's rows exchanged for its piece."""
    if len(pieces) == 1 and pieces[0].shape[0] == y.shape[0]:
        return pieces[0]
    parts, done = [], 0
    for piece, member in zip(pieces, members, strict=True):
        if member.span.start > done:
            parts.append(y[done : member.span.start])
        parts.append(piece)
        done = member.span.stop
    if done < y.shape[0]:
        parts.append(y[done:])
    return torch.cat(parts)


class Dropout(Part):
    """The base's own dropout, active for the slots that ask for it, with masks of their own.

    Not that inside attention: whether it is a module of its own is up to the architecture.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Drop in the members' rows, leave the others."""
        if y.ndim > 3:  # attention's probabilities, [rows, heads, tokens, tokens]
            return y
        pieces = [
            dropout(y[member.span.start : member.span.stop], member.part.p, member.span, member.site)
            for member in members
        ]
        return replace_rows(y, pieces, members)
