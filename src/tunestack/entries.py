"""Entries of `methods`: which fields are the method's own and which training's, whether they suit a base."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from transformers import PreTrainedModel

from tunestack.bases import Base
from tunestack.bases.base import head_modules
from tunestack.bases.quantised import check_skipped
from tunestack.config import TrainingConfig
from tunestack.errors import Problem, Problems, UserError
from tunestack.methods.base import Method
from tunestack.methods.registry import METHODS
from tunestack.settings import validated
from tunestack.tasks.base import Task, not_for


def own_fields(method: Method) -> set[str]:
    """The fields that a method's config has for itself, beside those of every config."""
    return set(method.config_class.__dataclass_fields__) - set(PeftConfig.__dataclass_fields__)


def training_defaults(method: str, given: Collection[str], own: Collection[str]) -> dict[str, Any]:
    """A method's own training defaults, where nobody gave a value.

    given: fields that are given for all methods; own: for this one. A ratio of learning rates goes with the
    rate that it was made for: whoever gives a rate gets no ratio unasked.
    """
    defaults = dict(METHODS[method].training_defaults) if method in METHODS else {}
    if "learning_rate" in {*given, *own}:
        defaults.pop("loraplus_lr_ratio", None)
    return {name: value for name, value in defaults.items() if name not in given and name not in own}


def entry_training(
    shared: TrainingConfig, method: str, fields: Mapping[str, Any], training: Mapping[str, Any], where: str
) -> TrainingConfig:
    """What an entry trains with. Raises UserError for fields that do not belong where they are.

    fields: the method's own, among which none of training's may stand. training: what differs from `shared`.
    """
    problems = Problems()
    for name in set(fields) & set(TrainingConfig.model_fields):
        problems.add(
            f"{where}.{name}",
            expected=f"a field of {method}",
            found="a field of training",
            fix=f"Write it under `training`: {{method: {method}, training: {{{name}: ...}}}}.",
        )
    values = {**shared.model_dump(), **training}
    result = problems.attempt(validated, TrainingConfig, values, f"{where}.training")
    problems.raise_if_any()
    assert result is not None  # or its problems would have been raised
    return result


@dataclass
class BaseCheck:
    """A base's skeleton on the meta device, made when the first method is checked against it."""

    base: Base
    task: Task
    _skeleton: PreTrainedModel | None = field(default=None)

    @property
    def skeleton(self) -> PreTrainedModel:
        """The model without weights. Raises UserError where transformers has no such model for the task."""
        if self._skeleton is None:
            config = self.task.model_config(self.base)
            try:
                self._skeleton = self.base.skeleton(self.task.auto_class_for(config), config)
            except ValueError as error:
                raise not_for(self.base.name, self.task, config.model_type) from error
        return self._skeleton

    def check_skipped(self) -> None:
        """Raise UserError where the base does not have what is to be left out in quantising it."""
        if self.base.settings.skip_modules is not None:
            head = head_modules(self.skeleton, self.base.config.model_type)
            check_skipped(self.base.settings, self.skeleton, head)


def method_config(method: Method, fields: Mapping[str, Any], check: BaseCheck | None) -> PeftConfig:
    """A method's config from its own fields. Raises UserError for what is wrong with them, and for a base
    that is quantised where the method needs plain weights.

    check: the base; None where there is none, and only what does not depend on it is checked.
    """
    if check is None:
        return method.make_config(fields, "", [])
    if check.base.settings.quantize is not None and not method.stacks:
        raise UserError(
            Problem(
                f"{method.name} on {check.base.name}",
                "a base with plain weights: this method needs a model of its own, in fp32",
                f"quantize: {check.base.settings.quantize}",
                "Leave quantize out for this base; or use a method that leaves it frozen, like lora.",
            )
        )
    skeleton = check.skeleton
    model_type = check.base.config.model_type
    settings = method.make_config(fields, model_type, head_modules(skeleton, model_type))
    settings.task_type = check.task.peft_type_for(check.base.config)
    method.check(settings, skeleton)
    return settings
