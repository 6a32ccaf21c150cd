"""Parameter counts against PEFT's own, and the published figures explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoConfig, AutoModelForSequenceClassification
from typer.testing import CliRunner

from tunestack.cli.app import app
from tunestack.errors import UserError
from tunestack.params import count_parameters, render_params

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"
ROBERTA, MISTRAL, LLAMA = (
    CONFIGS / f"{name}.json" for name in ("roberta-large", "mistral-7b-v0.1", "llama-2-7b")
)
QV = ["q_proj", "v_proj"]


def meta_model(path: Path, num_labels: int = 2) -> Any:
    config = AutoConfig.from_pretrained(str(path), num_labels=num_labels)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def peft_counts(path: Path, fields: dict[str, Any], num_labels: int = 2) -> tuple[int, int]:
    """(trainable, all) as PEFT counts them."""
    with torch.device("meta"):
        model = get_peft_model(meta_model(path, num_labels), LoraConfig(task_type="SEQ_CLS", **fields))
    return model.get_nb_trainable_parameters()


@pytest.mark.parametrize(
    ("path", "fields", "trainable", "total"),
    [
        (ROBERTA, {"r": 2, "target_modules": ["query", "value"]}, 1_248_258, 356_610_052),
        (MISTRAL, {"r": 2, "target_modules": QV}, 860_160, 7_111_528_448),
        (MISTRAL, {"r": 4, "target_modules": QV}, 1_712_128, 7_112_380_416),
        (MISTRAL, {"r": 2, "target_modules": [*QV, "k_proj", "o_proj"]}, 1_712_128, 7_112_380_416),
        (LLAMA, {"r": 16, "target_modules": QV}, 8_396_800, 6_615_748_608),
    ],
)
def test_counts_of_large_models(path: Path, fields: dict[str, Any], trainable: int, total: int) -> None:
    count = count_parameters(path, "lora", fields)
    assert (count.trainable, count.total) == (trainable, total) == peft_counts(path, fields)


@pytest.mark.parametrize(
    ("path", "fields", "published"),
    [
        (ROBERTA, {"r": 2}, 2_299_908),
        (MISTRAL, {"r": 4}, 1_720_320),
        (LLAMA, {"r": 16}, 8_404_992),
    ],
)
def test_published_figures_count_the_head_twice(path: Path, fields: dict[str, Any], published: int) -> None:
    count = count_parameters(path, "lora", fields)
    assert count.trainable + count.by_part["head as loaded (frozen)"] == published


TINY: dict[str, tuple[dict[str, Any], list[str]]] = {
    "bert": (
        {"model_type": "bert", "num_attention_heads": 4, "intermediate_size": 24},
        ["query", "key", "value", "attention.output.dense", "intermediate.dense"],
    ),
    "roberta": (
        {"model_type": "roberta", "num_attention_heads": 4, "intermediate_size": 24},
        ["query", "value", "output.dense"],
    ),
    "distilbert": (
        {"model_type": "distilbert", "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
        ["q_lin", "v_lin", "lin1"],
    ),
    "qwen2": (
        {
            "model_type": "qwen2",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "tie_word_embeddings": True,
        },
        ["q_proj", "v_proj", "down_proj"],
    ),
    "gpt2": ({"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4}, ["c_attn", "mlp.c_fc"]),
}


def write_tiny(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.json"
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2} if kind != "distilbert" else {}
    path.write_text(json.dumps({**shape, **TINY[kind][0]}))
    return path


@settings(max_examples=15, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(TINY)), r=st.integers(1, 8), num_labels=st.integers(2, 5))
def test_lora_counts_as_peft_does(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, r: int, num_labels: int
) -> None:
    path = write_tiny(tmp_path_factory.mktemp("tiny"), kind)
    targets = data.draw(st.lists(st.sampled_from(TINY[kind][1]), min_size=1, unique=True))
    fields = {"r": r, "target_modules": targets}
    count = count_parameters(path, "lora", fields, num_labels)
    assert (count.trainable, count.total) == peft_counts(path, fields, num_labels)
    assert sum(count.by_part.values()) == count.total
    assert sum(count.by_module.values()) == count.trainable


def test_trained_biases_are_the_trials_own(tmp_path: Path) -> None:
    """PEFT trains the base's biases in place; here the base stays as it is, and the trial has copies."""
    path = write_tiny(tmp_path, "bert")
    fields = {"r": 2, "target_modules": ["query", "value"], "bias": "lora_only"}
    count = count_parameters(path, "lora", fields)
    trainable, total = peft_counts(path, fields)
    assert count.trainable == trainable
    assert count.total == total + 2 * 2 * 16


@pytest.mark.parametrize("kind", TINY)
def test_full_fine_tuning_trains_every_parameter_once(kind: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path, kind)
    count = count_parameters(path, "full", {}, num_labels=3)
    assert count.trainable == count.total == meta_model(path, 3).num_parameters()


def test_modules_are_named_without_their_layer_numbers() -> None:
    count = count_parameters(ROBERTA, "lora", {"r": 2})
    assert count.by_module == {
        "roberta.encoder.layer.*.attention.self.query": 24 * 2 * (1024 + 1024),
        "roberta.encoder.layer.*.attention.self.value": 24 * 2 * (1024 + 1024),
        "classifier.dense": 1024 * 1024 + 1024,
        "classifier.out_proj": 2 * 1024 + 2,
    }
    console = Console(width=100)
    with console.capture() as capture:
        console.print(render_params(count))
    shown = capture.get()
    assert "356,610,052" in shown
    assert "1,248,258" in shown
    assert "0.3500%" in shown


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("lorra", {}, "'lora'"),
        ("lora", {"rank": 4}, "Known"),
        ("lora", {"target_modules": ["q_pro"]}, "self_attn.q_proj"),
        ("lora", {"r": 100_000}, "1 <= r <= 4096"),
    ],
)
def test_what_cannot_be_counted_is_explained(method: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        count_parameters(MISTRAL, method, fields)


@pytest.mark.parametrize("method", ["frod", "shira", "adamss"])
def test_methods_that_start_from_weights_are_not_counted_without(method: str, tmp_path: Path) -> None:
    fields = {"r": 2} if method != "frod" else {}
    with pytest.raises(UserError, match="without weights"):
        count_parameters(write_tiny(tmp_path, "bert"), method, fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ('{"model_type": "bert"', "can be loaded"),
        ('{"model_type": "bertt"}', "can be loaded"),
        ('{"model_type": "vit"}', "classify sequences"),
    ],
)
def test_a_config_that_cannot_be_used_is_a_user_error(
    content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        count_parameters(path, "lora", {})


MT0_LARGE: dict[str, Any] = {
    "model_type": "mt5",
    "vocab_size": 250_112,
    "d_model": 1024,
    "d_kv": 64,
    "d_ff": 2816,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
ROBERTA_BASE: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50_265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
}


@pytest.mark.parametrize(
    ("config", "fields", "trainable", "frozen", "share"),
    [
        # The published count is of a language model, which has an output layer where a classifier has none.
        (MT0_LARGE, {"r": 8}, 2_359_296, 973_466_624, 0.19),
        (ROBERTA_BASE, {"r": 8, "bias": "all", "modules_to_save": ["LayerNorm"]}, 416_256, 124_055_040, 0.34),
    ],
)
def test_published_counts_without_a_head(
    config: dict[str, Any], fields: dict[str, Any], trainable: int, frozen: int, share: float, tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    count = count_parameters(path, "lora", fields)
    assert count.by_part["lora (trained)"] == trainable
    assert count.by_part["base (frozen)"] == frozen
    own_output = config["vocab_size"] * config["d_model"] if config is MT0_LARGE else 0
    assert 100 * trainable / (frozen + own_output + trainable) == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize(
    ("method", "added"),
    [
        ("bitfit", 12 * (4 * 768 + 3072 + 768) + 12 * 2 * 768 + 768),
        ("layernorm", (12 * 2 + 1) * 2 * 768),
        ("ia3", 12 * (768 + 768 + 3072 + 768)),
        ("vera", 12 * 2 * (768 + 256)),
        ("adalora", 12 * 4 * (12 * (768 + 768) + 12) + 12 * 2 * (12 * (768 + 3072) + 12)),
    ],
)
def test_counts_of_other_methods(method: str, added: int, tmp_path: Path) -> None:
    """Each by its formula, on RoBERTa-base."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ROBERTA_BASE))
    count = count_parameters(path, method, {})
    assert count.by_part[f"{method} (trained)"] == added
    assert count.by_part["base (frozen)"] >= 124_055_040


def shown(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["params", "--base", str(ROBERTA), *arguments])


def test_any_field_of_any_method_can_be_set() -> None:
    fields = {"num_virtual_tokens": 7, "prefix_projection": True, "encoder_hidden_size": 16}
    expected = count_parameters(ROBERTA, "prefix", fields)
    done = shown("--method", "prefix", *(f"--set={name}={value}" for name, value in fields.items()))
    assert done.exit_code == 0, done.output
    assert f"{expected.trainable:,}" in done.stdout
    assert count_parameters(ROBERTA, "prefix", {"num_virtual_tokens": 7}).trainable != expected.trainable
    done = shown("--set", "target_modules=[query, value]", "--set", "r=2", "--bias", "none")
    assert "1,248,258" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "num_virtual_token=3", "--method", "prefix"], "Did you mean 'num_virtual_tokens'"),
        (["--set", "r"], "Write it like --set r=8."),
        (["--r", "2", "--set", "r=4"], "r more than once"),
        (["--set", "target_modules=[query"], "a value in YAML"),
    ],
)
def test_what_cannot_be_set(arguments: list[str], told: str) -> None:
    done = shown(*arguments)
    assert done.exit_code == 2
    assert told in done.stderr
