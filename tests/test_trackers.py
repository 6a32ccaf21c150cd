"""Trackers: what each of them holds after a comparison, and that none of them can get in its way."""

from __future__ import annotations

import http.server
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import pytest
import wandb
from mlflow.entities import Run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from typer.testing import CliRunner
from wandb.proto.wandb_internal_pb2 import Record

import fresh
import runs
import test_sweep
import tunestack
from tunestack.cli.app import app
from tunestack.errors import UserError
from tunestack.results import PRUNED, Costs, CurvePoint, Results, SeedResult
from tunestack.stack.events import Event
from tunestack.trackers import base, registry, tracking
from tunestack.trackers.base import Conclusion, TrackedRun, TrackedTrial, Tracker, check_server
from tunestack.trackers.tracking import Tracking

TRIALS = {
    "majority": ("majority", 0),
    "tfidf": ("tfidf", 0),
    "lora.seed-1": ("lora", 1),
    "lora.seed-2": ("lora", 2),
}
METHODS = [
    "majority",
    {"method": "tfidf", "min_df": 1000},
    {"method": "lora", "r": 3},
]  # tfidf finds no words
COSTS = Costs(train_seconds=12.5, inference_examples_per_second=250.0)


@pytest.fixture(scope="module")
def at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, with trackers that keep everything there and send nothing."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        wandb.teardown()
        yield folder
        wandb.teardown()


@pytest.fixture(scope="module")
def tracked(tiny_data: Path, at_home: Path) -> Results:
    """A comparison on the command line, tracked by all three; one of its candidates fails."""
    config = runs.write_config(
        at_home / "config.yaml", runs.settings(tiny_data, methods=METHODS, output="tweets")
    )
    options = [word for name in registry.TRACKERS for word in ("--track", name)]
    done = CliRunner().invoke(app, ["compare", str(config), *options])
    assert done.exit_code == 0, done.output
    assert "Tracking with" not in done.output
    return Results.load(at_home / "tweets" / "results.json")


def seed_result(results: Results, key: str) -> SeedResult:
    """What the results say of a trial."""
    name, seed = TRIALS[key]
    (found,) = [s for c in results.candidates if c.name == name for s in c.seeds if s.seed == seed]
    return found


def curve(result: SeedResult, name: str) -> list[tuple[int, float]]:
    """A validation metric's values by step."""
    return [(point.step, point.metrics[name]) for point in result.curves]


def final(result: SeedResult) -> dict[str, float]:
    """The metrics that a trial reached, as trackers name them."""
    scores = {"validation": result.validation, "test": result.test}
    return {f"final/{s}/{n}": v for s, found in scores.items() if found for n, v in found.metrics.items()}


class TestMLflow:
    @pytest.fixture
    def client(self, tracked: Results) -> mlflow.MlflowClient:
        return mlflow.MlflowClient()

    @pytest.fixture
    def runs_by_name(self, client: mlflow.MlflowClient) -> dict[str, Run]:
        experiment = client.get_experiment_by_name("tunestack")
        assert experiment is not None
        return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}

    def test_every_trial_is_a_run_nested_in_that_of_the_comparison(
        self, runs_by_name: dict[str, Run]
    ) -> None:
        parent = runs_by_name.pop("tweets")
        assert set(runs_by_name) == set(TRIALS)
        assert "mlflow.parentRunId" not in parent.data.tags
        assert {r.data.tags["mlflow.parentRunId"] for r in runs_by_name.values()} == {parent.info.run_id}
        status = {name: run.info.status for name, run in runs_by_name.items()}
        assert status == {**dict.fromkeys(TRIALS, "FINISHED"), "tfidf": "FAILED"}
        assert parent.info.status == "FINISHED"
        assert "min_df" in runs_by_name["tfidf"].data.tags["tunestack.failure"]

    def test_parameters_are_those_of_the_results(
        self, runs_by_name: dict[str, Run], tracked: Results
    ) -> None:
        lora = next(c for c in tracked.candidates if c.name == "lora")
        expected = {**lora.hyperparameters, "method": "lora", "base": lora.base, "seed": 2}
        assert runs_by_name["lora.seed-2"].data.params == {name: str(v) for name, v in expected.items()}

    @pytest.mark.parametrize("key", ["lora.seed-1", "lora.seed-2"])
    def test_curves_and_final_metrics_are_those_of_the_results(
        self, client: mlflow.MlflowClient, runs_by_name: dict[str, Run], tracked: Results, key: str
    ) -> None:
        run, result = runs_by_name[key], seed_result(tracked, key)
        history = client.get_metric_history(run.info.run_id, "validation/f1")
        assert len(result.curves) == 2
        assert [(point.step, point.value) for point in history] == curve(result, "f1")
        losses = client.get_metric_history(run.info.run_id, "train/loss")
        assert [point.value for point in losses] == [point.train_loss for point in result.curves]
        assert final(result).items() <= run.data.metrics.items()
        assert run.data.metrics["final/best_epoch"] == result.best_epoch

    def test_adapters_and_the_report_are_artifacts(
        self, runs_by_name: dict[str, Run], tracked: Results, at_home: Path
    ) -> None:
        for key in ("majority", "lora.seed-1"):
            stored = Path(runs_by_name[key].info.artifact_uri) / "adapter"
            ours = at_home / "tweets" / str(seed_result(tracked, key).adapter_path)
            assert {f.name: f.read_bytes() for f in stored.iterdir()} == {
                f.name: f.read_bytes() for f in ours.iterdir()
            }
        of_parent = Path(runs_by_name["tweets"].info.artifact_uri)
        assert (of_parent / "report.html").read_bytes() == (at_home / "tweets" / "report.html").read_bytes()
        assert {f.name for f in of_parent.iterdir()} == {
            "report.html",
            "leaderboard.md",
            "results.json",
            "config.yaml",
        }

    def test_the_comparison_has_the_means_of_every_candidate(
        self, runs_by_name: dict[str, Run], tracked: Results
    ) -> None:
        expected = {
            f"{c.name}/validation/{name}": summary.mean
            for c in tracked.candidates
            for name, summary in c.validation.items()
        }
        assert expected
        assert expected.items() <= runs_by_name["tweets"].data.metrics.items()


class TestTensorBoard:
    @pytest.fixture
    def read(self, tracked: Results, at_home: Path) -> Callable[[str], EventAccumulator]:
        def load(key: str) -> EventAccumulator:
            return EventAccumulator(str(at_home / "tweets" / "tensorboard" / key)).Reload()

        return load

    def test_every_trial_has_a_folder_with_its_curves(
        self, read: Callable[[str], EventAccumulator], tracked: Results, at_home: Path
    ) -> None:
        folders = {path.name for path in (at_home / "tweets" / "tensorboard").iterdir() if path.is_dir()}
        assert folders == set(TRIALS)
        for key in ("lora.seed-1", "lora.seed-2"):
            found, result = read(key), seed_result(tracked, key)
            points = [(point.step, point.value) for point in found.Scalars("validation/f1")]
            assert points == [(step, pytest.approx(value)) for step, value in curve(result, "f1")]
            for name, value in final(result).items():
                assert found.Scalars(name)[0].value == pytest.approx(value, nan_ok=True)

    def test_hyperparameters_are_there_to_compare_trials_by(
        self, read: Callable[[str], EventAccumulator]
    ) -> None:
        metadata = read("lora.seed-2").SummaryMetadata("_hparams_/session_start_info")
        values = HParamsPluginData.FromString(metadata.plugin_data.content).session_start_info.hparams
        assert values["r"].number_value == 3
        assert values["seed"].number_value == 2
        assert values["candidate"].string_value == "lora"

    def test_a_failure_and_the_verdict_are_told(
        self, read: Callable[[str], EventAccumulator], tracked: Results
    ) -> None:
        def text(key: str, tag: str) -> str:
            (event,) = read(key).Tensors(f"{tag}/text_summary")
            return str(event.tensor_proto.string_val[0].decode())

        assert tracked.verdict is not None
        assert text("", "verdict") == tracked.verdict.sentence
        assert "| lora |" in text("", "leaderboard")
        assert text("tfidf", "failure") == seed_result(tracked, "tfidf").failure


def offline_records(file: Path) -> list[Record]:
    """What an offline run of W&B stored: LevelDB's log format, behind a header of 7 bytes."""
    data, place, parts, records = file.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # a block's end is padded
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def values_of(items: Any) -> dict[str, Any]:
    """Names and values as W&B stores them."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


class TestWandB:
    @pytest.fixture
    def offline(self, tracked: Results, at_home: Path) -> dict[str, list[Record]]:
        """The records of every run, by its name."""
        found = {}
        for file in (at_home / "wandb").glob("offline-run-*/*.wandb"):
            records = offline_records(file)
            found[next(r.run.display_name for r in records if r.HasField("run"))] = records
        return found

    def test_every_trial_is_a_run_in_the_group_of_the_comparison(
        self, offline: dict[str, list[Record]]
    ) -> None:
        about = {name: next(r.run for r in each if r.HasField("run")) for name, each in offline.items()}
        assert {name: run.job_type for name, run in about.items()} == {
            "tweets": "comparison",
            **dict.fromkeys(TRIALS, "trial"),
        }
        assert {(run.project, run.run_group) for run in about.values()} == {("tunestack", "tweets")}
        exits = {n: next(r.exit.exit_code for r in each if r.HasField("exit")) for n, each in offline.items()}
        assert exits == {"tweets": 0, **dict.fromkeys(TRIALS, 0), "tfidf": 1}

    def test_parameters_and_curves_are_those_of_the_results(
        self, offline: dict[str, list[Record]], tracked: Results
    ) -> None:
        records, result = offline["lora.seed-2"], seed_result(tracked, "lora.seed-2")
        config = values_of(next(r.run for r in records if r.HasField("run")).config.update)
        lora = next(c for c in tracked.candidates if c.name == "lora")
        assert lora.hyperparameters.items() <= config.items()
        assert (config["candidate"], config["seed"]) == ("lora", 2)
        history = [values_of(r.history.item) for r in records if r.HasField("history")]
        assert [(row["_step"], row["validation/f1"]) for row in history] == curve(result, "f1")
        summary: dict[str, Any] = {}
        for record in records:
            if record.HasField("summary"):
                summary |= values_of(record.summary.update)
        assert summary["final/validation/f1"] == final(result)["final/validation/f1"]
        assert summary["final/best_epoch"] == result.best_epoch

    def test_adapters_and_the_report_are_artifacts(
        self, offline: dict[str, list[Record]], tracked: Results, at_home: Path
    ) -> None:
        def artifacts(name: str) -> dict[str, dict[str, int]]:
            found = [r.request.log_artifact.artifact for r in offline[name] if r.HasField("request")]
            found += [r.artifact for r in offline[name] if r.HasField("artifact")]
            return {a.type: {e.path: e.size for e in a.manifest.contents} for a in found if a.type}

        ours = at_home / "tweets" / str(seed_result(tracked, "lora.seed-1").adapter_path)
        assert artifacts("lora.seed-1")["model"] == {f.name: f.stat().st_size for f in ours.iterdir()}
        assert set(artifacts("tweets")["report"]) == {"report.html", "leaderboard.md", "results.json"}


class Recorder(Tracker):
    """A tracker of our own, as anybody may write one."""

    calls: ClassVar[list[tuple[str, tuple[Any, ...]]]]
    at: ClassVar[str]
    act: ClassVar[Callable[[], object]]

    def _call(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, arguments))
        if method == self.at:
            type(self).act()

    def start(self, run: TrackedRun) -> None:
        self._call("start", run)

    def trial_started(self, trial: TrackedTrial) -> None:
        self._call("trial_started", trial)

    def evaluated(self, key: str, point: CurvePoint) -> None:
        self._call("evaluated", key, point)

    def trial_finished(self, key: str, result: SeedResult, adapter: Path | None) -> None:
        self._call("trial_finished", key, result, adapter)

    def finish(self, conclusion: Conclusion | None) -> None:
        self._call("finish", conclusion)


CALLS = ["start", "trial_started", "evaluated", "trial_finished", "finish"]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """The tracker of our own, with its line in the registry."""
    monkeypatch.setitem(registry.TRACKERS, "recorder", f"{__name__}:Recorder")
    Recorder.calls, Recorder.at, Recorder.act = [], "", lambda: None
    return Recorder


def follow(folder: Path) -> None:
    """A run of one trial, as its trackers see it."""
    trials = {"t": TrackedTrial("t", "candidate", {"r": 8})}
    seen: list[Event] = []
    with Tracking(["recorder"], "sweep", "search", folder, {}, trials, seen.append) as told:
        told.notify(Event("started", "t"))
        point = CurvePoint(epoch=1, step=5, train_loss=0.5, metrics={"f1": 0.7})
        told.notify(Event("evaluated", "t", point=point))
        told.finished("t", SeedResult(seed=1, adapter_path="adapter"))
        told.conclude(Conclusion("ship it", {}, []))
    assert [event.kind for event in seen] == ["started", "evaluated"]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("tunestack")]


def test_a_tracker_is_told_everything_in_order(
    recorder: type[Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    follow(tmp_path)
    assert [method for method, _ in recorder.calls] == CALLS
    told = dict(recorder.calls)
    (run,) = told["start"]
    assert (run.kind, run.name, run.folder) == ("sweep", "search", tmp_path)
    assert told["trial_finished"][2] == tmp_path / "adapter"
    assert told["finish"] == (Conclusion("ship it", {}, []),)
    assert warnings_in(caplog) == []


def test_a_trial_that_starts_again_is_one_and_one_that_cannot_start_is_told(
    recorder: type[Recorder], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trials = {key: TrackedTrial(key, "candidate", {}) for key in ("again", "never")}
    with Tracking(["recorder"], "sweep", "search", tmp_path, {}, trials, lambda event: None) as told:
        told.notify(Event("started", "again"))
        told.notify(Event("started", "again"))  # for want of memory, or of room after a rehearsal
        told.finished("again", SeedResult(seed=1))
        told.notify(Event("failed", "never"))  # out of memory with this trial alone
        told.finished("never", SeedResult(seed=1, failure="out of memory"))
    trial_calls = [
        (method, arguments[0].key if method == "trial_started" else arguments[0])
        for method, arguments in recorder.calls
        if method.startswith("trial")
    ]
    assert trial_calls == [
        ("trial_started", "again"),
        ("trial_finished", "again"),
        ("trial_started", "never"),
        ("trial_finished", "never"),
    ]
    assert not warnings_in(caplog)


@pytest.fixture
def elsewhere(at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test alone, where trackers keep everything."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    return tmp_path


def test_a_sweep_is_a_group_of_its_trials(tiny_data: Path, elsewhere: Path) -> None:
    values = test_sweep.settings(tiny_data, elsewhere / "found", trials=3, training={"epochs": 2})
    results = test_sweep.sweep({**values, "sampler": "random", "track": list(registry.TRACKERS)})
    assert results.search is not None
    keys = {f"{trial.name}.seed-0": trial for trial in results.search.trials}

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tunestack")
    assert experiment is not None
    stored = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = stored.pop("found")
    assert parent.data.tags["tunestack.kind"] == "sweep"
    report = Path(parent.info.artifact_uri) / "report.html"
    assert report.read_bytes() == (elsewhere / "found/report.html").read_bytes()
    assert set(stored) == set(keys)
    for key, run in stored.items():
        trial = keys[key]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params["r"] == str(trial.parameters["r"])
        history = client.get_metric_history(run.info.run_id, "validation/accuracy")
        assert [point.value for point in history] == [point.metrics["accuracy"] for point in trial.curve]
        assert (Path(run.info.artifact_uri) / "adapter/adapter_config.json").exists()

    kinds = {}
    for file in (elsewhere / "wandb").glob("offline-run-*/*.wandb"):
        run = next(record.run for record in offline_records(file) if record.HasField("run"))
        assert run.run_group == "found"
        kinds[run.display_name] = run.job_type
    assert kinds == {"found": "sweep", **dict.fromkeys(keys, "trial")}
    assert {path.name for path in (elsewhere / "found/tensorboard").iterdir() if path.is_dir()} == set(keys)


def test_a_pruned_trial_has_not_failed(elsewhere: Path, tmp_path: Path) -> None:
    trials = {key: TrackedTrial(key, "candidate", {}) for key in ("ended", "broken")}
    names = ["mlflow", "wandb", "tensorboard"]
    with Tracking(names, "sweep", "pruned-ones", tmp_path, {}, trials, lambda event: None) as told:
        for key, failure in (("ended", PRUNED), ("broken", "the loss became nan")):
            told.notify(Event("started", key))
            told.finished(key, SeedResult(seed=1, failure=failure))
    runs = mlflow.MlflowClient().search_runs(
        [experiment.experiment_id for experiment in mlflow.MlflowClient().search_experiments()]
    )
    status = {run.info.run_name: run.info.status for run in runs}
    assert (status["ended"], status["broken"]) == ("FINISHED", "FAILED")
    exits = {}
    for file in (elsewhere / "wandb").glob("offline-run-*/*.wandb"):
        records = offline_records(file)
        name = next(record.run.display_name for record in records if record.HasField("run"))
        exits[name] = next(record.exit.exit_code for record in records if record.HasField("exit"))
    assert (exits["ended"], exits["broken"]) == (0, 1)


def test_the_id_of_a_run_stays_and_is_its_own(recorder: type[Recorder], tmp_path: Path) -> None:
    for folder in ("one", "one", "other"):
        follow(tmp_path / folder)
    first, again, other = [arguments[0].id for method, arguments in recorder.calls if method == "start"]
    assert first == again != other


def test_processes_that_share_a_folder_agree_on_the_id(tmp_path: Path) -> None:
    for count in range(10):
        folder, together = tmp_path / str(count), threading.Barrier(8)

        def identity(_: int, folder: Path = folder, together: threading.Barrier = together) -> str:
            together.wait()
            return tracking._identity(folder)

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(identity, range(8)))) == 1


def test_processes_that_share_a_sweep_share_its_runs_in_mlflow(at_home: Path, tmp_path: Path) -> None:
    from tunestack.trackers.mlflow import MLflow

    run = TrackedRun("shared", "shared", "sweep", tmp_path / "shared", {"trials": 2})
    killed, early, late = trackers = [MLflow() for _ in range(3)]
    together = threading.Barrier(3)

    def start(tracker: MLflow) -> None:
        together.wait()
        tracker.start(run)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(start, trackers))
    first, second = [TrackedTrial(key, "lora", {"r": 8}) for key in ("trial-0", "trial-1")]
    point = CurvePoint(epoch=1, step=5, train_loss=0.5, metrics={"f1": 0.7})
    killed.trial_started(first)
    killed.evaluated("trial-0", point)
    late.trial_started(second)
    early.trial_started(first)  # taken over
    early.trial_finished("trial-0", SeedResult(seed=1), None)
    early.finish(Conclusion("not all", {"trial-0": {"f1": 0.7}}, []))
    late.evaluated("trial-1", point)
    late.trial_finished("trial-1", SeedResult(seed=1), None)
    late.finish(Conclusion("all of it", {"trial-0": {"f1": 0.7}, "trial-1": {"f1": 0.8}}, []))

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tunestack")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`tunestack.id` = 'shared'")
    assert sorted(each.info.run_name for each in found) == ["shared", "trial-0", "trial-1"]
    assert {each.info.status for each in found} == {"FINISHED"}
    parent = next(each for each in found if each.info.run_name == "shared")
    assert parent.data.metrics == {"trial-0/f1": 0.7, "trial-1/f1": 0.8}
    assert parent.data.tags["mlflow.note.content"] == "all of it"
    nested = [each for each in found if each is not parent]
    assert {each.data.tags["mlflow.parentRunId"] for each in nested} == {parent.info.run_id}
    assert [each.data.metrics["validation/f1"] for each in nested] == [0.7, 0.7]


def broken() -> None:
    raise RuntimeError("the server\nis on fire")


@pytest.mark.parametrize("act", [broken, sys.exit])
@pytest.mark.parametrize("method", CALLS)
def test_whatever_a_tracker_raises_there_is_one_warning_and_it_is_left_alone(
    recorder: type[Recorder],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    method: str,
    act: Callable[[], None],
) -> None:
    recorder.at, recorder.act = method, act
    follow(tmp_path)
    assert [name for name, _ in recorder.calls] == CALLS[: CALLS.index(method) + 1]
    (warning,) = warnings_in(caplog)
    reason = "RuntimeError: the server is on fire" if act is broken else "SystemExit"
    assert warning.startswith(f"Tracking with recorder stops here, training goes on: {reason}")


def test_a_tracker_that_hangs_holds_up_nothing_but_the_end_and_that_not_for_long(
    recorder: type[Recorder],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.5)
    release = threading.Event()

    def hang_then_fail() -> None:
        release.wait()
        broken()

    recorder.at, recorder.act = "start", hang_then_fail
    began = time.monotonic()
    follow(tmp_path)
    assert 0.4 < time.monotonic() - began < 30
    release.set()
    for thread in threading.enumerate():
        if thread.name == "tracker-recorder":
            thread.join(10)
    assert [name for name, _ in recorder.calls] == ["start"]
    assert warnings_in(caplog) == [
        "Tracking with recorder stops here, training goes on: no answer within 0.5 seconds"
    ]


def test_a_server_that_says_nothing_is_down_and_one_that_refuses_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"does not answer within 0\.3 seconds"):
            check_server(url)
    with pytest.raises(ConnectionError, match="refused"):
        check_server(url)
    monkeypatch.setattr(base, "ANSWER_SECONDS", 10)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        check_server(f"http://127.0.0.1:{server.server_port}")  # answered with 501: it has no HEAD
        thread.join()


def test_a_server_that_is_down_changes_nothing_but_one_warning(
    tiny_data: Path, at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    plain = runs.compare(
        runs.settings(tiny_data, methods=["majority", "lora"], output=str(tmp_path / "plain"))
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    wandb.teardown()
    values = runs.settings(
        tiny_data, methods=["majority", "lora"], track=["mlflow", "wandb"], output=str(tmp_path / "run")
    )
    caplog.clear()
    assert runs.scores(runs.compare(values)) == runs.scores(plain)
    first, second = sorted(warnings_in(caplog))
    assert first.startswith("Tracking with mlflow stops here, training goes on: ConnectionError")
    assert second.startswith("Tracking with wandb stops here, training goes on: ConnectionError")
    wandb.teardown()


def confirmed_sweep(folder: Path, output: Path) -> dict[str, Any]:
    """The settings of a sweep of two trials whose best is trained again."""
    values = test_sweep.settings(folder, output, trials=2, pruner="none", training={"epochs": 1})
    return {**values, "confirm": 1, "seeds": 1, "measure_costs": False}


def test_a_tracker_that_fails_in_a_sweep_is_left_alone_in_its_confirmation(
    recorder: type[Recorder], tiny_data: Path, tmp_path: Path, caplog: Any
) -> None:
    recorder.at, recorder.act = "start", broken
    values = {**confirmed_sweep(tiny_data, tmp_path / "run"), "track": ["recorder"]}
    assert test_sweep.sweep(values).search is not None
    assert len(warnings_in(caplog)) == 1
    assert [method for method, _ in recorder.calls] == ["start"]
    recorder.at, recorder.calls = "", []
    again = {**values, "output": str(tmp_path / "again")}
    assert test_sweep.sweep(again).search is not None  # the next sweep tries it again
    starts = [arguments[0] for method, arguments in recorder.calls if method == "start"]
    assert [(run.kind, run.name) for run in starts] == [("sweep", "again"), ("comparison", "again/confirmed")]


def test_an_interrupted_run_goes_on_in_the_same_runs(tiny_data: Path, at_home: Path, tmp_path: Path) -> None:
    values = runs.settings(
        tiny_data, methods=["majority", "lora"], slots=1, track="mlflow", output=str(tmp_path / "resumed")
    )
    client = mlflow.MlflowClient()

    def found() -> dict[str, Run]:
        experiment = client.get_experiment_by_name("tunestack")
        assert experiment is not None
        (parent, *others) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'resumed'")
        assert not others
        children = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        nested = client.search_runs([experiment.experiment_id], children)
        assert len({run.info.run_name for run in nested}) == len(nested)
        return {run.info.run_name: run for run in (parent, *nested)}

    def stop(event: Event) -> None:
        if event.kind == "evaluated" and event.key == "lora.seed-2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.compare(values, stop)
    before = found()
    assert {name: run.info.status for name, run in before.items()} == {
        "resumed": "KILLED",
        "majority": "FINISHED",
        "lora.seed-1": "FINISHED",
        "lora.seed-2": "KILLED",
    }
    costs = tmp_path / "resumed" / "candidates" / "lora" / "costs.json"
    costs.write_text(COSTS.model_dump_json(), encoding="utf-8")
    results = runs.compare(values)
    after = found()
    assert {name: run.info.run_id for name, run in after.items()} == {
        name: run.info.run_id for name, run in before.items()
    }
    assert {run.info.status for run in after.values()} == {"FINISHED"}
    assert after["lora.seed-1"].info.end_time == before["lora.seed-1"].info.end_time
    for key in ("lora.seed-1", "lora.seed-2"):
        history = client.get_metric_history(after[key].info.run_id, "validation/f1")
        assert [(point.step, point.value) for point in history] == curve(seed_result(results, key), "f1")
    metrics = after["resumed"].data.metrics
    assert metrics["lora/costs/train_seconds"] == COSTS.train_seconds
    assert metrics["lora/costs/inference_examples_per_second"] == COSTS.inference_examples_per_second


def problems(tiny_data: Path, output: Path, **fields: Any) -> list[str]:
    """What is wrong with a comparison, which then has not begun."""
    with pytest.raises(UserError) as caught:
        runs.compare(runs.settings(tiny_data, output=str(output), **fields))
    assert not output.exists()
    return [str(problem) for problem in caught.value.problems]


def test_a_missing_package_is_told_before_training(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "tunestack.trackers.mlflow", raising=False)
    found = problems(tiny_data, tmp_path / "run", track="mlflow", metric="f2")
    (ours,) = [problem for problem in found if problem.startswith("track:")]
    assert len(found) == 2  # the other one is told, too
    assert "the packages of mlflow" in ours
    assert "pip install 'tunestack[track]'" in ours


def test_unknown_trackers_are_refused_with_the_nearest_names(tiny_data: Path, tmp_path: Path) -> None:
    (problem,) = problems(tiny_data, tmp_path / "run", track=["mlfow"])
    assert "found 'mlfow'. Did you mean 'mlflow'? Known: mlflow, tensorboard, wandb." in problem
    (problem,) = problems(tiny_data, tmp_path / "run", track=["tensorboard", "tensorboard"])
    assert "'tensorboard' 2 times" in problem
    with pytest.raises(UserError, match="Did you mean 'wandb'"):
        tunestack.compare(tiny_data / "train.csv", methods="majority", track="wanbd", output=tmp_path / "run")


def test_who_is_not_logged_in_to_wandb_is_told_before_training(
    tiny_data: Path, at_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    wandb.teardown()
    (problem,) = problems(tiny_data, tmp_path / "run", track="wandb")
    assert "WANDB_MODE=offline" in problem
    wandb.teardown()


def test_no_tracker_is_imported_unless_asked_for() -> None:
    code = (
        "import sys, tunestack.comparison.run, tunestack.comparison.plan as plan\n"
        "from tunestack.errors import Problems\n"
        "plan.check_trackers([], Problems())\n"
        "print(sorted({'mlflow', 'tensorboard', 'wandb'} & sys.modules.keys()))"
    )
    done = fresh.python(code)
    assert done.out.strip() == "[]", done.err


def test_trackers_may_differ_when_a_run_is_taken_up(tiny_data: Path, tmp_path: Path) -> None:
    values = runs.settings(tiny_data, output=str(tmp_path / "run"))
    first = runs.compare(values)
    again = runs.compare({**values, "track": "tensorboard"})
    assert runs.scores(again) == runs.scores(first)
    assert (tmp_path / "run" / "tensorboard").is_dir()
    assert not (tmp_path / "run" / "tensorboard" / "majority").exists()  # it was finished before
