"""Labels as texts: transformers' own losses, beam search and PEFT's training loop are the oracles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    TaskType,
    get_peft_model,
    set_peft_model_state_dict,
)
from transformers import T5EncoderModel, get_scheduler

import runs
import tiny
import tunestack
from tunestack.bases import Base
from tunestack.comparison.plan import make_plan
from tunestack.config import CompareConfig, DataConfig, TrainingConfig
from tunestack.entries import BaseCheck, entry_training, method_config
from tunestack.errors import UserError
from tunestack.export.folder import Options, export_candidate
from tunestack.methods.base import read_tensors
from tunestack.methods.registry import find_method
from tunestack.saved import Seat
from tunestack.settings import read_yaml, validated
from tunestack.stack.slot import Slot, Trial
from tunestack.stack.stack import Stack
from tunestack.stack.work import Workload
from tunestack.tasks.text_to_text import NOTHING, TextToText, TextToTextOptions

PROMPT = "Text : {text} Label : "
LABELS = ["no", "no complaint", "complaint"]
"""One is the beginning of another."""


def open_base(folder: Path, kind: str, **fields: Any) -> Base:
    """A tiny base whose tokenizer knows every byte; T5s with narrow weights, as everywhere in these tests."""
    settings = {name: fields.pop(name) for name in ("gradient_checkpointing",) if name in fields}
    return tiny.random_base(
        folder, kind, **{"vocab_size": 300, "initializer_factor": 1.0, **fields}, **settings
    )


def texts(count: int, seed: int) -> dict[str, list[Any]]:
    """Tiny texts of three labels."""
    rows = tiny.texts(count, seed)
    return {**rows, "label": [label if index % 3 else 2 for index, label in enumerate(rows["label"])]}


def workload(base: Base, prompt: str = PROMPT, rows: int = 20) -> Workload:
    task = TextToText(LABELS, TextToTextOptions(prompt=prompt))
    return Workload(base, task, {"train": texts(rows, 1), "validation": texts(9, 2)}, "accuracy")


def trial(work: Workload, key: str, seed: int = 1, method: str = "lora", **fields: Any) -> Trial:
    training = {name: fields.pop(name) for name in list(fields) if name in TrainingConfig.model_fields}
    defaults = {"learning_rate": 5e-3, "epochs": 1, "batch_size": 5, "class_weights": None}
    own = find_method(method)
    config = method_config(own, fields, BaseCheck(work.base, work.task))
    return Trial(key, own, config, TrainingConfig(**{**defaults, **training}), seed)


def open_stack(work: Workload) -> Stack:
    return Stack(work, work.base.load_model(work.task.auto_class, work.task.model_config(work.base)))


def plain_model(work: Workload) -> Any:
    """The base as transformers has it."""
    model = work.base.load_model(work.task.auto_class, work.task.model_config(work.base)).model
    model.set_attn_implementation("eager")
    return model


def disturb(slot: Slot) -> None:
    generator = torch.Generator().manual_seed(slot.trial.seed)
    slot.flat.add_(torch.randn(slot.flat.shape, generator=generator), alpha=0.1)


def scores_in_a_loop(model: Any, work: Workload) -> torch.Tensor:
    """Each text with each label by itself: minus transformers' mean loss times the number of tokens.

    PEFT is asked for logits: its AdaLoRA cannot make a loss of an adapter that is only used.
    """
    tokenizer: Any = work.base.tokenizer
    prompt = work.task.options.prompt
    scores = []
    for text in work.splits["validation"]["text"]:
        inputs = tokenizer(prompt.format(text=text), return_tensors="pt")
        for label in LABELS:
            written = tokenizer(text_target=label, return_tensors="pt")["input_ids"]
            given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                if isinstance(model, PeftModel):
                    read = model.get_base_model().prepare_decoder_input_ids_from_labels(written)
                    logits = model(**given, decoder_input_ids=read).logits
                    loss = torch.nn.functional.cross_entropy(logits[0], written[0])
                else:
                    loss = model(**given, labels=written).loss
            scores.append(-float(loss) * written.shape[1])
    return torch.tensor(scores).view(-1, len(LABELS))


def own_scores(stack: Stack, slot: Any) -> torch.Tensor:
    return stack.outputs([slot], stack.work.encoded("validation", 512))[0]


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_scores_are_those_of_transformers_own_loss(tmp_path: Path, kind: str) -> None:
    base = open_base(tmp_path, kind, num_decoder_layers=3)
    work = workload(base)
    stack = open_stack(work)
    slot = stack.open(trial(work, "lora"))
    expected = scores_in_a_loop(plain_model(work), work)
    assert expected.std(dim=0).min() > 1e-2, "texts matter"
    torch.testing.assert_close(own_scores(stack, slot), expected, rtol=1e-4, atol=1e-4)
    found = stack.answers([slot], work.encoded("validation", 512))[0]
    np.testing.assert_allclose(found.given, torch.softmax(expected.double(), dim=1), atol=1e-5)
    labels = work.splits["validation"]["label"]
    tokens = [len(base.tokenizer(text_target=LABELS[label])["input_ids"]) for label in labels]
    assert found.loss == pytest.approx(-float(expected[range(9), labels].sum()) / sum(tokens), rel=1e-4)


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_the_most_probable_label_is_what_beam_search_writes(tmp_path: Path, kind: str) -> None:
    """Search among the labels alone, scores not divided by length."""
    base = open_base(tmp_path, kind)
    work = workload(base)
    tokenizer: Any = base.tokenizer
    written = [tokenizer(text_target=label)["input_ids"] for label in LABELS]

    def allowed(_: int, so_far: torch.Tensor) -> list[int]:
        done = so_far.tolist()[1:]
        return [ids[len(done)] for ids in written if ids[: len(done)] == done and len(ids) > len(done)] or [0]

    stack = open_stack(work)
    model = plain_model(work)
    scores = own_scores(stack, stack.open(trial(work, "lora")))
    chosen = set()
    for text, own in zip(work.splits["validation"]["text"], scores, strict=True):
        inputs = tokenizer(PROMPT.format(text=text), return_tensors="pt", return_token_type_ids=False)
        found = model.generate(
            **inputs, prefix_allowed_tokens_fn=allowed, num_beams=len(LABELS), length_penalty=0.0,
            max_new_tokens=40, return_dict_in_generate=True, output_scores=True, use_cache=True,
        )  # fmt: skip
        best = tokenizer.decode(found.sequences[0], skip_special_tokens=True).strip()
        assert best == LABELS[int(own.argmax())]
        assert float(found.sequences_scores[0]) == pytest.approx(float(own.max()), rel=1e-4)
        chosen.add(best)
    assert chosen


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_training_is_that_of_a_plain_loop_with_peft(tmp_path: Path, kind: str) -> None:
    base = open_base(tmp_path, kind)
    work = workload(base)
    fields = {"learning_rate": 1e-2, "lr_scheduler_type": "linear", "warmup_ratio": 0.1, "epochs": 2}
    one = trial(work, "one", 3, r=2, lora_alpha=8, max_grad_norm=0.5, weight_decay=0.1, **fields)
    slot = open_stack(work).open(one)
    config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=2, lora_alpha=8, target_modules=["q", "v"])
    model = get_peft_model(plain_model(work), config)
    set_peft_model_state_dict(model, slot.adapter.tensors())
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1)
    steps = one.training.steps(20)
    scheduler = get_scheduler("linear", optimizer, int(np.ceil(0.1 * steps)), steps)
    encoded: Any = work.encoded("train", 512)
    losses = []
    for epoch in range(2):
        for indices in slot.batches(epoch):
            labels = torch.from_numpy(encoded.label_ids[encoded.labels[indices]])
            rows = {"input_ids": [encoded.input_ids[index] for index in indices]}
            inputs = base.tokenizer.pad(rows, return_tensors="pt")
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            losses.append(float(loss.detach()))
            torch.nn.utils.clip_grad_norm_(trained.values(), 0.5)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    ended = tiny.run(work, [one])["one"]
    assert ended.curve[0].train_loss == pytest.approx(np.mean(losses[:4]), rel=1e-4)
    assert ended.curve[1].train_loss == pytest.approx(np.mean(losses[4:]), rel=1e-4)
    theirs = {name.replace(".default", ""): p.detach() for name, p in trained.items()}
    tiny.assert_close(ended.final, theirs, 1e-4)
    moved = max(float((ended.final[name] - old).abs().max()) for name, old in slot.adapter.tensors().items())
    assert moved > 1e-2


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_stack_of_k_equals_k_solo_runs(tmp_path: Path, kind: str, lanes: int) -> None:
    """Texts about as long as the labels, so that lengths of encoder and decoder coincide in some batches."""
    work = workload(open_base(tmp_path, kind, num_decoder_layers=3), "{text}")
    weights = [0.5, 1.0, 3.0]
    trials = [
        trial(work, "lora", 1, r=2, lora_dropout=0.3, base_dropout=True, class_weights="balanced"),
        trial(work, "all", 2, r=3, target_modules="all-linear", lora_dropout=0.2, max_length=7, batch_size=3),
        trial(work, "series", 3, "series", bottleneck_size=3, class_weights=weights, base_dropout=True),
        trial(work, "parallel", 4, "parallel", bottleneck_size=3, epochs=1.5),
        trial(work, "prompt", 5, "prompt", num_virtual_tokens=3, learning_rate=1e-2),
        trial(work, "p-tuning", 6, "p-tuning", num_virtual_tokens=2, encoder_hidden_size=5),
        trial(work, "prefix", 7, "prefix", num_virtual_tokens=2, encoder_hidden_size=5),
        trial(work, "v2", 8, "p-tuning-v2", num_virtual_tokens=5, max_length=9, base_dropout=True),
        trial(work, "ia3", 9, "ia3", learning_rate=1e-2),
        trial(work, "norms", 10, "layernorm", learning_rate=1e-2),
    ]
    solo = tiny.alone(work, trials)
    together = tiny.run(work, trials, slots=len(trials), lanes=lanes)
    refilled = tiny.run(work, trials[::-1], slots=3)
    for key, ended in solo.items():
        tiny.assert_same(together[key], ended, 1e-4)
        tiny.assert_same(refilled[key], ended, 1e-4)


def test_lengths_of_texts_and_labels_never_coincide(tmp_path: Path) -> None:
    """Dropout tells them apart by it."""
    base = open_base(tmp_path, "t5")
    task = TextToText(["ab", "abcd"])
    encoded = task.encode(base, {"text": ["abcd", "a"], "label": [0, 1]}, 512)
    assert encoded.lengths.max() == encoded.label_ids.shape[1] == 6
    batch = task.batch([(encoded, np.arange(2))], 0, [0])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 7)
    assert not batch["attention_mask"][:, 6].any()
    assert task.batch([(encoded, np.arange(2))], 0, [2])["input_ids"].shape == (2, 8)


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"r": 2, "target_modules": "all-linear"}),
    ("lora", {"r": 2, "use_dora": True}),
    ("ia3", {}),
    ("layernorm", {}),
    ("prompt", {"num_virtual_tokens": 3}),
    ("p-tuning", {"num_virtual_tokens": 2, "encoder_hidden_size": 5}),
    ("prefix", {"num_virtual_tokens": 2, "encoder_hidden_size": 5}),
    ("p-tuning-v2", {"num_virtual_tokens": 4}),
    ("adalora", {"init_r": 4, "target_r": 2}),
    ("vera", {"r": 3}),
    ("loha", {"r": 2}),
]


@pytest.mark.parametrize("kind", ["t5", "mt5"])
@pytest.mark.parametrize(("method", "fields"), METHODS, ids=lambda value: str(value))
def test_adapters_load_in_plain_peft(tmp_path: Path, kind: str, method: str, fields: dict[str, Any]) -> None:
    """As PEFT's class for these models, which scores the labels alike; and nothing is trained whole."""
    work = workload(open_base(tmp_path, kind, num_decoder_layers=3))
    stack = open_stack(work)
    slot = stack.open(trial(work, "one", 2, method, **fields))
    fresh = own_scores(stack, slot)
    disturb(slot)
    ours = own_scores(stack, slot)
    assert not torch.allclose(fresh, ours, atol=1e-2), "its weights matter"
    slot.trial.method.save(tmp_path / "adapter", slot.config, slot.adapter, stack.host, work.base.name)
    model = PeftModel.from_pretrained(plain_model(work), str(tmp_path / "adapter")).eval()
    assert type(model).__name__ == "PeftModelForSeq2SeqLM"
    assert model.active_peft_config.task_type == TaskType.SEQ_2_SEQ_LM
    assert not model.active_peft_config.to_dict().get("modules_to_save")
    torch.testing.assert_close(ours, scores_in_a_loop(model, work), rtol=1e-4, atol=1e-3)
    if slot.trial.method.stacks:
        stack.close(slot)
        torch.testing.assert_close(scores_of_saved(stack, method, tmp_path / "adapter"), ours)
    if slot.trial.method.merges:
        merged = slot.trial.method.merge(tmp_path / "adapter", plain_model(work))
        torch.testing.assert_close(ours, scores_in_a_loop(merged, work), rtol=1e-4, atol=1e-3)


def scores_of_saved(stack: Stack, method: str, folder: Path) -> torch.Tensor:
    """What an adapter's files answer, read anew."""
    own = find_method(method)
    config = own.read_config(folder)
    own.check(config, stack.host.model)
    adapter = own.attach(config, stack.host, 99, seed=0)
    adapter.load(read_tensors(folder))
    return own_scores(stack, Seat(99, adapter.virtual_tokens))


@pytest.mark.parametrize("layers", [2, 3])
def test_prefixes_that_peft_trained_are_read_as_it_reads_them(tmp_path: Path, layers: int) -> None:
    """It has half as many entries as it takes: layers share some."""
    work = workload(open_base(tmp_path, "t5", num_layers=layers, num_decoder_layers=layers))
    config = PrefixTuningConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, num_virtual_tokens=3, token_dim=24, num_attention_heads=4
    )
    model = get_peft_model(plain_model(work), config).eval()
    assert model.active_peft_config.num_layers == layers
    model.save_pretrained(tmp_path / "adapter")
    saved = scores_of_saved(open_stack(work), "p-tuning-v2", tmp_path / "adapter")
    torch.testing.assert_close(saved, scores_in_a_loop(model, work), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_recomputed_blocks_give_the_same_gradients(tmp_path: Path, method: str) -> None:
    grads = []
    for recompute in (False, True):
        work = workload(open_base(tmp_path, "t5", gradient_checkpointing=recompute))
        slot = (stack := open_stack(work)).open(trial(work, "one", 2, method))
        disturb(slot)
        stack._backward([slot])
        grads.append(slot.grad.clone())
    assert grads[0].abs().max() > 1e-3
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_the_encoder_runs_once_for_all_labels(tmp_path: Path) -> None:
    work = workload(open_base(tmp_path, "t5"))
    stack = open_stack(work)
    slot = stack.open(trial(work, "one"))
    calls: list[str] = []
    for name in ("encoder.block.1", "decoder.block.1", "decoder.block.1.layer.1.EncDecAttention.k"):
        stack.host.modules[name].register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    stack._evaluation_tokens = 10**6
    own_scores(stack, slot)
    assert [calls.count(name) for name in dict.fromkeys(calls)] == [1, 3, 1]


def test_batches_of_evaluation_leave_room_for_the_vocabulary(tmp_path: Path) -> None:
    base = open_base(tmp_path, "mt5")
    base.config.vocab_size = 250_112
    task = TextToText(LABELS)
    encoded = task.encode(base, {"text": ["a", "b c"]}, 512)
    tokens = max(len(base.tokenizer(text_target=label)["input_ids"]) for label in LABELS)
    assert encoded.labels is None
    assert (task.evaluation_sizes(encoded) - encoded.lengths).tolist() == [tokens * 250_112 // 8192] * 2


def test_class_weights_weigh_the_tokens_of_their_rows() -> None:
    task = TextToText(["a", "b"])
    scores = torch.tensor([[-1.0, -2.0], [-4.0, -3.0], [-0.5, -6.0]])
    targets = torch.tensor([[0, 2], [1, 3], [1, 3]])
    assert float(task.loss(scores, targets, None)) == pytest.approx((1 + 3 + 6) / 8)
    weights = torch.tensor([2.0, 0.5])
    assert float(task.loss(scores, targets, weights)) == pytest.approx((2 + 1.5 + 3) / (4 + 1.5 + 1.5))


def test_long_texts_are_cut_and_the_prompt_is_not(tmp_path: Path) -> None:
    base = open_base(tmp_path, "t5")
    task = TextToText(["a", "b"], TextToTextOptions(prompt="<{text}|{text_pair}>"))
    split = {"text": ["x" * 50, "x" * 3], "text_pair": ["y" * 5, "y"], "label": [0, 1]}
    encoded = task.encode(base, split, 20)
    told = [base.tokenizer.decode(ids, skip_special_tokens=True) for ids in encoded.input_ids]
    assert told == [f"<{'x' * 10}|{'y' * 5}>", "<xxx|y>"]
    assert encoded.truncated == 1
    assert encoded.lengths.tolist() == [20 - 1 + (len(told[0]) - 17), 9]
    with pytest.raises(UserError, match="room for a text"):
        TextToText(["a", "b"], TextToTextOptions(prompt="x" * 30 + "{text}")).encode(base, split, 20)


def test_what_is_written_for_a_label(tmp_path: Path) -> None:
    base = open_base(tmp_path, "t5")
    task = TextToText(["0", "1"], TextToTextOptions(label_texts={0: "no", "1": "yes"}))
    encoded = task.encode(base, {"text": ["a"]}, 512)
    told = [base.tokenizer.decode(ids[ids != NOTHING], skip_special_tokens=True) for ids in encoded.label_ids]
    assert told == ["no", "yes"]
    assert [ids[ids != NOTHING][-1] for ids in encoded.label_ids] == [base.tokenizer.eos_token_id] * 2


def test_labels_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    base = open_base(tmp_path, "t5", vocab_size=160)  # a tokenizer without a token for the space
    with pytest.raises(UserError) as caught:
        TextToText(["ab", "a b", "AB"], TextToTextOptions(label_texts={"AB": "ab"})).check_base(
            base, {}, 512, 512
        )
    first, second = caught.value.problems
    assert "'a b'" in first.where
    assert "does not know" in first.found
    assert ("'AB'" in second.where, second.found) == (True, "those of 'ab'")
    TextToText(["ab", "a"]).check_base(base, {}, 512, 512)
    with pytest.raises(UserError, match="room for a text beside the prompt"):
        TextToText(["ab", "a"], TextToTextOptions(prompt="x" * 30 + "{text}")).check_base(base, {}, 20, 512)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_other_bases_are_refused_before_anything_is_loaded(tmp_path: Path, kind: str) -> None:
    task = TextToText(["a", "b"])
    with pytest.raises(UserError, match=f"encoder-decoder.*'{kind}'.*task classification"):
        method_config(find_method("lora"), {}, BaseCheck(tiny.random_base(tmp_path, kind), task))


def test_a_base_without_a_decoder_is_refused(tmp_path: Path) -> None:
    place = tiny.save_base(tmp_path, "t5", vocab_size=300)
    T5EncoderModel.from_pretrained(place).save_pretrained(place)
    work = workload(tiny.open_base(str(place)))
    with pytest.raises(UserError, match=r"weights of the whole model.*decoder\."):
        open_stack(work)


@pytest.mark.parametrize("prompt", ["no place", "{}", "{text", "{text!r}", "{text:>9}", "{text} {label}"])
def test_prompts_that_cannot_be_filled_are_refused(prompt: str) -> None:
    with pytest.raises(UserError, match="prompt"):
        validated(TextToTextOptions, {"prompt": prompt})


def test_settings_that_do_not_suit_the_data_are_told_together(tmp_path: Path) -> None:
    data = DataConfig(train=runs.write_data(tmp_path, pairs=True)["train"], text_pair="second")
    with pytest.raises(UserError) as caught:
        TextToText.load(data, TextToTextOptions(label_texts={"urgnt": "x", "calm": " "}))
    wheres = [problem.where.removeprefix("task text-to-text: ") for problem in caught.value.problems]
    assert wheres == ["prompt", "label_texts", "label_texts.calm"]
    assert "'urgent'" in caught.value.problems[1].fix
    with pytest.raises(UserError, match="text_pair"):
        TextToText.load(
            data.model_copy(update={"text_pair": None}), TextToTextOptions(prompt="{text}{text_pair}")
        )
    paired = TextToText.load(data, TextToTextOptions(prompt="{text} / {text_pair}"))
    assert "text_pair" in paired.train.column_names


@pytest.fixture(scope="module")
def separable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts whose first word tells their label, and a tiny T5."""
    folder = tmp_path_factory.mktemp("separable")
    random = np.random.default_rng(4)
    for split, rows in {"train": 96, "validation": 32, "test": 24}.items():
        names = [tiny.LABELS[index % 2] for index in range(rows)]
        words = {"calm": "sea", "urgent": "fire"}
        made = [f"{words[name]} {random.choice(['north', 'south', 'east', 'west'])}" for name in names]
        pd.DataFrame({"text": made, "label": names}).to_csv(folder / f"{split}.csv", index=False)
    tiny.save_base(folder, "t5", vocab_size=300, initializer_factor=1.0)
    return folder


def test_a_comparison_learns_beside_baselines(separable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = runs.settings(
        separable,
        task={"name": "text-to-text", "prompt": "{text} :", "label_texts": {"urgent": "now"}},
        bases=[{"model": str(separable / "saved-t5"), "dtype": "float32", "device_map": "cpu"}],
        methods=[
            "majority",
            {"method": "tfidf", "min_df": 1},
            {"method": "lora", "r": 8, "target_modules": "all-linear"},
            {"method": "full", "training": {"learning_rate": 1e-2}},
        ],
        training={"epochs": 6, "learning_rate": 1e-2, "batch_size": 8},
        seeds=1,
    )
    results = runs.compare(values)
    by_name = {candidate.name: candidate for candidate in results.candidates}
    assert set(by_name) == {"majority", "tfidf", "lora", "full"}
    assert not [one.seeds[0].failure for one in by_name.values() if one.seeds[0].failure]
    reached = {name: one.seeds[0].test.metrics["accuracy"] for name, one in by_name.items()}
    assert reached["majority"] == 0.5
    assert reached["lora"] == reached["full"] == 1.0
    assert results.verdict is not None
    test = pd.read_csv(separable / "test.csv")
    for name in ("lora", "full"):
        seed = by_name[name].seeds[0]
        saved = runs.probabilities(Path(values["output"]), seed.test.predictions_path)
        predictor = tunestack.load(Path(values["output"]) / seed.adapter_path, device="cpu")
        np.testing.assert_allclose(predictor.predict_proba(list(test["text"])), saved, atol=1e-5)
        assert predictor.predict(["sea west", "fire north"]) == ["calm", "urgent"]
        for merge in sorted({False, name == "lora"}):
            out = separable / f"{name}-{merge}"
            export_candidate(values["output"], out, candidate=name, options=Options(merge=merge))
            page = (out / "README.md").read_text(encoding="utf-8")
            (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
            monkeypatch.chdir(out)
            found: dict[str, Any] = {}
            exec(code.replace('"PATH/TO/saved-t5"', repr(str(separable / "saved-t5"))), found)
            kind = "T5ForConditionalGeneration" if merge or name == "full" else "PeftModelForSeq2SeqLM"
            assert type(found["model"]).__name__ == kind
            shipped = tunestack.load(out, device="cpu")
            np.testing.assert_allclose(shipped.predict_proba(list(test["text"])), saved, atol=1e-4)


def test_a_plan_names_what_is_wrong_with_base_and_labels(separable: Path) -> None:
    tiny.save_base(separable, "bert")
    values = runs.settings(
        separable,
        task={"name": "text-to-text", "label_texts": {"urgent": "calm"}},
        bases=[str(separable / "saved-t5"), str(separable / "saved-bert")],
        methods=["tfidf", "lora", "ia3"],
        seeds=1,
    )
    with pytest.raises(UserError) as caught:
        make_plan(validated(CompareConfig, values))
    told = str(caught.value)
    assert "those of 'calm'" in told
    assert "encoder-decoder" in told


def test_the_recipe_has_the_settings_of_the_walk_through() -> None:
    path = Path(__file__).parent.parent / "recipes" / "twitter_complaints_mt0.yaml"
    config = validated(CompareConfig, read_yaml(path))
    options = validated(TextToTextOptions, config.task.options)
    assert options.prompt.format(text="Hi") == "Tweet text : Hi Label : "
    lora = config.methods[-1]
    assert (config.task.name, lora.config) == (
        TextToText.name,
        {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1},
    )
    training = entry_training(config.training, "lora", lora.config, lora.training, "methods.2")
    assert (training.learning_rate, training.batch_size, training.epochs) == (1e-3, 8, 3)
    assert training.lr_scheduler_type == "linear"


def test_the_published_number_of_trained_parameters(tmp_path: Path) -> None:
    """PEFT's walk-through on mt0-large: 2,359,296; with its head apart from the embeddings 1,231,940,608."""
    sizes = {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_decoder_layers": 24}
    base = open_base(tmp_path, "mt5", **sizes, num_heads=16, vocab_size=250_112)
    check = BaseCheck(base, TextToText(["complaint", "no complaint"]))
    config = method_config(find_method("lora"), {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1}, check)
    theirs = get_peft_model(check.skeleton, config)
    trained, every = theirs.get_nb_trainable_parameters()
    assert trained == 2_359_296
    assert every + 250_112 * 1024 == 1_231_940_608
