"""Bad input: told before anything trains, all of it together, with what to do; nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import runs
import tiny
from tunestack.api import comparison
from tunestack.comparison.plan import make_plan
from tunestack.comparison.run import run_comparison
from tunestack.config import CompareConfig
from tunestack.errors import Problem, UserError
from tunestack.settings import validated


def refused(values: dict[str, Any]) -> list[Problem]:
    """The problems of a comparison that is refused, asked for as command line and Python interface do."""
    with pytest.raises(UserError) as caught:
        run_comparison(comparison(values))
    for problem in caught.value.problems:
        assert problem.where
        assert problem.expected
        assert problem.found
        assert problem.fix
    return list(caught.value.problems)


def planned(values: dict[str, Any]) -> list[str]:
    """Names of the candidates of a comparison."""
    return [c.name for c in make_plan(validated(CompareConfig, values)).candidates]


@pytest.fixture
def values(tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    return runs.settings(tiny_data, output=str(tmp_path / "runs" / "mine"))


def test_settings_of_a_sweep_are_told_from_those_of_a_comparison(tiny_data: Path) -> None:
    values = {
        "data": {"train": str(tiny_data / "train.csv")},
        "base": "packaged:minilm-l6",
        "methods": [{"method": "lora", "search": {"r": [1, 2]}}],
        "trials": 4,
    }
    (problem,) = refused(values)
    assert problem.found == "a sweep's: base, trials"
    assert "tunestack sweep" in problem.fix
    slip = {"data": values["data"], "methods": ["lora"], "base": "packaged:minilm-l6", "seed": 1}
    assert {problem.where for problem in refused(slip)} >= {"base", "seed"}


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(
    tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    other = f"random:{tiny.write_config(tmp_path, 'llama')}"
    before = sorted(tmp_path.rglob("*"))
    problems = refused(
        {
            "data": {
                "train": str(tiny_data / "train.csv"),
                "validation": str(tiny_data / "validaton.csv"),
                "text": "txt",
                "train_size": 7,
            },
            "bases": [
                {"model": str(tiny_data / "saved-bert"), "device_map": "cpu"},
                "packaged:minilm-l9",
                {"model": other, "dtype": "int7"},
            ],
            "methods": [
                "majority",
                "lorra",
                {"method": "tfidf", "min_fd": 1},
                {"method": "lora", "r": 4000, "target_modules": ["query", "q_proj"]},
                {"method": "lora", "name": "named", "training": {"lerning_rate": 1}},
                {"method": "full", "training": {"batch_size": 0}},
                {"method": "lora", "name": "other", "epochs": 3},
            ],
            "training": {"epochs": 0},
            "metric": "f11",
            "seeds": [1, 1],
            "output": str(tmp_path / "file" / "run"),
            "colour": "red",
        }
    )
    told = {problem.where: problem for problem in problems}
    expected = {
        "data.train_size": "less than 1",
        "bases.2.dtype": "'auto'",
        "training.epochs": "greater than 0",
        "seeds": "different numbers",
        "colour": "a known setting",
        "output": "a folder that can be written",
        str(tiny_data / "validaton.csv"): "a file",
        str(tiny_data / "train.csv"): "a column 'txt'",
        "packaged:minilm-l9": "packaged base",
        "metric": "a metric of this task",
        "methods.1": "a known method",
        "methods.2: tfidf.min_fd": "a known setting",
        "methods.4.training.lerning_rate": "a known setting",
        "methods.5.training.batch_size": "greater than or equal to 1",
        "methods.6.epochs": "a field of lora",
    }
    for where, text in expected.items():
        assert text in told[where].expected, where
    of_lora = [problem for problem in problems if problem.where.startswith("methods.3")]
    assert {"4000", "'q_proj', which matches none"} <= {problem.found for problem in of_lora}
    assert len(told) == len(problems)  # each once
    assert "validation.csv" in told[str(tiny_data / "validaton.csv")].fix
    assert "'text'" in told[str(tiny_data / "train.csv")].fix
    assert "'lora'" in told["methods.1"].fix
    assert "'f1'" in told["metric"].fix
    assert told["output"].found.endswith("file is a file")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_that_fails_leaves_no_folder_and_does_not_spoil_the_next(
    values: dict[str, Any], tmp_path: Path
) -> None:
    refused({**values, "metric": "f11"})
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    refused({**values, "methods": ["lorra"]})
    assert list((tmp_path / "runs" / "mine").iterdir()) == []
    assert runs.compare(values).verdict is not None


def _change(name: str, change: Callable[[pd.DataFrame], Any]) -> Any:
    """Settings on copies of the data, one file of them changed."""

    def apply(values: dict[str, Any], folder: Path) -> dict[str, Any]:
        files = runs.write_data(folder)
        changed = change(pd.read_csv(files[name]))
        if isinstance(changed, str):
            Path(files[name]).write_text(changed)
        else:
            changed.to_csv(files[name], index=False)
        return {**values, "data": files}

    return apply


@pytest.mark.parametrize(
    ("apply", "expected", "found"),
    [
        (_change("train", lambda frame: ""), "at least one row", "empty"),
        (_change("train", lambda frame: "text,label\n"), "at least one row", "a header alone"),
        (_change("train", lambda frame: 'text,label\n"a,calm\n'), "quotes in pairs", "never closed"),
        (_change("test", lambda frame: "text,label\na,b,c\n"), "2 fields as in the first line", "too many"),
        (_change("train", lambda frame: frame.assign(label="calm")), "every class", "none of 'urgent'"),
        (_change("train", lambda frame: frame.assign(text=range(len(frame)))), "text", "numbers only"),
        (_change("train", lambda frame: frame.assign(text=None)), "text in every row", "no value in 40"),
        (_change("validation", lambda f: f[f.label == "calm"]), "rows of every class", "none of 'urgent'"),
        (_change("test", lambda f: f.assign(label="calmm")), "rows of every class", "none of 'calmm'"),
        (_change("train", lambda f: f.rename(columns={"label": "lable"})), "a column 'label'", "none"),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used(
    values: dict[str, Any], tmp_path: Path, apply: Any, expected: str, found: str
) -> None:
    (tmp_path / "data").mkdir()
    problems = refused(apply(values, tmp_path / "data"))
    assert any(expected in problem.expected and found in problem.found for problem in problems), problems
    assert not (tmp_path / "runs").exists()


LORA: list[tuple[dict[str, Any], str, str, str]] = [
    ({"r": 0}, "lora.r", "1 <= r <= 16", "0"),
    ({"r": "eight"}, "lora.r", "int", "'eight'"),
    ({"rank": 8}, "lora.rank", "a field of LoraConfig", "'rank'"),
    ({"target_modules": ["quary"]}, "lora.target_modules", "match linear layers", "'quary'"),
    ({"lora_dropout": 1.0}, "lora.lora_dropout", "0 <= p < 1", "1.0"),
    ({"learning_rate": 1e-3}, "methods.0.learning_rate", "a field of lora", "a field of training"),
    ({"training": {"epoch": 1}}, "methods.0.training.epoch", "a known setting", "'epoch'"),
    ({"grid": {"epochs": [1, 0]}}, "methods.0.training.epochs", "greater than 0", "0"),
    ({"training": {"class_weights": [1.0]}}, "class_weights", "2 weights above 0, for calm, urgent", "[1.0]"),
    ({"training": {"class_weights": [0, 1]}}, "class_weights", "2 weights above 0", "[0.0, 1.0]"),
    ({"name": "?!"}, "methods", "names with letters or digits", "'?!'"),
    ({"grid": {"r": [2, 2]}}, "methods", "candidates that differ", "'lora r=2' 2 times"),
]


@pytest.mark.parametrize(("fields", "where", "expected", "found"), LORA)
def test_a_method_that_cannot_work(
    values: dict[str, Any], fields: dict[str, Any], where: str, expected: str, found: str
) -> None:
    (problem,) = refused({**values, "methods": [{"method": "lora", **fields}]})
    assert where in problem.where
    assert expected in problem.expected
    assert found in problem.found


@pytest.mark.parametrize(
    ("change", "where", "expected", "found"),
    [
        ({"methods": ["lora"], "bases": []}, "bases", "at least one base", "none"),
        ({"methods": ["linear-probe"], "bases": []}, "bases", "at least one base", "none"),
        ({"methods": ["loRA"]}, "methods.0", "a known method", "'loRA'"),
        ({"methods": [{"method": "majority", "r": 3}]}, "methods.0: majority.r", "a known setting", "'r'"),
        (
            {"methods": [{"method": "tfidf", "training": {"epochs": 1}}]},
            "methods.0.training.epochs",
            "no training fields",
            "epochs",
        ),
        ({"methods": ["majority", "majority"]}, "methods", "candidates that differ", "'majority' 2 times"),
        (
            {"methods": [{"method": "majority", "name": "A b"}, {"method": "tfidf", "name": "a-B"}]},
            "methods",
            "not only in upper case or punctuation",
            "'A b', 'a-B'",
        ),
        ({"metric": "f1_macro"}, "metric", "a metric of this task", "'f1_macro'"),
        ({"training": {"class_weights": [1, 2, 3]}}, "training.class_weights", "2 weights above 0", "3.0]"),
    ],
)
def test_settings_that_do_not_fit_together(
    values: dict[str, Any], change: dict[str, Any], where: str, expected: str, found: str
) -> None:
    (problem,) = refused({**values, **change})
    assert problem.where == where
    assert expected in problem.expected
    assert found in problem.found


def test_bases_that_cannot_be_opened(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    clip = tmp_path / "vit.json"
    clip.write_text(json.dumps({"model_type": "vit", "vocab_size": 99}))
    base = values["bases"][0]
    wanted = [base, str(tmp_path / "empty"), str(tmp_path / "none"), f"random:{tmp_path}/x.json", "pakaged:m"]
    problems = refused({**values, "methods": ["lora"], "bases": [*wanted, base, f"random:{clip}"]})
    found = {problem.where: problem for problem in problems}
    assert "no config.json" in found[str(tmp_path / "empty")].found
    assert "packaged:minilm-l6" in found[str(tmp_path / "none")].fix
    assert found[f"random:{tmp_path}/x.json"].found == "no such file"
    assert "unknown prefix 'pakaged'" in found["pakaged:m"].found
    assert "2 times" in found["bases"].found
    assert any("classify sequences" in problem.expected for problem in problems)


def test_bases_without_weights_or_words_are_refused_before_the_baselines_run(
    values: dict[str, Any], tmp_path: Path
) -> None:
    saved = Path(values["bases"][0]["model"])
    folders = {name: shutil.copytree(saved, tmp_path / name) for name in ("none", "pickled", "half", "mute")}
    for name in ("none", "pickled"):
        (folders[name] / "model.safetensors").unlink()
    (folders["pickled"] / "pytorch_model.bin").touch()
    weights = folders["half"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    for file in folders["mute"].glob("tokenizer*"):
        file.unlink()
    problems = refused({**values, "methods": ["majority", "lora"], "bases": list(map(str, folders.values()))})
    found = {problem.where: problem.found for problem in problems}
    assert found[str(folders["none"])] == "none"
    assert "pickle, which can run code" in found[str(folders["pickled"])]
    assert "incomplete" in found[str(weights)].lower() or "not fully covered" in found[str(weights)]
    assert "special tokens alone" in found[str(folders["mute"])]
    assert len(problems) == 4
    assert not (tmp_path / "runs").exists()


def test_only_one_class(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    files = runs.write_data(tmp_path / "data")
    for file in files.values():
        pd.read_csv(file).assign(label="calm").to_csv(file, index=False)
    (problem,) = refused({**values, "data": files})
    assert (problem.expected, problem.found) == ("at least two classes", "only 'calm'")


def test_a_method_is_checked_even_if_no_base_can_be_opened(values: dict[str, Any]) -> None:
    methods = [{"method": "lora", "rank": 8, "training": {"epochs": 0}}]
    problems = refused({**values, "bases": ["packaged:nothing"], "methods": methods})
    assert [p.where for p in problems] == [
        "packaged:nothing",
        "methods.0.training.epochs",
        "methods.0: lora.rank",
    ]


def test_a_folder_with_other_files_is_not_written_into(values: dict[str, Any], tmp_path: Path) -> None:
    own = tmp_path / "config.yaml"
    own.write_text("mine")
    (problem,) = refused({**values, "output": str(tmp_path)})
    assert problem.where == "output"
    assert "config.yaml" in problem.found
    assert own.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [own]


def test_grids_become_candidates_named_by_what_sets_them_apart(values: dict[str, Any]) -> None:
    lora = {"method": "lora", "grid": {"r": [2, 4], "learning_rate": [1e-3, 5e-4]}, "lora_alpha": 8}
    plan = make_plan(validated(CompareConfig, {**values, "methods": ["majority", lora]}))
    assert [c.name for c in plan.candidates] == [
        "majority",
        *(f"lora lora_alpha=8 r={r} learning_rate={rate:g}" for r in (2, 4) for rate in (1e-3, 5e-4)),
    ]
    of_grid = plan.candidates[1:]
    assert [(c.config.r, c.training.learning_rate) for c in of_grid] == [
        (2, 1e-3),
        (2, 5e-4),
        (4, 1e-3),
        (4, 5e-4),
    ]
    assert all(c.config.lora_alpha == 8 and c.training.epochs == 2 for c in of_grid)


def test_grids_with_a_name_and_of_baselines(values: dict[str, Any]) -> None:
    named = {"method": "tfidf", "name": "words", "grid": {"C": [0.1, 1.0], "min_df": [1]}}
    probe = {"method": "linear-probe", "grid": {"max_length": [16, 32]}}
    assert planned({**values, "methods": [named, probe]}) == [
        "words C=0.1 min_df=1",
        "words C=1 min_df=1",
        "linear-probe max_length=16",
        "linear-probe max_length=32",
    ]


def test_every_base_with_every_method(values: dict[str, Any], tmp_path: Path) -> None:
    other = tiny.write_config(tmp_path, "llama")
    values = {
        **values,
        "bases": [*values["bases"], f"random:{other}"],
        "methods": ["majority", "full", "lora"],
    }
    assert planned(values) == ["majority"] + [
        f"{base} {method}" for method in ("full", "lora") for base in ("saved-bert", "llama.json")
    ]


def test_the_methods_own_defaults_stand_below_what_the_user_gives(values: dict[str, Any]) -> None:
    def rates(**training: Any) -> list[float]:
        changed = {**values, "methods": ["full", "lora"], "training": training}
        return [c.training.learning_rate for c in make_plan(validated(CompareConfig, changed)).candidates]

    def ratios(**training: Any) -> list[float]:
        changed = {**values, "methods": [{"method": "c3a", "block_size": 8}], "training": training}
        return [c.training.loraplus_lr_ratio for c in make_plan(validated(CompareConfig, changed)).candidates]

    assert ratios()[0] > 1
    assert ratios(learning_rate=1e-2) == [1], "a ratio goes with the rate that it was made for"
    assert rates() == [2e-5, 1e-4]
    assert rates(learning_rate=3e-4) == [3e-4, 3e-4]


def test_the_resolved_configuration_plans_the_same_again(values: dict[str, Any]) -> None:
    """It names a value for every shared field, which must not overrule a method's own defaults."""
    changed = {**values, "methods": ["full", {"method": "lora", "grid": {"learning_rate": [1e-3, 1e-4]}}]}
    first = make_plan(validated(CompareConfig, {**changed, "training": {"epochs": 2}}))
    again = make_plan(validated(CompareConfig, first.config.model_dump(mode="json")))
    assert [c.training for c in again.candidates] == [c.training for c in first.candidates]
    assert [c.name for c in again.candidates] == [c.name for c in first.candidates]
    assert again.config == first.config


def test_baselines_weigh_classes_and_cut_texts_as_training_does(values: dict[str, Any]) -> None:
    changed = {**values, "methods": ["tfidf", "linear-probe", {"method": "linear-probe", "max_length": 9}]}
    changed["training"] = {"class_weights": None, "max_length": 16}
    tfidf, probe, own = make_plan(validated(CompareConfig, changed)).candidates
    assert tfidf.options.class_weight is None
    assert (probe.options.class_weight, probe.options.max_length) == (None, 16)
    assert own.options.max_length == 9
