"""SQuAD's metrics against its official scripts' definitions, and a well-kept implementation of them."""

from __future__ import annotations

import collections
import re
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tunestack.comparison.statistics import summarize
from tunestack.data.squad import ANSWERABLE
from tunestack.tasks import squad
from tunestack.tasks.question_answering import QuestionAnswering

words = st.sampled_from(
    ["the", "A", "an", "Fox", "fox,", "fox's", "U.S.", "red-hot", "2,000", "été", "—", ".", ""]
)
texts = st.lists(words, max_size=5).map("  ".join)
golds = st.lists(texts, min_size=1, max_size=3)


# The definitions of the official scripts, evaluate-v1.1.py and evaluate-v2.0.py.


def official_normal_form(text: str) -> str:
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def official_f1_v1(prediction: str, gold: str) -> float:
    prediction_tokens = official_normal_form(prediction).split()
    ground_truth_tokens = official_normal_form(gold).split()
    common = collections.Counter(prediction_tokens) & collections.Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def official_f1_v2(prediction: str, gold: str) -> float:
    gold_toks, pred_toks = official_normal_form(gold).split(), official_normal_form(prediction).split()
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    return official_f1_v1(prediction, gold)


def official_exact(prediction: str, gold: str) -> float:
    return int(official_normal_form(prediction) == official_normal_form(gold))


def official_raw_scores(prediction: str, answers: list[str]) -> tuple[float, float]:
    """v2.0's `get_raw_scores` of one question."""
    gold_answers = [text for text in answers if official_normal_form(text)]
    if not gold_answers:
        gold_answers = [""]
    return (
        max(official_exact(prediction, gold) for gold in gold_answers),
        max(official_f1_v2(prediction, gold) for gold in gold_answers),
    )


def official_find_best_thresh(
    preds: dict[int, str], scores: dict[int, float], na_probs: dict[int, float], has_ans: dict[int, bool]
) -> tuple[float, float]:
    """v2.0's `find_best_thresh`, the best score as a share."""
    cur_score: float = sum(1 for k in has_ans if not has_ans[k])
    best_score, best_thresh = cur_score, 0.0
    for qid in sorted(na_probs, key=lambda k: na_probs[k]):
        diff = scores[qid] if has_ans[qid] else (-1 if preds[qid] else 0)
        cur_score += diff
        if cur_score > best_score:
            best_score, best_thresh = cur_score, na_probs[qid]
    return best_score / len(scores), best_thresh


@settings(deadline=None)
@given(texts, golds)
def test_scores_are_those_of_the_first_official_script(prediction: str, answers: list[str]) -> None:
    exact, f1 = squad.overlap([prediction], [answers], unanswerable=False)
    assert exact[0] == max(official_exact(prediction, gold) for gold in answers)
    assert f1[0] == pytest.approx(max(official_f1_v1(prediction, gold) for gold in answers), abs=1e-15)


@settings(deadline=None)
@given(texts, st.lists(texts, max_size=3))
def test_scores_are_those_of_the_second_official_script(prediction: str, answers: list[str]) -> None:
    exact, f1 = squad.overlap([prediction], [answers], unanswerable=True)
    assert (exact[0], f1[0]) == pytest.approx(official_raw_scores(prediction, answers), abs=1e-15)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(texts, golds), min_size=1, max_size=6))
def test_scores_are_those_of_torchmetrics(rows: list[tuple[str, list[str]]]) -> None:
    text = pytest.importorskip("torchmetrics.functional.text", reason="it is in the extra `dev`")
    # Answers of articles alone: there it takes the second script's F1, which we have where all have words.
    rows = [(ours, [gold for gold in given if official_normal_form(gold)]) for ours, given in rows]
    rows = [(ours, given) for ours, given in rows if given]
    if not rows:
        return
    predictions = [{"prediction_text": ours, "id": str(index)} for index, (ours, _) in enumerate(rows)]
    targets = [
        {"id": str(index), "answers": {"text": given, "answer_start": [0] * len(given)}}
        for index, (_, given) in enumerate(rows)
    ]
    theirs = text.squad(predictions, targets)
    exact, f1 = squad.overlap([ours for ours, _ in rows], [given for _, given in rows], unanswerable=False)
    assert 100 * exact.mean() == pytest.approx(float(theirs["exact_match"]), rel=1e-5)
    assert 100 * f1.mean() == pytest.approx(float(theirs["f1"]), rel=1e-5)


examples = st.lists(
    st.tuples(st.integers(-6, 6), st.booleans(), st.sampled_from([0.0, 0.0, 0.4, 1.0])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(examples, st.booleans())
def test_the_threshold_is_the_official_one(rows: list[tuple[int, bool, float]], distinct: bool) -> None:
    """What it reaches is the best that the official search finds, or any threshold, equal margins or not."""
    margins = np.array(
        [margin + (0.01 * place if distinct else 0) for place, (margin, _, _) in enumerate(rows)]
    )
    has = np.array([has for _, has, _ in rows])
    scores = np.array([score * own for _, own, score in rows])
    threshold = squad.best_threshold(margins, scores, has)

    def reached(threshold: float) -> float:
        return float(np.where(margins > threshold, ~has, scores).mean())

    every = [*margins, margins.min() - 1, margins.max() + 1]
    assert reached(threshold) == pytest.approx(max(map(reached, every)))
    if distinct:
        index = range(len(rows))
        best, official = official_find_best_thresh(
            dict.fromkeys(index, "text"),
            dict(zip(index, scores)),
            dict(zip(index, margins)),
            dict(zip(index, has)),
        )
        assert reached(threshold) == pytest.approx(best)
        if best > (~has).mean():  # else the official threshold is 0, whatever the margins are
            assert reached(official) == pytest.approx(best)
            assert official <= threshold
            assert not ((official < margins) & (margins <= threshold)).any()


def given_answers(rows: list[tuple[str, list[str], float]]) -> tuple[dict[str, list[Any]], Any]:
    """A split whose contexts are the predictions, and answers that take all of them; score by row."""
    split = {
        "question": ["?"] * len(rows),
        "context": [prediction for prediction, _, _ in rows],
        "answer_texts": [golds for _, golds, _ in rows],
    }
    places = [[0, len(prediction), score, 0.0] for prediction, _, score in rows]
    return split, np.array(places)


ROWS: list[tuple[str, list[str], float]] = [
    ("the red fox", ["a fox", "red fox"], 3.0),
    ("dog", ["fox"], 2.0),
    ("grey dog", ["grey wolf"], 1.5),
    ("cat", [], 1.0),
    ("cow", [], -1.0),
    ("bird", ["bird"], -2.0),
]


def test_metrics_of_questions_with_and_without_answers() -> None:
    """By hand: exact match, F1, and what no answer is worth."""
    task = QuestionAnswering(ANSWERABLE)
    split, answers = given_answers(ROWS)
    assert task.scores(split, answers) == pytest.approx(
        {
            "exact_match": 2 / 6,  # the fox, and the cow that is not answered
            "f1": (1 + 0 + 0.5 + 0 + 1 + 0) / 6,
            "has_answer_exact_match": 1 / 4,
            "has_answer_f1": 1.5 / 4,
            "no_answer_exact_match": 1 / 2,
        }
    )
    assert task.confusion(split, answers) == [[3, 1], [1, 1]]
    assert task.label_counts(split) == [4, 2]
    assert task.told(split, answers)["prediction"] == ["the red fox", "dog", "grey dog", "cat", "", ""]
    settings = task.decide(split, answers, "f1")
    # Answering the first three gains 1.5 and keeps the 2 without an answer; a fourth one costs 1.
    assert settings == {"null_threshold": -1.25}
    assert task.scores(split, task.decided(answers, settings))["f1"] == pytest.approx(3.5 / 6)
    # For exact matches the third one brings nothing: the first of the best thresholds is below it.
    assert task.decide(split, answers, "exact_match") == {"null_threshold": -2.5}
    with_one = QuestionAnswering(ANSWERABLE, QuestionAnswering.options_class(null_threshold=0.5))
    assert with_one.decide(split, answers, "f1") == {}


def test_metrics_where_all_questions_have_answers() -> None:
    task = QuestionAnswering()
    split, answers = given_answers([row for row in ROWS if row[1]])
    answers = task.decided(answers, task.decide(split, answers, "f1"))
    assert task.scores(split, answers) == pytest.approx({"exact_match": 2 / 4, "f1": 2.5 / 4})
    assert list(task.metrics) == ["f1", "exact_match"]
    assert task.confusion(split, answers) is None
    assert list(task.told(split, answers)) == ["prediction", "score", "start", "end"]


@pytest.mark.parametrize("names", [(), ANSWERABLE])
def test_statistics_give_the_scores_of_every_seed(names: tuple[str, ...]) -> None:
    task = QuestionAnswering(names)
    split, answers = given_answers([row for row in ROWS if row[1] or names] * 30)
    other = answers.copy()
    other[::3, 1] -= 1  # a letter less
    if not names:
        answers, other = task.decided(answers, {}), task.decided(other, {})
    seeds = np.stack([answers, other])
    summaries = summarize(task.answers(split, seeds), resamples=200)
    expected = [task.scores(split, own) for own in seeds]
    assert summaries.keys() == expected[0].keys() == task.metrics.keys()
    for name, summary in summaries.items():
        assert summary.mean == pytest.approx(np.mean([own[name] for own in expected]), abs=1e-6)
        assert summary.interval.low < summary.mean < summary.interval.high


def test_what_none_got_right_rests_on_the_questions_of_its_part() -> None:
    """Clopper and Pearson's interval of 0 of 13 and of 6 of 6."""
    task = QuestionAnswering(ANSWERABLE)
    split = {"context": ["a b"] * 19, "answer_texts": [["b"]] * 13 + [[]] * 6}
    never = np.tile([0.0, 1.0, -1.0, 0.0], (19, 1))
    found = summarize(task.answers(split, never[None]), resamples=50)
    for name, right, count in (("has_answer_f1", 0, 13), ("no_answer_exact_match", 6, 6)):
        wanted = binomtest(right, count).proportion_ci(method="exact")
        interval = found[name].interval
        assert (interval.low, interval.high) == pytest.approx((wanted.low, wanted.high))


def test_a_reader_is_told_of_a_candidate_that_never_answers() -> None:
    task = QuestionAnswering(ANSWERABLE)
    never, sometimes = {"f1": 0.3, "has_answer_f1": 0.0}, {"f1": 0.3, "has_answer_f1": 0.1}
    assert task.remarks({"validation": sometimes, "test": sometimes}) == []
    (told,) = task.remarks({"validation": never, "test": sometimes})
    assert "on validation: it scores by giving none" in told


def test_a_part_without_questions_has_no_metrics() -> None:
    task = QuestionAnswering(ANSWERABLE)
    split, answers = given_answers([row for row in ROWS if row[1]])
    scores = task.scores(split, answers)
    assert set(scores) == {"exact_match", "f1", "has_answer_exact_match", "has_answer_f1"}
    assert summarize(task.answers(split, answers[None]), resamples=50).keys() == scores.keys()


def test_normal_forms() -> None:
    normal = squad.normalize_answer
    assert normal("  The   Theatre, an other!") == "theatre other"
    assert normal("a") == ""
    assert normal("“Quotes” stay") == "“quotes” stay"  # no ASCII punctuation


@pytest.mark.parametrize("margins", [[-0.5, -0.3, np.inf], [np.inf, np.inf, np.inf]])
def test_a_threshold_is_a_number_where_a_question_has_no_span(margins: list[float]) -> None:
    has = np.asarray([True, True, False])
    threshold = squad.best_threshold(np.asarray(margins), np.asarray([1.0, 1.0, 0.0]), has)
    assert np.isfinite(threshold)
    assert (np.asarray(margins) <= threshold).tolist() == np.isfinite(margins).tolist()
