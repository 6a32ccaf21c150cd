"""Low-rank updates are the formula, compiled and as batched products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tunestack.kernels import lowrank
from tunestack.methods.lowrank import LoraPart
from tunestack.methods.sites import Member, Span
from tunestack.methods.updates import Compiled, Term, _Batched, updates

SPANS = [(0, 2, 3), (2, 4, 3), (4, 5, 1), (7, 9, 5)]
"""Slots by their first row, the one behind their last, and their rank."""
ROWS = 10
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "by column": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "a slice": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def members_of(wide: int, out: int) -> list[Member]:
    members = []
    for slot, (start, stop, r) in enumerate(SPANS):
        part = LoraPart(wide, out, r, 0.5 + slot, 0.0)
        part.A.data, part.B.data = random(r, wide, seed=slot), random(out, r, seed=slot + 10)
        members.append(Member(part, Span(slot, start, stop, noise=1), "site"))
    return members


@pytest.fixture(params=[True, False], ids=["compiled", "batched"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    if not request.param:
        monkeypatch.setattr(lowrank, "covers", lambda *tensors: False)
    elif not lowrank.covers(torch.zeros(1, 16), torch.zeros(1, 16)):
        pytest.skip("there is no C compiler here")
    return Compiled if request.param else _Batched


@pytest.mark.parametrize("inner", [(), (5,), (3, 5)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_they_are_the_formula(kind: type, inner: tuple[int, ...], layout: Callable[[Tensor], Tensor]) -> None:
    """For inputs [rows, features], [rows, tokens, features] and more, however they lie in memory."""
    members = members_of(16, 32)
    x = layout(random(ROWS, *inner, 16, seed=1)).requires_grad_()
    y, grad = layout(random(ROWS, *inner, 32, seed=2)), layout(random(ROWS, *inner, 32, seed=3))
    assert type(updates(members, y, x)) is kind
    found = LoraPart.after(x, y.clone(), members)
    weights = [weight for member in members for weight in (member.part.A, member.part.B)]
    ours = torch.autograd.grad(found, [x, *weights], grad)
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, *weights)]
    expected = y.double()
    for (start, stop, _), member, a, b in zip(SPANS, members, exact[1::2], exact[2::2], strict=True):
        added = torch.zeros_like(expected)
        added[start:stop] = member.part.scaling * exact[0][start:stop] @ a.T @ b.T
        expected = expected + added
    right = torch.autograd.grad(expected, exact, grad.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours, right, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-4)


def test_weights_that_change_before_the_way_back_are_told(kind: type) -> None:
    members = members_of(16, 32)
    found = LoraPart.after(random(ROWS, 16, seed=1), random(ROWS, 32, seed=2), members)
    with torch.no_grad():
        members[1].part.A.add_(1)
    if kind is Compiled:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            found.sum().backward()


def test_one_slot_has_one_update_in_a_place() -> None:
    one, other = members_of(16, 32)[:1] * 2
    with pytest.raises(ValueError, match="two low-rank updates in one place"):
        Compiled([Term(one, 0), Term(other, 0)])
    Compiled([Term(one, 0), Term(other, 32)])
