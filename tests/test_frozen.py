"""Fast paths of a frozen base give what the plain model gives: packed weights, a last block on one token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import tiny
from tunestack.bases import frozen
from tunestack.bases.base import keep_first_token
from tunestack.kernels import dense
from tunestack.methods.sites import Host

needs_packing = pytest.mark.skipif(not frozen._available(), reason="PyTorch cannot pack bf16 weights here")


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(5, 11, dtype=torch.long)
    mask[1, 4:] = mask[3, 7:] = 0
    ids = torch.randint(5, 160, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("wide", "out"), [(48, 80), (64, 96)])
@pytest.mark.parametrize("count", [7, 300])
@pytest.mark.parametrize("threads", [1, 2])
def test_packed_weights_give_the_products_of_the_plain_ones(
    bias: bool, wide: int, out: int, count: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few rows, with several threads, by products of our own where there are such."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    calls: list[int] = []
    product = dense.Laid.product

    def counted(laid: dense.Laid, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        calls.append(len(x))
        return product(laid, x, bias)

    monkeypatch.setattr(dense.Laid, "product", counted)
    try:
        compare_products(bias, wide, out, count)
    finally:
        torch.set_num_threads(before)
    there = dense.covers(torch.zeros(out, wide, dtype=torch.bfloat16))
    assert calls == ([3 * count] * 2 if there and threads > 1 and count == 7 else [])


def compare_products(bias: bool, wide: int, out: int, count: int) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(wide, out, bias=bias).bfloat16().requires_grad_(False)
    packed = nn.Sequential(nn.Linear(wide, out, bias=bias).bfloat16().requires_grad_(False))
    packed[0].load_state_dict(plain.state_dict())
    frozen.pack_linears(packed, [])
    assert "forward" in vars(packed[0])
    x = torch.randn(3, count, wide).bfloat16()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(3, count, out).bfloat16()
    given, expected = packed(ours), plain(theirs)
    torch.testing.assert_close(given, expected, rtol=2**-7, atol=2**-7)
    (given * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2**-7, atol=2**-7)


@needs_packing
def test_what_is_trained_or_not_bf16_is_left_alone() -> None:
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "head": nn.Linear(8, 8), "wide": nn.Linear(8, 8)})
    model["body"].bfloat16()
    model["head"].bfloat16()
    frozen.pack_linears(model, ["head"])
    assert [name for name, module in model.items() if "forward" in vars(module)] == ["body"]


@needs_packing
def test_a_copy_of_a_packed_layer_is_a_plain_one(tmp_path: Path) -> None:
    base = tiny.open_base(f"random:{tiny.write_config(tmp_path, 'bert')}", dtype="bfloat16")
    loaded = base.load_model(AutoModelForSequenceClassification, base.model_config(2))
    name = "bert.encoder.layer.0.intermediate.dense"
    host = Host(loaded.model, loaded.head, loaded.fresh)
    assert "forward" in vars(host.modules[name])
    own: Any = host.pristine(name).float()
    assert "forward" in vars(host.modules[name])
    x = torch.randn(2, 16)
    torch.testing.assert_close(own(x), x @ own.weight.t() + own.bias)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_the_last_block_on_the_first_token_alone_changes_nothing(kind: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, kind)
    loaded = base.load_model(AutoModelForSequenceClassification, base.model_config(2))
    model, inputs = loaded.model.requires_grad_(True), batch()
    seen: list[int] = []
    last = [module for name, module in model.named_modules() if name.endswith("intermediate.dense")][-1]
    last.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))

    def outcome() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logits = model(**inputs).logits
        logits.square().sum().backward()
        return logits, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, gradients = outcome()
    keep_first_token(model)
    given, ours = outcome()
    assert seen == [11, 1]
    torch.testing.assert_close(given, expected)
    tiny.assert_close(ours, gradients)


@pytest.mark.parametrize("kind", ["modernbert", "llama", "distilbert"])
def test_models_that_read_other_tokens_are_left_alone(kind: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, kind)
    model = base.load_model(AutoModelForSequenceClassification, base.model_config(2)).model
    before = {name for name, module in model.named_modules() if "forward" in vars(module)}
    keep_first_token(model)
    assert before == {name for name, module in model.named_modules() if "forward" in vars(module)}
