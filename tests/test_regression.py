"""Regression: against scipy, scikit-learn, transformers and plain PEFT."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from scipy import stats
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import root_mean_squared_error
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny
import tunestack
from task_samples import RATED
from tunestack.baselines.registry import find_baseline
from tunestack.baselines.ridge import RidgeOptions, fit_ridge
from tunestack.comparison import costs
from tunestack.comparison.statistics import compare_to_best, paired_bootstrap, summarize
from tunestack.config import DataConfig
from tunestack.errors import UserError
from tunestack.results import Costs
from tunestack.tasks.regression import METRICS, Regression

TASK = Regression()
LORA = {"method": "lora", "r": 2}


def oracle(gold: Any, answered: Any) -> dict[str, float]:
    return {
        "pearson": float(stats.pearsonr(gold, answered).statistic),
        "spearman": float(stats.spearmanr(gold, answered).statistic),
        "neg_root_mean_squared_error": -root_mean_squared_error(gold, answered),
    }


# ---------------------------------------------------------------- metrics


@given(
    n=st.integers(3, 80),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([4, 1000]),
    offset=st.sampled_from([0.0, 1e6]),
)
@settings(max_examples=80, deadline=None)
def test_metrics_are_those_of_scipy_and_scikit_learn(n: int, seed: int, levels: int, offset: float) -> None:
    """With ties, and far from 0."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(levels, size=n) / 4.0
    answered = gold * rng.normal() + rng.integers(levels, size=n) / 4.0 + offset
    if np.ptp(gold) == 0 or np.ptp(answered) == 0:
        return
    found = TASK.scores({"label": gold}, answered)
    assert list(found) == list(METRICS)
    expected = oracle(gold, answered)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-7)
    summary = summarize(TASK.answers({"label": gold}, answered[None]), resamples=20)
    assert {name: one.mean for name, one in summary.items()} == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize("constant", [0.0, 0.1, 2.7, 1e9 + 0.1])
def test_answers_that_are_all_the_same_correlate_with_nothing(constant: float) -> None:
    gold = np.random.default_rng(0).normal(2.7, 1.5, size=101)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = TASK.scores({"label": gold}, np.full(101, constant))
        answers = TASK.answers({"label": gold}, np.full((2, 101), constant))
        for name in ("pearson", "spearman"):
            assert found[name] == 0
            interval = summarize(answers)[name].interval
            assert (interval.low, interval.high) == (0, 0)
        good = TASK.answers({"label": gold}, gold[None] + np.random.default_rng(1).normal(size=(2, 101)))
        compared = compare_to_best({"good": good, "constant": answers}, "spearman")
    assert compared["constant"].significant


# ---------------------------------------------------------------- statistics


def correlated(rng: np.random.Generator, n: int, rho: float) -> tuple[Any, Any]:
    gold, noise = rng.normal(size=(2, n))
    return gold, rho * gold + np.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize(
    ("metric", "expected", "repeats"),
    [
        ("pearson", 0.7, 1000),
        ("spearman", 6 / np.pi * np.arcsin(0.35), 120),
        ("neg_root_mean_squared_error", -np.sqrt(0.3**2 + 1 - 0.7**2), 1000),
    ],
)
def test_intervals_cover_what_they_should(metric: str, expected: float, repeats: int) -> None:
    """Normal data, whose true correlations and error are known."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(repeats):
        gold, answered = correlated(rng, 120, 0.7)
        answers = TASK.answers({"label": gold}, answered[None])
        interval = summarize(answers, [metric], resamples=150)[metric].interval
        covered += interval.low <= expected <= interval.high
    assert 0.91 <= covered / repeats <= 0.98


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_intervals_are_near_scipys_bootstrap(metric: str) -> None:
    gold, answered = correlated(np.random.default_rng(2), 300, 0.5)

    def statistic(x: Any, y: Any) -> float:
        return oracle(x, y)[metric]

    theirs = stats.bootstrap(
        (gold, answered), statistic, paired=True, vectorized=False, n_resamples=600, rng=3, method="BCa"
    ).confidence_interval
    ours = summarize(TASK.answers({"label": gold}, answered[None]), [metric])[metric].interval
    assert_allclose([ours.low, ours.high], [theirs.low, theirs.high], atol=0.02)


def test_differences_are_paired() -> None:
    """The error of a difference of correlations is that of scipy's bootstrap over the same rows."""
    rng = np.random.default_rng(4)
    gold, first = correlated(rng, 250, 0.8)
    second = first + rng.normal(size=250)

    def statistic(x: Any, y: Any, z: Any) -> float:
        return oracle(x, y)["pearson"] - oracle(x, z)["pearson"]

    theirs = stats.bootstrap(
        (gold, first, second), statistic, paired=True, vectorized=False, n_resamples=600, rng=3,
        method="percentile",
    )  # fmt: skip
    answers = [TASK.answers({"label": gold}, one[None]) for one in (first, second)]
    ours = paired_bootstrap(answers[0], answers[1], "pearson")
    assert ours.difference == pytest.approx(statistic(gold, first, second))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.interval.high - ours.interval.low == pytest.approx(width, rel=0.15)
    assert ours.p_value < 1e-6


def test_equal_candidates_seldom_differ() -> None:
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(200):
        gold, first = correlated(rng, 100, 0.6)
        second = 0.6 * gold + 0.8 * rng.normal(size=100)
        answers = [TASK.answers({"label": gold}, one[None]) for one in (first, second)]
        found += paired_bootstrap(answers[0], answers[1], "pearson", resamples=300).p_value < 0.05
    assert found <= 20  # 5% expected; beyond 20 with probability below 0.003


# ---------------------------------------------------------------- data


def write(folder: Path, **columns: list[Any]) -> DataConfig:
    pd.DataFrame(columns).to_csv(folder / "data.csv", index=False)
    return DataConfig(train=str(folder / "data.csv"))


def texts(count: int) -> list[str]:
    return [f"text number {'x' * index}" for index in range(count)]


def test_numbers_are_read_as_they_stand(tmp_path: Path) -> None:
    written = ["1", "2.5", " -3 ", "1e-2", "0", "4.000", "0.1", "2.5", "5", "3.8"]
    data = Regression.load(write(tmp_path, text=texts(10), label=written), None)
    found = {
        row: label for split in data.splits().values() for row, label in zip(split["row"], split["label"])
    }
    assert [found[row] for row in range(10)] == [float(value) for value in written]
    assert data.label_names == ()
    assert data.train.features["label"].dtype == "float64"
    assert (len(data.train), len(data.validation)) == (8, 2)


def test_what_is_no_number_is_told_with_its_rows(tmp_path: Path) -> None:
    written = ["1", "two", "", "nan", "inf", "3,5", "7", "-inf"]
    config = write(tmp_path, text=texts(8), label=written).model_copy(
        update={"labels": ["low", "high"], "positive_label": "high"}
    )
    with pytest.raises(UserError) as caught:
        Regression.load(config, None)
    found = {problem.where: problem.found for problem in caught.value.problems}
    told = [problem.found for problem in caught.value.problems]
    assert "no value in 1 of 8 rows: 2 (0 is the first)" in told
    assert "no numbers such as 'two' in 2 of 8 rows: 1, 5 (0 is the first)" in told
    assert "numbers that are not finite such as 'nan' in 3 of 8 rows: 3, 4, 7 (0 is the first)" in told
    assert {"data.labels", "data.positive_label"} <= set(found)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([250_000.0 + 1000 * index for index in range(10)], "models learn such slowly"),
        ([0.001 * index for index in range(10)], "models learn such slowly"),
        ([2.0] * 10, "nothing to learn"),
        ([0.5 * index for index in range(10)], None),
    ],
)
def test_numbers_far_from_what_heads_answer_are_warned_of(
    numbers: list[float], told: str | None, tmp_path: Path
) -> None:
    data = Regression.load(write(tmp_path, text=texts(10), label=numbers), None)
    assert [told in warning for warning in data.warnings] == ([True] if told else [])


# ---------------------------------------------------------------- baselines

TEXTS = RATED["train"]["text"]
NUMBERS = np.asarray(RATED["train"]["label"], dtype=float)
NEW = RATED["test"]["text"]


def fit(name: str, fields: dict[str, Any] = {}, base: Any = None, pairs: Any = None) -> Any:  # noqa: B006
    baseline = find_baseline(name, Regression())
    options = baseline.make_options(fields, {"class_weights": "balanced", "max_length": 64})
    return baseline.fit(Regression(), split(TEXTS, pairs, NUMBERS), options, base)


def split(texts: Any, pairs: Any = None, labels: Any = None) -> dict[str, Any]:
    columns = {"text": texts, "text_pair": pairs, "label": labels}
    return {name: column for name, column in columns.items() if column is not None}


def test_majority_answers_the_mean() -> None:
    assert_allclose(fit("majority").answers(Regression(), split(["a", "b"])), [NUMBERS.mean()] * 2)


def test_tfidf_is_scikit_learns_ridge() -> None:
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=1, sublinear_tf=True), Ridge(alpha=0.3)
    )
    pipeline.fit(TEXTS, NUMBERS)
    fitted = fit("tfidf", {"alpha": 0.3, "min_df": 1})
    assert_allclose(
        fitted.answers(Regression(), split(NEW, None)), pipeline.predict(NEW), atol=1e-4
    )  # solved by iteration


def test_the_penalty_is_chosen_by_cross_validation() -> None:
    """scikit-learn's own choice among the same penalties, by leaving one out, is as good on new data."""
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(500, 60)), rng.normal(size=60) * (rng.random(60) < 0.2)
    numbers = features @ weights + rng.normal(size=500) * 3
    ours = fit_ridge(features[:80], numbers[:80], RidgeOptions())
    theirs = RidgeCV(alphas=tuple(10 ** np.arange(-2, 5.1, 0.5))).fit(features[:80], numbers[:80])

    def error(answers: Any) -> float:
        return root_mean_squared_error(numbers[80:], answers)

    assert error(ours.answers(features[80:])) == pytest.approx(error(theirs.predict(features[80:])), rel=0.05)
    unpenalised = fit_ridge(features[:80], numbers[:80], RidgeOptions(alpha=0.01))
    assert error(ours.answers(features[80:])) < 0.95 * error(unpenalised.answers(features[80:]))


def test_the_linear_probe_is_a_ridge_on_standardised_features(tmp_path: Path) -> None:
    from sklearn.preprocessing import StandardScaler

    base = tiny.random_base(tmp_path, "bert")
    pairs = RATED["train"]["text_pair"]
    fitted = fit("linear-probe", {"alpha": 2.0}, base, pairs)
    features = fitted.encoder.features(TEXTS, pairs, 64).astype(float)
    expected = make_pipeline(StandardScaler(), Ridge(alpha=2.0)).fit(features, NUMBERS)
    new = RATED["test"]["text_pair"]
    unseen = fitted.encoder.features(NEW, new, 64).astype(float)
    assert_allclose(fitted.answers(Regression(), split(NEW, new)), expected.predict(unseen), atol=1e-9)


@pytest.mark.parametrize("name", ["majority", "tfidf", "linear-probe"])
def test_what_was_saved_answers_the_same(name: str, tmp_path: Path) -> None:
    base = tiny.random_base(tmp_path, "bert") if name == "linear-probe" else None
    fitted = fit(name, base=base)
    fitted.save(tmp_path / "saved")
    again = find_baseline(name, Regression()).load(tmp_path / "saved", base)
    np.testing.assert_array_equal(
        again.answers(Regression(), split(NEW, None)), fitted.answers(Regression(), split(NEW, None))
    )
    assert again.trainable_parameters == fitted.trainable_parameters


@pytest.mark.parametrize(
    ("name", "field"), [("tfidf", "C"), ("tfidf", "class_weight"), ("majority", "alpha")]
)
def test_fields_of_classification_are_refused(name: str, field: str) -> None:
    with pytest.raises(UserError, match=field):
        find_baseline(name, Regression()).make_options({field: 1.0})


# ---------------------------------------------------------------- models


def test_the_loss_is_that_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny.save_base(tmp_path, "bert", head=True), num_labels=1, ignore_mismatched_sizes=True
    )
    targets = torch.randn(7, dtype=torch.float64)
    output = model(input_ids=torch.randint(5, 20, (7, 6)), labels=targets.float())
    assert model.config.problem_type == "regression"
    torch.testing.assert_close(TASK.loss(output.logits, targets, None), output.loss)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A comparison on pairs, from a TSV file, with every kind of candidate."""
    folder = tmp_path_factory.mktemp("regression")
    for split, columns in RATED.items():
        frame = pd.DataFrame(
            {"first": columns["text"], "second": columns["text_pair"], "score": columns["label"]}
        )
        frame.to_csv(folder / f"{split}.tsv", sep="\t", index=False)
    base = tiny.save_base(folder, "bert")
    results = tunestack.compare(
        folder / "train.tsv",
        validation=str(folder / "validation.tsv"),
        task="regression",
        text="first",
        text_pair="second",
        label="score",
        bases={"model": str(base), "dtype": "float32", "device_map": "cpu"},
        methods=["majority", {"method": "tfidf", "min_df": 1}, "linear-probe", LORA],
        seeds=2,
        training={"epochs": 2, "learning_rate": 5e-3},
        measure_costs=False,
        output=folder / "run",
        progress=False,
    )
    return folder, results


def test_plain_peft_gives_the_same_numbers(compared: tuple[Path, Any]) -> None:
    folder, _ = compared
    adapter = folder / "run" / "candidates" / "lora" / "seed-1" / "adapter"
    ours = tunestack.load(adapter, device="cpu").predict(NEW, RATED["test"]["text_pair"])
    assert all(isinstance(one, float) for one in ours)
    model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    for text, pair, number in zip(NEW, RATED["test"]["text_pair"], ours, strict=True):
        with torch.no_grad():
            logits = model(**tokenizer(text, pair, return_tensors="pt")).logits
        assert float(logits[0, 0]) == pytest.approx(number, abs=1e-5)
    with pytest.raises(UserError, match="a task that gives each label a probability"):
        tunestack.load(adapter, device="cpu").predict_proba(NEW, RATED["test"]["text_pair"])


def test_adapters_that_plain_peft_saved_load(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path, "bert", head=True)
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=1, ignore_mismatched_sizes=True
    )
    config = LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False)
    model = get_peft_model(model, config).eval()
    model.save_pretrained(str(tmp_path / "adapter"))
    found = tunestack.load(tmp_path / "adapter", device="cpu")
    assert found.task.name == "regression"
    batch = AutoTokenizer.from_pretrained(base)(NEW[:1], return_tensors="pt")
    with torch.no_grad():
        expected = float(model(**batch).logits[0, 0])
    assert found.predict(NEW[:1])[0] == pytest.approx(expected, abs=1e-2)  # the base may lie in bf16


def test_a_report_reads_as_one_of_numbers(compared: tuple[Path, Any]) -> None:
    folder, results = compared
    page = (folder / "run" / "report.html").read_text()
    board = (folder / "run" / "leaderboard.md").read_text()
    assert results.metric == "spearman"
    assert "Spearman" in page
    assert "Pearson" in page
    assert "Confusions on validation" not in page
    assert not re.search(r'class="(matrix|chip)"', page)
    assert "Spearman, validation" in board
    assert "most frequent class" not in results.verdict.sentence
    assert "classified" not in page + board
    by_name = {candidate.name: candidate for candidate in results.candidates}
    assert by_name["majority"].validation["spearman"].mean == 0
    assert by_name["tfidf"].hyperparameters["alpha"] is None
    assert "class_weight" not in by_name["tfidf"].hyperparameters
    if results.hard_examples:
        assert f"that every candidate {Regression.misses}" in page


def test_every_candidate_has_its_costs(
    compared: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = compared
    for candidate in results.candidates:
        costs.main(str(folder / "run"), candidate.name)
        measured = Costs.model_validate_json(capsys.readouterr().out.splitlines()[-1])
        assert measured.train_seconds is not None
        assert measured.inference_examples_per_second is not None
        assert measured.inference_examples_per_second > 0


def test_hard_examples_are_those_that_all_miss_by_far(compared: tuple[Path, Any]) -> None:
    folder, results = compared
    gold = np.asarray(RATED["validation"]["label"], dtype=float)
    answered = []
    for candidate in results.candidates:
        if candidate.name != "majority":
            for seed in candidate.seeds:
                answered.append(pd.read_csv(folder / "run" / seed.validation.predictions_path)["prediction"])
    far = (np.abs(np.stack(answered) - gold) > gold.std()).all(axis=0)
    assert [one.row for one in results.hard_examples] == np.flatnonzero(far).tolist()
    for one in results.hard_examples:
        median = np.median(np.stack(answered)[:, one.row])
        assert float(one.predicted) == pytest.approx(median, rel=0.01, abs=0.01)


def test_predictions_of_a_file(compared: tuple[Path, Any], command: Any, tmp_path: Path) -> None:
    folder, _ = compared
    out = tmp_path / "out.csv"
    done = command("predict", folder / "run", folder / "test.tsv", "--out", out, "--device", "cpu")
    assert done.code == 0, done.err
    frame = pd.read_csv(out)
    assert list(frame.columns) == ["first", "second", "score", "prediction"]
    assert frame["prediction"].notna().all()
    assert len(frame) == len(NEW)


def test_class_weights_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": texts(20), "label": np.arange(20) / 4})
    frame.to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(UserError, match=r"class_weights.*no classes to weigh"):
        tunestack.compare(
            tmp_path / "train.csv", task="regression", methods="majority", output=tmp_path / "run",
            training={"class_weights": [1.0, 2.0]}, progress=False,
        )  # fmt: skip


def test_sts_b_reads_whole(shared_data: Path) -> None:
    """Quotes are literal; every row of GLUE's files is there."""
    folder = shared_data / "glue" / "STS-B"
    config = DataConfig(
        train=str(folder / "train.tsv"), validation=str(folder / "dev.tsv"), text="sentence1",
        text_pair="sentence2", label="score",
    )  # fmt: skip
    data = Regression.load(config, None)
    assert (len(data.train), len(data.validation)) == (5749, 1500)
    assert (min(data.train["label"]), max(data.train["label"])) == (0.0, 5.0)
    assert data.train["label"][1] == 3.8
