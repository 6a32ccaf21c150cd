"""Prompt tuning and p-tuning: names, files, starting points, and what is refused; against PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import fresh
import oracle
import runs
import tiny
import tunestack
from test_prompt import ENCODERS, LSTM, batch_of, open_slot, open_slot_of, peft_name, reference
from tunestack.bases import Base
from tunestack.errors import UserError
from tunestack.methods.base import read_tensors
from tunestack.methods.prompt import with_sizes
from tunestack.methods.registry import find_method
from tunestack.params import count_parameters
from tunestack.saved import Seat
from tunestack.stack.stack import Stack
from tunestack.tasks.classification import SequenceClassification

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
    done = fresh.python(oracle.LOAD, asked, answered)
    assert done.code == 0, done.err
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
    with pytest.raises(UserError, match=r"ids below 20, found id \d\d"):
        check(base, "prompt", prompt_tuning_init_text="xyz", tokenizer_name_or_path=str(larger))


def test_a_tokenizer_that_is_not_there_is_refused_before_training(tmp_path: Path) -> None:
    wrong = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"prompt\.tokenizer_name_or_path: .*nowhere: no such folder"):
        check(
            tiny.random_base(tmp_path, "bert"),
            "prompt",
            prompt_tuning_init_text="calm",
            tokenizer_name_or_path=wrong,
        )


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
