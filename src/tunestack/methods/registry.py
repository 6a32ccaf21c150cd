"""All methods, by name. A new family is one file and one line here."""

from __future__ import annotations

from tunestack.errors import Problem, UserError, did_you_mean
from tunestack.methods.base import Method
from tunestack.methods.bitfit import BitFit
from tunestack.methods.bottleneck import Parallel, Series
from tunestack.methods.full import Full
from tunestack.methods.ia3 import Ia3
from tunestack.methods.layernorm import LayerNorm
from tunestack.methods.lora import Lora
from tunestack.methods.p_tuning import PTuning
from tunestack.methods.prefix import Prefix, PTuningV2
from tunestack.methods.prompt import PromptTuning
from tunestack.methods.through_peft import families

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Lora(),
        Series(),
        Parallel(),
        Ia3(),
        BitFit(),
        LayerNorm(),
        Prefix(),
        PTuningV2(),
        PromptTuning(),
        PTuning(),
        Full(),
    )
}
METHODS |= {method.name: method for method in families(METHODS.values())}


def find_method(name: str) -> Method:
    """The method of that name. Raises UserError with the nearest names for an unknown one."""
    if name not in METHODS:
        raise UserError(Problem("method", "a known method", repr(name), did_you_mean(name, METHODS)))
    return METHODS[name]
