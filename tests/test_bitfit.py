"""BitFit and LayerNorm tuning against PEFT, on bases with and without biases; in a stack as alone."""

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
from tunestack.methods.layernorm import norm_names
from tunestack.methods.registry import find_method
from tunestack.params import count_parameters
from tunestack.tasks.classification import SequenceClassification

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("bitfit", "bert", {}),
    ("bitfit", "bert", {"modules_to_save": ["LayerNorm"]}),
    ("bitfit", "roberta", {}),
    ("bitfit", "distilbert", {}),
    ("bitfit", "deberta-v2", {}),
    ("bitfit", "gpt2", {}),
    ("bitfit", "qwen2", {}),
    ("bitfit", "bloom", {}),
    ("bitfit", "gpt_neox", {}),
    ("layernorm", "bert", {}),
    (
        "layernorm",
        "bert",
        {"target_modules": ["output.LayerNorm"], "exclude_modules": ["attention.output.LayerNorm"]},
    ),
    ("layernorm", "bert", {"target_modules": r".*layer\.1\..*LayerNorm", "modules_to_save": ["pooler"]}),
    ("layernorm", "electra", {}),
    ("layernorm", "distilbert", {}),
    ("layernorm", "deberta-v2", {}),
    ("layernorm", "modernbert", {}),
    ("layernorm", "llama", {}),
    ("layernorm", "llama", {"exclude_modules": ["post_attention_layernorm"]}),
    ("layernorm", "modernbert", {"exclude_modules": ["mlp_norm"]}),
    ("layernorm", "qwen3", {"target_modules": ["q_norm", "norm"]}),
    ("layernorm", "gemma", {}),
    ("layernorm", "gemma2", {}),
    ("layernorm", "phi3", {}),
    ("layernorm", "gptj", {}),
    ("layernorm", "opt", {}),
    ("layernorm", "gpt2", {}),
    ("layernorm", "t5", {}),
]


@pytest.mark.parametrize(("method", "kind", "fields"), CASES, ids=lambda value: str(value))
def test_outputs_gradients_and_merged_weights_are_pefts(
    tmp_path: Path, method: str, kind: str, fields: dict[str, Any]
) -> None:
    """BitFit is LoRA with `bias="all"` and no targets there."""
    assert_equals_peft(tmp_path, calm_base(tmp_path, kind), method, merge=True, **fields)


def test_some_biases_alone(tmp_path: Path) -> None:
    """The paper's smaller variant: the biases of the query and of the FFN's first layer."""
    base = tiny.random_base(tmp_path, "bert")
    _, slot, _ = open_slot(base, method="bitfit", target_modules=["query", "intermediate.dense"])
    names = {name for name in slot.adapter.parameters if ".encoder." in name}
    layers = [f"base_model.model.bert.encoder.layer.{index}" for index in range(2)]
    ends = ("attention.self.query.bias", "intermediate.dense.bias")
    assert names == {f"{layer}.{end}" for layer in layers for end in ends}


@pytest.mark.parametrize(
    ("method", "kind"), [("bitfit", "gpt2"), ("layernorm", "bert"), ("layernorm", "gemma")]
)
def test_it_starts_as_the_base(tmp_path: Path, method: str, kind: str) -> None:
    stack, slot, plain = open_slot(tiny.random_base(tmp_path, kind), method=method)
    batch, _ = batch_of(slot, stack)
    head = {name.removeprefix("base_model.model."): tensor for name, tensor in slot.adapter.tensors().items()}
    plain.load_state_dict({name: t for name, t in head.items() if "ln_tuning" not in name}, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(stack, slot, batch), plain(**batch).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "kind"), [("bitfit", "bert"), ("layernorm", "bert"), ("layernorm", "gemma")]
)
def test_in_bf16(tmp_path: Path, method: str, kind: str) -> None:
    assert_bf16_comes_close(tmp_path, kind, method)


@pytest.mark.parametrize("kind", ["bert", "qwen2", "gemma2", "deberta-v2"])
def test_a_stack_with_lora_equals_solo_runs(tmp_path: Path, kind: str) -> None:
    base = calm_base(tmp_path, kind)
    work = tiny.workload(base)
    norms = ["norm", "post_feedforward_layernorm"] if kind == "gemma2" else None
    trials = [
        tiny.trial(base, "norms", 1, "layernorm", batch_size=4, epochs=1.5),
        tiny.trial(base, "lora", 2, bias="all", target_modules="all-linear", lora_dropout=0.2),
        tiny.trial(base, "other norms", 3, "layernorm", base_dropout=True, learning_rate=2e-2),
        tiny.trial(base, "some norms", 4, "layernorm", target_modules=norms, max_grad_norm=0),
    ]
    if kind != "gemma2":
        trials.append(tiny.trial(base, "biases", 5, "bitfit", weight_decay=0.5))
    solo = tiny.alone(work, trials)
    for ended in (tiny.run(work, trials), tiny.run(work, trials[::-1], slots=3)):
        for key in solo:
            tiny.assert_same(ended[key], solo[key])


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_norms_alone_in_a_stack_leave_the_bases_uncomputed(tmp_path: Path, kind: str) -> None:
    """Where every slot brings its own norms the base's are not needed, and the law holds all the same."""
    base = calm_base(tmp_path, kind)
    work = tiny.workload(base)
    trials = [tiny.trial(base, str(seed), seed, "layernorm", batch_size=3 + seed) for seed in (1, 2, 3)]
    solo = tiny.alone(work, trials)
    together = tiny.run(work, trials)
    for key in solo:
        tiny.assert_same(together[key], solo[key])


@pytest.mark.parametrize("method", ["bitfit", "layernorm"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, method: str) -> None:
    results = []
    for checkpointing in (False, True):
        base = tiny.random_base(tmp_path, "bert", gradient_checkpointing=checkpointing)
        trials = [tiny.trial(base, "own", 1, method, base_dropout=True), tiny.trial(base, "lora", 2)]
        results.append(tiny.run(tiny.workload(base), trials))
    for key, ended in results[0].items():
        tiny.assert_same(results[1][key], ended, atol=1e-6)


def test_counts(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path, "bert")
    layer = 4 * 16 + 32 + 16 + 2 * 16  # attention, FFN, two norms
    assert (
        count_parameters(path, "bitfit", {}).by_part["bitfit (trained)"] == 2 * layer + 2 * 16
    )  # embeddings, pooler
    assert count_parameters(path, "layernorm", {}).by_part["layernorm (trained)"] == 2 * 16 * 5


@pytest.mark.parametrize("kind", sorted(tiny.CONFIGS))
def test_every_architectures_norms_are_found(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    model = base.skeleton(SequenceClassification.auto_class, base.model_config(2))
    named = {
        name
        for name, module in model.named_modules()
        if ("norm" in name.lower() or ".ln_" in name) and not isinstance(module, torch.nn.Identity)
    }
    assert set(norm_names(model)) == named
    assert len(named) >= 3


@pytest.mark.parametrize(
    ("kind", "excluded"), [("llama", "post_attention_layernorm"), ("modernbert", "mlp_norm")]
)
def test_excluded_layers_stay_as_they_are(tmp_path: Path, kind: str, excluded: str) -> None:
    """Whether PEFT knows the architecture's targets (Llama) or not."""
    base = tiny.random_base(tmp_path, kind)
    _, slot, _ = open_slot(base, method="layernorm", exclude_modules=[excluded])
    own = [name for name in slot.adapter.parameters if "ln_tuning" in name]
    assert own
    assert not any(excluded in name for name in own)


def test_bases_that_have_none_are_refused_with_what_works(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "llama")
    skeleton = base.skeleton(SequenceClassification.auto_class, base.model_config(2))
    bitfit, layernorm = find_method("bitfit"), find_method("layernorm")
    with pytest.raises(UserError, match=r"none outside the head.*Use layernorm, ia3 or lora"):
        bitfit.check(bitfit.make_config({}, "llama", []), skeleton)
    with pytest.raises(UserError, match="'q_proj', which matches none"):
        layernorm.check(layernorm.make_config({"target_modules": ["q_proj"]}, "llama", []), skeleton)
    with pytest.raises(UserError, match=r"layernorm\.exclude_modules: expected .*which leaves none"):
        layernorm.check(layernorm.make_config({"exclude_modules": ".*"}, "unknown", []), skeleton)
    linears = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="normalisation layers"):
        layernorm._targets(layernorm.make_config({}, "none", []), linears, [])  # type: ignore[attr-defined]
