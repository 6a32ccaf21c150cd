"""LoRA: low-rank updates of linear layers (Hu et al., 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunestack.bases.base import head_modules
from tunestack.bases.layout import default_targets
from tunestack.errors import Problems
from tunestack.methods.base import (
    PEFT_PREFIX,
    Adapter,
    Method,
    attach_copies,
    check_whole_modules,
    whole_modules,
)
from tunestack.methods.sites import Host, Member, Part, keep_mask, stable_hash
from tunestack.methods.targets import linear_size, target_names

_SUPPORTED = {
    "r",
    "target_modules",
    "exclude_modules",
    "lora_alpha",
    "lora_dropout",
    "fan_in_fan_out",
    "bias",
    "use_rslora",
    "modules_to_save",
    "init_lora_weights",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "task_type",
    "inference_mode",
    "base_model_name_or_path",
    "peft_type",
    "peft_version",
    "auto_mapping",
    "revision",
    "runtime_config",
}


class LoraPart(Part):
    """One slot's update of one linear: y + s B A dropout(x), with A [r, in], B [out, r], both fp32.

    s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora` (Kalajdzievski, 2023).
    """

    def __init__(self, in_features: int, out_features: int, r: int, scaling: float, p: float) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(r, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, r))
        self.scaling = scaling
        self.p = p

    def initialise(self, kind: bool | str, seed: int) -> None:
        """As PEFT: A kaiming_uniform(a=sqrt 5) or, "gaussian", N(0, 1/r); B zero, with False random."""
        generator = torch.Generator().manual_seed(seed)
        if kind == "gaussian":
            nn.init.normal_(self.A, std=1 / self.A.shape[0], generator=generator)
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), generator=generator)
        if kind is False:
            nn.init.kaiming_uniform_(self.B, a=math.sqrt(5), generator=generator)

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Add every slot's update to its own rows of y, in place."""
        weights = [weight for member in members for weight in (member.part.A, member.part.B)]
        updated: Tensor = _AddUpdates.apply(y.contiguous(), x.contiguous(), members, *weights)  # type: ignore[no-untyped-call]
        return updated


class _AddUpdates(torch.autograd.Function):
    """Adds s B A x to y slot by slot; saves x once and never forms an update of y's size.

    y comes first: a linear's output is a view, and autograd takes the first input of a function that writes
    into a view to be that view.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, members: Sequence[Member], *weights: Tensor) -> Tensor:
        ctx.members = members
        ctx.whole = sum(m.span.stop - m.span.start for m in members) == x.shape[0]
        saved: list[Tensor] = [x]
        for index, member in enumerate(members):
            a, b = (weight.to(x.dtype) for weight in weights[2 * index : 2 * index + 2])
            rows, keep = _input(x, member)
            low = torch.mm(rows, a.t())
            _rows(y, member).addmm_(low, b.t(), alpha=member.part.scaling)
            saved += [a, b, low] + ([] if keep is None else [keep])
        ctx.save_for_backward(*saved)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        x, *saved = ctx.saved_tensors
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[1]:
            grad_x = torch.empty_like(x) if ctx.whole else torch.zeros_like(x)
        tensors = iter(saved)
        grad_weights: list[Tensor | None] = []
        for member in ctx.members:
            a, b, low = next(tensors), next(tensors), next(tensors)
            keep = next(tensors) if _drops(member) else None
            rows = _rows(x, member) if keep is None else _rows(x, member) * keep
            upper = _rows(grad, member)
            scaling = member.part.scaling
            grad_low = torch.mm(upper, b).mul_(scaling)
            grad_weights += [torch.mm(grad_low.t(), rows), torch.mm(upper.t(), low).mul_(scaling)]
            if grad_x is not None:
                torch.mm(grad_low, a, out=_rows(grad_x, member))
                if keep is not None:
                    _rows(grad_x, member).mul_(keep)
        return (grad, grad_x, None, *grad_weights)


def _drops(member: Member) -> bool:
    return member.span.noise is not None and member.part.p > 0


def _rows(x: Tensor, member: Member) -> Tensor:
    """The member's rows as a matrix [rows x tokens, features]; a view of a contiguous x."""
    return x[member.span.start : member.span.stop].view(-1, x.shape[-1])


def _input(x: Tensor, member: Member) -> tuple[Tensor, Tensor | None]:
    """The member's rows after dropout, and the mask (0 or 1 / (1 - p)) or None."""
    rows = _rows(x, member)
    if not _drops(member):
        return rows, None
    own = x[member.span.start : member.span.stop]
    keep = keep_mask(own, member.part.p, member.span, member.site).view(rows.shape)
    keep.mul_(1 / (1 - member.part.p))
    return rows * keep, keep


class BiasPart(Part):
    """One slot's own bias of a module that adds one to its output: y + (b_slot - b_base)."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().float().clone())
        self.base_bias = bias.detach()

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Shift the members' rows of y."""
        shifts, done = [], 0
        for member in members:
            span, part = member.span, member.part
            shift = (part.bias - part.base_bias.float()).to(y.dtype)
            shifts += [shift.new_zeros(span.start - done, shift.numel())]
            shifts += [shift.expand(span.stop - span.start, -1)]
            done = span.stop
        shifts += [y.new_zeros(y.shape[0] - done, y.shape[-1])]
        return y + torch.cat(shifts).view(y.shape[0], *[1] * (y.ndim - 2), y.shape[-1])


class Lora(Method):
    """LoRA with `peft.LoraConfig`; W0 x + (lora_alpha / r) B A x."""

    name = "lora"
    summary = "low-rank updates of linear layers"
    merges = True
    config_class = LoraConfig

    def defaults(self, model_type: str) -> dict[str, Any]:
        """r 8 on query and value (Hu et al.), alpha 16, as the articles that compare LoRA use them."""
        return {"r": 8, "lora_alpha": 16, "target_modules": default_targets(model_type)}

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse what this stacked LoRA does not do, an impossible rank, targets that match nothing."""
        assert isinstance(config, LoraConfig)
        problems = Problems()
        standard = LoraConfig()
        for field in set(config.__dataclass_fields__) - _SUPPORTED:
            if getattr(config, field) != getattr(standard, field):
                problems.add(
                    f"lora.{field}",
                    expected=f"its default {getattr(standard, field)!r}",
                    found=repr(getattr(config, field)),
                    fix="This variant is not available here: leave the field out.",
                )
        if config.init_lora_weights not in (True, False, "gaussian"):
            problems.add(
                "lora.init_lora_weights",
                expected="true, false or gaussian",
                found=repr(config.init_lora_weights),
                fix="Choose one of these.",
            )
        if not 0 <= config.lora_dropout < 1:
            problems.add(
                "lora.lora_dropout", expected="0 <= p < 1", found=str(config.lora_dropout), fix="Lower it."
            )
        head = head_modules(model, model.config.model_type)
        check_whole_modules(config, model, head, "lora", problems)
        modules = dict(model.named_modules())
        for name in target_names(config, model, "lora", problems):
            smallest = min(linear_size(modules[name]))
            rank = _rank(config, name)
            if not 1 <= rank <= smallest:
                problems.add(
                    f"lora.r at {name}",
                    expected=f"1 <= r <= {smallest}, the layer's smaller side",
                    found=str(rank),
                    fix="Choose a rank in that range; 4 to 32 are usual.",
                )
                break
        problems.raise_if_any()

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place A and B at every target, own biases where asked for, and the slot's own head."""
        assert isinstance(config, LoraConfig)
        adapter = Adapter()
        targets = target_names(config, host.model, "lora")
        for name in targets:
            module = host.modules[name]
            rank = _rank(config, name)
            alpha = _for_module(config.alpha_pattern, name, config.lora_alpha)
            scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
            part = LoraPart(*linear_size(module), rank, scaling, config.lora_dropout)
            part.initialise(config.init_lora_weights, stable_hash(seed, name))
            part.to(next(module.parameters()).device)
            host.place(name, slot, part)
            adapter.add(f"{PEFT_PREFIX}{name}.lora_A.weight", part.A)
            adapter.add(f"{PEFT_PREFIX}{name}.lora_B.weight", part.B)
        _attach_biases(config, host, slot, targets, adapter)
        attach_copies(config, host, slot, seed, adapter)
        return adapter


def _rank(config: LoraConfig, name: str) -> int:
    return _for_module(config.rank_pattern, name, config.r)


def _for_module(pattern: Any, name: str, default: int) -> int:
    """A value that a pattern may set for single modules."""
    values = pattern or {}
    value: int = values.get(get_pattern_key(list(values), name), default)
    return value


def _attach_biases(config: LoraConfig, host: Host, slot: int, targets: list[str], adapter: Adapter) -> None:
    if config.bias == "none":
        return
    whole = whole_modules(host, config.modules_to_save or ())
    for name, module in host.modules.items():
        bias = getattr(module, "bias", None)
        if not isinstance(bias, nn.Parameter) or any(f"{name}.".startswith(f"{outer}.") for outer in whole):
            continue
        if config.bias == "lora_only" and name not in targets:
            continue
        part = BiasPart(bias)
        host.place(name, slot, part)
        inner = ".base_layer.bias" if name in targets else ".bias"
        adapter.add(f"{PEFT_PREFIX}{name}{inner}", part.bias, decay=False)
