"""Tiny models with random weights and tiny texts that can be learned, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from peft import PeftConfig
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from tunestack.bases import Base, load_base
from tunestack.bases.sources import byte_tokenizer
from tunestack.bases.tiny import tiny_configs
from tunestack.config import BaseConfig, TrainingConfig
from tunestack.methods.registry import find_method
from tunestack.stack import loop
from tunestack.stack.events import Notify
from tunestack.stack.lanes import Lanes
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.work import Outcome, Workload
from tunestack.tasks.classification import SequenceClassification

HIDDEN, LAYERS, TOKENS = 16, 2, 96
CONFIGS = tiny_configs(HIDDEN, layers=LAYERS, tokens=TOKENS)
for _kind in ("bert", "roberta", "electra"):
    CONFIGS[_kind]["intermediate_size"] = 2 * HIDDEN  # compiled kernels want multiples of 16
LABELS = ["calm", "urgent"]


def write_config(folder: Path, kind: str, **fields: Any) -> Path:
    """A config.json of this kind of model, with some fields replaced."""
    path = folder / f"{kind}.json"
    path.write_text(json.dumps({**CONFIGS[kind], **fields}))
    return path


def random_base(folder: Path, kind: str, *, gradient_checkpointing: bool = False, **fields: Any) -> Base:
    """A base with random weights of this kind, in fp32 on the processor."""
    path = write_config(folder, kind, **fields)
    return open_base(f"random:{path}", gradient_checkpointing=gradient_checkpointing)


def open_base(model: str, **settings: Any) -> Base:
    """A base in fp32 on the processor."""
    return load_base(BaseConfig(model=model, **{"dtype": "float32", "device_map": "cpu", **settings}))


def save_base(folder: Path, kind: str, *, head: bool = False, **fields: Any) -> Path:
    """A folder with a model and its tokenizer: the plain model, without pooler, or one with a head."""
    config = AutoConfig.for_model(**{**CONFIGS[kind], **fields})
    torch.manual_seed(11)
    if head:
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        options = {"add_pooling_layer": False} if kind in ("bert", "roberta") else {}
        model = AutoModel.from_config(config, **options)
    place = folder / f"saved-{kind}"
    model.save_pretrained(place)
    byte_tokenizer(config).save_pretrained(place)
    return place


def texts(count: int, seed: int, longest: int = 12) -> dict[str, list[Any]]:
    """Short texts of skewed lengths whose label shows in their letters, one in ten mislabelled."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {"text": [], "label": []}
    for _ in range(count):
        label = int(random.random() < 0.4)
        words = 1 + int(longest * random.beta(1, 4))
        letters = "abcde" if label else "cdefg"
        text = " ".join("".join(random.choice(list(letters), random.integers(1, 6))) for _ in range(words))
        rows["text"].append(text)
        rows["label"].append(label if random.random() < 0.9 else 1 - label)
    rows["label"][:2] = [0, 1]
    return rows


FLAG_NAMES = ("a", "b", "e")


def flagged(given: list[str]) -> dict[str, list[Any]]:
    """The texts, flagged by which of `FLAG_NAMES` are frequent letters of theirs."""
    flags = [[int(text.count(letter) > len(text) / 9) for letter in FLAG_NAMES] for text in given]
    return {"text": given, "label": flags}


def flag_names(split: dict[str, list[Any]]) -> list[list[str]]:
    """The flags of every row by their names."""
    return [[name for name, flag in zip(FLAG_NAMES, row) if flag] for row in split["label"]]


TAGS = ("B-A", "B-D", "I-A", "O")


def tagged(count: int, seed: int) -> dict[str, list[Any]]:
    """Sentences whose words are tagged by their first letters; the longest have a dozen words."""
    tokens = [text.split() for text in texts(count, seed)["text"]]
    tags = []
    for words in tokens:
        kinds = ["A" if word[0] in "ab" else "D" if word[0] == "d" else None for word in words]
        before = [None, *kinds]
        parts = ["I" if kind == last == "A" else "B" for kind, last in zip(kinds, before)]
        tags.append([TAGS.index(f"{p}-{k}" if k else "O") for p, k in zip(parts, kinds, strict=True)])
    return {"tokens": tokens, "tags": tags}


def tag_names(split: dict[str, list[Any]]) -> list[list[str]]:
    """The tags of every row by their names."""
    return [[TAGS[tag] for tag in row] for row in split["tags"]]


def questions(count: int, seed: int) -> dict[str, list[Any]]:
    """Which word stands behind the letter that is asked for? One in four asks for one that is not there."""
    random = np.random.default_rng(seed)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("id", "question", "context", "answer_texts", "answer_starts", "row")
    }
    for row in range(count):
        words = ["".join(random.choice(list("abcde"), random.integers(1, 6))) for _ in range(1 + row % 9)]
        letters = list(random.permutation(list("PQRSTUVWXYZ"))[: len(words) + 1])
        context = " ".join(f"{letter} {word}" for letter, word in zip(letters, words))
        asked = len(words) if random.random() < 0.25 else int(random.integers(len(words)))
        found = asked < len(words)
        rows["id"].append(f"{seed}-{row}")
        rows["question"].append(f"{letters[asked]}?")
        rows["context"].append(context)
        rows["answer_texts"].append([words[asked]] if found else [])
        rows["answer_starts"].append([context.index(letters[asked]) + 2] if found else [])
        rows["row"].append(row)
    return rows


def workload(base: Base, rows: int = 26, test: bool = False, metric: str = "accuracy") -> Workload:
    """Classification of tiny texts on this base."""
    splits = {"train": texts(rows, seed=1), "validation": texts(14, seed=2)}
    if test:
        splits["test"] = texts(9, seed=3)
    return Workload(base, SequenceClassification(LABELS), splits, metric)


def lora_config(base: Base, **fields: Any) -> PeftConfig:
    """A LoRA config for this base."""
    head = base.load_model(SequenceClassification.auto_class, base.model_config(2)).head
    values = {"r": 3, "lora_alpha": 6, **fields}
    return find_method("lora").make_config(values, base.config.model_type, list(head))


def trial(base: Base, key: str, seed: int = 1, method: str = "lora", **fields: Any) -> Trial:
    """A trial; fields of the training settings are taken out, the others are the method's."""
    training = {name: fields.pop(name) for name in list(fields) if name in TrainingConfig.model_fields}
    defaults = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 6, "class_weights": None}
    if method == "lora":
        config = lora_config(base, **fields)
    else:
        config = find_method(method).make_config(fields, base.config.model_type, [])
    return Trial(key, find_method(method), config, TrainingConfig(**{**defaults, **training}), seed)


class Ended:
    """What a trial reached, copied out of its slot: weights at the end and at the best epoch."""

    def __init__(self, outcome: Outcome, final: dict[str, torch.Tensor]) -> None:
        self.final = final
        self.best = outcome.slot.adapter.tensors()
        self.curve = outcome.slot.progress.curve
        self.best_epoch = outcome.slot.progress.best_epoch
        self.steps = outcome.slot.progress.step
        self.answers = outcome.answers
        self.failure = outcome.failure


class Watched(loop.Stack):
    """A stack that keeps the weights that each trial ends with, before its best ones are restored."""

    finals: ClassVar[dict[str, dict[str, torch.Tensor]]] = {}

    def outcome(self, slot: Slot) -> Outcome:
        self.finals[slot.trial.key] = slot.adapter.tensors()
        return super().outcome(slot)


def run(
    work: Workload,
    trials: list[Trial],
    slots: int | None = 8,
    notify: Notify = lambda event: None,
    checkpoints: Path | None = None,
    stack: type[loop.Stack] = Watched,
    lanes: int = 1,
) -> dict[str, Ended]:
    """Train the trials to their ends, in so many lanes whatever the machine has."""

    def count(self: Lanes, device: torch.device) -> None:
        self.count = lanes

    with patch.object(loop, "Stack", stack), patch.object(Lanes, "__init__", count):
        return {
            outcome.trial.key: Ended(outcome, Watched.finals[outcome.trial.key])
            for outcome in loop.train(work, trials, slots, notify, checkpoints)
        }


def influential(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, with zeros where it is the bias of attention's keys, or of logits over a text's tokens.

    Softmax does not see it: its gradient is rounding noise, which Adam scales up to whole steps.
    """
    if name.endswith((".key.bias", ".key.base_layer.bias", ".k_lin.bias", ".k_lin.base_layer.bias")):
        return torch.zeros_like(tensor)
    if name.endswith("qa_outputs.bias"):
        return torch.zeros_like(tensor)
    if ".c_attn." in name and name.endswith("bias"):
        query, key, value = tensor.chunk(3)
        return torch.cat([query, torch.zeros_like(key), value])
    return tensor


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    """Both hold the same tensors, by name."""
    assert set(ours) == set(theirs)
    for name in ours:
        torch.testing.assert_close(
            influential(name, ours[name]),
            influential(name, theirs[name]),
            rtol=1e-5,
            atol=atol,
            msg=lambda told, name=name: f"{name}: {told}",
        )


TOLERANCE = 2e-5


def mixed(base: Base, all_biases: str = "all", **fields: Any) -> list[Trial]:
    """Five trials that differ in all that a trial can differ in."""
    return [
        trial(base, "plain", 1, batch_size=4, r=2, **fields),
        trial(
            base,
            "wide",
            2,
            r=5,
            target_modules="all-linear",
            batch_size=7,
            epochs=1.5,
            lr_scheduler_type="linear",
            warmup_ratio=0.2,
            class_weights="balanced",
            **fields,
        ),
        trial(
            base,
            "biases",
            3,
            bias=all_biases,
            batch_size=5,
            epochs=3,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_ratio=0.1,
            class_weights=[0.3, 2.0],
            max_grad_norm=0.05,
            **fields,
        ),
        trial(
            base,
            "short",
            4,
            bias="lora_only",
            use_rslora=True,
            max_length=9,
            epochs=4,
            early_stopping_patience=1,
            weight_decay=0.5,
            learning_rate=1e-2,
            **fields,
        ),
        trial(base, "unclipped", 1, init_lora_weights=False, max_grad_norm=0, epochs=2.3, **fields),
    ]


def assert_same(ours: Ended, theirs: Ended, atol: float = TOLERANCE) -> None:
    """Two runs of a trial reached the same, all the way."""
    assert ours.failure is theirs.failure is None
    assert ours.steps == theirs.steps
    assert [(point.epoch, point.step) for point in ours.curve] == [
        (point.epoch, point.step) for point in theirs.curve
    ]
    for mine, other in zip(ours.curve, theirs.curve, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert mine.validation_loss == pytest.approx(other.validation_loss, abs=1e-4)
        # Correlations of answers that hardly vary magnify the rounding of these.
        assert mine.metrics == pytest.approx(other.metrics, abs=1e-5)
    assert ours.best_epoch == theirs.best_epoch
    assert_close(ours.final, theirs.final, atol)
    assert_close(ours.best, theirs.best, atol)
    assert set(ours.answers) == set(theirs.answers)
    for split, given in ours.answers.items():
        np.testing.assert_allclose(given, theirs.answers[split], atol=1e-4)


def alone(work: Workload, trials: list[Trial]) -> dict[str, Ended]:
    """Every trial in a stack of one."""
    return {trial.key: run(work, [trial])[trial.key] for trial in trials}
