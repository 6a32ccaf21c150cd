"""The short attention against PyTorch's own and transformers' eager one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import tiny
from tunestack.bases import attention, load_base
from tunestack.bases.attention import LONGEST, PIECE, short_attention
from tunestack.config import BaseConfig

MODULE: Any = SimpleNamespace(is_causal=False, num_key_value_groups=1, training=False)


def heads(
    batch: int, count: int, tokens: int, dtype: torch.dtype = torch.float32, groups: int = 1
) -> list[Tensor]:
    """Query, key and value with gradients; the query is not contiguous, as models bring it."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for own in (count, count // groups, count // groups):
        tensor = torch.randn(batch, tokens, own, 8, generator=generator).to(dtype).transpose(1, 2)
        made.append(tensor.detach().requires_grad_(True))
    return made


def mask_of(lengths: list[int], tokens: int, side: str, causal: bool, dtype: torch.dtype) -> Tensor:
    """0 where a query may look, the lowest number where not: [batch, 1, tokens, tokens]."""
    place = torch.arange(tokens)
    rows = []
    for length in lengths:
        key = place < length if side == "right" else place >= tokens - length
        allowed = key.expand(tokens, tokens)
        rows.append(allowed & (place[:, None] >= place) if causal else allowed)
    mask = torch.stack(rows)[:, None]
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def real(lengths: list[int], tokens: int, side: str) -> Tensor:
    place = torch.arange(tokens)
    return torch.stack([place < n if side == "right" else place >= tokens - n for n in lengths])


def outputs_and_gradients(function: Any, tensors: list[Tensor], keep: Tensor, **options: Any) -> list[Tensor]:
    own = [tensor.detach().clone().requires_grad_(True) for tensor in tensors]
    output = function(MODULE, *own, **options)[0]
    kept = output[keep]
    weights = torch.linspace(-1, 1, kept.numel()).view(kept.shape).to(kept.dtype)
    (kept * weights).sum().backward()
    return [kept.detach(), *(tensor.grad for tensor in own if tensor.grad is not None)]


@pytest.mark.parametrize("piece", [1, 700, PIECE])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_outputs_and_gradients_equal_pytorchs(
    side: str,
    causal: bool,
    groups: int,
    dtype: torch.dtype,
    tolerance: float,
    piece: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "PIECE", piece)
    lengths, tokens = [9, 3, 1, 6], 9
    tensors = heads(4, 4, tokens, dtype, groups)
    keep = real(lengths, tokens, side)
    mask = mask_of(lengths, tokens, side, causal, dtype)
    module = SimpleNamespace(is_causal=causal, num_key_value_groups=groups, training=False)

    def torchs(_: Any, *own: Tensor, **options: Any) -> Any:
        exact = [tensor.float() for tensor in own]
        options["attention_mask"] = options["attention_mask"].float()
        return sdpa_attention_forward(module, *exact, **options)

    for scaling in (None, 0.3):
        options: dict[str, Any] = {"attention_mask": mask, "scaling": scaling}
        ours = outputs_and_gradients(short_attention, tensors, keep, **options)
        theirs = outputs_and_gradients(torchs, tensors, keep, **options)
        for one, other in zip(ours, theirs, strict=True):
            assert float(other.abs().max()) > 0.01
            torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance)


def test_without_a_mask_and_with_one_for_all_rows() -> None:
    tensors = heads(3, 4, 7)
    keep = torch.ones(3, 7, dtype=torch.bool)
    for mask in (None, mask_of([7], 7, "right", True, torch.float32)):
        ours = outputs_and_gradients(short_attention, tensors, keep, attention_mask=mask)
        theirs = outputs_and_gradients(sdpa_attention_forward, tensors, keep, attention_mask=mask)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_under_autocast_rotated_queries_and_keys_may_be_wider_than_values() -> None:
    """As PyTorch's own attention has it; both give what comes of bf16."""
    tensors, keep = heads(2, 4, 7), torch.ones(2, 7, dtype=torch.bool)
    tensors[2] = tensors[2].detach().bfloat16()
    found = []
    for function in (short_attention, sdpa_attention_forward):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(outputs_and_gradients(function, tensors, keep, attention_mask=None))
    assert [one.dtype for one in found[0]] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=5e-2, atol=5e-2)


def test_training_goes_on_after_an_evaluation() -> None:
    tensors, keep = heads(2, 4, 7), torch.ones(2, 7, dtype=torch.bool)
    before = outputs_and_gradients(short_attention, tensors, keep, attention_mask=None)
    attention._scratch.buffers.clear()
    with torch.inference_mode():
        short_attention(MODULE, *tensors, None)
    after = outputs_and_gradients(short_attention, tensors, keep, attention_mask=None)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


def test_what_it_does_not_cover_is_handed_over() -> None:
    tensors = heads(2, 4, 7)
    causal: Any = SimpleNamespace(is_causal=True, num_key_value_groups=1, training=False)
    ours = short_attention(causal, *tensors, None)[0]
    theirs = sdpa_attention_forward(causal, *tensors, None)[0]
    assert torch.equal(ours, theirs), "causality without a mask"
    by_head = torch.randn(2, 4, 7, 7)
    assert torch.equal(
        short_attention(MODULE, *tensors, by_head)[0], sdpa_attention_forward(MODULE, *tensors, by_head)[0]
    )
    long = heads(1, 2, LONGEST + 1)
    assert torch.equal(
        short_attention(MODULE, *long, None)[0], sdpa_attention_forward(MODULE, *long, None)[0]
    )


KINDS = ["bert", "roberta", "distilbert", "electra", "modernbert", "llama", "mistral", "qwen2", "gpt2", "opt"]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_equal_eager_and_sdpa(tmp_path: Path, kind: str) -> None:
    """With padding on either side, beyond sliding windows, and with inputs too long for the short path."""
    longest = LONGEST + 30
    field = {"gpt2": "n_positions"}.get(kind, "max_position_embeddings")
    base = tiny.random_base(tmp_path, kind, **{field: longest + 2})
    model = base.load_model(AutoModelForSequenceClassification, base.model_config(2)).model
    assert model.config._attn_implementation == attention.NAME
    generator = torch.Generator().manual_seed(1)
    for tokens, lengths in ((40, [40, 23, 1]), (12, [12, 12, 12]), (longest, [longest, 2, 70])):
        for side in ("left", "right"):
            if kind == "modernbert" and side == "left":
                continue  # it pools the first place, from where its window may see nothing but padding
            mask = real(lengths, tokens, side).long()
            ids = torch.randint(3, 150, mask.shape, generator=generator) * mask
            found: dict[str, list[Tensor]] = {}
            for implementation in (attention.NAME, "eager", "sdpa"):
                model.set_attn_implementation(implementation)
                found[implementation] = logits_and_gradients(model, ids, mask)
            for other in ("eager", "sdpa"):
                for ours, theirs in zip(found[attention.NAME], found[other], strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_models_that_need_another_kernel_keep_it(tmp_path: Path) -> None:
    """Gemma 2 caps its scores, which neither ours nor PyTorch's kernels do."""
    config = transformers.Gemma2Config(
        vocab_size=160,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        attn_logit_softcapping=0.5,
    )
    config.save_pretrained(tmp_path)
    base = load_base(BaseConfig(model=f"random:{tmp_path / 'config.json'}", dtype="float32"))
    model = base.load_model(AutoModelForSequenceClassification, base.model_config(2)).model
    ids = torch.randint(3, 150, (2, 9), generator=torch.Generator().manual_seed(0))
    ours = model(input_ids=ids).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(ours, model(input_ids=ids).logits)


def logits_and_gradients(model: nn.Module, ids: Tensor, mask: Tensor) -> list[Tensor]:
    layers = [module for module in model.modules() if hasattr(module, "weight")][2:6]
    for layer in layers:
        layer.weight.requires_grad_(True).grad = None
    logits = model(input_ids=ids, attention_mask=mask).logits
    (logits * torch.tensor([1.0, -0.5])).sum().backward()
    return [logits.detach(), *(layer.weight.grad for layer in layers if layer.weight.grad is not None)]
