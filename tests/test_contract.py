"""What every family promises on every architecture: gradients, company, starting points, files."""

from __future__ import annotations

import copy
import dataclasses
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor

import fresh
import tiny
from families import FAMILIES, PEFT_CANNOT, Family
from tunestack.bases import Base
from tunestack.choice import Description
from tunestack.data.encode import pad
from tunestack.errors import UserError
from tunestack.methods.base import ADAPTER_CONFIG, PEFT_PREFIX, PROMPT_PREFIX, read_tensors
from tunestack.saved import Seat
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload

KINDS = list(tiny.CONFIGS)
STILL = {"learning_rate": 1e-30, "weight_decay": 0, "max_grad_norm": 0}
"""Steps that move nothing, so that their gradients can be looked at in peace."""

cells = pytest.mark.parametrize(
    ("kind", "family"),
    [(kind, family) for kind in KINDS for family in FAMILIES],
    ids=lambda value: getattr(value, "name", value),
)


@dataclasses.dataclass
class Seen:
    """What one slot did: alone, in company, with recomputed blocks, and before anything moved its weights."""

    trial: Trial
    start: Tensor
    start_of_base: Tensor
    together: Tensor
    alone: Tensor
    loss_together: float
    loss_alone: float
    grads_together: dict[str, Tensor]
    grads_alone: dict[str, Tensor]
    grads_recomputed: dict[str, Tensor] | None
    loaded: Tensor
    in_peft: Tensor | str | None


@dataclasses.dataclass
class Bench:
    """All families on one architecture. refused: by family, what was said. seen: by family, of both sizes."""

    refused: dict[str, str]
    seen: dict[str, list[Seen]]
    dead: set[str]
    base_is_clean: bool


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    benches: dict[str, Bench | str] = {}

    def on(kind: str) -> Bench:
        if kind not in benches:
            try:
                benches[kind] = make_bench(kind, tmp_path_factory.mktemp(kind))
            except Exception:
                benches[kind] = traceback.format_exc()
        made = benches[kind]
        if isinstance(made, str):
            pytest.fail(made, pytrace=False)
        return made

    return on


def make_bench(kind: str, folder: Path) -> Bench:
    """Open every family in both sizes; everything that can be shared is done once."""
    base = open_base(folder, kind)
    work = tiny.workload(base, rows=12)
    trials, refused = make_trials(base, work)
    stack, other = open_stack(work), open_stack(work)
    recomputing = open_stack(
        dataclasses.replace(work, base=open_base(folder, kind, gradient_checkpointing=True))
    )
    plain = base.load_model(*of(work)).model
    forwards = {name for name, module in stack.host.modules.items() if "forward" in vars(module)}
    shared = [(family, trial) for family, trial in trials if trial.method.stacks]
    slots = {trial.key: stack.open(trial) for _, trial in shared}
    starts = dict(zip(slots, logits_of(stack, list(slots.values())), strict=True))
    for slot in slots.values():
        disturb(slot)
    together = dict(zip(slots, logits_of(stack, list(slots.values())), strict=True))
    stack.step(list(slots.values()), lambda event: None)
    again = {trial.key: recomputing.open(trial) for _, trial in shared}
    for key, slot in again.items():
        slot.flat.copy_(slots[key].flat)
    recomputing.step(list(again.values()), lambda event: None)

    seen: dict[str, list[Seen]] = {}
    for family, trial in trials:
        own = other if trial.method.stacks else open_stack(work, alone=True)
        slot = own.open(trial)
        start = logits_of(own, [slot])[0]
        start_of_base = base_with_head(plain, slot, own)
        if trial.method.stacks:
            slot.flat.copy_(slots[trial.key].flat)
        else:
            disturb(slot)
        own.step([slot], lambda event: None)
        alone = logits_of(own, [slot])[0]  # after the step, which may prune
        mine = slots.get(trial.key, slot)
        place = folder / trial.key
        trial.method.save(place, slot.config, slot.adapter, own.host, base.name)
        own.close(slot)
        seen.setdefault(family.name, []).append(
            Seen(
                trial,
                starts.get(trial.key, start),
                start_of_base,
                together.get(trial.key, alone),
                alone,
                mine.progress.loss_sum,
                slot.progress.loss_sum,
                gradients(mine),
                gradients(slot),
                gradients(again[trial.key]) if trial.key in again else None,
                load_again(work, trial, place, other),
                load_in_peft(plain, work, place),
            )
        )
    for slot in slots.values():
        stack.close(slot)
    still = {name for name, module in stack.host.modules.items() if "forward" in vars(module)}
    state = plain.state_dict()
    clean = (
        still == forwards
        and not stack.host.sites
        and not any(parameter.grad is not None for parameter in stack.host.model.parameters())
        and all(torch.equal(value, state[name]) for name, value in stack.host.model.state_dict().items())
    )
    return Bench(refused, seen, dead_parameters(plain, work), clean)


def of(work: Workload) -> tuple[Any, Any]:
    return work.task.auto_class, work.task.model_config(work.base)


def open_stack(work: Workload, alone: bool = False) -> Stack:
    return Stack(work, work.base.load_model(*of(work)), autocast=alone)


def open_base(folder: Path, kind: str, **settings: Any) -> Base:
    """A tiny base; T5s with narrower weights than elsewhere: wide ones amplify rounding a thousandfold."""
    fields = {"initializer_factor": 1.0} if "initializer_factor" in tiny.CONFIGS[kind] else {}
    return tiny.random_base(folder, kind, **fields, **settings)


def make_trials(base: Base, work: Workload) -> tuple[list[tuple[Family, Trial]], dict[str, str]]:
    """The trials that this architecture takes, short texts beside long ones, and what is said of others."""
    skeleton = base.skeleton(work.task.auto_class, work.task.model_config(base))
    trials: list[tuple[Family, Trial]] = []
    refused: dict[str, str] = {}
    for family in FAMILIES:
        for index, fields in enumerate(family.sizes):
            settings = {"batch_size": 2 + index, "max_length": 512 if index else 7, "class_weights": None}
            try:
                made = tiny.trial(
                    base,
                    f"{family.name}-{index}",
                    1 + index,
                    method=family.name,
                    **{**STILL, **settings, **fields},
                )
                family.method.check(made.config, skeleton)
            except UserError as error:
                refused[family.name] = str(error)
            else:
                trials.append((family, made))
    return trials, refused


def disturb(slot: Slot) -> None:
    """Move every weight, so that nothing is zero."""
    generator = torch.Generator().manual_seed(slot.trial.seed)
    slot.flat.add_(torch.randn(slot.flat.shape, generator=generator), alpha=0.1)


def gradients(slot: Slot) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in slot.adapter.parameters.items()}


def logits_of(stack: Stack, slots: list[Any]) -> Tensor:
    return stack.outputs(slots, stack.work.encoded("validation", 512))


def whole_batch(work: Workload) -> dict[str, Tensor]:
    encoded = work.encoded("validation", 512)
    return pad([(encoded, np.arange(len(encoded)))], work.base.tokenizer.pad_token_id)


@torch.no_grad()
def base_with_head(plain: torch.nn.Module, slot: Slot, stack: Stack) -> Tensor:
    """The unchanged model's logits, with the head that the slot starts with."""
    named = {
        name.removeprefix(PEFT_PREFIX).removeprefix(PROMPT_PREFIX): tensor
        for name, tensor in slot.adapter.tensors().items()
    }
    head = {
        name: tensor
        for name, tensor in named.items()
        if any(name.startswith(f"{part}.") for part in stack.host.head)
    }
    assert head
    result: Tensor = torch.func.functional_call(plain, head, kwargs=whole_batch(stack.work)).logits
    return result


def dead_parameters(plain: torch.nn.Module, work: Workload) -> set[str]:
    """Parameters of the plain model that its output does not depend on."""
    plain.requires_grad_(True)
    plain(**whole_batch(work)).logits.square().sum().backward()
    return {
        name
        for name, parameter in plain.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }


def load_again(work: Workload, trial: Trial, folder: Path, clean: Stack) -> Tensor:
    """The logits of what was saved, in a base without any slots."""
    method = trial.method
    if method.saves_whole_model:
        model = work.task.auto_class.from_pretrained(folder).eval()
        with torch.no_grad():
            result: Tensor = model(**whole_batch(work)).logits
        return result
    stack = clean if method.stacks else open_stack(work, alone=True)
    adapter = method.attach(method.read_config(folder), stack.host, 99, seed=0)
    adapter.load(read_tensors(folder))
    logits = logits_of(stack, [Seat(99, adapter.virtual_tokens)])[0]
    stack.host.remove(99)
    return logits


def native(folder: Path) -> bool:
    """Whether plain PEFT knows what was saved."""
    path = folder / ADAPTER_CONFIG
    kind = json.loads(path.read_text())["peft_type"] if path.exists() else None
    return kind is not None and PEFT_TYPE_TO_CONFIG_MAPPING[kind].__module__.startswith("peft.")


def load_in_peft(plain: torch.nn.Module, work: Workload, folder: Path) -> Tensor | str | None:
    """The logits of what was saved, in PEFT without any of ours; or why it cannot; None for types of ours."""
    if not native(folder):
        return None
    try:
        model = PeftModel.from_pretrained(copy.deepcopy(plain), str(folder)).eval()
        with torch.no_grad():
            if not model.active_peft_config.is_prompt_learning:
                result: Tensor = model(**whole_batch(work)).logits
                return result
            # With embeddings for input, transformers pools the last place, padding or not.
            rows = [{name: x[:, mask] for name, x in batch.items()} for batch, mask in single_rows(work)]
            return torch.cat([model(**row).logits for row in rows])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def single_rows(work: Workload) -> list[tuple[dict[str, Tensor], Tensor]]:
    """A few examples, each a batch, and which of its tokens are none of the padding."""
    whole = whole_batch(work)
    rows = [{name: tensor[index : index + 1] for name, tensor in whole.items()} for index in range(4)]
    return [(row, row["attention_mask"][0].bool()) for row in rows]


def same(ours: Tensor, theirs: Tensor, what: str) -> None:
    scale = max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * scale, msg=lambda told: f"{what}: {told}")


def same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], what: str) -> None:
    assert set(ours) == set(theirs)
    scale = max(1.0, *(float(gradient.abs().max()) for gradient in theirs.values()))
    for name in ours:
        torch.testing.assert_close(
            ours[name],
            theirs[name],
            rtol=1e-4,
            atol=2e-5 * scale,
            msg=lambda told, n=name: f"{what} {n}: {told}",
        )


@cells
def test_all_of_its_parameters_get_gradients(
    bench: Callable[[str], Bench], kind: str, family: Family
) -> None:
    dead = bench(kind).dead
    for seen in bench(kind).seen.get(family.name, []):
        assert torch.isfinite(seen.alone).all()
        assert np.isfinite(seen.loss_alone)
        for name, gradient in seen.grads_alone.items():
            assert torch.isfinite(gradient).all(), name
            inner = name.removeprefix(PEFT_PREFIX).removeprefix(PROMPT_PREFIX).replace(".base_layer.", ".")
            assert gradient.any() or inner in dead, name
        if seen.grads_recomputed is not None:
            same_gradients(seen.grads_recomputed, seen.grads_together, "recomputed")


@cells
def test_company_changes_nothing(bench: Callable[[str], Bench], kind: str, family: Family) -> None:
    for seen in bench(kind).seen.get(family.name, []):
        same(seen.together, seen.alone, seen.trial.key)
        assert seen.loss_together == pytest.approx(seen.loss_alone, rel=1e-4, abs=1e-5)
        same_gradients(seen.grads_together, seen.grads_alone, seen.trial.key)


@cells
def test_it_starts_as_the_base_where_it_says_so(
    bench: Callable[[str], Bench], kind: str, family: Family
) -> None:
    for seen in bench(kind).seen.get(family.name, [])[:1]:
        if family.method.starts_as_base:
            same(seen.start, seen.start_of_base, seen.trial.key)
        else:
            assert not torch.allclose(seen.start, seen.start_of_base, atol=1e-6, rtol=0)
        assert not torch.allclose(seen.alone, seen.start, atol=1e-3), "the weights matter"


@cells
def test_what_is_saved_is_what_was_trained(bench: Callable[[str], Bench], kind: str, family: Family) -> None:
    for seen in bench(kind).seen.get(family.name, []):
        same(seen.loaded, seen.alone, seen.trial.key)
        if isinstance(seen.in_peft, Tensor):
            assert (kind, family.name) not in PEFT_CANNOT
            same(seen.in_peft, seen.alone[: len(seen.in_peft)], f"{seen.trial.key} in PEFT")
        elif seen.in_peft is not None:
            assert (kind, family.name) in PEFT_CANNOT, seen.in_peft


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_given_back(bench: Callable[[str], Bench], kind: str) -> None:
    assert bench(kind).base_is_clean


@cells
def test_a_refusal_names_what_can_work(bench: Callable[[str], Bench], kind: str, family: Family) -> None:
    told = bench(kind).refused.get(family.name)
    if told is not None:
        assert family.name not in bench(kind).seen
        assert len(told) > 60


@pytest.mark.parametrize(
    ("kind", "dtype", "recomputed"),
    [  # every two of them in every combination, and the one that most trials train with
        ("roberta", "float32", False),
        ("roberta", "bfloat16", False),
        ("roberta", "bfloat16", True),
        ("llama", "float32", True),
        ("llama", "bfloat16", False),
    ],
)
def test_whole_trainings_together_equal_those_alone(
    tmp_path: Path, kind: str, dtype: str, recomputed: bool
) -> None:
    """In bf16 with weights packed, our attention and slots side by side; and with activations recomputed.

    In bf16 company may decide how something is rounded (a block computed whole alone runs module by module
    beside a slot that does more in it): then it is about as far from weights in fp32 as alone.
    """
    config = tiny.write_config(tmp_path, kind)
    base = tiny.open_base(f"random:{config}", dtype=dtype, gradient_checkpointing=recomputed)
    work = tiny.workload(base)
    trials = [
        tiny.trial(base, family.name, 1 + index, method=family.name, epochs=1, **family.fields)
        for index, family in enumerate(FAMILIES)
        if family.method.stacks and not (kind == "llama" and family.name == "bitfit")
    ]
    together, alone = tiny.run(work, trials, lanes=2), tiny.alone(work, trials)
    exact = tiny.open_base(f"random:{config}", dtype="float32", gradient_checkpointing=recomputed)
    in_fp32 = tiny.alone(tiny.workload(exact), trials) if dtype != "float32" else {}
    for key, ended in alone.items():
        if dtype == "float32":
            tiny.assert_same(together[key], ended)
        else:
            assert together[key].failure is ended.failure is None
            first = begun(work, next(trial for trial in trials if trial.key == key))
            moved = apart(first, ended.final)
            off, off_together = (apart(own[key].final, in_fp32[key].final) for own in (alone, together))
            assert apart(together[key].final, ended.final) < 0.02 * moved or off_together < 1.25 * off
            assert off < 0.2 * moved


def begun(work: Workload, trial: Trial) -> dict[str, torch.Tensor]:
    """The weights that a trial begins with."""
    return open_stack(work).open(trial).adapter.tensors()


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """How far weights are from others: the norm of the difference, without what has no influence."""
    squares = [
        (tiny.influential(name, ours[name]) - tiny.influential(name, theirs[name])).float().square().sum()
        for name in ours
    ]
    return float(torch.stack(squares).sum().sqrt())


LOAD = """
import json, sys
import tunestack
places, texts = json.load(open(sys.argv[1]))
predictors = {name: tunestack.load(folder, device="cpu") for name, folder in places.items()}
answers = {name: predictor.predict_proba(texts).tolist() for name, predictor in predictors.items()}
json.dump(answers, open(sys.argv[2], "w"))
"""


def test_everything_loads_in_a_fresh_process(tmp_path: Path) -> None:
    places, expected, texts = {}, {}, tiny.texts(5, seed=4)["text"]
    for kind in ("roberta", "llama"):
        base = tiny.open_base(str(tiny.save_base(tmp_path, kind)))
        work = tiny.workload(base, rows=8)
        encoded = work.task.encode(base, {"text": texts}, 512)
        for family in FAMILIES:
            if kind == "llama" and family.name == "bitfit":
                continue
            trial = tiny.trial(base, family.name, 2, method=family.name, **family.fields)
            stack = open_stack(work, alone=not family.method.stacks)
            slot = stack.open(trial)
            disturb(slot)
            folder = tmp_path / f"{kind}-{family.name}"
            family.method.save(folder, slot.config, slot.adapter, stack.host, base.name)
            if family.method.saves_whole_model:
                base.tokenizer.save_pretrained(folder)  # as the run folder has it
            Description(kind="method", method=family.name, base=base.settings, label_names=tiny.LABELS).save(
                folder
            )
            places[folder.name] = str(folder)
            expected[folder.name] = stack.answers([slot], encoded)[0].given
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps([places, texts]))
    done = fresh.python(LOAD, asked, answered)
    assert done.code == 0, done.err
    answers = json.loads(answered.read_text())
    assert len(answers) == 2 * len(FAMILIES) - 1
    for name, probabilities in answers.items():
        np.testing.assert_allclose(probabilities, expected[name], atol=2e-5, err_msg=name)
