"""The layout table: every name in it is one of the model's, and what happens to models that it lacks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification
from transformers.modeling_layers import GradientCheckpointingLayer

import tiny
from tunestack.bases.layout import LAYOUTS
from tunestack.errors import UserError
from tunestack.methods.base import Method
from tunestack.methods.registry import METHODS
from tunestack.methods.targets import linear_names, linear_size
from tunestack.tasks.classification import SequenceClassification

TWINS = {"xlm-roberta": "roberta", "camembert": "roberta", "mpnet": "roberta"}
"""Architectures with the same fields as another one."""

LINEARS = ("query", "key", "value", "attention_output", "ffn_in", "ffn_out")
OUTSIDE = "megatron-bert"
"""A model type that the table lacks."""


def fields(kind: str) -> dict[str, object]:
    """As published models have them: RoBERTa pads with token 1, a DeBERTa may have a table of positions."""
    own = {"deberta-v2": {"position_biased_input": True}, "roberta": {"pad_token_id": 1}}
    twin = TWINS.get(kind, kind)
    return {**tiny.CONFIGS[twin], **own.get(twin, {}), "model_type": kind}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_name_of_a_row_is_in_the_model(kind: str) -> None:
    row = LAYOUTS[kind]
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**fields(kind))).eval()
    modules = dict(model.named_modules())
    linears = linear_names(model)
    for name in (*LINEARS, "attention_in"):
        suffix = getattr(row, name)
        if suffix is not None:
            found = [linear for linear in linears if linear.endswith(f".{suffix}")]
            assert len(found) >= tiny.LAYERS, f"{name}: {suffix} is {found}"
    assert set(row.head) <= set(modules)
    sizes = {name: linear_size(modules[last(linears, getattr(row, name))]) for name in LINEARS}
    assert sizes["ffn_in"][0] == sizes["ffn_out"][1] == sizes["query"][0] == sizes["attention_output"][1]
    if row.mixing is not None:
        blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        assert isinstance(blocks[-1].get_submodule(row.mixing), nn.Module)
    if row.position_offset is not None:
        longest = model.config.max_position_embeddings - row.position_offset
        ids = torch.full((1, longest), 5)
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
        too_long = torch.full((1, longest + 1), 5)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=too_long, attention_mask=torch.ones_like(too_long))


def last(names: list[str], suffix: str) -> str:
    return [name for name in names if name.endswith(f".{suffix}")][-1]


def test_rows_differ_in_their_fields() -> None:
    """A row whose names are one for all three projections is fused in all three."""
    for kind, row in LAYOUTS.items():
        fused = {row.query, row.key, row.value}
        assert len(fused) in (1, 3), kind
        assert dataclasses.astuple(row)[:6] != (None,) * 6


@pytest.mark.parametrize("method", [m for m in METHODS.values() if m.stacks], ids=lambda method: method.name)
def test_a_model_outside_the_table_works_or_is_told_which_names_it_needs(
    tmp_path: Path, method: Method
) -> None:
    assert OUTSIDE not in LAYOUTS
    tiny.CONFIGS[OUTSIDE] = {**tiny.CONFIGS["bert"], "model_type": OUTSIDE}
    try:
        base = tiny.random_base(tmp_path, OUTSIDE)
    finally:
        del tiny.CONFIGS[OUTSIDE]
    skeleton = base.skeleton(SequenceClassification.auto_class, base.model_config(2))

    def trained(**given: object) -> str | None:
        try:
            trial = tiny.trial(base, "one", method=method.name, epochs=1, **given)
            method.check(trial.config, skeleton)
        except UserError as error:
            return str(error)
        ended = tiny.run(tiny.workload(base, rows=8), [trial])["one"]
        assert ended.failure is None
        return None

    told = trained()
    if told is not None and "target_modules" in method.config_class.__dataclass_fields__:
        assert "target_modules" in told
        assert "query" in told, "the names that the model has"
        assert trained(target_modules=["query", "value"]) is None
    elif told is not None:
        assert "computes attention in a way of its own" in told
