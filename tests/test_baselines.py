"""Baselines against scikit-learn and transformers themselves; saved ones in a fresh process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import f1_score, log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForSequenceClassification

from saved_baselines import assert_same_in_a_fresh_process
from tunestack.baselines.base import Baseline, Fitted, read_saved
from tunestack.baselines.linear_probe import FeatureCache, LinearProbe, TextEncoder
from tunestack.baselines.logistic import STRENGTHS, Logistic, LogisticOptions, fit_logistic
from tunestack.baselines.registry import BASELINES, find_baseline, learned, needs_base
from tunestack.bases import Base, load_base
from tunestack.config import BaseConfig
from tunestack.errors import UserError
from tunestack.tasks.classification import SequenceClassification
from tunestack.tasks.instruction import Instruction
from tunestack.tasks.question_answering import QuestionAnswering

FIRE = [
    "fire in the old mill",
    "smoke and fire by the river",
    "flood warning for the valley",
    "the mill burns",
]
CALM = ["this album is fire", "burning through my savings", "a flood of nice mail", "the old river walk"]
TEXTS = (FIRE + CALM) * 3
PAIRS = [text[::-1] for text in TEXTS]
LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0] * 3)
NEW = ["fire by the mill", "nice album", "x", "a very long walk by the old river " * 4]
NEW_PAIRS = ["the valley", "y", "savings and mail", "burns"]

CLASSES = SequenceClassification(("no", "yes"))
ALL = [baseline for named in BASELINES.values() for baseline in named]

CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {
        "model_type": "bert",
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
    },
    "llama": {
        "model_type": "llama",
        "vocab_size": 99,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 99,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
    },
}


def tiny_base(folder: Path, kind: str = "bert", **fields: Any) -> Base:
    path = folder / f"{kind}.json"
    path.write_text(json.dumps({**CONFIGS[kind], **fields}))
    return load_base(BaseConfig(model=f"random:{path}", dtype="float32", device_map="cpu"))


def fit(
    name: str, base: Base | None, fields: dict[str, Any] | None = None, pairs: list[str] | None = None
) -> Fitted:
    baseline = find_baseline(name, CLASSES)
    return baseline.fit(CLASSES, split(TEXTS, pairs, LABELS), baseline.make_options(fields or {}), base)


def split(texts: Any, pairs: Any = None, labels: Any = None) -> dict[str, Any]:
    columns = {"text": texts, "text_pair": pairs, "label": labels}
    return {name: column for name, column in columns.items() if column is not None}


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("baseline", ALL, ids=lambda one: type(one).__name__)
def test_every_problem_of_the_options_is_named_at_once(baseline: Baseline) -> None:
    with pytest.raises(UserError) as caught:
        baseline.make_options({"min_dff": 3, "colour": "red"})
    assert [problem.where for problem in caught.value.problems] == [
        f"{baseline.name}.min_dff",
        f"{baseline.name}.colour",
    ]


@pytest.mark.parametrize(
    ("name", "fields", "where"),
    [
        ("tfidf", {"C": 0}, "tfidf.C"),
        ("tfidf", {"min_df": 0}, "tfidf.min_df"),
        ("tfidf", {"max_df": 1.5}, "tfidf.max_df"),
        ("tfidf", {"min_df": True}, "tfidf.min_df"),
        ("tfidf", {"ngram_range": [2, 1]}, "tfidf.ngram_range"),
        ("tfidf", {"analyzer": "words"}, "tfidf.analyzer"),
        ("tfidf", {"max_features": 0}, "tfidf.max_features"),
        ("linear-probe", {"max_length": 0}, "linear-probe.max_length"),
        ("linear-probe", {"class_weight": "even"}, "linear-probe.class_weight"),
    ],
)
def test_a_bad_value_is_one_problem_at_its_place(name: str, fields: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError) as caught:
        find_baseline(name, CLASSES).make_options(fields)
    assert [problem.where for problem in caught.value.problems] == [where]


def test_near_names_are_suggested() -> None:
    with pytest.raises(UserError, match="'min_df'"):
        find_baseline("tfidf", CLASSES).make_options({"min_dff": 3})
    with pytest.raises(UserError, match="'linear-probe'"):
        find_baseline("linear_probe", CLASSES)


def test_what_a_baseline_cannot_do_is_told_with_what_it_can() -> None:
    with pytest.raises(UserError, match="the task instruction; tfidf learns classes, flags, numbers, spans"):
        find_baseline("tfidf", Instruction())
    with pytest.raises(UserError, match="the task question-answering; majority learns"):
        find_baseline("majority", QuestionAnswering())


def test_one_baseline_a_name_and_target() -> None:
    pairs = [(baseline.name, target) for baseline in ALL for target in baseline.targets]
    assert len(pairs) == len(set(pairs))
    assert all(len({baseline.needs_base for baseline in named}) == 1 for named in BASELINES.values())


# ---------------------------------------------------------------- logistic regression


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.lists(st.integers(0, 5), min_size=2, max_size=5, unique=True),
    weight=st.sampled_from(["balanced", None]),
)
def test_probabilities_are_those_of_scikit_learn(seed: int, classes: list[int], weight: Any) -> None:
    generator = np.random.default_rng(seed)
    labels = np.array(classes * 6)
    features = generator.normal(size=(len(labels), 4)) + labels[:, None] * generator.normal(size=4)
    ours = fit_logistic(features, labels, 6, LogisticOptions(class_weight=weight, C=2.0))
    theirs = LogisticRegression(class_weight=weight, C=2.0, max_iter=1000).fit(features, labels)
    expected = np.zeros((len(labels), 6))
    expected[:, theirs.classes_] = theirs.predict_proba(features)
    np.testing.assert_allclose(ours.answers(features), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["tfidf", "linear-probe"])
def test_one_class_only_is_refused(name: str, tmp_path: Path) -> None:
    baseline = find_baseline(name, CLASSES)
    base = tiny_base(tmp_path) if baseline.needs_base else None
    with pytest.raises(UserError, match="at least two classes"):
        baseline.fit(CLASSES, split(TEXTS, None, np.ones_like(LABELS)), baseline.make_options({}), base)


# ---------------------------------------------------------------- majority


@given(labels=st.lists(st.integers(0, 3), min_size=1))
def test_majority_gives_the_shares_of_the_classes(labels: list[int]) -> None:
    majority = find_baseline("majority", CLASSES)
    four = SequenceClassification(tuple("abcd"))
    rows = split([""] * len(labels), None, labels)
    fitted = majority.fit(four, rows, majority.make_options({}), None)
    row = [labels.count(label) / len(labels) for label in range(4)]
    np.testing.assert_allclose(fitted.answers(four, split(["a", "b"])), [row, row])
    assert fitted.answers(four, split([])).shape == (0, 4)


# ---------------------------------------------------------------- TF-IDF


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"min_df": 0.2, "max_df": 0.9, "sublinear_tf": False, "C": 10.0},
        {"ngram_range": [2, 3], "analyzer": "char_wb", "max_features": 20, "lowercase": False},
    ],
)
def test_tfidf_is_scikit_learns_pipeline(fields: dict[str, Any]) -> None:
    options = {"ngram_range": (1, 2), "min_df": 2, "sublinear_tf": True, **fields}
    options["ngram_range"] = tuple(options["ngram_range"])
    strength = options.pop("C", 1.0)
    pipeline = make_pipeline(
        TfidfVectorizer(**options), LogisticRegression(class_weight="balanced", max_iter=1000, C=strength)
    ).fit(TEXTS, LABELS)
    fitted = fit("tfidf", None, fields)
    np.testing.assert_allclose(
        fitted.answers(CLASSES, split(NEW, None)), pipeline.predict_proba(NEW), atol=1e-12
    )
    terms = len(pipeline[0].vocabulary_)
    assert fitted.trainable_parameters == fitted.total_parameters == 2 * terms + 1  # idf, weights, intercept


def test_tfidf_reads_both_texts_of_a_pair() -> None:
    fitted = fit("tfidf", None, pairs=PAIRS)
    joined = find_baseline("tfidf", CLASSES)
    texts = [f"{text}\n{pair}" for text, pair in zip(TEXTS, PAIRS, strict=True)]
    expected = joined.fit(CLASSES, split(texts, None, LABELS), joined.make_options({}), None)
    new = [f"{text}\n{pair}" for text, pair in zip(NEW, NEW_PAIRS, strict=True)]
    np.testing.assert_array_equal(
        fitted.answers(CLASSES, split(NEW, NEW_PAIRS)), expected.answers(CLASSES, split(new, None))
    )


@pytest.mark.parametrize("fields", [{"min_df": 1000}, {"min_df": 3, "max_df": 2}, {"max_df": 0.0}])
def test_tfidf_without_a_term_left_says_so(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="Lower min_df"):
        fit("tfidf", None, fields)


def test_tfidf_reaches_its_score_on_the_disaster_tweets(shared_data: Path) -> None:
    rows = pd.read_csv(shared_data / "disaster_tweets" / "train.csv")[["text", "target"]]
    parts = Dataset.from_pandas(rows).train_test_split(train_size=0.8, seed=42)
    tfidf = find_baseline("tfidf", CLASSES)
    train, validation = parts["train"], parts["test"]
    labels = np.array(train["target"])
    fitted = tfidf.fit(CLASSES, split(train["text"][:], None, labels), tfidf.make_options({}), None)
    predicted = fitted.answers(CLASSES, validation).argmax(axis=1)
    assert f1_score(validation["target"], predicted) == pytest.approx(0.778, abs=0.003)


# ---------------------------------------------------------------- linear probe


@pytest.mark.parametrize("kind", CONFIGS)
def test_features_are_the_mean_of_the_last_hidden_state(kind: str, tmp_path: Path) -> None:
    base = tiny_base(tmp_path, kind)
    base.tokenizer.padding_side = "left"  # what some decoders prefer must not move positions
    features = TextEncoder(base, FeatureCache()).features(NEW, None, max_length=64)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(base.model_config(2)).eval().base_model
    for text, row in zip(NEW, features, strict=True):
        alone = base.tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            expected = model(input_ids=alone["input_ids"]).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, expected.numpy(), atol=2e-6)


def test_the_probe_is_scikit_learns_pipeline_on_the_features(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    encoder = TextEncoder(base, FeatureCache())
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000, C=0.1)
    ).fit(encoder.features(TEXTS, PAIRS, 512).astype(np.float64), LABELS)
    fitted = fit("linear-probe", base, {"C": 0.1}, pairs=PAIRS)
    expected = pipeline.predict_proba(encoder.features(NEW, NEW_PAIRS, 512).astype(np.float64))
    np.testing.assert_allclose(fitted.answers(CLASSES, split(NEW, NEW_PAIRS)), expected, atol=1e-9)
    assert not np.allclose(
        fitted.answers(CLASSES, split(NEW, NEW_PAIRS)), fitted.answers(CLASSES, split(NEW, NEW))
    )


def test_the_penalty_is_chosen_where_many_features_meet_few_rows() -> None:
    """Against scikit-learn's own search; and noise is held back that C = 1 would learn by heart."""
    random = np.random.default_rng(5)
    labels = random.integers(0, 2, 120)
    features = random.normal(size=(120, 90))
    features[:, 0] += 2 * labels
    other = random.integers(0, 2, 2000)
    unseen = random.normal(size=(2000, 90))
    unseen[:, 0] += 2 * other
    chosen = fit_logistic(features, labels, 2, LogisticOptions(C=None))
    search = LogisticRegressionCV(
        Cs=STRENGTHS,
        cv=StratifiedKFold(5, shuffle=True, random_state=0),
        scoring="neg_log_loss",
        class_weight="balanced",
        max_iter=1000,
        l1_ratios=(0,),
        use_legacy_attributes=False,
    ).fit(features, labels)
    np.testing.assert_allclose(chosen.coef, search.coef_, atol=1e-3)
    loose = fit_logistic(features, labels, 2, LogisticOptions(C=1.0))

    def loss(model: Logistic) -> float:
        return float(log_loss(other, model.answers(unseen)))

    assert loss(chosen) < 0.8 * loss(loose)


def test_a_class_with_one_example_leaves_the_penalty_as_it_is() -> None:
    features = np.random.default_rng(1).normal(size=(9, 3))
    labels = np.array([0] * 8 + [1])
    chosen = fit_logistic(features, labels, 2, LogisticOptions(C=None))
    np.testing.assert_array_equal(chosen.coef, fit_logistic(features, labels, 2, LogisticOptions(C=1.0)).coef)


def test_the_probe_counts_the_base_without_its_head(tmp_path: Path) -> None:
    base = tiny_base(tmp_path)
    model = AutoModelForSequenceClassification.from_config(base.model_config(2))
    fitted = fit("linear-probe", base)
    assert fitted.trainable_parameters == 32 + 1
    assert fitted.total_parameters == 32 + 1 + model.base_model.num_parameters()


def test_a_base_encodes_a_split_once_whatever_the_options(tmp_path: Path) -> None:
    """A base that cannot be loaded any more still serves the second candidate."""
    base = tiny_base(tmp_path)
    probe = LinearProbe()
    first = probe.fit(CLASSES, split(TEXTS, None, LABELS), probe.make_options({}), base)
    expected = first.answers(CLASSES, split(NEW, None))
    base.source = None  # type: ignore[assignment]
    second = probe.fit(CLASSES, split(TEXTS, None, LABELS), probe.make_options({"C": 1.0}), base)
    np.testing.assert_array_equal(second.answers(CLASSES, split(NEW, None)), expected)
    with pytest.raises(AttributeError):
        probe.fit(CLASSES, split(TEXTS, None, LABELS), probe.make_options({"max_length": 8}), base)
    with pytest.raises(AttributeError):
        probe.fit(CLASSES, split(TEXTS, TEXTS, LABELS), probe.make_options({}), base)


def test_the_cache_forgets_old_splits_and_other_bases(tmp_path: Path) -> None:
    base, other = tiny_base(tmp_path), tiny_base(tmp_path, "gpt2")
    cache = FeatureCache(entries=2)
    computed: list[str] = []

    def get(on: Base, key: str) -> None:
        cache.get(on, key, lambda: (computed.append(key), np.zeros(1))[1])

    for key in "abacab":
        get(base, key)
    assert computed == ["a", "b", "c", "b"]
    get(other, "b")
    get(base, "b")
    assert computed == ["a", "b", "c", "b", "b", "b"]


# ---------------------------------------------------------------- save and load


@pytest.mark.parametrize("name", [name for name in BASELINES if "classes" in learned(name)])
@pytest.mark.parametrize("paired", [False, True])
def test_a_saved_baseline_gives_the_same_in_a_fresh_process(name: str, paired: bool, tmp_path: Path) -> None:
    base = tiny_base(tmp_path) if needs_base(name) else None
    fields = {"ngram_range": [1, 3], "strip_accents": "unicode"} if name == "tfidf" else {}
    fitted = fit(name, base, fields, PAIRS if paired else None)
    new_pairs = NEW_PAIRS if paired else None
    assert_same_in_a_fresh_process(fitted, CLASSES, split(NEW, new_pairs), tmp_path, {}, 1e-7)


@pytest.mark.parametrize("file", ["baseline.json", "baseline.safetensors", "vocabulary.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_file_is_named(file: str, damage: str, tmp_path: Path) -> None:
    fit("tfidf", None).save(tmp_path)
    path = tmp_path / file
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=file):
        find_baseline("tfidf", CLASSES).load(tmp_path, None)


def test_a_vocabulary_of_another_baseline_is_refused(tmp_path: Path) -> None:
    fit("tfidf", None).save(tmp_path)
    (tmp_path / "vocabulary.json").write_text('["fire"]')
    with pytest.raises(UserError, match="1 terms"):
        find_baseline("tfidf", CLASSES).load(tmp_path, None)


def test_a_probe_refuses_a_base_of_another_size(tmp_path: Path) -> None:
    fit("linear-probe", tiny_base(tmp_path)).save(tmp_path / "saved")
    assert read_saved(tmp_path / "saved").base == f"random:{tmp_path / 'bert.json'}"
    with pytest.raises(UserError, match="32 features"):
        find_baseline("linear-probe", CLASSES).load(tmp_path / "saved", tiny_base(tmp_path, hidden_size=64))
