"""The families that the contract suite tests, one line each. A new family joins with its line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tunestack.methods.base import Method
from tunestack.methods.registry import METHODS


@dataclass(frozen=True)
class Family:
    """A method and fields with which it fits a tiny model, in two sizes for a mixed stack.

    other: what the second size has otherwise. What a family promises (stacks, starts_as_base, merges) its
    method says itself.
    """

    name: str
    fields: dict[str, Any]
    other: dict[str, Any]

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def sizes(self) -> list[dict[str, Any]]:
        return [self.fields, {**self.fields, **self.other}] if self.method.stacks else [self.fields]


FAMILIES = [
    Family("lora", {"r": 2}, {"r": 5, "target_modules": "all-linear", "bias": "all"}),
    Family("series", {"bottleneck_size": 3}, {"bottleneck_size": 6, "after": "ffn", "scaling": "learned"}),
    Family("parallel", {"bottleneck_size": 3, "non_linearity": "gelu"}, {"after": ["attention", "ffn"]}),
    Family("ia3", {}, {"init_ia3_weights": False}),
    Family("bitfit", {}, {}),
    Family("layernorm", {}, {}),
    Family("prefix", {"num_virtual_tokens": 2, "encoder_hidden_size": 5}, {"num_virtual_tokens": 5}),
    Family("p-tuning-v2", {"num_virtual_tokens": 3}, {"num_virtual_tokens": 1}),
    Family("prompt", {"num_virtual_tokens": 3}, {"num_virtual_tokens": 6}),
    Family("p-tuning", {"num_virtual_tokens": 2, "encoder_hidden_size": 5}, {"num_virtual_tokens": 4}),
    Family("full", {}, {}),
    Family("adalora", {"init_r": 4, "target_r": 2}, {}),
    Family("vera", {"r": 3}, {}),
    Family("loha", {"r": 2}, {}),
]

PEFT_CANNOT = {
    *(
        (kind, name)
        for kind in ("distilbert", "modernbert", "t5", "mt5")
        for name in ("prefix", "p-tuning-v2")
    ),
    *((kind, name) for kind in ("t5", "mt5") for name in ("prompt", "p-tuning")),
}
"""Where PEFT itself cannot use what it says it can, and ours works: prefixes want a cache there, and T5's
classifier takes no embeddings."""
