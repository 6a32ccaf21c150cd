"""Bottleneck adapters inside PEFT, transformers and its Trainer, as they are used there."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    PeftConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainingArguments

import tiny
from oracle import (
    assert_equals_peft,
    assert_reads_back,
    batch_of,
    calm_base,
    disturb,
    logits_of,
    open_slot,
    save,
)
from tunestack import BottleneckConfig
from tunestack.errors import UserError
from tunestack.methods.base import read_tensors
from tunestack.plugin.tuner import BottleneckLayer

PARALLEL_EVERYWHERE = {"after": ["attention", "ffn"], "scaling": "learned", "non_linearity": "tanh"}


@pytest.mark.parametrize("kind", sorted(tiny.CONFIGS))
@pytest.mark.parametrize(
    ("method", "fields"),
    [("series", {"scaling": "learned"}), ("parallel", PARALLEL_EVERYWHERE)],
    ids=["series", "parallel"],
)
def test_the_plugin_equals_the_stack(tmp_path: Path, kind: str, method: str, fields: dict[str, Any]) -> None:
    assert_equals_peft(tmp_path, calm_base(tmp_path, kind), method, bottleneck_size=3, **fields)


@pytest.mark.parametrize("method", ["series", "parallel"])
@pytest.mark.parametrize(
    ("kind", "target_modules"),
    [
        ("bert", ["query", "output.dense"]),
        ("bert", r".*layer\.1\..*(query|intermediate\.dense)"),
        ("llama", "all-linear"),
        ("gpt2", ["c_attn", "c_fc"]),
        ("bloom", "all-linear"),
        ("t5", ["wi", "o"]),
    ],
)
def test_single_linears_equal_the_stacks(tmp_path: Path, kind: str, method: str, target_modules: Any) -> None:
    """Features in and out may differ: the adapter has those of its layer."""
    base = calm_base(tmp_path, kind)
    assert_equals_peft(tmp_path, base, method, target_modules=target_modules, reduction_factor=4.5)


def tiny_model(kind: str = "bert", seed: int = 1, **fields: Any) -> nn.Module:
    config = AutoConfig.for_model(**{**tiny.CONFIGS[kind], **fields}, num_labels=2)
    config.pad_token_id = 0
    torch.manual_seed(seed)
    model: nn.Module = AutoModelForSequenceClassification.from_config(config).eval()
    return model


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(3, 100, (3, 6), generator=generator)
    ids[:, 5], ids[1, 3:] = 2, torch.tensor([2, 0, 0])  # T5 classifies what stands at the end of the text
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@torch.no_grad()
def answers(model: Any) -> Tensor:
    logits: Tensor = model.eval()(**inputs()).logits
    return logits


def wide_awake(model: nn.Module, seed: int = 5) -> None:
    """Move every weight that trains, so that nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


CONFIGS = {
    "series": {"bottleneck_size": 3, "scaling": "learned"},
    "parallel": {"placement": "parallel", "bottleneck_size": 4},
    "single": {"placement": "parallel", "bottleneck_size": 2, "target_modules": ["query", "value"]},
}


def config(name: str, **fields: Any) -> BottleneckConfig:
    return BottleneckConfig(task_type=TaskType.SEQ_CLS, **{**CONFIGS[name], **fields})


# Saved and loaded.


@pytest.mark.parametrize("name", list(CONFIGS))
def test_what_peft_saves_loads_in_peft_and_in_the_stack(tmp_path: Path, name: str) -> None:
    folder = tiny.save_base(tmp_path, "bert", head=True)
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder), config(name))
    wide_awake(model)
    expected = answers(model)
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(folder), tmp_path / "adapter"
    )
    assert torch.equal(answers(again), expected)
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert torch.equal(
        answers(AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")), expected
    )
    small = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(folder),
        tmp_path / "adapter",
        low_cpu_mem_usage=True,
    )
    assert torch.equal(answers(small), expected)

    method = "series" if name == "series" else "parallel"
    fields = {key: value for key, value in CONFIGS[name].items() if key != "placement"}
    stack, slot, _ = open_slot(tiny.open_base(str(folder)), method=method, **fields)
    slot.adapter.load(read_tensors(tmp_path / "adapter"))
    torch.testing.assert_close(logits_of(stack, slot, inputs()), expected, rtol=1e-5, atol=1e-5)


ORDERS = """
import os, sys, traceback
import accelerate, torch, transformers.modeling_utils  # what takes long, once for all that follow
assert "peft" not in sys.modules
CHECK = '''
import pickle, peft, tunestack
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
kind = peft.PeftType.BOTTLENECK
assert kind is peft.PeftType("BOTTLENECK") is pickle.loads(pickle.dumps(kind))
assert kind == "BOTTLENECK" and kind in list(peft.PeftType) and kind in PEFT_TYPE_TO_TUNER_MAPPING
assert tunestack.BottleneckConfig().peft_type is kind
assert PEFT_TYPE_TO_CONFIG_MAPPING[kind] is tunestack.BottleneckConfig
assert not any("tunestack" in type(finder).__module__ for finder in sys.meta_path)
'''
for first in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            exec(first)
            exec(CHECK)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, first
"""


LOAD = """
import tunestack
assert "peft" not in sys.modules
import importlib.util
assert importlib.util.find_spec("peft") is not None  # others ask whether it exists
import json
from transformers import AutoModelForSequenceClassification
from peft import PeftModel
results = {}
for name, place in json.load(open(asked)).items():
    torch.manual_seed(123)
    model = AutoModelForSequenceClassification.from_pretrained(
        place["base"], num_labels=2, dtype="float32", pad_token_id=0
    )
    model = PeftModel.from_pretrained(model, place["adapter"]).eval()
    inputs = {name: torch.tensor(rows) for name, rows in place["batch"].items()}
    with torch.no_grad():
        results[name] = model(**inputs).logits.tolist()
assert "tunestack.api" not in sys.modules and "tunestack.methods.registry" not in sys.modules
json.dump(results, open(answered, "w"))
"""


def test_whatever_comes_first_it_registers_and_what_the_stack_saves_loads_in_peft(tmp_path: Path) -> None:
    """In fresh processes."""
    cases: dict[str, tuple[str, bool, str, dict[str, Any]]] = {
        "bert": ("bert", False, "series", {"scaling": "learned"}),
        "bert with a head": ("bert", True, "parallel", {"modules_to_save": ["pooler"]}),
        "distilbert": ("distilbert", False, "parallel", {"after": ["attention", "ffn"]}),
        "llama": ("llama", True, "parallel", {"target_modules": ["up_proj", "v_proj"], "scaling": 0.5}),
        "gpt2": ("gpt2", False, "series", {"after": "ffn", "non_linearity": "relu"}),
        "bloom": ("bloom", False, "parallel", {"init_weights": "bert"}),
    }
    places, expected = {}, {}
    for name, (kind, head, method, fields) in cases.items():
        place = tmp_path / name.replace(" ", "-")
        place.mkdir()
        saved = tiny.save_base(place, kind, head=head)
        stack, slot, _ = open_slot(tiny.open_base(str(saved)), method=method, bottleneck_size=3, **fields)
        disturb(slot)
        save(place / "adapter", stack, slot)
        batch, _ = batch_of(slot, stack)
        expected[name] = logits_of(stack, slot, batch)
        places[name] = {
            "base": str(saved),
            "adapter": str(place / "adapter"),
            "batch": {key: tensor.tolist() for key, tensor in batch.items()},
        }
        assert_reads_back(place / "adapter", stack, slot)
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(places))
    orders = (
        "import tunestack",
        "import peft; assert 'BOTTLENECK' not in peft.PeftType.__members__",
        "from tunestack import BottleneckConfig",
        "import tunestack.plugin.tuner",
        "import tunestack.methods.registry",
        f"asked, answered = {str(asked)!r}, {str(answered)!r}\n{LOAD}",
    )
    done = subprocess.run(
        [sys.executable, "-c", ORDERS, *orders], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    for name, logits in json.loads(answered.read_text()).items():
        torch.testing.assert_close(torch.tensor(logits), expected[name], rtol=1e-5, atol=1e-5)


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    for name in CONFIGS:
        before = config(name, adapter_dropout=0.1)
        before.save_pretrained(tmp_path)
        assert PeftConfig.from_pretrained(tmp_path) == before


# In one model.


def test_two_adapters_take_turns_and_leave_the_base_as_it_was() -> None:
    plain = tiny_model()
    base = answers(plain)
    alone = {}
    for seed, name in enumerate(CONFIGS):
        model = get_peft_model(copy.deepcopy(plain), config(name))
        wide_awake(model, seed)
        alone[name] = (answers(model), get_peft_model_state_dict(model))
    model = get_peft_model(plain, config("series"), adapter_name="series")
    for name in ("parallel", "single"):
        model.add_adapter(name, config(name))
    for name, (_, weights) in alone.items():
        model.set_adapter(name)
        torch.nn.Module.load_state_dict(model, {to(key, name): t for key, t in weights.items()}, strict=False)
    for name, (expected, weights) in alone.items():
        model.set_adapter(name)
        assert torch.equal(answers(model), expected)
        assert set(get_peft_model_state_dict(model, adapter_name=name)) == set(weights)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert {n for n in trained if "bottleneck" in n} == {
            to(key, name) for key in weights if "bottleneck" in key
        }
    with model.disable_adapter():
        torch.testing.assert_close(answers(model), base)
    model.delete_adapter("parallel")
    model.set_adapter("single")
    assert torch.equal(answers(model), alone["single"][0])
    again = model.unload()
    assert not any(isinstance(module, BottleneckLayer) for module in again.modules())
    assert not any(module._forward_pre_hooks for module in again.modules())


def to(key: str, adapter: str) -> str:
    """The name of a saved tensor in the model."""
    if "bottleneck_scaling" in key:
        return f"{key}.{adapter}"
    start, _, end = key.rpartition(".")
    return f"{start}.{adapter}.{end}" if "bottleneck" in key else f"{start}.modules_to_save.{adapter}.{end}"


def test_adapters_that_are_active_together_add_up() -> None:
    """In fp64: the change of the sum is the sum of the changes, for a layer's two parallel adapters."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 6)).double()
    expected = model(torch.ones(2, 5, dtype=torch.float64))
    wrapped = get_peft_model(model, BottleneckConfig(**CONFIGS["single"] | {"target_modules": ["0"]}))
    wrapped.add_adapter(
        "other", BottleneckConfig(bottleneck_size=3, target_modules=["0"], non_linearity="gelu")
    )
    wrapped.base_model.set_adapter(["default", "other"])
    wide_awake(wrapped)
    x = torch.ones(2, 5, dtype=torch.float64)
    layer = wrapped.base_model.model[0]
    total = expected
    for name, source, f in (("default", x, nn.functional.relu), ("other", expected, nn.functional.gelu)):
        update = layer.bottleneck_up[name](f(layer.bottleneck_down[name](source)))
        total = total + (4.0 if name == "default" else 1.0) * update
    torch.testing.assert_close(wrapped(x), total, rtol=1e-12, atol=1e-12)


def test_adapters_by_row_are_refused() -> None:
    model = get_peft_model(tiny_model(), config("series"))
    model.add_adapter("other", config("series"))
    with pytest.raises(UserError, match=r"adapter_names: expected .* Choose one with set_adapter"):
        model.eval()(**inputs(), adapter_names=["default", "other", "__base__"])
    assert answers(model).shape == (3, 2)


def test_merging_is_refused_and_says_what_merges() -> None:
    model = get_peft_model(tiny_model(), config("series"))
    wide_awake(model)
    before = answers(model)
    for merge in (
        model.merge_and_unload,
        model.merge_adapter,
        model.base_model.model.bert.encoder.layer[0].output.dense.merge,
    ):
        with pytest.raises(UserError, match=r"non-linearity.*LoRA"):
            merge()
    assert torch.equal(answers(model), before), "nothing has changed"


def test_a_copy_of_the_model_is_its_own() -> None:
    model = get_peft_model(tiny_model(), config("parallel"))
    wide_awake(model)
    before = answers(model)
    twin = copy.deepcopy(model)
    assert torch.equal(answers(twin), before)
    wide_awake(twin)
    assert not torch.equal(answers(twin), before)
    assert torch.equal(answers(model), before)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind: str, reentrant: bool) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = get_peft_model(tiny_model(kind), config("parallel", **PARALLEL_EVERYWHERE))
        wide_awake(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model(**inputs()).logits.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        layers = [module for module in model.modules() if isinstance(module, BottleneckLayer)]
        assert layers
        assert all(layer._kept is None for layer in layers), "activations outlive their use"
    assert all(gradient is not None for gradient in gradients[0].values())
    tiny.assert_close(*gradients)


def test_a_bf16_base_has_fp32_adapters() -> None:
    model = get_peft_model(tiny_model().bfloat16(), config("parallel"))
    own = [p for n, p in model.named_parameters() if "bottleneck" in n]
    assert own
    assert all(parameter.dtype == torch.float32 for parameter in own)
    exact = get_peft_model(tiny_model(), config("parallel"))
    wide_awake(model)
    wide_awake(exact)
    assert answers(model).isfinite().all()
    torch.testing.assert_close(answers(model).float(), answers(exact), rtol=0.1, atol=0.1)


# Elsewhere.


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Texts whose first token says their label."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = [10 + index % 2, *range(20 + index % 7, 24 + index % 7)]
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": index % 2}


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    return TrainingArguments(
        str(folder),
        eval_strategy="epoch",
        save_strategy="epoch",
        per_device_train_batch_size=8,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        seed=1,
        **fields,
    )


@pytest.mark.parametrize("name", ["series", "parallel"])
def test_transformers_trainer_trains_it_and_restores_the_best_epoch(tmp_path: Path, name: str) -> None:
    model = get_peft_model(tiny_model(intermediate_size=24), config(name))
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    start = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    settings = {"learning_rate": 3e-2, "num_train_epochs": 3, "load_best_model_at_end": True}
    trainer = Trainer(model, arguments(tmp_path, **settings), train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all(not torch.equal(p, start[n]) for n, p in model.named_parameters() if n in start)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(losses) < 0.5 < losses[0] + 0.2
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    best = PeftModel.from_pretrained(tiny_model(intermediate_size=24), trainer.state.best_model_checkpoint)
    torch.testing.assert_close(answers(best), answers(model))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_transformers_own_adapters(tmp_path: Path, name: str) -> None:
    folder = tiny.save_base(tmp_path, "bert", head=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    base = answers(model)
    model.add_adapter(config(name), adapter_name="mine")
    wide_awake(model)
    expected = answers(model)
    assert not torch.allclose(expected, base)
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    model.disable_adapters()
    torch.testing.assert_close(answers(model), base)
    model.enable_adapters()
    assert torch.equal(answers(model), expected)

    again = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    again.load_adapter(str(tmp_path / "adapter"))
    torch.testing.assert_close(answers(again), expected)
    direct = AutoModelForSequenceClassification.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(answers(direct), expected)


# Bad input.


def test_what_cannot_work_is_refused_with_what_would() -> None:
    with pytest.raises(UserError, match=r"'dummy'|target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), BottleneckConfig())
    with pytest.raises(UserError, match="linear layers, found LayerNorm"):
        get_peft_model(tiny_model(), config("single", target_modules=["LayerNorm"]))
    with pytest.raises(UserError, match=r"smaller one, found 99.*at most 16"):
        get_peft_model(tiny_model(), BottleneckConfig(reduction_factor=99))
    with pytest.raises(ValueError, match="No modules were targeted"):
        get_peft_model(tiny_model(), config("single", target_modules=["nothing"]))
