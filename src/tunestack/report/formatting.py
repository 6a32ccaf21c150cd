"""Numbers as people read them: rounded sensibly, in human units, with a true minus sign."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

from tunestack.results import Interval

MISSING = "–"
MINUS = "\N{MINUS SIGN}"

_METRIC_NAMES = {
    "f1": "F1",
    "f1_macro": "F1 (macro)",
    "f1_samples": "F1 (a text)",
    "roc_auc_macro": "ROC-AUC (macro)",
    "f1_micro": "F1 (micro)",
    "f1_weighted": "F1 (weighted)",
    "mcc": "MCC",
    "roc_auc": "ROC-AUC",
    "neg_root_mean_squared_error": "Negative RMSE",
}


def metric_name(metric: str) -> str:
    """How people write a metric: ``f1`` is F1, ``precision_macro`` is Precision (macro)."""
    if metric in _METRIC_NAMES:
        return _METRIC_NAMES[metric]
    name, _, average = metric.partition("_")
    if average in ("macro", "micro", "weighted"):
        return f"{name.capitalize()} ({average})"
    text = metric.replace("_", " ")
    return text[:1].upper() + text[1:]


def score(value: float | None) -> str:
    """A metric's value, to three decimals.

    >>> score(0.80249)
    '0.802'
    """
    return MISSING if value is None else f"{_no_negative_zero(value, 3):.3f}".replace("-", MINUS)


def spread(std: float) -> str:
    """A standard deviation behind its mean; empty where nothing is spread: of one seed, for instance.

    >>> spread(0.0041), spread(0.0)
    (' ± 0.004', '')
    """
    return f" ± {score(std)}" if std else ""


def signed(value: float) -> str:
    """A difference of metrics, with its sign.

    >>> signed(0.0121), signed(0.0)
    ('+0.012', '0.000')
    """
    text = score(value)
    return f"+{text}" if value > 0 and text != "0.000" else text


def interval(bounds: Interval | None, *, sign: bool = False) -> str:
    """An interval in brackets: ``[0.781, 0.823]``."""
    if bounds is None:
        return ""
    show = signed if sign else score
    return f"[{show(bounds.low)}, {show(bounds.high)}]"


def p_value(value: float) -> str:
    """A p-value as papers print it.

    >>> p_value(0.0004), p_value(0.04361), p_value(1.0)
    ('p < 0.001', 'p = 0.044', 'p = 1.000')
    """
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def duration(seconds: float | None) -> str:
    """A time span, in one or two units.

    >>> duration(0.0042), duration(4.24), duration(59.7), duration(200), duration(7500)
    ('4.2 ms', '4.2 s', '1 min', '3 min 20 s', '2 h 5 min')
    """
    if seconds is None:
        return MISSING
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:
        return f"{_significant(seconds * 1000, 2)} ms"
    if seconds < 9.95:
        return f"{_trim(f'{seconds:.1f}')} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two_units(whole, 60, "min", "s")
    minutes = round(whole / 60)
    if minutes < 48 * 60:
        return _two_units(minutes, 60, "h", "min")
    return f"{_significant(seconds / 86400, 3)} days"


def size(count: float | None) -> str:
    """Bytes, in decimal units.

    >>> size(0), size(999), size(22_713_216), size(3.2e9)
    ('0 B', '999 B', '22.7 MB', '3.2 GB')
    """
    return MISSING if count is None else _scaled(count, ("B", "kB", "MB", "GB", "TB", "PB"))


def quantity(count: float | None) -> str:
    """A large count, to three digits.

    >>> quantity(0), quantity(147_456), quantity(7_111_528_448)
    ('0', '147 k', '7.11 B')
    """
    return MISSING if count is None else _scaled(count, ("", "k", "M", "B", "T")).rstrip()


def rate(per_second: float | None) -> str:
    """Examples a second.

    >>> rate(1240.4), rate(3.25), rate(2.1e6)
    ('1,240 / s', '3.2 / s', '2.1 M / s')
    """
    if per_second is None:
        return MISSING
    return f"{quantity(per_second) if per_second >= 1e5 else _significant(per_second, 2)} / s"


def share(value: float) -> str:
    """A proportion as a percentage; never rounded to 0% or 100% unless it is.

    >>> share(0.913), share(0.0), share(0.001), share(0.9999)
    ('91%', '0%', '<1%', '>99%')
    """
    if 0 < value < 0.005:
        return "<1%"
    if 0.995 <= value < 1:
        return ">99%"
    return f"{value:.0%}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """A counted noun.

    >>> count(1, "candidate"), count(1523, "row")
    ('1 candidate', '1,523 rows')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def parameter(value: Any) -> str:
    """A hyper-parameter's value, floats to three digits.

    >>> parameter(0.00029889), parameter(0.05), parameter(8), parameter(True), parameter(["query", "value"])
    ('2.99e-4', '0.05', '8', 'true', 'query, value')
    >>> parameter(None), parameter([])
    ('none', '[]')
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if 0 < abs(value) < 0.01 or abs(value) >= 1e6:
            digits, _, power = f"{value:.2e}".partition("e")
            return f"{digits.rstrip('0').removesuffix('.')}e{int(power)}" if power else digits
        return f"{value:.3g}"
    if value in ([], (), {}):
        return "{}" if isinstance(value, dict) else "[]"
    if isinstance(value, list | tuple):
        return ", ".join(map(parameter, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {parameter(inner)}" for key, inner in value.items())
    return str(value)


def parameters(values: Mapping[str, Any]) -> str:
    """Hyper-parameters on one line.

    >>> parameters({"r": 8, "learning_rate": 3e-4})
    'r=8, learning_rate=3e-4'
    """
    return ", ".join(f"{name}={parameter(value)}" for name, value in values.items())


def moment(created: str) -> str:
    """When a run was made, if it is an ISO time; anything else is shown as it stands.

    >>> moment("2026-11-21T09:47:03+00:00"), moment("yesterday")
    ('21 November 2026, 09:47 UTC', 'yesterday')
    """
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M} {time:%Z}".strip()


def shortened(text: str, length: int) -> str:
    """The text, cut to `length` characters with an ellipsis."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def label(text: str) -> Markup:
    """A class label, cut to 24 characters, that may break after an underscore or a hyphen."""
    return Markup(re.sub(r"(?<=[_-])", "<wbr>", str(escape(shortened(text, 24)))))


def _two_units(value: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(value, base)
    return f"{whole} {large}" + (f" {rest} {small}" if rest else "")


def _scaled(value: float, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if value < 999.5:
            return f"{_significant(value, 3)} {unit}"
        value /= 1000
    return f"{_significant(value, 3)} {units[-1]}"


def _significant(value: float, digits: int) -> str:
    if value >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _trim(text: str) -> str:
    return text.removesuffix(".0")


def _no_negative_zero(value: float, digits: int) -> float:
    return round(value, digits) + 0.0
