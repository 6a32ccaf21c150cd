"""Metrics against scikit-learn."""

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from sklearn import metrics as sk

from tunestack.tasks.metrics import METRICS, Counts, classification_metrics, confusion_matrix, known_metrics


def oracle(labels, predicted, n_classes):
    """Every metric of predicted labels, by scikit-learn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where only one class occurs
        values = {
            "accuracy": sk.accuracy_score(labels, predicted),
            "mcc": sk.matthews_corrcoef(labels, predicted),
        }
        if n_classes == 2:
            values |= {
                "precision": sk.precision_score(labels, predicted, zero_division=0),
                "recall": sk.recall_score(labels, predicted, zero_division=0),
                "f1": sk.f1_score(labels, predicted, zero_division=0),
            }
        else:
            values |= {
                "precision_macro": sk.precision_score(labels, predicted, average="macro", zero_division=0),
                "recall_macro": sk.recall_score(labels, predicted, average="macro", zero_division=0),
                "f1_macro": sk.f1_score(labels, predicted, average="macro", zero_division=0),
                "f1_micro": sk.f1_score(labels, predicted, average="micro", zero_division=0),
            }
            values["f1"] = values["f1_macro"]
    return values


@st.composite
def answers(draw):
    n_classes, n = draw(st.integers(2, 5)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Few levels make ties, few classes in use make empty ones.
    probabilities = rng.integers(1, draw(st.sampled_from([3, 1000])), size=(n, n_classes)).astype(float)
    labels = rng.integers(draw(st.integers(1, n_classes)), size=n)
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


@given(answers())
@settings(max_examples=100, deadline=None)
def test_metrics_are_those_of_scikit_learn(case):
    labels, probabilities = case
    n_classes = probabilities.shape[1]
    found = classification_metrics(labels, probabilities)
    expected = oracle(labels, probabilities.argmax(axis=1), n_classes)
    if len(np.unique(labels)) == n_classes:
        scores = probabilities[:, 1] if n_classes == 2 else probabilities
        expected["roc_auc"] = sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert set(found) == set(expected)
    assert list(found) == [name for name in known_metrics(n_classes) if name in found]
    assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-12, atol=1e-15)


@given(answers())
@settings(max_examples=50, deadline=None)
def test_confusion_matrix_is_that_of_scikit_learn(case):
    labels, probabilities = case
    classes = range(probabilities.shape[1])
    expected = sk.confusion_matrix(labels, probabilities.argmax(axis=1), labels=classes)
    assert confusion_matrix(labels, probabilities) == expected.tolist()


@given(answers(), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_metrics_from_resampled_counts_are_scikit_learns_with_weights(case, seed):
    labels, probabilities = case
    predicted, n_classes, n = probabilities.argmax(axis=1), probabilities.shape[1], len(labels)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n))
    is_actual, is_predicted = (ids[:, None] == np.arange(n_classes) for ids in (labels, predicted))
    counts = Counts(
        hits=(weights @ (is_actual & is_predicted)).astype(float),
        predicted=(weights @ is_predicted).astype(float),
        actual=(weights @ is_actual).astype(float),
    )
    # An example drawn no times is not there at all.
    drawn = np.repeat(np.arange(n), weights)
    expected = oracle(labels[drawn], predicted[drawn], n_classes)
    found = {name: float(METRICS[name].from_counts(counts)) for name in expected}
    assert_allclose(list(found.values()), list(expected.values()), rtol=1e-10, atol=1e-12)


def test_counts_of_many_data_sets_at_once():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(3, size=(2, 4, 5, 40))
    one_hot = [ids[..., None] == np.arange(3) for ids in (labels, predicted)]
    counts = Counts(*(c.sum(axis=2).astype(float) for c in (one_hot[0] & one_hot[1], one_hot[1], one_hot[0])))
    expected = [[oracle(labels[i, j], predicted[i, j], 3) for j in range(5)] for i in range(4)]
    for name in ("f1", "precision_macro", "recall_macro", "f1_micro", "accuracy", "mcc"):
        found = METRICS[name].from_counts(counts)
        assert_allclose(found, [[cell[name] for cell in row] for row in expected], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_roc_auc_is_left_out_where_one_class_is_absent(labels):
    found = classification_metrics(np.array(labels), np.array([[0.2, 0.8], [0.6, 0.4], [0.7, 0.3]]))
    assert set(found) == set(known_metrics(2)) - {"roc_auc"}
    assert np.isfinite(list(found.values())).all()


def test_roc_auc_is_left_out_where_a_probability_is_not_finite():
    found = classification_metrics(np.array([0, 1]), np.array([[np.nan, np.nan], [0.1, 0.9]]))
    assert "roc_auc" not in found


@given(answers())
@settings(max_examples=15, deadline=None)
def test_a_metric_of_single_examples_is_a_mean_over_them(case):
    labels, probabilities = case
    n_classes = probabilities.shape[1]
    assume(n_classes > 2)
    found = classification_metrics(labels, probabilities)
    of_examples = [
        classification_metrics(labels[i : i + 1], probabilities[i : i + 1]) for i in range(len(labels))
    ]
    for name in known_metrics(n_classes):
        if METRICS[name].per_example:
            assert found[name] == pytest.approx(np.mean([example[name] for example in of_examples]))
