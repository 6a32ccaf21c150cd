"""Blocks computed whole give what their modules give, and leave alone what they cannot do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from task_samples import SAMPLES
from tunestack.bases import frozen
from tunestack.bases.blocks import Linear
from tunestack.methods import whole_blocks
from tunestack.methods.block_layers import Layer, alike
from tunestack.methods.sites import Span
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload

COMPANY: list[dict[str, Any]] = [
    {"r": 3, "lora_dropout": 0.3},
    {"r": 2, "target_modules": "all-linear", "lora_alpha": 5},
    {"r": 5, "target_modules": ["value"], "layers_to_transform": [1]},
    {"r": 4, "target_modules": ["key", "attention.output.dense"], "lora_dropout": 0.2},
    {"r": 1, "target_modules": "all-linear", "lora_dropout": 0.1},
    {"r": 2, "target_modules": ["query", "intermediate.dense"], "layers_to_transform": [0]},
]
"""Trials that share blocks: other ranks, modules, layers, scalings and dropout."""


def opened(
    folder: Path,
    kind: str,
    task: str = "classification",
    in_step: bool = False,
    config: Any = None,
    **options: Any,
) -> tuple[Stack, list[Slot]]:
    """A stack of `COMPANY`, or of those that fit one layer if the model has no more. in_step: of one seed,
    all at the same step, or each at another. config: fields of the model's.
    """
    layers = (config or {}).get("num_hidden_layers", 2)
    company = [one for one in COMPANY if layers > 1 or one.get("layers_to_transform") != [1]]
    base = tiny.open_base(f"random:{tiny.write_config(folder, kind, **(config or {}))}", **options)
    sample = SAMPLES[task]
    work = Workload(base, sample.make(), sample.splits, "")
    loaded = base.load_model(work.task.auto_class, work.task.model_config(base))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # transformers' biases are zero, and hide it where one is forgotten
        for parameter in loaded.model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    stack = Stack(work, loaded)
    slots = [
        stack.open(
            tiny.trial(base, f"{place}", 1, batch_size=3, **fields)
            if in_step
            else tiny.trial(base, f"{place}", place + 1, batch_size=2 + place % 2, **fields)
        )
        for place, fields in enumerate(company)
    ]
    for steps, slot in enumerate(slots):
        slot.progress.step = 0 if in_step else steps % 2
        with torch.no_grad():  # B is zero at the start, and hides what A gets
            noise = torch.randn(slot.flat.shape, generator=torch.Generator().manual_seed(steps))
            slot.flat.add_(noise, alpha=0.1)
    return stack, slots


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the blocks that were computed whole, as they come."""
    names: list[str] = []
    parts = whole_blocks._parts

    def watched(block: Any, *args: Any) -> Any:
        found = parts(block, *args)
        if found is not None:
            names.append(block.prefix.removesuffix("."))
        return found

    monkeypatch.setattr(whole_blocks, "_parts", watched)
    return names


def module_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_blocks, "_parts", lambda *args: None)


def backward(stack: Stack, slots: list[Slot]) -> tuple[list[float], list[Tensor]]:
    return stack._backward(slots), [slot.grad.clone() for slot in slots]


@pytest.mark.parametrize(
    ("kind", "task", "layers"),
    [
        ("bert", "classification", 2),  # the last block goes on with first tokens
        ("roberta", "classification", 2),
        ("electra", "classification", 2),
        ("bert", "classification", 1),  # and is the first one, too
        ("bert", "token-classification", 2),
        ("roberta", "question-answering", 2),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_losses_gradients_and_answers_are_those_of_the_modules(
    tmp_path: Path,
    kind: str,
    task: str,
    layers: int,
    together: bool,
    whole: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropout included: its masks are the same ones."""
    stack, slots = opened(tmp_path, kind, task, config={"num_hidden_layers": layers})
    encoded = stack.work.encoded("validation", 512)
    groups = [slots] if together else [[slot] for slot in slots]
    ours = [backward(stack, group) for group in groups]
    answers = stack.outputs(slots, encoded)
    assert len(set(whole)) == stack.host.model.config.num_hidden_layers
    module_by_module(monkeypatch)
    for group, (losses, gradients) in zip(groups, ours, strict=True):
        expected, theirs = backward(stack, group)
        assert losses == pytest.approx(expected, abs=1e-6)
        for mine, right in zip(gradients, theirs, strict=True):
            assert right.abs().max() > 1e-3
            torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(answers, stack.outputs(slots, encoded), rtol=1e-5, atol=1e-6)


def spans(*ends: int) -> list[Span]:
    return [Span(place, start, stop) for place, (start, stop) in enumerate(itertools.pairwise((0, *ends)))]


def test_rows_are_alike_only_where_all_of_them_are() -> None:
    own, tail = torch.randn(5, 1, 4), torch.randn(3, 1, 4)
    hidden = torch.cat([own, own, own, tail])
    assert alike(hidden, spans(5, 10, 18)) == (3, 5)  # the last one's may be followed by others
    assert alike(hidden, spans(5, 18)) == (2, 5)
    assert alike(hidden, spans(18)) is None
    assert alike(hidden, spans(4, 10, 18)) is None
    assert alike(hidden, spans(5, 9, 18)) is None
    assert alike(hidden, spans(10, 18)) is None
    for changed in range(15):
        other = hidden.clone()
        other[changed, 0, 3] += 1
        assert alike(other, spans(5, 10, 18)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_alike_is_multiplied_once_and_gives_the_same(dtype: torch.dtype) -> None:
    weight = frozen.FrozenWeight(torch.randn(32, 16).to(dtype), torch.randn(32).to(dtype), packs=False)
    own = torch.randn(6, 16).to(dtype)
    x = torch.cat([own, own, own, torch.randn(4, 16).to(dtype)])
    layer = Layer(Linear(weight, {"a": 0}, 32), [], same=(3, 6))
    torch.testing.assert_close(layer.forward(x)[0], weight.forward(x))


def test_trials_of_one_seed_in_step_share_the_first_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(whole_blocks, "alike", lambda *args: found.append(alike(*args)) or found[-1])
    stack, slots = opened(tmp_path, "bert", in_step=True)
    ours = backward(stack, slots)
    assert [None if own is None else own[0] for own in found] == [len(slots)]
    module_by_module(monkeypatch)
    losses, gradients = backward(stack, slots)
    assert ours[0] == pytest.approx(losses, abs=1e-6)
    for mine, right in zip(ours[1], gradients, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not frozen._available(), reason="PyTorch cannot pack bf16 weights here")
@pytest.mark.parametrize("in_step", [False, True])
def test_so_they_are_in_bf16_with_packed_weights(
    tmp_path: Path, in_step: bool, whole: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, slots = opened(tmp_path, "bert", in_step=in_step, dtype="bfloat16")
    stack.outputs(slots, stack.work.encoded("validation", 512))  # what is made once is fit for training, too
    losses, gradients = backward(stack, slots)
    assert whole
    module_by_module(monkeypatch)
    expected, theirs = backward(stack, slots)
    assert losses == pytest.approx(expected, abs=0.02)
    for mine, right in zip(gradients, theirs, strict=True):
        assert torch.nn.functional.cosine_similarity(mine, right, dim=0) > 0.995
        assert mine.norm() == pytest.approx(float(right.norm()), rel=0.05)


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "ia3"},
        {"method": "series"},
        {"method": "layernorm"},
        {"use_dora": True},
        {"bias": "all"},
        {"base_dropout": True},
    ],
    ids=str,
)
def test_where_a_slot_does_anything_else_modules_run(
    tmp_path: Path, fields: dict[str, Any], whole: list[str]
) -> None:
    stack, slots = opened(tmp_path, "bert")
    base = stack.work.base
    alone = backward(stack, slots)
    assert whole
    whole.clear()
    other = stack.open(tiny.trial(base, "other", 9, **fields))
    losses, gradients = backward(stack, [*slots, other])
    assert not whole
    assert losses[:-1] == pytest.approx(alone[0], abs=1e-6)
    for mine, right in zip(gradients[:-1], alone[1], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-6)
    stack.close(other)
    backward(stack, slots)
    assert whole


def test_only_blocks_in_which_it_does_run_module_by_module(tmp_path: Path, whole: list[str]) -> None:
    stack, slots = opened(tmp_path, "bert")
    other = tiny.trial(stack.work.base, "other", 9, use_dora=True, layers_to_transform=[1])
    backward(stack, [*slots, stack.open(other)])
    assert [name.rpartition(".")[2] for name in whole] == ["0"] * len(whole)
    assert whole


def test_the_model_keeps_its_weights_under_their_names(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    loaded = base.load_model(work.task.auto_class, work.task.model_config(base))
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    stack = Stack(work, loaded)
    after = loaded.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    name = "bert.encoder.layer.1.attention.self.key"
    own: Any = stack.host.pristine(name)
    assert torch.equal(own.weight, before[f"{name}.weight"])
    assert own.weight.untyped_storage().nbytes() == own.weight.nbytes


def test_a_second_stack_on_a_model_is_not_taken_for_the_first(tmp_path: Path, whole: list[str]) -> None:
    """Nobody does so here, but a wrong answer would be silent."""
    base = tiny.random_base(tmp_path, "bert")
    sample = SAMPLES["token-classification"]
    work = Workload(base, sample.make(), sample.splits, "")
    loaded = base.load_model(work.task.auto_class, work.task.model_config(base))
    found = []
    for _ in range(2):
        stack = Stack(work, loaded)
        slot = stack.open(tiny.trial(base, "same", 1, init_lora_weights=False))
        losses, gradients = backward(stack, [slot])
        found.append((losses, gradients, stack.outputs([slot], work.encoded("validation", 512))))
        stack.close(slot)
    assert whole
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[0][1:], found[1][1:], rtol=1e-4, atol=1e-6)


def test_blocks_whose_activations_are_computed_again_are_left_alone(tmp_path: Path, whole: list[str]) -> None:
    stack, slots = opened(tmp_path, "bert", gradient_checkpointing=True)
    backward(stack, slots)
    assert not whole


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "by column": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "a slice": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "every other": lambda x: torch.stack([x, x], -1).flatten(-2)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tensors_may_lie_in_memory_as_they_like(
    tmp_path: Path, layout: Callable[[Tensor], Tensor], whole: list[str]
) -> None:
    """What blocks get from the modules around them, and what comes back from these."""
    stack, slots = opened(tmp_path, "bert")
    expected = backward(stack, slots)
    model: Any = stack.host.model
    for module in model.bert.encoder.layer:
        module.register_forward_pre_hook(lambda module, args: (layout(args[0]), *args[1:]))
        module.register_full_backward_pre_hook(lambda module, grads: tuple(map(layout, grads)))
    whole.clear()
    losses, gradients = backward(stack, slots)
    assert whole
    assert losses == pytest.approx(expected[0], abs=1e-6)
    for mine, right in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-7)
