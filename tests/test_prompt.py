"""Prompt tuning and p-tuning against PEFT: outputs and gradients; and in a stack."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

import oracle
import tiny
from tunestack.bases import Base
from tunestack.data.encode import Encoded, pad
from tunestack.methods.prompt import with_sizes
from tunestack.methods.sites import Span, keep_mask
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack

ENCODERS = ["bert", "roberta", "electra", "distilbert", "deberta-v2", "modernbert"]
DECODERS = [kind for kind in tiny.CONFIGS if kind not in (*ENCODERS, "t5", "mt5")]
LSTM = {"encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 7}


def open_slot(base: Base, method: str = "prompt", **fields: Any) -> tuple[Stack, Slot, nn.Module]:
    """A stack with one slot, all of its weights moved, and a copy of the base's model from before."""
    values = {"num_virtual_tokens": 5, **fields}
    stack, slot, plain = oracle.open_slot(base, method=method, **values)
    oracle.disturb(slot)
    return stack, slot, plain


def calm(folder: Path, kind: str) -> Base:
    """A base whose logits are no larger than others': the tiny T5's amplify rounding errors."""
    return tiny.random_base(folder, kind, **({"initializer_factor": 1.0} if "t5" in kind else {}))


def peft_name(name: str) -> str:
    """What PEFT calls a parameter while it trains."""
    name = re.sub(r"lstm_head\.(\d)\.(\w+)_l0", r"lstm_head.\2_l\1", name)
    name = re.sub(r"^prompt_(embeddings$|encoder)", "prompt_encoder.default", name)
    if name == "prompt_encoder.default":
        return "prompt_encoder.default.embedding.weight"
    return re.sub(r"^(base_model\..*)\.(\w+)$", r"\1.modules_to_save.default.\2", name)


def reference(plain: nn.Module, slot: Slot) -> PeftModel:
    """PEFT's model with the slot's config and weights."""
    config: Any = with_sizes(slot.config, plain)
    model = get_peft_model(copy.deepcopy(plain), copy.deepcopy(config))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    ours = {in_peft(model, name): parameter for name, parameter in slot.adapter.parameters.items()}
    assert set(ours) == set(trained)
    with torch.no_grad():
        for name, parameter in ours.items():
            trained[name].copy_(parameter)
    return model.eval()


def in_peft(model: nn.Module, name: str) -> str:
    """The name among the model's parameters; a head may be several layers deep."""
    known = dict(model.named_parameters())
    if (found := peft_name(name)) in known:
        return found
    parts = name.split(".")
    deeper = (".".join([*parts[:at], "modules_to_save.default", *parts[at:]]) for at in range(1, len(parts)))
    return next(candidate for candidate in deeper if candidate in known)


def batch_of(stack: Stack, encoded: Encoded, indices: np.ndarray, n: int) -> dict[str, torch.Tensor]:
    return pad([(encoded, indices)], stack.work.base.tokenizer.pad_token_id, leading=[n])


def peft_logits(theirs: PeftModel, stack: Stack, encoded: Encoded, indices: np.ndarray) -> torch.Tensor:
    """PEFT's logits. Decoders row by row: given embeddings, transformers pools the last place of a batch's
    rows, which is padding where PEFT's rows differ in length.
    """
    kind = stack.work.base.config.model_type
    groups = [indices] if kind in ENCODERS else [indices[at : at + 1] for at in range(len(indices))]
    return torch.cat([theirs(**batch_of(stack, encoded, group, 0)).logits for group in groups])


CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((kind, "prompt", {}) for kind in [*ENCODERS, *DECODERS]),
    ("bert", "prompt", {"num_virtual_tokens": 1, "prompt_tuning_init": "SAMPLE_VOCAB"}),
    ("bert", "prompt", {"modules_to_save": ["LayerNorm"]}),
    ("bert", "p-tuning", {}),
    ("roberta", "p-tuning", {**LSTM, "encoder_num_layers": 3}),
    ("electra", "p-tuning", {"encoder_hidden_size": 9}),
    ("llama", "p-tuning", LSTM),
    ("gpt2", "p-tuning", {**LSTM, "encoder_num_layers": 1}),
]


@pytest.mark.parametrize(("kind", "method", "fields"), CASES, ids=lambda value: str(value))
def test_outputs_and_all_gradients_equal_pefts(
    tmp_path: Path, kind: str, method: str, fields: dict[str, Any]
) -> None:
    stack, slot, plain = open_slot(tiny.random_base(tmp_path, kind), method, **fields)
    theirs = reference(plain, slot)
    encoded = stack.work.encoded("train", slot.max_length)
    indices = slot.next_batch()
    assert len(set(encoded.lengths[indices])) > 1
    assert encoded.labels is not None
    expected = peft_logits(theirs, stack, encoded, indices)
    loss = nn.functional.cross_entropy(expected, torch.from_numpy(encoded.labels[indices]))
    loss.backward()

    assert stack._backward([slot])[0] == pytest.approx(loss.item(), abs=1e-5)
    logits = stack.outputs([slot], encoded)[0][torch.from_numpy(indices)]
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    known = dict(theirs.named_parameters())
    gradients = {name: known[in_peft(theirs, name)].grad for name in slot.adapter.parameters}
    ours = {name: parameter.grad for name, parameter in slot.adapter.parameters.items()}
    assert_close_scaled(ours, gradients)


def assert_close_scaled(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Both hold the same gradients, each measured by its own largest entry: networks make some small."""
    scale = {name: tensor.abs().max() for name, tensor in theirs.items()}
    assert all(float(largest) > 1e-6 for name, largest in scale.items() if name.startswith("prompt"))
    relative = [{name: tensors[name] / scale[name] for name in theirs} for tensors in (ours, theirs)]
    tiny.assert_close(*relative, atol=1e-4)


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_t5_reads_the_prompt_in_its_encoder_alone(tmp_path: Path, kind: str) -> None:
    """transformers takes no embeddings for this class: composed from its parts, row by row."""
    stack, slot, plain = open_slot(calm(tmp_path, kind))
    encoded = stack.work.encoded("train", slot.max_length)
    indices = slot.next_batch()
    weights = {name: tensor.clone().requires_grad_() for name, tensor in slot.adapter.tensors().items()}
    head = {name.removeprefix("base_model."): tensor for name, tensor in weights.items() if "head" in name}
    assert encoded.labels is not None
    rows = []
    for index in indices:
        ids = torch.from_numpy(encoded.input_ids[index])[None]
        embedded = torch.cat([weights["prompt_embeddings"][None], plain.transformer.shared(ids)], dim=1)
        hidden = plain.transformer(inputs_embeds=embedded, decoder_input_ids=plain._shift_right(ids))[0]
        pooled = hidden[:, int((ids[0] == 2).nonzero()[-1])]
        inner = {name.removeprefix("classification_head."): tensor for name, tensor in head.items()}
        rows.append(torch.func.functional_call(plain.classification_head, inner, (pooled,)))
    expected = torch.cat(rows)
    loss = nn.functional.cross_entropy(expected, torch.from_numpy(encoded.labels[indices]))
    loss.backward()

    assert stack._backward([slot])[0] == pytest.approx(loss.item(), abs=1e-5)
    logits = stack.outputs([slot], encoded)[0][torch.from_numpy(indices)]
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-5, atol=1e-5)
    ours = {name: parameter.grad for name, parameter in slot.adapter.parameters.items()}
    assert_close_scaled(ours, {name: tensor.grad for name, tensor in weights.items()})


@pytest.mark.parametrize("kind", ["t5", "gpt2", "bert"])
def test_a_text_without_words_and_inputs_longer_than_the_short_attention(tmp_path: Path, kind: str) -> None:
    """The first token of such a text may be the one that a model pools at."""
    table = {"n_positions": 400} if kind == "gpt2" else {"max_position_embeddings": 400}
    base = tiny.random_base(tmp_path, kind, **({} if kind == "t5" else table))
    stack, slot, _ = open_slot(base)
    ids = [np.array([2]), np.arange(3, 13), np.array([*np.arange(270) % 100 + 3, 2])]
    ids[1][-1] = 2
    lengths = np.array([len(row) for row in ids])
    encoded = Encoded(ids, None, lengths, None, 0)
    together = stack._forward([(encoded, np.arange(3))], [slot.span(0, 3, training=False)])
    for index, row in enumerate(together.detach()):
        alone = stack._forward([(encoded, np.array([index]))], [slot.span(0, 1, training=False)])[0]
        # Scores that T5 does not scale enlarge the rounding of fp32, on some processors more.
        torch.testing.assert_close(alone.detach(), row, rtol=2e-4 if kind == "t5" else 1e-5, atol=1e-5)
        assert torch.isfinite(row).all()


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_pairs_of_texts_keep_their_token_types(tmp_path: Path, kind: str) -> None:
    stack, slot, plain = open_slot(tiny.random_base(tmp_path, kind))
    theirs = reference(plain, slot)
    ids = [np.arange(3, 3 + length) for length in (9, 5, 12)]
    types = [(np.arange(len(row)) > 3).astype(np.int64) for row in ids]
    encoded = Encoded(ids, types, np.array([9, 5, 12]), None, 0)
    found = stack._forward([(encoded, np.arange(3))], [slot.span(0, 3, training=False)])
    batch = batch_of(stack, encoded, np.arange(3), 0)
    assert batch["token_type_ids"].any()
    torch.testing.assert_close(found, theirs(**batch).logits, rtol=1e-5, atol=1e-5)
    del batch["token_type_ids"]
    assert not torch.allclose(found, theirs(**batch).logits, atol=1e-3)


def mixed(base: Base, **fields: Any) -> list[Any]:
    """Prompts of several lengths, a network with dropout, and slots without any prompt."""
    return [
        tiny.trial(base, "short", 1, "prompt", num_virtual_tokens=2, batch_size=4, **fields),
        tiny.trial(base, "lora", 2, r=2, target_modules="all-linear", epochs=1.5, **fields),
        tiny.trial(
            base,
            "lstm",
            3,
            "p-tuning",
            num_virtual_tokens=7,
            encoder_dropout=0.3,
            weight_decay=0.2,
            **LSTM,
            **fields,
        ),
        tiny.trial(base, "plain", 4, max_length=9, epochs=1, **fields),
        tiny.trial(base, "mlp", 5, "p-tuning", num_virtual_tokens=3, max_grad_norm=0.05, epochs=1, **fields),
        tiny.trial(base, "long", 6, "prompt", num_virtual_tokens=11, max_length=9, batch_size=5, **fields),
    ]


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "deberta-v2", "llama", "gpt2", "t5"])
def test_a_stack_of_k_equals_k_solo_runs(tmp_path: Path, kind: str) -> None:
    base = calm(tmp_path, kind)
    work = tiny.workload(base, test=True)
    trials = mixed(base)
    solo = tiny.alone(work, trials)
    for trial in trials:
        if trial.method.name != "lora":
            start = open_slot_of(work, trial)
            moved = (solo[trial.key].final["prompt_embeddings"] - start["prompt_embeddings"]).abs().max()
            assert float(moved) > 1e-3
    together = tiny.run(work, trials)
    refilled = tiny.run(work, trials[::-1], slots=2)
    for key, ended in solo.items():
        tiny.assert_same(together[key], ended)
        tiny.assert_same(refilled[key], ended)


def open_slot_of(work: Any, trial: Any) -> dict[str, torch.Tensor]:
    """What a trial starts from."""
    loaded = work.base.load_model(work.task.auto_class, work.task.model_config(work.base))
    return Stack(work, loaded).open(trial).adapter.tensors()


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_beside_slots_with_embeddings_of_their_own_and_dropout_of_the_base(tmp_path: Path, kind: str) -> None:
    """Both act at the module where a prompt is, or right behind it."""
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    own = ["word_embeddings"] if kind == "bert" else ["embed_tokens"]
    trials = [
        tiny.trial(base, "own", 1, modules_to_save=own, base_dropout=True, epochs=1),
        tiny.trial(base, "prompt", 2, "prompt", num_virtual_tokens=4, base_dropout=True, epochs=1),
        tiny.trial(base, "own too", 3, modules_to_save=own, epochs=1),
        tiny.trial(base, "text", 4, "prompt", prompt_tuning_init_text="calm or urgent", epochs=1),
    ]
    solo = tiny.alone(work, trials)
    for order in (trials, trials[::-1]):
        together = tiny.run(work, order, slots=3)
        for key, ended in solo.items():
            tiny.assert_same(together[key], ended)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, kind: str) -> None:
    results = []
    for checkpointing in (False, True):
        base = tiny.random_base(tmp_path, kind, gradient_checkpointing=checkpointing)
        results.append(tiny.run(tiny.workload(base), mixed(base)))
    for key, ended in results[1].items():
        tiny.assert_same(ended, results[0][key], atol=1e-6)


@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_on_a_bf16_base_weights_and_gradients_stay_fp32(tmp_path: Path, method: str) -> None:
    logits, gradients = {}, {}
    for dtype in ("float32", "bfloat16"):
        path = tiny.write_config(tmp_path, "bert")
        base = tiny.open_base(f"random:{path}", dtype=dtype)
        work = tiny.workload(base)
        stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
        slot = stack.open(tiny.trial(base, "one", 3, method, num_virtual_tokens=5))
        oracle.disturb(slot)
        stack._backward([slot])
        assert all(parameter.dtype == torch.float32 for parameter in slot.adapter.parameters.values())
        logits[dtype] = stack.outputs([slot], stack.work.encoded("validation", 512))[0]
        gradients[dtype] = slot.grad
    assert not torch.equal(logits["bfloat16"], logits["float32"])
    torch.testing.assert_close(logits["bfloat16"], logits["float32"], rtol=0, atol=0.1)
    angle = torch.cosine_similarity(gradients["bfloat16"], gradients["float32"], dim=0)
    assert gradients["bfloat16"].dtype == torch.float32
    assert float(angle) > 0.99


def test_dropout_between_the_layers_of_the_lstm_is_a_function_of_the_noise(tmp_path: Path) -> None:
    fields = {**LSTM, "encoder_num_layers": 2, "encoder_dropout": 0.4}
    stack, slot, _ = open_slot(tiny.random_base(tmp_path, "bert"), "p-tuning", **fields)
    name, site = next((n, s) for n, s in stack.host.sites.items() if n.endswith("word_embeddings"))
    encoder = site.parts[slot.index][0].prompt
    first, _ = encoder.lstm_head[0](encoder.embedding.weight)
    span = Span(slot.index, 0, 4, noise=11, lengths={len(first): 1}, leading=5)
    keep = keep_mask(first, 0.4, span, f"{name}.lstm_head.1")
    assert 0 < float(keep.mean()) < 1
    expected = encoder.mlp_head(encoder.lstm_head[1](first * keep / 0.6)[0])
    torch.testing.assert_close(encoder(span, name), expected)
    dry = encoder(None, name)
    assert torch.equal(encoder(Span(slot.index, 0, 4), name), dry), "nothing is dropped in evaluation"
    assert not torch.allclose(expected, dry, atol=1e-3)
    torch.testing.assert_close(slot.adapter.tensors()["prompt_embeddings"], dry)
