"""A frozen base as a source of features: its last hidden state, without a head."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunestack.arrays import IntArray
from tunestack.config import Settings
from tunestack.errors import Problem, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from tunestack.bases import Base
    from tunestack.data.encode import Encoded

BATCH_TOKENS = 8192
"""Padded tokens of one batch."""


class FeatureOptions(Settings):
    """How much of a text is read."""

    max_length: int = Field(default=512, ge=4)
    """Longest input in tokens; longer ones are cut, or read in windows of it."""


class Encoder:
    """A frozen base that turns tokens into features; its weights are loaded when first needed.

    auto_class: transformers' class of the task's models, whose head is left out.
    """

    def __init__(self, base: Base, auto_class: Any) -> None:
        self.base = base
        self.auto_class = auto_class

    @cached_property
    def model(self) -> Any:
        """The base without its head, in evaluation mode."""
        config = self.base.model_config(num_labels=2)
        return self.base.load_model(self.auto_class, config).model.base_model

    @cached_property
    def parameters(self) -> int:
        """How many parameters the base has without its head."""
        skeleton = self.base.skeleton(self.auto_class, self.base.model_config(num_labels=2))
        return sum(parameter.numel() for parameter in skeleton.base_model.parameters())

    @property
    def width(self) -> int:
        """How many features a token has."""
        return int(self.base.config.get_text_config().hidden_size)

    def check_width(self, fitted: int, folder: Path, name: str | None) -> None:
        """Raise UserError where what a folder holds was fitted on other features; name: of its base."""
        if fitted != self.width:
            raise UserError(
                Problem(
                    str(folder),
                    f"its base, {name}, with {fitted} features",
                    f"{self.base.name} with {self.width}",
                    f"Load it on {name}.",
                )
            )

    def states(self, encoded: Encoded, rows: IntArray) -> Iterator[tuple[IntArray, Tensor, Tensor]]:
        """The last hidden state of all tokens of these rows, by batches of rows alike in length.

        Yields which rows, their states [rows, tokens, width] fp32, and which tokens are theirs [rows,
        tokens]. Raises UserError where a state of theirs is no number.
        """
        import torch

        from tunestack.data.batches import evaluation_batches
        from tunestack.data.encode import pad

        base = self.base
        for places in evaluation_batches(encoded.lengths[rows], BATCH_TOKENS):
            # Padded on the right, whatever the tokenizer prefers: positions then count from the text's
            # first token, and no token of a decoder sees the padding.
            batch = pad([(encoded, rows[places])], base.tokenizer.pad_token_id)
            batch = {name: tensor.to(base.device) for name, tensor in batch.items()}
            with torch.inference_mode():
                hidden = self.model(**batch).last_hidden_state.float()
            own = batch["attention_mask"].to(hidden.device).bool()
            if not torch.isfinite(hidden[own]).all():
                found, fix = "some that are not", "Let the base compute in float32: `dtype: float32`."
                raise UserError(Problem(base.name, "hidden states that are numbers", found, fix))
            yield rows[places], hidden, own
