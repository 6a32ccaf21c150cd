"""Attention without keys and values computes the formula, whatever company a text has."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from test_kernels import DTYPES, close, compiled, random, same_with_any_threads, texts_of
from tunestack.kernels import absorbed
from tunestack.kernels.absorbed import Absorbed, HeadWeights

Gradients = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


def inputs_of(
    lengths: list[int], heads: int, size: int, features: int, beside: tuple[bool, bool], dtype: torch.dtype
) -> Absorbed:
    texts, tokens = texts_of(lengths, first=True)

    def made(seed: int, *shape: int) -> Tensor:
        return random(*shape, dtype=dtype, seed=seed)

    return Absorbed(
        x=made(0, tokens, features),
        u=made(1, len(lengths), heads, features),
        q=made(2, len(lengths), heads * size),
        k=made(3, tokens, heads * size) if beside[0] else None,
        v=made(4, tokens, heads * size) if beside[1] else None,
        texts=texts,
        scaling=(features + size) ** -0.5,
    )


def formula(inputs: Absorbed) -> tuple[Tensor, Tensor | None]:
    """Text by text, head by head."""
    heads = inputs.u.shape[1]
    mixtures, own = [], []
    for place, (start, length) in enumerate(
        zip(inputs.texts.starts.tolist(), inputs.texts.lengths.tolist(), strict=True)
    ):
        x = inputs.x[start : start + length]
        scores = inputs.u[place] @ x.T
        if inputs.k is not None:
            keys = inputs.k[start : start + length].view(length, heads, -1)
            scores = scores + torch.einsum("hs,jhs->hj", inputs.q[place].view(heads, -1), keys)
        p = torch.softmax(scores * inputs.scaling, -1)
        mixtures.append(p @ x)
        if inputs.v is not None:
            values = inputs.v[start : start + length].view(length, heads, -1)
            own.append(torch.einsum("hj,jhs->hs", p, values).flatten())
    return torch.stack(mixtures), torch.stack(own) if own else None


def both(
    inputs: Absorbed, grad_m: Tensor, grad_o: Tensor | None
) -> tuple[tuple[Tensor, Tensor | None], Gradients]:
    m, o, sums = absorbed.attend(inputs)
    return (m, o), absorbed.attend_back(inputs, grad_m, grad_o, sums)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.sampled_from([1, 7, 8, 64, 65, 130]),
    heads=st.integers(1, 5),
    size=st.sampled_from([2, 6, 16, 24, 32]),
    features=st.sampled_from([16, 48, 80]),
)
@settings(max_examples=40, deadline=None)
def test_products_by_head_are_products_by_head(
    dtype: torch.dtype, rows: int, heads: int, size: int, features: int
) -> None:
    weights = HeadWeights(random(heads, size, features, dtype=dtype))
    exact = weights.weight.double()
    narrow = random(rows, heads * size, dtype=dtype, seed=1)
    right = torch.einsum("ihs,hsf->ihf", narrow.double().view(rows, heads, size), exact)
    assert close(weights.widen(narrow), right, dtype)
    assert torch.equal(weights.widen(narrow[:1].clone()), weights.widen(narrow)[:1])
    wide = random(rows, heads, features, dtype=dtype, seed=2)
    right = torch.einsum("ihf,hsf->ihs", wide.double(), exact).flatten(1)
    assert close(weights.narrow(wide), right, dtype)
    assert torch.equal(weights.narrow(wide[:1].clone()), weights.narrow(wide)[:1])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    lengths=st.lists(st.one_of(st.integers(1, 40), st.sampled_from([64, 65, 129])), min_size=1, max_size=5),
    heads=st.integers(1, 5),
    size=st.sampled_from([1, 6, 16, 24, 32]),
    features=st.sampled_from([16, 48, 80]),
    beside=st.tuples(st.booleans(), st.booleans()),
)
@settings(max_examples=60, deadline=None)
def test_it_is_the_formula(
    dtype: torch.dtype,
    lengths: list[int],
    heads: int,
    size: int,
    features: int,
    beside: tuple[bool, bool],
) -> None:
    inputs = inputs_of(lengths, heads, size, features, beside, dtype)
    grad_m = random(*inputs.u.shape, dtype=dtype, seed=8)
    grad_o = random(*inputs.q.shape, dtype=dtype, seed=9) if beside[1] else None
    (m, o), found = both(inputs, grad_m, grad_o)

    names = ["x", "u", "q", "k", "v"]
    exact = {
        name: tensor.double().requires_grad_()
        for name in names
        if (tensor := getattr(inputs, name)) is not None
    }
    right_m, right_o = formula(replace(inputs, **exact))
    assert close(m, right_m, dtype)
    assert (o is None) is (right_o is None)
    total = (right_m * grad_m).sum()
    if o is not None and right_o is not None and grad_o is not None:
        assert close(o, right_o, dtype)
        total = total + (right_o * grad_o).sum()
    right = torch.autograd.grad(total, list(exact.values()), allow_unused=True)
    expected = dict(zip(exact, right, strict=True))
    for name, own in zip(names, found, strict=True):
        if own is None:
            assert expected.get(name) is None
        else:
            assert close(own, expected[name], dtype), name


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_is_the_same_in_any_company_and_keeps_what_breaks_it(dtype: torch.dtype) -> None:
    lengths = [7, 70, 33]
    inputs = inputs_of(lengths, 3, 32, 48, (True, True), dtype)
    for tensor in (inputs.x, inputs.k, inputs.v):
        assert tensor is not None
        tensor[:7] = math.nan
        tensor[inputs.texts.rest] = math.nan
    grad_m, grad_o = (random(*one.shape, dtype=dtype, seed=8) for one in (inputs.u, inputs.q))
    (m, o), found = both(inputs, grad_m, grad_o)
    assert m[0].isnan().all()
    assert o is not None
    for place, (start, length) in enumerate(zip(inputs.texts.starts.tolist(), lengths, strict=True)):
        if place == 0:
            continue
        tokens, text = slice(start, start + length), slice(place, place + 1)
        one = inputs_of([length], 3, 32, 48, (True, True), dtype)
        assert inputs.k is not None
        assert inputs.v is not None
        alone = replace(
            inputs,
            **{name: getattr(inputs, name)[tokens].clone() for name in ("x", "k", "v")},
            **{name: getattr(inputs, name)[text].clone() for name in ("u", "q")},
            texts=replace(one.texts, rest=one.texts.rest[:0]),
        )
        (own_m, own_o), own = both(alone, grad_m[text].clone(), grad_o[text].clone())
        assert torch.equal(own_m, m[text])
        assert own_o is not None
        assert torch.equal(own_o, o[text])
        for number, (mine, all_of_it) in enumerate(zip(own, found, strict=True)):
            assert mine is not None
            assert all_of_it is not None
            assert torch.equal(mine, all_of_it[text if number in (1, 2) else tokens])
    for of_tokens in (found[0], found[3], found[4]):
        assert of_tokens is not None
        assert not of_tokens[inputs.texts.rest].any()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_without_tokens_gets_nothing(dtype: torch.dtype) -> None:
    inputs = inputs_of([5, 0, 3], 2, 16, 48, (True, True), dtype)
    (m, o), found = both(inputs, torch.ones_like(inputs.u), torch.ones_like(inputs.q))
    assert o is not None
    assert found[2] is not None
    for of_texts in (m, o, found[1], found[2]):
        assert not of_texts[1].any()
        assert of_texts[[0, 2]].any()
        assert of_texts.isfinite().all()


@compiled
def test_threads_decide_nothing() -> None:
    inputs = inputs_of([5, 90, 33, 7], 3, 32, 48, (True, True), torch.float32)
    weights = HeadWeights(random(3, 32, 48, dtype=torch.float32))

    def results() -> list[Tensor]:
        (m, o), found = both(inputs, torch.ones_like(inputs.u), torch.ones_like(inputs.q))
        every = [m, o, *found, weights.widen(inputs.q), weights.narrow(inputs.u)]
        return [one for one in every if one is not None]

    assert len(results()) == 9
    same_with_any_threads(results)


@compiled
def test_what_c_would_misread_is_refused() -> None:
    inputs = inputs_of([5, 3], 2, 16, 48, (True, True), torch.float32)
    m, o, sums = absorbed.attend(inputs)
    assert inputs.k is not None
    for changed in (
        {"u": inputs.u[..., :32].contiguous()},
        {"u": inputs.u[:1]},
        {"q": inputs.q[:1]},
        {"k": inputs.k[:-1]},
        {"v": inputs.q},
    ):
        with pytest.raises(ValueError, match="of shape"):
            absorbed.attend(replace(inputs, **changed))
    with pytest.raises(ValueError, match=r"contiguous torch\.float32"):
        absorbed.attend(replace(inputs, k=inputs.k.bfloat16()))
    with pytest.raises(ValueError, match=r"contiguous torch\.float32"):
        absorbed.attend_back(inputs, m.bfloat16(), o, sums)
    with pytest.raises(ValueError, match=r"contiguous torch\.float32"):
        absorbed.attend_back(inputs, m, o, sums.double())
    with pytest.raises(ValueError, match="of shape"):
        absorbed.attend_back(inputs, m, o, sums[:1])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_large_scores_stay_finite(dtype: torch.dtype, scale: float) -> None:
    inputs = inputs_of([30], 2, 16, 48, (True, True), dtype)
    inputs = replace(inputs, u=inputs.u * scale, scaling=1.0)
    (m, o), found = both(inputs, torch.ones_like(inputs.u), torch.ones_like(inputs.q))
    assert o is not None
    assert all(one is not None and one.isfinite().all() for one in (m, o, *found))
    exact = {name: getattr(inputs, name).double() for name in ("x", "u", "q", "k", "v")}
    assert close(m, formula(replace(inputs, **exact))[0], dtype)
