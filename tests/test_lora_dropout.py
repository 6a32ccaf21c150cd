"""LoRA's dropout: one mask of a slot's for all modules that read the same input, in any company."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunestack.methods import lowrank
from tunestack.methods.ia3 import InputScale
from tunestack.methods.lowrank import LoraPart
from tunestack.methods.sites import Host, Span, keep_mask

SITES = ("q", "v", "o")
WIDTH, ROWS, TOKENS = 6, 3, 4


class Block(nn.Module):
    """Query and value read one tensor, the output another."""

    def __init__(self) -> None:
        super().__init__()
        for name in SITES:
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """[rows, tokens, width]."""
        y: Tensor = x + self.o(torch.tanh(self.q(x)) * self.v(x))
        return y


def part(seed: int, r: int, p: float) -> LoraPart:
    made = LoraPart(WIDTH, WIDTH, r, scaling=1.7, p=p)
    generator = torch.Generator().manual_seed(seed)
    for weight in (made.A, made.B):
        nn.init.normal_(weight, std=0.5, generator=generator)
    return made


def host_with(slots: dict[int, dict[str, LoraPart]]) -> Host:
    """A block, the same every time, with these parts."""
    torch.manual_seed(0)
    host = Host(Block())
    for slot, parts in slots.items():
        for name, its in parts.items():
            host.place(name, slot, its)
    return host


def spans(*slots: int) -> list[Span]:
    return [Span(slot, place * ROWS, (place + 1) * ROWS, noise=7 + slot) for place, slot in enumerate(slots)]


def by_formula(
    host: Host, x: Tensor, span: Span, parts: dict[str, LoraPart], first: dict[str, str]
) -> Tensor:
    """The block on one slot's rows; first: whose mask each module has."""

    def linear(name: str, given: Tensor) -> Tensor:
        module, own = host.modules[name], parts.get(name)
        assert isinstance(module, nn.Linear)
        y = nn.functional.linear(given, module.weight, module.bias)
        if own is None:
            return y
        kept = given * keep_mask(given, own.p, span, first[name]) / (1 - own.p) if own.p else given
        return y + own.scaling * kept @ own.A.t() @ own.B.t()

    return x + linear("o", torch.tanh(linear("q", x)) * linear("v", x))


def gradients(y: Tensor, x: Tensor, parts: dict[str, LoraPart]) -> list[Tensor]:
    weights = [weight for own in parts.values() for weight in (own.A, own.B)]
    upper = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    return list(torch.autograd.grad((y * upper).sum(), [x, *weights]))


def companies() -> list[dict[int, dict[str, LoraPart]]]:
    """A slot at query, value and output; one at value alone; one without dropout at query and value."""
    first = {name: part(seed, 2, 0.4) for seed, name in enumerate(SITES)}
    second = {"v": part(8, 3, 0.3)}
    third = {"q": part(9, 1, 0.0), "v": part(10, 1, 0.0)}
    return [{0: first}, {1: second}, {2: third}, {1: second, 0: first, 2: third}]


@pytest.mark.parametrize("company", range(4))
def test_outputs_and_gradients_are_those_of_the_formula(company: int) -> None:
    slots = companies()[company]
    host = host_with(slots)
    theirs = spans(*slots)
    host.rows.set(theirs)
    generator = torch.Generator().manual_seed(1)
    own = {slot: torch.randn(ROWS, TOKENS, WIDTH, generator=generator) for slot in range(3)}
    x = torch.cat([own[slot] for slot in slots]).requires_grad_()
    y = host.model(x)
    for span, (slot, parts) in zip(theirs, slots.items(), strict=True):
        alone = own[slot].clone().requires_grad_()
        expected = by_formula(
            host, alone, span, parts, {"q": "q", "v": "q" if "q" in parts else "v", "o": "o"}
        )
        torch.testing.assert_close(y[span.start : span.stop], expected)
        upper = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
        weights = [weight for its in parts.values() for weight in (its.A, its.B)]
        found = torch.autograd.grad(
            (y[span.start : span.stop] * upper).sum(), [x, *weights], retain_graph=True
        )
        wanted = torch.autograd.grad((expected * upper).sum(), [alone, *weights])
        torch.testing.assert_close(found[0][span.start : span.stop], wanted[0])
        for one, other in zip(found[1:], wanted[1:], strict=True):
            torch.testing.assert_close(one, other)


def test_a_slot_is_not_changed_by_its_company() -> None:
    alone, together = companies()[0], companies()[3]
    x = torch.randn(3 * ROWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    host = host_with(together)
    host.rows.set(spans(*together))
    many = host.model(x)[ROWS : 2 * ROWS]
    host = host_with(alone)
    host.rows.set(spans(0))
    torch.testing.assert_close(host.model(x[ROWS : 2 * ROWS]), many)


def test_what_was_dropped_is_made_once_and_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = lowrank.draw_mask

    def counted(keep: Tensor, p: float, span: Span, site: str) -> None:
        drawn.append(site)
        draw(keep, p, span, site)

    monkeypatch.setattr(lowrank, "draw_mask", counted)
    slots = companies()[0]
    host = host_with(slots)
    host.rows.set(spans(0))
    x = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
    y = host.model(x)
    assert drawn == ["q", "o"]
    host.rows.set([Span(0, 0, ROWS, noise=99)])
    assert not torch.equal(host.model(x), y)  # the same input in another step has other masks
    del x, y
    gc.collect()
    assert len(lowrank._seen) == 0


def test_an_input_that_was_changed_is_dropped_anew() -> None:
    slots = {0: {"v": part(1, 2, 0.4), "q": part(2, 2, 0.4)}}
    host = host_with(slots)
    x = torch.randn(ROWS, TOKENS, WIDTH)
    host.rows.set(spans(0))
    host.modules["q"](x)
    x.mul_(2)
    there = host.modules["v"](x)
    host.rows.set(spans(0))
    copied = x.clone()
    host.modules["q"](copied)
    torch.testing.assert_close(there, host.modules["v"](copied), rtol=0, atol=0)


@pytest.mark.parametrize("company", [0, 3])
def test_forwards_that_are_computed_again_give_the_same(company: int) -> None:
    slots = companies()[company]
    host = host_with(slots)
    host.rows.set(spans(*slots))
    everything = {f"{slot} {name}": its for slot, parts in slots.items() for name, its in parts.items()}
    x = torch.randn(len(slots) * ROWS, TOKENS, WIDTH, requires_grad=True)
    plain = gradients(host.model(host.model(x)), x, everything)
    again = checkpoint(host.model, checkpoint(host.model, x, use_reentrant=False), use_reentrant=False)
    for one, other in zip(gradients(again, x, everything), plain, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_company_that_changes_an_input_leaves_a_slot_its_mask(order: tuple[int, int]) -> None:
    slots = companies()[0]
    x = torch.randn(2 * ROWS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    host = host_with(slots)
    scale = InputScale(WIDTH)
    nn.init.constant_(scale.scale, 3.0)
    host.place("v", 1, scale)
    host.rows.set(spans(*order))
    own = slice(order.index(0) * ROWS, order.index(0) * ROWS + ROWS)
    many = host.model(x)[own]
    host = host_with(slots)
    host.rows.set(spans(0))
    torch.testing.assert_close(host.model(x[own]), many)


def test_a_mask_is_shared_however_the_input_lies_in_memory() -> None:
    host = host_with(companies()[0])
    x = torch.randn(TOKENS, ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).transpose(0, 1)
    assert not x.is_contiguous()
    found = []
    for given in (x, x.contiguous()):
        host.rows.set(spans(0))
        host.modules["q"](given)
        found.append(host.modules["v"](given))
    torch.testing.assert_close(*found)


class Reader(nn.Module):
    """Reads what all blocks read, as the decoder of an encoder-decoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, common: Tensor) -> Tensor:
        """[rows, tokens, width] both."""
        y: Tensor = x + torch.tanh(self.q(x)) * self.k(common) * self.v(common)
        return y


class Readers(nn.Module):
    """Two of them, whose activations are kept or computed again."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Reader(), Reader()])
        self.again = again

    def forward(self, common: Tensor) -> Tensor:
        """[rows, tokens, width]."""
        x = torch.zeros_like(common)
        for block in self.blocks:
            x = checkpoint(block, x, common, use_reentrant=False) if self.again else block(x, common)
        return x


@pytest.mark.parametrize("names", ["kv", "qv", "qkv"])
def test_blocks_are_computed_again_in_any_thread(names: str) -> None:
    """Where there is an accelerator, autograd has a thread of its own for it."""
    everything = {
        f"blocks.{block}.{name}": part(10 * block + place, 2, 0.4)
        for block in range(2)
        for place, name in enumerate(names)
    }
    x = torch.randn(ROWS, TOKENS, WIDTH, requires_grad=True)
    found = []
    for again, threads in ((False, 0), (True, 0), (True, 1)):
        torch.manual_seed(0)
        host = Host(Readers(again))
        for name, its in everything.items():
            host.place(name, 0, its)
        host.rows.set(spans(0))
        y = host.model(x)
        if threads:
            with ThreadPoolExecutor(1) as pool:
                found.append(pool.submit(gradients, y, x, everything).result())
        else:
            found.append(gradients(y, x, everything))
    for own in found[1:]:
        for one, other in zip(own, found[0], strict=True):
            torch.testing.assert_close(one, other)
