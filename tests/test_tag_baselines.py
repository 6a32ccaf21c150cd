"""Baselines that tag words, against plain counting, scikit-learn and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel

import tiny
import tunestack
from saved_baselines import assert_same_in_a_fresh_process
from task_samples import SAMPLES, TAGGED
from tunestack.baselines.base import Fitted
from tunestack.baselines.logistic import STRENGTHS, held_out
from tunestack.baselines.registry import find_baseline
from tunestack.baselines.tag_probe import FittedTagProbe
from tunestack.bases import Base
from tunestack.data.tagged import padded_tags
from tunestack.data.words import EncodedWords
from tunestack.errors import UserError
from tunestack.export.folder import export_candidate
from tunestack.results import Results
from tunestack.tasks.token_classification import TokenClassification

TASK = TokenClassification(tiny.TAGS)
TRAIN = TAGGED["train"]
NEW = TAGGED["validation"]
LENGTH = 14
"""Tokens of a row: several sentences have more."""


def frequent(split: Any) -> Fitted:
    baseline = find_baseline("most-frequent-tag", TASK)
    return baseline.fit(TASK, split, baseline.make_options({}), None)


def probe(base: Base, split: Any = TRAIN, **fields: Any) -> FittedTagProbe:
    baseline = find_baseline("linear-probe", TASK)
    fitted = baseline.fit(TASK, split, baseline.make_options({"max_length": LENGTH, **fields}), base)
    assert isinstance(fitted, FittedTagProbe)
    return fitted


def encode(base: Base, split: Any = TRAIN) -> EncodedWords:
    encoded = TASK.encode(base, split, LENGTH)
    assert encoded.truncated > 1  # there are long sentences among them
    return encoded


def rows_of(split: Any, rows: Any) -> dict[str, Any]:
    return {name: [column[row] for row in rows] for name, column in split.items()}


def sentence(words: str, tags: str) -> tuple[list[str], list[int]]:
    return words.split(), [tiny.TAGS.index(tag) for tag in tags.split()]


def split_of(*sentences: tuple[list[str], list[int]]) -> dict[str, Any]:
    return {"tokens": [words for words, _ in sentences], "tags": [tags for _, tags in sentences]}


def test_the_most_frequent_class_is_refused_with_what_can_do_the_task() -> None:
    with pytest.raises(UserError, match="or take most-frequent-tag or linear-probe"):
        find_baseline("majority", TASK)


# ---------------------------------------------------------------- most frequent tag


def test_a_word_gets_its_tag_as_written_then_in_lower_case_then_that_of_words_seen_once() -> None:
    train = split_of(
        sentence("May may may May May", "B-D O O B-D O"),
        sentence("Ada ADA Ada . . . .", "B-A O I-A O O O O"),
        sentence("Dover Paris rain", "B-D B-D O"),
    )
    new = {"tokens": [["May", "may", "MAY", "ada", "Ada", "ADA"], ["aDa", "Zebra"], "Rome . DOVER"]}
    told = TASK.told(new, frequent(train).answers(TASK, new))["prediction"]
    # Of equally frequent tags O is the one that is more frequent in all; else the lower id.
    assert told == ["B-D O O O B-A O", "O B-D", "B-D O B-D"]
    fitted = frequent(train)
    assert fitted.trainable_parameters == fitted.total_parameters == 8 + 3 + 1  # as written, in lower case


def test_without_words_seen_once_new_ones_get_the_most_frequent_tag_of_all() -> None:
    train = split_of(sentence("a a b b", "B-A B-A B-D B-A"))
    assert frequent(train).answers(TASK, {"tokens": ["b c"]}).tolist() == [[0, 0]]
    assert frequent(train).answers(TASK, {"tokens": []}).shape == (0, 0)


WORD = st.sampled_from(["a", "A", "b", "B", "cd", "cD", "CD", "e", "F", "é", "É"])


@given(
    rows=st.lists(st.lists(st.tuples(WORD, st.integers(0, 3)), min_size=1), min_size=1),
    new=st.lists(st.lists(WORD, min_size=1), min_size=1),
)
def test_counting_by_hand_gives_the_same(rows: list[list[tuple[str, int]]], new: list[list[str]]) -> None:
    pairs = [pair for row in rows for pair in row]
    overall = [sum(tag == one for _, tag in pairs) for one in range(4)]

    def best(chosen: list[tuple[str, int]]) -> int:
        counts = [sum(tag == one for _, tag in chosen) for one in range(4)]
        return max(range(4), key=lambda one: (counts[one], overall[one], -one))

    def expected(word: str) -> int:
        for chosen in (
            [pair for pair in pairs if pair[0] == word],
            [pair for pair in pairs if pair[0] == word.lower()],
            [pair for pair in pairs if pair[0].lower() == word.lower()],
        ):
            if chosen:
                return best(chosen)
        once = [a for a in pairs if sum(a[0].lower() == b[0].lower() for b in pairs) == 1] or pairs
        return max(range(4), key=lambda one: (sum(tag == one for _, tag in once), -one))

    train = {"tokens": [[w for w, _ in row] for row in rows], "tags": [[t for _, t in row] for row in rows]}
    found = frequent(train).answers(TASK, {"tokens": new})
    assert found.tolist() == padded_tags({"tags": [[expected(w) for w in row] for row in new]}).tolist()


# ---------------------------------------------------------------- linear probe


def by_hand(base: Base, model: Any, split: Any) -> tuple[Any, Any]:
    """States of words' first tokens, sentence by sentence and row by row, without padding; their tags."""
    encoded, states = encode(base, split), []
    for row in range(len(encoded)):
        with torch.no_grad():
            hidden = model(torch.from_numpy(encoded.input_ids[row])[None]).last_hidden_state[0]
        for place in encoded.firsts[row]:
            states.append(hidden[int(place)].double().numpy())
    return np.stack(states), np.asarray([tag for tags in split["tags"] for tag in tags])


def test_the_probe_is_scikit_learns_regression_on_transformers_states(tmp_path: Path) -> None:
    saved = tiny.save_base(tmp_path, "bert")
    base = tiny.open_base(str(saved))
    model = AutoModel.from_pretrained(saved, dtype="float32").eval()
    states, tags = by_hand(base, model, TRAIN)
    scaler = StandardScaler().fit(states)
    theirs = LogisticRegression(C=0.3, max_iter=1000).fit(scaler.transform(states), tags)
    fitted = probe(base, C=0.3)
    new = scaler.transform(by_hand(base, model, NEW)[0])
    expected = theirs.predict_proba(new)
    np.testing.assert_allclose(fitted.linear.answers(scaler.inverse_transform(new)), expected, atol=2e-3)
    sure = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 0.01
    given = fitted.answers(TASK, NEW)
    own = given[given >= 0]
    assert (own == expected.argmax(axis=1))[sure].all()
    assert sure.mean() > 0.9
    assert ((given >= 0) == (padded_tags(NEW) >= 0)).all()
    assert len(set(own)) > 2


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta-v2", "llama", "gpt2"])
def test_tags_are_those_of_transformers_with_the_weights_in_its_head(kind: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, kind)
    base.tokenizer.padding_side = "left"  # what some decoders prefer must not move positions
    fitted = probe(base, C=1.0)
    model: Any = base.load_model(TASK.auto_class, TASK.model_config(base)).model
    head = model.score if hasattr(model, "score") else model.classifier
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(fitted.linear.coef))
        head.bias.copy_(torch.from_numpy(fitted.linear.intercept))
    encoded, given = encode(base, NEW), fitted.answers(TASK, NEW)
    for row in range(len(encoded)):
        with torch.no_grad():
            logits = model(torch.from_numpy(encoded.input_ids[row])[None]).logits[0]
        begin, firsts = encoded.begin[row], encoded.firsts[row]
        own = given[encoded.sentence[row], begin : begin + len(firsts)]
        assert own.tolist() == logits[firsts].argmax(dim=-1).tolist()
    assert len(np.unique(given)) > 3
    plain = 4 * base.config.get_text_config().hidden_size + 4
    assert fitted.trainable_parameters == plain
    assert fitted.total_parameters == plain + model.base_model.num_parameters()


def test_the_penalty_is_the_best_on_sentences_held_out(tmp_path: Path) -> None:
    """Against all penalties, each from the beginning; equal sentences are on one side."""
    saved = tiny.save_base(tmp_path, "bert")
    base = tiny.open_base(str(saved))
    split = rows_of(TRAIN, [*range(26), *range(26)])
    texts = [" ".join(words) for words in split["tokens"]]
    fitted, held = held_out(texts)
    assert not {texts[row] for row in fitted} & {texts[row] for row in held}
    assert sorted([*fitted, *held]) == list(range(52))
    assert 5 < len(held) < 16
    model = AutoModel.from_pretrained(saved, dtype="float32").eval()
    states, tags = by_hand(base, model, split)
    states = StandardScaler().fit_transform(states)
    sentence = np.repeat(np.arange(52), [len(words) for words in split["tokens"]])
    learnt, other = np.isin(sentence, fitted), np.isin(sentence, held)
    losses = []
    for strength in STRENGTHS:
        cold = LogisticRegression(C=strength, max_iter=1000).fit(states[learnt], tags[learnt])
        losses.append(log_loss(tags[other], cold.predict_proba(states[other]), labels=cold.classes_))
    best = STRENGTHS[int(np.argmin(losses))]
    ours = probe(base, split).linear.coef
    np.testing.assert_array_equal(ours, probe(base, split, C=best).linear.coef)
    assert all(
        np.abs(ours - probe(base, split, C=strength).linear.coef).max() > 1e-2
        for strength in STRENGTHS
        if strength != best
    )


LONE = {
    "one sentence": split_of(sentence("ab cd", "B-A O")),
    "equal sentences": split_of(*[sentence("ab cd", "B-A O")] * 4),
    "a tag in one sentence each": split_of(sentence("ab", "B-A"), sentence("dd", "B-D")),
}


@pytest.mark.parametrize("name", LONE)
def test_where_nothing_tells_the_penalty_stays(name: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    split = LONE[name]
    np.testing.assert_array_equal(probe(base, split).linear.coef, probe(base, split, C=1.0).linear.coef)
    assert (probe(base, split).answers(TASK, split) == padded_tags(split)).all()


def test_tags_of_one_sentence_alone_hinder_nothing(tmp_path: Path) -> None:
    """Wherever that sentence lies: held out or not."""
    base = tiny.random_base(tmp_path, "bert")
    known = [[tag if tag in (0, 3) else 3 for tag in tags] for tags in TRAIN["tags"]]
    for row in range(0, 26, 3):
        tags = [*known[:row], [1] * len(known[row]), *known[row + 1 :]]
        fitted = probe(base, {"tokens": TRAIN["tokens"], "tags": tags}, max_iter=50)
        assert np.isfinite(fitted.linear.coef).all()
        assert set(fitted.linear.classes) == {0, 1, 3}


def test_one_tag_alone_is_refused(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    split = {**TRAIN, "tags": [[3] * len(tags) for tags in TRAIN["tags"]]}
    with pytest.raises(UserError, match="at least two classes, found 1 in"):
        probe(base, split)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_the_probe_learns_what_a_linear_layer_can(kind: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, kind)
    fitted, new = probe(base, tiny.tagged(200, 1)), tiny.tagged(60, 2)
    scores = TASK.scores(new, fitted.answers(TASK, new))
    most = max(np.bincount(padded_tags(new)[padded_tags(new) >= 0])) / sum(map(len, new["tags"]))
    assert scores["accuracy"] > most + 0.1


def test_the_probe_is_the_same_each_time_and_stops_when_told(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    np.testing.assert_array_equal(probe(base).linear.coef, probe(base).linear.coef)
    stopped = probe(base, C=1.0, max_iter=1).linear.coef
    assert not np.allclose(probe(base, C=1.0).linear.coef, stopped)


def test_of_many_words_sentences_at_even_distances_are_taken(tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert")
    words = sum(map(len, TRAIN["tokens"]))
    half = rows_of(TRAIN, range(0, 26, 2))
    some = probe(base, max_words=words // 2 + 1, C=0.1).linear.coef
    np.testing.assert_array_equal(some, probe(base, half, C=0.1).linear.coef)
    assert np.abs(some - probe(base, C=0.1).linear.coef).max() > 1e-3
    whole = probe(base, max_words=words, C=0.1).linear.coef
    np.testing.assert_array_equal(whole, probe(base, C=0.1).linear.coef)


def test_a_probe_refuses_other_bases(tmp_path: Path) -> None:
    probe(tiny.random_base(tmp_path, "bert")).save(tmp_path / "saved")
    baseline = find_baseline("linear-probe", TASK)
    with pytest.raises(UserError, match="with 16 features, found"):
        baseline.load(tmp_path / "saved", tiny.random_base(tmp_path, "gpt2", n_embd=32, hidden_size=32))
    with pytest.raises(UserError, match="expected an encoder or a decoder, found an encoder-decoder"):
        baseline.check_base(tiny.random_base(tmp_path, "t5"))


# ---------------------------------------------------------------- saved, and in a comparison


@pytest.mark.parametrize("name", ["most-frequent-tag", "linear-probe"])
def test_a_saved_baseline_gives_the_same_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    fitted: Fitted = (
        frequent(TRAIN) if name == "most-frequent-tag" else probe(tiny.random_base(tmp_path, "bert"))
    )
    assert_same_in_a_fresh_process(fitted, TASK, TASK.texts(TAGGED["test"]), tmp_path, {})


@pytest.mark.parametrize("file", ["baseline.safetensors", "words.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_file_is_named(file: str, damage: str, tmp_path: Path) -> None:
    frequent(TRAIN).save(tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=file):
        find_baseline("most-frequent-tag", TASK).load(tmp_path, None)


@pytest.mark.parametrize("content", ['["a"]', "7", "{}"])
def test_words_of_another_baseline_are_refused(content: str, tmp_path: Path) -> None:
    frequent(TRAIN).save(tmp_path)
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(UserError, match=r"words\.json"):
        find_baseline("most-frequent-tag", TASK).load(tmp_path, None)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """LoRA beside both baselines, with costs."""
    folder = tmp_path_factory.mktemp("compared")
    base = tiny.save_base(folder, "bert")
    data = SAMPLES["token-classification"].write(folder)["data"]
    values = {
        "task": "token-classification",
        "bases": {"model": str(base), "dtype": "float32", "device_map": "cpu"},
        "methods": [{"method": "lora", "r": 2}, "linear-probe", "most-frequent-tag"],
        "training": {"epochs": 1, "learning_rate": 1e-2, "max_length": LENGTH},
        "seeds": 1,
        "output": folder / "run",
        "progress": False,
        **{name: path for name, path in data.items() if name != "train"},
    }
    return folder, (values, tunestack.compare(data["train"], **values), data)


def test_a_comparison_with_both(compared: tuple[Path, Any]) -> None:
    folder, (_, results, _) = compared
    assert [one.name for one in results.candidates] == ["lora", "linear-probe", "most-frequent-tag"]
    for candidate in results.candidates:
        (seed,) = candidate.seeds
        assert seed.failure is None
        assert candidate.reads_text
        assert candidate.hyperparameters.get("max_length", LENGTH) == LENGTH
        costs = candidate.costs
        for cost in (costs.train_seconds, costs.inference_examples_per_second, costs.adapter_bytes):
            assert cost is not None
            assert cost > 0
        predictor = tunestack.load(folder / "run" / str(seed.adapter_path))
        frame = pd.read_csv(folder / "run" / seed.test.predictions_path, dtype=str, keep_default_na=False)
        assert predictor.predict(TAGGED["test"]["tokens"]) == frame["prediction"].tolist()
    probed = results.candidates[1].costs
    assert probed.trainable_parameters == 4 * 16 + 4
    cut = [said for said in results.data.warnings if f"read in rows of {LENGTH} tokens" in said]
    assert len(cut) == 1
    assert "lora, linear-probe." in cut[0]
    assert "always answering" not in results.verdict.sentence


def test_a_baseline_that_was_fitted_is_not_fitted_again(compared: tuple[Path, Any]) -> None:
    folder, (values, results, data) = compared
    files = sorted((folder / "run").rglob("baseline.safetensors"))
    assert len(files) == 2
    before = [path.stat().st_mtime_ns for path in files]
    again: Results = tunestack.compare(data["train"], **values)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert [one.model_dump() for one in again.candidates] == [one.model_dump() for one in results.candidates]


@pytest.mark.parametrize("name", ["linear-probe", "most-frequent-tag"])
def test_a_baseline_is_exported_whole_and_reads_every_format(
    name: str, compared: tuple[Path, Any], command: Any, tmp_path: Path
) -> None:
    folder, (_, results, data) = compared
    out = export_candidate(folder / "run", tmp_path / name, candidate=name)
    card = (out / "README.md").read_text()
    assert f"A baseline, `{name}`" in card
    assert "token-classification" in card
    seed = next(one for one in results.candidates if one.name == name).seeds[0]
    path = folder / "run" / seed.test.predictions_path
    stored = pd.read_csv(path, dtype=str, keep_default_na=False)["prediction"].tolist()
    sentences = TAGGED["test"]["tokens"]
    (tmp_path / "text.csv").write_text("tokens\n" + "".join(" ".join(words) + "\n" for words in sentences))
    (tmp_path / "words.conll").write_text("".join("\n".join(words) + "\n\n" for words in sentences))
    for source in (data["test"], tmp_path / "text.csv", tmp_path / "words.conll"):
        done = command("predict", out, source, "--out", tmp_path / "told.csv", "--overwrite")
        assert done.code == 0, done.err
        told = pd.read_csv(tmp_path / "told.csv", dtype=str, keep_default_na=False)["prediction"]
        assert told.tolist() == stored
