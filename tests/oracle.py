"""PEFT as the oracle: the same base, config and weights there, to compare outputs, gradients and files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, get_peft_model, set_peft_model_state_dict
from torch import nn

import fresh
import tiny
from tunestack.bases import Base
from tunestack.data.encode import pad
from tunestack.methods.registry import find_method
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack


def calm_base(folder: Path, kind: str, **settings: Any) -> Base:
    """A tiny base whose outputs are well conditioned.

    T5 does not divide its attention's scores by their number: drawn as wide as the others, rounding errors
    grow a hundredfold on their way.
    """
    narrow = {"initializer_factor": 0.7} if kind in ("t5", "mt5") else {}
    return tiny.random_base(folder, kind, **narrow, **settings)


def open_slot(
    base: Base, seed: int = 3, method: str = "lora", **fields: Any
) -> tuple[Stack, Slot, nn.Module]:
    """A stack with one slot, and the base's plain model."""
    work = tiny.workload(base)
    loaded = base.load_model(work.task.auto_class, work.task.model_config(base))
    plain = base.load_model(work.task.auto_class, work.task.model_config(base)).model
    plain.set_attn_implementation("eager")
    stack = Stack(work, loaded)
    trial = tiny.trial(base, "one", seed, method, batch_size=4, max_grad_norm=0, **fields)
    return stack, stack.open(trial), plain


def disturb(slot: Slot) -> None:
    """Move every weight, so that nothing is zero or one."""
    generator = torch.Generator().manual_seed(9)
    slot.flat.add_(torch.randn(slot.flat.shape, generator=generator), alpha=0.05)


def save(folder: Path, stack: Stack, slot: Slot) -> None:
    """Write the slot's adapter as its method does."""
    slot.trial.method.save(folder, slot.config, slot.adapter, stack.host, stack.work.base.name)


def reference(folder: Path, stack: Stack, slot: Slot, plain: nn.Module) -> peft.PeftModel:
    """PEFT's model with the config that is saved and the slot's weights, as if to go on training there."""
    save(folder, stack, slot)
    config = PeftConfig.from_pretrained(str(folder))
    config.inference_mode, config.base_model_name_or_path = False, None
    model = get_peft_model(copy.deepcopy(plain), config)
    loaded = set_peft_model_state_dict(model, slot.adapter.tensors())
    assert not loaded.unexpected_keys
    return model.eval()


def saved_name(name: str) -> str:
    """The name that PEFT saves a parameter under."""
    name = name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")
    return name.replace(".lora_magnitude_vector.weight", ".lora_magnitude_vector")


def unused(model: nn.Module) -> set[str]:
    """Parameters that PEFT marks as trained with bias="all" although nothing uses them."""
    return {name for name, _ in model.named_parameters() if ".original_module." in name}


def batch_of(slot: Slot, stack: Stack, side: str = "right") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The slot's next batch, and its labels."""
    encoded = stack.work.encoded("train", slot.trial.training.max_length)
    indices = slot.next_batch()
    assert encoded.labels is not None
    batch = pad([(encoded, indices)], stack.work.base.tokenizer.pad_token_id, side)
    return batch, torch.from_numpy(encoded.labels[indices])


def logits_of(stack: Stack, slot: Slot, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the slot answers."""
    stack.host.rows.set([slot.span(0, len(batch["input_ids"]), training=False)])
    with torch.no_grad():
        logits: torch.Tensor = stack.host.model(**batch).logits
    return logits


def assert_equals_peft(
    folder: Path, base: Base, method: str = "lora", merge: bool = False, **fields: Any
) -> None:
    """Outputs, loss, all gradients and which parameters train are PEFT's; merged, it answers the same."""
    stack, slot, plain = open_slot(base, method=method, **fields)
    disturb(slot)
    theirs = reference(folder / "adapter", stack, slot, plain)
    batch, labels = batch_of(slot, stack)
    expected = theirs(**batch).logits
    expected_loss = nn.functional.cross_entropy(expected, labels)
    expected_loss.backward()

    loss = stack._backward([slot])[0]
    logits = logits_of(stack, slot, batch)
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    assert loss == pytest.approx(expected_loss.item(), abs=1e-5)
    gradients = {
        saved_name(name): parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad and name not in unused(theirs)
    }
    ours = {name: parameter.grad for name, parameter in slot.adapter.parameters.items()}
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-3
    tiny.assert_close(ours, gradients)
    if merge:
        merged = slot.trial.method.merge(folder / "adapter", copy.deepcopy(plain))
        assert type(merged) is type(plain)
        assert {name for name, _ in merged.named_parameters()} == {
            name for name, _ in plain.named_parameters()
        }
        with torch.no_grad():
            torch.testing.assert_close(merged(**batch).logits, logits, rtol=1e-4, atol=1e-5)


def assert_bf16_comes_close(folder: Path, kind: str, method: str, **fields: Any) -> None:
    """On a base in bf16, weights stay fp32, and outputs and gradients are fp32's but for rounding."""
    results = []
    path = tiny.write_config(folder, kind)
    for dtype in ("float32", "bfloat16"):
        base = tiny.open_base(f"random:{path}", dtype=dtype)
        stack, slot, _ = open_slot(base, method=method, **fields)
        if results:
            slot.flat.copy_(results[0][2])
        else:
            disturb(slot)
        batch, _ = batch_of(slot, stack)
        logits = logits_of(stack, slot, batch).float()
        stack._backward([slot])
        assert slot.flat.dtype == slot.grad.dtype == torch.float32
        results.append((logits, slot.grad.clone(), slot.flat.clone()))
    (exact, gradient, _), (rounded, theirs, _) = results
    assert float((exact - rounded).abs().max()) < 0.1 * max(1.0, float(exact.abs().max()))
    assert float(nn.functional.cosine_similarity(gradient, theirs, dim=0)) > 0.99


LOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
results = {}
for name, place in json.load(open(sys.argv[1])).items():
    torch.manual_seed(123)
    model = AutoModelForSequenceClassification.from_pretrained(
        place["base"], num_labels=2, dtype="float32", pad_token_id=0
    )
    model = PeftModel.from_pretrained(model, place["adapter"]).eval()
    inputs = {name: torch.tensor(rows) for name, rows in place["batch"].items()}
    with torch.no_grad():
        results[name] = model(**inputs).logits.tolist()
assert "tunestack" not in sys.modules
json.dump(results, open(sys.argv[2], "w"))
"""


def assert_loads_in_plain_peft(folder: Path, cases: list[tuple[str, bool, str, dict[str, Any]]]) -> None:
    """What is saved gives the same logits in PEFT, in a fresh process without us, and here when read again.

    cases: the kind of base, whether its checkpoint has a head, the method, its fields.
    """
    places, expected = {}, {}
    for index, (kind, head, method, fields) in enumerate(cases):
        name = f"{index}-{kind}-{method}"
        place = folder / name
        place.mkdir()
        saved = tiny.save_base(place, kind, head=head)
        stack, slot, _ = open_slot(tiny.open_base(str(saved)), seed=index, method=method, **fields)
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
    asked, answered = folder / "asked.json", folder / "answered.json"
    asked.write_text(json.dumps(places))
    done = fresh.python(LOAD, asked, answered)
    assert done.code == 0, done.err
    for name, logits in json.loads(answered.read_text()).items():
        torch.testing.assert_close(
            torch.tensor(logits),
            expected[name],
            rtol=1e-5,
            atol=1e-5,
            msg=lambda told, name=name: name + told,
        )


def assert_reads_back(folder: Path, stack: Stack, slot: Slot) -> None:
    """The saved adapter, attached for use, has the same weights and says which base it is for."""
    from tunestack.methods.base import read_tensors

    method = find_method(slot.trial.method.name)
    config = method.read_config(folder)
    assert config.base_model_name_or_path == stack.work.base.name
    adapter = method.attach(config, stack.host, 99, seed=0)
    adapter.load(read_tensors(folder))
    tiny.assert_close(adapter.tensors(), slot.adapter.tensors(), 0.0)
    stack.host.remove(99)
