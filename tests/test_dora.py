"""DoRA and LoRA+ against PEFT; dropout against the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from torch import nn

import runs
import tiny
from oracle import (
    assert_bf16_comes_close,
    assert_equals_peft,
    batch_of,
    calm_base,
    disturb,
    open_slot,
    reference,
    saved_name,
)
from tunestack.comparison.plan import make_plan
from tunestack.config import CompareConfig
from tunestack.errors import UserError
from tunestack.methods.dora import DoraPart
from tunestack.methods.sites import Member, Span, dropout
from tunestack.settings import validated

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"bias": "all", "target_modules": "all-linear", "use_rslora": True}),
    ("bert", {"bias": "lora_only", "init_lora_weights": False}),
    ("llama", {"target_modules": "all-linear"}),
    ("gpt2", {"bias": "all"}),
    ("gpt_neox", {}),
    ("t5", {}),
]


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda value: str(value))
def test_outputs_gradients_and_merged_weights_are_pefts(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    base = calm_base(tmp_path, kind)
    assert_equals_peft(tmp_path, base, merge=True, use_dora=True, **fields)


@pytest.mark.parametrize("init", [True, False])
def test_magnitudes_start_as_the_weights_own(tmp_path: Path, init: bool) -> None:
    base = tiny.random_base(tmp_path, "gpt2")
    _, slot, plain = open_slot(base, use_dora=True, init_lora_weights=init)
    tensors = slot.adapter.tensors()
    for name in [name for name in tensors if name.endswith("magnitude_vector")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_magnitude_vector")
        stem = name.removesuffix("lora_magnitude_vector")
        update = tensors[f"{stem}lora_B.weight"].double() @ tensors[f"{stem}lora_A.weight"].double()
        weight = plain.get_submodule(module).weight.t().double() + 2 * update
        torch.testing.assert_close(tensors[name].double(), weight.norm(dim=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_dropout_is_the_formulas(bias: bool) -> None:
    """W x + b + (g - 1) W x' + g s B A x' in fp64, beside a slot without dropout; its rows do not change."""
    torch.manual_seed(3)
    linear = nn.Linear(12, 20, bias=bias)
    parts = [DoraPart(12, 20, 3, 1.5, p, linear) for p in (0.4, 0.0)]
    for part in parts:
        for parameter in part.parameters():
            parameter.data = torch.randn(parameter.shape) * 0.3 + 1
    x = torch.randn(7, 5, 12)
    members = [
        Member(parts[0], Span(0, 1, 4, noise=17, lengths={5: 4}), "there"),
        Member(parts[1], Span(1, 4, 6, noise=18), "there"),
    ]
    found = DoraPart.after(x, linear(x).detach(), members)
    grad = torch.randn(found.shape)
    found.backward(grad)
    assert torch.equal(found[[0, 6]], linear(x)[[0, 6]])
    exact = {name: value.detach().double() for name, value in linear.named_parameters()}
    for member in members:
        part, span = member.part, member.span
        own = {name: p.detach().double().requires_grad_() for name, p in part.named_parameters()}
        rows = x[span.start : span.stop]
        left = dropout(rows, part.p, span, "there").double()
        direction = exact["weight"] + 1.5 * own["B"] @ own["A"]
        gain = own["m"] / direction.norm(dim=1).detach()
        outside = rows.double() @ exact["weight"].t() + exact.get("bias", torch.zeros(1))
        expected = (
            outside
            + (gain - 1) * (left @ exact["weight"].t())
            + gain * 1.5 * (left @ own["A"].t() @ own["B"].t())
        )
        torch.testing.assert_close(
            found[span.start : span.stop].double(), expected.detach(), rtol=1e-5, atol=1e-5
        )
        expected.backward(grad[span.start : span.stop].double())
        for name, parameter in part.named_parameters():
            torch.testing.assert_close(parameter.grad.double(), own[name].grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_in_bf16(tmp_path: Path, p: float) -> None:
    assert_bf16_comes_close(tmp_path, "bert", "lora", use_dora=True, bias="all", lora_dropout=p)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_stack_with_lora_equals_solo_runs(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, "dora", 1, use_dora=True, batch_size=4, epochs=1.5),
        tiny.trial(base, "lora", 2, bias="all", target_modules="all-linear", loraplus_lr_ratio=8),
        tiny.trial(base, "dropout", 3, use_dora=True, lora_dropout=0.3, r=5, learning_rate=1e-2),
        tiny.trial(base, "biases", 4, use_dora=True, bias="all", target_modules="all-linear"),
    ]
    solo = tiny.alone(work, trials)
    for ended in (tiny.run(work, trials), tiny.run(work, trials[::-1], slots=3)):
        for key in solo:
            tiny.assert_same(ended[key], solo[key])


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        base = tiny.random_base(tmp_path, "bert", gradient_checkpointing=checkpointing)
        trials = [tiny.trial(base, "dora", 1, use_dora=True, lora_dropout=0.2), tiny.trial(base, "lora", 2)]
        results.append(tiny.run(tiny.workload(base), trials))
    for key, ended in results[0].items():
        tiny.assert_same(results[1][key], ended, atol=1e-6)


# LoRA+


@pytest.mark.parametrize(
    "fields", [{}, {"bias": "all", "modules_to_save": ["LayerNorm"]}, {"use_dora": True}]
)
def test_lora_plus_steps_as_pefts_optimizer(tmp_path: Path, fields: dict[str, Any]) -> None:
    base = tiny.random_base(tmp_path, "bert")
    settings = {"learning_rate": 2e-3, "loraplus_lr_ratio": 16, "weight_decay": 0.0}
    stack, slot, plain = open_slot(base, **settings, **fields)
    disturb(slot)
    theirs = reference(tmp_path / "adapter", stack, slot, plain)
    optimizer = create_loraplus_optimizer(
        theirs, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.0
    )
    before = slot.adapter.tensors()
    for _ in range(3):
        batch, labels = batch_of(slot, stack)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(**batch).logits, labels).backward()
        optimizer.step()
        stack.step([slot], lambda event: None)
    expected = {
        saved_name(name): parameter.detach()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad and ".original_module." not in name
    }
    tiny.assert_close(slot.adapter.tensors(), expected, tiny.TOLERANCE)
    moved = {name: float((slot.adapter.tensors()[name] - before[name]).abs().max()) for name in before}
    assert max(moved[name] for name in moved if "lora_A" in name) < 2e-3 * 3.5
    assert max(moved[name] for name in moved if "lora_B" in name) > 2e-3 * 16


def test_lora_plus_is_refused_where_it_would_be_ignored(tiny_data: Path) -> None:
    values = runs.settings(tiny_data, training={"loraplus_lr_ratio": 4}, methods=["lora", "full", "ia3"])
    with pytest.raises(UserError) as caught:
        make_plan(validated(CompareConfig, values))
    places = [problem.where for problem in caught.value.problems]
    assert places == [
        f"methods.{i}: {name}.training.loraplus_lr_ratio" for i, name in ((1, "full"), (2, "ia3"))
    ]
    values["training"] = {}
    values["methods"] = [{"method": "lora", "training": {"loraplus_lr_ratio": 4}}, "full", "ia3"]
    ratios = [c.training.loraplus_lr_ratio for c in make_plan(validated(CompareConfig, values)).candidates]
    assert ratios == [4, 1, 1]


def test_lora_plus_survives_a_checkpoint(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    fields = {"loraplus_lr_ratio": 4, "bias": "all", "weight_decay": 0.1, "lr_scheduler_type": "linear"}
    stack, slot, _ = open_slot(base, **fields)
    stack.step([slot], lambda event: None)
    slot.save(tmp_path / "state.safetensors")
    stack.step([slot], lambda event: None)
    again = open_slot(base, **fields)
    again[1].load(tmp_path / "state.safetensors")
    again[0].step([again[1]], lambda event: None)
    assert torch.equal(again[1].flat, slot.flat)
