"""Sweep files of Weights & Biases: the same search in the settings of a sweep."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from tunestack.config import TrainingConfig
from tunestack.entries import own_fields
from tunestack.errors import Problem, Problems, UserError, did_you_mean
from tunestack.methods.registry import METHODS
from tunestack.search.config import Dimension
from tunestack.search.names import usual_name
from tunestack.settings import overlay

SAMPLERS = {"bayes": "bayes", "random": "random", "grid": "grid"}
READ = ("method", "metric", "parameters", "early_terminate", "run_cap")
WITHOUT_EFFECT = (
    "apiVersion",
    "command",
    "controller",
    "description",
    "entity",
    "image_uri",
    "job",
    "kind",
    "name",
    "program",
    "project",
    "scheduler",
)
"""What their schema allows besides, and what means nothing here."""
METRICS = {
    "f1_score": "f1",
    "macro_f1": "f1_macro",
    "micro_f1": "f1_micro",
    "acc": "accuracy",
    "accuracy_score": "accuracy",
    "matthews_correlation": "mcc",
    "auc": "roc_auc",
    "roc_auc_score": "roc_auc",
}
EXPONENTS = ("log_uniform", "inv_log_uniform", "q_log_uniform")
"""Distributions whose min and max are exponents; often written with the values themselves."""
LARGEST_EXPONENT = 100
FIRST_PART = re.compile(r"^(eval|val|valid|validation|dev)[/_.]")


def is_wandb_file(values: Mapping[str, Any]) -> bool:
    """Whether a YAML file is a sweep of Weights & Biases."""
    method = values.get("method")
    return isinstance(method, str) and "methods" not in values and method not in METHODS


def read_wandb_file(
    values: Mapping[str, Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings of a sweep, and what in the file has no effect, as sentences.

    given: what was given beside the file, which stands above it: data, base and methods always, for such
    files name none. Raises UserError with everything that cannot be read.
    """
    problems = Problems()
    known = [*READ, *WITHOUT_EFFECT]
    for key in [key for key in values if key not in known]:
        fix = did_you_mean(str(key), known)
        problems.add(str(key), expected="a key of a sweep file", found=repr(key), fix=fix)
    ignored = [key for key in values if key in WITHOUT_EFFECT]
    settings: dict[str, Any] = {"sampler": _sampler(values, problems), "pruner": "none"}
    own = _own_fields(given.get("methods"))
    fixed, searched = _parameters(values.get("parameters"), own, problems)
    if "early_terminate" in values:
        settings["pruner"] = "hyperband"
        ignored += _early_terminate(values["early_terminate"], problems)
    if given.get("metric") is not None:
        ignored += ["metric"] if "metric" in values else []
    elif "metric" in values:
        settings["metric"], without_effect = _metric(values["metric"], problems)
        ignored += without_effect
    sizes = [dimension.size for dimension in searched.values()]
    if "run_cap" in values:
        settings["trials"] = values["run_cap"]
    elif settings["sampler"] == "grid" and None not in sizes:
        settings["trials"] = math.prod(size for size in sizes if size is not None)
    problems.raise_if_any()
    if "seed" in fixed:
        settings["seed"] = fixed.pop("seed")
    training = {name: value for name, value in fixed.items() if name in TrainingConfig.model_fields}
    rest = {name: value for name, value in fixed.items() if name not in training}
    settings |= {"training": training, "search": {n: d.model_dump() for n, d in searched.items()}}
    settings = overlay(settings, given)
    if rest and isinstance(settings.get("methods"), list):
        settings["methods"] = [_with_fields(entry, rest) for entry in settings["methods"]]
    notes = (f"Of the sweep file, this has no effect here: {', '.join(ignored)}.",) if ignored else ()
    return settings, notes


def _sampler(values: Mapping[str, Any], problems: Problems) -> str:
    method = values.get("method")
    if method not in SAMPLERS:
        problems.add(
            "method", expected="bayes, random or grid", found=repr(method), fix="Choose one of these."
        )
    return SAMPLERS.get(str(method), "random")


def _metric(metric: Any, problems: Problems) -> tuple[str, list[str]]:
    """The metric's name here, and keys of it without effect. Theirs are minimised unless a goal is given."""
    if not isinstance(metric, Mapping) or not isinstance(metric.get("name"), str):
        problems.add(
            "metric", expected="a metric", found=repr(metric), fix="Give one, for example --metric f1."
        )
        return "", []
    name = FIRST_PART.sub("", metric["name"].lower().replace("-", "_"))
    if metric.get("goal", "minimize") != "maximize":
        found = f"{metric['name']} to be minimised" + ("" if "goal" in metric else ", as without a `goal`")
        fix = "Write goal: maximize, with such a metric, or give one: --metric f1."
        problems.add("metric", expected="a metric that is better when higher", found=found, fix=fix)
    return METRICS.get(name, name), [f"metric.{key}" for key in metric if key not in ("name", "goal")]


def _early_terminate(value: Any, problems: Problems) -> list[str]:
    """Keys without effect: rungs follow from the epochs here."""
    if not isinstance(value, Mapping) or value.get("type") != "hyperband":
        found = repr(value.get("type")) if isinstance(value, Mapping) else repr(value)
        problems.add("early_terminate.type", expected="hyperband", found=found, fix="Write type: hyperband.")
        return []
    return [f"early_terminate.{key}" for key in value if key != "type"]


def _own_fields(entries: Any) -> list[set[str]]:
    """The fields of each method that is searched; what is no known method is refused later."""
    named = [entry.get("method") if isinstance(entry, Mapping) else entry for entry in entries or []]
    return [own_fields(METHODS[name]) for name in named if isinstance(name, str) and name in METHODS]


def _parameters(
    values: Any, own: list[set[str]], problems: Problems
) -> tuple[dict[str, Any], dict[str, Dimension]]:
    """What is fixed and what is searched, by the names of the fields here. own: those of each method."""
    fixed: dict[str, Any] = {}
    searched: dict[str, Dimension] = {}
    origin: dict[str, str] = {}
    if not isinstance(values, Mapping) or not values:
        problems.add(
            "parameters", expected="what is searched", found=repr(values), fix="Name some parameters."
        )
        return fixed, searched
    for name, parameter in values.items():
        field, where = usual_name(str(name), own), f"parameters.{name}"
        if field in origin:
            found = f"{origin[field]} and {name}, which are both {field}"
            problems.add(where, expected="every field once", found=found, fix="Remove one.")
        origin[field] = name
        with problems.collecting():
            kind, value = _parameter(parameter, where)
            if kind == "fixed":
                fixed[field] = value
            else:
                searched[field] = _dimension(value, where)
    if "seed" in searched:
        fix = "Give one `value`; `confirm` trains the best trials with several seeds."
        problems.add("parameters.seed", expected="one seed for all trials", found="several", fix=fix)
    return fixed, searched


def _dimension(value: Any, where: str) -> Dimension:
    try:
        return Dimension.model_validate(value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(
            Problem(where, expected, repr(value), "Give `values`, or `min` and `max`.")
        ) from error


def _parameter(parameter: Any, where: str) -> tuple[str, Any]:
    """Whether a parameter is fixed or searched, and its value or what it is searched over."""

    def wrong(expected: str, fix: str) -> UserError:
        return UserError(Problem(where, expected, repr(parameter), fix))

    if not isinstance(parameter, Mapping):
        raise wrong("a mapping with value, values, or min and max", "Write {value: ...} for a single one.")
    if "parameters" in parameter:
        raise wrong("fields side by side", "Fields of methods and of training are not nested: move them up.")
    kind = parameter.get("distribution") or _implied(parameter)
    own = _keys(kind)
    if own and (others := [key for key in parameter if key not in own]):
        stated = "" if "distribution" in parameter else ", which this is without a `distribution`"
        raise wrong(f"nothing but {', '.join(own)} in {kind}{stated}", did_you_mean(str(others[0]), own))
    if kind == "constant" and "value" in parameter:
        return "fixed", parameter["value"]
    if kind in ("categorical", "categorical_w_probabilities") and isinstance(parameter.get("values"), list):
        probabilities = parameter.get("probabilities") or []
        if not isinstance(probabilities, list) or any(p != probabilities[0] for p in probabilities):
            raise wrong("values that are equally probable", "Leave out `probabilities`.")
        values = parameter["values"]
        return ("fixed", values[0]) if len(values) == 1 else ("searched", values)
    if kind not in RANGES:
        known = ["constant", "categorical", *RANGES]
        fix = f"Give min and max, or a list of values. Distributions: {', '.join(known)}."
        raise wrong("a range or a list", fix)
    low, high, q = (parameter.get(key, default) for key, default in (("min", None), ("max", None), ("q", 1)))
    if not (_is_number(low) and _is_number(high) and _is_number(q) and q > 0):
        raise wrong("numbers as min and max, and q above 0", "Write plain numbers there.")
    if kind in EXPONENTS and (0 < low <= high <= 1 or high > LARGEST_EXPONENT):
        fix = f"Write distribution: {kind}_values, which takes the values themselves."
        raise wrong(f"exponents of e as min and max of {kind}", fix)
    return "searched", RANGES[kind](low, high, q)


def _keys(kind: Any) -> list[str]:
    """What a parameter of a distribution may say; nothing of one that is not known."""
    if kind == "constant":
        return ["distribution", "value"]
    if kind in ("categorical", "categorical_w_probabilities"):
        return ["distribution", "values", "probabilities"]
    steps = ["q"] if str(kind).startswith("q_") else []
    return ["distribution", "min", "max", *steps] if kind in RANGES else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _implied(parameter: Mapping[str, Any]) -> str:
    """The distribution of a parameter that names none."""
    if "value" in parameter:
        return "constant"
    if "values" in parameter:
        return "categorical"
    if "min" in parameter and "max" in parameter:
        whole = isinstance(parameter["min"], int) and isinstance(parameter["max"], int)
        return "int_uniform" if whole else "uniform"
    return "none"


def _steps(low: float, high: float, q: float, log: bool = False) -> dict[str, Any]:
    """The multiples of q between two numbers; in decimals, for which 0.3 / 0.1 is 3."""
    unit = Decimal(repr(q))
    first, last = math.ceil(Decimal(repr(low)) / unit), math.floor(Decimal(repr(high)) / unit)
    kind = int if isinstance(q, int) else float
    return {"min": kind(first * unit), "max": kind(last * unit), "step": q, "log": log}


def _exponential(exponent: float) -> float:
    """e to some power; an exponent that was written as log(256) means 256, not 255.99999999999994."""
    return float(f"{math.exp(exponent):.12g}")


def _logarithmic(low: float, high: float, q: float) -> dict[str, Any]:
    return {"min": float(low), "max": float(high), "log": True}


RANGES: dict[str, Callable[[Any, Any, Any], dict[str, Any]]] = {
    "int_uniform": lambda low, high, q: {"min": low, "max": high},
    "uniform": lambda low, high, q: {"min": float(low), "max": float(high)},
    "q_uniform": _steps,
    "log_uniform_values": _logarithmic,
    # The logarithm of 1/x is uniform if that of x is: the same distribution.
    "inv_log_uniform_values": _logarithmic,
    "q_log_uniform_values": lambda low, high, q: _steps(low, high, q, log=True),
    "log_uniform": lambda low, high, q: _logarithmic(_exponential(low), _exponential(high), q),
    "inv_log_uniform": lambda low, high, q: _logarithmic(_exponential(-high), _exponential(-low), q),
    "q_log_uniform": lambda low, high, q: _steps(_exponential(low), _exponential(high), q, log=True),
}


def _with_fields(entry: Any, fields: Mapping[str, Any]) -> Any:
    """An entry of `methods` with fields that the file fixes, where it does not give its own."""
    if isinstance(entry, str):
        return {"method": entry, **fields}
    return {**fields, **entry} if isinstance(entry, Mapping) else entry
