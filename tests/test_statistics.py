"""Intervals and tests: against formulas, scipy, scikit-learn, and by simulation where the truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import special, stats
from sklearn import metrics as sk

from tunestack.comparison.statistics import (
    compare_to_best,
    holm,
    mcnemar,
    paired_bootstrap,
    summarize,
)
from tunestack.tasks.answers import Predictions
from tunestack.tasks.metrics import classification_metrics, known_metrics

POSITIVE_SHARE = 0.43


def sample(rng, n):
    """Labels, and how hard each example is for everybody."""
    return (rng.random(n) < POSITIVE_SHARE).astype(np.int8), rng.standard_normal(n)


def answer(rng, labels, hardness, *, seeds, skill=1.0, seed_sd=0.0, shared=0.7, noise=0.4):
    """One candidate: seeds that mostly fail on the same examples, as real models do.

    skill: how well it tells the classes apart (1.0: 82% right), with the standard deviation `seed_sd` over
    seeds (0.06: 1.5 points of accuracy). shared: the part of an example's hardness that all candidates share;
    noise: what differs from seed to seed (0.4: two seeds disagree on 11% of the examples).
    """
    n = len(labels)
    own = np.sqrt(shared) * hardness + np.sqrt(1 - shared) * rng.standard_normal(n)
    skills = skill + seed_sd * rng.standard_normal((seeds, 1))
    scores = skills * (2 * labels - 1) + own + noise * rng.standard_normal((seeds, n))
    return Predictions(labels, (scores > 0).astype(np.int8), 2)


def expected_metrics(*, skill=1.0, seed_sd=0.0, noise=0.4):
    """The metrics that `answer` has on all examples there could be, over all seeds there could be."""
    points, weights = np.polynomial.hermite_e.hermegauss(40)
    right = stats.norm.cdf((skill + seed_sd * points) / np.sqrt(1 + noise**2))
    f1 = 2 * POSITIVE_SHARE * right / (2 * POSITIVE_SHARE * right + 1 - right)
    return {"accuracy": right @ weights / weights.sum(), "f1": f1 @ weights / weights.sum()}


def test_the_expected_metrics_are_those_of_a_huge_sample():
    rng = np.random.default_rng(0)
    labels, hardness = sample(rng, 200_000)
    predicted = answer(rng, labels, hardness, seeds=20, seed_sd=0.06).predicted
    expected = expected_metrics(seed_sd=0.06)
    # 20 seeds leave a standard error of 0.003.
    assert np.mean(predicted == labels) == pytest.approx(expected["accuracy"], abs=0.01)
    assert np.mean([sk.f1_score(labels, p) for p in predicted]) == pytest.approx(expected["f1"], abs=0.01)


@pytest.mark.parametrize(
    ("n", "seeds", "seed_sd"),
    [
        (300, 1, 0.0),
        (300, 3, 0.0),
        (300, 5, 0.06),
        (1500, 1, 0.0),
        (1500, 3, 0.0),
        (1500, 3, 0.06),
        (1500, 5, 0.06),
    ],
)
def test_intervals_cover_the_truth(n, seeds, seed_sd):
    """In 93 to 97% of 2,000 simulations, whose own standard error is 0.5 points."""
    rng, simulations = np.random.default_rng(2026), 2000
    truth = expected_metrics(seed_sd=seed_sd)
    covered = dict.fromkeys(truth, 0)
    for i in range(simulations):
        candidate = answer(rng, *sample(rng, n), seeds=seeds, seed_sd=seed_sd)
        for name, found in summarize(candidate, list(truth), resamples=200, seed=i).items():
            covered[name] += found.interval.low <= truth[name] <= found.interval.high
    for name, hits in covered.items():
        assert 0.93 <= hits / simulations <= 0.97, f"{name}: {hits / simulations:.1%}"


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
@pytest.mark.parametrize(("count", "simulations"), [(2, 2000), (3, 400), (6, 200)])
@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.06)])
def test_equal_candidates_have_a_winner_in_at_most_5_percent(metric, count, simulations, seeds, seed_sd):
    rng = np.random.default_rng(2026)
    wins = excluded = 0
    for i in range(simulations):
        labels, hardness = sample(rng, 300)
        candidates = {
            str(k): answer(rng, labels, hardness, seeds=seeds, seed_sd=seed_sd) for k in range(count)
        }
        comparisons = compare_to_best(candidates, metric, resamples=200, seed=i)
        wins += all(c.significant for c in comparisons.values())
        excluded += "0" in comparisons and comparisons["0"].significant
    assert wins / simulations <= 0.05
    # Any one of the truly best is called worse than the observed best rarely.
    assert excluded / simulations <= 0.05


@pytest.mark.parametrize("metric", ["f1", "accuracy"])
@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (3, 0.03)])
def test_a_better_candidate_is_found(metric, seeds, seed_sd):
    """5 points of accuracy among 4 candidates, 1,500 examples: nearly always."""
    rng, simulations, found = np.random.default_rng(2026), 60, 0
    for i in range(simulations):
        labels, hardness = sample(rng, 1500)
        skills = {"a": 1.0, "better": 1.25, "b": 1.0, "c": 1.0}
        candidates = {
            name: answer(rng, labels, hardness, seeds=seeds, seed_sd=seed_sd, skill=skill)
            for name, skill in skills.items()
        }
        comparisons = compare_to_best(candidates, metric, resamples=200, seed=i)
        found += "better" not in comparisons and all(c.significant for c in comparisons.values())
    assert found / simulations >= 0.9


def probabilities(seed=0, n=400, seeds=3, classes=2, labels_seed=0):
    """Labels `[n]` and probabilities `[seeds, n, classes]` with ties, better than chance."""
    labels = np.random.default_rng(labels_seed).integers(classes, size=n)
    rng = np.random.default_rng(seed)
    scores = np.round(2 * (labels[:, None] == np.arange(classes)) + rng.normal(size=(seeds, n, classes)), 1)
    exponentials = np.exp(scores)
    return labels, exponentials / exponentials.sum(axis=2, keepdims=True)


@pytest.mark.parametrize("classes", [2, 4])
def test_summaries_hold_scikit_learns_metrics_of_each_seed(classes):
    labels, seeds = probabilities(classes=classes)
    found = summarize(Predictions.from_probabilities(labels, seeds), resamples=50)
    expected = [classification_metrics(labels, p) for p in seeds]
    assert list(found) == known_metrics(classes)
    for name, summary in found.items():
        values = [e[name] for e in expected]
        assert_allclose([summary.mean, summary.std], [np.mean(values), np.std(values, ddof=1)], rtol=1e-9)
        assert summary.interval.low < summary.mean < summary.interval.high


@pytest.mark.parametrize("classes", [2, 3])
def test_standard_errors_are_those_of_resampling_rows_one_by_one(classes):
    """The plain bootstrap: draw rows, ask scikit-learn. One seed, so nothing else is in the interval."""
    labels, seeds = probabilities(seeds=1, classes=classes)
    found = summarize(Predictions.from_probabilities(labels, seeds), resamples=4000)
    rng, draws = np.random.default_rng(1), []
    for _ in range(400):
        rows = rng.integers(len(labels), size=len(labels))
        y, p = labels[rows], seeds[0][rows]
        draws.append(
            {
                "f1": sk.f1_score(y, p.argmax(1), average="macro" if classes > 2 else "binary"),
                "mcc": sk.matthews_corrcoef(y, p.argmax(1)),
                "roc_auc": sk.roc_auc_score(y, p[:, 1] if classes == 2 else p, multi_class="ovr"),
            }
        )
    for name in ("f1", "mcc", "roc_auc"):
        error = np.std([d[name] for d in draws])
        lowest = -1 if name == "mcc" else 0
        low, mean, high = (
            (value - lowest) / (1 - lowest)
            for value in (found[name].interval.low, found[name].mean, found[name].interval.high)
        )
        in_log_odds = special.logit(high) - special.logit(low)
        found_error = in_log_odds / (2 * 1.966) * mean * (1 - mean) * (1 - lowest)
        # 400 draws know a standard deviation to 3.5%.
        assert found_error == pytest.approx(error, rel=0.12)


def test_accuracy_of_one_seed_has_the_binomial_error():
    labels = np.zeros(1000, dtype=int)
    predicted = (np.arange(1000) < 200).astype(int)[None]
    interval = summarize(Predictions(labels, predicted, 2), ["accuracy"], resamples=8000)["accuracy"].interval
    spread = 1.9623 * np.sqrt(0.8 * 0.2 / 1000) / (0.8 * 0.2)
    expected = 1 / (1 + np.exp(-(np.log(4) + np.array([-spread, spread]))))
    assert_allclose([interval.low, interval.high], expected, atol=0.001)


def test_seeds_that_differ_much_ask_for_students_quantile():
    """On endless data the interval is Student's, over the seeds' own values."""
    n, shares = 400_000, np.array([0.70, 0.75, 0.80])
    labels = np.zeros(n, dtype=int)
    predicted = (np.arange(n) >= (shares * n)[:, None]).astype(int)
    interval = summarize(Predictions(labels, predicted, 2), ["accuracy"])["accuracy"].interval
    spread = stats.t.ppf(0.975, 2) * shares.std(ddof=1) / np.sqrt(3) / (0.75 * 0.25)
    expected = 1 / (1 + np.exp(-(np.log(3) + np.array([-spread, spread]))))
    assert_allclose([interval.low, interval.high], expected, atol=0.002)


@pytest.mark.parametrize("n", [5, 50, 500])
def test_perfect_answers_are_not_certain(n):
    labels = np.arange(n) % 2
    found = summarize(Predictions(labels, labels[None], 2), ["accuracy", "f1", "mcc"], resamples=100)
    exact = stats.binomtest(n, n).proportion_ci(0.95)
    assert (found["accuracy"].interval.low, found["accuracy"].interval.high) == pytest.approx(
        (exact.low, 1.0)
    )
    assert 0 < found["f1"].interval.low < found["accuracy"].interval.low
    assert -1 < found["mcc"].interval.low < 1 == found["mcc"].interval.high


@given(st.integers(1, 30), st.integers(1, 4), st.integers(2, 4), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_intervals_stay_in_range_and_around_the_mean(n, seeds, classes, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    first, second = (
        Predictions.from_probabilities(labels, rng.dirichlet(np.ones(classes), size=(seeds, n)))
        for _ in range(2)
    )
    for name, summary in summarize(first, resamples=30).items():
        lowest = -1 if name == "mcc" else 0
        assert lowest <= summary.interval.low <= summary.mean <= summary.interval.high <= 1
        found = paired_bootstrap(first, second, name, resamples=30)
        assert found.interval.low <= found.difference <= found.interval.high
        assert 0 < found.p_value <= 1


def test_the_same_seed_gives_the_same_interval():
    candidate = Predictions.from_probabilities(*probabilities())
    assert summarize(candidate, seed=3) == summarize(candidate, seed=3)
    assert summarize(candidate, ["f1"], seed=3) != summarize(candidate, ["f1"], seed=4)


def test_paired_bootstrap_is_antisymmetric_and_agrees_with_its_interval():
    labels, one = probabilities(1, seeds=3)
    first = Predictions.from_probabilities(labels, one)
    second = Predictions.from_probabilities(labels, probabilities(2, seeds=5)[1] ** 0.3)
    for name in known_metrics(2):
        forth = paired_bootstrap(first, second, name, alpha=0.05)
        back = paired_bootstrap(second, first, name)
        assert forth.difference == pytest.approx(-back.difference)
        assert forth.p_value == pytest.approx(back.p_value, rel=0.2)
        if forth.p_value < 1:
            # The interval of level 1 - p ends at 0.
            edge = paired_bootstrap(first, second, name, alpha=forth.p_value).interval
            assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)


def test_pairing_removes_what_the_two_share():
    """Candidates that differ in few answers are told apart more finely than their own intervals suggest."""
    labels, one = probabilities(1, seeds=1, n=2000)
    first = Predictions.from_probabilities(labels, one)
    almost = first.predicted.copy()
    almost[0, :20] = 1 - labels[:20]
    second = Predictions(labels, almost, 2)
    found = paired_bootstrap(first, second, "f1")
    own = summarize(first, ["f1"])["f1"].interval
    assert found.interval.high - found.interval.low < 0.5 * (own.high - own.low)
    assert found.p_value < 0.05


def test_identical_candidates_do_not_differ():
    candidate = Predictions.from_probabilities(*probabilities())
    for name in known_metrics(2):
        found = paired_bootstrap(candidate, candidate, name)
        assert (found.difference, found.p_value) == (0, 1)
    assert mcnemar(candidate, candidate) == 1


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_of_one_seed_each_is_the_exact_binomial_test(only_first, only_second):
    n = 100
    labels = np.zeros(n, dtype=int)
    first, second = np.zeros((2, 1, n), dtype=int)
    second[0, :only_first] = 1
    first[0, only_first : only_first + only_second] = 1
    discordant = only_first + only_second
    expected = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert mcnemar(Predictions(labels, first, 2), Predictions(labels, second, 2)) == pytest.approx(expected)


def test_mcnemar_of_equal_seeds_is_that_of_one():
    """Seeds that answer alike are no further examples: three copies are no more certain than one."""
    rng = np.random.default_rng(0)
    labels, hardness = sample(rng, 2000)
    first, second = (answer(rng, labels, hardness, seeds=1, skill=skill) for skill in (1.1, 1.0))
    copies = [Predictions(labels, np.repeat(p.predicted, 3, axis=0), 2) for p in (first, second)]
    assert mcnemar(*copies) == pytest.approx(mcnemar(first, second), rel=0.15)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    corrected = holm(p_values)
    assert all(0 <= p <= c <= 1 for p, c in zip(p_values, corrected))
    for alpha in (0.01, 0.05, 0.3):
        rejected = set()
        for step, index in enumerate(np.argsort(p_values, kind="stable")):
            if p_values[index] * (len(p_values) - step) > alpha:
                break
            rejected.add(int(index))
        assert {i for i, c in enumerate(corrected) if c <= alpha} == rejected


@pytest.mark.parametrize(
    ("metric", "test"), [("f1", "paired bootstrap"), ("accuracy", "McNemar"), ("roc_auc", "DeLong")]
)
def test_everyone_is_compared_with_the_best(metric, test):
    labels, best = probabilities(1)
    others = {"a": probabilities(2)[1] ** 0.1, "b": probabilities(3, seeds=2)[1]}
    others["a"][:, :100] = others["a"][:, :100, ::-1]
    candidates = {
        name: Predictions.from_probabilities(labels, p) for name, p in {**others, "best": best}.items()
    }
    means = {name: summarize(p, [metric])[metric].mean for name, p in candidates.items()}
    winner = max(means, key=means.get)
    found = compare_to_best(candidates, metric)
    assert list(found) == [name for name in candidates if name != winner]
    for name, comparison in found.items():
        assert comparison.best == winner
        assert comparison.test == test
        assert comparison.difference == pytest.approx(means[winner] - means[name])
        if metric == "accuracy":
            assert comparison.p_value == mcnemar(candidates[winner], candidates[name])
    assert [c.p_value_corrected for c in found.values()] == holm([c.p_value for c in found.values()])
    assert found["a"].significant


def test_one_candidate_alone_has_no_comparison():
    assert compare_to_best({"a": Predictions.from_probabilities(*probabilities())}, "f1") == {}


def test_candidates_that_answered_other_examples_are_refused():
    candidates = {
        name: Predictions.from_probabilities(*probabilities(labels_seed=i)) for i, name in enumerate("ab")
    }
    with pytest.raises(ValueError, match="same examples"):
        compare_to_best(candidates, "f1")


def test_roc_auc_needs_probabilities_and_every_class():
    labels, p = probabilities()
    whole = Predictions.from_probabilities(labels, p)
    bare = Predictions(labels, whole.predicted, 2)
    one_class = Predictions.from_probabilities(labels * 0, p)
    assert "roc_auc" in summarize(whole)
    assert "roc_auc" not in summarize(bare) | summarize(one_class)
    with pytest.raises(KeyError, match="roc_auc"):
        paired_bootstrap(whole, bare, "roc_auc")


def test_delong_covariance_of_two_candidates():
    """Of the difference of two AUCs, against the formula of DeLong et al. taken term by term."""
    labels, one = probabilities(1, seeds=1, n=120)
    two = probabilities(2, seeds=1, n=120)[1]
    placements = []
    for p in (one, two):
        positive, negative = p[0, labels == 1, 1], p[0, labels == 0, 1]
        wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        placements.append((wins.mean(axis=1), wins.mean(axis=0)))
    variance = sum(np.var(a - b, ddof=1) / len(a) for a, b in zip(*placements))
    difference = np.mean(placements[0][0]) - np.mean(placements[1][0])
    found = paired_bootstrap(*(Predictions.from_probabilities(labels, p) for p in (one, two)), "roc_auc")
    expected = 2 * stats.t.sf(abs(difference) / np.sqrt(variance), 119)
    assert found.difference == pytest.approx(difference)
    assert found.p_value == pytest.approx(expected)


def test_seeds_that_cancel_out_leave_no_variance_below_zero() -> None:
    """One seed always answers one class, the other the other: together they are right half the time."""
    labels = np.array([0, 1] * 12)
    predictions = Predictions(labels, np.stack([np.zeros(24, dtype=int), np.ones(24, dtype=int)]), 2)
    interval = summarize(predictions, ["accuracy"])["accuracy"].interval
    assert 0.0 <= interval.low <= 0.5 <= interval.high <= 1.0
