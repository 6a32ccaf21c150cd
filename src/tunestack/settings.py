"""Reading settings: YAML in, validated settings out, every problem named in the user's words."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunestack.errors import Problem, Problems, UserError, did_you_mean

S = TypeVar("S", bound=BaseModel)
Place = tuple[int | str, ...]
"""Where a setting stands: ("methods", 0, "search", "r")."""

DECISIVE: tuple[Place, ...] = (("task",), ("data", "header"), ("data", "subset"), ("data", "columns"))
"""What data are read by: of a file that is read otherwise nothing true can be said."""

_PLAIN_VALUES = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?[0-9]+[eE][-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)
"""What is not text though it stands without quotes: as YAML 1.2 has it, without its octal and hexadecimal.

PyYAML follows YAML 1.1, where 1e-4 is text, while no, 12:30, 007 and 2024-01-01 are not.
"""


class _Loader(yaml.SafeLoader):
    """Plain data, by YAML 1.2; a key that stands twice is an error, not the last one's."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused later: no setting has such a name
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is there more than once", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader, or YAML 1.1, would not read as text."""


for _tag, _pattern, _first in _PLAIN_VALUES:
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError: no such file, malformed, not a mapping."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except FileNotFoundError:
        folder = path.parent.resolve()
        near = [file.name for file in folder.glob("*.y*ml")]
        fix = did_you_mean(path.name, near) if near else f"There is no YAML file in {folder}."
        raise UserError(Problem(str(path), "a configuration file", "no such file", fix)) from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        found = " ".join(f"{error.problem} {error.context or ''}".split())
        fix = "Look at the quotes, brackets, colons and indentation there and in the line before."
        raise UserError(Problem(f"{path}{line}", "YAML", found, fix)) from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        found = " ".join(str(error).split())
        fix = "Give a text file in UTF-8 that this user may read; the recipes are examples."
        raise UserError(Problem(str(path), "a YAML file", found, fix)) from error
    if not isinstance(value, dict):
        found = "nothing in it" if value is None else f"a {type(value).__name__}"
        fix = "See the recipes for examples."
        raise UserError(Problem(str(path), "a mapping with `data` and `methods`", found, fix))
    return value


def read_fields(given: Iterable[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with those given as `field=value`, the value in YAML. Raises UserError for other text."""
    values = dict(fields)
    problems = Problems()
    for text in given:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals):
            problems.add("--set", expected="field=value", found=repr(text), fix="Write it like --set r=8.")
        elif name in values:
            fix = "Give it once, as --set or as an option of its own."
            problems.add("--set", expected="each field once", found=f"{name} more than once", fix=fix)
        else:
            with problems.collecting():
                values[name] = read_value(value, "--set", text)
    problems.raise_if_any()
    return values


def read_value(text: str, option: str, given: str) -> Any:
    """A value in YAML. Raises UserError for other text, with the whole of what was `given`."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        fix = f"Quote the whole of it for the shell: {option} 'target_modules=[query, value]'."
        raise UserError(Problem(option, "a value in YAML", f"{given}: {error}", fix)) from error


def read_json(kind: type[S], path: Path) -> S:
    """A JSON file that tunestack wrote. Raises UserError where it is damaged, or of another version."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        found = " ".join(str(error).splitlines()[:3])
        expected = "a file as this version of tunestack writes it"
        raise UserError(Problem(str(path), expected, found, "Run again what wrote it.")) from error


def read_settings(source: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked of a comparison: in a YAML file, or with data alone, and what was given on top."""
    return overlay(read_source(source, given) if source is not None else {}, given)


def read_source(source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a YAML file says, or that data is there. Raises UserError where `given` names other data beside
    data: neither would stand above the other.
    """
    if source.endswith((".yaml", ".yml")):
        return read_yaml(Path(source))
    if other := given.get("data", {}).get("train"):
        fix = "Give one of them; `train` is for data in place of what a CONFIG.yaml names."
        raise UserError(Problem("train", "data given once", f"{source} and {other}", fix))
    return {"data": {"train": source}}


def to_yaml(values: Mapping[str, Any]) -> str:
    """YAML that `read_yaml` reads as the same values."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def overlay(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with what was given on top, where None gives nothing. Raises UserError as `merged` does."""
    return merged(
        values,
        {
            name: _without_none(value) if isinstance(value, Mapping) else value
            for name, value in _without_none(given).items()
        },
    )


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def merged(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with others on top, the fields of a mapping each for themselves.

    Raises UserError for another task than that whose own settings are there.
    """
    result = dict(values)
    for name, value in given.items():
        below = result.get(name)
        if name == "task":
            value, below = _task(value), _task(below)
            _check_same_task(below, value)
        if not isinstance(value, Mapping):
            result[name] = value
        else:  # What is no mapping is left as it is, for the validation to refuse.
            result[name] = {**(below or {}), **value} if isinstance(below or {}, Mapping) else below
    return result


def _task(value: Any) -> Any:
    """A task as a mapping; a bare name means the task with that name."""
    return {"name": value} if isinstance(value, str) else value


def _check_same_task(below: Any, given: Any) -> None:
    """Raise UserError where a task is put in the place of another one that has settings of its own."""
    if not (isinstance(below, Mapping) and isinstance(given, Mapping)):
        return
    there, wanted = below.get("name"), given.get("name")
    own = [field for field, value in below.items() if field != "name" and value]
    if own and None not in (there, wanted) and there != wanted:
        raise UserError(
            Problem(
                "task",
                f"{there}, of which there are settings: {', '.join(own)}",
                repr(wanted),
                "Leave this name out, or take those settings out of the configuration.",
            )
        )


def validated(kind: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Settings from plain values. Raises one UserError with every problem, nearest field names suggested."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(*_problems(kind, error, where)) from error


def checked(kind: type[S], values: Mapping[str, Any], check: Callable[[S], object]) -> S:
    """Settings from plain values, as `validated`; but where some are wrong, the others go through `check`.

    Those that are wrong have their defaults there, so that one UserError tells of both kinds of problems.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(*_problems(kind, error, ""), *_further(kind, values, error, check)) from error


def _further(
    kind: type[S], values: Mapping[str, Any], error: ValidationError, check: Callable[[S], object]
) -> list[Problem]:
    """What a check says of the values that are right, though others are wrong.

    What it says of those left out, or while it speaks of one, may be about the default in its place.
    """
    left_out: set[Place] = set()
    while True:
        wrong = {path for detail in error.errors() if (path := _known_part(values, detail["loc"]))}
        if not wrong or any(path[: len(other)] == other for path in wrong for other in DECISIVE):
            return []  # what is missing, or wrong, is needed
        values = _without(values, wrong)
        left_out |= wrong
        try:
            settings = kind.model_validate(values)
            break
        except ValidationError as another:
            error = another
    try:
        check(settings)
    except UserError as refused:
        return [problem for problem in refused.problems if not _is_about(problem, left_out, values)]
    return []


def _known_part(values: Mapping[str, Any], place: tuple[int | str, ...]) -> Place:
    """Of the place of an error, what leads to a field that is there; pydantic names kinds of values behind.

    Elements of a list cannot be left out: with one of them, the list is.
    """
    inner: Any = values
    found = 0
    for depth, part in enumerate(place, 1):
        if isinstance(inner, Mapping) and part in inner:
            found = depth
        elif not (isinstance(inner, list) and isinstance(part, int) and part < len(inner)):
            break
        inner = inner[part]
    return place[:found]


def _without(values: Mapping[str, Any], paths: Iterable[Place]) -> dict[str, Any]:
    """A copy without the values at these paths."""
    rest = copy.deepcopy(dict(values))
    for path in sorted(paths, key=len, reverse=True):  # what is inside of another goes first
        inner: Any = rest
        for part in path[:-1]:
            inner = inner[part]
        del inner[path[-1]]
    return rest


def _is_about(problem: Problem, left_out: Iterable[Place], rest: Mapping[str, Any]) -> bool:
    """Whether a problem is that of a field that was left out, or of what is inside; or of the field of this
    name for all methods; or of a mapping that is empty without it; or how to mend it names the field.
    """
    named = re.findall(r"`(\w+)`", problem.fix)
    for *above, name in left_out:
        place = ".".join(map(str, [*above, name]))
        if name in (*named, problem.where) or f"{problem.where}.".startswith(f"{place}."):
            return True
        inner: Any = rest
        for part in above:
            inner = inner.get(part, {}) if isinstance(inner, Mapping) else inner[part]
        if not inner and problem.where.rpartition(".")[2] in above[-1:]:
            return True
    return False


def _problems(kind: type[BaseModel], error: ValidationError, where: str) -> list[Problem]:
    """Problems in the user's words; where a value is none of several kinds, one that names them all."""
    problems: dict[str, Problem] = {}
    for detail in error.errors():
        problem = _problem(kind, detail, where)
        if (earlier := problems.get(problem.where)) is not None:
            expected = f"{earlier.expected} or {problem.expected}"
            fix = _explained(kind, detail["loc"]) or problem.fix
            problem = replace(problem, expected=expected, fix=fix)
        problems[problem.where] = problem
    return list(problems.values())


def _problem(kind: type[BaseModel], detail: ErrorDetails, where: str) -> Problem:
    # In the place of a field that takes several kinds of values, pydantic names the kind: list[float].
    path = list(itertools.takewhile(lambda part: "[" not in part, map(str, detail["loc"])))
    place = ".".join(([where] if where else []) + path) or kind.__name__
    if detail["type"] == "extra_forbidden":
        known = _fields_at(kind, path[:-1])
        return Problem(place, "a known setting", repr(path[-1]), did_you_mean(path[-1], known))
    if detail["type"] == "missing":
        fix = f"Give `{path[-1]}`. {_explained(kind, detail['loc'])}".strip()
        return Problem(place, "a value", "none", fix)
    if detail["type"] in ("model_type", "dict_type"):
        return Problem(place, "a mapping", repr(detail["input"]), "Write `name: value` pairs.")
    expected = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected.removeprefix("List should have ").removesuffix(" after validation, not 0")
    fix = advice(detail) or _explained(kind, detail["loc"]) or f"Leave `{path[-1]}` out, or give {expected}."
    return Problem(place, expected, repr(detail["input"]), fix)


def advice(detail: ErrorDetails) -> str:
    """What to write instead of a value that pydantic refused; empty where only the setting can tell."""
    kind, limits, given = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "literal_error":
        near = did_you_mean(str(given), re.findall(r"'([^']*)'", limits["expected"])).partition("Known:")[0]
        return f"{near}Choose {limits['expected']}."
    if kind == "list_type":
        return (
            f"Write a list: [{given}]." if isinstance(given, str | int | float) else "Write a list: [a, b]."
        )
    for name, words in _LIMITS.items():
        if name in limits:
            return f"Give {words.format(limits[name])}."
    return next((words for prefix, words in _KINDS.items() if kind.startswith(prefix)), "")


_LIMITS = {
    "gt": "a number above {:g}",
    "ge": "{:g} or more",
    "lt": "a number below {:g}",
    "le": "{:g} or less",
}
_KINDS = {
    "int_": "Write a whole number, without quotes: 8.",
    "float_": "Write a number, without quotes: 0.001.",
    "finite_number": "Write a number that is neither infinite nor nan.",
    "bool_": "Write true or false.",
    "string_type": 'Write text, in quotes where it looks like a number: "1".',
}
"""What to write, by the beginning of pydantic's name for what is wrong."""


def _explained(kind: type[BaseModel], place: Iterable[int | str]) -> str:
    """What the setting at a place is for, as its documentation has it, and its default."""
    *path, name = [str(part) for part in place if isinstance(part, str) and "[" not in part] or [""]
    field = _settings_at(kind, path).model_fields.get(name)
    if field is None or not field.description:
        return ""
    default = field.get_default()
    known = field.is_required() or default is None or isinstance(default, BaseModel)
    return " ".join(field.description.split()) + ("" if known else f" Default: {default}.")


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The settings that exist at a place inside nested settings."""
    return list(_settings_at(kind, path).model_fields)


def _settings_at(kind: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        kind = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), kind)
    return kind
