"""Bottleneck adapters, in series and in parallel, as `BottleneckConfig` describes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunestack.bases.base import head_modules
from tunestack.errors import Problems
from tunestack.methods.base import PEFT_PREFIX, Adapter, Method, attach_copies, check_whole_modules
from tunestack.methods.bottleneck_config import BottleneckConfig, initialise
from tunestack.methods.sites import Host, Member, Part, dropout, stable_hash
from tunestack.methods.sublayers import sublayers
from tunestack.methods.targets import linear_names, linear_size, target_names


class Tap(Part):
    """Keeps the input of the module that a sublayer begins with, for the part at the sublayer's end.

    Both run in one block, so a recomputed block (gradient checkpointing) fills it again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kept: Tensor | None = None

    @classmethod
    def before(cls, x: Tensor, members: Sequence[Member]) -> Tensor:
        """Keep x for every member; change nothing."""
        for member in members:
            member.part.kept = x
        return x

    def forget(self) -> None:
        """Activations of a forward that ran out of memory would be in the way of the next one."""
        self.kept = None

    def take(self) -> Tensor:
        """What was kept, once: activations must not outlive their use."""
        kept, self.kept = self.kept, None
        assert kept is not None, "a sublayer ended that had not begun"
        return kept


class BottleneckPart(Part):
    """One slot's adapter A(x) = dropout(up(f(down(x)))) at one linear layer; all weights fp32.

    down [size, in], up [out, size], their biases, and s, a number or a weight [1]. tap: what A reads, where
    that is not at hand at the layer itself.
    """

    def __init__(self, config: BottleneckConfig, in_features: int, out_features: int) -> None:
        super().__init__()
        size = config.size(in_features)
        self.down = nn.Parameter(torch.zeros(size, in_features))
        self.down_bias = nn.Parameter(torch.zeros(size))
        self.up = nn.Parameter(torch.zeros(out_features, size))
        self.up_bias = nn.Parameter(torch.zeros(out_features))
        learned = config.scaling == "learned"
        self.scaling: Any = nn.Parameter(torch.ones(1)) if learned else config.scaling
        self.tap: Tap | None = None
        self.f, self.f_name = config.activation(), config.non_linearity
        self.p = config.adapter_dropout


class SeriesPart(BottleneckPart):
    """y + s A(y)."""

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Pass every slot's rows of y through its adapter."""
        return y + _updates(y, members)


class ParallelPart(BottleneckPart):
    """y + s A(x), with x the sublayer's input, or the module's own where there is no tap."""

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Add every slot's adapter to its own rows of y."""
        sources = [x if member.part.tap is None else member.part.tap.take() for member in members]
        for source in {id(source): source for source in sources}.values():
            y = y + _updates(
                source, [m for m, other in zip(members, sources, strict=True) if other is source]
            )
        return y


def _updates(x: Tensor, members: Sequence[Member]) -> Tensor:
    """s A(x) of each member at its own rows, zeros elsewhere: [rows, tokens, out].

    Members whose products have the same sizes are multiplied together. Plain autograd: all that it keeps
    beside x is as small as the bottleneck.
    """
    sizes, owners = _segments(members, len(x))
    pieces = list(x.split(sizes)) if len(sizes) > 1 else [x]
    alike: dict[Any, list[int]] = {}
    for index, member in enumerate(owners):
        if member is not None:
            part = member.part
            alike.setdefault((sizes[index], part.f_name, *part.up.shape), []).append(index)
    for indices in alike.values():
        own = [member for member in (owners[index] for index in indices) if member is not None]
        results = _together(_stack([pieces[index] for index in indices]), [member.part for member in own])
        for index, member, result in zip(indices, own, results, strict=True):
            pieces[index] = dropout(result, member.part.p, member.span, member.site)
    features = members[0].part.up.shape[0]
    for index, member in enumerate(owners):
        if member is None:
            pieces[index] = x.new_zeros(*pieces[index].shape[:-1], features)
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _segments(members: Sequence[Member], rows: int) -> tuple[list[int], list[Member | None]]:
    """The batch cut into stretches of rows: how long each is, and whose; None where it is no member's."""
    sizes: list[int] = []
    owners: list[Member | None] = []
    done = 0
    for start, stop, owner in [*((m.span.start, m.span.stop, m) for m in members), (rows, rows, None)]:
        if start > done:
            sizes.append(start - done)
            owners.append(None)
        if owner is not None:
            sizes.append(stop - start)
            owners.append(owner)
        done = stop
    return sizes, owners


def _together(x: Tensor, parts: Sequence[BottleneckPart]) -> Tensor:
    """s A(x) of adapters of one size, before dropout: x [adapters, rows, tokens, in] to [..., out]."""
    down = _stack([part.down for part in parts]).to(x.dtype)
    up = _stack([part.up * part.scaling for part in parts]).to(x.dtype)
    down_bias = _stack([part.down_bias for part in parts]).to(x.dtype).unsqueeze(1)
    up_bias = _stack([part.up_bias * part.scaling for part in parts]).to(x.dtype).unsqueeze(1)
    low = parts[0].f(torch.baddbmm(down_bias, x.flatten(1, -2), down.mT))
    return torch.baddbmm(up_bias, low, up.mT).view(*x.shape[:-1], -1)


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tensors)) if len(tensors) > 1 else tensors[0].unsqueeze(0)


class Bottleneck(Method):
    """What both placements have in common; `BottleneckConfig` says the equations."""

    config_class = BottleneckConfig
    part: ClassVar[type[BottleneckPart]]

    def defaults(self, model_type: str) -> dict[str, Any]:
        """The placement; the config fills in what its paper has (`bottleneck_config.PAPERS`)."""
        return {"placement": self.name}

    def owns(self, config: PeftConfig) -> bool:
        """Each placement is a method."""
        return isinstance(config, BottleneckConfig) and config.placement == self.name

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse another placement, layers that are not there, a bottleneck of no features."""
        assert isinstance(config, BottleneckConfig)
        problems = Problems()
        if config.placement != self.name:
            problems.add(
                f"{self.name}.placement",
                expected=self.name,
                found=repr(config.placement),
                fix=f"Write `method: {config.placement}`.",
            )
        head = head_modules(model, model.config.model_type)
        check_whole_modules(config, model, head, self.name, problems)
        modules = dict(model.named_modules())
        for outlet, inlet in _places(config, model, problems).items():
            width, _ = _sizes(config, modules, outlet, inlet)
            if config.size(width) < 1:
                problems.add(
                    f"{self.name}.reduction_factor",
                    expected=f"at most {width}, the width of {outlet}",
                    found=str(config.reduction_factor),
                    fix="Lower it, or give bottleneck_size.",
                )
                break
        problems.raise_if_any()

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place an adapter at the end of every sublayer, or at every target, and the slot's own head."""
        assert isinstance(config, BottleneckConfig)
        adapter, problems = Adapter(), Problems()
        places = _places(config, host.model, problems)
        problems.raise_if_any()
        for outlet, inlet in places.items():
            sizes = _sizes(config, host.modules, outlet, inlet)
            part = self.part(config, *sizes)
            device = next(host.modules[outlet].parameters()).device
            if device.type != "meta":
                initialise(
                    config, part.down, part.up, torch.Generator().manual_seed(stable_hash(seed, outlet))
                )
            part.to(device)
            if inlet is not None:
                part.tap = Tap()
                host.place(inlet, slot, part.tap)
            host.place(outlet, slot, part)
            _name(f"{PEFT_PREFIX}{outlet}.bottleneck_", part, adapter)
        attach_copies(config, host, slot, seed, adapter)
        return adapter


def _name(prefix: str, part: BottleneckPart, adapter: Adapter) -> None:
    """Take the weights in under the names that the PEFT plug-in gives them."""
    adapter.add(f"{prefix}down.weight", part.down)
    adapter.add(f"{prefix}down.bias", part.down_bias, decay=False)
    adapter.add(f"{prefix}up.weight", part.up)
    adapter.add(f"{prefix}up.bias", part.up_bias, decay=False)
    if isinstance(part.scaling, nn.Parameter):
        adapter.add(f"{prefix}scaling", part.scaling, decay=False)


def _places(config: BottleneckConfig, model: nn.Module, problems: Problems) -> dict[str, str | None]:
    """The linear layers whose output gets an adapter, each with the one whose input the adapter reads.

    None: it reads what the layer itself gets (parallel) or gives (series).
    """
    if config.target_modules is not None:
        return dict.fromkeys(target_names(config, model, config.placement, problems))
    linears = linear_names(model, tuple(config.modules_to_save or ()))
    model_config: Any = model.config
    found = sublayers(model_config.model_type, linears, config.after or (), config.placement, problems)
    return {outlet: inlet if config.placement == "parallel" else None for outlet, inlet in found.items()}


def _sizes(
    config: BottleneckConfig, modules: dict[str, nn.Module], outlet: str, inlet: str | None
) -> tuple[int, int]:
    """(features in, features out) of the adapter there."""
    out_features = linear_size(modules[outlet])[1]
    if config.placement == "series":
        return out_features, out_features
    return linear_size(modules[inlet or outlet])[0], out_features


class Series(Bottleneck):
    """Adapters after attention and feed-forward: y + s up(f(down(y))) (Houlsby et al., arXiv:1902.00751).

    N(0, 0.02) at the start, as AdapterHub, is near the base and not the base. `after: ffn` is Pfeiffer's
    variant. The learning rate is the middle one of those that Houlsby et al. searched (section 3.2).
    """

    name = "series"
    summary = "small networks after attention and feed-forward"
    starts_as_base = False
    part = SeriesPart
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 3e-4}


class Parallel(Bottleneck):
    """Adapters beside the feed-forward network: ffn(x) + 4 up(f(down(x))) (He et al., arXiv:2110.04366).

    x is what the network itself gets, after a norm before it; AdapterHub takes the residual there.
    The learning rate is that of series adapters.
    """

    name = "parallel"
    summary = "small networks beside the feed-forward network"
    part = ParallelPart
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 3e-4}
