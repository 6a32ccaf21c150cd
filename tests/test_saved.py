"""Using what was trained: a fresh load gives what training gave, from any folder, for files of any size."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import runs
import tiny
import tunestack
from tunestack import BottleneckConfig
from tunestack.adapters import open_adapter, read_config
from tunestack.choice import choose
from tunestack.errors import UserError
from tunestack.results import Results, SeedResult

KINDS = ["majority", "tfidf", "linear-probe", "lora", "full"]


@pytest.fixture(scope="module")
def run(tiny_data: Path) -> Path:
    """One trained candidate of every kind; no costs."""
    folder = tiny_data / "kinds"
    methods = ["majority", {"method": "tfidf", "min_df": 1}, "linear-probe", "lora", "full"]
    training = {"epochs": 3, "learning_rate": 3e-3}
    runs.compare(runs.settings(tiny_data, methods=methods, training=training, output=str(folder)))
    return folder


def _seeds(run: Path, kind: str) -> list[SeedResult]:
    results = Results.load(run / "results.json")
    return next(candidate.seeds for candidate in results.candidates if candidate.name == kind)


def _texts(data: Path, split: str) -> list[str]:
    return pd.read_csv(data / f"{split}.csv")["text"].tolist()


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_candidate_says_what_it_said_in_training(
    run: Path, tiny_data: Path, kind: str, split: str
) -> None:
    for seed in _seeds(run, kind):
        predictor = tunestack.load(run / seed.adapter_path, device="cpu")
        stored = runs.probabilities(run, getattr(seed, split).predictions_path)
        found = predictor.predict_proba(_texts(tiny_data, split))
        # Models ran in other batches then, which rounds fp32 differently.
        np.testing.assert_allclose(found, stored, rtol=0, atol=2e-6 if kind in ("lora", "full") else 1e-12)
        assert predictor.label_names == ("calm", "urgent")
        assert len(np.unique(found.round(9), axis=0)) > 1 or kind == "majority"


@pytest.mark.parametrize(("ship", "better"), [("lora", 0), ("lora", 1), ("full", 1), ("tfidf", 0)])
def test_a_run_folder_gives_the_shipped_candidates_best_seed(
    run: Path, tiny_data: Path, tmp_path: Path, ship: str, better: int
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    results = Results.load(folder / "results.json")
    assert results.verdict is not None
    results.verdict.ship = ship
    seeds = next(candidate.seeds for candidate in results.candidates if candidate.name == ship)
    for position, seed in enumerate(seeds):
        seed.validation.metrics["f1"] = 0.6 + 0.3 * (position == better)
        seed.validation.metrics["accuracy"] = 0.9 - 0.3 * (position == better)
    results.save(folder / "results.json")
    predictor = tunestack.load(str(folder))
    stored = folder / seeds[better].validation.predictions_path
    found = predictor.predict_proba(_texts(tiny_data, "validation"))
    np.testing.assert_allclose(found, runs.probabilities(folder, str(stored)), atol=2e-6)
    assert predictor.predict(_texts(tiny_data, "validation")) == pd.read_csv(stored)["prediction"].tolist()


def test_the_best_seed_is_the_first_of_equals_and_was_saved(run: Path) -> None:
    results = Results.load(run / "results.json")
    lora = next(candidate for candidate in results.candidates if candidate.name == "lora")
    for seed in lora.seeds:
        seed.validation.metrics["f1"] = 0.5
    assert lora.best_seed("f1") is lora.seeds[0]
    lora.seeds[1].validation.metrics["f1"] = 0.6
    assert lora.best_seed("f1") is lora.seeds[1]
    lora.seeds[1].adapter_path = None
    assert lora.best_seed("f1") is lora.seeds[0]
    lora.seeds[0].validation = None
    assert lora.best_seed("f1") is None


@pytest.mark.parametrize("kind", ["lora", "full", "linear-probe"])
def test_a_run_folder_that_was_moved_still_loads(
    run: Path, tiny_data: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    monkeypatch.chdir(tmp_path)
    seed = _seeds(moved, kind)[0]
    found = tunestack.load(Path("moved") / seed.adapter_path).predict_proba(_texts(tiny_data, "test"))
    np.testing.assert_allclose(found, runs.probabilities(run, seed.test.predictions_path), atol=2e-6)


def test_a_base_with_drawn_weights_is_named_and_drawn_again(tiny_data: Path, tmp_path: Path) -> None:
    base = f"random:{tiny.write_config(tmp_path, 'llama')}"
    settings = {"model": base, "dtype": "float32", "device_map": "cpu"}
    values = runs.settings(
        tiny_data, bases=[settings], methods=["lora"], seeds=1, output=str(tmp_path / "run")
    )
    (seed,) = runs.compare(values).candidates[0].seeds
    adapter = tmp_path / "run" / seed.adapter_path
    assert runs.read_json(adapter / "adapter_config.json")["base_model_name_or_path"] == base
    assert runs.read_json(adapter / "tunestack.json")["base"]["model"] == base
    found = tunestack.load(adapter).predict_proba(_texts(tiny_data, "validation"))
    stored = runs.probabilities(tmp_path / "run", seed.validation.predictions_path)
    np.testing.assert_allclose(found, stored, atol=2e-6)


def test_predict_takes_lists_of_the_kind_it_was_trained_on(run: Path) -> None:
    predictor = tunestack.load(run / _seeds(run, "tfidf")[0].adapter_path)
    assert predictor.predict([]) == []
    assert predictor.predict_proba([]).shape == (0, 2)
    with pytest.raises(UserError, match="expected a list of texts"):
        predictor.predict("a single text")
    with pytest.raises(UserError, match="pairs: expected none"):
        predictor.predict(["a"], ["b"])


# What cannot be loaded


def test_folders_in_which_there_is_nothing_to_load(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        tunestack.load(tmp_path / "none")
    with pytest.raises(UserError, match="found neither"):
        tunestack.load(tmp_path)


def test_damaged_files_are_named(run: Path, tmp_path: Path) -> None:
    def copy(name: str, kind: str = "lora") -> Path:
        return Path(shutil.copytree(run / _seeds(run, kind)[0].adapter_path, tmp_path / name))

    description = copy("a") / "tunestack.json"
    description.write_text(description.read_text().replace('"kind"', '"kid"'))
    with pytest.raises(UserError, match=r"tunestack\.json: expected a file as this version"):
        tunestack.load(description.parent)
    unknown = copy("d", "tfidf") / "tunestack.json"
    unknown.write_text(unknown.read_text().replace('"tfidf"', '"tfid"'))
    with pytest.raises(UserError, match="Did you mean 'tfidf'"):
        tunestack.load(unknown.parent)
    shutil.copy(run / "results.json", tmp_path / "results.json")
    (tmp_path / "results.json").write_text((run / "results.json").read_text().replace("sentence", "words"))
    with pytest.raises(UserError, match=r"results\.json: expected a file as this version"):
        tunestack.load(tmp_path)


# Adapters that do not fit, or are none


@pytest.fixture
def adapter(run: Path, tmp_path: Path) -> Path:
    """A copy of a trained LoRA adapter."""
    return Path(shutil.copytree(run / _seeds(run, "lora")[0].adapter_path, tmp_path / "adapter"))


def _edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**runs.read_json(path), **fields}))


def _move(adapter: Path, base: Path) -> None:
    """Say in both files that the adapter is one of this base."""
    description = runs.read_json(adapter / "tunestack.json")
    _edit(adapter / "tunestack.json", base={**description["base"], "model": str(base)})
    _edit(adapter / "adapter_config.json", base_model_name_or_path=str(base))


def _refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        tunestack.load(folder, device="cpu")
    return str(caught.value)


def test_an_adapter_of_another_base_is_refused_and_both_are_named(adapter: Path, tiny_data: Path) -> None:
    _edit(adapter / "adapter_config.json", base_model_name_or_path="someone/else")
    told = _refused(adapter)
    assert f"an adapter for {tiny_data / 'saved-bert'}" in told
    assert "one for someone/else" in told
    _edit(adapter / "adapter_config.json", base_model_name_or_path=str(tiny_data / "." / "saved-bert") + "/")
    tunestack.load(adapter, device="cpu")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": 32}, "has shape (16, 16) and not (32, 32)"),
        ({"num_hidden_layers": 1}, "it has a module bert.encoder.layer.1"),
        ({"model_type": "distilbert"}, "it has a module bert"),
        ({"intermediate_size": 9}, None),
    ],
    ids=["wider", "shallower", "another architecture", "where LoRA is not"],
)
def test_an_adapter_on_a_base_of_other_sizes(
    adapter: Path, tmp_path: Path, fields: dict[str, Any], told: str | None
) -> None:
    kind = fields.pop("model_type", "bert")
    _move(adapter, base := tiny.save_base(tmp_path, kind, **fields))
    if told is None:
        tunestack.load(adapter, device="cpu")
        return
    (base / "model.safetensors").unlink()  # it is refused before any weights are read
    refused = _refused(adapter)
    assert f"expected an adapter that fits {base} with 2 labels, found one trained on {base}" in refused
    assert told in refused


def test_an_adapter_for_another_number_of_labels(adapter: Path) -> None:
    _edit(adapter / "tunestack.json", label_names=["a", "b", "c"])
    assert "with 3 labels" in (told := _refused(adapter))
    assert "classifier.weight has shape (2, 16) and not (3, 16)" in told


def test_an_adapter_that_lacks_tensors(adapter: Path, tiny_data: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    low = next(name for name in tensors if "lora_B" in name)
    save_file({name: value for name, value in tensors.items() if name != low}, path)
    told = _refused(adapter)
    assert f"fits {tiny_data / 'saved-bert'}" in told
    assert f"{low} is missing" in told
    save_file({name: value for name, value in tensors.items() if "pooler" not in name}, path)
    assert "weights of bert.pooler.dense, in the adapter or in its base" in _refused(adapter)
    save_file({name: value for name, value in tensors.items() if "classifier" not in name}, path)
    assert "weights of classifier, in the adapter or in its base" in _refused(adapter)


def test_a_head_that_was_lost_is_not_taken_from_the_base(adapter: Path, tmp_path: Path) -> None:
    _move(adapter, tiny.save_base(tmp_path, "bert", head=True))
    tunestack.load(adapter, device="cpu")
    path = adapter / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "classifier" not in name}, path)
    assert "base_model.model.classifier.weight is missing" in _refused(adapter)


def test_weights_that_are_not_whole_safetensors(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 200, whole[:8] + b"x" + whole[9:]):
        weights.write_bytes(damaged)
        assert "adapter_model.safetensors: expected a whole safetensors file" in _refused(adapter)
    weights.unlink()
    assert "found no such file" in _refused(adapter)
    marker = adapter / "ran"
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(_Evil(marker)))
    assert "found adapter_model.bin (pickle, which can run code)" in _refused(adapter)
    assert not marker.exists()


class _Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"lora_alhpa": 4}, "expected fields of LoraConfig, found 'lora_alhpa', written by PEFT"),
        ({"lora_alhpa": 4}, "Did you mean 'lora_alpha'"),
        ({"r": "eight"}, "expected r: Input should be a valid integer"),
        ({"bias": "some"}, "bias: Input should be 'none', 'all' or 'lora_only'"),
        ({"peft_type": "LORRA"}, "expected a peft_type that PEFT knows, found 'LORRA'. Did you mean 'LORA'"),
        ({"peft_type": None}, "found None"),
        ({"peft_type": ["LORA"]}, "found ['LORA']"),
        ({"task_type": "SEQ"}, "Invalid task type"),
    ],
)
def test_configs_that_are_not_pefts(adapter: Path, fields: dict[str, Any], told: str) -> None:
    _edit(adapter / "adapter_config.json", **fields)
    assert told in _refused(adapter)


@pytest.mark.parametrize("text", ["{", "[]", "3", '"LORA"', "\xff"])
def test_configs_that_are_no_mapping(adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_bytes(text.encode("latin-1"))
    assert "adapter_config.json: expected" in _refused(adapter)
    (adapter / "adapter_config.json").unlink()
    assert "PEFT's config of the adapter, found no such file" in _refused(adapter)


def test_an_adapter_of_another_family_than_tunestack_says(adapter: Path, tiny_data: Path) -> None:
    config = IA3Config(base_model_name_or_path=str(tiny_data / "saved-bert"), task_type="SEQ_CLS")
    config.save_pretrained(str(adapter))
    assert "expected a LoraConfig, found a IA3Config" in _refused(adapter)


def test_every_config_that_peft_writes_is_read(tmp_path: Path) -> None:
    """What is refused is refused for a reason: no default of any of PEFT's families is."""
    read = 0
    for kind in list(PEFT_TYPE_TO_CONFIG_MAPPING.values()):
        try:
            config = kind(task_type="SEQ_CLS")
        except (TypeError, ValueError):
            continue  # some need more than that
        config.save_pretrained(str(tmp_path))
        again = read_config(tmp_path)
        assert type(again) is kind
        assert again.to_dict() == config.to_dict()
        read += 1
    assert read > 20


# Adapters that PEFT wrote


def _peft_adapter(folder: Path, base: Path, labels: int, **fields: Any) -> tuple[Path, Any]:
    """An adapter as PEFT itself saves it, its weights disturbed; and the model."""
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, ignore_mismatched_sizes=True, dtype="float32"
    )
    config = LoraConfig(task_type="SEQ_CLS", r=3, target_modules=["query", "value"], **fields)
    model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return folder, model


@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize(("labels", "names"), [(2, ["no", "yes"]), (3, ["LABEL_0", "LABEL_1", "LABEL_2"])])
def test_a_plain_peft_adapter_predicts_what_peft_does(
    tmp_path: Path, labels: int, names: list[str], bias: str, command: Callable[..., Any]
) -> None:
    base = tiny.save_base(tmp_path, "bert", head=True, id2label={0: "no", 1: "yes"})
    folder, model = _peft_adapter(tmp_path / "adapter", base, labels, bias=bias)
    texts = tiny.texts(9, seed=4)["text"]
    predictor = tunestack.load(folder, device="cpu")
    assert list(predictor.label_names) == names
    batch = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = logits.softmax(-1).numpy()
    np.testing.assert_allclose(predictor.predict_proba(texts), expected, atol=0.02)  # perhaps in bfloat16
    assert len(np.unique(expected.round(3), axis=0)) > 5
    source, out = tmp_path / "new.csv", tmp_path / "out.csv"
    pd.DataFrame({"text": texts}).to_csv(source, index=False)
    done = command("predict", folder, source, "--out", out, "--device", "cpu")
    assert done.code == 0, done.err
    assert list(pd.read_csv(out).columns) == ["text", "prediction", *(f"prob_{name}" for name in names)]


@pytest.mark.parametrize(
    ("config", "method"),
    [
        (BottleneckConfig(), "series"),
        (BottleneckConfig(placement="parallel"), "parallel"),
        (PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=4), "prefix"),
        (PrefixTuningConfig(num_virtual_tokens=3), "p-tuning-v2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_methods_that_share_a_config_know_their_own(tmp_path: Path, config: Any, method: str) -> None:
    """Of the GPT-2 that PEFT's prefixes can reach."""
    base = tiny.save_base(tmp_path, "gpt2", head=True)
    torch.manual_seed(5)
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype="float32")
    model.config.pad_token_id = AutoTokenizer.from_pretrained(base).pad_token_id
    config = copy.deepcopy(config)
    config.task_type = "SEQ_CLS"
    model = get_peft_model(model, config).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    saved = open_adapter(tmp_path / "adapter", None, {})
    assert saved.method.name == method
    found = tunestack.load(tmp_path / "adapter", device="cpu").predict_proba(["calm day"])
    with torch.no_grad():
        batch = AutoTokenizer.from_pretrained(base)(["calm day"], return_tensors="pt")
        expected = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    np.testing.assert_allclose(found, expected.logits.softmax(-1).numpy(), atol=0.02)


def test_a_plain_adapter_without_a_head_takes_its_bases(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path, "bert", head=True, id2label={0: "no", 1: "yes"})
    folder, model = _peft_adapter(tmp_path / "adapter", base, 2)
    path = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "lora" in name}, path)
    found = tunestack.load(folder, device="cpu").predict_proba(["a b", "c d e", "f"])
    with torch.no_grad():
        head = model.base_model.model.classifier
        head.modules_to_save["default"].load_state_dict(head.original_module.state_dict())
        batch = AutoTokenizer.from_pretrained(base)(["a b", "c d e", "f"], padding=True, return_tensors="pt")
        batch.pop("token_type_ids", None)
        expected = model(**batch).logits.softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_plain_adapters_that_cannot_be_used_say_what_is_missing(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path, "bert")  # without pooler and head
    folder, _ = _peft_adapter(tmp_path / "adapter", base, 2)
    assert "weights of bert.pooler.dense, in the adapter or in its base" in _refused(folder)
    config = folder / "adapter_config.json"
    _edit(config, use_dora=True, init_lora_weights="pissa")
    assert "lora." in _refused(folder)
    _edit(config, task_type="CAUSAL_LM", base_model_name_or_path=None)
    told = _refused(folder)
    assert "expected base_model_name_or_path, found none" in told
    assert "sequence classification (task_type SEQ_CLS), found CAUSAL_LM" in told
    config.unlink()
    assert "found neither" in _refused(folder)


# Files


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 rows with columns of their own: one that ours replace, one with gaps, one with commas."""
    path = tmp_path_factory.mktemp("large") / "new.csv"
    values = tiny.texts(500, seed=9)["text"] * 40
    frame = pd.DataFrame({"id": range(len(values)), "text": values, "prediction": "old"})
    frame["note"] = np.where(frame["id"] % 3 == 0, 'a, "b"\nc', None)
    frame.to_csv(path, index=False)
    return path


def test_a_large_file_is_predicted_in_chunks(run: Path, large: Path, tmp_path: Path) -> None:
    predictor = tunestack.load(run / _seeds(run, "tfidf")[0].adapter_path)
    out = tmp_path / "new" / "out.csv"
    progress = predictor.predict_file(large, out, chunk_rows=3000)
    assert next(progress) == 3000
    assert not out.exists()  # not before it is whole
    assert list(progress) == [6000, 9000, 12000, 15000, 18000, 20000]
    given, found = pd.read_csv(large), pd.read_csv(out)
    assert list(found.columns) == ["id", "text", "note", "prediction", "prob_calm", "prob_urgent"]
    pd.testing.assert_frame_equal(found[["id", "text", "note"]], given[["id", "text", "note"]])
    expected = predictor.predict_proba(given["text"].tolist())
    np.testing.assert_allclose(found[["prob_calm", "prob_urgent"]], expected, atol=5.1e-7)
    assert found["prediction"].tolist() == predictor.predict(given["text"].tolist())
    assert [path.name for path in out.parent.iterdir()] == ["out.csv"]


def test_a_mistake_far_down_leaves_no_half_file(run: Path, large: Path, tmp_path: Path) -> None:
    predictor = tunestack.load(run / _seeds(run, "majority")[0].adapter_path)
    broken = tmp_path / "broken.csv"
    broken.write_text(large.read_text() + "1,2\n")
    done = []
    with pytest.raises(UserError, match=r"broken\.csv line \d+: expected 4 fields"):
        done.extend(predictor.predict_file(broken, tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken.csv"]


def test_texts_that_are_missing_far_down_are_told_before_anything_is_predicted(
    run: Path, large: Path, tmp_path: Path
) -> None:
    predictor = tunestack.load(run / _seeds(run, "majority")[0].adapter_path)
    frame = pd.read_csv(large)
    frame.loc[[1500, *range(15_000, 15_020)], "text"] = ["", *["  "] * 20]
    frame.to_csv(tmp_path / "gaps.csv", index=False)
    done: list[int] = []
    told = r"column 'text'.*no value in 21 of 20,000 rows: 1500, 15000, .*and 16 more \(0 is the first\)"
    with pytest.raises(UserError, match=told):
        done.extend(predictor.predict_file(tmp_path / "gaps.csv", tmp_path / "out.csv"))
    assert done == []
    rows = [{"text": "a"}] * 3000 + [{"text": None}, {"text": 3}, {"txt": "a"}, {"text": "\ud800"}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "[\n")
    with pytest.raises(UserError) as caught:
        done.extend(predictor.predict_file(tmp_path / "new.jsonl", tmp_path / "out.csv"))
    assert done == []
    assert "new.jsonl line 3005: expected a JSON record" in str(caught.value)
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        done.extend(predictor.predict_file(tmp_path / "new.jsonl", tmp_path / "out.csv", chunk_rows=500))
    assert done == []
    for line in (
        "no value in 2 of 3,004 rows: 3000, 3002 (0",
        "int values in 1 of 3,004 rows: 3001",
        "half a surrogate pair in 1 of 3,004 rows: 3003",
    ):
        assert line in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gaps.csv", "new.jsonl"]


def test_records_that_lack_a_field_further_down(run: Path, tmp_path: Path) -> None:
    predictor = tunestack.load(run / _seeds(run, "majority")[0].adapter_path)
    rows = [{"text": "a", "tag": "x"}] * 3 + [{"text": "b"}] * 3
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(predictor.predict_file(tmp_path / "new.jsonl", tmp_path / "out.csv", chunk_rows=2)) == [
        2,
        4,
        6,
    ]
    assert pd.read_csv(tmp_path / "out.csv")["tag"].tolist()[:3] == ["x"] * 3


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("tweets.csv", "out.csv", "column 'text' in the first line"),
        ("none.csv", "out.csv", "expected a file, found nothing of this name"),
        ("empty.csv", "out.csv", "at least one row"),
        ("tweets.csv", "tweets.csv/out.csv", "expected a file that can be written, found .* is a file"),
        ("tweets.csv", ".", "expected a file that can be written, found a folder"),
    ],
)
def test_files_that_cannot_be_read_or_written(
    run: Path, tmp_path: Path, source: str, out: str, message: str
) -> None:
    (tmp_path / "tweets.csv").write_text("txt\nhello\n")
    (tmp_path / "empty.csv").touch()
    predictor = tunestack.load(run / _seeds(run, "majority")[0].adapter_path)
    with pytest.raises(UserError, match=message):
        list(predictor.predict_file(tmp_path / source, tmp_path / out))
    assert {path.name for path in tmp_path.iterdir()} == {"tweets.csv", "empty.csv"}


def test_what_is_no_text_is_refused(run: Path) -> None:
    predictor = tunestack.load(run)
    with pytest.raises(UserError, match=r"found None at place 1, and 1 more"):
        predictor.predict(["fire", None, 3])  # type: ignore[list-item]
    assert len(predictor.predict(["fire"])) == 1


def test_predictions_overwrite_no_input_and_are_csv(run: Path, tmp_path: Path) -> None:
    predictor = tunestack.load(run)
    source = tmp_path / "new.csv"
    source.write_text("text\nfire in the mill\n", encoding="utf-8")
    kept = source.read_bytes()
    for out, told in ((source, "the file to predict itself"), (tmp_path / "out.parquet", "'.parquet'")):
        with pytest.raises(UserError, match=told):
            list(predictor.predict_file(source, out))
    assert source.read_bytes() == kept
    assert list(predictor.predict_file(source, tmp_path / "out.csv")) == [1]


def test_columns_of_other_names_are_chosen(run: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    source, out = tmp_path / "new.csv", tmp_path / "out.csv"
    pd.DataFrame({"id": [1], "message": ["fire in the mill"]}).to_csv(source, index=False)
    lacking = command("predict", run, source, "--out", out, "--device", "cpu")
    assert lacking.code == 2
    assert "expected: a column 'text' in the first line" in lacking.err
    assert "Known: id, message. Choose with --text (in Python text=)." in lacking.err
    predictor = tunestack.load(run)
    assert list(predictor.predict_file(source, out, text="message")) == [1]
    assert pd.read_csv(out)["prediction"].tolist() == predictor.predict(["fire in the mill"])
    with pytest.raises(UserError, match="text_pair: expected none: it was trained on single texts"):
        list(predictor.predict_file(source, tmp_path / "more.csv", text="message", text_pair="id"))


def test_a_file_that_is_there_is_replaced_only_if_asked(
    run: Path, tiny_data: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "notes.csv"
    out.write_text("mine")
    asked = ("predict", run, tiny_data / "test.csv", "--out", out, "--device", "cpu")
    refused = command(*asked)
    assert refused.code == 2
    assert "replace it with --overwrite" in refused.err
    assert out.read_text() == "mine"
    assert command(*asked, "--overwrite").code == 0
    assert len(pd.read_csv(out)) == 16


def test_predict_on_the_command_line(
    run: Path, tiny_data: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "[bold]out.csv"
    done = command("predict", run, tiny_data / "test.csv", "--out", out, "--device", "cpu")
    assert done.code == 0, done.err
    shipped = choose(run).candidate
    assert shipped is not None
    assert f"16 rows labelled with {shipped.name}, seed " in done.out
    assert str(out) in done.out
    frame = pd.read_csv(out)
    assert list(frame.columns) == ["text", "label", "prediction", "prob_calm", "prob_urgent"]
    assert frame["prediction"].tolist() == tunestack.load(run).predict(frame["text"].tolist())
    asked = ("predict", run, tiny_data / "test.csv", "--out", out, "--overwrite")
    done = command(*asked, "--candidate", "majority")
    assert "16 rows labelled with majority" in done.out
    assert pd.read_csv(out)["prediction"].nunique() == 1
    assert "one of the candidates" in command(*asked, "--candidate", "majorty").err


def test_a_folder_cannot_ask_for_its_base_to_be_trusted(run: Path, tmp_path: Path) -> None:
    """Whose code may run is said by who loads, not by what is loaded."""
    source = run / _seeds(run, "lora")[0].adapter_path
    folder = tmp_path / "adapter"
    shutil.copytree(source, folder)
    description = json.loads((folder / "tunestack.json").read_text())
    base, marker = Path(description["base"]["model"]), tmp_path / "marker"
    evil = tmp_path / "evil"
    shutil.copytree(base, evil)
    (evil / "code.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nfrom transformers import BertConfig\n"
        "class C(BertConfig):\n    model_type = 'evil'\n"
    )
    config = json.loads((evil / "config.json").read_text())
    (evil / "config.json").write_text(
        json.dumps({**config, "model_type": "evil", "auto_map": {"AutoConfig": "code.C"}})
    )
    _move(folder, evil)
    description["base"] |= {"model": str(evil), "trust_remote_code": True}
    (folder / "tunestack.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="trust_remote_code"):
        tunestack.load(folder, device="cpu")
    assert not marker.exists()
