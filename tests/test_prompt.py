"""Prompt tuning and p-tuning against PEFT: outputs, gradients, names, files; and in a stack."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

import oracle
import runs
import tiny
import tunestack
from tunestack.bases import Base
from tunestack.data.encode import Encoded, pad
from tunestack.errors import UserError
from tunestack.methods.base import read_tensors
from tunestack.methods.prompt import with_sizes
from tunestack.methods.registry import find_method
from tunestack.methods.sites import Span, keep_mask
from tunestack.params import count_parameters
from tunestack.saved import Seat
from tunestack.stack.loop import Stack
from tunestack.stack.slot import Slot
from tunestack.tasks.classification import SequenceClassification

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
    logits = stack.logits([slot], encoded)[0][torch.from_numpy(indices)]
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
    logits = stack.logits([slot], encoded)[0][torch.from_numpy(indices)]
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
        torch.testing.assert_close(alone.detach(), row, rtol=1e-5, atol=1e-5)
        assert torch.isfinite(row).all()


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
        logits[dtype] = stack.logits([slot], stack.work.encoded("validation", 512))[0]
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
    span = Span(slot.index, 0, 4, noise=11, padding=3, leading=5)
    first, _ = encoder.lstm_head[0](encoder.embedding.weight)
    keep = keep_mask(first, 0.4, span, f"{name}.lstm_head.1")
    assert 0 < float(keep.mean()) < 1
    expected = encoder.mlp_head(encoder.lstm_head[1](first * keep / 0.6)[0])
    torch.testing.assert_close(encoder(span, name), expected)
    dry = encoder(None, name)
    assert torch.equal(encoder(Span(slot.index, 0, 4), name), dry), "nothing is dropped in evaluation"
    assert not torch.allclose(expected, dry, atol=1e-3)
    torch.testing.assert_close(slot.adapter.tensors()["prompt_embeddings"], dry)


# Files


@pytest.mark.parametrize("kind", ["bert", "distilbert", "deberta-v2", "llama"])
@pytest.mark.parametrize("method", ["prompt", "p-tuning"])
def test_names_are_those_that_peft_writes(tmp_path: Path, kind: str, method: str) -> None:
    stack, slot, plain = open_slot(tiny.random_base(tmp_path, kind), method)
    theirs = get_peft_model_state_dict(reference(plain, slot))
    tiny.assert_close(slot.adapter.tensors(), theirs, atol=1e-6)
    find_method(method).save(tmp_path / "ours", slot.config, slot.adapter, stack.host, "base")
    written = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    tiny.assert_close(written, theirs, atol=1e-6)


def test_what_is_saved_loads_in_peft_in_a_fresh_process(tmp_path: Path) -> None:
    """Without the network of p-tuning, with the head; the base's checkpoint may lack it, and the pooler."""
    cases: dict[str, tuple[str, str, bool, dict[str, Any]]] = {
        "bert": ("bert", "prompt", False, {"prompt_tuning_init_text": "calm or urgent"}),
        "roberta": ("roberta", "p-tuning", False, LSTM),
        "electra with a head": ("electra", "p-tuning", True, {}),
        "distilbert": ("distilbert", "prompt", False, {"modules_to_save": ["sa_layer_norm"]}),
        "llama": ("llama", "p-tuning", False, {"modules_to_save": ["model.norm"]}),
        "gpt2 with a head": ("gpt2", "prompt", True, {"prompt_tuning_init": "SAMPLE_VOCAB"}),
    }
    places, expected = {}, {}
    for name, (kind, method, head, fields) in cases.items():
        folder = tmp_path / name.replace(" ", "-")
        folder.mkdir()
        saved = tiny.save_base(folder, kind, head=head)
        stack, slot, _ = open_slot(tiny.open_base(str(saved)), method, **fields)
        adapter = folder / "adapter"
        find_method(method).save(adapter, slot.config, slot.adapter, stack.host, str(saved))
        encoded = stack.work.encoded("validation", slot.max_length)
        indices = np.arange(4) if kind in ENCODERS else np.array([3])
        span = slot.span(0, len(indices), training=False)
        expected[name] = stack._forward([(encoded, indices)], [span]).detach()
        batch = batch_of(stack, encoded, indices, 0)
        places[name] = {
            "base": str(saved),
            "adapter": str(adapter),
            "batch": {key: tensor.tolist() for key, tensor in batch.items()},
        }
        config = find_method(method).read_config(adapter)
        assert config.inference_mode
        again = find_method(method).attach(config, stack.host, 7, seed=1)
        again.load(read_tensors(adapter))
        assert again.virtual_tokens == 5
        seat = Seat(7, leading=5)
        logits = stack._forward([(encoded, indices)], [seat.span(0, len(indices), training=False)])
        torch.testing.assert_close(logits.detach(), expected[name], rtol=1e-6, atol=1e-6)
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(places))
    done = subprocess.run(
        [sys.executable, "-c", oracle.LOAD, str(asked), str(answered)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, logits in json.loads(answered.read_text()).items():
        torch.testing.assert_close(torch.tensor(logits), expected[name], rtol=1e-5, atol=1e-5)


def test_what_peft_saved_is_taken_over(tmp_path: Path) -> None:
    stack, slot, plain = open_slot(tiny.random_base(tmp_path, "bert"), "p-tuning", **LSTM)
    theirs = reference(plain, slot)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = find_method("p-tuning")
    adapter = ours.attach(ours.read_config(tmp_path / "theirs"), stack.host, 7, seed=1)
    adapter.load(read_tensors(tmp_path / "theirs"))
    tiny.assert_close(adapter.tensors(), slot.adapter.tensors(), atol=1e-6)
    weights = tmp_path / "theirs" / "adapter_model.safetensors"
    save_file({**load_file(weights), "prompt_embeddings": torch.zeros(4, 16)}, weights)
    with pytest.raises(UserError, match=r"expected shape \(5, 16\), found shape \(4, 16\)"):
        adapter.load(read_tensors(tmp_path / "theirs"))


def test_a_comparison_trains_saves_and_predicts(tiny_data: Path) -> None:
    methods = [{"method": "prompt", "prompt_tuning_init_text": "calm or urgent"}, "p-tuning", "lora"]
    folder = tiny_data / "prompts"
    results = runs.compare(runs.settings(tiny_data, methods=methods, output=str(folder), seeds=1))
    for candidate in results.candidates:
        (seed,) = candidate.seeds
        for split in ("validation", "test"):
            texts = pd.read_csv(tiny_data / f"{split}.csv")["text"].tolist()
            found = tunestack.load(folder / seed.adapter_path, device="cpu").predict_proba(texts)
            stored = runs.probabilities(folder, getattr(seed, split).predictions_path)
            np.testing.assert_allclose(found, stored, rtol=0, atol=2e-6)


# Starting points


def start(base: Base, seed: int = 1, **fields: Any) -> torch.Tensor:
    """A fresh prompt."""
    trial = tiny.trial(base, "one", seed, "prompt", **{"num_virtual_tokens": 7, **fields})
    return open_slot_of(tiny.workload(base), trial)["prompt_embeddings"]


@pytest.mark.parametrize("text", ["urgent", "is this calm or urgent?"])
@pytest.mark.parametrize("kind", ["electra", "gemma"])
def test_a_text_starts_from_the_embeddings_of_its_tokens(tmp_path: Path, kind: str, text: str) -> None:
    """Cut or repeated to length, as PEFT does it; scaled where the embeddings are (Gemma)."""
    saved = tiny.save_base(tmp_path, kind, head=True)
    base = tiny.open_base(str(saved))
    found = start(base, prompt_tuning_init_text=text)
    ids = (base.tokenizer(text)["input_ids"] * 7)[:7]
    model = base.load_model(SequenceClassification.auto_class, base.model_config(2)).model
    assert torch.equal(found, model.get_input_embeddings()(torch.tensor(ids)).detach())
    config: Any = find_method("prompt").make_config(
        {"num_virtual_tokens": 7, "prompt_tuning_init_text": text, "tokenizer_name_or_path": str(saved)},
        kind,
        [],
    )
    theirs = get_peft_model(model, with_sizes(config, model))
    assert torch.equal(found, get_peft_model_state_dict(theirs)["prompt_embeddings"])
    assert torch.equal(
        found, start(base, prompt_tuning_init_text=text, tokenizer_name_or_path=str(saved), seed=2)
    )


def test_random_starts_are_pefts_distributions_and_functions_of_the_seed(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert", hidden_size=64, intermediate_size=64)
    drawn = start(base, num_virtual_tokens=80, prompt_tuning_init="RANDOM")
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)
    assert len(drawn.unique()) > 5000
    sampled = start(base, prompt_tuning_init="SAMPLE_VOCAB")
    model = base.load_model(SequenceClassification.auto_class, base.model_config(2)).model
    table = model.get_input_embeddings().weight
    ids = [int((table == row).all(dim=1).nonzero()) for row in sampled]
    assert len(set(ids)) > 3
    for init in ("RANDOM", "SAMPLE_VOCAB"):
        first, again, other = (start(base, seed, prompt_tuning_init=init) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def spread(tensor: torch.Tensor) -> float:
    return float(tensor.detach().std())


def largest(tensor: torch.Tensor) -> float:
    return float(tensor.detach().abs().max())


@pytest.mark.parametrize("fields", [{}, LSTM], ids=["MLP", "LSTM"])
def test_the_network_starts_as_pefts(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Every tensor within PyTorch's bounds, filling them; the global random state is left alone."""
    base = tiny.random_base(tmp_path, "bert", hidden_size=64, intermediate_size=64)
    work = tiny.workload(base)
    values = {"num_virtual_tokens": 30, **fields, "encoder_hidden_size": 100}
    trials = [tiny.trial(base, str(seed), seed, "p-tuning", **values) for seed in (1, 2, 1)]
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
    state = torch.random.get_rng_state()
    first, other, again = (stack.open(trial) for trial in trials)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.flat, again.flat)
    plain = base.load_model(work.task.auto_class, work.task.model_config(base)).model
    theirs = dict(get_peft_model(plain, with_sizes(trials[0].config, plain)).named_parameters())
    for name, parameter in first.adapter.parameters.items():
        if name.startswith("prompt_encoder"):
            assert not torch.equal(parameter, other.adapter.parameters[name])
            reference = theirs[peft_name(name)]
            assert parameter.shape == reference.shape
            assert spread(parameter) == pytest.approx(spread(reference), rel=0.35)
            if "embedding" not in name:
                assert largest(parameter) == pytest.approx(largest(reference), rel=0.1)


# What is asked for


def test_prompts_take_their_places_from_long_texts_where_positions_are_few(tmp_path: Path) -> None:
    for kind, room in (("bert", 96 - 20), ("roberta", 96 - 20), ("gpt2", 96 - 20), ("llama", 512)):
        _, slot, _ = open_slot(tiny.random_base(tmp_path, kind), num_virtual_tokens=20)
        assert slot.max_length == room, kind
        assert slot.adapter.virtual_tokens == 20


def check(base: Base, method: str, **fields: Any) -> None:
    config = find_method(method).make_config(fields, base.config.model_type, ["classifier"])
    find_method(method).check(config, base.skeleton(SequenceClassification.auto_class, base.model_config(2)))


@pytest.mark.parametrize(
    ("method", "fields", "words"),
    [
        ("prompt", {"num_virtual_tokens": 0}, ["1 to 93, for the base takes 96 positions", "found 0"]),
        ("p-tuning", {"num_virtual_tokens": 94}, ["1 to 93", "found 94"]),
        ("prompt", {"num_virtual_token": 3}, ["Did you mean 'num_virtual_tokens'"]),
        ("prompt", {"num_virtual_tokens": "many"}, ["prompt.num_virtual_tokens", "'many'"]),
        ("prompt", {"token_dim": 32}, ["expected 16", "found 32"]),
        ("p-tuning", {"num_transformer_submodules": 2}, ["num_transformer_submodules: expected 1"]),
        (
            "prompt",
            {"prompt_tuning_init": "text"},
            ["RANDOM, SAMPLE_VOCAB, TEXT", "'TEXT'"],
        ),
        ("prompt", {"prompt_tuning_init": "TEXT"}, ["prompt_tuning_init_text can't be None"]),
        ("prompt", {"prompt_tuning_init_text": "  "}, ["a text to start from", "'  '"]),
        (
            "prompt",
            {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": "calm"},
            ["one beside prompt_tuning_init RANDOM"],
        ),
        (
            "prompt",
            {"prompt_tuning_init_text": "calm", "tokenizer_kwargs": {"use_fast": False}},
            ["tokenizer_kwargs"],
        ),
        ("prompt", {"modules_to_save": ["word_embeddings"]}, ["behind the input embeddings"]),
        ("prompt", {"modules_to_save": ["nothing"]}, ["'nothing', which matches none"]),
        ("p-tuning", {"encoder_dropout": 0.1}, ["encoder_dropout: expected 0.0", "LSTM"]),
        ("p-tuning", {"encoder_num_layers": 3}, ["encoder_num_layers: expected 2"]),
        ("p-tuning", {**LSTM, "encoder_dropout": 1.0}, ["0 <= p < 1"]),
        (
            "p-tuning",
            {**LSTM, "encoder_num_layers": 0, "encoder_hidden_size": 0},
            ["encoder_num_layers: expected at least 1", "encoder_hidden_size: expected at least 1"],
        ),
        ("p-tuning", {"encoder_reparameterization_type": "GRU"}, ["MLP or LSTM", "'GRU'"]),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(
    tmp_path: Path, method: str, fields: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        check(tiny.random_base(tmp_path, "bert"), method, **fields)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_text_for_another_base_is_refused(tmp_path: Path) -> None:
    larger = tiny.save_base(tmp_path, "gpt2", vocab_size=250)
    base = tiny.random_base(tmp_path, "bert", vocab_size=20)
    with pytest.raises(UserError, match=r"ids below 20, found id \d\d"):
        start(base, prompt_tuning_init_text="xyz", tokenizer_name_or_path=str(larger))


def test_a_decoder_with_positions_of_its_own_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bart.json"
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24}
    sizes |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    path.write_text(json.dumps({"model_type": "bart", "vocab_size": 160, **sizes}))
    with pytest.raises(UserError, match=r"BartFor.*choose another method, such as lora"):
        check(tiny.open_base(f"random:{path}"), "prompt")


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_parameters_are_counted_without_weights(tmp_path: Path, kind: str) -> None:
    path = tiny.write_config(tmp_path, kind)
    head = 2 * 16 + (2 if kind == "bert" else 0)
    count = count_parameters(path, "prompt", {"prompt_tuning_init_text": "calm", "num_virtual_tokens": 9})
    assert count.trainable == 9 * 16 + head
    assert count.by_part["head (trained)"] == head
    for fields in ({}, {**LSTM, "encoder_num_layers": 2}):
        base = tiny.open_base(f"random:{path}")
        _, slot, plain = open_slot(base, "p-tuning", **fields)
        count = count_parameters(path, "p-tuning", {"num_virtual_tokens": 5, **fields})
        expected = get_peft_model(plain, with_sizes(slot.config, plain)).get_nb_trainable_parameters()[0]
        assert count.trainable == expected == sum(p.numel() for p in slot.adapter.parameters.values())
