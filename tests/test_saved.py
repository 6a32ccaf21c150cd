"""Using what was trained: a fresh load gives what training gave, from any folder, for files of any size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import runs
import tiny
import tunestack
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
    weights = copy("b") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: expected a whole safetensors file"):
        tunestack.load(weights.parent)
    (copy("c") / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="found no such file"):
        tunestack.load(tmp_path / "c")
    unknown = copy("d", "tfidf") / "tunestack.json"
    unknown.write_text(unknown.read_text().replace('"tfidf"', '"tfid"'))
    with pytest.raises(UserError, match="Did you mean 'tfidf'"):
        tunestack.load(unknown.parent)
    shutil.copy(run / "results.json", tmp_path / "results.json")
    (tmp_path / "results.json").write_text((run / "results.json").read_text().replace("sentence", "words"))
    with pytest.raises(UserError, match=r"results\.json: expected a file as this version"):
        tunestack.load(tmp_path)


def test_an_adapter_on_a_base_of_another_size_is_refused(run: Path, tmp_path: Path) -> None:
    other = tiny.save_base(tmp_path, "bert", hidden_size=32)
    adapter = Path(shutil.copytree(run / _seeds(run, "lora")[0].adapter_path, tmp_path / "adapter"))
    description = runs.read_json(adapter / "tunestack.json")
    description["base"]["model"] = str(other)
    (adapter / "tunestack.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="trained on a base of other sizes"):
        tunestack.load(adapter)


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


def test_predict_on_the_command_line(
    run: Path, tiny_data: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "[bold]out.csv"
    done = command("predict", run, tiny_data / "test.csv", "--out", out, "--device", "cpu")
    assert done.code == 0, done.err
    assert f"16 rows labelled: {out}" in done.out
    frame = pd.read_csv(out)
    assert list(frame.columns) == ["text", "label", "prediction", "prob_calm", "prob_urgent"]
    assert frame["prediction"].tolist() == tunestack.load(run).predict(frame["text"].tolist())


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
    description["base"] |= {"model": str(evil), "trust_remote_code": True}
    (folder / "tunestack.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="trust_remote_code"):
        tunestack.load(folder, device="cpu")
    assert not marker.exists()
