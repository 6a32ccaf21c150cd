"""Any other method of PEFT as a stack of one: trained by the same loop, saved for plain PEFT, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

import runs
import tiny
from tunestack.bases import Base
from tunestack.comparison.costs import _measure_method
from tunestack.comparison.plan import MethodCandidate, make_plan
from tunestack.config import CompareConfig
from tunestack.data.encode import pad
from tunestack.errors import UserError
from tunestack.methods.base import read_tensors, with_head
from tunestack.methods.registry import METHODS, find_method
from tunestack.methods.through_peft import ThroughPeft
from tunestack.saved import Seat
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack
from tunestack.tasks.classification import SequenceClassification

SMALL: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 20},
    "miss": {"r": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 2},
    "vblora": {"vector_length": 8, "num_vectors": 12},
    "waveft": {"n_frequency": 20},
}
"""Fields that fit 16 features, where PEFT's defaults do not."""

OTHERS = {name: method for name, method in METHODS.items() if isinstance(method, ThroughPeft)}
TRAINED = [name for name, method in OTHERS.items() if not method.unfit]


def open_slot(base: Base, name: str, **fields: Any) -> tuple[Stack, Slot]:
    work = tiny.workload(base)
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)), autocast=True)
    trial = tiny.trial(base, name, 3, method=name, learning_rate=1e-2, **{**SMALL.get(name, {}), **fields})
    return stack, stack.open(trial)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return tiny.random_base(tmp_path_factory.mktemp("base"), "bert")


def test_every_config_of_peft_is_covered_once() -> None:
    classes = [method.config_class for method in METHODS.values()]
    assert set(PEFT_TYPE_TO_CONFIG_MAPPING.values()) <= set(classes)
    ours = [method.config_class for method in METHODS.values() if not isinstance(method, ThroughPeft)]
    assert not set(ours) & {method.config_class for method in OTHERS.values()}
    assert all(name == name.lower() and "_" not in name for name in OTHERS)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.filterwarnings("ignore")
def test_it_trains_and_what_it_saves_is_pefts(tmp_path: Path, base: Base, name: str) -> None:
    stack, slot = open_slot(base, name)
    start, frozen = slot.flat.clone(), {n: p.detach().clone() for n, p in base_parameters(stack)}
    for _ in range(4):
        stack.step([slot], lambda event: None)
    assert slot.failure is None
    for key, parameter in slot.adapter.parameters.items():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all(), key
    assert not torch.equal(start, slot.flat)
    assert all(torch.equal(parameter, frozen[n]) for n, parameter in base_parameters(stack))
    encoded = stack.work.encoded("validation", 512)
    expected = stack.outputs([slot], encoded)[0]

    slot.trial.method.save(tmp_path, slot.config, slot.adapter, stack.host, "base")
    plain = base.load_model(stack.work.task.auto_class, stack.work.task.model_config(base)).model
    batch = pad([(encoded, np.arange(len(encoded)))], 0)
    with torch.no_grad():
        logits = PeftModel.from_pretrained(plain, str(tmp_path)).eval()(**batch).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=2e-5)

    loaded = base.load_model(stack.work.task.auto_class, stack.work.task.model_config(base))
    fresh = Stack(stack.work, loaded, autocast=True)
    adapter = slot.trial.method.attach(slot.trial.method.read_config(tmp_path), fresh.host, 0, seed=9)
    adapter.load(read_tensors(tmp_path))
    torch.testing.assert_close(fresh.outputs([Seat()], encoded)[0], expected, rtol=1e-4, atol=2e-5)


def base_parameters(stack: Stack) -> list[tuple[str, torch.Tensor]]:
    return [(n, p) for n, p in stack.host.model.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize("name", ["adalora", "vera", "loha", "boft", "unilora"])
@pytest.mark.filterwarnings("ignore")
def test_a_seed_decides_the_weights(base: Base, name: str) -> None:
    first, again = open_slot(base, name)[1], open_slot(base, name)[1]
    assert torch.equal(first.flat, again.flat)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert torch.equal(open_slot(base, name)[1].flat, first.flat)
    assert torch.equal(torch.get_rng_state(), before)


def test_adalora_equals_pefts_own_loop(base: Base) -> None:
    """Penalty, importance and pruning, step by step."""
    fields = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 2, "orth_reg_weight": 0.3}
    stack, slot = open_slot(base, "adalora", epochs=2, weight_decay=0, max_grad_norm=0, **fields)
    work, steps = stack.work, slot.total_steps
    config = AdaLoraConfig(
        task_type="SEQ_CLS", total_step=steps, target_modules=slot.config.target_modules, **fields
    )
    plain = base.load_model(work.task.auto_class, work.task.model_config(base)).model
    theirs = get_peft_model(plain, config).eval()
    own = {name.replace(".default", ""): parameter for name, parameter in theirs.named_parameters()}
    pairs = {
        key: own[key if key in own else key.replace("classifier.", "classifier.modules_to_save.")]
        for key in slot.adapter.parameters
    }
    with torch.no_grad():
        for key, parameter in pairs.items():
            parameter.copy_(slot.adapter.parameters[key])
    optimizer = torch.optim.AdamW(list(pairs.values()), lr=1e-2, weight_decay=0)
    encoded = work.encoded("train", 512)
    assert encoded.labels is not None
    for step in range(1, steps + 1):
        indices = slot.next_batch()
        labels = torch.from_numpy(encoded.labels[indices])
        theirs(**pad([(encoded, indices)], 0), labels=labels).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        stack.step([slot], lambda event: None)
        for key, parameter in pairs.items():
            torch.testing.assert_close(slot.adapter.parameters[key], parameter, rtol=1e-4, atol=1e-4)
    pruned = [p for key, p in pairs.items() if key.endswith("lora_E")]
    assert sum(int((p != 0).sum()) for p in pruned) == 2 * len(pruned)
    assert getattr(slot.config, "total_step", None) == steps, "what is saved beside the weights"


def planned(data: Path, folder: Path, methods: list[dict[str, Any]]) -> CompareConfig:
    return CompareConfig(**runs.settings(data, methods=methods, output=str(folder / "run")))


@pytest.mark.filterwarnings("ignore")
def test_a_schedule_longer_than_the_training_is_refused_before_it(tiny_data: Path, tmp_path: Path) -> None:
    methods: list[dict[str, Any]] = [{"method": "adalora", "config": {"tfinal": 10_000}}, {"method": "lora"}]
    with pytest.raises(UserError, match=r"tfinal.*training steps"):
        make_plan(planned(tiny_data, tmp_path, methods))


@pytest.mark.parametrize("name", ["adalora", "lily"])
@pytest.mark.filterwarnings("ignore")
def test_costs_count_as_peft_does(tiny_data: Path, tmp_path: Path, name: str) -> None:
    """Measured at one epoch, where AdaLoRA's schedule would prune at steps out of order."""
    fields = {"adalora": {"tinit": 1, "tfinal": 1}}.get(name, {})
    entry = {"method": name, "config": fields, "training": {"epochs": 1}}
    plan = make_plan(planned(tiny_data, tmp_path, [entry]))
    candidate = plan.candidates[0]
    assert isinstance(candidate, MethodCandidate)
    costs = _measure_method(plan, candidate)
    base = plan.bases[candidate.base]
    loaded = base.load_model(plan.task.auto_class, plan.task.model_config(base))
    theirs = get_peft_model(loaded.model, with_head(candidate.config, loaded.head))
    assert (costs.trainable_parameters, costs.total_parameters) == theirs.get_nb_trainable_parameters()


def test_an_interrupted_adalora_starts_anew(tmp_path: Path, base: Base) -> None:
    """What it knows of its ranks is in no checkpoint."""
    work = tiny.workload(base)
    trial = tiny.trial(base, "one", method="adalora", init_r=4, target_r=2, epochs=2)
    whole = tiny.run(work, [trial])["one"]

    class Interrupted(tiny.Watched):
        def evaluate(self, slots: Any, notify: Any) -> None:
            super().evaluate(slots, notify)
            if slots[0].epoch < 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(work, [trial], checkpoints=tmp_path, stack=Interrupted)
    again = tiny.run(work, [trial], checkpoints=tmp_path)["one"]
    tiny.assert_same(again, whole, atol=1e-6)


def test_its_dropout_is_a_function_of_the_trial(base: Base) -> None:
    work = tiny.workload(base)
    fields = {"method": "adalora", "init_r": 4, "target_r": 2, "epochs": 1}
    wet = tiny.trial(base, "wet", lora_dropout=0.4, **fields)
    first, again = tiny.run(work, [wet])["wet"], tiny.run(work, [wet])["wet"]
    tiny.assert_same(first, again, atol=0)
    dry = tiny.run(work, [tiny.trial(base, "wet", **fields)])["wet"]
    assert any(not torch.allclose(dry.final[n], t, atol=1e-4) for n, t in first.final.items())


def refusal(base: Base, name: str, **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(base, name, fields)
    return str(caught.value)


def check(base: Base, name: str, fields: dict[str, Any]) -> None:
    config = find_method(name).make_config(fields, base.config.model_type, ["classifier"])
    skeleton = base.skeleton(SequenceClassification.auto_class, base.model_config(2))
    find_method(name).check(config, skeleton)


@pytest.mark.parametrize("name", [name for name, method in OTHERS.items() if method.unfit])
def test_what_cannot_train_a_classifier_says_why(base: Base, name: str) -> None:
    told = refusal(base, name)
    assert OTHERS[name].unfit in told
    assert "`tunestack methods`" in told


def test_pefts_own_refusals_come_before_training(base: Base) -> None:
    assert "factor of the input size" in refusal(base, "c3a", block_size=5)
    assert "target_modules may name dense, key, query, value" in refusal(base, "vera", target_modules=["no"])
    assert "acts in training mode alone" in refusal(base, "oft", module_dropout=0.1)
    assert "epochs and data decide it" in refusal(base, "adalora", total_step=100)
    assert "vblora_logits" in refusal(base, "vblora", **SMALL["vblora"], save_only_topk_weights=True), (
        "what PEFT would not save"
    )
    assert "Did you mean 'init_r'" in refusal(base, "adalora", init_rr=3)
