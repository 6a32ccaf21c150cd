"""Model cards of every task: their snippets run as they stand and answer as tunestack does."""

from __future__ import annotations

import contextlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import tunestack
from task_samples import SAMPLES
from tunestack.choice import Description
from tunestack.config import TaskConfig
from tunestack.export.folder import Options, export_candidate
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload

OPTIONS: dict[str, dict[str, Any]] = {
    "multi-label": {"separator": "; ", "threshold": 0.45},
    "text-to-text": {"label_texts": {"calm": "xy", "urgent": "zx"}},
    "question-answering": {"null_threshold": 0.25},
    "instruction": {"num_beams": 3, "length_penalty": 0.5},
}
"""Settings that a snippet has to know, beside those of the sample."""
CASES = [
    *((name, kind, OPTIONS.get(name, {})) for name, sample in SAMPLES.items() for kind in sample.kinds),
    ("instruction", "llama", {"num_beams": 1}),
]
GENERATION = {
    "eos_token_id": [2, 4, 57],
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 5,
}
"""What bases name for generating, beside greedy decoding or beams: of this the ends of texts count alone."""
ANSWERS = 3
"""To how many texts snippets are asked for, each with another answer where there are so many."""


@dataclass(frozen=True)
class Saved:
    """A tiny base, and an adapter on it that answers one text so and another otherwise."""

    name: str
    base: Path
    adapter: Path


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case[:2]))
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    name, kind, options = request.param
    sample, folder = SAMPLES[name], tmp_path_factory.mktemp(name)
    place = tiny.save_base(folder, kind, **sample.fields)
    (place / "generation_config.json").write_text(json.dumps(GENERATION))
    if kind == "mt5":  # stands for bases whose tokenizer adds nothing to a text
        tokens = json.loads((place / "tokenizer.json").read_text())
        (place / "tokenizer.json").write_text(json.dumps({**tokens, "post_processor": None}))
    base = tiny.open_base(str(place))
    task = sample.make()
    loaded = base.load_model(task.auto_class_for(base.config), task.model_config(base))
    stack = Stack(Workload(base, task, sample.splits, task.default_metric), loaded)
    trial = tiny.trial(base, "x", target_modules="all-linear")
    trial.config.task_type = task.peft_type_for(base.config)
    slot = stack.open(trial)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in slot.adapter.parameters.values():
            if parameter.ndim > 1:  # a bias is the same for all texts
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.6)
    adapter = folder / "adapter"
    trial.method.save(adapter, slot.config, slot.adapter, stack.host, base.name)
    base.tokenizer.save_pretrained(str(adapter))
    options = {**task.options.model_dump(exclude_unset=True), **options}
    Description(
        kind="method",
        method="lora",
        base=base.settings,
        task=TaskConfig(name=name, options=options),
        label_names=list(task.label_names),
        text_pair="text_pair" if "text_pair" in sample.splits["test"] else None,
        max_length=64,
    ).save(adapter)
    return Saved(name, Path(base.name), adapter)


@pytest.mark.parametrize("merge", [False, True])
def test_snippets_answer_as_tunestack_does(
    saved: Saved, merge: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export_candidate(saved.adapter, tmp_path / "out", options=Options(merge=merge))
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert ("peft" in code) == (not merge)
    predictor = tunestack.load(out, device="cpu")
    split = SAMPLES[saved.name].splits["train"]
    columns = [name for name in predictor.task.inputs if name in split]
    rows = [tuple(map(plain, row)) for row in zip(*(split[name] for name in columns))]
    found = dict(zip(predictor.predict(*map(list, zip(*rows))), rows))
    assert len(found) > 1, "all texts are answered alike"
    example = tuple(predictor.task.example[name] for name in columns)
    (own,) = predictor.predict(*([text] for text in example))
    monkeypatch.chdir(out)
    for expected, texts in [(own, example), *list(found.items())[:ANSWERS]]:
        asked = code.replace(f"PATH/TO/{saved.base.name}", str(saved.base))
        for old, new in zip(example, texts):
            assert json.dumps(old) in asked
            asked = asked.replace(json.dumps(old), json.dumps(new))
        said = printed(asked)
        assert same(said, expected), f"{texts}: {said!r} and not {expected!r}"


def plain(text: Any) -> str:
    """A text, or words with spaces between them."""
    return text if isinstance(text, str) else " ".join(text)


def printed(code: str) -> str:
    """What Python prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, "card", "exec"), {})
    return said.getvalue().removesuffix("\n")


def same(said: str, expected: Any) -> bool:
    """Whether that is what was printed: an answer, or what a pipeline says of it."""
    if isinstance(expected, float):
        return float(said) == pytest.approx(expected, abs=1e-4)
    return said == expected or f"'label': '{expected}'" in said
