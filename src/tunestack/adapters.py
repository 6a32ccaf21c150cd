"""A saved adapter: its files read strictly and found to fit its base, before the base's weights load."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from peft import PeftConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from tunestack.bases import Base, load_base
from tunestack.choice import DESCRIPTION, Description
from tunestack.config import BaseConfig, TaskConfig
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.methods.base import (
    ADAPTER_CONFIG,
    PEFT_PREFIX,
    PROMPT_PREFIX,
    Adapter,
    Method,
    aliases,
    read_tensors,
)
from tunestack.methods.registry import METHODS, find_method
from tunestack.methods.sites import Host
from tunestack.tasks.base import Task
from tunestack.tasks.classification import SequenceClassification
from tunestack.tasks.registry import make_task
from tunestack.tasks.regression import Regression

_PROBE = 7919
"""A number of labels that no other size of a model has: what has it is the last layer of the head."""


@dataclasses.dataclass(frozen=True)
class SavedAdapter:
    """An adapter that fits its base as far as can be seen without the base's weights.

    config: as its method reads it. tensors: by the names under which PEFT saves them. base: what it was
    trained on, opened. plain: whether PEFT wrote it and not tunestack; its head may then be its base's.
    """

    folder: Path
    description: Description
    method: Method
    config: PeftConfig
    tensors: Mapping[str, Tensor]
    base: Base
    plain: bool = False

    @property
    def task(self) -> Task:
        """What it solves."""
        return make_task(self.description.task, self.description.label_names)

    def place(self, host: Host, slot: int) -> Adapter:
        """Its weights, placed into a host of its base. Raises UserError for weights that do not fit it."""
        self.check_head(host.fresh)
        try:
            adapter = self.method.attach(self.config, host, slot, seed=0)
            own = [name for name in adapter.parameters if any(_is_inside(name, head) for head in host.head)]
            kept = {name: adapter.parameters[name] for name in own} if self.plain else {}
            adapter.load({**kept, **self.tensors})
        except UserError as error:
            raise UserError(self.misfit("its tensors do not"), *error.problems) from error
        return adapter

    def check_head(self, fresh: frozenset[str]) -> None:
        """Refuse an adapter without what its base lacks: the head would be drawn at random."""
        lacking = [
            name for name in sorted(fresh) if not any(_is_inside(tensor, name) for tensor in self.tensors)
        ]
        if lacking:
            raise UserError(
                Problem(
                    str(self.folder),
                    f"weights of {', '.join(lacking)}, in the adapter or in its base {self.base.name}",
                    "none",
                    f"Train it with modules_to_save={lacking!r}, or give a base that has them.",
                )
            )

    def check_sizes(self, skeleton: nn.Module) -> None:
        """Compare what is saved whole with the base's sizes, and its layers with those that the base has."""
        sizes = {name: tuple(value.shape) for name, value in skeleton.named_parameters()}
        wrong = []
        for tensor, value in sorted(self.tensors.items(), key=lambda pair: -pair[1].ndim):
            name = _plain(tensor).replace(".base_layer.", ".")
            if sizes.get(name, tuple(value.shape)) != tuple(value.shape):
                wrong.append(f"{name} has shape {tuple(value.shape)} and not {sizes[name]}")
            elif tensor.startswith(PEFT_PREFIX) and (absent := _absent_module(skeleton, name)) is not None:
                wrong.append(f"it has a module {absent}")
        if wrong:
            wrong = list(dict.fromkeys(wrong))
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(self.misfit(wrong[0] + more))

    def misfit(self, how: str) -> Problem:
        """The problem of an adapter that does not fit its base, with both named."""
        labels = max(1, len(self.description.label_names))
        base = f"{self.base.name} with {labels} label{'s' * (labels > 1)}"
        trained_on = self.config.base_model_name_or_path or "another base"
        return Problem(
            str(self.folder),
            f"an adapter that fits {base}",
            f"one trained on {trained_on} that does not: {how}",
            "Use the base as it was when the adapter was trained, or train the adapter again.",
        )


def open_adapter(folder: Path, description: Description | None, here: Mapping[str, Any]) -> SavedAdapter:
    """Read a saved adapter and check it against its base.

    description: None for an adapter that tunestack did not write; its labels are then the base's, or
    numbered. here: settings of the base that this machine decides. Raises UserError for what is damaged or
    does not fit.
    """
    config, tensors = read_config(folder), read_tensors(folder)
    plain = description is None
    if description is None:
        again = aliases(tensors)
        tensors = {name: tensor for name, tensor in tensors.items() if name not in again}
        base = load_base(_base_of(folder, config).model_copy(update=here))
        description = _describe(folder, config, tensors, base)
    else:
        assert description.base is not None  # a method always has one
        _check_base_name(folder, config, description.base.model)
        base = load_base(description.base.model_copy(update=here))
    method = find_method(description.method)
    adapter = SavedAdapter(folder, description, method, method.read_config(folder), tensors, base, plain)
    skeleton = base.skeleton(adapter.task.auto_class_for(base.config), adapter.task.model_config(base))
    adapter.check_sizes(skeleton)
    if plain:
        _drop_absent_heads(adapter.config, skeleton)
        method.check(adapter.config, skeleton)
    return adapter


def read_config(folder: Path) -> PeftConfig:
    """`adapter_config.json`, as PEFT's config of its type.

    Raises UserError where it is missing, damaged, of an unknown type, or has fields or values that the type
    does not take: PEFT itself drops what it does not know.
    """
    path = folder / ADAPTER_CONFIG
    values = _read_mapping(path)
    kinds = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = values.get("peft_type")
    if not isinstance(kind, str) or kind not in kinds:
        fix = did_you_mean(str(kind).upper(), kinds)
        raise UserError(Problem(str(path), "a peft_type that PEFT knows", repr(kind), fix))
    config_class = kinds[kind]
    fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
    hints = get_type_hints(config_class)
    problems = Problems()
    for name, value in values.items():
        if name not in fields:
            version = values.get("peft_version")
            found = repr(name) + (f", written by PEFT {version}" if version else "")
            expected = f"fields of {config_class.__name__}"
            problems.add(str(path), expected=expected, found=found, fix=did_you_mean(name, fields))
        elif value is not None and value != fields[name].default:
            _check_type(hints[name], name, value, path, problems)
    problems.raise_if_any()
    try:
        config: PeftConfig = config_class(**config_class.check_kwargs(**values))
    except (TypeError, ValueError) as error:
        expected = f"values that {config_class.__name__} takes"
        raise UserError(Problem(str(path), expected, str(error), "Save the adapter again.")) from error
    return config


def _read_mapping(path: Path) -> dict[str, Any]:
    fix = "Copy the adapter again."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(Problem(str(path), "PEFT's config of the adapter", "no such file", fix)) from None
    except (OSError, ValueError) as error:
        raise UserError(Problem(str(path), "PEFT's config of the adapter", str(error), fix)) from error
    if not isinstance(values, dict):
        found = f"a {type(values).__name__}"
        raise UserError(Problem(str(path), "a mapping of PEFT's fields", found, fix))
    values.pop("runtime_config", None)  # of no meaning beyond the process that saved it
    return values


def _check_type(hint: Any, name: str, value: Any, path: Path, problems: Problems) -> None:
    try:
        TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        expected = f"{name}: {error.errors()[0]['msg']}"
        problems.add(str(path), expected=expected, found=repr(value), fix="Save the adapter again.")


def _check_base_name(folder: Path, config: PeftConfig, name: str) -> None:
    trained_on = config.base_model_name_or_path
    if trained_on is None or trained_on == name or _same_place(trained_on, name):
        return
    raise UserError(
        Problem(
            str(folder),
            f"an adapter for {name}, the base that {DESCRIPTION} names",
            f"one for {trained_on}, as {ADAPTER_CONFIG} says",
            "Name the base that it was trained on in both files, or copy both again.",
        )
    )


def _same_place(first: str, second: str) -> bool:
    places = [Path(name).expanduser() for name in (first, second)]
    return all(place.exists() for place in places) and places[0].samefile(places[1])


def _plain(tensor: str) -> str:
    """The name that a tensor which PEFT saves whole has in the model."""
    prefix = PEFT_PREFIX if tensor.startswith(PEFT_PREFIX) else PROMPT_PREFIX
    return tensor.removeprefix(prefix)


def _is_inside(tensor: str, module: str) -> bool:
    return _plain(tensor).startswith(f"{module}.")


def _absent_module(model: nn.Module, name: str) -> str | None:
    """The body or block that a tensor's name means and the model has not; None where nothing is missing.

    Deeper down, names are the adapter's own.
    """
    module, path = model, ""
    for part in name.split("."):
        child = dict(module.named_children()).get(part)
        if child is None:
            return f"{path}{part}" if module is model or isinstance(module, nn.ModuleList) else None
        module, path = child, f"{path}{part}."
    return None


# Adapters that tunestack did not write


def _base_of(folder: Path, config: PeftConfig) -> BaseConfig:
    problems = Problems()
    where = str(folder / ADAPTER_CONFIG)
    if config.base_model_name_or_path is None:
        fix = "Add the base's Hub id or folder to that file."
        problems.add(where, expected="base_model_name_or_path", found="none", fix=fix)
    if config.task_type not in (None, TaskType.SEQ_CLS):
        expected = "an adapter for sequence classification (task_type SEQ_CLS)"
        fix = "Load it with PEFT itself: of other tasks, only what tunestack saved can be loaded."
        problems.add(where, expected=expected, found=str(config.task_type), fix=fix)
    problems.raise_if_any()
    return BaseConfig(model=str(config.base_model_name_or_path), revision=config.revision)


def method_of(folder: Path, config: PeftConfig) -> Method:
    """The method whose config this is. Raises UserError where it is none's."""
    methods = [method for method in METHODS.values() if not method.saves_whole_model]
    for method in methods:
        if method.owns(config):
            return method
    known = sorted({method.config_class.__name__ for method in methods})
    expected = f"an adapter of a family that is known here ({', '.join(known)})"
    raise UserError(Problem(str(folder), expected, type(config).__name__, "Load it with PEFT itself."))


def _describe(folder: Path, config: PeftConfig, tensors: Mapping[str, Tensor], base: Base) -> Description:
    """What `tunestack.json` would say, as far as PEFT's files and the base tell."""
    count = _count_labels(tensors, base)
    if count < 1:
        fix = "Train it with its head in modules_to_save."
        raise UserError(Problem(str(folder), "a head with a label or more", "none", fix))
    known = list((base.config.id2label or {}).values())
    names = known if len(known) == count else [f"LABEL_{index}" for index in range(count)]
    return Description(
        kind="method",
        method=method_of(folder, config).name,
        base=base.settings,
        task=TaskConfig(name=(SequenceClassification if count > 1 else Regression).name),
        label_names=names if count > 1 else [],
    )


def _drop_absent_heads(config: Any, skeleton: nn.Module) -> None:
    """Leave out of `modules_to_save` what the model has not: PEFT writes all usual names of heads there."""
    if getattr(config, "modules_to_save", None):
        names = [name for name, _ in skeleton.named_modules()]
        there = [entry for entry in config.modules_to_save if any(name.endswith(entry) for name in names)]
        config.modules_to_save = there or None


def _count_labels(tensors: Mapping[str, Tensor], base: Base) -> int:
    """How many labels the adapter's head has; the base's number where the adapter has none."""
    skeleton = base.skeleton(SequenceClassification.auto_class, base.model_config(_PROBE))
    last = [name for name, parameter in skeleton.named_parameters() if parameter.shape[0] == _PROBE]
    saved = [len(value) for tensor, value in tensors.items() if _plain(tensor) in last]
    return saved[0] if saved else int(base.config.num_labels or 0)
