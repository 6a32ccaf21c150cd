"""The command line: exit codes, what is printed, interruptions, start-up; and the live display."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import runs
import tunestack
from tunestack import progress
from tunestack.cli.app import app
from tunestack.cli.sweep import searched
from tunestack.errors import UserError
from tunestack.progress import Display
from tunestack.results import CurvePoint, Results
from tunestack.settings import read_yaml
from tunestack.stack.events import Event

HEAVY = ("torch", "transformers", "datasets", "pandas", "sklearn", "scipy", "numpy")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run a command in this process: result.exit_code, .stdout, .stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def values(tiny_data: Path, tmp_path: Path) -> dict[str, Any]:
    return runs.settings(tiny_data, output=str(tmp_path / "run"))


# Start-up


def _fresh(code: str) -> tuple[str, float]:
    """What a fresh interpreter prints, and its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_is_light() -> None:
    out, _ = _fresh(f"import sys, tunestack; print([name for name in {HEAVY} if name in sys.modules])")
    assert out.strip() == "[]"


def test_help_is_quick_and_needs_no_torch() -> None:
    out, seconds = _fresh(
        "import sys\nsys.argv = ['tunestack', 'compare', '--help']\nfrom tunestack.cli import main\n"
        f"try: main()\nfinally: print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert "--no-costs" in out
    assert out.strip().endswith("[]")
    assert seconds < 1.0


def test_settings_that_lack_something_are_refused_without_what_training_needs() -> None:
    out, _ = _fresh(
        "import sys\nsys.argv = ['tunestack', 'sweep', 'tweets.csv', '--slots', '0']\n"
        "sys.stderr = sys.stdout\nfrom tunestack.cli import main\n"
        f"try: main()\nexcept SystemExit: print([name for name in {HEAVY[:5]} if name in sys.modules])"
    )
    assert "3 problems" in out  # no base, no method, no slots
    assert out.strip().endswith("[]")


def test_the_function_is_there_whatever_was_imported_before() -> None:
    code = "import tunestack.comparison.verdict, tunestack\ntry: tunestack.compare('none.yaml')\n"
    out, _ = _fresh(code + "except tunestack.UserError as error: print(error)")
    assert "none.yaml: expected a configuration file, found no such file" in out


# What users can mend


def test_problems_are_printed_with_what_to_do_and_exit_code_2(
    cli: Any, values: dict[str, Any], tmp_path: Path
) -> None:
    config = runs.write_config(tmp_path / "c.yaml", {**values, "metric": "f11", "metrik": "x"})
    done = cli("compare", config, "--seeds", 0, "--text", "[txt]", "--method", "lorra")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "7 problems:" in done.stderr
    for line in [
        "seeds",
        "expected: how many seeds, at least 1, or a list of them",
        "expected: a column '[txt]' in the first line",
        "fix:      Did you mean 'metric'?",
        "fix:      Did you mean 'lora'",
    ]:
        assert line in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "no such file"),
        ("data: [", "c.yaml line 1"),
        ("- a", "expected: a mapping with `data` and `methods`"),
        ("data: tweets.csv\nmethods: [lora]", "expected: a mapping"),
        ("data:\nmethods:\nbases: {model: x}", "expected: a valid list"),
        ("methods: [majority]\nbases: [3]", "Give `train`"),
    ],
)
def test_configurations_that_are_none(cli: Any, tmp_path: Path, text: str | None, told: str) -> None:
    if text is not None:
        (tmp_path / "c.yaml").write_text(text)
    done = cli("compare", tmp_path / "c.yaml", "--epochs", "2", "--base", "x/y/z")
    assert done.exit_code == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_what_to_compare_is_asked_for(cli: Any, tiny_data: Path) -> None:
    none = cli("compare", tiny_data / "train.csv")
    assert none.exit_code == 2
    assert "fix:      Give `methods`." in none.stderr
    assert "--method lora --method tfidf; else `methods: [lora, tfidf]`" in none.stderr
    baseless = cli("compare", tiny_data / "train.csv", "--method", "lora")
    assert baseless.exit_code == 2
    assert "--base packaged:minilm-l6, or in YAML and Python `bases: [packaged:minilm-l6]`" in baseless.stderr


def test_options_that_do_not_exist_or_do_not_fit(cli: Any, tmp_path: Path, tiny_data: Path) -> None:
    unknown = cli("compare", "c.yaml", "--lerning-rate", "3")
    assert unknown.exit_code == 2
    assert "--learning-rate" in unknown.stderr
    assert cli("compare", "c.yaml", "--epochs", "many").exit_code == 2
    trusted = cli("compare", tiny_data / "train.csv", "--base", "a/b", "--trust-remote-code", "a/c")
    assert trusted.exit_code == 2
    assert "Did you mean 'a/b'" in trusted.stderr


def test_a_run_folder_of_another_configuration(cli: Any, values: dict[str, Any], tmp_path: Path) -> None:
    config = runs.write_config(tmp_path / "c.yaml", values)
    assert cli("compare", config).exit_code == 0
    done = cli("compare", config, "--learning-rate", "3e-4", "--no-group-duplicates")
    assert done.exit_code == 2
    assert "training.learning_rate: 0.01 there, 0.0003 here" in done.stderr
    assert "data.group_duplicates: true there, false here" in done.stderr


def test_predict_and_report_tell_what_is_missing(cli: Any, tmp_path: Path) -> None:
    for arguments in (("predict", tmp_path, "x.csv"), ("report", tmp_path)):
        done = cli(*arguments)
        assert done.exit_code == 2
        assert "results.json" in done.stderr


@pytest.mark.parametrize("command", ["compare", "sweep"])
def test_data_is_named_once(cli: Any, tiny_data: Path, tmp_path: Path, command: str) -> None:
    flags = ["--train", tiny_data / "test.csv", "--method", "lora", "--base", tiny_data / "saved-bert"]
    done = cli(command, tiny_data / "train.csv", *flags, "--output", tmp_path / "run")
    assert done.exit_code == 2
    assert "expected: data given once" in done.stderr
    assert f"{tiny_data / 'train.csv'} and {tiny_data / 'test.csv'}" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r=4,8,16", [4, 8, 16]),
        ("r=4", [4]),
        ("lora_alpha=0.5,1e-3,true,null,all,'4'", [0.5, 1e-3, True, None, "all", "4"]),
        ("learning_rate=1e-5:1e-3:log", {"min": 1e-5, "max": 1e-3, "log": True}),
        ("epochs = 1 : 5", {"min": 1, "max": 5}),
        ("target_modules=[query,value],all-linear", [["query", "value"], "all-linear"]),
        ("target_modules=[[query, value], [key]]", [["query", "value"], ["key"]]),
        ("target_modules=query,value", ["query", "value"]),
        ("layers_to_transform=null,[0,1]", [None, [0, 1]]),
        ("r=[4,8]", [4, 8]),
        ("batch_size={min: 8, max: 64, step: 8}", {"min": 8, "max": 64, "step": 8}),
        ("rank_pattern={},{a: 4}", [{}, {"a": 4}]),
    ],
)
def test_what_is_searched_is_given_in_yaml(text: str, expected: Any) -> None:
    assert searched([text]) == {text.partition("=")[0].strip(): expected}


def test_what_is_no_search_is_told_at_once(cli: Any, tiny_data: Path) -> None:
    texts = [
        "r=4,8",
        "r=16,32",
        "epochs",
        "lora_alpha=",
        "learning_rate=1e-5:1e-3:lin",
        "target_modules=[query",
    ]
    options = [word for text in texts for word in ("--search", text)]
    done = cli("sweep", tiny_data / "train.csv", *options)
    assert done.exit_code == 2
    assert "5 problems:" in done.stderr
    for told in (
        "found:    r more than once",
        "found:    'epochs'",
        "found:    'lora_alpha='",
        "found:    'learning_rate=1e-5:1e-3:lin'",
        "found:    target_modules=[query",
        "--search r=A,B,C",
    ):
        assert told in done.stderr


# Runs


def test_a_sweep_file_of_wandb_runs_as_it_is(cli: Any, tiny_data: Path, tmp_path: Path) -> None:
    values = {
        "program": "train.py",
        "method": "random",
        "run_cap": 3,
        "metric": {"name": "eval/accuracy", "goal": "maximize"},
        "parameters": {
            "lr": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1e-2},
            "r": {"values": [2, 4]},
            "num_epochs": {"value": 1},
        },
    }
    file = runs.write_config(tmp_path / "wandb.yaml", values)
    done = cli(
        *("sweep", file, "--train", tiny_data / "train.csv", "--validation", tiny_data / "validation.csv"),
        *("--base", tiny_data / "saved-bert", "--method", "lora", "--output", tmp_path / "run"),
    )
    assert done.exit_code == 0, done.stderr
    results = Results.load(tmp_path / "run" / "results.json")
    assert results.search is not None
    assert results.search.sampler == "random"
    assert results.config["metric"] == "accuracy"
    assert len(results.search.trials) == 3
    for trial in results.search.trials:
        assert trial.parameters["r"] in (2, 4)
        assert 1e-3 <= trial.parameters["learning_rate"] <= 1e-2
        assert trial.curve[-1].epoch == 1


def test_flags_alone_make_a_sweep(cli: Any, tiny_data: Path, tmp_path: Path) -> None:
    command = [
        *("sweep", tiny_data / "train.csv", "--validation", tiny_data / "validation.csv"),
        *("--base", tiny_data / "saved-bert", "--method", "lora", "--epochs", 1, "--learning-rate", "2e-3"),
        *("--search", "target_modules=[query,value],all-linear", "--search", "layers_to_transform=null,[0]"),
        *("--seeds", 2, "--no-costs", "--output", tmp_path / "run"),
    ]
    done = cli(*command)
    assert done.exit_code == 0, done.stderr
    assert "The best again" not in done.stdout
    assert "Of the best" not in done.stdout
    assert read_yaml(tmp_path / "run/best.yaml")["seeds"] == [1, 2]
    results = Results.load(tmp_path / "run" / "results.json")
    assert results.config["measure_costs"] is False
    assert {one.hyperparameters["learning_rate"] for one in results.candidates} == {2e-3}
    assert results.search is not None
    tried = [
        (trial.parameters["target_modules"], trial.parameters["layers_to_transform"])
        for trial in results.search.trials
    ]
    expected = [
        (["query", "value"], None),
        (["query", "value"], [0]),
        ("all-linear", None),
        ("all-linear", [0]),
    ]
    assert sorted(tried, key=str) == sorted(expected, key=str)

    # The same sweep with its best trained again: they stand below the trials, with an interval each.
    done = cli(*command, "--confirm", 1, "--seeds", 1)
    assert done.exit_code == 0, done.stderr
    trials, _, best = done.stdout.partition("The best again, 1 seed each:")
    (candidate,) = Results.load(tmp_path / "run/confirmed/results.json").candidates
    assert all(trial.name in trials for trial in results.search.trials)
    assert f"{candidate.name} " in best.partition("Ship")[0]
    assert "95%" in best.partition("Ship")[0]
    assert f"Of the best, with several seeds: {tmp_path}/run/confirmed/report.html" in done.stdout
    again = tunestack.sweep(tmp_path / "run" / "config.yaml", confirm=0, measure_costs=True, progress=False)
    assert again.config["measure_costs"] is True


@pytest.mark.parametrize(
    "given", [{"base": "BASE"}, {"base": {"model": "BASE", "gradient_checkpointing": True}}, {}]
)
def test_flags_of_a_sweeps_base(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    base = str(tiny_data / "saved-bert")
    values: dict[str, Any] = {"data": {"train": str(tiny_data / "train.csv")}, "methods": ["lora"]}
    values |= {"search": {"r": [2, 4]}, **json.loads(json.dumps(given).replace("BASE", base))}
    config = runs.write_config(tmp_path / "config.yaml", values)
    seen: list[Any] = []

    def keep(config: Any, notify: Any) -> None:
        seen.append(config)
        raise UserError

    monkeypatch.setattr("tunestack.search.run.run_sweep", keep)
    named = [] if given else ["--base", base]
    command = ["sweep", str(config), *named, "--dtype", "bfloat16", "--trust-remote-code"]
    flags = {
        "trials": 7,
        "sampler": "random",
        "pruner": "none",
        "metric": "accuracy",
        "slots": 3,
        "seed": 5,
        "confirm": 2,
    }
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command += ["--seeds", "4", "--track", "tensorboard", "--track", "mlflow"]
    CliRunner().invoke(app, [*command, "--output", str(tmp_path / "run")])
    (found,) = seen
    assert {name: getattr(found, name) for name in flags} == flags
    assert found.track == ["tensorboard", "mlflow"]
    assert len(found.seeds) == 4
    asked = found.base.model_dump(exclude_unset=True)
    kept = {"gradient_checkpointing": True} if "gradient" in str(given) else {}
    assert asked == {"model": base, "dtype": "bfloat16", "trust_remote_code": True, **kept}


def test_flags_alone_make_a_comparison(cli: Any, tiny_data: Path, tmp_path: Path) -> None:
    done = cli(
        *("compare", tiny_data / "train.csv", "--validation", tiny_data / "validation.csv"),
        *("--text", "text", "--label", "label", "--positive-label", "calm"),
        *("--method", "majority", "--method", "lora", "--base", tiny_data / "saved-bert"),
        *("--seeds", 1, "--epochs", 1, "--learning-rate", "1e-2", "--dtype", "float32", "--max-length", 32),
        *("--metric", "accuracy", "--no-costs", "--output", tmp_path / "a [red]folder"),
    )
    assert done.exit_code == 0, done.stderr
    assert f"Report: {tmp_path}/a [red]folder/report.html" in done.stdout
    results = Results.load(tmp_path / "a [red]folder" / "results.json")
    config = results.config
    assert config["bases"][0]["dtype"] == "float32"
    assert (config["seeds"], config["metric"], config["training"]["max_length"]) == ([1], "accuracy", 32)
    assert results.candidates[1].hyperparameters["learning_rate"] == 1e-2
    assert results.data.label_names == ["urgent", "calm"]
    assert cli("report", tmp_path / "a [red]folder").stdout.strip().endswith("report.html")


def test_a_failure_is_named_and_the_rest_is_compared(
    cli: Any, values: dict[str, Any], tmp_path: Path
) -> None:
    methods = ["majority", {"method": "lora", "name": "too fast", "training": {"learning_rate": 1e30}}]
    done = cli("compare", runs.write_config(tmp_path / "c.yaml", {**values, "methods": methods}))
    assert done.exit_code == 0
    assert "too fast, seed 1" in done.stdout
    assert "too-fast.seed-1 failed:" in done.stderr
    assert "majority" in done.stdout


def test_nothing_to_ship_where_all_fail(cli: Any, values: dict[str, Any], tmp_path: Path) -> None:
    methods = [{"method": "lora", "training": {"learning_rate": 1e30}}, {"method": "tfidf", "min_df": 39}]
    done = cli("compare", runs.write_config(tmp_path / "c.yaml", {**values, "methods": methods}))
    assert done.exit_code == 1
    assert "No candidate finished." in done.stdout
    assert "Lower min_df" in done.stdout
    assert Results.load(tmp_path / "run" / "results.json").verdict is None
    assert "No candidate finished." in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert cli("predict", tmp_path / "run", "x.csv").exit_code == 2


# Interruptions, from outside


def _started(config: Path) -> subprocess.Popen[str]:
    """A comparison in a process of its own; signals reach it as from a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "tunestack", "compare", str(config)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


LONG: dict[str, Any] = {
    "methods": ["lora"],
    "training": {"epochs": 30, "learning_rate": 3e-3, "batch_size": 8},
}


@pytest.fixture(scope="module")
def uninterrupted(tiny_data: Path) -> Results:
    return runs.compare(runs.settings(tiny_data, **LONG, output=str(tiny_data / "long")))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_in_training_the_same_command_goes_on(
    tiny_data: Path, tmp_path: Path, uninterrupted: Results, number: int, code: int
) -> None:
    values = runs.settings(tiny_data, **LONG, output=str(tmp_path / "run"))
    process = _started(runs.write_config(tmp_path / "c.yaml", values))
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if "seed-2: epoch 3" in line:
            process.send_signal(number)
            break
    told += process.stderr.read()
    assert process.wait(60) == code
    assert "Traceback" not in told
    if number == signal.SIGINT:
        assert f"What was trained is in {tmp_path / 'run'}; the same command goes on from there." in told
    assert not (tmp_path / "run" / "results.json").exists()
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))) == 2
    first: dict[str, int] = {}

    def note(event: Event) -> None:
        if event.kind == "started":
            first.setdefault(event.key, event.step)

    resumed = runs.compare(values, note)
    assert first
    assert all(step > 0 for step in first.values())
    assert runs.scores(resumed) == runs.scores(uninterrupted)
    np.testing.assert_allclose(runs.losses(resumed), runs.losses(uninterrupted), rtol=1e-4, atol=1e-5)


# The display


def _point(epoch: float, f1: float) -> CurvePoint:
    return CurvePoint(epoch=epoch, step=int(epoch * 10), train_loss=0.5 / epoch, metrics={"f1": f1})


def _events() -> list[Event]:
    return [
        Event("started", "tfidf"),
        Event("finished", "tfidf"),
        Event("started", "lora.seed-1", steps=20),
        Event("step", "lora.seed-1", 5, 20, 0.5, 0.71),
        Event("evaluated", "lora.seed-1", 10, 20, 1.0, 0.6, _point(1, 0.7)),
        Event("step", "lora.seed-1", 20, 20, 2.0, 0.5),
        Event("evaluated", "lora.seed-1", 20, 20, 2.0, 0.5, _point(2, 0.65)),
        Event("started", "full.seed-1", 7, 20, 0.7),
        Event("narrowed", "full.seed-1", message="out of memory: [2] slots at once"),
        Event("failed", "full.seed-1", message="the loss became [nan]"),
        Event("finished", "lora.seed-1"),
        Event("finished", "done-in-an-earlier-run"),
        Event("step", "never-started", 1, 2),
        Event("measuring", "tfidf", message="Measuring what tfidf costs alone"),
    ]


def test_the_display_prints_lines_where_there_is_no_terminal() -> None:
    out = StringIO()
    with Display(Console(file=out, width=60)) as display:
        for event in _events():
            display.notify(event)
    assert out.getvalue().splitlines() == [
        "tfidf: started",
        "tfidf: done",
        "lora.seed-1: started",
        "lora.seed-1: epoch 1, loss 0.500, f1 0.700",
        "lora.seed-1: epoch 2, loss 0.250, f1 0.650",
        "full.seed-1: goes on at epoch 0.7",
        "out of memory: [2] slots at once",
        "full.seed-1 failed: the loss became [nan]",
        "lora.seed-1: done",
        "done-in-an-earlier-run: done",
        "Measuring what tfidf costs alone",
    ]


@pytest.mark.parametrize("width", [30, 80, 140])
def test_the_display_draws_every_state_in_a_terminal(width: int) -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=30)
    with Display(console) as display:
        for event in _events():
            display.notify(event)
            console.print(display._render())
    if width >= 80:
        for text in ("lora.seed-1", "0.700", "0.50", "2.00", "2 done", "Measuring what tfidf costs alone"):
            assert text in out.getvalue()


def test_the_display_draws_curves() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=120, height=30)
    display = Display(console)
    display.notify(Event("started", "a", steps=40))
    for epoch, f1 in enumerate([0.5, 0.8, 0.65], start=1):
        display.notify(Event("evaluated", "a", point=_point(epoch, f1)))
    display.notify(Event("started", "b", steps=40))
    display.notify(Event("evaluated", "b", point=_point(1, 0.3)))
    console.print(display._render())
    drawn = {line.split()[0]: line for line in out.getvalue().splitlines() if line.strip()}
    assert "▁█▅" in drawn["a"] or "▁█▄" in drawn["a"]
    assert "▁" in drawn["b"]
    assert "█" not in drawn["b"]


def test_the_display_says_what_a_trial_is_and_how_far_it_had_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)

    def shown(width: int, *events: Event) -> str:
        out = StringIO()
        for event in events:
            display.notify(event)
        display.console = Console(file=out, width=width)
        display.console.print(display._render())
        display.console = first
        return out.getvalue()

    first = Console(file=StringIO(), width=300)
    display = Display(first)
    curve = (_point(1, 0.5), _point(2, 0.25))
    started = Event("started", "trial-0.seed-0", 20, 40, 2.0, message="r=8, learning_rate=3e-4", curve=curve)
    wide = shown(120, started, Event("step", "trial-0.seed-0", 21, 40, 2.1))
    assert "r=8, learning_rate=3e-4" in wide
    assert "█▁" in wide
    assert "0.500" in wide  # the best so far, and 0.250 the loss
    assert "0.250" in wide
    assert "learning_rate" not in shown(80)
    pattern = Event("started", "b.seed-0", steps=40, message="target_modules=.*[/qv]_proj")
    assert "target_modules=.*[/qv]_proj" in shown(120, pattern)
    assert "target_modules=.*[/qv]_proj" in cast(StringIO, first.file).getvalue()
    display.notify(Event("finished", "b.seed-0"))
    assert max(map(len, shown(90).splitlines())) <= 90
    assert "eval" not in shown(120)
    assert "eval" in shown(120, Event("evaluating", "trial-0.seed-0", 30, 40))
    assert "eval" not in shown(120, Event("evaluated", "trial-0.seed-0", 30, 40, point=_point(3, 0.6)))
    assert "━" not in shown(120, Event("waits", "trial-0.seed-0"))
    shown(120, Event("measuring", "", message="Measuring what lora costs alone (1 of 2)"))
    now += 83
    assert "Measuring what lora costs alone (1 of 2) 1:23" in shown(120)


@pytest.mark.parametrize("width", [40, 60, 100])
def test_the_display_fits_into_the_terminal(width: int) -> None:
    """Or what is below it, how far all of it is, would not be seen."""
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=12)
    display = Display(console)
    for place in range(30):
        display.notify(Event("started", f"trial-{place}", steps=40))
    display.notify(Event("counted", "", 4, 40, message="best f1 0.900 (trial-3, of a long name)"))
    console.print(display._render())
    lines = out.getvalue().splitlines()
    assert len(lines) < 12
    assert "and 22 more" in lines[-2]
    assert "4 of 40 trials done" in lines[-1]


def test_the_display_shows_progress_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = StringIO()
    console = Console(file=out, width=100)
    display = Display(console)

    def row(kind: Literal["started", "step"], step: int, steps: int) -> str:
        display.notify(Event(kind, "lora.seed-1", step, steps, step / 100, 0.5))
        out.truncate(0)
        console.print(display._render())
        return next(line for line in out.getvalue().splitlines() if "lora.seed-1" in line)

    assert ":" not in row("started", 40, 400)  # nothing is known of the pace; 40 steps were done before
    now += 10
    assert row("step", 60, 400).rstrip().endswith("2:50")  # 20 steps in 10 s, 340 to go
    now += 7210
    assert row("step", 220, 400).rstrip().endswith("2:00:20")
    assert row("step", 400, 400).rstrip().endswith("0:00")


def test_the_display_counts_on_from_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    out = StringIO()
    display = Display(Console(file=out, width=150))

    def shown(*events: Event) -> str:
        for event in events:
            display.notify(event)
        display._note = ""
        out.truncate(0)
        out.seek(0)
        display.console.print(display._render())
        return out.getvalue().splitlines()[-1].strip()

    def trial(key: str, ending: Literal["finished", "failed"] = "finished") -> tuple[Event, Event]:
        return Event("started", key, steps=4), Event(ending, key, message="it broke")

    now += 50  # reading data, and what was done before, is no part of the pace
    assert shown(Event("counted", "", 10, 30, message="best f1 0.900 (trial-3)")) == (
        "10 of 30 trials done · best f1 0.900 (trial-3)"
    )
    now += 60
    told = Event("counted", "", 14, 30, message="1 failed")  # three were of another process
    assert shown(*trial("a", "failed"), told) == (
        "14 of 30 trials done · 1 failed · 4.0 trials a minute · 4:00 left"
    )
    half = Event("started", "half", 1, 4), Event("step", "half", 3, 4)  # of which a quarter was done before
    assert shown(*half) == "14 of 30 trials done · 1 failed · 4.5 trials a minute · 3:23 left"
    now += 500
    more = Event("counted", "", 14, 31, message="more trials")
    assert shown(more) == "14 of 31 trials done · more trials"  # what was done before is no part of the pace
    now += 3600
    assert shown(Event("step", "half", 4, 4)) == (
        "14 of 31 trials done · more trials · 0.2 trials an hour · 64:00:00 left"
    )
    all_done = Event("finished", "half"), Event("counted", "", 30, 30)
    assert shown(*all_done) == "30 of 30 trials done"
    again = Event("counted", "", 0, 15, message="training the best 3 again")
    assert shown(again) == "0 of 15 trials done · training the best 3 again"
    done_before = Event("finished", "b.seed-1")
    unmeasured = Event("failed", "b", message="no costs")
    now += 60
    assert shown(done_before, *trial("b.seed-2"), *trial("b.seed-3", "failed"), unmeasured) == (
        "3 of 15 trials done · training the best 3 again · 2.0 trials a minute · 6:00 left"
    )


def test_the_version_is_that_of_the_package() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    assert shown.output.strip() == f"tunestack {metadata.version('tunestack')}"


def test_every_task_is_listed(cli: Any) -> None:
    from tunestack.tasks.registry import TASKS

    result = cli("tasks")
    assert result.exit_code == 0
    for name, task in TASKS.items():
        assert name in result.stdout
        assert task.default_metric in result.stdout
