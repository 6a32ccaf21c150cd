"""Following instructions: data, prompts, losses against transformers' own, test sets, what is told."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import runs
import tiny
import tunestack
from task_samples import SAMPLES, SUMS_SETTINGS, sums
from tunestack.config import DataConfig, TaskConfig
from tunestack.errors import Problem, UserError
from tunestack.methods.sites import Span
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.instruction import Instruction, InstructionOptions
from tunestack.tasks.registry import make_task
from tunestack.tasks.responses import NO_TARGET, as_numbers, as_texts, fill

TIED = SAMPLES["instruction"].fields
OPTIONS = InstructionOptions(**SUMS_SETTINGS)
RECORD = {"instruction": "1 + 2?", "input": "", "output": "It is 3.", "answer": "3"}


def write(path: Path, records: Any) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def load(folder: Path, **fields: Any) -> tunestack.data.TextData:
    options = InstructionOptions(**{**SUMS_SETTINGS, **fields.pop("task", {})})
    return Instruction.load(DataConfig(**fields), options)


def refused(action: Callable[[], object]) -> list[Problem]:
    with pytest.raises(UserError) as error:
        action()
    return list(error.value.problems)


# Prompts and token ids


def test_the_default_prompt_is_alpacas() -> None:
    options = InstructionOptions()
    templates = options.template, options.template_with_input
    assert fill(*templates, {"instruction": "Add 1 and {2}."}) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nAdd 1 and {2}.\n\n### Response:\n"
    )
    assert fill(*templates, {"instruction": "Add.", "input": "1, 2"}) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n"
        "1, 2\n\n### Response:\n"
    )


@pytest.mark.parametrize("template", ["no place", "{instruction} {other}", "{instruction", "{instruction!r}"])
def test_templates_without_their_places_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        InstructionOptions(template=template)


def test_what_a_decoder_reads(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "llama")
    encoded = Instruction(options=OPTIONS).encode(base, {**{k: [v] for k, v in RECORD.items()}}, 64)
    tokenizer: Any = base.tokenizer
    prompt = [1, *tokenizer("1 + 2?=", add_special_tokens=False)["input_ids"]]
    response = [*tokenizer("It is 3.", add_special_tokens=False)["input_ids"], 2]
    assert encoded.input_ids[0].tolist() == prompt + response
    assert encoded.prompts.input_ids[0].tolist() == prompt
    assert encoded.labels[0].tolist() == response
    assert encoded.truncated == 0
    cut = Instruction(options=OPTIONS).encode(base, {k: [v] for k, v in RECORD.items()}, len(prompt) + 3)
    assert cut.labels[0].tolist() == response[:3]
    assert cut.truncated == 1
    # The response fits but its end does not: nothing of the text is lost, but it would never learn to end.
    tight = Instruction(options=OPTIONS).encode(
        base, {k: [v] for k, v in RECORD.items()}, len(prompt + response) - 1
    )
    assert tight.truncated == 1


def test_a_prompt_that_leaves_no_room_is_told_with_its_record(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "llama")
    split = {"instruction": ["1?", "x" * 30], "output": ["1", "2"], "row": [4, 7]}
    (problem,) = refused(lambda: Instruction(options=OPTIONS).encode(base, split, 20))
    assert "at most 19 tokens" in problem.expected
    assert "1 of 2 rows: 7" in problem.found


@pytest.mark.parametrize(("kind", "longest"), [("gpt2", 96), ("llama", 96)])
def test_a_response_must_have_places_in_the_model(kind: str, longest: int, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, kind)
    task = Instruction(options=InstructionOptions(**{**SUMS_SETTINGS, "max_new_tokens": 60}))
    fits = {"instruction": ["x" * (longest - 60 - 2)], "row": [3]}
    assert len(task.encode(base, fits, 64)) == 1
    (problem,) = refused(lambda: task.encode(base, {"instruction": ["x" * 36], "row": [3]}, 64))
    assert "at most 96 tokens of prompt and max_new_tokens (60)" in problem.expected
    assert "1 of 1 rows: 3" in problem.found
    problems = refused(lambda: task.check_base(base, {"AddSub": fits}, 64, longest - 5))
    assert [one.where for one in problems] == [f"AddSub: {base.name}"]
    learnt = {**fits, "output": ["x"], "answer": ["1"]}
    task.check_base(base, {"train": learnt}, 64, longest - 5)  # nothing is generated after it
    (problem,) = refused(lambda: task.check_base(base, {"validation": learnt}, 64, longest - 5))
    assert problem.where == f"validation: {base.name}"
    assert len(task.encode(base, {**learnt, "instruction": ["x" * 40]}, 64)) == 1


def test_a_base_must_write(tmp_path: Path) -> None:
    task = Instruction(options=OPTIONS)
    (problem,) = refused(lambda: task.check_base(tiny.random_base(tmp_path, "bert"), {}, 64, 96))
    assert problem.expected == "a model that writes"
    odd = tiny.random_base(tmp_path, "t5", decoder_start_token_id=None)
    (problem,) = refused(lambda: task.check_base(odd, {}, 64, 96))
    assert problem.expected == "a decoder_start_token_id"


# The loss


class Place:
    """A slot without weights of its own."""

    index, leading = 0, 0
    class_weights = None

    def span(self, start: int, stop: int, training: bool) -> Span:
        return Span(0, start, stop)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "opt", "t5"])
def test_the_loss_is_transformers_own(kind: str, tmp_path: Path) -> None:
    """One padded batch, against the model's own loss with -100 where nothing is learnt."""
    base = tiny.random_base(tmp_path, kind, **TIED)
    task = Instruction(options=OPTIONS)
    loaded = base.load_model(task.auto_class_for(base.config), task.model_config(base))
    split = sums(7, 5)
    stack = Stack(Workload(base, task, {"train": split}, "accuracy"), loaded)
    encoded = task.encode(base, split, 40)
    chosen = [(encoded, np.arange(7))]
    logits = stack._forward(chosen, [Span(0, 0, 7)], training=True)
    ours = task.loss(logits, task.targets(encoded, np.arange(7)), None)
    sums_of = [0.0, 0]
    for prompt, labels in zip(encoded.prompts.input_ids, encoded.labels, strict=True):
        if kind == "t5":
            output = loaded.model(input_ids=torch.tensor([prompt]), labels=torch.tensor([labels]))
        else:
            masked = torch.tensor([[NO_TARGET] * len(prompt) + labels.tolist()])
            whole = torch.tensor(np.concatenate([prompt, labels])[None])
            output = loaded.model(input_ids=whole, labels=masked)
        sums_of[0] += float(output.loss) * len(labels)
        sums_of[1] += len(labels)
    assert float(ours) == pytest.approx(sums_of[0] / sums_of[1], rel=1e-5)
    (found,) = task.evaluate(stack, [Place()], encoded, [None])
    assert found.loss == pytest.approx(float(ours), rel=1e-5)
    assert len({len(ids) for ids in encoded.prompts.input_ids}) > 1


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_what_is_dropped_does_not_depend_on_company(kind: str, tmp_path: Path) -> None:
    """Prompts and responses of all lengths: in either half of the model other trials need more padding."""
    base = tiny.random_base(tmp_path, kind, **TIED)
    task = Instruction(options=OPTIONS)
    random = np.random.default_rng(7)
    texts = [["ab" * int(n) for n in random.integers(1, 9, size=24)] for _ in range(2)]
    train = {"instruction": texts[0], "output": texts[1], "answer": ["1"] * 24}
    work = Workload(base, task, {"train": train, "validation": sums(3, 2)}, "accuracy")
    trials = [
        tiny.trial(base, "lora", 1, r=2, lora_dropout=0.3, batch_size=2, base_dropout=True),
        tiny.trial(base, "all", 2, r=2, target_modules="all-linear", lora_dropout=0.2, batch_size=1),
        tiny.trial(base, "series", 3, "series", bottleneck_size=3, adapter_dropout=0.3, batch_size=3),
        tiny.trial(base, "prompt", 4, "prompt", num_virtual_tokens=2, base_dropout=True, batch_size=2),
    ]
    together = tiny.run(work, trials)
    for key, ended in tiny.alone(work, trials).items():
        tiny.assert_same(together[key], ended, 1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_are_what_transformers_generates(beams: int, tmp_path: Path) -> None:
    for kind in ("llama", "t5"):
        base = tiny.random_base(tmp_path, kind, **TIED)
        task = Instruction(options=OPTIONS.model_copy(update={"num_beams": beams}))
        loaded = base.load_model(task.auto_class_for(base.config), task.model_config(base))
        stack = Stack(Workload(base, task, {}, "accuracy"), loaded)
        encoded = task.encode(base, sums(5, 6, learnt=False), 40)
        (found,) = task.evaluate(stack, [Place()], encoded, [None])
        assert found.loss is None
        for row, text in zip(encoded.prompts.input_ids, as_texts(found.given), strict=True):
            written = loaded.model.generate(  # type: ignore[operator]
                torch.tensor([row]),
                do_sample=False,
                num_beams=beams,
                max_new_tokens=8,
                eos_token_id=2,
                pad_token_id=0,
            )[0, 1 if kind == "t5" else len(row) :]
            assert text == base.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_texts_survive_as_numbers_and_in_files(tmp_path: Path) -> None:
    texts = ["", "a,b\n\n\"c\" 'd'", "NA", " é€😀", "null", "1e5", "=1+1", "\u2028x", "a\rb", "\r\n\r"]
    ended = [True, False] * 5
    given = as_numbers(texts, ended)
    assert as_texts(given) == texts
    task = Instruction(options=OPTIONS)
    split = {"instruction": ["?"] * 10, "answer": ["1", "a\rb"] * 5}
    again = runs.through_files(tmp_path, task, split, given)
    np.testing.assert_array_equal(again, given)


def test_metrics_count_what_cannot_be_read_as_wrong() -> None:
    task = Instruction(options=OPTIONS)
    split = {"answer": ["3", "4", "B", "5"]}
    given = as_numbers(["It is 3.", "none", "The answer is (B)", "6"], [True, True, True, False])
    assert task.scores(split, given) == {"accuracy": 0.5, "parsed": 0.75, "ended": 0.75}
    told = task.told(split, given)
    assert told["parsed"] == ["3", "", "B", "6"]
    assert told["right"] == [True, False, True, False]
    several = task.answers(split, task.several([given, given[:, :5]]))
    assert several.right.tolist() == [[True, False, True, False], [False, False, False, False]]
    assert task.remarks({"validation": task.scores(split, given)}) == [
        "Responses without an answer that could be read: 25.0% on validation. "
        "In the prediction files their `parsed` is empty.",
        "Responses cut at 8 tokens, as they did not end: 25.0% on validation. "
        "In the prediction files their `ended` is False.",
    ]


# Data


def test_records_from_every_format_under_other_names(tmp_path: Path) -> None:
    rows = [{"q": f"{n} + 1?", "context": "", "r": f"It is {n + 1}.", "gold": n + 1} for n in range(10)]
    frame = pd.DataFrame(rows)
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False)
    write(tmp_path / "a.json", rows)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"instruction": "q", "input": "context", "output": "r", "answer": "gold"}
    prints = set()
    for ending in ("parquet", "csv", "json", "jsonl"):
        data = load(tmp_path, train=str(tmp_path / f"a.{ending}"), columns=columns)
        assert data.train.column_names == ["instruction", "output", "answer", "row"]
        assert data.label_names == ()
        prints.add(data.fingerprint)
    assert len(prints) == 1


def test_inputs_may_be_empty_or_missing(tmp_path: Path) -> None:
    rows = [
        RECORD,
        {**RECORD, "input": "1, 2"},
        {name: RECORD[name] for name in ("instruction", "output", "answer")},
    ]
    train = write(tmp_path / "train.json", rows * 4)
    data = load(tmp_path, train=train, validation=train)
    assert data.train["input"][:3] == ["", "1, 2", ""]
    none = write(tmp_path / "none.json", [RECORD])
    data = load(tmp_path, train=train, validation=none)
    assert data.validation["input"][:] == [""]  # as train has them


def change(**fields: Any) -> list[dict[str, Any]]:
    return [RECORD, RECORD, {**RECORD, **fields}]


@pytest.mark.parametrize(
    ("records", "where", "expected", "found"),
    [
        (change(output=None), "'output'", "text in every row", "1 of 3 rows: 2"),
        (change(output="  "), "'output'", "text in every row", "1 of 3 rows: 2"),
        (change(instruction=""), "'instruction'", "text in every row", "1 of 3 rows: 2"),
        (change(answer=None), "'answer'", "text in every row", "1 of 3 rows: 2"),
        (change(answer=["3"]), "'answer'", "text in every row", "list values in 1 of 3 rows: 2"),
        (change(input=["3"]), "'input'", "text in every row", "list values in 1 of 3 rows: 2"),
        ([{"instruction": "a", "answer": "1"}] * 3, "train.json", "a column 'output'", "none of this name"),
        ([{"text": "a"}] * 3, "train.json", "a column 'instruction'", "none of this name"),
        ([], "train.json", "at least one row", "none"),
    ],
)  # fmt: skip
def test_records_that_cannot_be_used(
    records: Any, where: str, expected: str, found: str, tmp_path: Path
) -> None:
    train = write(tmp_path / "train.json", records)
    problems = refused(lambda: load(tmp_path, train=train))
    assert any(where in p.where and expected in p.expected and found in p.found for p in problems), problems


def test_incomplete_records_can_be_left_out_of_what_is_learnt(tmp_path: Path) -> None:
    incomplete = change(output="") + change(answer=None) + [RECORD]
    train = write(tmp_path / "train.json", incomplete)
    setting = "skip_incomplete: true"
    assert all(setting in problem.fix for problem in refused(lambda: load(tmp_path, train=train)))
    data = load(tmp_path, train=train, validation=train, task={"skip_incomplete": True})
    assert data.train["row"][:] == [0, 1, 3, 4, 5, 6]  # it needs no answer
    assert data.validation["row"][:] == [0, 1, 3, 4, 6]
    assert any("1 of 7 rows: 2" in warning for warning in data.warnings)
    (problem,) = refused(
        lambda: load(
            tmp_path, train=train, validation=train, tests={"A": train}, task={"skip_incomplete": True}
        )
    )
    assert "1 of 7 rows: 5" in problem.found
    assert setting not in problem.fix


def test_a_penalty_of_beams_needs_beams() -> None:
    settings = {"length_penalty": 0.5}
    (problem,) = refused(lambda: make_task(TaskConfig(name="instruction", options=settings), ()))
    assert problem.where == "task instruction.length_penalty"
    assert "there are no beams to rank" in problem.expected
    assert InstructionOptions(length_penalty=0.5, num_beams=2).length_penalty == 0.5


def test_settings_that_mean_nothing_here_are_refused(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [RECORD] * 5)
    fields = {"text": "q", "label": "a", "columns": {"instructions": "q"}}
    problems = refused(lambda: load(tmp_path, train=train, **fields))
    assert {p.where for p in problems} == {"data.text", "data.label", "data.columns"}
    (problem,) = refused(lambda: load(tmp_path, train=train, columns={"input": "inptu"}))
    assert problem.expected == "a column 'inptu' for inputs in some file"


def test_gold_answers_must_be_what_the_settings_say(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [RECORD] * 5)
    odd = write(tmp_path / "odd.json", [RECORD, {**RECORD, "answer": "many"}])
    fields = {"train": train, "validation": train, "tests": {"Odd": odd}, "task": {"answers": "number"}}
    (problem,) = refused(lambda: load(tmp_path, **fields))
    assert problem.where == "Odd answers"
    assert "'many', in 1 of 2 rows: 1" in problem.found
    write(tmp_path / "odd.json", [RECORD, {**RECORD, "answer": "3/4"}, {**RECORD, "answer": 1e-05}])
    (problem,) = refused(lambda: load(tmp_path, **fields))
    assert "'3/4', in 1 of 3 rows: 1" in problem.found
    write(tmp_path / "odd.json", [RECORD, {**RECORD, "answer": "many"}])
    assert load(tmp_path, **{**fields, "task": {}}).warnings[-1] == (
        "Kinds of answers, by the gold ones: validation number (5); Odd number (1), text (1)."
    )


def test_fewer_validation_records_can_be_used(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [{**RECORD, "instruction": f"{n}?"} for n in range(40)])
    data = load(tmp_path, train=train, validation=train, task={"evaluation_records": 6})
    assert len(data.validation) == 6
    assert len(set(data.validation["row"][:])) == 6
    assert any("6 of 40 validation records" in warning for warning in data.warnings)


# Several test sets


def test_sets_of_the_paper_by_name(tmp_path: Path) -> None:
    train = write(tmp_path / "train.json", [RECORD] * 5)
    for folder in ("AddSub", "openbookqa"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "test.json", [RECORD])
    fields = {"train": train, "validation": train, "tests_folder": str(tmp_path)}
    data = load(tmp_path, **fields, tests=["OBQA", "addsub"])
    assert list(data.tests) == ["OBQA", "AddSub"]
    assert list(data.splits()) == ["train", "validation", "OBQA", "AddSub"]
    assert data.tests["AddSub"].column_names == ["instruction", "answer", "row"]
    problems = refused(lambda: load(tmp_path, **fields, tests=["math", "AdSub"]))
    assert any("Did you mean 'AddSub'" in problem.fix for problem in problems)
    missing = {problem.where.split(":")[0] for problem in problems if problem.expected == "a file"}
    assert missing == {f"data.tests.{name}" for name in ("MultiArith", "GSM8K", "AQuA", "SingleEq", "SVAMP")}
    del fields["tests_folder"]
    (problem,) = refused(lambda: load(tmp_path, **fields, tests=["math"]))
    assert problem.where == "data.tests_folder"
    named = {"test": train}
    assert refused(lambda: load(tmp_path, **fields, tests=named))[0].expected == "a name of its own for a set"
    alike = {"Set A": train, "set-a": train}
    (problem,) = refused(lambda: load(tmp_path, **fields, tests=alike))
    assert problem.found == "'set-a'"


def test_tasks_with_one_test_set_refuse_several(tmp_path: Path, tiny_data: Path) -> None:
    problems = refused(
        lambda: tunestack.compare(
            str(tiny_data / "train.csv"), methods="majority", tests={"a": "b.csv"}, output=tmp_path / "run"
        )
    )
    assert [problem.where for problem in problems] == ["data.tests"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One adapter trained once, on three test sets beside the plain one; with costs left out."""
    folder = tmp_path_factory.mktemp("sets")
    given = SAMPLES["instruction"].write(folder)
    sets = {}
    for seed, name in enumerate(("First", "Second set"), start=10):
        columns = sums(6 + seed, seed, learnt=False)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        sets[name] = write(folder / f"{seed}.json", rows)
    base = tiny.save_base(folder, "llama", **TIED)
    results = tunestack.compare(
        str(given["data"].pop("train")),
        task={"name": "instruction", **given["task"], "answers": "number"},
        bases={"model": str(base), "dtype": "float32", "device_map": "cpu"},
        methods=[{"method": "lora", "r": 2}, {"method": "prefix", "num_virtual_tokens": 3}],
        seeds=2,
        training={"epochs": 1, "learning_rate": 5e-3},
        measure_costs=False,
        tests=sets,
        output=folder / "run",
        progress=False,
        **given["data"],
    )
    return folder, results


def test_one_adapter_on_many_test_sets(compared: tuple[Path, Any]) -> None:
    folder, results = compared
    run = folder / "run"
    task = Instruction(options=OPTIONS)
    assert results.data.rows == {"train": 26, "validation": 14, "test": 9, "First": 16, "Second set": 17}
    for candidate in results.candidates:
        assert list(candidate.tests) == ["First", "Second set"]
        for name, summaries in candidate.tests.items():
            means = []
            for seed in candidate.seeds:
                scores = seed.tests[name]
                frame = pd.read_csv(run / scores.predictions_path, dtype=str, keep_default_na=False)
                split = {"answer": frame["answer"].tolist()}
                assert task.scores(split, task.read(frame)) == pytest.approx(scores.metrics)
                assert len(frame) == results.data.rows[name]
                verdicts = task.told(split, task.read(frame))
                assert frame["right"].tolist() == [str(right) for right in verdicts["right"]]
                assert (frame["parsed"] == "").mean() == pytest.approx(1 - scores.metrics["parsed"])
                assert (frame["ended"] == "False").mean() == pytest.approx(1 - scores.metrics["ended"])
                means.append(scores.metrics["parsed"])
            assert summaries["parsed"].mean == pytest.approx(np.mean(means))
        assert any(f"{candidate.name}: Responses" in warning for warning in results.data.warnings)
    board = (run / "leaderboard.md").read_text()
    header = next(line for line in board.splitlines() if "Second set" in line)
    assert header == "| candidate | base | First | Second set | average |"
    row = board.splitlines()[board.splitlines().index(header) + 2].split(" | ")
    best = next(c for c in results.candidates if c.name == results.verdict.best)
    means = [best.tests[name]["accuracy"].mean for name in ("First", "Second set")]
    assert row[2:] == [f"{means[0]:.3f}", f"{means[1]:.3f}", f"{np.mean(means):.3f} |"]
    page = (run / "report.html").read_text()
    assert 'id="sets"' in page
    assert "n = 17" in page


def test_a_saved_adapter_answers_new_instructions(compared: tuple[Path, Any], tmp_path: Path) -> None:
    folder, results = compared
    run = folder / "run"
    seed = results.candidates[0].seeds[0]
    predictor = tunestack.load(run / seed.adapter_path)
    frame = pd.read_csv(run / seed.tests["First"].predictions_path, dtype=str, keep_default_na=False)
    columns = sums(16, 10, learnt=False)
    assert predictor.predict(columns["instruction"], columns["input"]) == frame["prediction"].tolist()
    names = ("instruction", "input")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*map(columns.get, names), strict=True)]
    source = write(tmp_path / "new.json", rows)
    for _ in predictor.predict_file(Path(source), tmp_path / "told.csv"):
        pass
    told = pd.read_csv(tmp_path / "told.csv", dtype=str, keep_default_na=False)
    assert told["prediction"].tolist() == frame["prediction"].tolist()
    assert told["parsed"].tolist() == frame["parsed"].tolist()
    without = write(tmp_path / "bare.json", [{"instruction": text} for text in columns["instruction"]])
    for _ in predictor.predict_file(Path(without), tmp_path / "bare.csv"):
        pass
    bare = pd.read_csv(tmp_path / "bare.csv", dtype=str, keep_default_na=False)
    assert bare["prediction"].tolist() == predictor.predict(columns["instruction"])
    (problem,) = refused(lambda: predictor.predict(["1?"], ["a", "b"]))
    assert (problem.expected, problem.found) == ("1 texts of the column input", "2")


# LLM-Adapters' own files


KINDS = {
    "AQuA": "choice (254)",
    "AddSub": "number (395)",
    "SVAMP": "number (1,000)",
    "BoolQ": "true-false (3,270)",
    "ARC-c": "option (1,172)",
    "OBQA": "option (500)",
}


def test_the_published_files(shared_data: Path) -> None:
    """Read as they are, judged by the kinds that their gold answers have; their own responses are parsed."""
    folder = shared_data / "llm_adapters"
    if not folder.is_dir():
        pytest.skip(f"LLM-Adapters' data is not at {folder}")
    task = Instruction(options=InstructionOptions(skip_incomplete=True))
    config = DataConfig(train=str(folder / "math_data.json"), tests=[*KINDS], tests_folder=str(folder))
    data = task.load(config, task.options)
    assert len(data.train) + len(data.validation) == 3257
    assert any("3 of 3,260 rows: 175, 1448, 2920" in warning for warning in data.warnings)
    for name, kind in KINDS.items():
        assert f"{name} {kind}" in " ".join(data.warnings)
        frame = pd.DataFrame(json.loads((folder / data_folder(name) / "test.json").read_text()))
        given = as_numbers([text.strip() for text in frame["output"]], [True] * len(frame))
        scores = task.scores(data.tests[name], given)
        assert scores["parsed"] > 0.97
        if name in (
            "AddSub",
            "SVAMP",
        ):  # a model wrote these responses: right as often as by the published rule
            numbers = [
                float(re.findall(r"-?\d+\.?\d*", text.replace(",", ""))[-1]) for text in frame["output"]
            ]
            assert scores["accuracy"] == np.mean(np.abs(frame["answer"].astype(float) - numbers) <= 0.001)
        elif name != "AQuA":  # these state the gold answer
            assert scores["accuracy"] == 1


def data_folder(name: str) -> str:
    return {"BoolQ": "boolq", "ARC-c": "ARC-Challenge", "OBQA": "openbookqa"}.get(name, name)
