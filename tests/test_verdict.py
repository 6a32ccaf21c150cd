"""The verdict's rules and its sentence."""

import pytest

from tunestack.comparison.verdict import cheapest, decide
from tunestack.results import Candidate, Comparison, Costs, Interval, SeedResult, SplitScores, Summary
from tunestack.tasks.metrics import METRICS

F1 = METRICS["f1"]


def candidate(
    name,
    mean=None,
    behind=None,
    significant=False,
    *,
    speed=None,
    train=None,
    seeds=3,
    method="lora",
    metric="f1",
    others=None,
):
    """A candidate with so many finished seeds; `behind`: how far behind the best, None for it."""
    scores = SplitScores(metrics={}, confusion=[], predictions_path="p")
    comparison = None
    if behind is not None:
        comparison = Comparison(
            best="any",
            difference=behind,
            interval=Interval(low=behind - 0.02, high=behind + 0.02),
            test="paired bootstrap",
            p_value=0.01,
            p_value_corrected=0.01 if significant else 0.5,
            significant=significant,
        )
    summary = mean is not None and Summary(
        mean=mean, std=0.01, interval=Interval(low=mean - 0.02, high=mean + 0.02)
    )
    return Candidate(
        name=name,
        base=None,
        method=method,
        kind="method" if method == "lora" else "baseline",
        hyperparameters={},
        reads_text=method != "majority",
        seeds=[SeedResult(seed=i, validation=scores if summary else None) for i in range(seeds)],
        validation={metric: summary} if summary else {},
        costs=Costs(inference_examples_per_second=speed, train_seconds=train, others_share=others),
        comparison=comparison,
    )


def test_a_winner_that_beats_every_other():
    found = decide(
        [candidate("Y", 0.77, 0.031, True), candidate("X", 0.801), candidate("Z", 0.7, 0.1, True)],
        F1,
    )
    assert (found.best, found.ship, found.clear) == ("X", "X", True)
    assert found.sentence == "X wins by 0.031 F1 [0.011, 0.051] over Y."


def test_one_that_is_not_beaten_is_enough_for_no_winner():
    found = decide(
        [
            candidate("X", 0.80, speed=10),
            candidate("Y", 0.77, 0.03, True, speed=99),
            candidate("Z", 0.79, 0.01, speed=20),
        ],
        F1,
    )
    assert (found.best, found.ship, found.clear) == ("X", "Z", False)
    assert found.sentence == (
        "No clear winner: Z is within noise of the best, X (largest difference 0.010 F1): "
        "ship the cheapest, Z."
    )


def test_the_largest_difference_is_among_those_within_noise():
    found = decide(
        [
            candidate("A", 0.80, speed=9, train=10, metric="mcc"),
            candidate("B", 0.79, 0.01, speed=9.5, train=5, metric="mcc"),
            candidate("C", 0.785, 0.015, speed=9, train=50, metric="mcc"),
            candidate("D", 0.5, 0.3, True, speed=1000, metric="mcc"),
        ],
        METRICS["mcc"],
    )
    assert "B and C are within noise of the best, A (largest difference 0.015 MCC)" in found.sentence
    assert found.ship == "B"


def test_without_any_cost_the_best_is_shipped_and_the_sentence_says_why():
    found = decide([candidate("A", 0.80), candidate("B", 0.79, 0.01)], F1)
    assert found.ship == "A"
    assert "no costs to choose by" in found.sentence


@pytest.mark.parametrize(
    ("winner", "runner_up", "words"),
    [
        ({"speed": 10.0}, {"speed": 140.0}, ", at 14 times the inference cost"),
        ({"speed": 10.0}, {"speed": 25.0}, ", at 2.5 times the inference cost"),
        ({"speed": 10.0, "train": 300}, {"speed": 11.0, "train": 60}, ", at 5.0 times the training time"),
        ({"speed": 10.0, "train": 90}, {"speed": 11.0, "train": 60}, ""),
        ({"speed": 140.0}, {"speed": 10.0}, ""),
        ({"speed": 10.0}, {}, ""),
    ],
)
def test_a_dear_winner_is_said_to_be(winner, runner_up, words):
    found = decide([candidate("X", 0.8, **winner), candidate("Y", 0.7, 0.1, True, **runner_up)], F1)
    assert found.sentence == f"X wins by 0.100 F1 [0.080, 0.120] over Y{words}."


def test_the_cheapest_is_fast_first_quick_to_train_second():
    slow = candidate("slow", speed=10, train=1)
    fast = candidate("fast", speed=100, train=50)
    nearly_as_fast = candidate("nearly", speed=95, train=20)
    unknown = candidate("unknown", train=0.1)
    # What is unknown of one decides nothing: it would win or lose by not having been measured.
    assert cheapest([slow, fast, unknown]).name == "unknown"
    assert cheapest([slow, fast]).name == "fast"
    assert cheapest([slow, fast, nearly_as_fast]).name == "nearly"
    assert cheapest([slow, unknown]).name == "unknown"
    assert cheapest([candidate("a", speed=100), candidate("b", speed=105)]).name == "a"
    assert cheapest([candidate("a", train=9), candidate("b", train=5)]).name == "b"


@pytest.mark.parametrize(("share", "name"), [(None, "b"), (0.05, "b"), (0.3, "b"), (0.5, "a"), (1.0, "a")])
def test_on_a_busy_machine_costs_are_equal_that_it_may_have_made_differ(share, name):
    slow = candidate("a", speed=10, train=15, others=share)
    assert cheapest([slow, candidate("b", speed=16, train=9, others=0.0)]).name == name


def test_failed_candidates_are_never_chosen_and_are_named():
    failed = candidate("broken", speed=1e9)
    found = decide([failed, candidate("X", 0.8, speed=1), candidate("Y", 0.79, 0.01, speed=2)], F1)
    assert found.ship == "Y"
    assert found.sentence.endswith("(broken did not finish).")


def test_a_winner_whose_seeds_failed_is_said_to():
    winner = candidate("X", 0.9, seeds=3)
    winner.seeds[1] = SeedResult(seed=1, failure="NaN")
    found = decide([winner, candidate("Y", 0.7, 0.2, True)], F1)
    assert "1 of 3 seeds of X failed" in found.sentence


def test_only_one_finished():
    found = decide([candidate("X", 0.8), candidate("broken"), candidate("too")], F1)
    assert (found.best, found.ship, found.clear) == ("X", "X", False)
    assert found.sentence == (
        "Only one candidate of 3 finished, so there is nothing to compare: X reaches 0.800 F1 [0.780, 0.820]."
    )
    assert decide([candidate("X", 0.8)], F1).sentence.endswith("there is nothing to compare it with.")


def test_none_finished():
    assert decide([candidate("broken")], F1) is None
    assert decide([], F1) is None


def test_the_majority_class_that_nothing_beats_clearly():
    majority = candidate("majority", 0.60, 0.01, method="majority", metric="accuracy")
    found = decide([candidate("X", 0.61, speed=5, metric="accuracy"), majority], METRICS["accuracy"])
    assert (found.best, found.ship, found.clear) == ("X", "majority", False)
    assert found.sentence == (
        "Nothing is shown to beat always answering the most frequent class: X leads by 0.010 accuracy "
        "[-0.010, 0.030], but that is not significant on this validation data, so none is shown to be "
        "worth shipping; more rows would tell."
    )


@pytest.mark.parametrize("significant", [True, False])
def test_the_majority_class_that_is_itself_the_best(significant):
    majority = candidate("majority", 0.65, method="majority", metric="accuracy")
    other = candidate("X", 0.61, 0.04, significant, metric="accuracy")
    found = decide([other, majority], METRICS["accuracy"])
    assert (found.best, found.ship, found.clear) == ("majority", "majority", significant)
    assert found.sentence.startswith("Nothing beats always answering the most frequent class (0.650 accuracy")


def test_one_seed_is_said_of_trained_methods_only():
    found = decide(
        [candidate("X", 0.8, seeds=1), candidate("Y", 0.7, 0.1, True, seeds=1, method="tfidf")], F1
    )
    assert found.sentence.endswith("over Y (X ran with one seed, whose luck no interval shows).")


def test_equal_means_follow_the_comparisons():
    found = decide([candidate("A", 0.8, 0.0), candidate("B", 0.8)], F1)
    assert found.best == "B"


def test_many_names_are_cut():
    tied = [candidate(f"c{i}", 0.79, 0.01) for i in range(6)]
    sentence = decide([candidate("X", 0.8), *tied], F1).sentence
    assert "c0, c1, c2 and 3 others are within noise of the best, X" in sentence


def test_one_that_is_only_too_noisy_to_tell_is_not_shipped():
    """However cheap: its mean is below all that the best itself may be."""
    noisy = candidate("noisy", 0.344, 0.495, speed=900)
    noisy.validation["f1"].interval = Interval(low=0.0, high=1.0)
    found = decide([candidate("probe", 0.839, speed=100), noisy], F1)
    assert (found.best, found.ship, found.clear) == ("probe", "probe", False)
    assert found.sentence == (
        "No clear winner: noisy varies too much to be told from the best, probe: ship that."
    )
    found = decide(
        [candidate("probe", 0.839, speed=100), candidate("near", 0.83, 0.009, speed=200), noisy],
        F1,
    )
    assert found.ship == "near"
    assert found.sentence.endswith("ship the cheapest, near; noisy too noisy to tell.")
