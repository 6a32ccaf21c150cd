"""Where a sublayer of a block (attention, feed-forward network) begins and ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tunestack.bases.layout import LAYOUTS
from tunestack.errors import Problems


def sublayers(
    model_type: str, linears: Sequence[str], kinds: Iterable[str], where: str, problems: Problems
) -> dict[str, str]:
    """The linear layers that make the sublayers' outputs, each with one that gets the same sublayer's input.

    linears: full names of the model's linear layers. kinds: "attention", "ffn". Notes a problem where the
    architecture is not known, or is not built as its layout says.
    """
    row = LAYOUTS.get(model_type)
    found: dict[str, str] = {}
    if row is not None:
        ends = {
            "attention": (row.attention_in or row.query, row.attention_output),
            "ffn": (row.ffn_in, row.ffn_out),
        }
        for kind in kinds:
            found |= _pairs(linears, *ends[kind])
    if not found:
        problems.add(
            f"{where}.target_modules",
            expected="names of linear layers (where this model's sublayers end is not known)",
            found=f"none given, for a model of type {model_type!r}",
            fix=f"Choose from: {', '.join(sorted({name.rpartition('.')[2] for name in linears}))}.",
        )
    return found


def _pairs(linears: Sequence[str], inlet: str, outlet: str) -> dict[str, str]:
    """Every outlet with its inlet: the outlet that shares most of its name, the shortest of those."""
    inlets = [name for name in linears if _ends(name, inlet) or _ends(name, f"{inlet}_0")]  # T5's gated wi_0
    outlets = [name for name in linears if _ends(name, outlet)]
    pairs: dict[str, str] = {}
    for name in inlets if outlets else []:
        nearest = max(outlets, key=lambda other: (_shared(name, other), -len(other)))
        pairs.setdefault(nearest, name)
    return pairs


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _shared(one: str, other: str) -> int:
    """How many leading parts two names have in common."""
    count = 0
    for left, right in zip(one.split("."), other.split("."), strict=False):
        if left != right:
            break
        count += 1
    return count
