"""Questions about contexts: SQuAD's own files, the Hub's flattened form, and plain tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from datasets import Dataset, Features, List, Value

from tunestack.config import DataConfig
from tunestack.data.labels import is_missing
from tunestack.data.load import TextData, fingerprint, read_all, refuse_settings, with_validation
from tunestack.data.sources import Table
from tunestack.data.split import shared_rows
from tunestack.data.tables import check_columns, check_texts
from tunestack.errors import Problem, Problems, UserError

SHOWN = 5
"""How many records that are wrong in the same way an error lists."""
ANSWERABLE = ("answerable", "unanswerable")
"""What questions are where some have no answer (SQuAD v2)."""

_FEATURES = Features(
    {
        "id": Value("string"),
        "question": Value("string"),
        "context": Value("string"),
        "answer_texts": List(Value("string")),
        "answer_starts": List(Value("int64")),
        "row": Value("int64"),
    }
)
_LAYOUTS = (
    "SQuAD's layout (data, paragraphs, qas), or a table with question, context and answers "
    '({"text": [...], "answer_start": [...]}, or the text, and its place in answer_start)'
)
_HOW = "Other names go into data.columns: {question: ..., context: ..., answers: ..., answer_start: ...}."


@dataclass(frozen=True)
class Question:
    """One record. impossible: what the data says of it, None where it says nothing."""

    row: int
    id: str | None
    question: Any
    context: Any
    texts: tuple[Any, ...]
    starts: tuple[Any, ...]
    impossible: bool | None

    @property
    def name(self) -> str:
        """What errors call it."""
        return name_of(self.row, self.id)


def name_of(row: int, id: str | None) -> str:
    """What errors call a question.

    >>> name_of(3, "56be4db0acb8001400a502ec")
    'question 3 (56be4db0acb8001400a502ec)'
    """
    return f"question {row}" if id is None or id == str(row) else f"question {row} ({id})"


def load_questions(config: DataConfig, inputs: Mapping[str, str], skip_misplaced: bool = False) -> TextData:
    """Read, check and split questions with contexts and answers.

    inputs: what the columns `question` and `context` are called.

    The datasets have the columns `id`, `question`, `context`, `answer_texts` and `answer_starts` (both empty
    for a question without an answer), `row`. label_names: `ANSWERABLE` where there are such questions, else
    none. A split of our own keeps a context on one side. skip_misplaced: questions whose answer does not
    stand in the context where the data says are left out; else they are a problem. Raises UserError with all
    problems.
    """
    problems = Problems()
    columns = _columns(config, inputs, problems)
    tables, warnings = read_all(config, problems, lambda table: _has_answers(table, columns), "answers")
    named = [f"{name}: {column}" for name, column in columns.items() if column not in (None, name)]
    if tables and named and all("paragraphs" in table.frame for table in tables.values()):
        expected = "none: in SQuAD's own layout all have their names"
        fix = "Leave data.columns, data.text, data.text_pair and data.label out."
        problems.add("data.columns", expected=expected, found=", ".join(named), fix=fix)
    read: dict[str, list[Question]] = {}
    for split, table in tables.items():
        with problems.collecting():
            read[split] = _checked(table, columns, skip_misplaced, warnings)
    problems.raise_if_any()
    splits = {split: _dataset(questions) for split, questions in read.items()}
    splits = with_validation(splits, config, ["context"])
    unanswerable = any(not question.texts for questions in read.values() for question in questions)
    return TextData(
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        label_names=ANSWERABLE if unanswerable else (),
        warnings=(*warnings, *_one_sided(splits, unanswerable), *_shared_contexts(splits)),
        source=config.train,
        fingerprint=fingerprint(splits),
    )


def _columns(config: DataConfig, inputs: Mapping[str, str], problems: Problems) -> dict[str, str | None]:
    """Their names for our columns; `answers` is None where nobody names it."""
    names: dict[str, str | None] = {
        "id": "id",
        **inputs,
        "answers": None,
        "answer_start": "answer_start",
        "is_impossible": "is_impossible",
    }
    if config.label != DataConfig.model_fields["label"].default:
        names["answers"] = config.label
    others = ("labels", "positive_label")
    refuse_settings(config, others, "none: answers are texts", "Leave it out.", problems)
    for name in config.columns.keys() - names.keys():
        expected = f"one of {', '.join(names)}"
        problems.add("data.columns", expected=expected, found=repr(name), fix=_HOW)
    return {**names, **{name: value for name, value in config.columns.items() if name in names}}


def _checked(
    table: Table, columns: Mapping[str, str | None], skip_misplaced: bool, warnings: list[str]
) -> list[Question]:
    """The questions of one split. Raises UserError with all problems."""
    where, problems = table.where, Problems()
    questions = _with_ids(list(_questions(table, columns)), where, problems)
    if not questions:
        problems.add(where, expected="questions", found="none", fix="Give a file with questions in it.")
    index = [question.row for question in questions]
    for name in ("question", "context"):
        texts = pd.Series([getattr(question, name) for question in questions], index, dtype=object)
        check_texts(texts, f"{where}, {name}", problems)
    seen: dict[str, int] = {}
    repeated = [
        f"{one.name}, as {seen[one.id]}"
        for one in questions
        if one.id is not None and seen.setdefault(one.id, one.row) != one.row
    ]
    _note(
        repeated, f"{where}, id", "an id of its own for every question", problems, "Remove the repetitions."
    )
    _check_answers(questions, where, problems)
    problems.raise_if_any()
    misplaced = {one.row: found for one in questions if (found := _misplaced(one)) is not None}
    setting = "task: {name: question-answering, skip_misplaced: true}"
    fix = f"Correct answer_start, or leave these questions out with {setting}."
    expected = "every answer's text in the context at its answer_start"
    if misplaced and not skip_misplaced:
        _note(list(misplaced.values()), f"{where}, answers", expected, problems, fix)
        problems.raise_if_any()
    if misplaced:
        some = "; ".join(list(misplaced.values())[:SHOWN])
        warnings.append(
            f"{where}: {len(misplaced):,} of {len(questions):,} questions are left out, for their answers do "
            f"not stand where the data says: {some}."
        )
    return [question for question in questions if question.row not in misplaced]


def _with_ids(questions: list[Question], where: str, problems: Problems) -> list[Question]:
    """With the rows' numbers where no question has an id; they could be the ids of others where some have."""
    without = [one for one in questions if one.id is None]
    if len(without) == len(questions):
        return [replace(one, id=str(one.row)) for one in questions]
    expected, fix = "an id of every question, or of none", "Fill them in, or leave them all out."
    _note([one.name for one in without], f"{where}, id", expected, problems, fix)
    return questions


def _check_answers(questions: Sequence[Question], where: str, problems: Problems) -> None:
    """Note answers that are missing, contradict `is_impossible`, or have no text or place."""
    wrong: dict[tuple[str, str], list[str]] = {}
    for one in questions:
        found, told = None, one.name
        if not one.texts and not one.impossible:
            found = ("an answer to every question", "A question without one needs is_impossible: true.")
        elif one.texts and one.impossible:
            found = ("no answer where is_impossible is true", "Remove the answer or the mark.")
        elif len(one.texts) != len(one.starts):
            found = ("a place for every answer's text", "Give answer_start for each.")
        elif not all(isinstance(text, str) and text.strip() for text in one.texts):
            found = ("answers with text", "Fill them in, or remove them.")
        elif odd := [start for start in one.starts if type(start) is not int or start < 0]:
            found = ("answer_start as a number of characters from 0", "Correct them.")
            told = f"{one.name}, {odd[0]!r}"
        if found is not None:
            wrong.setdefault(found, []).append(told)
    for (expected, fix), names in wrong.items():
        _note(names, f"{where}, answers", expected, problems, fix)


def _note(found: Sequence[str], where: str, expected: str, problems: Problems, fix: str) -> None:
    if found:
        more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
        some = "; ".join(found[:SHOWN])
        told = f"{len(found):,} questions that differ: {some}{more}"
        problems.add(where, expected=expected, found=told, fix=fix)


def _misplaced(question: Question) -> str | None:
    """What stands in the context where an answer should."""
    for text, start in zip(question.texts, question.starts, strict=True):
        if (there := question.context[start : start + len(text)]) != text:
            return f"{question.name}: {text[:40]!r} is {there[:40]!r} at {start}"
    return None


# Layouts


def _questions(table: Table, columns: Mapping[str, str | None]) -> Iterator[Question]:
    """The records of a table in any layout. Raises UserError for another one."""
    frame = table.frame
    if "paragraphs" in frame:
        return _of_articles(frame, table.where)
    answers = _answer_column(frame, columns)
    names = {str(columns["question"]), str(columns["context"])}
    if answers is None or not names & set(frame.columns):
        found = f"columns {', '.join(map(str, frame.columns))}"
        raise UserError(Problem(table.where, _LAYOUTS, found, _HOW))
    problems = Problems()
    nested = bool(frame[answers].map(lambda value: isinstance(value, dict | list)).any())
    needed = () if nested else ("answer_start",)
    renamed = (name for name in ("id", "answer_start", "is_impossible") if columns[name] != name)
    wanted = [*names, *(str(columns[name]) for name in dict.fromkeys((*needed, *renamed)))]
    check_columns(frame, wanted, table.where, problems, _HOW)
    problems.raise_if_any()
    return _of_rows(frame, columns, answers, nested)


def _answer_column(frame: pd.DataFrame, columns: Mapping[str, str | None]) -> str | None:
    given = columns["answers"]
    return next((name for name in ([given] if given else ["answers", "answer"]) if name in frame), None)


def _of_articles(frame: pd.DataFrame, where: str) -> Iterator[Question]:
    """SQuAD's own layout, as read: one row an article."""
    row = 0
    for article, paragraphs in enumerate(frame["paragraphs"]):
        for number, paragraph in enumerate(_records(paragraphs, f"{where}, data[{article}].paragraphs")):
            place = f"{where}, data[{article}].paragraphs[{number}]"
            for question in _records(paragraph.get("qas"), f"{place}.qas"):
                texts, starts = _answers_of(question.get("answers"))
                yield Question(
                    row,
                    _id(question.get("id")),
                    question.get("question"),
                    paragraph.get("context"),
                    texts,
                    starts,
                    _flag(question.get("is_impossible")),
                )
                row += 1


def _records(values: Any, where: str) -> list[dict[str, Any]]:
    """A list of objects. Raises UserError for anything else."""
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        return values
    kinds = {type(value).__name__ for value in values} if isinstance(values, list) else set()
    found = f"a list of {', '.join(sorted(kinds))}" if kinds else type(values).__name__
    expected = "a list of objects, as in SQuAD's layout"
    raise UserError(Problem(where, expected, "nothing" if values is None else found, "Correct the file."))


def _of_rows(
    frame: pd.DataFrame, columns: Mapping[str, str | None], answers: str, nested: bool
) -> Iterator[Question]:
    """One row a question."""
    own = {name: str(columns[name]) for name in ("id", "is_impossible", "answer_start")}
    for row, record in zip(frame.index, frame.to_dict("records")):
        impossible = _flag(record.get(own["is_impossible"]))
        value = record[answers]
        texts, starts = _answers_of(value)
        if nested and impossible is None and value is not None:
            impossible = not texts  # the Hub's form of v2 has no mark of its own
        elif not nested:
            empty = value is None or value == ""
            texts = () if empty else (value,)
            starts = () if empty else (_number(record.get(own["answer_start"])),)
        question, context = record[str(columns["question"])], record[str(columns["context"])]
        yield Question(int(row), _id(record.get(own["id"])), question, context, texts, starts, impossible)


def _answers_of(value: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Texts and places, of SQuAD's list of answers, the Hub's pair of lists, or a pair of values."""
    if isinstance(value, dict):
        return _several(value.get("text")), tuple(map(_number, _several(value.get("answer_start"))))
    if isinstance(value, list):
        answers = [one if isinstance(one, dict) else {} for one in value]
        return tuple(one.get("text") for one in answers), tuple(
            _number(one.get("answer_start")) for one in answers
        )
    return _several(value), ()


def _several(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def _id(value: Any) -> str | None:
    return None if is_missing(value) else str(value)


def _number(value: Any) -> Any:
    """A place, which CSV has as text and tables with gaps as a float (12.0); anything else as it is."""
    with contextlib.suppress(ValueError):
        if isinstance(value, str | float) and float(value).is_integer():
            return int(float(value))
    return value


def _flag(value: Any) -> bool | None:
    """A mark, which CSV has as text."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "1.0", "yes")
    return None if value is None else bool(value)


def _has_answers(table: Table, columns: Mapping[str, str | None]) -> bool:
    """Whether anything in a split has an answer."""
    if "paragraphs" not in table.frame and _answer_column(table.frame, columns) is None:
        return False
    return any(question.texts for question in _questions(table, columns))


# Splits


def _dataset(questions: Sequence[Question]) -> Dataset:
    values = {
        "id": [one.id for one in questions],
        "question": [one.question for one in questions],
        "context": [one.context for one in questions],
        "answer_texts": [list(one.texts) for one in questions],
        "answer_starts": [list(one.starts) for one in questions],
        "row": [one.row for one in questions],
    }
    return Dataset.from_dict(values, features=_FEATURES)


def _one_sided(splits: Mapping[str, Dataset], unanswerable: bool) -> list[str]:
    """Splits with one kind of question, where others have both."""
    sentences = []
    for name, split in splits.items():
        answered = sum(len(texts) > 0 for texts in split["answer_texts"])
        if unanswerable and answered in (0, len(split)):
            kind = "every question has an answer" if answered else "no question has an answer"
            sentences.append(f"In {name} {kind}: it does not tell when to give none.")
    return sentences


def _shared_contexts(splits: Mapping[str, Dataset]) -> list[str]:
    contexts = {name: split["context"][:] for name, split in splits.items()}
    sentences = []
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if second in contexts and (shared := shared_rows(contexts[second], contexts[first])):
            sentences.append(
                f"{shared:,} of {len(contexts[second]):,} {second} questions have a context that is also in "
                f"{first}: scores on them reward memory."
            )
    return sentences
