"""The stack's law: trials that train together end exactly where each would have ended alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model, set_peft_model_state_dict
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from transformers import AutoModelForSequenceClassification, get_scheduler

import tiny
from tunestack.bases import Base
from tunestack.data.encode import pad
from tunestack.methods.registry import find_method
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.work import Workload


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", "gpt2", "deberta-v2"])
def test_a_stack_of_k_equals_k_solo_runs(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base, test=True)
    trials = tiny.mixed(base)
    solo = tiny.alone(work, trials)
    moved = [solo[trial.key].final for trial in trials]
    assert all(float(max(t.abs().max() for n, t in m.items() if "lora_B" in n)) > 1e-3 for m in moved)
    together = tiny.run(work, trials)
    refilled = tiny.run(work, trials[::-1], slots=3, lanes=2)
    for key, ended in solo.items():
        tiny.assert_same(together[key], ended)
        tiny.assert_same(refilled[key], ended)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_slot_that_comes_later_gets_nothing_of_its_neighbours(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    fields = {"base_dropout": True, "modules_to_save": ["LayerNorm"], "bias": "all"}
    trials = [tiny.trial(base, str(seed), seed, **fields) for seed in (1, 2)]
    encoded = work.encoded("validation", 512)

    def stack() -> tiny.Watched:
        return tiny.Watched(work, base.load_model(work.task.auto_class, work.task.model_config(base)))

    shared, own = stack(), stack()
    first = shared.open(trials[0])
    shared.step([first], lambda event: None)
    before = shared.outputs([first], encoded)
    second = shared.open(trials[1])
    alone = own.open(trials[1])
    torch.testing.assert_close(shared.outputs([second], encoded), own.outputs([alone], encoded))
    torch.testing.assert_close(shared.outputs([second, first], encoded)[1], before[0])


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "gpt2", "opt"])
def test_dropout_masks_depend_on_the_trial_alone(tmp_path: Path, kind: str) -> None:
    """LoRA's own dropout and the base's: the same masks in any company and any padding."""
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, "first", 1, lora_dropout=0.3, base_dropout=True, epochs=1, batch_size=4),
        tiny.trial(base, "second", 2, lora_dropout=0.1, epochs=2, target_modules="all-linear"),
        tiny.trial(base, "third", 3, base_dropout=True, epochs=1.5, batch_size=3),
        tiny.trial(base, "fourth", 4, epochs=1),
    ]
    solo = tiny.alone(work, trials)
    refilled = tiny.run(work, trials, slots=3)
    for key, ended in solo.items():
        tiny.assert_same(refilled[key], ended)
    dry = tiny.run(work, [tiny.trial(base, "first", 1, epochs=1, batch_size=4)])["first"]
    wet = solo["first"].final
    assert any(not torch.allclose(dry.final[name], wet[name], atol=1e-4) for name in wet)


def test_dropout_masks_do_not_move_with_the_padding(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "llama")
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, "short", 1, lora_dropout=0.3, max_length=6, epochs=1),
        tiny.trial(base, "long", 2, lora_dropout=0.3, epochs=1),
    ]
    solo = tiny.alone(work, trials)
    together = tiny.run(work, trials)
    for key, ended in solo.items():
        tiny.assert_same(together[key], ended)


def calls_of_a_layer(base: Base, work: Workload, trials: list[Trial]) -> tuple[int, dict[str, tiny.Ended]]:
    """How often one feed-forward layer computes while the trials train, and what they reach."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    class Counting(tiny.Watched):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            name = next(n for n in self.host.modules if n.endswith(("1.intermediate.dense", "1.mlp.up_proj")))
            self.host.modules[name].register_forward_pre_hook(count)

    ended = tiny.run(work, trials, stack=Counting)
    return calls, ended


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradient_checkpointing_changes_memory_and_time_alone(tmp_path: Path, kind: str) -> None:
    results = {}
    for checkpointing in (False, True):
        base = tiny.random_base(tmp_path, kind, gradient_checkpointing=checkpointing)
        trials = [
            tiny.trial(base, "dropout", 1, lora_dropout=0.2, base_dropout=True, epochs=1),
            tiny.trial(base, "plain", 2, target_modules="all-linear", bias="all", epochs=2),
        ]
        results[checkpointing] = calls_of_a_layer(base, tiny.workload(base), trials)
    steps = results[False][1]["plain"].steps
    assert results[True][0] == results[False][0] + steps, "every training step computes the layer again"
    for key, ended in results[True][1].items():
        tiny.assert_same(ended, results[False][1][key], atol=1e-6)


def test_only_the_trials_own_weights_train_and_the_base_is_given_back(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "roberta")
    work = tiny.workload(base)
    loaded = base.load_model(work.task.auto_class, work.task.model_config(base))
    model = loaded.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encoded = work.encoded("validation", 512)
    batch = pad([(encoded, np.arange(len(encoded)))], 0)
    with torch.no_grad():
        plain = model(**batch).logits

    stack = tiny.Watched(work, loaded)
    forwards = {name: vars(module).get("forward") for name, module in model.named_modules()}
    trials = [
        *tiny.mixed(base),
        tiny.trial(base, "dropout", 5, base_dropout=True, modules_to_save=["LayerNorm"]),
    ]
    slots = [stack.open(trial) for trial in trials]
    starts = [slot.flat.clone() for slot in slots]
    for _ in range(3):
        stack.step(slots, lambda event: None)
    assert all(not torch.equal(start, slot.flat) for start, slot in zip(starts, slots, strict=True))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    for slot in slots:
        stack.close(slot)
    assert {name: vars(module).get("forward") for name, module in model.named_modules()} == forwards
    assert not stack.host.sites
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, plain)


# A plain loop, written with PEFT and PyTorch alone.


def plain_loop(
    model: nn.Module, work: Workload, trial: Trial, batches: Callable[[int], list[np.ndarray]]
) -> list[float]:
    """Fine-tune as transformers' Trainer would, over the batches given; returns the losses of the steps."""
    training = trial.training
    encoded = work.encoded("train", training.max_length)
    labels = encoded.labels
    assert labels is not None
    weights = None
    if training.class_weights is not None:
        values = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
        weights = torch.tensor(values, dtype=torch.float32)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    bare = {
        name
        for name in trained
        if "bias" in name or any(name == f"{norm}.weight" for norm in norms) or "LayerNorm" in name
    }
    groups = [
        {"params": [p for n, p in trained.items() if n not in bare], "weight_decay": training.weight_decay},
        {"params": [p for n, p in trained.items() if n in bare], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, fused=False, foreach=False)
    epochs = int(training.epochs)
    steps = epochs * len(batches(0))
    schedule = get_scheduler(
        training.lr_scheduler_type, optimizer, int(np.ceil(training.warmup_ratio * steps)), steps
    )
    losses = []
    model.eval()
    for epoch in range(epochs):
        for indices in batches(epoch):
            optimizer.zero_grad()
            logits = model(**pad([(encoded, indices)], 0)).logits
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(labels[indices]), weights)
            loss.backward()
            nn.utils.clip_grad_norm_(list(trained.values()), training.max_grad_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return losses


SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 5,
    "learning_rate": 3e-3,
    "weight_decay": 0.1,
    "max_grad_norm": 0.3,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.2,
    "class_weights": "balanced",
}


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_a_trial_equals_a_plain_loop_with_peft(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    one = tiny.trial(base, "one", 7, bias="all", target_modules="all-linear", **SETTINGS)
    others = tiny.mixed(base)[:2]
    start: dict[str, torch.Tensor] = {}
    slots: list[Slot] = []

    class Opening(tiny.Watched):
        def open(self, trial: Trial) -> Slot:
            slot = super().open(trial)
            if trial is one:
                start.update(slot.adapter.tensors())
                slots.append(slot)
            return slot

    ours = tiny.run(work, [others[0], one, others[1]], stack=Opening)["one"]
    model = base.load_model(work.task.auto_class, work.task.model_config(base)).model
    model.set_attn_implementation("eager")
    theirs = get_peft_model(model, slots[0].config)
    set_peft_model_state_dict(theirs, start)
    losses = plain_loop(theirs, work, one, slots[0].batches)
    trained = {
        name.replace(".modules_to_save.default.", ".").replace(".default.", "."): parameter.detach()
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad and ".original_module." not in name
    }
    tiny.assert_close(ours.final, trained, tiny.TOLERANCE)
    epochs = np.split(np.asarray(losses), 2)
    assert [point.train_loss for point in ours.curve] == pytest.approx([e.mean() for e in epochs], abs=1e-4)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_full_fine_tuning_equals_a_plain_loop(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    settings = {**SETTINGS, "learning_rate": 1e-3}
    one = tiny.trial(base, "one", 7, method="full", base_dropout=False, **settings)
    slots: list[Slot] = []
    start: dict[str, torch.Tensor] = {}

    class Opening(tiny.Watched):
        def open(self, trial: Trial) -> Slot:
            slots.append(super().open(trial))
            start.update(slots[0].adapter.tensors())
            return slots[0]

        def close(self, slot: Slot) -> None:
            find_method("full").save(tmp_path / "full", slot.config, slot.adapter, self.host, base.name)
            encoded = work.encoded("validation", 512)
            expected.append(self.outputs([slot], encoded)[0])
            super().close(slot)

    expected: list[torch.Tensor] = []
    ours = tiny.run(work, [one], stack=Opening)["one"]
    theirs = base.load_model(work.task.auto_class, work.task.model_config(base)).model
    theirs.load_state_dict(start)
    theirs.set_attn_implementation("eager")
    plain_loop(theirs.requires_grad_(True), work, one, slots[0].batches)
    tiny.assert_close(ours.final, {n: p.detach() for n, p in theirs.named_parameters()}, tiny.TOLERANCE)

    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "full").eval()
    tiny.assert_close(ours.best, {n: p.detach() for n, p in saved.named_parameters()}, 0.0)
    assert saved.config.id2label == dict(enumerate(tiny.LABELS))
    encoded = work.encoded("validation", 512)
    with torch.no_grad():
        logits = saved(**pad([(encoded, np.arange(len(encoded)))], 0)).logits
    torch.testing.assert_close(logits, expected[0], rtol=1e-5, atol=1e-5)


def test_full_fine_tuning_beside_a_stack_and_with_other_seeds(tmp_path: Path) -> None:
    saved = tiny.save_base(tmp_path, "bert")
    base = tiny.open_base(str(saved))
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, "full-1", 1, method="full", epochs=1, learning_rate=1e-9, base_dropout=True),
        tiny.trial(base, "lora", 1, epochs=1),
        tiny.trial(base, "full-2", 2, method="full", epochs=1, learning_rate=1e-9),
    ]
    ended = tiny.run(work, trials)
    assert set(ended) == {"full-1", "lora", "full-2"}
    first, second = ended["full-1"].final, ended["full-2"].final
    for name, tensor in first.items():
        fresh = name in ("classifier.weight", "bert.pooler.dense.weight")
        assert torch.allclose(tensor, second[name], atol=1e-6) != fresh, name


def test_attention_dropout_is_off_in_any_company(tmp_path: Path) -> None:
    """BLOOM's is a module of its own, whose masks would depend on how long the company's prefixes are."""
    base = tiny.random_base(tmp_path, "bloom", attention_dropout=0.3)
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, "dropped", 1, base_dropout=True),
        tiny.trial(base, "prefixed", 2, method="p-tuning-v2", num_virtual_tokens=5),
    ]
    together, solo = tiny.run(work, trials), tiny.alone(work, trials)
    for trial in trials:
        tiny.assert_same(together[trial.key], solo[trial.key])
    calm = tiny.run(work, [tiny.trial(base, "calm", 1)])["calm"]
    tiny.assert_same(calm, solo["dropped"])
