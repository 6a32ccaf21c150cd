"""Questions, contexts and answers from every layout, and clear errors for what cannot work."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, Features, List, Value

from tunestack.config import DataConfig
from tunestack.data import TextData
from tunestack.data.sources import _read_hub
from tunestack.data.squad import ANSWERABLE
from tunestack.errors import UserError
from tunestack.tasks.question_answering import QuestionAnswering, QuestionAnsweringOptions

CONTEXTS = [
    "The river Aare rises in the Alps and flows through Bern, the capital.",
    "Marie Curie was born in Warsaw. She won two Nobel Prizes.",
    "Honey bees dance: the angle tells the direction of flowers.",
    "Ice floats, for water is densest at 4 °C.",
]
ASKED = [
    ("Where does the Aare rise?", 0, "the Alps"),
    ("Which city is the capital?", 0, "Bern"),
    ("Where was Marie Curie born?", 1, "Warsaw"),
    ("How many Nobel Prizes did she win?", 1, "two"),
    ("What tells bees the direction?", 2, "the angle"),
    ("Who dances?", 2, "Honey bees"),
    ("When is water densest?", 3, "4 °C"),
    ("What floats?", 3, "Ice"),
]


def qas(unanswerable: bool) -> list[list[dict[str, Any]]]:
    """SQuAD's `qas` by paragraph; with one question more for each that has no answer."""
    paragraphs: list[list[dict[str, Any]]] = [[] for _ in CONTEXTS]
    for number, (question, context, answer) in enumerate(ASKED):
        answers = [{"text": answer, "answer_start": CONTEXTS[context].index(answer)}]
        entry = {"id": f"id-{number}", "question": question, "answers": answers}
        paragraphs[context].append(entry | ({"is_impossible": False} if unanswerable else {}))
    if unanswerable:
        for number, paragraph in enumerate(paragraphs):
            entry = {"id": f"no-{number}", "question": f"Who was king in year {number}?"}
            plausible = [{"text": "Bern", "answer_start": 0}]
            paragraph.append({**entry, "answers": [], "is_impossible": True, "plausible_answers": plausible})
    return paragraphs


def articles(unanswerable: bool = False) -> dict[str, Any]:
    """SQuAD's own layout: two articles of two paragraphs."""
    paragraphs = [
        {"context": context, "qas": asked} for context, asked in zip(CONTEXTS, qas(unanswerable), strict=True)
    ]
    data = [
        {"title": "first", "paragraphs": paragraphs[:2]},
        {"title": "second", "paragraphs": paragraphs[2:]},
    ]
    return {"version": "v2.0" if unanswerable else "1.1", "data": data}


def flattened(unanswerable: bool = False) -> list[dict[str, Any]]:
    """The Hub's form."""
    rows = []
    for article in articles(unanswerable)["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = {
                    name: [answer[name] for answer in asked["answers"]] for name in ("text", "answer_start")
                }
                row = {"id": asked["id"], "title": article["title"], "context": paragraph["context"]}
                rows.append({**row, "question": asked["question"], "answers": answers})
    return rows


def write(folder: Path, content: Any, name: str = "data.json") -> Path:
    path = folder / name
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        pd.DataFrame(content).to_parquet(path)
    else:
        pd.DataFrame(content).to_csv(path, index=False)
    return path


def load(source: str | Path, skip_misplaced: bool = False, **settings: Any) -> TextData:
    options = QuestionAnsweringOptions(skip_misplaced=skip_misplaced)
    return QuestionAnswering.load(DataConfig(train=str(source), **settings), options)


def problems_of(source: str | Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(source, **settings)
    return str(caught.value)


def everything(data: TextData) -> list[dict[str, Any]]:
    rows = [row for split in data.splits().values() for row in split]
    return sorted(rows, key=lambda row: row["row"])


@pytest.mark.parametrize("unanswerable", [False, True])
def test_all_layouts_give_the_same_questions(tmp_path: Path, unanswerable: bool) -> None:
    rows = flattened(unanswerable)
    squad = load(write(tmp_path, articles(unanswerable)))
    found = everything(squad)
    assert [row["question"] for row in found] == [row["question"] for row in rows]
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert [row["row"] for row in found] == list(range(len(rows)))
    assert [row["answer_texts"] for row in found] == [row["answers"]["text"] for row in rows]
    for row in found:
        for text, start in zip(row["answer_texts"], row["answer_starts"], strict=True):
            assert row["context"][start : start + len(text)] == text
    assert squad.label_names == (ANSWERABLE if unanswerable else ())
    for name in ("data.jsonl", "flat.json", "data.parquet"):
        other = load(write(tmp_path, rows, name))
        assert everything(other) == found
        assert other.label_names == squad.label_names
        assert other.fingerprint == squad.fingerprint
    listed = [
        {**row, "answers": [dict(zip(row["answers"], pair)) for pair in zip(*row["answers"].values())]}
        for row in rows
    ]
    assert everything(load(write(tmp_path, listed, "listed.jsonl"))) == found
    if not unanswerable:
        single = [
            {**row, "answers": {name: values[0] for name, values in row["answers"].items()}} for row in rows
        ]
        assert everything(load(write(tmp_path, single, "single.jsonl"))) == found


def test_the_form_of_the_hub(tmp_path: Path) -> None:
    """As `datasets` declares it, through the Hub's own loader on a local folder."""
    answers = {"text": List(Value("string")), "answer_start": List(Value("int32"))}
    columns = {name: Value("string") for name in ("id", "title", "context", "question")}
    features = Features({**columns, "answers": answers})
    for split in ("train", "validation"):
        rows = pd.DataFrame(flattened(True)).to_dict("list")
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"{split}.parquet")
    tables = _read_hub(str(tmp_path), None)
    assert tables["train"].frame["answers"].tolist() == [row["answers"] for row in flattened(True)]
    data = load(tmp_path)
    assert (len(data.train), len(data.validation)) == (12, 12)
    assert data.label_names == ANSWERABLE


def plain_table(unanswerable: bool = False) -> list[dict[str, Any]]:
    rows = []
    for row in flattened(unanswerable):
        text, start = row["answers"]["text"], row["answers"]["answer_start"]
        rows.append(
            {
                "question": row["question"],
                "context": row["context"],
                "answer": text[0] if text else None,
                "answer_start": str(start[0]) if start else None,
                "is_impossible": not text,
            }
        )
    return rows


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.parquet"])
def test_a_plain_table(tmp_path: Path, name: str) -> None:
    found = everything(load(write(tmp_path, plain_table(True), name)))
    expected = everything(load(write(tmp_path, articles(True))))
    assert [{**row, "id": ""} for row in found] == [{**row, "id": ""} for row in expected]


def test_lines_that_are_left_out_are_told(tmp_path: Path) -> None:
    path = write(tmp_path, plain_table(), "data.csv")
    path.write_text(path.read_text() + "broken\n")
    data = load(path, skip_bad_rows=True)
    assert len(everything(data)) == len(ASKED)
    assert f"{path}: 1 malformed lines are left out, such as line 10." in data.warnings


def test_places_beside_gaps_are_whole_numbers_as_pandas_writes_them(tmp_path: Path) -> None:
    frame = pd.DataFrame(plain_table(True))
    frame["answer_start"] = pd.to_numeric(frame["answer_start"])
    frame.to_csv(path := tmp_path / "data.csv", index=False)
    assert ",24.0," in path.read_text()
    expected = everything(load(write(tmp_path, articles(True))))
    assert [row["answer_starts"] for row in everything(load(path))] == [
        row["answer_starts"] for row in expected
    ]
    frame.loc[0, "answer_start"] = 15.5
    frame.to_csv(path, index=False)
    assert "question 0, '15.5'" in problems_of(path)


def test_other_names_of_columns(tmp_path: Path) -> None:
    rows = pd.DataFrame(plain_table()).drop(columns="is_impossible")
    ours = {"question": "q", "context": "passage", "answers": "gold", "answer_start": "at"}
    path = tmp_path / "data.csv"
    rows.rename(columns={"answer": "answers"}).rename(columns=ours).to_csv(path, index=False)
    expected = everything(load(write(tmp_path, plain_table())))
    assert everything(load(path, columns=ours)) == expected
    named = {"text": "q", "text_pair": "passage", "label": "gold", "columns": {"answer_start": "at"}}
    assert everything(load(path, **named)) == expected
    told = problems_of(path)
    assert "question, context and answers" in told
    assert "found columns q, passage, gold, at" in told
    assert "a column 'number'" in problems_of(path, columns={**ours, "id": "number"})
    told = problems_of(write(tmp_path, articles(), "squad.json"), columns={"question": "nope"}, label="gold")
    assert "data.columns: expected none: in SQuAD's own layout" in told
    assert "found question: nope, answers: gold. Leave" in told
    mixed = load(write(tmp_path, articles(), "squad.json"), columns=ours, validation=str(path))
    assert (len(mixed.train), len(mixed.validation)) == (8, 8)
    assert "'anwser'" in problems_of(path, columns={**ours, "anwser": "x"})
    assert "answers are texts" in problems_of(path, columns=ours, positive_label="x")


def test_no_context_is_on_both_sides_of_our_split(tmp_path: Path) -> None:
    paragraphs = [
        {
            "context": f"Place {number} has {number + 2} houses.",
            "qas": [
                {
                    "id": f"{number}-{index}",
                    "question": f"How many ({index})?",
                    "answers": [{"text": str(number + 2), "answer_start": len(f"Place {number} has ")}],
                }
                for index in range(1 + number % 6)
            ],
        }
        for number in range(60)
    ]
    path = write(tmp_path, {"data": [{"title": "places", "paragraphs": paragraphs}]})
    data = load(path, train_size=0.75)
    train, validation = set(data.train["context"]), set(data.validation["context"])
    assert not train & validation
    assert len(train | validation) == 60
    assert len(data.train) / (len(data.train) + len(data.validation)) == pytest.approx(0.75, abs=0.03)
    assert data.warnings == ()
    plain = load(path, train_size=0.75, group_duplicates=False)
    assert "a context that is also in train" in plain.warnings[0]


def test_misplaced_answers_are_counted_and_shown(tmp_path: Path) -> None:
    content = articles()
    content["data"][0]["paragraphs"][1]["qas"][0]["answers"][0]["answer_start"] += 1
    content["data"][1]["paragraphs"][1]["qas"][1]["answers"].append({"text": "ice", "answer_start": 0})
    path = write(tmp_path, content)
    told = problems_of(path)
    assert "2 questions" in told
    assert "question 2 (id-2): 'Warsaw' is 'arsaw.' at 25" in told
    assert "question 7 (id-7): 'ice' is 'Ice' at 0" in told
    assert "skip_misplaced: true" in told
    data = load(path, skip_misplaced=True)
    assert [row["id"] for row in everything(data)] == ["id-0", "id-1", "id-3", "id-4", "id-5", "id-6"]
    assert "2 of 8 questions are left out" in data.warnings[0]
    assert "id-2" in data.warnings[0]


def test_records_that_cannot_work_are_named(tmp_path: Path) -> None:
    """All that is wrong at once, by record."""
    content = articles()
    first, second = content["data"][0]["paragraphs"]
    first["qas"][0]["answers"] = []
    first["qas"][1]["question"] = " "
    second["qas"][1]["id"] = "id-2"
    content["data"][1]["paragraphs"][0]["context"] = None
    told = problems_of(write(tmp_path, content))
    assert "an answer to every question, found 1 questions that differ: question 0 (id-0)" in told
    assert "is_impossible: true" in told
    assert "question: expected text in every row, found no value in 1 of 8 rows: 1 (0 is the first)" in told
    assert "context: expected text in every row, found no value in 2 of 8 rows: 4, 5" in told
    assert "question 3 (id-2), as 2" in told


def test_every_question_has_an_id_or_none_has(tmp_path: Path) -> None:
    """A row's number could be the id of another row."""
    rows: list[dict[str, Any]] = flattened()
    del rows[2]["id"]
    rows[5]["id"] = None
    rows[7]["id"] = "2"
    told = problems_of(write(tmp_path, rows, "data.jsonl"))
    assert "an id of every question, or of none, found 2 questions that differ: question 2; " in told
    for row in rows:
        row["id"] = None
    ids = [row["id"] for row in everything(load(write(tmp_path, rows, "data.jsonl")))]
    assert ids == [str(number) for number in range(8)]


def test_contradictions_and_places_that_are_none(tmp_path: Path) -> None:
    content = articles(True)
    asked = content["data"][0]["paragraphs"][0]["qas"]
    asked[0]["is_impossible"] = True
    asked[1]["answers"][0]["answer_start"] = "near the end"
    asked[2]["is_impossible"] = False
    content["data"][1]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = ""
    told = problems_of(write(tmp_path, content))
    assert "no answer where is_impossible is true, found 1 questions that differ: question 0" in told
    assert "answer_start as a number of characters from 0, found 1 questions that differ: question 1" in told
    assert "(id-1), 'near the end'" in told
    assert "an answer to every question, found 1 questions that differ: question 2" in told
    assert "answers with text, found 1 questions that differ: question 6" in told


def test_an_answer_without_a_place_among_others_is_no_unanswerable_question(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = flattened()
    rows[2]["answers"] = "Warsaw"
    rows[4]["answers"] = {"text": "the angle", "answer_start": [1, 2]}
    told = problems_of(write(tmp_path, rows, "data.jsonl"))
    assert "a place for every answer's text, found 2 questions that differ: question 2" in told


def test_a_missing_answer_in_a_table_is_no_unanswerable_question(tmp_path: Path) -> None:
    rows = plain_table()
    rows[3]["answer"] = None
    del rows[3]["is_impossible"]
    frame = pd.DataFrame(rows).drop(columns="is_impossible")
    path = tmp_path / "data.csv"
    frame.to_csv(path, index=False)
    assert "an answer to every question, found 1 questions that differ: question 3" in problems_of(path)


def test_files_of_another_layout(tmp_path: Path) -> None:
    story = {"data": [{"story": "Once upon a time", "questions": [{"input_text": "When?"}]}]}
    told = problems_of(write(tmp_path, story))
    assert "expected SQuAD's layout (data, paragraphs, qas)" in told
    assert "found columns story, questions" in told
    content = articles()
    content["data"][1]["paragraphs"][0]["qas"] = {"id": "id-4"}
    told = problems_of(write(tmp_path, content))
    assert "data[1].paragraphs[0].qas: expected a list of objects" in told
    assert "found dict" in told
    content = articles()
    content["data"][0]["paragraphs"] = [*CONTEXTS[:2]]
    assert "data[0].paragraphs: expected a list of objects" in problems_of(write(tmp_path, content))
    text = [{**row, "answers": str(row["answers"])} for row in flattened()]
    assert "a column 'answer_start'" in problems_of(write(tmp_path, text, "text.csv"))


def test_test_questions_without_answers(tmp_path: Path) -> None:
    """Those that came along are not used; those that were asked for must have them."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder, flattened(), "train.jsonl")
    open_questions = [{name: row[name] for name in ("id", "question", "context")} for row in flattened()]
    path = write(folder, open_questions, "test.jsonl")
    data = load(folder)
    assert data.test is None
    assert "has no answers and is not used" in data.warnings[0]
    assert "test.jsonl" in problems_of(folder / "train.jsonl", test=str(path))


def test_a_split_with_one_kind_of_question_is_told(tmp_path: Path) -> None:
    train = write(tmp_path, articles(True), "train.json")
    data = load(train, validation=str(write(tmp_path, articles(), "validation.json")))
    assert "In validation every question has an answer: it does not tell when to give none." in data.warnings
    assert data.label_names == ANSWERABLE


def test_a_threshold_without_questions_that_need_it_is_refused(tmp_path: Path) -> None:
    config = DataConfig(train=str(write(tmp_path, articles())))
    with pytest.raises(UserError, match="null_threshold"):
        QuestionAnswering.load(config, QuestionAnsweringOptions(null_threshold=1.0))


def test_fingerprints_tell_what_was_read(tmp_path: Path) -> None:
    content = articles()
    fingerprint = load(write(tmp_path, content)).fingerprint
    changed = copy.deepcopy(content)
    changed["data"][0]["paragraphs"][0]["qas"][0]["answers"].append({"text": "the", "answer_start": 24})
    assert load(write(tmp_path, changed)).fingerprint != fingerprint
    assert load(write(tmp_path, content), seed=1).fingerprint != fingerprint


def test_real_data_in_squads_layout(shared_data: Path) -> None:
    path = shared_data / "xquad" / "xquad.en.json"
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    data = load(path)
    rows = everything(data)
    assert len(rows) == 1190
    assert len({row["context"] for row in rows}) == 240
    assert not set(data.train["context"]) & set(data.validation["context"])
    assert len(data.validation) == pytest.approx(0.2 * 1190, abs=3)
    assert (data.label_names, data.warnings) == ((), ())
