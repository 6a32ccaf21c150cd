"""IA3 against PEFT: the same names, outputs, gradients and merged weights; in a stack as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from oracle import (
    assert_bf16_comes_close,
    assert_equals_peft,
    batch_of,
    calm_base,
    logits_of,
    open_slot,
)
from tunestack.errors import UserError
from tunestack.methods.registry import find_method
from tunestack.methods.rowwise import scale_rows
from tunestack.methods.sites import Member, Span
from tunestack.params import count_parameters
from tunestack.tasks.classification import SequenceClassification

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"target_modules": ["query", "intermediate.dense"], "modules_to_save": ["LayerNorm"]}),
    (
        "bert",
        {"target_modules": "all-linear", "exclude_modules": ["key"], "feedforward_modules": r".*\.value"},
    ),
    ("bert", {"init_ia3_weights": False}),
    ("roberta", {}),
    ("electra", {}),
    ("distilbert", {}),
    ("deberta-v2", {}),
    ("modernbert", {}),
    ("llama", {}),
    ("qwen3", {}),
    ("gemma2", {}),
    ("phi3", {}),
    ("bloom", {}),
    ("gptj", {}),
    ("gpt_neo", {}),
    ("gpt_neox", {}),
    ("gpt2", {}),
    ("gpt2", {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_fc"]}),
    ("opt", {}),
    ("t5", {}),
    ("mt5", {}),
]


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda value: str(value))
def test_outputs_gradients_and_merged_weights_are_pefts(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    assert_equals_peft(tmp_path, calm_base(tmp_path, kind), "ia3", merge=True, **fields)


def test_the_scale_in_bf16_is_not_rounded_to_one() -> None:
    """An excess far below bf16's spacing at one still moves what it multiplies as exactly as bf16 can."""
    torch.manual_seed(1)
    y = torch.randn(3, 5, 64).bfloat16().requires_grad_()
    excess = torch.full((64,), 3e-3).requires_grad_()
    member = Member(None, Span(0, 1, 3), "here")
    scaled = scale_rows(y, [excess], [member])
    exact = y.detach().double() * 1.003
    assert torch.equal(scaled[0], y[0])
    assert torch.equal(scaled[1:], exact[1:].bfloat16())
    grad = torch.randn(3, 5, 64).bfloat16()
    scaled.backward(grad)
    assert excess.grad is not None
    expected = (grad.double() * y.detach().double())[1:].sum((0, 1))
    torch.testing.assert_close(excess.grad.double(), expected, rtol=1e-2, atol=5e-2)
    assert excess.grad.dtype == torch.float32


def test_it_starts_as_the_base_and_a_seed_decides_random_scales(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    stack, slot, plain = open_slot(base, method="ia3")
    batch, _ = batch_of(slot, stack)
    head = {name.removeprefix("base_model.model."): tensor for name, tensor in slot.adapter.tensors().items()}
    plain.load_state_dict({name: t for name, t in head.items() if "ia3" not in name}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(stack, slot, batch), plain(**batch).logits)
    drawn = [open_slot(base, seed, "ia3", init_ia3_weights=False)[1].flat for seed in (1, 2, 1)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_in_bf16(tmp_path: Path) -> None:
    assert_bf16_comes_close(tmp_path, "llama", "ia3")


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_a_stack_with_lora_equals_solo_runs(tmp_path: Path, kind: str) -> None:
    base = calm_base(tmp_path, kind)
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, "first", 1, "ia3", batch_size=4, epochs=1.5),
        tiny.trial(base, "lora", 2, bias="all", target_modules="all-linear", lora_dropout=0.2),
        tiny.trial(base, "second", 3, "ia3", base_dropout=True, weight_decay=0.5, learning_rate=2e-2),
        tiny.trial(base, "everywhere", 4, "ia3", target_modules="all-linear", max_grad_norm=0),
    ]
    solo = tiny.alone(work, trials)
    for ended in (tiny.run(work, trials), tiny.run(work, trials[::-1], slots=3)):
        for key in solo:
            tiny.assert_same(ended[key], solo[key])
    scales = [tensor for name, tensor in solo["first"].final.items() if name.endswith("ia3_l")]
    assert all(float((tensor - 1).abs().max()) > 1e-3 for tensor in scales)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        base = tiny.random_base(tmp_path, "bert", gradient_checkpointing=checkpointing)
        trials = [tiny.trial(base, "ia3", 1, "ia3", base_dropout=True), tiny.trial(base, "lora", 2)]
        results.append(tiny.run(tiny.workload(base), trials))
    for key, ended in results[0].items():
        tiny.assert_same(results[1][key], ended, atol=1e-6)


def test_counts_and_refusals(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path, "bert")
    # Keys and values of two layers, and the inputs of two linears that are called output.dense in each.
    trained = count_parameters(path, "ia3", {}).by_part["ia3 (trained)"]
    assert trained == 2 * (16 + 16 + 16 + 32)
    base = tiny.random_base(tmp_path, "bert")
    skeleton = base.skeleton(SequenceClassification.auto_class, base.model_config(2))
    method = find_method("ia3")
    with pytest.raises(UserError, match="subset"):
        method.make_config({"target_modules": ["key"], "feedforward_modules": ["value"]}, "bert", [])
    wrong = method.make_config({"target_modules": ["kye"]}, "bert", [])
    with pytest.raises(UserError, match="'kye', which matches none"):
        method.check(wrong, skeleton)
    with pytest.raises(UserError, match="this architecture has no default"):
        method.check(method.make_config({}, "unheard-of", []), skeleton)
    given = method.make_config({"target_modules": ["key", "output.dense"]}, "bert", [])
    assert getattr(given, "feedforward_modules") == {"output.dense"}  # noqa: B009
