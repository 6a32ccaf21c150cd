"""Reading settings: YAML in, validated settings out, every problem named in the user's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tunestack.errors import Problem, UserError, did_you_mean

S = TypeVar("S", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text; settings are full of such numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError: no such file, malformed, not a mapping."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # a SafeLoader
    except FileNotFoundError:
        near = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(
            Problem(str(path), "a configuration file", "no such file", did_you_mean(path.name, near))
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        found = " ".join(str(error).split())
        raise UserError(Problem(str(path), "a YAML file", found, "Correct it there.")) from error
    if not isinstance(value, dict):
        raise UserError(
            Problem(
                str(path),
                "a mapping with `data` and `methods`",
                type(value).__name__,
                "See the recipes for examples.",
            )
        )
    return value


def validated(kind: type[S], values: Mapping[str, Any], where: str = "") -> S:
    """Settings from plain values. Raises one UserError with every problem, nearest field names suggested."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_problem(kind, detail, where) for detail in error.errors()]
        raise UserError(*problems) from error


def _problem(kind: type[BaseModel], detail: ErrorDetails, where: str) -> Problem:
    path = [str(part) for part in detail["loc"]]
    place = ".".join(([where] if where else []) + path) or kind.__name__
    if detail["type"] == "extra_forbidden":
        known = _fields_at(kind, path[:-1])
        return Problem(place, "a known setting", repr(path[-1]), did_you_mean(path[-1], known))
    if detail["type"] == "missing":
        return Problem(place, "a value", "none", f"Give `{path[-1]}`.")
    expected = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return Problem(place, expected, repr(detail["input"]), "Correct it.")


def _fields_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The settings that exist at a place inside nested settings."""
    for part in path:
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        kind = next((a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)), kind)
    return list(kind.model_fields)
