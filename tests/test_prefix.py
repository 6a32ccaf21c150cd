"""Prefix tuning and p-tuning v2 against PEFT, and against the formula where PEFT cannot run them."""

from __future__ import annotations

import copy
import json
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

import fresh
import tiny
from tunestack.bases import Base
from tunestack.bases.base import LoadedModel
from tunestack.data.encode import pad
from tunestack.errors import UserError
from tunestack.methods import prefix
from tunestack.methods.base import read_tensors
from tunestack.methods.registry import find_method
from tunestack.methods.sites import SharedInputError
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack
from tunestack.tasks.classification import SequenceClassification

N = 3


def open_slot(base: Base, method: str, seed: int = 3, **fields: Any) -> tuple[Stack, Slot]:
    """A stack with one slot whose prefix matters."""
    work = tiny.workload(base)
    stack = Stack(work, load(base))
    values = {"num_virtual_tokens": N, "batch_size": 4, "max_grad_norm": 0, **fields}
    slot = stack.open(tiny.trial(base, "one", seed, method, **values))
    generator = torch.Generator().manual_seed(9)
    slot.flat.add_(torch.randn(slot.flat.shape, generator=generator), alpha=0.4)
    return stack, slot


def load(base: Base) -> LoadedModel:
    return base.load_model(SequenceClassification.auto_class, base.model_config(2))


def plain_model(base: Base) -> Any:
    """The base's model, without us."""
    model: Any = load(base).model
    model.set_attn_implementation("eager")
    return model


def batch_of(stack: Stack, slot: Slot, side: str = "right") -> tuple[dict[str, Tensor], Tensor]:
    encoded = stack.work.encoded("train", slot.max_length)
    indices = slot.next_batch()
    assert encoded.labels is not None
    batch = pad([(encoded, indices)], stack.work.base.tokenizer.pad_token_id, side)
    return batch, torch.from_numpy(encoded.labels[indices])


def outputs(stack: Stack, slot: Slot, batch: dict[str, Tensor]) -> Tensor:
    """The logits of a batch that is all the slot's own."""
    stack.host.rows.set([slot.span(0, len(batch["input_ids"]), training=False)])
    logits: Tensor = stack.host.model(**stack.host.arguments(batch)).logits
    return logits


def gradients(slot: Slot) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in slot.adapter.parameters.items()}  # type: ignore[misc]


def own_name(name: str) -> str:
    """Our name of a parameter that PEFT trains; the table itself is called as it is saved."""
    short = {"transform.0": "hidden", "transform.2": "output"}
    name = name.replace(".modules_to_save.default.", ".").replace(
        "prompt_encoder.default.", "prompt_encoder."
    )
    for theirs, ours in short.items():
        name = name.replace(theirs, ours)
    return name.replace("embedding.weight", "embedding")


def reference(plain: Any, slot: Slot) -> peft.PeftModel:
    """PEFT's model with the slot's config and weights."""
    model = get_peft_model(copy.deepcopy(plain), copy.deepcopy(slot.config))
    given = dict(slot.adapter.parameters)
    if "prompt_embeddings" in given:
        given["prompt_encoder.embedding"] = given.pop("prompt_embeddings")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(given.pop(own_name(name)).data)
    assert not given
    return model.eval()


ENCODERS = ["bert", "roberta", "electra"]
DECODERS = [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3",
    "gpt2", "opt", "bloom", "gptj", "gpt_neo", "gpt_neox",
]  # fmt: skip


@pytest.mark.parametrize("kind", ENCODERS + DECODERS)
def test_outputs_and_gradients_equal_pefts(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    for method, fields in (("prefix", {"encoder_hidden_size": 7}), ("p-tuning-v2", {})):
        stack, slot = open_slot(base, method, **fields)
        plain = plain_model(base)
        theirs = reference(plain, slot)
        for side in ("right",) if kind in ENCODERS else ("left", "right"):  # encoders pool the first place
            batch, labels = batch_of(stack, slot, side)
            expected = theirs(**batch).logits
            with torch.no_grad():
                torch.testing.assert_close(outputs(stack, slot, batch), expected, rtol=1e-5, atol=1e-5)
                assert not torch.allclose(expected, plain(**batch).logits, atol=1e-2)
        nn.functional.cross_entropy(expected, labels).backward()
        stack._backward([slot])
        wanted = {own_name(name): p.grad for name, p in theirs.named_parameters() if p.requires_grad}
        if method == "p-tuning-v2":
            wanted["prompt_embeddings"] = wanted.pop("prompt_encoder.embedding")
        assert all(
            float(gradient.abs().max()) > 1e-3 for name, gradient in wanted.items() if "prompt" in name
        )
        tiny.assert_close(gradients(slot), wanted)


# Encoders that take no cache, against the formula with plain sums over what a token sees, in fp64.

ATTENTIONS = {
    "distilbert": "distilbert.transformer.layer.{}.attention",
    "modernbert": "model.layers.{}.attn",
    "t5": "transformer.encoder.block.{}.layer.0.SelfAttention",
    "mt5": "transformer.encoder.block.{}.layer.0.SelfAttention",
}


def formula(table: Tensor, layers: dict[nn.Module, int]) -> Any:
    """softmax(scaling q [P_k; K]^T + bias) [P_v; V], token by token; biases reach the text's keys alone."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        rows, heads, tokens, size = query.shape
        seen = torch.ones(rows, 1, tokens, key.shape[2]) if mask is None else (mask == 0)
        seen = seen.bool().expand(rows, 1, tokens, -1)
        bias = kwargs.get("position_bias")
        learned = table.view(len(table), -1, heads, size)[:, :0]
        if module in layers:
            start = 2 * layers[module]
            learned = table.view(len(table), -1, heads, size)[:, start : start + 2]
        out = []
        for row in range(rows):
            for token in range(tokens):
                for head in range(heads):
                    keys = key[row, head][seen[row, 0, token]]
                    values = value[row, head][seen[row, 0, token]]
                    scores = kwargs["scaling"] * keys @ query[row, head, token]
                    if bias is not None:
                        scores = scores + bias[0, head, token][seen[row, 0, token]]
                    if learned.shape[1]:
                        first = kwargs["scaling"] * learned[:, 0, head] @ query[row, head, token]
                        scores = torch.cat([first, scores])
                        values = torch.cat([learned[:, 1, head], values])
                    out.append(scores.softmax(0) @ values)
        return torch.stack(out).view(rows, tokens, heads, size), None

    return attend


@pytest.mark.parametrize("attention", ["short", "sdpa", "eager"])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_encoders_without_a_cache_equal_the_formula(tmp_path: Path, kind: str, attention: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    stack, slot = open_slot(base, "p-tuning-v2")
    host = stack.host
    if attention != "short":
        stack.close(slot)
        host.model.set_attn_implementation(attention)  # type: ignore[operator]
        again = stack.open(slot.trial)
        again.flat.copy_(slot.flat)
        slot = again
    batch, labels = batch_of(stack, slot)
    exact = plain_model(base).double()
    given = {name: tensor.double().requires_grad_(True) for name, tensor in slot.adapter.tensors().items()}
    table = given.pop("prompt_embeddings")
    modules = dict(exact.named_modules())
    layers = {modules[ATTENTIONS[kind].format(layer)]: layer for layer in range(tiny.LAYERS)}
    AttentionInterface.register("formula", formula(table, layers))
    AttentionMaskInterface.register("formula", eager_mask)
    exact.set_attn_implementation("formula")
    own = {name.removeprefix("base_model."): tensor for name, tensor in given.items()}
    expected = torch.func.functional_call(exact, own, kwargs=batch).logits
    nn.functional.cross_entropy(expected, labels).backward()

    with (
        torch.no_grad()
    ):  # scores that T5 does not scale enlarge the rounding of fp32, on some processors more
        torch.testing.assert_close(outputs(stack, slot, batch), expected.float(), rtol=5e-5, atol=2e-5)
    stack._backward([slot])
    wanted = {name: tensor.grad.float() for name, tensor in {"prompt_embeddings": table, **given}.items()}  # type: ignore[union-attr]
    assert float(wanted["prompt_embeddings"].abs().max()) > 1e-3
    tiny.assert_close(gradients(slot), wanted, atol=2e-4)


# In a stack


def mixed(base: Base, **fields: Any) -> list[Any]:
    """Prefixes of several lengths, with and without an MLP, among trials that have none."""
    return [
        tiny.trial(base, "lora", 1, **fields),
        tiny.trial(base, "long", 2, "prefix", num_virtual_tokens=7, encoder_hidden_size=5, **fields),
        tiny.trial(base, "prompt", 5, "prompt", num_virtual_tokens=4, **fields),
        tiny.trial(base, "short", 3, "p-tuning-v2", num_virtual_tokens=2, batch_size=5, **fields),
        tiny.trial(base, "zero", 4, "prefix", init_weights="zero", num_virtual_tokens=N, epochs=3, **fields),
    ]


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "modernbert", "t5", "llama", "bloom", "opt"])
def test_a_stack_of_k_equals_k_solo_runs(tmp_path: Path, kind: str) -> None:
    tame = {"initializer_factor": 0.5} if kind == "t5" else {}  # gradients near 100 blow rounding up
    base = tiny.random_base(tmp_path, kind, **tame)
    work = tiny.workload(base)
    trials = mixed(base)
    solo = tiny.alone(work, trials)
    together = tiny.run(work, trials)
    refilled = tiny.run(work, trials[::-1], slots=2)
    for key, ended in solo.items():
        tiny.assert_same(together[key], ended)
        tiny.assert_same(refilled[key], ended)


@pytest.mark.parametrize("kind", ["bert", "t5", "gpt2", "gptj"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, kind: str) -> None:
    ended = []
    for checkpointing in (False, True):
        base = tiny.random_base(tmp_path, kind, gradient_checkpointing=checkpointing)
        trials = [trial for trial in mixed(base) if trial.key in ("lora", "long", "short")]
        ended.append(tiny.run(tiny.workload(base), trials))
    for key, plain in ended[0].items():
        tiny.assert_same(ended[1][key], plain, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "opt", "gptj", "distilbert", "gpt_neo"])
def test_the_longest_texts_fit_beside_a_prefix(tmp_path: Path, kind: str) -> None:
    """A text takes the positions that its own prefix leaves, in company that leaves more to it."""
    base = tiny.random_base(tmp_path, kind)
    base.tokenizer.model_max_length = tiny.TOKENS
    work = tiny.workload(base)
    work.splits = {"train": {"text": ["ab cd " * 40, "e"] * 3, "label": [0, 1] * 3}}
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
    trials = [
        tiny.trial(base, "lora", batch_size=3, epochs=1),
        tiny.trial(base, "prefix", method="p-tuning-v2", num_virtual_tokens=9, batch_size=3, epochs=1),
    ]
    slots = [stack.open(trial) for trial in trials]
    taken = 0 if kind == "distilbert" else 9
    assert [slot.max_length for slot in slots] == [tiny.TOKENS, tiny.TOKENS - taken]
    assert max(work.encoded("train", slots[1].max_length).lengths) == tiny.TOKENS - taken
    if kind == "gpt_neo":  # keeps a mask of its own, in which both have no room
        with pytest.raises(SharedInputError, match="causal mask"):
            stack._backward(slots)
        stack.step(slots, lambda event: None)
        assert [slot.progress.step for slot in slots] == [1, 1]
        return
    together = stack._backward(slots)
    kept = {name: gradient.clone() for name, gradient in gradients(slots[1]).items()}
    assert [stack._backward([slot])[0] for slot in slots] == pytest.approx(together, abs=1e-5)
    tiny.assert_close(gradients(slots[1]), kept)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "t5", "llama", "bloom"])
def test_a_base_in_bf16(tmp_path: Path, kind: str) -> None:
    """Weights, gradients and heads stay in fp32; outputs differ from the exact ones by rounding alone."""
    logits, grads = [], []
    for dtype in ("float32", "bfloat16"):
        base = tiny.open_base(f"random:{tiny.write_config(tmp_path, kind)}", dtype=dtype)
        stack, slot = open_slot(base, "prefix", encoder_hidden_size=5)
        batch, _ = batch_of(stack, slot)
        with torch.no_grad():
            logits.append(outputs(stack, slot, batch))
        stack._backward([slot])
        assert all(parameter.dtype == torch.float32 for parameter in slot.adapter.parameters.values())
        grads.append(torch.cat([g.flatten() for n, g in gradients(slot).items() if "prompt" in n]))
    assert logits[1].dtype == torch.float32
    assert float((logits[1] - logits[0]).norm() / logits[0].norm()) < 0.1
    assert float(nn.functional.cosine_similarity(*grads, dim=0)) > 0.95


@pytest.mark.parametrize("kind", ["bert", "distilbert", "t5", "llama"])
def test_the_base_is_given_back_when_the_last_one_leaves(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    stack, slot = open_slot(base, "prefix")
    model: Any = stack.host.model
    batch, _ = batch_of(stack, slot)
    alone = outputs(stack, slot, batch).detach()
    other = stack.open(slot.trial)
    stack.close(other)
    assert torch.equal(outputs(stack, slot, batch), alone)
    stack.close(slot)
    fresh: Any = Stack(stack.work, load(base)).host.model
    assert model.config._attn_implementation == fresh.config._attn_implementation
    assert not stack.host.sites
    assert not stack.host.entrance
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, fresh(**batch).logits)


# What is saved

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


def test_what_is_saved_loads_in_peft_in_a_fresh_process_and_here(tmp_path: Path) -> None:
    places, expected = {}, {}
    cases = {
        "prefix": ("bert", "roberta", "qwen3", "opt", "distilbert"),
        "p-tuning-v2": ("bert", "llama", "gpt2", "bloom", "t5"),
    }
    for method, kind in ((method, kind) for method, kinds in cases.items() for kind in kinds):
        saved = tiny.save_base(tmp_path, kind)
        stack, slot = open_slot(tiny.open_base(str(saved)), method)
        adapter = tmp_path / f"{kind}-{method}"
        find_method(method).save(adapter, slot.config, slot.adapter, stack.host, str(saved))
        batch, _ = batch_of(stack, slot)
        with torch.no_grad():
            logits = outputs(stack, slot, batch)
        tensors = read_tensors(adapter)
        width = {"llama": 8, "qwen3": 12, "t5": 24}.get(kind, tiny.HIDDEN)
        assert tensors["prompt_embeddings"].shape == (N, tiny.LAYERS * 2 * width)
        head = {f"base_model.{name}" for name in head_parameters(stack)}
        assert set(tensors) - {"prompt_embeddings"} == head
        stack.close(slot)
        config = find_method(method).read_config(adapter)
        again = find_method(method).attach(config, stack.host, slot.index, seed=0)
        again.load(tensors)
        with torch.no_grad():
            torch.testing.assert_close(outputs(stack, slot, batch), logits, rtol=1e-5, atol=1e-5)
        if kind not in ATTENTIONS:
            rows = {key: tensor.tolist() for key, tensor in batch.items()}
            places[adapter.name] = {"base": str(saved), "adapter": str(adapter), "batch": rows}
            expected[adapter.name] = logits
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(places))
    done = fresh.python(LOAD, asked, answered)
    assert done.code == 0, done.err
    for name, logits in json.loads(answered.read_text()).items():
        torch.testing.assert_close(torch.tensor(logits), expected[name], rtol=1e-5, atol=1e-5)


def head_parameters(stack: Stack) -> set[str]:
    modules = stack.host.modules
    return {f"{head}.{name}" for head in stack.host.head for name, _ in modules[head].named_parameters()}


@pytest.mark.parametrize("kind", ["bert", "llama", "qwen3"])
def test_names_and_sizes_are_those_that_peft_writes(tmp_path: Path, kind: str) -> None:
    for method, projection in (("prefix", True), ("p-tuning-v2", False)):
        base = tiny.random_base(tmp_path, kind)
        hidden = 7 if projection else None
        stack, slot = open_slot(base, method, **({"encoder_hidden_size": hidden} if hidden else {}))
        config = PrefixTuningConfig(
            task_type="SEQ_CLS",
            num_virtual_tokens=N,
            prefix_projection=projection,
            encoder_hidden_size=hidden,  # type: ignore[arg-type]
        )
        model = get_peft_model(plain_model(base), config)
        theirs = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        assert {name: tuple(tensor.shape) for name, tensor in slot.adapter.tensors().items()} == theirs
        folder = tmp_path / f"saved-{method}"
        find_method(method).save(folder, slot.config, slot.adapter, stack.host, "base")
        ours: Any = find_method(method).read_config(folder)
        for field in ("num_layers", "token_dim", "num_attention_heads", "num_transformer_submodules"):
            assert getattr(ours, field) == getattr(config, field), field
        assert ours.encoder_hidden_size == config.encoder_hidden_size


# How it starts


def test_a_seed_decides_the_start(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert", hidden_size=64)
    stack = Stack(tiny.workload(base), load(base))

    def drawn(seed: int, method: str, **fields: Any) -> dict[str, Tensor]:
        trial = tiny.trial(base, "one", seed, method, num_virtual_tokens=50, **fields)
        return dict(stack.open(trial).adapter.parameters)

    table = drawn(1, "p-tuning-v2")["prompt_embeddings"]
    assert torch.equal(table, drawn(1, "p-tuning-v2")["prompt_embeddings"])
    assert not torch.equal(table, drawn(2, "p-tuning-v2")["prompt_embeddings"])
    assert float(table.std()) == pytest.approx(prefix.START, rel=0.03)
    assert not drawn(1, "p-tuning-v2", init_weights="zero")["prompt_embeddings"].any()

    made = drawn(1, "prefix", encoder_hidden_size=100)
    assert made["prompt_encoder.embedding"].shape == (50, 64)
    assert float(made["prompt_encoder.embedding"].std()) == pytest.approx(1, rel=0.05)
    for name, inputs in (("hidden", 64), ("output", 100)):
        for kind in ("weight", "bias"):
            values = made[f"prompt_encoder.{name}.{kind}"]
            assert float(values.abs().max()) == pytest.approx(inputs**-0.5, rel=0.1)
            assert float(values.std()) == pytest.approx((3 * inputs) ** -0.5, rel=0.15)
    zero = drawn(1, "prefix", init_weights="zero")
    assert not zero["prompt_encoder.output.weight"].any()
    assert zero["prompt_encoder.hidden.weight"].any()


# Errors


def refused(base: Base, method: str = "prefix", **fields: Any) -> str:
    model = base.skeleton(SequenceClassification.auto_class, base.model_config(2))

    def check() -> None:
        config = find_method(method).make_config(fields, base.config.model_type, [])
        find_method(method).check(config, model)

    with pytest.raises(UserError) as caught:
        check()
    return str(caught.value)


def test_what_cannot_work_is_refused_with_what_can(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "deberta-v2")
    said = refused(base)
    assert "DebertaV2ForSequenceClassification, which computes attention in a way of its own" in said
    assert "lora" in said
    base = tiny.random_base(tmp_path, "bert")
    assert "1 to 93: the base has 96 positions" in refused(base, num_virtual_tokens=96)
    assert "found 0" in refused(base, "p-tuning-v2", num_virtual_tokens=0)
    with_mlp = refused(base, "p-tuning-v2", prefix_projection=True)
    assert "p-tuning-v2.prefix_projection: expected false" in with_mlp
    assert "Write `method: prefix`" in with_mlp
    assert "Did you mean 'num_virtual_tokens'" in refused(base, num_virtual_token=3)
    assert "init_weights" in refused(base, init_weights="ones")
    assert "nothing" in refused(base, modules_to_save=["nothing"])
    wrong = refused(base, token_dim=8, num_layers=3, encoder_hidden_size=0, num_transformer_submodules=2)
    for name in ("token_dim", "num_layers", "encoder_hidden_size", "num_transformer_submodules"):
        assert f"prefix.{name}" in wrong
    find_method("prefix").check(
        find_method("prefix").make_config({"token_dim": 16}, "bert", []),
        base.skeleton(SequenceClassification.auto_class, base.model_config(2)),
    )


def test_every_field_of_pefts_config_is_known(tmp_path: Path) -> None:
    """A new release of PEFT with a new field must not make us ignore it."""
    ours = {
        "num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers",
        "modules_to_save", "init_weights", "encoder_hidden_size", "prefix_projection",
    }  # fmt: skip
    of_all = {field.name for field in dataclass_fields(peft.PeftConfig)}
    assert {field.name for field in dataclass_fields(PrefixTuningConfig)} - of_all == ours
