"""Compiled kernels compute the formulas, whatever company a row has, and nothing needs them."""

from __future__ import annotations

import math
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tunestack.kernels import attention, dense, library, lowrank, rows

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
WITHIN = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
"""Of the largest number, or of 1, which all inputs are about, how far results may be from those in fp64."""
compiled = pytest.mark.skipif(
    not library.has_kernels(torch.float32, CPU), reason="there is no C compiler here"
)


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    expected = expected.detach()
    apart = (found.double() - expected).abs().max()
    return bool(apart <= WITHIN[dtype] * expected.abs().max().clamp_min(1))


def texts_of(lengths: Sequence[int], first: bool, gap: int = 3) -> tuple[attention.Texts, int]:
    """Texts with some tokens between and behind them that belong to none."""
    starts = [sum(lengths[:place]) + gap * place for place in range(len(lengths))]
    tokens = sum(lengths) + gap * len(lengths)
    inside = {token for start, length in zip(starts, lengths) for token in range(start, start + length)}
    rest = torch.tensor([token for token in range(tokens) if token not in inside], dtype=torch.long)
    return attention.Texts(torch.tensor(starts), torch.tensor(lengths), rest, first), tokens


def formula(joint: Tensor, texts: attention.Texts, heads: int, scaling: float) -> Tensor:
    """Attention text by text; zeros for tokens of no text."""
    queries, keys, values = joint.chunk(3, 1)
    out = queries.new_zeros(len(texts.starts) if texts.first else len(joint), queries.shape[1])
    for place, (start, length) in enumerate(zip(texts.starts.tolist(), texts.lengths.tolist())):
        q, k, v = (
            part[start : start + length].view(length, heads, -1).transpose(0, 1)
            for part in (queries, keys, values)
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) * scaling, -1) @ v
        flat = mixed.transpose(0, 1).reshape(length, -1)
        index = torch.tensor([place]) if texts.first else torch.arange(start, start + length)
        out = out.index_copy(0, index, flat[:1] if texts.first else flat)
    return out


def attend_both(
    joint: Tensor, texts: attention.Texts, heads: int, scaling: float, grad: Tensor
) -> tuple[Tensor, Tensor]:
    out, sums = attention.attend(joint.chunk(3, 1), texts, heads, scaling)
    found = torch.full_like(joint, math.nan)
    attention.attend_back(grad, joint.chunk(3, 1), sums, texts, heads, scaling, found.chunk(3, 1))
    return out, found


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [False, True])
@given(
    lengths=st.lists(
        st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 129, 300])), min_size=1, max_size=5
    ),
    heads=st.integers(1, 3),
    size=st.sampled_from([1, 4, 6, 16, 24, 32, 64, 80]),
)
@settings(max_examples=40, deadline=None)
def test_attention_is_the_formula(
    dtype: torch.dtype, first: bool, lengths: list[int], heads: int, size: int
) -> None:
    texts, tokens = texts_of(lengths, first)
    joint = random(tokens, 3 * heads * size, dtype=dtype, seed=1)
    exact = joint.double().requires_grad_()
    scaling = size**-0.5
    expected = formula(exact, texts, heads, scaling)
    grad = random(*expected.shape, dtype=dtype, seed=2)
    out, found = attend_both(joint, texts, heads, scaling, grad)
    assert close(out, expected, dtype)
    (right,) = torch.autograd.grad(expected, exact, grad.double())
    if lengths == [1] * len(lengths):  # softmax over one key: queries and keys get exactly nothing
        right = right * torch.cat([torch.zeros(2 * heads * size), torch.ones(heads * size)])
    assert close(found, right, dtype)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_attention_of_large_scores_stays_finite(dtype: torch.dtype, scale: float) -> None:
    texts, tokens = texts_of([30], first=False)
    joint = random(tokens, 3 * 32, dtype=dtype) * scale
    out, found = attend_both(joint, texts, 1, 1.0, random(tokens, 32, dtype=dtype))
    assert out.isfinite().all()
    assert found.isfinite().all()
    assert close(out, formula(joint.double(), texts, 1, 1.0), dtype)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first", [False, True])
def test_a_text_is_the_same_in_any_company_and_keeps_what_breaks_it(dtype: torch.dtype, first: bool) -> None:
    lengths, heads, size = [7, 70, 33], 2, 32
    texts, tokens = texts_of(lengths, first)
    joint = random(tokens, 3 * heads * size, dtype=dtype)
    joint[:7] = math.nan
    grad = random(len(lengths) if first else tokens, heads * size, dtype=dtype, seed=1)
    out, found = attend_both(joint, texts, heads, 0.3, grad)
    for place, (start, length) in enumerate(zip(texts.starts.tolist(), lengths)):
        own = slice(start, start + length)
        answered = slice(place, place + 1) if first else own
        alone, _ = texts_of([length], first, gap=0)
        right = attend_both(joint[own].clone(), alone, heads, 0.3, grad[answered].clone())
        if place == 0:
            assert out[answered].isnan().all()
            assert found[own, 2 * heads * size :].isnan().all()
        else:
            assert torch.equal(out[answered], right[0])
            assert torch.equal(found[own], right[1])
    assert first or not out[texts.rest].any()
    assert not found[texts.rest].any()


@compiled
def test_numbers_that_are_none_stay_none_whatever_their_bits() -> None:
    odd = torch.tensor([0x7FC00001, -1, 0x7FC001FF, -4194303] * 4, dtype=torch.int32).view(torch.float32)
    assert odd.isnan().all()
    assert rows.gelu(odd)[0].isnan().all()
    texts, tokens = texts_of([9], first=False)
    joint = random(tokens, 48, dtype=torch.float32)
    joint[3, :16] = odd
    out, _ = attention.attend(joint.chunk(3, 1), texts, 1, 1.0)
    assert out[3].isnan().all()
    assert out[[0, 8]].isfinite().all()


@compiled
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_type_decides_nothing(default: torch.dtype) -> None:
    """Another thread that loads a model may have changed it for a moment."""

    texts, tokens = texts_of([5, 40], first=False)
    joint = random(tokens, 96, dtype=torch.float32)
    own = lowrank.Updates(updates_of([(0, 20, 0, 3)], 96, 32))

    def results() -> list[Tensor]:
        y = joint.clone()
        found = own.back(y, joint, own.add(y, joint), None, None)
        return [
            *attend_both(joint, texts, 2, 0.2, joint[:, :32].contiguous()),
            *found,
            *rows.norm(joint, joint, joint[0], joint[1], 1e-5),
        ]

    expected = results()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = results()
    finally:
        torch.set_default_dtype(before)
    assert all(torch.equal(mine, right) for mine, right in zip(found, expected, strict=True))


@compiled
def test_what_c_would_misread_is_refused() -> None:
    texts, tokens = texts_of([5], first=False)
    joint, grad = random(tokens, 48, dtype=torch.float32), random(tokens, 16, dtype=torch.float32)
    parts = joint.chunk(3, 1)
    with pytest.raises(ValueError, match="one type and layout"):
        attention.attend([parts[0], parts[1], parts[2].contiguous()], texts, 1, 1.0)
    with pytest.raises(ValueError, match="one type and layout"):
        attention.attend([parts[0], parts[1], parts[2].bfloat16()], texts, 1, 1.0)
    out, sums = attention.attend(parts, texts, 1, 1.0)
    with pytest.raises(ValueError, match="one type and layout"):
        attention.attend_back(grad, parts, sums, texts, 1, 1.0, [torch.empty_like(one) for one in parts])
    with pytest.raises(ValueError, match="contiguous"):
        attention.attend_back(grad[:, :1].expand(-1, 16), parts, sums, texts, 1, 1.0, parts)
    with pytest.raises(ValueError, match=r"contiguous torch\.float32"):
        rows.norm(out, out.bfloat16(), out[0], out[0], 1e-5)
    own = lowrank.Updates(updates_of([(0, 5, 0, 2)], 16, 16))
    for y, x in ((grad.bfloat16(), grad), (grad.t(), grad), (grad, grad.t())):
        with pytest.raises(ValueError, match="contiguous"):
            own.add(y, x)


def updates_of(spans: Sequence[tuple[int, int, int, int]], wide: int, out: int) -> list[lowrank.Update]:
    """spans: of every update the first row and the one behind the last, the column and the rank."""
    return [
        lowrank.Update(
            start,
            stop,
            column,
            random(r, wide, dtype=torch.float32, seed=place),
            random(out, r, dtype=torch.float32, seed=place + 50),
            0.5 + place / 4,
        )
        for place, (start, stop, column, r) in enumerate(spans)
    ]


SPANS = {
    "one": [(0, 9, 0, 8)],
    "two columns": [(0, 40, 0, 8), (0, 40, 64, 8)],
    "slots, ranks and gaps": [
        (0, 33, 0, 1),
        (0, 33, 32, 17),
        (33, 64, 64, 3),
        (70, 401, 0, 33),
        (70, 401, 64, 2),
    ],
}


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize(("wide", "out"), [(16, 32), (160, 32)])
def test_low_rank_updates_are_the_formula(
    dtype: torch.dtype, kept: bool, spans: list[tuple[int, int, int, int]], wide: int, out: int
) -> None:
    """And leave rows and columns alone that have none."""
    count, width = 410, 96
    own = updates_of(spans, wide, out)
    x, y = random(count, wide, dtype=dtype, seed=1), random(count, width, dtype=dtype, seed=2)
    grad, grad_x = random(count, width, dtype=dtype, seed=3), random(count, wide, dtype=dtype, seed=4)
    keep = (random(count, wide, dtype=torch.float32, seed=5) > 0).to(dtype) if kept else None
    weights = [weight.double().requires_grad_() for one in own for weight in (one.A, one.B)]
    exact = x.double().requires_grad_()
    expected = y.double()
    for one, a, b in zip(own, weights[::2], weights[1::2]):
        added = torch.zeros(count, width, dtype=torch.float64)
        rows_of, columns = slice(one.start, one.stop), slice(one.column, one.column + out)
        added[rows_of, columns] = one.scaling * exact[rows_of] @ a.T @ b.T
        expected = expected + added
    right_x, *right = torch.autograd.grad(expected, [exact, *weights], grad.double())
    compiled_updates = lowrank.Updates(own)
    found_y, found_x = y.clone(), grad_x.clone()
    low = compiled_updates.add(found_y, x)
    found = compiled_updates.back(grad, x, low, found_x, keep)
    assert close(found_y, expected, dtype)
    assert all(close(mine, theirs, dtype) for mine, theirs in zip(found, right, strict=True))
    assert close(found_x, grad_x.double() + right_x * (1 if keep is None else keep.double()), dtype)
    without = compiled_updates.back(grad, x, low, None, None)
    assert all(torch.equal(mine, same) for mine, same in zip(found, without, strict=True))
    for start, stop in {(one.start, one.stop) for one in own}:
        alone = [one for one in own if one.start == start]
        moved = [lowrank.Update(0, stop - start, u.column, u.A, u.B, u.scaling) for u in alone]
        same = y[start:stop].clone()
        lowrank.Updates(moved).add(same, x[start:stop].clone())
        assert torch.equal(same, found_y[start:stop])
    untouched = torch.ones(count, dtype=torch.bool)
    for one in own:
        untouched[one.start : one.stop] = False
    assert torch.equal(found_y[untouched], y[untouched])
    assert torch.equal(found_x[untouched], grad_x[untouched])


matrix_unit = pytest.mark.skipif(
    not dense.covers(torch.zeros(32, 32, dtype=torch.bfloat16)),
    reason="this processor has no matrix unit for bfloat16, or there is no C compiler here",
)


@matrix_unit
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("out", "wide"), [(32, 32), (96, 384), (384, 1536)])
@given(count=st.one_of(st.integers(1, 70), st.sampled_from([128, 129, 145, 300])))
@settings(max_examples=30, deadline=None)
def test_products_of_frozen_weights_are_the_formula(count: int, out: int, wide: int, biased: bool) -> None:
    """And a row's are the same in any company, which it does not break."""
    x, weight = random(count, wide, dtype=torch.bfloat16), random(out, wide, dtype=torch.bfloat16, seed=1)
    bias = random(out, dtype=torch.bfloat16, seed=2) if biased else None
    laid = dense.Laid(weight)
    found = laid.product(x, bias)
    expected = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)
    place = count // 2
    assert torch.equal(laid.product(x[place:].clone(), bias), found[place:])
    x[place] = math.nan
    beside = torch.arange(count) != place
    assert laid.product(x, bias)[place].isnan().all()
    assert torch.equal(laid.product(x, bias)[beside], found[beside])


@matrix_unit
def test_products_of_frozen_weights_with_any_number_of_threads() -> None:
    x, weight = random(77, 64, dtype=torch.bfloat16), random(96, 64, dtype=torch.bfloat16, seed=1)
    same_with_any_threads(lambda: [dense.Laid(weight).product(x, None)])


@matrix_unit
def test_products_of_frozen_weights_take_nothing_that_they_would_misread() -> None:
    laid = dense.Laid(random(64, 32, dtype=torch.bfloat16))
    x = random(5, 64, dtype=torch.bfloat16)
    for wrong in (x, x[:, ::2], x[:, :32].float()):
        with pytest.raises(ValueError, match="must come here"):
            laid.product(wrong, None)
    with pytest.raises(ValueError, match="must come here"):
        laid.product(x[:, :32].contiguous(), x[0, :32].contiguous())
    for shape in ((33, 32), (32, 40)):
        assert not dense.covers(torch.zeros(shape, dtype=torch.bfloat16))
    assert not dense.covers(torch.zeros(32, 32))


def test_low_rank_updates_take_no_weights_that_they_would_misread() -> None:
    wide = torch.zeros(16, 4).t()
    for a in (wide, torch.zeros(4, 16, dtype=torch.float64)):
        with pytest.raises(ValueError, match="contiguous and in fp32"):
            lowrank.Updates([lowrank.Update(0, 1, 0, a, torch.zeros(16, 4), 1.0)])


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [16, 384])
def test_norms_are_the_formula(dtype: torch.dtype, features: int) -> None:
    x, more, grad, more_grad = (random(37, features, dtype=dtype, seed=seed) for seed in range(4))
    weight, bias = random(features, dtype=dtype, seed=5), random(features, dtype=dtype, seed=6)
    y, s, moments = rows.norm(x + 3, more, weight, bias, 1e-5)
    assert torch.equal(s, (x + 3) + more)
    exact = s.double().requires_grad_()
    expected = functional.layer_norm(exact, (features,), weight.double(), bias.double(), 1e-5)
    assert close(y, expected, dtype)
    for other in (None, more_grad):
        whole = grad.double() + (0 if other is None else other.double())
        (right,) = torch.autograd.grad(expected, exact, whole, retain_graph=True)
        assert close(rows.norm_back(grad, other, s, moments, weight), right, dtype)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_is_the_formula(dtype: torch.dtype) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4800), torch.tensor([0.0, -0.0, 1e30, -1e30] * 4)]).to(dtype)
    exact = x.double().requires_grad_()
    expected = functional.gelu(exact)
    found, slope = rows.gelu(x, slope=True)
    assert slope is not None
    (right,) = torch.autograd.grad(expected.sum(), exact)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(found.double(), expected.detach(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(slope.double(), right, rtol=tolerance, atol=tolerance)
    alone, none = rows.gelu(x)
    assert torch.equal(alone, found)
    assert none is None
    for broken in rows.gelu(torch.full((16,), math.nan).to(dtype), slope=True):
        assert broken is not None
        assert broken.isnan().all()


@compiled
def test_gelu_of_every_number_of_16_bits() -> None:
    """As far from the formula as rounding to bfloat16, and a tenth of that around 1; tiny ones are 0."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.isfinite()].contiguous()
    exact = x.double().requires_grad_()
    expected = functional.gelu(exact)
    (right,) = torch.autograd.grad(expected.sum(), exact)
    found, slope = rows.gelu(x, slope=True)
    assert slope is not None
    beyond = 2e-5 * x.double().abs().clamp(max=5) + 2**-126
    assert ((found.double() - expected.detach()).abs() <= 2**-8 * expected.detach().abs() + beyond).all()
    assert ((slope.double() - right).abs() <= 2**-8 * right.abs() + 2e-4).all()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_by_number_are_the_formula(dtype: torch.dtype) -> None:
    x, y = random(37, 48, dtype=dtype), random(37, 48, dtype=dtype, seed=1)
    expected = x * y
    assert torch.equal(rows.times(x, y, torch.empty_like(x)), expected)
    assert torch.equal(rows.times(x, y, x), expected)
    assert torch.equal(x, expected)


def masks(p: float, seeds: Sequence[int], shape: tuple[int, ...] = (64, 384)) -> Tensor:
    drawn = torch.full((len(seeds), *shape), math.nan)
    for keep, seed in zip(drawn, seeds):
        rows.draw_keep(keep, p, seed)
    return drawn


@compiled
@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_masks_drop_what_they_should(p: float) -> None:
    """As often as they should: everywhere, in every row and every column, to within five deviations."""
    drawn = masks(p, range(200))
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    deviation = math.sqrt(p * (1 - p))
    for dims in ((0, 1, 2), (0, 1), (0, 2), (1, 2)):
        count = math.prod(drawn.shape[dim] for dim in dims)
        apart = (drawn.mean(dims) - (1 - p)).abs().max()
        assert apart <= 5.2 * deviation / math.sqrt(count) + 1e-6


@compiled
def test_masks_have_nothing_to_do_with_each_other() -> None:
    """Neighbours in a row, in a column, in seeds that differ in one bit: pairs are as good as chance."""
    near = {(place << 32) + other for place in range(8) for other in range(16)}
    seeds = sorted(near | {1 << bit for bit in range(63)})
    drawn = masks(0.5, seeds) * 2 - 1
    pairs = [
        *(drawn[:, :, by:] * drawn[:, :, :-by] for by in (1, 2, 8, 16, 64)),
        *(drawn[:, by:] * drawn[:, :-by] for by in (1, 2, 8)),
        *(drawn[by:] * drawn[:-by] for by in (1, 2, 16)),
        drawn[:, :, 1:] * drawn[:, :, :-1] * drawn[:, :1, :1],
    ]
    assert all(abs(float(pair.mean())) < 5 / math.sqrt(pair.numel()) for pair in pairs)
    assert len({tuple(mask[0, :64].tolist()) for mask in drawn}) == len(seeds)


@compiled
@pytest.mark.parametrize("shape", [(3, 5), (7, 384), (2, 9, 16), (4, 3, 7)])
def test_a_mask_is_one_in_any_type_and_layout(shape: tuple[int, ...]) -> None:
    (expected,) = masks(0.3, [77], shape)
    narrow = torch.full(shape, 5.0, dtype=torch.bfloat16)
    rows.draw_keep(narrow, 0.3, 77)
    assert torch.equal(narrow.float(), expected)
    wide = torch.full((shape[0], shape[1] + 2, *shape[2:]), 5.0)
    rows.draw_keep(wide[:, : shape[1]], 0.3, 77)
    assert torch.equal(wide[:, : shape[1]], expected)
    assert (wide[:, shape[1] :] == 5).all()


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_decide_nothing(dtype: torch.dtype) -> None:
    texts, tokens = texts_of([5, 90, 33], first=False)
    joint, grad = random(tokens, 3 * 64, dtype=dtype), random(tokens, 64, dtype=dtype)
    own = updates_of([(0, 100, 0, 8), (0, 100, 64, 3)], 192, 64)

    def results() -> list[Tensor]:
        low_rank = lowrank.Updates(own)
        y = torch.zeros(tokens, 128, dtype=dtype)
        low = low_rank.add(y, joint)
        found = low_rank.back(y, joint, low, torch.zeros_like(joint), None)
        return [*attend_both(joint, texts, 2, 0.2, grad), y, *found, rows.gelu(joint)[0]]

    same_with_any_threads(results)


def same_with_any_threads(results: Callable[[], list[Tensor]]) -> None:
    """Whatever their number, and however many call at once."""
    expected, threads = results(), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert all(torch.equal(mine, right) for mine, right in zip(results(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)
    with ThreadPoolExecutor(4) as pool:  # several threads call at once
        for found in pool.map(lambda _: results(), range(16)):
            assert all(torch.equal(mine, right) for mine, right in zip(found, expected, strict=True))


COMPILES = """
import torch
from tunestack.kernels import library, rows
assert library.has_kernels(torch.float32, torch.device("cpu"))
print(float(rows.gelu(torch.ones(16))[0].sum()))
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder without libraries, and nothing loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library._library.cache_clear()
    yield tmp_path / "cache" / "tunestack" / "kernels"
    library._library.cache_clear()


@compiled
def test_what_is_compiled_is_kept_whole_and_for_its_owner_alone(fresh: Path) -> None:
    assert library.has_kernels(torch.float32, CPU)
    (made,) = fresh.iterdir()
    assert made.suffix == ".so"
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    before = made.stat().st_mtime_ns
    library._library.cache_clear()
    assert library.has_kernels(torch.float32, CPU)
    assert made.stat().st_mtime_ns == before
    assert library.has_kernels(torch.bfloat16, CPU)
    assert len(list(fresh.iterdir())) == 2


@compiled
def test_a_library_that_is_no_good_is_made_anew(fresh: Path) -> None:
    elsewhere = {**os.environ, "XDG_CACHE_HOME": str(fresh.parent.parent)}
    subprocess.run([sys.executable, "-c", COMPILES], env=elsewhere, check=True, timeout=200)
    (made,) = fresh.iterdir()
    made.write_bytes(b"")
    assert library.has_kernels(torch.float32, CPU)
    assert made.stat().st_size > 1000


@compiled
@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_what_others_may_write_is_not_run(fresh: Path, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    fresh.mkdir(parents=True)
    fresh.chmod(mode)
    assert not library.has_kernels(torch.float32, CPU)
    assert "nobody else may write" in caplog.text


@compiled
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param('$(printf "%s\\n" "$@" | grep -v march)', id="nothing but what every processor has"),
        pytest.param('"$@" -mno-amx-tile -mno-amx-bf16', marks=matrix_unit, id="no matrix unit"),
    ],
)
def test_other_processors_compute_the_same(fresh: Path, tmp_path: Path, arguments: str) -> None:
    """Each processor runs its own branch of the code; these are for those that have less."""
    compiler = tmp_path / "other-cc"
    compiler.write_text(f'#!/bin/sh\nset -- {arguments}\nexec cc "$@"\n')
    compiler.chmod(0o755)
    environment = {**os.environ, "CC": str(compiler), "XDG_CACHE_HOME": str(fresh.parent.parent)}
    chosen = (
        "(formula or company or masks or threads or by_head or without_tokens or every_number) and not frozen"
    )
    files = [__file__, str(Path(__file__).with_name("test_absorbed.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout
    assert len(list(fresh.iterdir())) == 2


@compiled
def test_processes_may_compile_at_the_same_time(fresh: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(fresh.parent.parent)}
    running = [
        subprocess.Popen([sys.executable, "-c", COMPILES], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for process in running:
        printed, _ = process.communicate(timeout=200)
        assert process.returncode == 0
        assert float(printed) == pytest.approx(16 * 0.8413447, rel=1e-5)
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.parametrize("why", ["off", "no compiler", "does not compile", "cannot be loaded", "no room"])
def test_without_kernels_everything_goes_on(
    fresh: Path, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "off":
        monkeypatch.setenv(library.OFF, "0")
    elif why == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
    elif why == "no room":
        fresh.parent.parent.mkdir()
        fresh.parent.write_text("a file where the folder should be")
    else:
        fake = tmp_path / "fake-cc"
        fake.write_text(
            "#!/bin/sh\necho nonsense >&2\nexit 1\n"
            if why == "does not compile"
            else '#!/bin/sh\nfor last; do :; done\necho nonsense > "$last"\n'
        )
        fake.chmod(0o755)
        monkeypatch.setenv("CC", str(fake))
    assert not library.has_kernels(torch.float32, CPU)
    assert not lowrank.covers(torch.zeros(1, 16), torch.zeros(1, 16))
    with pytest.raises(RuntimeError, match="no compiled kernels"):
        rows.gelu(torch.zeros(16))


def test_there_are_none_for_other_types_and_devices() -> None:
    assert not library.has_kernels(torch.float64, CPU)
    assert not library.has_kernels(torch.float32, torch.device("meta"))
