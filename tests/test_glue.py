"""The suite of GLUE: its files read as others read them, its table against scikit-learn and scipy."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from scipy import stats
from sklearn import metrics as sk
from typer.testing import CliRunner

import glue_files
import tiny
import tunestack
from tunestack.cli.app import app
from tunestack.config import CompareConfig, DataConfig
from tunestack.data.sources import _read_hub
from tunestack.errors import Problems, UserError
from tunestack.results import Interval, Results, Summary
from tunestack.settings import read_yaml, validated
from tunestack.suites.base import SuiteChoice, with_choice
from tunestack.suites.glue import TASKS, Glue
from tunestack.suites.results import SuiteResults
from tunestack.suites.run import plan_suite, run_suite
from tunestack.suites.table import average
from tunestack.tasks.registry import TASKS as KINDS

GLUE = Glue()
RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """glue: GLUE's own files; hub: the Hub's tables; saved-bert: a base."""
    folder = tmp_path_factory.mktemp("suite")
    glue_files.write_glue(folder / "glue")
    glue_files.write_hub_tables(folder / "hub")
    tiny.save_base(folder, "bert")
    return folder


def data_of(source: Path | None, *keys: str) -> dict[str, Any]:
    problems = Problems()
    found = GLUE.data([GLUE.members[key] for key in keys or GLUE.members], source and str(source), problems)
    problems.raise_if_any()
    return found


def load(key: str, fields: dict[str, Any]) -> Any:
    return KINDS[GLUE.members[key].task].load(DataConfig(**fields), None)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("key", GLUE.members)
def test_files_are_read_as_glue_has_them(key: str, files: Path) -> None:
    """Texts, labels by name and their ids, from GLUE's files as from the Hub's tables."""
    data = load(key, data_of(files / "glue", key)[key])
    assert data.splits().keys() == (
        {"train", "validation", "test"} if key == "mnli" else {"train", "validation"}
    )
    splits = {"train": "train", "validation": "dev", "test": "dev_mismatched"}
    columns = glue_files.HUB_COLUMNS[key]
    for name, split in data.splits().items():
        expected = glue_files.hub_table(key, splits[name])
        assert split["text"][:] == expected[columns[0]].tolist()
        assert split["text"][0].startswith(glue_files.QUOTED)
        if len(columns) == 2:
            assert split["text_pair"][:] == expected[columns[1]].tolist()
        assert split["label"][:] == expected["label"].tolist()
    again = load(key, data_of(files / "hub", key)[key])
    assert again.label_names == data.label_names
    if key != "qqp":  # there GLUE's file has rows that the Hub leaves out
        assert again.fingerprint == data.fingerprint
    else:
        told = " ".join(data.warnings)
        assert "2 malformed lines are left out" in told
        assert "no text or no label in 1 of 31 rows: 30 (0 is the first). They are left out." in told


@pytest.mark.parametrize("key", ["cola", "mnli"])
def test_the_hubs_splits_are_found(key: str, files: Path, tmp_path: Path) -> None:
    """A data set with the Hub's configurations and splits, read by `datasets`."""
    splits = {"train": "train", "validation": "dev", "test": None}
    if key == "mnli":
        splits = {"train": "train", "validation_matched": "dev", "validation_mismatched": "dev_mismatched"}
        splits |= {"test_matched": None, "test_mismatched": None}
    lines = []
    for name, split in splits.items():
        frame = glue_files.hub_table(key, split or "dev")
        Dataset.from_pandas(frame if split else frame.assign(label=-1)).to_parquet(
            tmp_path / f"{name}.parquet"
        )
        lines.append(f"  - split: {name}\n    path: {name}.parquet\n")
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {key}\n  data_files:\n{''.join(lines)}---\n"
    )
    fields = data_of(None, key)[key]
    assert (fields["train"], fields["subset"]) == ("nyu-mll/glue", key)
    tables = _read_hub(str(tmp_path), fields["subset"])
    assert set(tables) == {"train", "validation", "test"}
    for split, name in (("validation", "dev"), *([("test", "dev_mismatched")] if key == "mnli" else [])):
        expected = glue_files.hub_table(key, name)
        for column in (fields["text"], fields.get("text_pair", fields["text"]), fields["label"]):
            assert tables[split].frame[column].tolist() == expected[column].tolist()


def test_what_is_missing_is_told_before_anything_trains(files: Path, tmp_path: Path) -> None:
    for task in ("CoLA", "RTE"):
        (tmp_path / "glue" / task).mkdir(parents=True)
        for split in ("train", "dev"):
            source = files / "glue" / task / f"{split}.tsv"
            (tmp_path / "glue" / task / f"{split}.tsv").write_text(source.read_text())
    (tmp_path / "glue" / "RTE" / "dev.tsv").unlink()
    with pytest.raises(UserError) as caught:
        plan_suite(
            settings(files, tmp_path / "run", data=str(tmp_path / "glue"), tasks=["cola", "rte", "mnli"])
        )
    told = {problem.where: problem for problem in caught.value.problems}
    assert set(told) == {"GLUE, RTE", "GLUE, MNLI"}
    assert "files for dev" in told["GLUE, RTE"].expected.replace("validation", "dev")
    assert "train, dev, dev_mismatched" in told["GLUE, MNLI"].expected
    assert "--tasks cola" in told["GLUE, MNLI"].fix
    assert not (tmp_path / "run").exists()


def test_two_files_of_a_split_and_files_of_other_layouts_are_refused(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "RTE"
    shutil.copytree(files / "glue" / "RTE", folder)
    for name in ("train.csv", "validation.tsv"):
        (folder / name).write_text("index,sentence1,sentence2,label\n1,a,b,entailment\n")
    with pytest.raises(UserError) as caught:
        data_of(tmp_path, "rte")
    found = {problem.expected: problem.found for problem in caught.value.problems}
    assert found == {
        "one file for train": "RTE/train.csv, RTE/train.tsv",
        "one file for validation": "RTE/dev.tsv, RTE/validation.tsv",
    }
    mrpc = tmp_path / "MRPC"
    mrpc.mkdir()
    (mrpc / "train.tsv").write_text((files / "glue" / "MRPC" / "train.tsv").read_text())
    glue_files.hub_table("mrpc", "dev").to_parquet(mrpc / "validation.parquet")
    with pytest.raises(UserError) as caught:
        data_of(tmp_path, "mrpc")
    (problem,) = caught.value.problems
    assert (problem.where, problem.found) == ("GLUE, MRPC: data", "others in validation.parquet")
    assert problem.expected == "the columns of train.tsv in all of its files"


# ---------------------------------------------------------------- settings


def settings(files: Path, output: Path, **suite: Any) -> dict[str, Any]:
    """Four tasks with metrics of every kind, three candidates."""
    tasks = ["cola", "mrpc", "stsb", "mnli"]
    return {
        "suite": {"name": "glue", "data": str(files / "glue"), "tasks": tasks, **suite},
        "bases": [{"model": str(files / "saved-bert"), "dtype": "float32", "device_map": "cpu"}],
        "methods": ["majority", {"method": "tfidf", "min_df": 1}, {"method": "lora", "r": 2}],
        "training": {"epochs": 1, "learning_rate": 1e-2},
        "seeds": 2,
        "measure_costs": False,
        "output": str(output),
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"suite": "gleu"}, "Did you mean 'glue'"),
        ({"suite": {"name": "glue", "tasks": ["colla"]}}, "Did you mean 'cola'"),
        ({"suite": {"name": "glue", "tasks": []}}, "suite.tasks: expected a task or more"),
        ({"suite": {"name": "glue", "task": ["cola"]}}, "suite.task: expected a known setting"),
        ({"suite": {"name": "glue", "overrides": {"rtee": {}}}}, "suite.overrides: expected a task of GLUE"),
        ({"metric": "f1"}, "metric: expected none: the suite brings it"),
        ({"data": {"train": "x.csv"}}, "--data says"),
        ({"methods": ["lorra"]}, "Did you mean 'lora'"),
        ({"training": {"epoch": 3}}, "training.epoch: expected a known setting"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], told: str, files: Path, tmp_path: Path) -> None:
    values = {**settings(files, tmp_path / "run"), **change}
    if isinstance(values["suite"], dict):
        values["suite"].setdefault("data", str(files / "glue"))
    with pytest.raises(UserError, match=re.escape(told)):
        plan_suite(values)
    assert not (tmp_path / "run").exists()


def test_overrides_are_for_one_task(files: Path, tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    frame = pd.DataFrame({"a": [f"text {i}" for i in range(30)], "b": ["x"] * 30, "same": ["no", "yes"] * 15})
    frame.to_csv(table, index=False)
    own = {"train": str(table), "text": "a", "text_pair": "b", "label": "same", "labels": ["no", "yes"]}
    overrides = {"cola": {"training": {"epochs": 7}}, "mrpc": {"data": own}}
    plan = plan_suite(settings(files, tmp_path / "run", overrides=overrides))
    assert {key: one.config.training.epochs for key, one in plan.plans.items()} == {
        "cola": 7, "mrpc": 1, "stsb": 1, "mnli": 1,
    }  # fmt: skip
    assert plan.plans["cola"].config.training.learning_rate == 1e-2
    assert plan.plans["mrpc"].data.label_names == ("no", "yes")
    assert [one.config.metric for one in plan.plans.values()] == ["mcc", "accuracy", "pearson", "accuracy"]


@pytest.mark.parametrize(
    ("given", "own", "weights"),
    [
        ({}, {}, (None, None)),
        ({"class_weights": "balanced"}, {}, ("balanced", "balanced")),
        ({"class_weights": "balanced"}, {"class_weights": None}, (None, "balanced")),
        ({}, {"class_weights": "balanced"}, ("balanced", None)),
    ],
)
def test_classes_are_not_weighed_unless_somebody_says_so(
    given: dict[str, Any], own: dict[str, Any], weights: tuple[Any, Any], files: Path, tmp_path: Path
) -> None:
    values = settings(files, tmp_path, tasks=["cola", "mrpc"], overrides={"cola": {"training": own}})
    plan = plan_suite({**values, "training": given, "methods": ["tfidf"]})
    assert tuple(plan.plans[key].config.training.class_weights for key in ("cola", "mrpc")) == weights
    (tfidf,) = plan.plans["cola"].candidates
    assert tfidf.hyperparameters["class_weight"] == weights[0]


def test_a_folder_of_another_run_is_left_alone(files: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(UserError, match="with another run in it"):
        plan_suite(settings(files, tmp_path / "run"))


def test_a_suite_is_no_single_comparison(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("suite: glue\nmethods: [majority]\n")
    with pytest.raises(UserError, match="compare_suite"):
        tunestack.compare(path)


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def finished(files: Path) -> tuple[Path, SuiteResults]:
    """A suite, run."""
    given = settings(files, files / "run")
    results = tunestack.compare_suite(
        "glue",
        data=files / "glue",
        tasks=given["suite"]["tasks"],
        progress=False,
        **{name: value for name, value in given.items() if name != "suite"},
    )
    return files / "run", results


METRICS: dict[str, Callable[[Any, Any], float]] = {
    "mcc": sk.matthews_corrcoef,
    "accuracy": sk.accuracy_score,
    "f1": lambda truth, given: sk.f1_score(truth, given, pos_label="equivalent"),
    "pearson": lambda truth, given: stats.pearsonr(truth, given).statistic,
    "spearman": lambda truth, given: stats.spearmanr(truth, given).statistic,
}


def test_the_table_is_what_the_prediction_files_say(finished: tuple[Path, SuiteResults]) -> None:
    run, results = finished
    assert [column.key for column in results.columns] == ["cola", "mrpc", "stsb", "mnli"]
    assert [score.split for score in results.columns[3].scores] == ["validation", "test"]
    assert {row.name for row in results.rows} == {"majority", "tfidf", "lora"}
    for row in results.rows:
        seeds = [1, 2] if row.name == "lora" else [0]
        for column in results.columns:
            cell = row.cells[column.key]
            for score, found in zip(column.scores, cell.scores, strict=True):
                expected = []
                for seed in seeds:
                    path = run / column.folder / "candidates" / row.name / f"seed-{seed}"
                    frame = pd.read_csv(path / f"predictions-{score.split}.csv")
                    constant = frame["prediction"].nunique() == 1 and score.metric in ("pearson", "spearman")
                    expected.append(
                        0.0 if constant else METRICS[score.metric](frame["label"], frame["prediction"])
                    )
                assert score.rows == len(frame)
                assert found.mean == pytest.approx(np.mean(expected), abs=1e-9)
            assert cell.mean.mean == pytest.approx(np.mean([one.mean for one in cell.scores]))
        assert row.average is not None
        assert row.average.mean == pytest.approx(np.mean([cell.mean.mean for cell in row.cells.values()]))
        assert row.average.interval.low <= row.average.mean <= row.average.interval.high
    averages = [row.average.mean for row in results.rows if row.average]
    assert averages == sorted(averages, reverse=True)


def test_a_suites_folder_is_not_one_comparisons(finished: tuple[Path, SuiteResults]) -> None:
    run, _ = finished
    with pytest.raises(UserError, match="found that of a suite") as error:
        tunestack.load(run)
    assert str(run / "cola") in str(error.value)


def test_files_that_a_suite_writes(finished: tuple[Path, SuiteResults]) -> None:
    run, results = finished
    assert SuiteResults.load(run / "suite.json") == results
    page, board = (run / "suite.html").read_text(), (run / "suite.md").read_text()
    links = re.findall(r'href="([^"]+report\.html)"', page)
    assert list(dict.fromkeys(links)) == [f"{key}/report.html" for key in ("cola", "mrpc", "stsb", "mnli")]
    assert all((run / link).is_file() for link in links)
    assert all((run / link).is_file() for link in re.findall(r"\]\(([^)]+)\)", board))
    lines = [line for line in board.splitlines() if line.startswith("| ")]
    assert lines[0] == (
        "| candidate | CoLA MCC | MRPC accuracy / F1 | STS-B Pearson / Spearman "
        "| MNLI matched / mismatched | average |"
    )
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {row.name}" for row in results.rows]
    for row in results.rows:
        assert row.average is not None
        assert f"{row.average.mean:.3f}" in page.replace("\N{MINUS SIGN}", "-")
    assert "http" not in re.sub(r"http-equiv", "", page)
    single = Results.load(run / "stsb" / "results.json")
    assert (single.task, single.metric) == ("regression", "pearson")


def test_a_suites_report_is_written_anew(finished: tuple[Path, SuiteResults]) -> None:
    run, _ = finished
    before = (run / "suite.html").read_text()
    (run / "suite.html").unlink()
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    assert (run / "suite.html").read_text() == before


def test_nothing_is_trained_twice(finished: tuple[Path, SuiteResults], files: Path) -> None:
    run, first = finished
    events: list[str] = []

    def watch(title: str, metric: str) -> Any:
        return nullcontext(lambda event: events.append(event.kind) if event.key else None)

    again = run_suite(plan_suite(settings(files, run)), watch)
    assert set(events) == {"finished"}
    assert again.rows == first.rows
    changed = plan_suite({**settings(files, run), "training": {"epochs": 1, "learning_rate": 2e-2}})
    with pytest.raises(UserError, match="learning_rate"):
        run_suite(changed, watch)


def test_an_interrupted_suite_goes_on(
    finished: tuple[Path, SuiteResults], files: Path, tmp_path: Path
) -> None:
    values = settings(files, tmp_path / "run", tasks=["cola", "stsb"])
    seen: list[str] = []

    def interrupting(title: str, metric: str) -> Any:
        def notify(event: Any) -> None:
            if title == "STS-B" and event.kind == "evaluated":
                raise KeyboardInterrupt

        return nullcontext(notify)

    def listening(title: str, metric: str) -> Any:
        return nullcontext(lambda event: seen.append(title) if event.kind == "started" else None)

    with pytest.raises(KeyboardInterrupt):
        run_suite(plan_suite(values), interrupting)
    halfway = SuiteResults.load(tmp_path / "run" / "suite.json")
    assert ([one.title for one in halfway.columns], halfway.planned) == (["CoLA"], ["CoLA", "STS-B"])
    assert "1 of 2 tasks are done" in (tmp_path / "run" / "suite.md").read_text()
    results = run_suite(plan_suite(values), listening)
    assert set(seen) == {"STS-B"}
    whole = {row.name: row for row in finished[1].rows}
    for row in results.rows:
        for key, cell in row.cells.items():
            assert cell.mean.mean == pytest.approx(whole[row.name].cells[key].mean.mean, abs=1e-6)


def test_the_command(finished: tuple[Path, SuiteResults], files: Path, command: Any, tmp_path: Path) -> None:
    """On a folder, tasks named with a comma; then from a configuration whose suite is a bare name."""
    arguments = ["--data", files / "glue", "--tasks", "cola,rte", "--method", "majority", "--no-costs"]
    arguments += ["--output", tmp_path / "run"]
    first = command("compare", "--suite", "glue", *arguments)
    assert first.code == 0, first.err
    assert "CoLA MCC" in first.out
    config = tmp_path / "suite.yaml"
    config.write_text("suite: glue\n")
    second = CliRunner().invoke(app, ["compare", *map(str, (config, *arguments))])
    assert second.exit_code == 0, second.output
    results = SuiteResults.load(tmp_path / "run" / "suite.json")
    assert [column.key for column in results.columns] == ["cola", "rte"]


def test_the_command_needs_something_to_compare(capsys: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(app, ["compare", "--tasks", "cola"])
    assert done.exit_code == 2
    assert "--suite glue" in done.output + capsys.readouterr().err


# ---------------------------------------------------------------- statistics


def test_the_averages_interval_covers_what_it_should() -> None:
    """Four tasks with right and wrong answers of known probability; each task's interval is Wilson's."""
    rng = np.random.default_rng(0)
    chances, sizes = np.array([0.6, 0.75, 0.9, 0.97]), np.array([70, 270, 870, 400])

    @functools.cache
    def cell(hits: int, size: int) -> Summary:
        bounds = stats.binomtest(hits, size).proportion_ci(method="wilson")
        return Summary(mean=hits / size, std=0.0, interval=Interval(low=bounds.low, high=bounds.high))

    covered, repeats = 0, 2000
    for hits in rng.binomial(sizes, chances, size=(repeats, 4)).tolist():
        found = average(list(map(cell, hits, sizes.tolist()))).interval
        covered += found.low <= chances.mean() <= found.high
    assert 0.935 <= covered / repeats <= 0.97


def test_spreads_of_seeds_add_up_as_of_independent_runs() -> None:
    rng = np.random.default_rng(1)
    spreads = np.array([0.01, 0.03, 0.002])
    runs = rng.normal(0.7, spreads, size=(100_000, 3)).mean(axis=1)
    cells = [Summary(mean=0.7, std=one, interval=Interval(low=0.6, high=0.8)) for one in spreads]
    assert average(cells).std == pytest.approx(runs.std(), rel=0.02)


# ---------------------------------------------------------------- files without a header, bad rows


def test_a_header_names_columns_that_a_file_does_not(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text("".join(f'{"spam" if i % 2 else "ham"},"text, {i}"\n' for i in range(20)))
    data = KINDS["classification"].load(DataConfig(train=str(path), header=["label", "text"]), None)
    assert len(data.train) + len(data.validation) == 20
    with pytest.raises(UserError, match="3 fields as in the header, found 2"):
        KINDS["classification"].load(DataConfig(train=str(path), header=["label", "text", "more"]), None)
    path = path.rename(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match=r"data.header.*only CSV and TSV files"):
        KINDS["classification"].load(DataConfig(train=str(path), header=["label", "text"]), None)


def test_bad_rows_are_refused_unless_they_are_to_be_skipped(tmp_path: Path) -> None:
    lines = [f"text {i}\t{i % 2}" for i in range(20)]
    path = tmp_path / "train.tsv"
    path.write_text(
        "\n".join(["text\tlabel", *lines[:10], "broken", "too\tmany\tfields", "\t1", *lines[10:]])
    )
    config = DataConfig(train=str(path))
    with pytest.raises(UserError, match="line 12"):
        KINDS["classification"].load(config, None)
    data = KINDS["classification"].load(config.model_copy(update={"skip_bad_rows": True}), None)
    assert sorted([*data.train["text"], *data.validation["text"]]) == sorted(f"text {i}" for i in range(20))
    assert f"{path}: 2 malformed lines are left out, such as line 12." in data.warnings
    path.write_bytes(b"text\tlabel\na\t1\nb\xff\t0\n")
    with pytest.raises(UserError, match="UTF-8"):  # the rest of such a file cannot be trusted
        KINDS["classification"].load(config.model_copy(update={"skip_bad_rows": True}), None)


# ---------------------------------------------------------------- recipes, real files


@pytest.mark.parametrize("name", ["glue_lora", "glue_minilm"])
def test_recipes(name: str, files: Path, tmp_path: Path) -> None:
    """Their settings are right, on files of that layout and a tiny base of the same names."""
    given = read_yaml(RECIPES / f"{name}.yaml")
    kind = "roberta" if name == "glue_lora" else "bert"
    base = {"model": str(tiny.save_base(tmp_path, kind)), "device_map": "cpu"}
    values = with_choice(given, {"data": str(files / "glue")})
    choice = validated(SuiteChoice, values["suite"], "suite")
    plan = plan_suite({**values, "bases": [base], "output": str(tmp_path / "run")})
    assert [member.key for member in plan.members] == (choice.tasks or [task.key for task in TASKS])
    for one in plan.plans.values():
        assert isinstance(one.config, CompareConfig)
        assert one.config.training.lr_scheduler_type == "linear"


def test_the_published_settings_count_as_published(tmp_path: Path) -> None:
    """About 420 thousand of 124.6 million, head aside."""
    from tunestack.params import count_parameters

    config = {
        "model_type": "roberta", "vocab_size": 50265, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072, "max_position_embeddings": 514,
        "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    entry = next(e for e in read_yaml(RECIPES / "glue_lora.yaml")["methods"] if e["method"] == "lora")
    fields = {name: value for name, value in entry.items() if name not in ("method", "training", "name")}
    counts = count_parameters(path, "lora", fields)
    lora, biases, norms = 12 * 2 * 2 * 768 * 8, 12 * (4 * 768 + 3072 + 768), 25 * 2 * 768
    parts = counts.by_part
    assert parts["lora (trained)"] == lora + biases + norms == 416_256
    assert round((parts["base (frozen)"] + parts["head as loaded (frozen)"]) / 1e6, 1) == 124.6


@pytest.mark.parametrize(("key", "train", "dev"), [
    ("cola", 8551, 1043), ("sst2", 67_349, 872), ("rte", 2490, 277), ("wnli", 635, 71), ("stsb", 5749, 1500),
])  # fmt: skip
def test_glues_own_files_read_whole(key: str, train: int, dev: int, shared_data: Path) -> None:
    data = load(key, data_of(shared_data / "glue", key)[key])
    assert (len(data.train), len(data.validation)) == (train, dev)
