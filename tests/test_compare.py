"""Whole comparisons: what a user gets, held against the data, scikit-learn, PEFT; interruptions; failures."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn import metrics as sk

import fresh
import runs
import tiny
import tunestack
from tunestack.comparison.folder import RunFolder
from tunestack.comparison.plan import make_plan
from tunestack.config import CompareConfig
from tunestack.data.encode import pad
from tunestack.errors import UserError
from tunestack.results import Results
from tunestack.settings import read_yaml, validated
from tunestack.stack.events import Event

NAMES = ["majority", "tfidf", "linear-probe", "lora lora_alpha=8 r=2", "lora lora_alpha=8 r=4", "full"]
LORAS = [name for name in NAMES if name.startswith("lora")]


@pytest.fixture(scope="module")
def results(whole_run: Any) -> Results:
    return Results.load(whole_run.folder / "results.json")


def _seeds(results: Results) -> Iterator[tuple[Any, Any]]:
    return ((candidate, seed) for candidate in results.candidates for seed in candidate.seeds)


def test_the_command_succeeds_and_prints_leaderboard_and_verdict(whole_run: Any, results: Results) -> None:
    done = whole_run.command
    assert done.code == 0, done.err
    assert [candidate.name for candidate in results.candidates] == NAMES
    printed = " ".join(done.out.replace("│", " ").split())
    assert results.verdict is not None
    assert results.verdict.sentence in printed
    assert str(whole_run.folder / "report.html") in done.out
    for name in NAMES:
        assert name.split()[0] in done.out
    assert results.verdict.sentence in (whole_run.folder / "report.html").read_text(encoding="utf-8")
    assert f"**Ship {results.verdict.ship}" in (whole_run.folder / "leaderboard.md").read_text().replace(
        "\\", ""
    )


def test_every_path_of_the_results_is_there_and_nothing_unfinished_is_left(
    whole_run: Any, results: Results
) -> None:
    for candidate, seed in _seeds(results):
        assert seed.failure is None
        adapter = whole_run.folder / seed.adapter_path
        assert (adapter / "tunestack.json").is_file()
        assert any(adapter.glob("*.safetensors"))
        for split in (seed.validation, seed.test):
            assert (whole_run.folder / split.predictions_path).is_file()
        assert len(candidate.seeds) == (2 if candidate.kind == "method" else 1)
    names = {path.name for path in whole_run.folder.iterdir()}
    expected = {"candidates", "config.yaml", "environment.json", "run.json"}
    assert names == expected | {"results.json", "leaderboard.md", "report.html"}
    assert not list(whole_run.folder.rglob(".*"))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_metrics_are_those_of_scikit_learn_on_the_stored_predictions(
    whole_run: Any, results: Results, split: str
) -> None:
    data = pd.read_csv(whole_run.data / f"{split}.csv")
    for candidate, seed in _seeds(results):
        scores = getattr(seed, split)
        frame = pd.read_csv(whole_run.folder / scores.predictions_path)
        assert frame["label"].tolist() == data["label"][frame["row"]].tolist()
        assert len(frame) == len(data)
        truth, predicted, urgent = frame["label"], frame["prediction"], frame["prob_urgent"]
        np.testing.assert_allclose(frame["prob_calm"] + urgent, 1.0, atol=1e-12)
        assert (predicted == np.where(urgent > frame["prob_calm"], "urgent", "calm")).all()
        binary = {"pos_label": "urgent", "zero_division": 0}
        expected = {
            "accuracy": sk.accuracy_score(truth, predicted),
            "precision": sk.precision_score(truth, predicted, **binary),
            "recall": sk.recall_score(truth, predicted, **binary),
            "f1": sk.f1_score(truth, predicted, **binary),
            "mcc": sk.matthews_corrcoef(truth, predicted),
            "roc_auc": sk.roc_auc_score(truth == "urgent", urgent),
        }
        assert scores.metrics == pytest.approx(expected, abs=1e-12), candidate.name
        assert scores.confusion == sk.confusion_matrix(truth, predicted, labels=tiny.LABELS).tolist()


def test_a_candidates_summary_is_the_mean_of_its_seeds_and_the_best_epoch_is_kept(results: Results) -> None:
    for candidate in results.candidates:
        for split in ("validation", "test"):
            values = [getattr(seed, split).metrics["f1"] for seed in candidate.seeds]
            summary = getattr(candidate, split)["f1"]
            assert summary.mean == pytest.approx(np.mean(values))
            assert summary.interval.low <= summary.mean <= summary.interval.high
        for seed in candidate.seeds if candidate.kind == "method" else []:
            best = max(seed.curves, key=lambda point: point.metrics["f1"])
            assert seed.best_epoch == best.epoch
            assert seed.validation.metrics == pytest.approx(best.metrics)


def test_costs_are_measured_and_counted_for_everyone(whole_run: Any, results: Results) -> None:
    for candidate in results.candidates:
        costs = candidate.costs
        for name, value in costs.model_dump().items():
            if candidate.kind == "method" or name != "seconds_per_step":
                if name == "others_share" and candidate.kind == "baseline" and value is None:
                    continue  # it was over before the system's clock had moved
                assert value is not None, (candidate.name, name)
                may_be_zero = name in ("peak_memory_bytes", "others_share")
                assert value > 0 or (may_be_zero and value == 0), (candidate.name, name)
        stored = whole_run.folder / candidate.seeds[0].adapter_path
        sizes = {file.name: file.stat().st_size for file in stored.iterdir()}
        assert costs.adapter_bytes == sum(sizes[name] for name in sizes if not name.startswith("tokenizer"))
        if candidate.kind == "method":
            steps = -(-runs.ROWS["train"] // 8) * 2
            assert costs.train_seconds == pytest.approx(costs.seconds_per_step * steps)
    by_name = {candidate.name: candidate.costs for candidate in results.candidates}
    two, four = (by_name[name].trainable_parameters for name in LORAS)
    assert four - two == 2 * tiny.LAYERS * 2 * (tiny.HIDDEN + tiny.HIDDEN)  # 2 more ranks on query and value
    assert by_name["full"].trainable_parameters == by_name["full"].total_parameters


ORACLE = """
import json, sys
from safetensors.numpy import save_file
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

base, batch, *adapters = sys.argv[1:]
batch = {name: torch.tensor(values) for name, values in json.load(open(batch)).items()}
assert "tunestack" not in sys.modules
out = {}
for adapter in adapters:
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(plain, adapter, is_trainable=True).eval()
    with torch.no_grad():
        logits = model(**batch).logits.tolist()
    out[adapter] = {"logits": logits, "counts": model.get_nb_trainable_parameters()}
print(json.dumps(out))
"""


def test_every_lora_adapter_loads_with_peft_on_the_plain_base(
    whole_run: Any, results: Results, tmp_path: Path
) -> None:
    costs = {candidate.name: candidate.costs for candidate in results.candidates}
    adapters = {
        str(whole_run.folder / seed.adapter_path): candidate.name
        for candidate, seed in _seeds(results)
        if candidate.name in LORAS
    }
    assert len(adapters) == 4
    texts = pd.read_csv(whole_run.data / "validation.csv")["text"].tolist()
    predictors = {folder: tunestack.load(folder) for folder in adapters}
    work = predictors[next(iter(adapters))]._stack.work
    encoded = work.task.encode(work.base, {"text": texts}, 512)
    batch = pad([(encoded, np.arange(len(texts)))], work.base.tokenizer.pad_token_id)
    (tmp_path / "batch.json").write_text(json.dumps({name: ids.tolist() for name, ids in batch.items()}))
    done = fresh.python(ORACLE, work.base.name, tmp_path / "batch.json", *adapters)
    assert done.code == 0, done.err
    for folder, theirs in json.loads(done.out).items():
        predictor = predictors[folder]
        ours = predictor._stack.outputs([predictor._seat], encoded)[0]
        torch.testing.assert_close(ours, torch.tensor(theirs["logits"]), rtol=0, atol=1e-5)
        counted = costs[adapters[folder]]
        assert [counted.trainable_parameters, counted.total_parameters] == theirs["counts"]


def test_what_a_comparison_prints_elsewhere_is_plain_lines(whole_run: Any) -> None:
    lines = whole_run.command.err.splitlines()
    trials = [f"lora-lora_alpha=8-r={r}.seed-{seed}" for r in (2, 4) for seed in (1, 2)]
    for trial in trials:
        of_trial = [line.removeprefix(f"{trial}: ") for line in lines if line.startswith(f"{trial}: ")]
        assert [re.sub(r"\d\.\d+", "#", line) for line in of_trial] == [
            "started",
            "epoch 1, loss #, f1 #",
            "epoch 2, loss #, f1 #",
            "done",
        ]
    assert "\x1b" not in whole_run.command.err + whole_run.command.out


def test_slots_and_costs_may_differ_when_a_run_is_taken_up(
    whole_run: Any, results: Results, tmp_path: Path
) -> None:
    output = str(shutil.copytree(whole_run.folder, tmp_path / "moved"))
    free = {"slots": 1, "measure_costs": False, "output": output}
    again = runs.compare({**read_yaml(whole_run.config), **free})
    assert [c.costs for c in again.candidates] == [c.costs for c in results.candidates]  # none is lost


def test_the_run_again_trains_nothing_and_says_the_same(whole_run: Any, results: Results) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole_run.folder / "candidates").rglob("*")}
    events: list[Event] = []
    start = time.process_time()
    again = runs.compare(read_yaml(whole_run.config), events.append)
    assert time.process_time() - start < 10
    assert {event.kind for event in events if event.key} == {"finished"}
    assert before == {path: path.stat().st_mtime_ns for path in (whole_run.folder / "candidates").rglob("*")}
    assert (whole_run.folder / "results.json").read_text() == again.model_dump_json(indent=2)
    same = {"exclude": {"created", "environment"}, "mode": "json"}
    assert again.model_dump(**same) == results.model_dump(**same)


def test_the_resolved_configuration_repeats_the_run(whole_run: Any) -> None:
    given, resolved = (
        make_plan(validated(CompareConfig, read_yaml(path)))
        for path in (whole_run.config, whole_run.folder / "config.yaml")
    )
    assert [c.name for c in resolved.candidates] == [c.name for c in given.candidates]
    assert [c.hyperparameters for c in resolved.candidates] == [c.hyperparameters for c in given.candidates]
    assert resolved.config == given.config


# Candidates that fail


def test_a_candidate_that_fails_does_not_stop_the_others(tiny_data: Path, tmp_path: Path) -> None:
    methods = [
        {"method": "tfidf", "min_df": 39, "name": "no words"},
        {"method": "lora", "name": "too fast", "training": {"learning_rate": 1e30}},
        {"method": "lora", "name": "sound"},
    ]
    events: list[Event] = []
    values = runs.settings(tiny_data, methods=methods, output=str(tmp_path / "run"), measure_costs=False)
    results = runs.compare(values, events.append)
    failures = {c.name: [seed.failure for seed in c.seeds] for c in results.candidates}
    assert failures["sound"] == [None, None]
    assert all("lower the learning rate" in text or "not finite" in text for text in failures["too fast"])
    assert "terms that min_df 39" in failures["no words"][0]
    assert {event.key for event in events if event.kind == "failed"} == {
        "no-words",
        "too-fast.seed-1",
        "too-fast.seed-2",
    }
    assert results.verdict.ship == "sound"
    assert "Only one candidate of 3 finished" in results.verdict.sentence
    assert "too fast" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "lower the learning rate" in (tmp_path / "run" / "leaderboard.md").read_text(encoding="utf-8")
    again = runs.compare(values, events.append)  # what failed once fails again: it is not repeated
    assert runs.scores(again) == runs.scores(results)


def test_a_probe_of_a_base_that_computes_no_numbers_fails_alone(tiny_data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_data / "saved-bert", tmp_path / "base"))
    weights = load_file(folder / "model.safetensors")
    broken = next(name for name in weights if name.endswith("LayerNorm.weight"))
    save_file(
        {**weights, broken: weights[broken] * torch.nan}, folder / "model.safetensors", {"format": "pt"}
    )
    values = runs.settings(
        tiny_data, bases=[str(folder)], methods=["linear-probe", "tfidf"], output=str(tmp_path / "run")
    )
    probe, words = runs.compare(values).candidates
    assert "hidden states that are numbers" in str(probe.seeds[0].failure)
    assert words.validation is not None


# Python


def test_compare_in_python_has_the_words_of_the_command_line(tiny_data: Path, tmp_path: Path) -> None:
    results = tunestack.compare(
        tiny_data / "train.csv",
        validation=str(tiny_data / "validation.csv"),
        positive_label="calm",
        bases=[{"model": str(tiny_data / "saved-bert"), "dtype": "float32"}],
        methods=["majority", {"method": "lora", "r": 2}],
        training={"epochs": 1},
        seeds=[7],
        metric="accuracy",
        measure_costs=False,
        output=tmp_path / "run",
        progress=False,
    )
    assert results.metric == "accuracy"
    assert results.data.label_names == ["urgent", "calm"]
    assert [seed.seed for seed in results.candidates[1].seeds] == [7]
    assert results.candidates[1].hyperparameters["epochs"] == 1
    assert tunestack.load(tmp_path / "run").predict(["abc", "efg"])
    description = tunestack.describe(tiny_data / "train.csv", validation=str(tiny_data / "validation.csv"))
    assert "urgent" in json.dumps(description.to_dict())


def test_natural_mistakes_in_python_are_told_what_to_write(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        tunestack.compare(pd.DataFrame({"text": ["a"]}), methods="tfidf", epochs=1)  # type: ignore[arg-type]
    told = str(caught.value)
    assert "found DataFrame" in told
    assert "to_csv" in told
    assert "training={'epochs': 1}" in told
    source = str(runs.write_data(tmp_path)["train"])
    results = tunestack.compare(
        source, methods="majority", measure_costs=False, progress=False, output=tmp_path / "run"
    )
    assert [candidate.name for candidate in results.candidates] == ["majority"]


def test_what_is_given_stands_above_the_file(tiny_data: Path, tmp_path: Path) -> None:
    values = runs.settings(tiny_data, methods=["majority", "tfidf"], seeds=5)
    config = runs.write_config(tmp_path / "c.yaml", values)
    results = tunestack.compare(
        config, methods=["majority"], output=tmp_path / "run", positive_label="calm", progress=False
    )
    assert [candidate.name for candidate in results.candidates] == ["majority"]
    assert results.config["data"]["positive_label"] == "calm"
    assert results.config["data"]["validation"] == values["data"]["validation"]
    assert results.config["training"]["learning_rate"] == 1e-2


def test_sentence_pairs_and_three_classes_go_all_the_way(tiny_data: Path, tmp_path: Path) -> None:
    files = runs.write_data(tmp_path, pairs=True)
    for split, file in files.items():
        frame = pd.read_csv(file)
        frame.loc[::3, "label"] = "neither"
        frame.to_csv(file, index=False)
        assert frame["label"].nunique() == 3, split
    values = runs.settings(
        tiny_data,
        data={**files, "text_pair": "second"},
        methods=["majority", {"method": "tfidf", "min_df": 1}, "linear-probe", "lora", "full"],
        output=str(tmp_path / "run"),
        seeds=1,
        metric="f1_macro",
    )
    results = runs.compare(values)
    assert len(results.candidates) == 5
    for candidate, seed in _seeds(results):
        frame = pd.read_csv(tmp_path / "run" / seed.validation.predictions_path)
        expected = sk.f1_score(frame["label"], frame["prediction"], average="macro", zero_division=0)
        assert seed.validation.metrics["f1_macro"] == pytest.approx(expected), candidate.name
        predictor = tunestack.load(tmp_path / "run" / seed.adapter_path)
        data = pd.read_csv(files["validation"])
        found = predictor.predict_proba(data["text"].tolist(), data["second"].tolist())
        stored = frame[[f"prob_{name}" for name in predictor.label_names]].to_numpy()
        np.testing.assert_allclose(found, stored, atol=1e-6)
        with pytest.raises(UserError, match="24 texts of the column"):
            predictor.predict(data["text"].tolist())


def test_hard_examples_are_those_that_all_but_majority_get_wrong(whole_run: Any, results: Results) -> None:
    wrong = np.ones(runs.ROWS["validation"], dtype=bool)
    for candidate, seed in _seeds(results):
        if candidate.method != "majority":
            frame = pd.read_csv(whole_run.folder / seed.validation.predictions_path)
            wrong &= (frame["label"] != frame["prediction"]).to_numpy()
    assert [example.row for example in results.hard_examples] == np.flatnonzero(wrong).tolist()


def test_bases_with_the_same_last_name_are_told_apart(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tiny.save_base(tmp_path / "other", "bert")
    bases = [str(tiny_data / "saved-bert"), str(other)]
    plan = make_plan(
        validated(CompareConfig, runs.settings(tiny_data, bases=bases, methods=["lora", "linear-probe"]))
    )
    names = [candidate.name for candidate in plan.candidates]
    assert names == [f"{base} {method}" for method in ("lora", "linear-probe") for base in bases]


def test_one_base_in_two_precisions_names_itself_in_the_adapters(tiny_data: Path, tmp_path: Path) -> None:
    base = str(tiny_data / "saved-bert")
    bases = [{"model": base, "dtype": dtype, "device_map": "cpu"} for dtype in ("float32", "bfloat16")]
    values = runs.settings(tiny_data, bases=bases, methods=["lora"], seeds=1, output=str(tmp_path / "run"))
    results = runs.compare(values)
    assert [c.name for c in results.candidates] == [f"saved-bert {b['dtype']} lora" for b in bases]
    for candidate in results.candidates:
        adapter = tmp_path / "run" / candidate.seeds[0].adapter_path
        assert runs.read_json(adapter / "adapter_config.json")["base_model_name_or_path"] == base


def test_names_in_any_script_get_folders_of_their_own(tiny_data: Path, tmp_path: Path) -> None:
    methods = [
        {"method": "majority", "name": "größte Klasse / 最大"},
        {"method": "tfidf", "min_df": 1, "name": "x" * 400},
    ]
    results = runs.compare(runs.settings(tiny_data, methods=methods, output=str(tmp_path / "run")))
    folders = {Path(candidate.seeds[0].adapter_path).parts[1] for candidate in results.candidates}
    assert len(folders) == 2
    assert "größte-Klasse-最大" in folders
    assert all(tunestack.load(tmp_path / "run" / c.seeds[0].adapter_path) for c in results.candidates)


def test_the_identity_of_a_run_is_written_first(tiny_data: Path, tmp_path: Path) -> None:
    """A process that is killed at once leaves a folder that the same command takes up."""
    plan = make_plan(validated(CompareConfig, runs.settings(tiny_data, output=str(tmp_path / "run"))))
    RunFolder.open(plan)
    assert runs.compare(runs.settings(tiny_data, output=str(tmp_path / "run"))).verdict
