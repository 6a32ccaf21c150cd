"""P-tuning: a prompt that a small network writes (Liu et al., 2021, arXiv:2103.10385).

P = MLP(E), or P = MLP(BiLSTM(E)), with E [virtual tokens, features] learned too. Only training needs the
network: saved is P.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import torch
from peft import PromptEncoderConfig
from torch import Tensor, nn

from tunestack.errors import Problems, did_you_mean
from tunestack.methods.prompt import PromptLearning
from tunestack.methods.sites import Host, Span, dropout

_TYPES = ("MLP", "LSTM")
_MLP_LAYERS = PromptEncoderConfig.encoder_num_layers


class PromptEncoder(nn.Module):
    """The network of `peft.PromptEncoder`: its layers, its initial weights, its output.

    It runs once a forward for all of a slot's rows, as in the paper; PEFT runs it for every row, which
    differs in nothing but dropout between the LSTM's layers: there all rows share a mask here.
    """

    def __init__(self, tokens: int, width: int, hidden: int, lstm_layers: int, p: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        # One module a layer, for dropout between them must not draw from global random state.
        self.lstm_head = nn.ModuleList(
            nn.LSTM(2 * hidden if layer else width, hidden, bidirectional=True)
            for layer in range(lstm_layers)
        )
        sizes = (2 * hidden, 2 * hidden, width) if lstm_layers else (width, hidden, hidden, width)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.mlp_head = nn.Sequential(*layers[:-1])
        self.p = p

    def forward(self, span: Span | None, site: str) -> Tensor:
        """The prompt [virtual tokens, features]; with dropout where the span has noise."""
        x = self.embedding.weight
        for layer, lstm in enumerate(self.lstm_head):
            if layer and span is not None:
                x = dropout(x, self.p, span, f"{site}.lstm_head.{layer}")
            x, _ = lstm(x)
        prompt: Tensor = self.mlp_head(x)
        return prompt


class PTuning(PromptLearning):
    """P-tuning, version 1, with `peft.PromptEncoderConfig`.

    Learning rate: 1e-3, of PEFT's guide to p-tuning for classification; on MiniLM and 1,600 tweets (2 epochs)
    F1 is 0.73, 0.75 and 0.75 at 3e-4, 1e-3 and 3e-3.
    """

    name = "p-tuning"
    summary = "embeddings before the input, written by a small network"
    config_class = PromptEncoderConfig
    training_defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-3}

    def defaults(self, model_type: str) -> dict[str, Any]:
        """20 virtual tokens and the MLP, as PEFT's guide to p-tuning for classification has them."""
        return {"num_virtual_tokens": 20}

    def check_fields(self, config: Any, problems: Problems) -> None:
        """Refuse sizes that cannot be, and fields that the MLP would ignore."""
        kind = config.encoder_reparameterization_type
        if kind not in _TYPES:
            problems.add(
                "p-tuning.encoder_reparameterization_type",
                expected="MLP or LSTM",
                found=repr(kind),
                fix=did_you_mean(str(kind), _TYPES),
            )
        for name in ("encoder_hidden_size", "encoder_num_layers"):
            value = getattr(config, name)
            if value is not None and value < 1:
                problems.add(f"p-tuning.{name}", expected="at least 1", found=str(value), fix="Raise it.")
        if not 0 <= config.encoder_dropout < 1:
            found = str(config.encoder_dropout)
            problems.add("p-tuning.encoder_dropout", expected="0 <= p < 1", found=found, fix="Lower it.")
        if kind == "MLP":
            for name, only in (("encoder_num_layers", _MLP_LAYERS), ("encoder_dropout", 0.0)):
                if getattr(config, name) != only:
                    problems.add(
                        f"p-tuning.{name}",
                        expected=f"{only}: the MLP knows no other",
                        found=str(getattr(config, name)),
                        fix="Leave it out, or take encoder_reparameterization_type LSTM.",
                    )

    def prompt(self, config: Any, host: Host, seed: int) -> nn.Module:
        """The network as PyTorch initialises its layers, drawn from the seed on the processor."""
        lstm = config.encoder_reparameterization_type == "LSTM"
        counted = next(host.model.parameters()).is_meta  # and never run
        with torch.random.fork_rng(devices=[]), torch.device("meta" if counted else "cpu"):
            torch.manual_seed(seed)
            return PromptEncoder(
                config.num_virtual_tokens,
                config.token_dim,
                config.encoder_hidden_size,
                config.encoder_num_layers if lstm else 0,
                config.encoder_dropout,
            )
