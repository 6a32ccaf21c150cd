"""The blocks of an encoder as plain weights, for whoever computes them whole.

A block is, with the norms behind the sums (Vaswani et al., 2017; Devlin et al., 2019),

    h = norm(x + W_o attention(W_q x, W_k x, W_v x)),    y = norm(h + W_2 gelu(W_1 h)).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tunestack.bases.frozen import FrozenWeight, joined
from tunestack.bases.layout import LAYOUTS, Layout
from tunestack.kernels.absorbed import HeadWeights


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block, or several that read the same input, their outputs side by side.

    columns: by the full name of each module, where its own output begins. width: of the whole output.
    """

    weight: FrozenWeight
    columns: Mapping[str, int]
    width: int


@dataclass(frozen=True)
class Norm:
    """Layer normalisation."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True)
class EncoderBlock:
    """A block's frozen weights.

    module: what it is in the model. prefix: what the full names of its modules begin with. attention:
    query, key and value. query: it alone. key, value: their weights by head.
    heads: of attention. scaling: of its scores. first, last: whether it is the model's first or last one.
    """

    module: nn.Module
    prefix: str
    attention: Linear
    query: FrozenWeight
    key: HeadWeights
    value: HeadWeights
    value_bias: Tensor
    out: Linear
    norm: Norm
    up: Linear
    down: Linear
    last_norm: Norm
    heads: int
    head_size: int
    scaling: float
    first: bool
    last: bool

    @property
    def linears(self) -> tuple[Linear, Linear, Linear, Linear]:
        """All linear layers, in the order in which a text passes through them."""
        return self.attention, self.out, self.up, self.down


def encoder_blocks(model: PreTrainedModel) -> list[EncoderBlock]:
    """All blocks of the model's encoder; none where one of them is not, or not plainly, of this kind.

    Weights of query, key and value become views of one matrix.
    """
    row = LAYOUTS.get(model.config.model_type)
    config = model.config
    if row is None or row.norms is None or getattr(config, "hidden_act", None) != "gelu":
        return []
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]
    if not found or not all(_plain(module) for _, module in found):
        return []
    first_and_last = found[0][1], found[-1][1]
    return [_block(name, module, row, model, first_and_last) for name, module in found]


def _plain(block: nn.Module) -> bool:
    """Whether it holds torch's own six linear layers and two norms and no other weights, and nobody has taken
    the block's own forward over.
    """
    owners = [module for module in block.modules() if any(True for _ in module.parameters(recurse=False))]
    linears = [module for module in owners if type(module) is nn.Linear and module.bias is not None]
    norms = [module for module in owners if type(module) is nn.LayerNorm and module.bias is not None]
    whole = (len(linears), len(norms), len(owners)) == (6, 2, 8)
    return whole and "forward" not in vars(block)


def _block(
    name: str,
    module: nn.Module,
    row: Layout,
    model: PreTrainedModel,
    first_and_last: tuple[nn.Module, nn.Module],
) -> EncoderBlock:
    inside = {place: one for place, one in module.named_modules() if isinstance(one, nn.Linear)}

    def linear(*suffixes: str) -> Linear:
        ends = [[place for place in inside if f".{place}".endswith(f".{suffix}")] for suffix in suffixes]
        places = [min(own, key=len) for own in ends]  # output.dense is not attention.output.dense
        widths = [inside[place].out_features for place in places]
        starts = itertools.accumulate(widths, initial=0)
        columns = {f"{name}.{place}": start for place, start in zip(places, starts, strict=False)}
        return Linear(joined([inside[place] for place in places]), columns, sum(widths))

    assert row.norms is not None
    first, second = (module.get_submodule(place) for place in row.norms)
    heads = int(model.config.num_attention_heads)
    attention = linear(row.query, row.key, row.value)
    size = attention.width // 3 // heads
    joint = attention.weight
    assert joint.bias is not None
    _, key, value = (HeadWeights(part.view(heads, size, -1)) for part in joint.weight.chunk(3))
    return EncoderBlock(
        module,
        f"{name}.",
        attention,
        linear(row.query).weight,
        key,
        value,
        joint.bias.chunk(3)[2],
        linear(row.attention_output),
        _norm(first),
        linear(row.ffn_in),
        linear(row.ffn_out),
        _norm(second),
        heads,
        size,
        size**-0.5,
        module is first_and_last[0],
        module is first_and_last[1],
    )


def _norm(module: nn.Module) -> Norm:
    assert isinstance(module, nn.LayerNorm)
    return Norm(module.weight.detach(), module.bias.detach(), module.eps)
