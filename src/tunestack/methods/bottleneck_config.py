"""The config of bottleneck adapters, which PEFT lacks: what the stack and the PEFT plug-in share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftConfig, PeftType
from torch import Tensor, nn
from transformers.activations import ACT2FN

from tunestack.errors import Problem, Problems, UserError, did_you_mean

NAME = "BOTTLENECK"
Sublayer = Literal["attention", "ffn"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "ffn")

PAPERS: dict[str, dict[str, Any]] = {
    "series": {
        "reduction_factor": 16,
        "after": list(SUBLAYERS),
        "non_linearity": "swish",
        "scaling": 1.0,
        "init_weights": "bert",
    },
    "parallel": {
        "reduction_factor": 2,
        "after": ["ffn"],
        "non_linearity": "relu",
        "scaling": 4.0,
        "init_weights": "mam_adapter",
    },
}
"""What a placement has where nothing else is given: Houlsby et al.'s adapters and He et al.'s parallel ones,
with the sizes and initial weights of AdapterHub's `double_seq_bn` and `par_bn`."""


def _peft_type() -> PeftType:
    """PEFT's name for this family, which its enumeration of methods gets at run time."""
    members: Any = PeftType
    if NAME not in members.__members__:
        member: Any = str.__new__(PeftType, NAME)
        member._name_ = member._value_ = NAME
        member.__objclass__, member._sort_order_ = PeftType, len(members)
        members._member_map_[NAME] = members._value2member_map_[NAME] = member
        members._member_names_.append(NAME)
        type.__setattr__(PeftType, NAME, member)
    return PeftType(NAME)


PEFT_TYPE = _peft_type()


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters: A(x) = up(f(down(x))), in series or in parallel with what the base computes.

    series: y + s A(y), with y the sublayer's output before the residual is added (Houlsby et al., 2019,
    arXiv:1902.00751; Pfeiffer et al., 2020, arXiv:2005.00247 with `after: ffn`). parallel:
    sublayer(x) + s A(x) (He et al., 2021, arXiv:2110.04366). Fields left out are those of the placement's
    paper (`PAPERS`).

    bottleneck_size: features between down and up; or reduction_factor: by how much they are fewer than the
    hidden ones. non_linearity: f, by its name in transformers. after: which sublayers have an adapter.
    scaling: s, a number or "learned" (from 1). adapter_dropout: of the adapter's output. init_weights:
    "bert", N(0, 0.02), or "mam_adapter", up zero, which starts as the base. target_modules: single linear
    layers instead of sublayers, as LLM-Adapters has it (Hu et al., 2023, arXiv:2304.01933): y = W x.
    modules_to_save: trained and saved whole.

    Raises UserError for values that cannot work.
    """

    bottleneck_size: int | None = None
    reduction_factor: float | None = None
    non_linearity: str | None = None
    placement: Literal["series", "parallel"] = "series"
    after: Sublayer | list[Sublayer] | None = None
    scaling: float | Literal["learned"] | None = None
    adapter_dropout: float = 0.0
    init_weights: Literal["bert", "mam_adapter"] | None = None
    target_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PEFT_TYPE
        if self.placement not in PAPERS:
            fix = did_you_mean(str(self.placement), PAPERS)
            raise UserError(Problem("bottleneck.placement", "series or parallel", repr(self.placement), fix))
        problems = Problems()
        self._one_of_two(problems)
        for name, value in PAPERS[self.placement].items():
            pair = {"reduction_factor": self.bottleneck_size, "after": self.target_modules}
            if getattr(self, name) is None and pair.get(name) is None:
                setattr(self, name, value)
        if isinstance(self.after, str):
            self.after = [self.after]
        self._check(problems)
        problems.raise_if_any()

    def size(self, width: int) -> int:
        """Features between down and up, for an input of `width` features."""
        if self.bottleneck_size is not None:
            return self.bottleneck_size
        assert self.reduction_factor is not None
        return int(width // self.reduction_factor)

    def activation(self) -> nn.Module:
        """f."""
        module: nn.Module = ACT2FN[self.non_linearity]
        return module

    def _one_of_two(self, problems: Problems) -> None:
        """Fields of which one makes the other meaningless."""
        for one, other in (("bottleneck_size", "reduction_factor"), ("target_modules", "after")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                problems.add(
                    f"{self.placement}.{one}",
                    expected=f"either {one} or {other}",
                    found=f"{one} {getattr(self, one)!r} and {other} {getattr(self, other)!r}",
                    fix="Leave one of them out.",
                )

    def _check(self, problems: Problems) -> None:
        def check(name: str, good: bool, expected: str, fix: str) -> None:
            if not good:
                found = repr(getattr(self, name))
                problems.add(f"{self.placement}.{name}", expected=expected, found=found, fix=fix)

        size, factor = self.bottleneck_size, self.reduction_factor
        check(
            "bottleneck_size",
            size is None or _is_count(size),
            "a whole number, at least 1",
            "16 to 256 are usual.",
        )
        check(
            "reduction_factor",
            factor is None or _is_above(factor, 0),
            "a number above 0",
            "2 to 64 are usual.",
        )
        check("adapter_dropout", 0 <= self.adapter_dropout < 1, "0 <= p < 1", "0 to 0.2 are usual.")
        learned = self.scaling == "learned"
        check("scaling", learned or _is_number(self.scaling), "a number or learned", "1 and 4 are usual.")
        kinds = ("bert", "mam_adapter")
        check("init_weights", self.init_weights in kinds, " or ".join(kinds), "Choose one of these.")
        after = self.after or []
        good = self.target_modules is not None or (after and set(after) <= set(SUBLAYERS))
        check("after", bool(good), "attention, ffn, or a list of both", "Choose one of these.")
        name = str(self.non_linearity)
        known = name in ACT2FN and not list(ACT2FN[name].parameters())
        check(
            "non_linearity", known, "a function of transformers without weights", did_you_mean(name, ACT2FN)
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_above(value: Any, limit: float) -> bool:
    return _is_number(value) and value > limit


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@torch.no_grad()
def initialise(
    config: BottleneckConfig, down: Tensor, up: Tensor, generator: torch.Generator | None = None
) -> None:
    """Draw down [size, in] and up [out, size] as `init_weights` says; biases are zero from the start.

    "mam_adapter" draws down like LoRA's A: kaiming_uniform(a=sqrt 5).
    """
    if config.init_weights == "bert":
        nn.init.normal_(down, std=0.02, generator=generator)
        nn.init.normal_(up, std=0.02, generator=generator)
    else:
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(up)
