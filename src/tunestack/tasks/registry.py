"""All tasks, by name. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Sequence

from tunestack.config import DataConfig, TaskConfig
from tunestack.data.load import TextData
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.settings import validated
from tunestack.tasks.base import Task
from tunestack.tasks.classification import SequenceClassification
from tunestack.tasks.instruction import Instruction
from tunestack.tasks.multi_label import MultiLabel
from tunestack.tasks.question_answering import QuestionAnswering
from tunestack.tasks.regression import Regression
from tunestack.tasks.text_to_text import TextToText
from tunestack.tasks.token_classification import TokenClassification

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        SequenceClassification,
        MultiLabel,
        Regression,
        TokenClassification,
        QuestionAnswering,
        TextToText,
        Instruction,
    )
}


def open_task(settings: TaskConfig, data: DataConfig, problems: Problems) -> tuple[Task, TextData | None]:
    """A task with its data. Notes what is wrong with either; the task then serves to check the rest."""
    kind = problems.attempt(find_task, settings.name) or SequenceClassification
    where = f"task {kind.name}"
    options = problems.attempt(validated, kind.options_class, settings.options, where)
    if (data.tests or data.tests_folder) and not kind.several_tests:
        fix = "Leave it out: name one set in data.test."
        problems.add("data.tests", expected=f"none: {kind.name} takes one test set", found="some", fix=fix)
    loaded = problems.attempt(kind.load, data, options or kind.options_class())
    return kind(loaded.label_names if loaded else ("0", "1"), options), loaded


def make_task(settings: TaskConfig, label_names: Sequence[str]) -> Task:
    """A task without its data. Raises UserError for one that is not known, or settings that it has not."""
    kind = find_task(settings.name)
    return kind(label_names, validated(kind.options_class, settings.options, f"task {kind.name}"))


def find_task(name: str) -> type[Task]:
    """The task of that name. Raises UserError with the nearest names for an unknown one."""
    if name not in TASKS:
        raise UserError(Problem("task", "a known task", repr(name), did_you_mean(name, TASKS)))
    return TASKS[name]
