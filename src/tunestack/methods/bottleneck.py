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
from tunestack.methods.sites import Host, Member, Part, keep_mask, stable_hash
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
        self.f = config.activation()
        self.p = config.adapter_dropout

    def weights(self) -> tuple[Any, ...]:
        """What the adapter computes with, in the order of `_AddAdapters`."""
        return self.down, self.down_bias, self.up, self.up_bias, self.scaling


class SeriesPart(BottleneckPart):
    """y + s A(y)."""

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Pass every slot's rows of y through its adapter."""
        return _add(y, None, members)


class ParallelPart(BottleneckPart):
    """y + s A(x), with x the sublayer's input, or the module's own where there is no tap."""

    @classmethod
    def after(cls, x: Tensor, y: Tensor, members: Sequence[Member]) -> Tensor:
        """Add every slot's adapter to its own rows of y, in place."""
        sources = [x if member.part.tap is None else member.part.tap.take() for member in members]
        for source in {id(source): source for source in sources}.values():
            y = _add(y, source, [m for m, other in zip(members, sources, strict=True) if other is source])
        return y


def _add(y: Tensor, x: Tensor | None, members: Sequence[Member]) -> Tensor:
    weights = [weight for member in members for weight in member.part.weights()]
    x = None if x is None else x.contiguous()
    result: Tensor = _AddAdapters.apply(y.contiguous(), x, members, *weights)  # type: ignore[no-untyped-call]
    return result


class _AddAdapters(torch.autograd.Function):
    """y + s A(x) slot by slot; x is y itself where it is None, else y is written into.

    Saves x once, and beside it what is as small as the bottleneck. y comes first: a linear's output is a
    view, and autograd takes the first input of a function that writes into a view to be that view.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor | None, members: Sequence[Member], *weights: Any) -> Tensor:
        ctx.members, ctx.series = members, x is None
        source, out = (y, y.clone()) if x is None else (x, y)
        if x is not None:
            ctx.mark_dirty(y)
        saved = [source]
        for index, member in enumerate(members):
            down, down_bias, up, up_bias, scaling = weights[5 * index : 5 * index + 5]
            down, up, shift = (weight.to(y.dtype) for weight in (down, up * scaling, up_bias * scaling))
            inner = torch.addmm(down_bias.to(y.dtype), _rows(source, member), down.t())
            low, own, keep = member.part.f(inner), _rows(out, member), _mask(out, member)
            if keep is None:
                own.add_(shift).addmm_(low, up.t())
            else:
                own.addcmul_(torch.addmm(shift, low, up.t()), keep)
            saved += [down, up, inner] + ([] if keep is None else [keep])
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        source, *saved = ctx.saved_tensors
        grad_source: Tensor | None = None
        if ctx.needs_input_grad[0 if ctx.series else 1]:
            grad_source = grad.clone() if ctx.series else torch.zeros_like(source)
        tensors = iter(saved)
        grad_weights: list[Tensor | None] = []
        for member in ctx.members:
            down, up, inner = next(tensors), next(tensors), next(tensors)
            keep = next(tensors) if _drops(member) else None
            outer = _rows(grad, member) if keep is None else _rows(grad, member) * keep
            low, grad_inner = _through(member.part.f, inner, torch.mm(outer, up))
            grad_weights += [torch.mm(grad_inner.t(), _rows(source, member)), _sum(grad_inner)]
            grad_weights += _of_up(member.part, torch.mm(outer.t(), low), _sum(outer))
            if grad_source is not None:
                _rows(grad_source, member).addmm_(grad_inner, down)
        return (grad_source if ctx.series else grad, None if ctx.series else grad_source, None, *grad_weights)


def _through(f: nn.Module, inner: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """f(inner), and its gradient for inner, given that for f(inner)."""
    with torch.enable_grad():
        leaf = inner.detach().requires_grad_()
        low = f(leaf)
    (grad_inner,) = torch.autograd.grad(low, leaf, grad)
    return low.detach(), grad_inner


def _of_up(part: BottleneckPart, product: Tensor, total: Tensor) -> list[Tensor | None]:
    """Gradients for up, its bias and s, given those for s up [out, size] and s up_bias [out]."""
    scaling = part.scaling
    if not isinstance(scaling, Tensor):
        return [product.mul_(scaling), total.mul_(scaling), None]
    of_scaling = (product * part.up).sum() + (total * part.up_bias).sum()
    return [product * scaling, total * scaling, of_scaling.view(1)]


def _sum(x: Tensor) -> Tensor:
    """Over all tokens, in fp32 at least."""
    return x.sum(0, dtype=torch.promote_types(x.dtype, torch.float32))


def _drops(member: Member) -> bool:
    return member.span.noise is not None and member.part.p > 0


def _rows(x: Tensor, member: Member) -> Tensor:
    """The member's rows as a matrix [rows x tokens, features]; a view of a contiguous x."""
    return x[member.span.start : member.span.stop].view(-1, x.shape[-1])


def _mask(y: Tensor, member: Member) -> Tensor | None:
    """What dropout multiplies the member's adapter with, 0 or 1 / (1 - p), as `_rows` has it; or None."""
    if not _drops(member):
        return None
    own = y[member.span.start : member.span.stop]
    keep = keep_mask(own, member.part.p, member.span, member.site)
    return keep.mul_(1 / (1 - member.part.p)).view(-1, y.shape[-1])


class Bottleneck(Method):
    """What both placements have in common; `BottleneckConfig` says the equations."""

    config_class = BottleneckConfig
    part: ClassVar[type[BottleneckPart]]

    def defaults(self, model_type: str) -> dict[str, Any]:
        """The placement; the config fills in what its paper has (`bottleneck_config.PAPERS`)."""
        return {"placement": self.name}

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
    """Adapters beside the feed-forward network: ffn(x) + 4 up(f(down(x))) (He et al., arXiv:2110.04366)."""

    name = "parallel"
    summary = "small networks beside the feed-forward network"
    part = ParallelPart
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 3e-4}
