"""Bottleneck adapters against AdapterHub, against the equation in fp64, and against themselves alone."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import tiny
from tunestack import BottleneckConfig
from tunestack.bases import Base
from tunestack.bases.layout import LAYOUTS
from tunestack.errors import Problems, UserError
from tunestack.methods.bottleneck import BottleneckPart, ParallelPart, SeriesPart, Tap
from tunestack.methods.registry import find_method
from tunestack.methods.sites import Host, Member, Rows, Site, Span, dropout
from tunestack.methods.sublayers import sublayers
from tunestack.methods.targets import linear_names
from tunestack.params import count_parameters
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack

# What AdapterHub computed, see fixtures/adapterhub/record.py.

RECORDED = Path(__file__).parent / "fixtures" / "adapterhub"
HUB_CASES: dict[str, dict[str, Any]] = {
    "double_seq_bn": {"reduction_factor": 4},
    "learned": {"reduction_factor": 2, "non_linearity": "gelu", "scaling": "learned"},
    "seq_bn": {"reduction_factor": 4, "non_linearity": "relu", "after": "ffn"},
    "par_bn": {"placement": "parallel"},
}
LLAMA_PLACES = {"attention_adapters": "self_attn.o_proj", "output_adapters": "mlp.down_proj"}


class Recorded:
    """One kind of adapter on one recorded model; tensors by our names."""

    def __init__(self, kind: str, case: str) -> None:
        with safe_open(RECORDED / f"{kind}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            fields = json.loads(file.metadata()["config"])
        self.kind = kind
        config = AutoConfig.for_model(**fields, attn_implementation="eager")
        self.model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
        self.model.load_state_dict(_under(tensors, "base/"))
        self.inputs = _under(tensors, "inputs/")
        self.logits = tensors[f"{case}/logits"]
        self.weights = self._ours(_under(tensors, f"{case}/weights/"))
        self.gradients = self._ours(_under(tensors, f"{case}/gradients/"))
        assert min(float(gradient.abs().max()) for gradient in self.gradients.values()) > 1e-4

    def _ours(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self._name(name): tensor for name, tensor in tensors.items()}

    def _name(self, name: str) -> str:
        place, own = re.split(r"\.adapters\.\w+\.", name)
        place = {"bert": f"{place}.dense"}.get(self.kind, place)
        for theirs, ours in LLAMA_PLACES.items():
            place = place.replace(theirs, ours)
        own = own.replace("adapter_down.0", "down").replace("adapter_up", "up")
        return f"base_model.model.{place}.bottleneck_{own}"


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


HUB = [("bert", case) for case in HUB_CASES] + [("llama", case) for case in HUB_CASES if case != "par_bn"]


@pytest.mark.parametrize(("kind", "case"), HUB)
def test_logits_and_gradients_of_the_stack_equal_adapterhubs(kind: str, case: str) -> None:
    recorded = Recorded(kind, case)
    config = BottleneckConfig(**HUB_CASES[case])
    host = Host(recorded.model, ["classifier" if kind == "bert" else "score"])
    adapter = find_method(config.placement).attach(config, host, slot=0, seed=1)
    head = {name: p.detach() for name, p in adapter.parameters.items() if "bottleneck" not in name}
    adapter.load({**recorded.weights, **head})
    host.rows.set([Span(0, 0, 3)], 7)
    output = host.model(**recorded.inputs)
    output.loss.backward()
    torch.testing.assert_close(output.logits, recorded.logits, rtol=1e-5, atol=1e-6)
    gradients = {name: adapter.parameters[name].grad for name in recorded.gradients}
    tiny.assert_close(gradients, recorded.gradients, atol=1e-6)


@pytest.mark.parametrize(("kind", "case"), HUB)
def test_logits_and_gradients_of_the_plugin_equal_adapterhubs(kind: str, case: str) -> None:
    recorded = Recorded(kind, case)
    model = get_peft_model(recorded.model, BottleneckConfig(**HUB_CASES[case])).eval()
    assert set(get_peft_model_state_dict(model)) == set(recorded.weights)
    set_peft_model_state_dict(model, recorded.weights)
    output = model(**recorded.inputs)
    output.loss.backward()
    torch.testing.assert_close(output.logits, recorded.logits, rtol=1e-5, atol=1e-6)
    gradients = {n.replace(".default", ""): p.grad for n, p in model.named_parameters() if p.requires_grad}
    tiny.assert_close(gradients, recorded.gradients, atol=1e-6)


# The equation, in fp64.


def wide_awake(part: BottleneckPart, seed: int) -> BottleneckPart:
    """The part in fp64, none of its weights zero."""
    generator = torch.Generator().manual_seed(seed)
    part.double()
    for parameter in part.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return part


def adapted(part: BottleneckPart, x: Tensor, span: Span) -> Tensor:
    """s dropout(up(f(down(x)))), as it is written."""
    low = part.f(x @ part.down.t() + part.down_bias)
    return part.scaling * dropout(low @ part.up.t() + part.up_bias, part.p, span, "here")


def parts(placement: str, sizes: tuple[int, int]) -> list[BottleneckPart]:
    """Three that differ in all they can."""
    kind = SeriesPart if placement == "series" else ParallelPart
    fields: list[dict[str, Any]] = [
        {"bottleneck_size": 3, "non_linearity": "gelu", "scaling": "learned"},
        {"reduction_factor": 1.3, "non_linearity": "tanh", "scaling": -0.7, "adapter_dropout": 0.4},
        {"bottleneck_size": 1, "non_linearity": "swish", "scaling": "learned", "adapter_dropout": 0.2},
    ]
    configs = [BottleneckConfig(placement=placement, **each) for each in fields]  # type: ignore[arg-type]
    return [wide_awake(kind(config, *sizes), seed) for seed, config in enumerate(configs)]


SPANS = [Span(0, 0, 2, noise=11), Span(1, 2, 3, noise=12, lengths={4: 2}), Span(2, 4, 6, noise=13)]
"""Row 3 is nobody's, and neither is row 6."""


@pytest.mark.parametrize("mode", ["series", "parallel", "tapped"])
def test_outputs_and_gradients_equal_the_equation_in_fp64(mode: str) -> None:
    placement = "series" if mode == "series" else "parallel"
    features_in, features_out = (6, 6) if placement == "series" else (5, 6)
    own = parts(placement, (features_in, features_out))
    members = [Member(part, span, "here") for part, span in zip(own, SPANS, strict=True)]
    generator = torch.Generator().manual_seed(3)
    y0 = torch.randn(7, 4, features_out, dtype=torch.float64, generator=generator).requires_grad_()
    x0 = torch.randn(7, 4, features_in, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(7, 4, features_out, dtype=torch.float64, generator=generator)
    leaves = [y0, x0, *(parameter for part in own for parameter in part.parameters())]

    def gradients(result: Tensor) -> list[Tensor | None]:
        return list(torch.autograd.grad((result * weight).sum(), leaves, allow_unused=True))

    source = y0 if placement == "series" else x0
    expected = torch.cat(
        [
            y0[:2] + adapted(own[0], source[:2], SPANS[0]),
            y0[2:3] + adapted(own[1], source[2:3], SPANS[1]),
            y0[3:4],
            y0[4:6] + adapted(own[2], source[4:6], SPANS[2]),
            y0[6:],
        ]
    )
    if mode == "tapped":
        for part in own[1:]:  # the first reads the module's own input, which is the same here
            part.tap = Tap()
            part.tap.kept = x0 * 1
    result = type(own[0]).after(x0, y0 * 1, members)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(result), gradients(expected), strict=True):
        assert (ours is None) == (theirs is None) == (placement == "series" and ours is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    assert all(part.tap is None or part.tap.kept is None for part in own), "activations outlive their use"


def test_dropout_acts_in_training_and_keeps_the_mean() -> None:
    part = wide_awake(ParallelPart(BottleneckConfig(placement="parallel", adapter_dropout=0.5), 8, 8), 1)
    x, y = torch.randn(2, 3000, 8, dtype=torch.float64), torch.zeros(2, 3000, 8, dtype=torch.float64)
    quiet, noisy = (
        ParallelPart.after(x, y.clone(), [Member(part, Span(0, 0, 2, noise=noise), "here")])
        for noise in (None, 7)
    )
    dropped = noisy == 0
    assert float(dropped.double().mean()) == pytest.approx(0.5, abs=0.01)
    torch.testing.assert_close(noisy[~dropped], 2 * quiet[~dropped])


def test_a_site_in_a_model_that_folds_tokens_into_rows() -> None:
    """As OPT did: [rows x tokens, features]."""
    torch.manual_seed(0)
    linear, rows = nn.Linear(5, 6), Rows()
    rows.set([Span(0, 0, 2), Span(1, 2, 3)], 4)
    site = Site("here", linear, rows)
    own = [ParallelPart(BottleneckConfig(placement="parallel", bottleneck_size=2), 5, 6) for _ in range(2)]
    x = torch.randn(12, 5)
    for slot, part in enumerate(own):
        for parameter in (part.down, part.up, part.up_bias):
            nn.init.normal_(parameter)
        site.parts[slot] = [part]
    expected = nn.functional.linear(x, linear.weight, linear.bias)
    expected[:8] += adapted(own[0], x[:8], Span(0, 0, 2))
    expected[8:] += adapted(own[1], x[8:], Span(1, 2, 3))
    torch.testing.assert_close(linear(x), expected)


# Where it sits.


@pytest.mark.parametrize("kind", sorted(tiny.CONFIGS))
def test_every_sublayer_of_every_architecture_is_found(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    model = base.skeleton(AutoModelForSequenceClassification, base.model_config(2))
    row, names, problems = LAYOUTS[kind], linear_names(model), Problems()
    attention = sublayers(kind, names, ["attention"], "series", problems)
    ffn = sublayers(kind, names, ["ffn"], "series", problems)
    cross = tiny.LAYERS if "t5" in kind else 0
    layers = 2 * tiny.LAYERS if "t5" in kind else tiny.LAYERS
    assert (len(attention), len(ffn)) == (layers + cross, layers)
    assert not problems
    assert not set(attention) & set(ffn)
    for outlet, inlet in {**attention, **ffn}.items():
        number = [re.findall(r"\.\d+(?=\.)", name) for name in (outlet, inlet)]
        assert number[0] == number[1], "both in the same block"
    assert all(name.endswith(row.ffn_out) for name in ffn)
    assert all(name.endswith(row.attention_output) for name in attention)


def test_places_by_name(tmp_path: Path) -> None:
    def found(kind: str, **fields: Any) -> dict[str, str]:
        base = tiny.random_base(
            tmp_path, kind, num_hidden_layers=1, num_layers=1, num_decoder_layers=1, **fields
        )
        model = base.skeleton(AutoModelForSequenceClassification, base.model_config(2))
        return sublayers(kind, linear_names(model), ["attention", "ffn"], "series", Problems())

    layer = "bert.encoder.layer.0"
    assert found("bert") == {
        f"{layer}.attention.output.dense": f"{layer}.attention.self.query",
        f"{layer}.output.dense": f"{layer}.intermediate.dense",
    }
    layer = "deberta.encoder.layer.0"
    assert found("deberta-v2")[f"{layer}.attention.output.dense"] == f"{layer}.attention.self.value_proj"
    for inner, fields in (("wi", {}), ("wi_0", {"feed_forward_proj": "gated-gelu"})):
        places = found("t5", **fields)
        encoder, decoder = "transformer.encoder.block.0.layer", "transformer.decoder.block.0.layer"
        assert places == {
            f"{encoder}.0.SelfAttention.o": f"{encoder}.0.SelfAttention.q",
            f"{decoder}.0.SelfAttention.o": f"{decoder}.0.SelfAttention.q",
            f"{decoder}.1.EncDecAttention.o": f"{decoder}.1.EncDecAttention.q",
            f"{encoder}.1.DenseReluDense.wo": f"{encoder}.1.DenseReluDense.{inner}",
            f"{decoder}.2.DenseReluDense.wo": f"{decoder}.2.DenseReluDense.{inner}",
        }


MINILM = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("method", "fields", "expected"),
    [
        ("series", {"after": "ffn"}, 113_040),
        ("series", {}, 226_080),
        ("parallel", {}, 888_192),
        ("series", {"scaling": "learned"}, 226_080 + 12),
        ("parallel", {"target_modules": ["query"], "bottleneck_size": 5}, 6 * (2 * 5 * 384 + 5 + 384)),
    ],
)
def test_parameter_counts(tmp_path: Path, method: str, fields: dict[str, Any], expected: int) -> None:
    """Published by AdapterHub for seq_bn, double_seq_bn and par_bn; the head has 385 x 2 more."""
    path = tiny.write_config(tmp_path, "bert", **MINILM)
    counted = count_parameters(path, method, fields)
    assert counted.trainable == expected + 770


# Initial weights.


def open_slot(base: Base, method: str, seed: int = 3, **fields: Any) -> tuple[Stack, Slot]:
    """A stack with one slot."""
    work = tiny.workload(base)
    stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
    return stack, stack.open(tiny.trial(base, "one", seed, method=method, **fields))


def drawn(slot: Slot, ending: str) -> list[Tensor]:
    return [p.detach().flatten() for n, p in slot.adapter.parameters.items() if n.endswith(ending)]


def test_initial_weights(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert", hidden_size=64, intermediate_size=80)
    _, slot = open_slot(base, "series", bottleneck_size=32)
    for ending in ("down.weight", "up.weight"):
        values = torch.cat(drawn(slot, ending))
        assert float(values.std()) == pytest.approx(0.02, rel=0.02)
        assert float(values.mean()) == pytest.approx(0, abs=1e-3)
        assert float(values.abs().max()) > 3 * 0.02, "normal, not cut off"
    assert not any(bool(values.any()) for values in drawn(slot, "bias") if len(values) in (32, 64))
    _, slot = open_slot(base, "parallel", bottleneck_size=32, scaling="learned")
    values, bound = torch.cat(drawn(slot, "down.weight")), 1 / math.sqrt(64)
    assert float(values.abs().max()) == pytest.approx(bound, rel=1e-2)
    assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not torch.cat(drawn(slot, "up.weight")).any()
    assert torch.equal(torch.cat(drawn(slot, "scaling")), torch.ones(tiny.LAYERS))
    assert len({tuple(each[:4].tolist()) for each in drawn(slot, "down.weight")}) == tiny.LAYERS


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_at_the_start_parallel_is_the_base_and_series_is_near_it(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    logits = {}
    for method in ("parallel", "series", "lora"):
        stack, slot = (
            open_slot(base, method, bottleneck_size=8) if method != "lora" else open_slot(base, "lora")
        )
        logits[method] = stack.outputs([slot], stack.work.encoded("validation", 512))[0]
    torch.testing.assert_close(logits["parallel"], logits["lora"], rtol=1e-5, atol=1e-6)
    distance = float((logits["series"] - logits["lora"]).abs().max())
    assert 1e-5 < distance < 0.1
    assert find_method("parallel").starts_as_base
    assert not find_method("series").starts_as_base


def test_a_seed_decides_the_weights_without_the_global_state(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    flats = []
    for seed in (1, 2, 1):
        _, slot = open_slot(base, "series", seed)
        flats.append(torch.cat([*drawn(slot, "down.weight"), *drawn(slot, "up.weight")]))
        torch.manual_seed(seed + 50)
    assert torch.equal(flats[0], flats[2])
    assert not torch.equal(flats[0], flats[1])


# In company.


def mixed(base: Base, **fields: Any) -> list[Any]:
    """Trials of both placements that differ in all they can, and one of LoRA."""
    row = LAYOUTS[base.config.model_type]
    return [
        tiny.trial(base, "houlsby", 1, method="series", bottleneck_size=2, batch_size=4, **fields),
        tiny.trial(
            base, "pfeiffer", 2, method="series", after="ffn", non_linearity="tanh", scaling="learned",
            reduction_factor=4, epochs=1.5, adapter_dropout=0.3, weight_decay=0.5, **fields,
        ),
        tiny.trial(base, "beside", 3, method="parallel", bottleneck_size=5, batch_size=5, epochs=3, **fields),
        tiny.trial(
            base, "everywhere", 4, method="parallel", after=["ffn", "attention"], scaling="learned",
            non_linearity="gelu", adapter_dropout=0.2, max_length=9, init_weights="bert", **fields,
        ),
        tiny.trial(
            base, "single", 5, method="parallel", target_modules=[row.query, row.ffn_out],
            bottleneck_size=3, scaling=0.5, epochs=1, max_grad_norm=0.05, **fields,
        ),
        tiny.trial(base, "lora", 6, target_modules="all-linear", lora_dropout=0.1, epochs=2),
    ]  # fmt: skip


STACKED = [
    ("bert", {}),
    ("llama", {}),
    ("gpt2", {}),
    ("deberta-v2", {}),
    ("t5", {"initializer_factor": 0.7, "feed_forward_proj": "gated-gelu"}),
]


@pytest.mark.parametrize(("kind", "fields"), STACKED, ids=[kind for kind, _ in STACKED])
def test_a_stack_of_k_equals_k_solo_runs(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    base = tiny.random_base(tmp_path, kind, **fields)
    work = tiny.workload(base)
    trials = mixed(base)
    solo = tiny.alone(work, trials)
    for key, ended in solo.items():
        own = [tensor for name, tensor in ended.final.items() if "up.weight" in name or "lora_B" in name]
        assert max(float(tensor.abs().max()) for tensor in own) > 1e-3, f"{key} has trained"
    refilled = tiny.run(work, trials[::-1], slots=4)
    for key, ended in solo.items():
        tiny.assert_same(refilled[key], ended)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, kind: str) -> None:
    results = {}
    kept = []

    class Watching(tiny.Watched):
        def step(self, *args: Any) -> None:
            super().step(*args)
            taps = [part for site in self.host.sites.values() for own in site.parts.values() for part in own]
            kept.append([part.kept for part in taps if isinstance(part, Tap)])

    for checkpointing in (False, True):
        base = tiny.random_base(tmp_path, kind, gradient_checkpointing=checkpointing)
        results[checkpointing] = tiny.run(tiny.workload(base), mixed(base)[:5], stack=Watching)
    for key, ended in results[True].items():
        tiny.assert_same(ended, results[False][key], atol=1e-6)
    assert any(kept)
    assert not any(tensor is not None for step in kept for tensor in step)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_gradients_on_a_bf16_base_are_those_of_fp32_rounded(tmp_path: Path, kind: str) -> None:
    path = tiny.write_config(tmp_path, kind)
    gradients: dict[str, list[Tensor]] = {}
    for dtype in ("float32", "bfloat16"):
        base = tiny.open_base(f"random:{path}", dtype=dtype)
        work = tiny.workload(base)
        stack = Stack(work, base.load_model(work.task.auto_class, work.task.model_config(base)))
        slots = [stack.open(trial) for trial in mixed(base)[:5]]
        for slot in slots:
            slot.flat.add_(
                torch.randn(slot.flat.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1
            )
        stack._backward(slots)
        gradients[dtype] = [slot.grad.clone() for slot in slots]
    for exact, rounded in zip(gradients["float32"], gradients["bfloat16"], strict=True):
        assert float((exact - rounded).norm() / exact.norm()) < 0.05


def test_the_base_is_given_back(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    work = tiny.workload(base)
    loaded = base.load_model(work.task.auto_class, work.task.model_config(base))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    stack = Stack(work, loaded)
    forwards = taken_over(loaded.model)
    slots = [stack.open(trial) for trial in mixed(base)]
    stack.step(slots, lambda event: None)
    for slot in slots:
        stack.close(slot)
    assert not stack.host.sites
    assert taken_over(loaded.model) == forwards
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())


def taken_over(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if "forward" in vars(module)}


def test_weights_decay_and_biases_and_scales_do_not(tmp_path: Path) -> None:
    _, slot = open_slot(tiny.random_base(tmp_path, "bert"), "series", scaling="learned")
    own = {name for name in slot.adapter.parameters if "bottleneck" in name}
    assert {name for name in own if name not in slot.adapter.no_decay} == {
        name for name in own if name.endswith(("down.weight", "up.weight"))
    }


# Bad input.


def refused(base: Base, method: str = "series", **fields: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(base, method, fields)
    return str(caught.value)


def check(base: Base, method: str, fields: dict[str, Any]) -> None:
    family = find_method(method)
    config = family.make_config(fields, base.config.model_type, [])
    family.check(config, base.skeleton(AutoModelForSequenceClassification, base.model_config(2)))


def test_configs_that_cannot_work_are_refused_with_what_would(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    assert "Did you mean 'relu'" in refused(base, non_linearity="rellu")
    assert "without weights" in refused(base, non_linearity="xielu")
    assert "either bottleneck_size or reduction_factor" in refused(
        base, bottleneck_size=4, reduction_factor=2
    )
    assert "either target_modules or after" in refused(base, target_modules=["query"], after="ffn")
    assert "at least 1, found 0" in refused(base, bottleneck_size=0)
    assert "above 0, found -2" in refused(base, reduction_factor=-2)
    assert "at most 16" in refused(base, reduction_factor=17)
    assert "0 <= p < 1, found 1.0" in refused(base, adapter_dropout=1.0)
    assert "'attention' or 'ffn'" in refused(base, after="everything")
    assert "attention, ffn" in refused(base, after=[])
    assert "Did you mean 'bottleneck_size'" in refused(base, botleneck_size=4)
    assert "method: parallel" in refused(base, placement="parallel")
    assert "method: series" in refused(base, "parallel", placement="series")
    assert "which matches none" in refused(base, target_modules=["qerry"])
    assert "matches none" in refused(base, modules_to_save=["nonsense"])
    several = refused(base, scaling=math.nan, non_linearity="rellu", bottleneck_size=0)
    assert all(word in several for word in ("scaling", "non_linearity", "bottleneck_size"))
    with pytest.raises(UserError, match="series or parallel, found 'across'"):
        BottleneckConfig(placement="across")  # type: ignore[arg-type]


def test_an_architecture_without_a_layout_says_which_names_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "unknown.json"
    path.write_text(json.dumps({**tiny.CONFIGS["bert"], "model_type": "ernie"}))
    base = tiny.open_base(f"random:{path}")
    said = refused(base)
    assert "series.target_modules" in said
    assert "'ernie'" in said
    assert "query" in said
    _, slot = open_slot(base, "series", target_modules=["attention.output.dense"], bottleneck_size=2)
    assert sum("bottleneck_up.weight" in name for name in slot.adapter.parameters) == tiny.LAYERS


def test_defaults_are_those_of_the_papers() -> None:
    series, parallel = BottleneckConfig(), BottleneckConfig(placement="parallel")
    assert (series.after, series.reduction_factor, series.scaling) == (["attention", "ffn"], 16, 1.0)
    assert (series.non_linearity, series.init_weights) == ("swish", "bert")
    assert (parallel.after, parallel.reduction_factor, parallel.scaling) == (["ffn"], 2, 4.0)
    assert (parallel.non_linearity, parallel.init_weights) == ("relu", "mam_adapter")
    assert BottleneckConfig(bottleneck_size=7).size(384) == 7
    assert BottleneckConfig(reduction_factor=0.5).size(8) == 16
    assert BottleneckConfig(target_modules=["query"]).after is None
    assert BottleneckConfig(after="ffn").after == ["ffn"]


def test_an_interrupted_forward_leaves_nothing_behind(tmp_path: Path) -> None:
    """Out of memory, what a sublayer's beginning kept for its end must not be in the way of the next try."""
    base = tiny.random_base(tmp_path, "llama")
    work = tiny.workload(base)
    held: list[int] = []

    class Failing(tiny.Watched):
        def _backward(self, slots: Any) -> list[float]:
            taps = [
                part
                for site in self.host.sites.values()
                for parts in site.parts.values()
                for part in parts
                if isinstance(part, Tap)
            ]
            held.append(sum(tap.kept is not None for tap in taps))
            if len(slots) > 1:
                for tap in taps:
                    tap.kept = torch.zeros(1)
                raise torch.OutOfMemoryError("out of memory")
            return super()._backward(slots)

    trials = [tiny.trial(base, f"parallel-{seed}", seed, method="parallel", epochs=1) for seed in (1, 2)]
    ended = tiny.run(work, trials, stack=Failing)
    assert not any(trial.failure for trial in ended.values())
    assert not any(held)
