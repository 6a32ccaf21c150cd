"""LoRA against PEFT: the same names, outputs and gradients; what is saved loads there."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoConfig, AutoModelForSequenceClassification

import tiny
from oracle import assert_equals_peft, batch_of, calm_base, open_slot
from tunestack.bases import Base
from tunestack.errors import UserError
from tunestack.methods.base import read_tensors
from tunestack.methods.registry import find_method
from tunestack.params import count_parameters
from tunestack.stack.stack import Stack
from tunestack.tasks.classification import SequenceClassification

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"r": 5, "lora_alpha": 7, "use_rslora": True, "target_modules": "all-linear"}),
    ("bert", {"bias": "lora_only", "target_modules": ["query", "output.dense"]}),
    ("bert", {"bias": "all"}),
    ("bert", {"target_modules": r".*layer\.1\..*(query|key|dense)"}),
    ("bert", {"rank_pattern": {"query": 2, r"layer\.1.*value": 4}, "alpha_pattern": {"value": 9}}),
    ("bert", {"target_modules": "all-linear", "exclude_modules": ["key", "output.dense"]}),
    ("bert", {"layers_to_transform": [1], "layers_pattern": "layer"}),
    ("bert", {"modules_to_save": ["LayerNorm", "pooler"]}),
    ("bert", {"modules_to_save": ["word_embeddings", "LayerNorm"], "bias": "all"}),
    ("roberta", {"target_modules": ["dense", "query"], "bias": "all"}),
    ("roberta", {"target_modules": "all-linear"}),
    ("electra", {}),
    ("distilbert", {"target_modules": ["q_lin", "lin1"], "bias": "lora_only"}),
    ("deberta-v2", {}),
    ("modernbert", {"target_modules": "all-linear"}),
    ("llama", {"target_modules": "all-linear", "r": 4}),
    ("mistral", {"modules_to_save": ["norm"]}),
    ("qwen2", {"bias": "all"}),
    ("gpt2", {"use_rslora": True}),
    ("gpt2", {"target_modules": ["c_fc", "c_proj"], "bias": "lora_only"}),
    ("gpt2", {"bias": "all", "target_modules": "all-linear", "fan_in_fan_out": True}),
    ("opt", {"target_modules": ["q_proj", "fc1"], "bias": "all"}),
    ("t5", {}),
    ("t5", {"target_modules": "all-linear", "bias": "all", "modules_to_save": ["final_layer_norm"]}),
    ("mt5", {"target_modules": ["k", "wi_1", "wo"]}),
    ("bloom", {"bias": "lora_only"}),
    ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}),
    ("gptj", {}),
    ("gpt_neo", {"target_modules": ["out_proj", "c_fc"]}),
    ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    ("qwen3", {"modules_to_save": ["q_norm"]}),
    ("gemma2", {"modules_to_save": ["norm"]}),
]


@pytest.mark.parametrize(("kind", "fields"), CASES, ids=lambda value: str(value))
def test_outputs_and_all_gradients_equal_pefts(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    assert_equals_peft(tmp_path, calm_base(tmp_path, kind), merge=True, **fields)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
def test_names_are_those_that_peft_writes(tmp_path: Path, kind: str, bias: str) -> None:
    _, slot, plain = open_slot(tiny.random_base(tmp_path, kind), bias=bias)
    model = get_peft_model(plain, copy.deepcopy(slot.config))
    # With bias="all" PEFT writes the heads' biases a second time under names that nothing reads.
    inner = (".original_module.", ".modules_to_save.")
    written = {name for name in get_peft_model_state_dict(model) if not any(part in name for part in inner)}
    assert written == set(slot.adapter.parameters)


def test_a_is_kaiming_uniform_and_b_zero(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert", hidden_size=128, intermediate_size=200)
    _, slot, _ = open_slot(base, r=16, target_modules="all-linear")
    bound = 1 / math.sqrt(128)  # kaiming_uniform(a=sqrt 5) of fan-in 128
    entries = []
    for name, parameter in slot.adapter.parameters.items():
        if "lora_B" in name:
            assert not parameter.any()
        if "lora_A" in name and parameter.shape[1] == 128:
            entries.append(parameter.detach().flatten())
    values = torch.cat(entries)
    assert values.abs().max() <= bound
    assert float(values.abs().max()) == pytest.approx(bound, rel=1e-3)
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert float(values.mean()) == pytest.approx(0, abs=bound * 0.02)
    different = {tuple(entry[:4].tolist()) for entry in entries}
    assert len(different) == len(entries), "every layer draws its own"


def test_gaussian_and_random_b(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert", hidden_size=128, intermediate_size=200)
    _, slot, _ = open_slot(base, r=8, init_lora_weights="gaussian", target_modules="all-linear")
    drawn = [p.detach().flatten() for n, p in slot.adapter.parameters.items() if "lora_A" in n]
    assert float(torch.cat(drawn).std()) == pytest.approx(1 / 8, rel=0.03)
    _, slot, _ = open_slot(base, r=8, init_lora_weights=False)
    assert all(bool(p.any()) for n, p in slot.adapter.parameters.items() if "lora_B" in n)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_at_the_start_it_is_the_base_with_the_slots_head(tmp_path: Path, kind: str) -> None:
    stack, slot, plain = open_slot(tiny.random_base(tmp_path, kind), bias="all", target_modules="all-linear")
    batch, _ = batch_of(slot, stack)
    head = {
        name.removeprefix("base_model.model."): tensor
        for name, tensor in slot.adapter.tensors().items()
        if "lora_" not in name and "base_layer" not in name
    }
    plain.load_state_dict(head, strict=False)
    stack.host.rows.set([slot.span(0, 4, training=False)])
    with torch.no_grad():
        torch.testing.assert_close(
            stack.host.model(**batch).logits, plain(**batch).logits, rtol=1e-5, atol=1e-5
        )


def test_a_seed_decides_the_weights_and_slots_do_not_share_them(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "roberta")
    work = tiny.workload(base)
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
    first, other, again = (stack.open(tiny.trial(base, str(i), seed)) for i, seed in enumerate((1, 2, 1)))
    assert torch.equal(first.flat, again.flat)
    for name, parameter in first.adapter.parameters.items():
        drawn = "lora_A" in name or (name.endswith("weight") and "lora_B" not in name)
        assert torch.equal(parameter, other.adapter.parameters[name]) != drawn, name
    addresses = {slot.flat.data_ptr() for slot in (first, other, again)}
    assert len(addresses) == 3


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("bert", {"bert.pooler.dense.weight", "classifier.weight"}),
        ("distilbert", {"pre_classifier.weight", "classifier.bias"}),
    ],
)
def test_what_a_checkpoint_lacks_is_trained(tmp_path: Path, kind: str, names: set[str]) -> None:
    _, slot, _ = open_slot(tiny.open_base(str(tiny.save_base(tmp_path, kind))))
    assert names <= {name.removeprefix("base_model.model.") for name in slot.adapter.parameters}


def refused(base: Base, **fields: Any) -> str:
    """What is said about a config that cannot work."""
    with pytest.raises(UserError) as caught:
        check(base, tiny.lora_config(base, **fields))
    return str(caught.value)


def check(base: Base, config: PeftConfig) -> None:
    model = base.skeleton(tiny.SequenceClassification.auto_class, base.model_config(2))
    find_method("lora").check(config, model)


def test_impossible_configs_are_refused_with_what_would_work(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    assert "Did you mean 'lora_alpha'" in refused(base, lora_alhpa=3)
    assert "1 <= r <= 16" in refused(base, r=0)
    assert "found 17" in refused(base, r=17)
    assert "found 20" in refused(base, rank_pattern={"query": 20})
    assert "'querry', which matches none" in refused(base, rank_pattern={"querry": 2, "query": 2})
    assert "lora.alpha_pattern" in refused(base, alpha_pattern={"dense": 2})
    assert "eight" in refused(base, r="eight")
    nothing = refused(base, target_modules=["querry", "value"])
    assert "'querry', which matches none" in nothing
    assert "Did you mean" in nothing
    assert "attention.self.query" in nothing
    assert "output.dense" in refused(base, target_modules=r".*no_such_layer.*")
    assert "lora_dropout" in refused(base, lora_dropout=1.0)
    assert "'none', 'all' or 'lora_only'" in refused(base, bias="some")
    types = refused(base, r=[8], use_rslora="perhaps", unknown=1)
    assert all(f"lora.{name}" in types for name in ("r", "use_rslora", "unknown"))
    both = refused(base, r=99, lora_dropout=-1, target_modules=["value", "nothing"])
    assert "lora_dropout" in both
    assert "nothing" in both
    assert "99" in both


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "pissa"},
        {"lora_bias": True},
        {"trainable_token_indices": [3]},
        {"target_parameters": ["query.weight"]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_variants_that_are_not_there_are_refused_not_ignored(tmp_path: Path, fields: dict[str, Any]) -> None:
    assert next(iter(fields)) in refused(tiny.random_base(tmp_path, "bert"), **fields)


def test_every_field_that_changes_pefts_lora_is_supported_or_refused(tmp_path: Path) -> None:
    """A new release of PEFT with a new field must not make us ignore it."""
    base = tiny.random_base(tmp_path, "bert")
    config = tiny.lora_config(base)
    for name in LoraConfig.__dataclass_fields__:
        if getattr(LoraConfig(), name) is False and name not in ("use_rslora", "use_dora", "fan_in_fan_out"):
            if name == "inference_mode":
                continue
            changed = copy.deepcopy(config)
            setattr(changed, name, True)
            with pytest.raises(UserError, match=name):
                check(base, changed)


def test_wrong_files_are_refused(tmp_path: Path) -> None:
    stack, slot, _ = open_slot(tiny.random_base(tmp_path, "bert"))
    folder = tmp_path / "adapter"
    find_method("lora").save(folder, slot.config, slot.adapter, stack.host, "base")
    weights = folder / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="whole safetensors file"):
        read_tensors(folder)
    weights.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_tensors(folder)
    torch.save(slot.adapter.tensors(), folder / "adapter_model.bin")
    with pytest.raises(UserError, match="pickle"):
        read_tensors(folder)

    tensors = slot.adapter.tensors()
    name = next(iter(tensors))
    with pytest.raises(UserError, match=r"expected shape \(3, 16\), found shape \(4, 16\)"):
        slot.adapter.load({**tensors, name: torch.zeros(4, 16)})
    with pytest.raises(UserError, match="is missing"):
        slot.adapter.load({key: value for key, value in tensors.items() if key != name})
    with pytest.raises(UserError, match="extra is not of this adapter"):
        slot.adapter.load({**tensors, "extra": torch.zeros(1)})
    assert torch.equal(slot.adapter.tensors()[name], tensors[name]), "nothing was taken over"


@pytest.mark.parametrize("layers", [7, [7, 8]])
def test_layers_that_the_base_has_not_are_refused(tmp_path: Path, layers: Any) -> None:
    said = refused(tiny.random_base(tmp_path, "bert"), layers_to_transform=layers)
    assert said.count("expected") == 1
    assert f"layers_to_transform: expected layers that the base has: 0, 1, found {layers}" in said


@pytest.mark.parametrize(
    ("entry", "words"),
    [("nonsense", "matches none"), ("attention.self", "which is a"), ("layer.0", "which is a")],
)
def test_modules_to_save_that_cannot_be_copied_are_refused(tmp_path: Path, entry: str, words: str) -> None:
    base = tiny.random_base(tmp_path, "bert")
    config = tiny.lora_config(base, modules_to_save=[entry])
    skeleton = base.skeleton(SequenceClassification.auto_class, base.model_config(2))
    with pytest.raises(UserError, match=words):
        find_method("lora").check(config, skeleton)


@pytest.mark.parametrize("entry", ["shared", "embed_tokens"])
def test_embeddings_that_share_their_weight_are_not_copied(tmp_path: Path, entry: str) -> None:
    """T5's three embeddings are one weight: PEFT trains copies that part from it, or that nothing reads."""
    said = refused(tiny.random_base(tmp_path, "t5"), modules_to_save=[entry])
    assert f"'{entry}', whose weight is that of transformer." in said
    check(
        tiny.random_base(tmp_path, "llama"),
        LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
    )


def test_roberta_base_with_all_biases_and_layer_norms(tmp_path: Path) -> None:
    """About 420 thousand of 124.6 million, 0.34%: the adapter, the head's biases and its output layer.

    The head's other layer has no pretrained weights either, and is trained and counted as PEFT does.
    """
    path = tmp_path / "roberta-base.json"
    sizes = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
    path.write_text(json.dumps({"model_type": "roberta", **sizes}))
    fields: dict[str, Any] = {"r": 8, "bias": "all", "modules_to_save": ["LayerNorm"]}
    count = count_parameters(path, "lora", fields)
    loaded = count.by_part["base (frozen)"] + count.by_part["head as loaded (frozen)"]
    assert loaded == 124_647_170
    adapter = count.by_part["lora (trained)"]
    assert adapter == 12 * 2 * 8 * 2 * 768 + (12 * (4 * 768 + 3072 + 768)) + 25 * 2 * 768 == 416_256
    assert round(100 * (adapter + 768 + 2 * 769) / loaded, 2) == 0.34
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(str(path)))
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=8,
            bias="all",
            modules_to_save=["LayerNorm"],
            target_modules=["query", "value"],
        )
        theirs = get_peft_model(model, config)
    trained = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    own = [p.numel() for name, p in trained.items() if ".original_module." not in name]
    assert count.trainable == sum(own) == 1_008_386
