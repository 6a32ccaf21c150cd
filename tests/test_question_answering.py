"""Extractive question answering from files to predictions; transformers and PEFT are the oracles."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fresh
import oracle
import runs
import tiny
import tunestack
from task_samples import QUESTIONS, write_questions
from tunestack.bases import Base
from tunestack.data.encode import pad
from tunestack.data.squad import ANSWERABLE
from tunestack.errors import UserError
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.question_answering import QuestionAnswering, QuestionAnsweringOptions
from tunestack.tasks.spans import best_spans, null_scores

OPTIONS = QuestionAnsweringOptions(stride=8, max_answer_tokens=6)


def open_slot(base: Base, method: str = "lora", **fields: Any) -> tuple[Stack, Slot]:
    task = QuestionAnswering(ANSWERABLE, OPTIONS)
    work = Workload(base, task, QUESTIONS, "f1")
    stack = Stack(work, base.load_model(task.auto_class, task.model_config(base)))
    trial = tiny.trial(base, "one", 3, method, batch_size=4, **fields)
    trial.config.task_type = task.peft_type
    slot = stack.open(trial)
    oracle.disturb(slot)
    return stack, slot


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_the_loss_of_one_row_is_that_of_transformers(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    task = QuestionAnswering(ANSWERABLE, OPTIONS)
    model = base.load_model(task.auto_class, task.model_config(base)).model
    encoded = task.encode(base, QUESTIONS["train"], 64)
    for row in (0, 5, len(encoded) - 1):
        indices = np.array([row])
        batch = pad([(encoded, indices)], base.tokenizer.pad_token_id)
        start, end = torch.from_numpy(encoded.labels[indices]).unbind(dim=1)
        with torch.no_grad():
            theirs = model(**batch, start_positions=start, end_positions=end)
        ours = task.loss(task.logits(theirs), task.targets(encoded, indices), None)
        assert float(ours) == pytest.approx(float(theirs.loss), rel=1e-6)


def test_a_rows_loss_does_not_know_its_company(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    task = QuestionAnswering(ANSWERABLE, OPTIONS)
    model = base.load_model(task.auto_class, task.model_config(base)).model
    encoded = task.encode(base, QUESTIONS["train"], 64)
    order = np.argsort(encoded.lengths)
    together = order[[0, len(order) // 2, -1]]
    assert len(set(encoded.lengths[together])) == 3

    def loss_and_kept(indices: Any) -> tuple[float, torch.Tensor]:
        with torch.no_grad():
            logits = task.logits(model(**pad([(encoded, indices)], base.tokenizer.pad_token_id)))
        loss = task.loss(logits, task.targets(encoded, indices), None)
        return float(loss), task.collect(logits, encoded, indices)

    alone = [loss_and_kept(np.array([row])) for row in together]
    loss, kept = loss_and_kept(together)
    assert loss == pytest.approx(np.mean([own for own, _ in alone]), rel=1e-5)
    torch.testing.assert_close(kept, torch.cat([own for _, own in alone]), rtol=1e-5, atol=1e-5)
    assert kept.shape == (3, encoded.lengths.max(), 2)


def test_answers_are_the_best_spans_and_n_best_ranks_them(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    stack, slot = open_slot(base)
    task = stack.work.task
    split = QUESTIONS["validation"]
    encoded = stack.work.encoded("validation", 40)
    assert len(encoded) > len(split["question"])  # there are long contexts among them
    outputs = stack.outputs([slot], encoded)[0]
    answers = task.answer(encoded, outputs)
    np.testing.assert_allclose(stack.answers([slot], encoded)[0].given, answers)
    best = best_spans(encoded, outputs, OPTIONS.max_answer_tokens, 1)  # type: ignore[arg-type]
    nulls = null_scores(encoded, outputs)  # type: ignore[arg-type]
    np.testing.assert_allclose(answers[:, 2], best.score - nulls)
    assert (answers[:, 3] == 0).all()
    told = task.told(split, answers)
    ranked = task.n_best(encoded, outputs, split, 5)
    for index, own in enumerate(ranked):
        assert own[0]["prediction"] == told["prediction"][index]
        assert [one["score"] for one in own] == sorted((one["score"] for one in own), reverse=True)
        spans = [one for one in own if one["prediction"]]
        if spans:
            assert (spans[0]["start"], spans[0]["end"]) == (told["start"][index], told["end"][index])
            assert spans[0]["score"] == pytest.approx(told["score"][index])
        for one in spans:
            assert split["context"][index][one["start"] : one["end"]] == one["prediction"]
    assert {"", *told["prediction"]} != {""}


LOAD = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForQuestionAnswering
results = {}
for name, place in json.load(open(sys.argv[1])).items():
    torch.manual_seed(123)
    model = AutoModelForQuestionAnswering.from_pretrained(place["base"], dtype="float32", pad_token_id=0)
    model = PeftModel.from_pretrained(model, place["adapter"]).eval()
    inputs = {name: torch.tensor(rows) for name, rows in place["batch"].items()}
    with torch.no_grad():
        output = model(**inputs)
    results[name] = [output.start_logits.tolist(), output.end_logits.tolist()]
assert "tunestack" not in sys.modules
json.dump(results, open(sys.argv[2], "w"))
"""

SAVED: list[tuple[str, str, dict[str, Any]]] = [
    ("bert", "lora", {"bias": "all"}),
    ("roberta", "lora", {"target_modules": "all-linear"}),
    ("distilbert", "ia3", {}),
    ("bert", "prompt", {"num_virtual_tokens": 3}),
    ("bert", "prefix", {"num_virtual_tokens": 3}),
    ("llama", "lora", {}),
]


def test_adapters_load_in_plain_peft(tmp_path: Path) -> None:
    """In a fresh process without us, with the same logits for the text's own tokens."""
    places, expected = {}, {}
    for kind, method, fields in SAVED:
        name = f"{kind}-{method}"
        (tmp_path / name).mkdir()
        saved = tiny.save_base(tmp_path / name, kind)
        stack, slot = open_slot(tiny.open_base(str(saved)), method, **fields)
        oracle.save(tmp_path / name / "adapter", stack, slot)
        encoded = stack.work.encoded("validation", 64)
        indices = np.array([2])
        expected[name] = stack.outputs([slot], encoded)[0, indices, : encoded.lengths[indices[0]]]
        batch = pad([(encoded, indices)], 0)
        places[name] = {
            "base": str(saved),
            "adapter": str(tmp_path / name / "adapter"),
            "batch": {key: tensor.tolist() for key, tensor in batch.items()},
        }
    asked, answered = tmp_path / "asked.json", tmp_path / "answered.json"
    asked.write_text(json.dumps(places))
    done = fresh.python(LOAD, asked, answered)
    assert done.code == 0, done.err
    for name, logits in json.loads(answered.read_text()).items():
        theirs = torch.stack([torch.tensor(part) for part in logits], dim=-1)
        own = theirs[:, theirs.shape[1] - expected[name].shape[1] :]  # prompts answer for their places, too
        torch.testing.assert_close(own, expected[name], rtol=1e-5, atol=1e-5, msg=lambda m, n=name: n + m)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison on questions of which some have no answer; its folder."""
    folder = tmp_path_factory.mktemp("compared")
    given = write_questions(folder)
    tunestack.compare(
        given["data"].pop("train"),
        task={"name": "question-answering", **given["task"]},
        bases={"model": str(tiny.save_base(folder, "bert")), "dtype": "float32", "device_map": "cpu"},
        methods=[{"method": "lora", "r": 4, "target_modules": "all-linear"}],
        training={"epochs": 3, "learning_rate": 1e-2, "max_length": 48},
        seeds=1,
        measure_costs=False,
        output=folder / "run",
        progress=False,
        **given["data"],
    )
    return folder


def test_the_threshold_is_decided_on_validation_and_saved(compared: Path) -> None:
    results = tunestack.results.Results.load(compared / "run" / "results.json")
    seed = results.candidates[0].seeds[0]
    saved = json.loads((compared / "run" / str(seed.adapter_path) / "tunestack.json").read_text())
    threshold = saved["task"]["options"]["null_threshold"]
    assert isinstance(threshold, float)
    assert saved["task"]["options"]["stride"] == 8
    task = QuestionAnswering(ANSWERABLE, OPTIONS)
    for split in ("validation", "test"):
        scores = getattr(seed, split)
        frame = pd.read_csv(compared / "run" / scores.predictions_path, dtype=str, keep_default_na=False)
        given = task.read(frame)
        assert set(given[:, 3]) == {-threshold}
        reached = scores.metrics["f1"]
        assert reached == task.scores(QUESTIONS[split], given)["f1"]
        others = [
            task.scores(QUESTIONS[split], task.decided(given, {"null_threshold": -margin}))["f1"]
            for margin in [*(given[:, 2] - 1e-6), *(given[:, 2] + 1e-6)]
        ]
        assert split == "test" or reached == pytest.approx(max(others))
    assert max(point.metrics["f1"] for point in seed.curves) == seed.validation.metrics["f1"]
    assert results.data.label_names == list(ANSWERABLE)
    answers = [len(texts) for texts in QUESTIONS["validation"]["answer_texts"]]
    assert results.data.label_counts["validation"] == [answers.count(1), answers.count(0)]


def test_exact_match_stands_beside_f1(compared: Path) -> None:
    """As published tables have both."""
    results = tunestack.results.Results.load(compared / "run" / "results.json")
    exact = results.candidates[0].validation["exact_match"].mean
    lines = (compared / "run" / "leaderboard.md").read_text().splitlines()
    heads, row = (next(line for line in lines if line.startswith(start)) for start in ("| # ", "| 1 "))
    assert row.split(" | ")[heads.split(" | ").index("Exact match")] == f"{exact:.3f}"
    assert "Exact match" in (compared / "run" / "report.html").read_text()


def test_answers_survive_in_files_whatever_is_in_them(tmp_path: Path) -> None:
    contexts = ["one\rtwo", 'a,b\n"c" d', " NA ", "x\r\n\ry"]
    split = {
        "question": ["q\r?"] * 4,
        "context": contexts,
        "id": ["1", "two\rlines", "3,4", "NA"],
        "answer_texts": [[text] for text in contexts],
        "answer_starts": [[0]] * 4,
    }
    whole = [[0.0, len(text), 1 / 3, -0.1] for text in contexts]
    given = np.asarray([*whole[:3], [0.0, 0.0, -np.inf, 0.0]])
    again = runs.through_files(tmp_path, QuestionAnswering(ANSWERABLE, OPTIONS), split, given)
    np.testing.assert_array_equal(again, given)
    (path,) = tmp_path.rglob("predictions-validation.csv")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert frame["prediction"].tolist() == [*contexts[:3], ""]
    assert frame["answer"].tolist() == contexts
    assert frame["id"].tolist() == split["id"]


def test_predicting(compared: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    """In Python and on the command line, with the file's own names; n-best beside it."""
    predictor = tunestack.load(compared / "run")
    split = QUESTIONS["test"]
    questions, contexts = split["question"], split["context"]
    predicted = predictor.predict(questions, contexts)
    ranked = predictor.n_best(questions, contexts, count=3)
    assert [own[0]["prediction"] for own in ranked] == predicted
    assert max(map(len, ranked)) == 3
    assert predictor.n_best([], []) == predictor.predict([], []) == []
    pd.DataFrame({"id": split["id"], "q": questions, "passage": contexts}).to_csv(tmp_path / "new.csv")
    out = tmp_path / "predictions.csv"
    arguments = ("--text", "q", "--text-pair", "passage", "--out", out)
    done = command("predict", compared / "run", tmp_path / "new.csv", *arguments)
    assert done.code == 0, done.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prediction"] for row in rows] == predicted
    for row, context in zip(rows, contexts, strict=True):
        if row["prediction"]:
            assert context[int(row["start"]) : int(row["end"])] == row["prediction"]
            assert float(row["score"]) >= float(row["needed_score"])
        else:
            assert float(row["score"]) < float(row["needed_score"])
    done = command("predict", compared / "run", tmp_path / "new.csv", "--out", tmp_path / "more.csv")
    assert done.code == 2
    assert "a column 'question'" in done.err
    assert "--text and --text-pair" in done.err


def test_what_cannot_be_predicted_is_refused(compared: Path) -> None:
    predictor = tunestack.load(compared / "run")
    with pytest.raises(UserError, match="question 1: expected a context with text"):
        predictor.predict(["Q?", "R?"], ["Q abc", " "])
    with pytest.raises(UserError, match="question 0: expected a question that leaves room"):
        predictor.predict(["Q" * 60], ["Q abc"])
    with pytest.raises(UserError, match="1 texts of the column context, found none"):
        predictor.predict(["Q?"])
    with pytest.raises(UserError, match="a probability"):
        predictor.predict_proba(["Q?"], ["Q abc"])


def settings(folder: Path, **fields: Any) -> dict[str, Any]:
    rows = [index for index, texts in enumerate(QUESTIONS["train"]["answer_texts"]) if texts]
    table = {
        "question": [QUESTIONS["train"]["question"][row] for row in rows],
        "context": [QUESTIONS["train"]["context"][row] for row in rows],
        "answer": [QUESTIONS["train"]["answer_texts"][row][0] for row in rows],
        "answer_start": [QUESTIONS["train"]["answer_starts"][row][0] for row in rows],
    }
    pd.DataFrame(table).to_csv(folder / "train.csv", index=False)
    base = {"model": str(tiny.save_base(folder, "bert")), "dtype": "float32", "device_map": "cpu"}
    common = {"bases": base, "seeds": 1, "measure_costs": False, "progress": False, "output": folder / "run"}
    task = {"name": "question-answering", **fields.pop("task", {})}
    return {**common, "methods": "lora", "task": task, "training": {"epochs": 1}, **fields}


def test_what_cannot_work_is_told_before_training(tmp_path: Path) -> None:
    path = str(tmp_path / "train.csv")
    for fields, told in (
        ({"training": {"max_length": 5}}, "question 0: expected a question that leaves room"),
        ({"metric": "has_answer_f1"}, "metric: expected a metric of this task"),
        ({"task": {"strid": 5}}, "stride"),
        ({"task": {"null_threshold": 1.0}}, "a threshold that has an effect"),
        ({"training": {"class_weights": [1.0, 2.0]}}, "no classes to weigh"),
        ({"methods": ["lora", "majority"]}, "the task question-answering; majority learns classes"),
        ({"methods": ["tfidf", "linear-probe"], "training": {"max_length": 5}}, "question 0: expected a"),
        ({"methods": [{"method": "linear-probe", "class_weight": "balanced"}]}, "class_weight"),
        ({"methods": [{"method": "tfidf", "C": 1.0}]}, "tfidf.C"),
        ({"methods": "linear-probe", "bases": str(tiny.save_base(tmp_path, "t5"))}, "an encoder-decoder"),
    ):
        with pytest.raises(UserError, match=told):
            tunestack.compare(path, **settings(tmp_path, **fields))
        assert not (tmp_path / "run").exists()


def test_a_metric_of_questions_that_a_split_does_not_have_is_told_before_training(tmp_path: Path) -> None:
    """Training has questions without an answer, validation has none."""
    paths = {}
    for name in ("train", "validation"):
        rows = [
            {"question": question, "context": context, "answers": {"text": texts, "answer_start": starts}}
            for question, context, texts, starts in zip(
                *(QUESTIONS[name][key] for key in ("question", "context", "answer_texts", "answer_starts"))
            )
            if texts or name == "train"
        ]
        paths[name] = tmp_path / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = settings(tmp_path, metric="no_answer_exact_match")
    told = "a metric of what is in the validation split: f1, exact_match, has_answer_f1"
    with pytest.raises(UserError, match=told):
        tunestack.compare(str(paths["train"]), validation=str(paths["validation"]), **fields)
    assert not (tmp_path / "run").exists()


def test_questions_that_all_have_answers(tmp_path: Path) -> None:
    results = tunestack.compare(str(tmp_path / "train.csv"), **settings(tmp_path))
    assert set(results.candidates[0].validation) == {"f1", "exact_match"}
    seed = results.candidates[0].seeds[0]
    frame = pd.read_csv(tmp_path / "run" / seed.validation.predictions_path)
    assert list(frame) == ["row", "answer", "id", "prediction", "score", "start", "end"]
    assert frame["prediction"].notna().all()
    predictor = tunestack.load(tmp_path / "run")
    assert all(one["prediction"] for one in predictor.n_best(["Q?"], ["Q abc R de"])[0])
    assert "null_threshold" not in (tmp_path / "run" / str(seed.adapter_path) / "tunestack.json").read_text()
