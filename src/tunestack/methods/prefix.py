"""Prefix tuning (Li & Liang, 2021, arXiv:2101.00190) and p-tuning v2 (Liu et al., 2022, arXiv:2110.07602).

n learned keys and values stand before those of the text in the attention of every layer:

    softmax(q [P_k; K]^T / sqrt(d)) [P_v; V]

All of them are one table [n, layers x 2 x width], in which 2 i is layer i's key and 2 i + 1 its value.
P-tuning v2 learns the table itself. Prefix tuning learns a small one and an MLP that makes the large one of
it, and saves the large one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PrefixTuningConfig
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from tunestack.bases.base import head_modules
from tunestack.bases.layout import LAYOUTS
from tunestack.errors import Problem, Problems, UserError
from tunestack.methods.attention_sites import Way, find_way
from tunestack.methods.base import (
    PROMPT_PREFIX,
    Adapter,
    Method,
    attach_copies,
    check_whole_modules,
    decays,
)
from tunestack.methods.prefixes import OTHERS, KeyValueSizes, Prefixes
from tunestack.methods.prompt import SHORTEST_TEXT
from tunestack.methods.sites import Host, Member, Part, stable_hash

SAVED = "prompt_embeddings"
START = 0.02
"""Standard deviation of a fresh table. PEFT and Liu et al. draw from N(0, 1), noise as large as a text's own
values: on the disaster tweets it fits the training texts sooner and the others no better.
"""


class PrefixPart(Part):
    """One slot's prefixes, fp32: the table [n, layers x 2 x width], or what makes it.

    encoder_hidden_size: of the MLP, None without one: W2 tanh(W1 e + b1) + b2 with e [n, width].
    saved: of how many layers a saved table is, None where one is learned.
    """

    def __init__(
        self, n: int, sizes: KeyValueSizes, encoder_hidden_size: int | None, way: Way, saved: int | None
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.way = way
        self.saved = saved is not None
        numbers = (saved or sizes.layers) * 2 * sizes.width
        self.hidden: nn.Linear | None = None
        if encoder_hidden_size is None:
            self.embedding = nn.Parameter(torch.empty(n, numbers))
        else:
            self.embedding = nn.Parameter(torch.empty(n, sizes.width))
            self.hidden = nn.Linear(sizes.width, encoder_hidden_size)
            self.output = nn.Linear(encoder_hidden_size, numbers)

    @torch.no_grad()
    def initialise(self, kind: str | None, seed: int) -> None:
        """The table from N(0, START^2); with an MLP as PEFT: e from N(0, 1), the rest from U(-a, a), a = 1 /
        sqrt(inputs). kind "zero": the table, or the MLP's last layer, is zero.
        """
        generator = torch.Generator().manual_seed(seed)
        last: list[Tensor] = [self.embedding]
        self.embedding.normal_(0, START if self.hidden is None else 1, generator=generator)
        if self.hidden is not None:
            for layer in (self.hidden, self.output):
                last = [layer.weight, layer.bias]
                for parameter in last:
                    bound = 1 / math.sqrt(layer.in_features)
                    parameter.uniform_(-bound, bound, generator=generator)
        if kind == "zero":
            for parameter in last:
                parameter.zero_()

    def table(self) -> Tensor:
        """All layers' keys and values, [n, layers x 2 x width]."""
        if self.saved:
            return self.way.read(self.embedding, self.sizes)
        if self.hidden is None:
            return self.embedding
        made: Tensor = self.output(torch.tanh(self.hidden(self.embedding)))
        return made

    @classmethod
    def arguments(cls, batch: dict[str, Any], members: Sequence[Member]) -> dict[str, Any]:
        """Bring the members' prefixes into the model's attention."""
        first = members[0].part
        tables = [(member.span, member.part.table()) for member in members]
        prefixes = Prefixes(tables, first.sizes, batch["attention_mask"].shape[0])
        changed: dict[str, Any] = first.way.arguments(batch, prefixes)
        return changed

    def removed(self, host: Host) -> None:
        """The last one gives the model its own attention back."""
        left = [part for parts in host.entrance.values() for part in parts]
        if not any(isinstance(part, PrefixPart) for part in left):
            self.way.close(host.model)  # type: ignore[arg-type]


class Prefix(Method):
    """Prefix tuning with `peft.PrefixTuningConfig`.

    Learning rate: measured here, with the MLP of `defaults`. Adam moves a prefix by about rate x
    encoder_hidden_size a step: with 384 hidden units 3e-4 learned, and at 1e-3 the loss stayed where it
    began. Li & Liang train theirs at 5e-5 to 8e-5.
    """

    name = "prefix"
    summary = "keys and values before every layer's own, made by an MLP"
    starts_as_base = False
    config_class = PrefixTuningConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 5e-4}

    def defaults(self, model_type: str) -> dict[str, Any]:
        """20 places, as PEFT's examples have; 128 hidden units on every base, so that one rate fits all."""
        return {"num_virtual_tokens": 20, "prefix_projection": True, "encoder_hidden_size": 128}

    def owns(self, config: PeftConfig) -> bool:
        """Those with the MLP."""
        return isinstance(config, PrefixTuningConfig) and config.prefix_projection

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """Refuse models whose attention prefixes cannot reach, no places or too many, sizes that are not the
        model's.
        """
        assert isinstance(config, PrefixTuningConfig)
        problems = Problems()
        head = head_modules(model, model.config.model_type)
        check_whole_modules(config, model, head, self.name, problems)
        way = find_way(model)
        if way is None:
            problems.add(
                self.name,
                expected="a base with keys and values in a cache, or in transformers' attention registry",
                found=f"{type(model).__name__}, which computes attention in a way of its own",
                fix=OTHERS,
            )
        else:
            self._check_sizes(config, model, way, problems)
            room = _table_of_positions(model.config) if way.moves_text else math.inf
            most = room - SHORTEST_TEXT
            if not 1 <= (config.num_virtual_tokens or 0) <= most:
                limit = "" if room == math.inf else f" to {most}: the base has {room} positions"
                problems.add(
                    f"{self.name}.num_virtual_tokens",
                    expected=f"a whole number from 1{limit}",
                    found=str(config.num_virtual_tokens),
                    fix="5 to 100 are usual.",
                )
        problems.raise_if_any()

    def positions_taken(self, config: Any, model: PreTrainedModel) -> int:
        """One for every virtual token, where the text's positions begin after them."""
        way = find_way(model)
        return int(config.num_virtual_tokens) if way is not None and way.moves_text else 0

    def _check_sizes(
        self, config: PrefixTuningConfig, model: PreTrainedModel, way: Way, problems: Problems
    ) -> None:
        own = with_sizes(config, model, way)
        for field in ("num_layers", "token_dim", "num_attention_heads", "num_transformer_submodules"):
            given, needed = getattr(config, field), getattr(own, field)
            if given not in (None, needed):
                problems.add(
                    f"{self.name}.{field}",
                    expected=f"{needed}, of the base's keys and values",
                    found=str(given),
                    fix="Leave it out: it follows from the base.",
                )
        if config.prefix_projection and own.encoder_hidden_size < 1:
            problems.add(
                f"{self.name}.encoder_hidden_size",
                expected="at least 1",
                found=str(own.encoder_hidden_size),
                fix="Leave it out: the width of the base's keys is usual.",
            )

    def attach(self, config: PeftConfig, host: Host, slot: int, seed: int) -> Adapter:
        """Place the prefixes at the model's entrance, and the slot's own head."""
        assert isinstance(config, PrefixTuningConfig)
        model: Any = host.model
        way = find_way(model)
        assert way is not None  # `check` has seen to it
        own = with_sizes(config, model, way)
        mlp = own.encoder_hidden_size if own.prefix_projection and not own.inference_mode else None
        saved = own.num_layers if own.inference_mode else None
        part = PrefixPart(own.num_virtual_tokens, way.sizes(model), mlp, way, saved)
        part.initialise(own.init_weights, stable_hash(seed, SAVED))
        part.to(model.device)
        way.open(model)
        host.place("", slot, part)
        adapter = Adapter(positions=self.positions_taken(own, model))
        if mlp is None:
            adapter.add(SAVED, part.embedding)
        else:
            for name, parameter in part.named_parameters():
                adapter.add(f"prompt_encoder.{name}", parameter, decay=decays(name, parameter))
        if not own.inference_mode:
            adapter.training_only = set(adapter.parameters)
            adapter.derived = {SAVED: lambda: way.saved(part.table())}
        attach_copies(config, host, slot, seed, adapter, PROMPT_PREFIX)
        return adapter

    def save(self, folder: Path, config: PeftConfig, adapter: Adapter, host: Host, base: str) -> None:
        """As PEFT, with the sizes that it needs to load it."""
        model: Any = host.model
        way = find_way(model)
        assert way is not None  # or nothing would have been trained
        super().save(folder, with_sizes(config, model, way), adapter, host, base)


class PTuningV2(Prefix):
    """P-tuning v2: prefix tuning without the MLP (Liu et al., arXiv:2110.07602).

    Learning rate: 5e-3, as Liu et al.'s scripts have it for BoolQ with BERT; for RTE they have 1e-2, and so
    does PEFT's example. Measured here, 1e-2 and 2e-2 are no better on validation.
    """

    name = "p-tuning-v2"
    summary = "keys and values before every layer's own"
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 5e-3}

    def defaults(self, model_type: str) -> dict[str, Any]:
        """20 places, the most that simple classification wants (Liu et al.), and what PEFT's example has."""
        return {"num_virtual_tokens": 20}

    def check(self, config: PeftConfig, model: PreTrainedModel) -> None:
        """As prefix tuning; refuse its MLP, which learns at another rate."""
        assert isinstance(config, PrefixTuningConfig)
        if config.prefix_projection:
            raise UserError(
                Problem(
                    f"{self.name}.prefix_projection",
                    "false: p-tuning v2 learns keys and values themselves, without an MLP",
                    "true",
                    "Write `method: prefix`.",
                )
            )
        super().check(config, model)

    def owns(self, config: PeftConfig) -> bool:
        """Those without the MLP."""
        return isinstance(config, PrefixTuningConfig) and not config.prefix_projection


def with_sizes(config: PeftConfig, model: PreTrainedModel, way: Way) -> Any:
    """The config with the sizes of the base's keys and values, in the fields that PEFT has for them."""
    sizes = way.sizes(model)
    full: Any = copy.deepcopy(config)
    if not (full.inference_mode and full.num_layers == sizes.layers):
        full.num_layers = sizes.layers * way.submodules
    full.num_attention_heads = sizes.heads
    full.token_dim = sizes.width
    full.num_transformer_submodules = way.submodules
    if full.encoder_hidden_size is None:
        full.encoder_hidden_size = sizes.width
    return full


def _table_of_positions(config: PretrainedConfig) -> float:
    """How many tokens the base's table of positions has room for."""
    row = LAYOUTS.get(config.model_type)
    positions = getattr(config, "max_position_embeddings", None)
    if row is None or row.position_offset is None or positions is None:
        return math.inf
    return int(positions) - row.position_offset
