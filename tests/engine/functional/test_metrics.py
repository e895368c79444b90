"""Metrics: values against scikit-learn, ranks and label shapes, accumulators."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from engine.errors import DtypeError, OptionError, ShapeError
from engine.functional import metrics
from engine.functional.metrics import METRICS, accuracy, running_average, running_sum, top_k_categorical_accuracy
from tests.engine.functional.support import values

SCORES = values(40, 5)
LABELS = np.random.default_rng(1).integers(0, 5, 40).astype(np.int32)
ONE_HOT = np.eye(5)[LABELS]
CHANCES = values(40, low=0, high=1)
TRUTHS = (values(40, seed=5) > 0).astype(np.int32)


def test_accuracy_matches_scikit_learn_for_all_label_shapes() -> None:
    """One-hot rows, indices and columns of indices agree."""
    expected = sk.accuracy_score(LABELS, SCORES.argmax(-1))
    for y_true, sparse in ((ONE_HOT, False), (LABELS, True), (LABELS[:, None], True)):
        assert accuracy(y_true, SCORES, sparse=sparse) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(40,), (40, 1), (4, 10, 1)])
def test_binary_accuracy_works_at_any_rank(shape: tuple[int, ...]) -> None:
    """A last axis of one, or a single axis, is a row of yes-or-no predictions."""
    expected = sk.accuracy_score(TRUTHS, CHANCES > 0.5)
    assert accuracy(TRUTHS.reshape(shape), CHANCES.reshape(shape)) == pytest.approx(expected)
    logits = np.log(CHANCES / (1 - CHANCES)).reshape(shape)
    assert accuracy(TRUTHS.reshape(shape), logits, from_logits=True) == pytest.approx(expected)


def test_binary_accuracy_takes_a_vector_of_labels_when_sparse() -> None:
    """Labels of shape [n] fit predictions of shape [n, 1]."""
    expected = sk.accuracy_score(TRUTHS, CHANCES > 0.5)
    assert accuracy(TRUTHS, CHANCES[:, None], sparse=True) == pytest.approx(expected)


def test_accuracy_of_sequences_averages_over_all_positions() -> None:
    """Predictions of rank 3 have one class per position."""
    expected = sk.accuracy_score(LABELS, SCORES.argmax(-1))
    assert accuracy(ONE_HOT.reshape(4, 10, 5), SCORES.reshape(4, 10, 5)) == pytest.approx(expected)
    assert accuracy(LABELS.reshape(4, 10), SCORES.reshape(4, 10, 5), sparse=True) == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
def test_counts_and_ratios_match_scikit_learn(threshold: float) -> None:
    """The confusion matrix, precision, recall and specificity are scikit-learn's."""
    yes = threshold < CHANCES
    (tn, fp), (fn, tp) = sk.confusion_matrix(TRUTHS, yes)
    expected = {
        "true_positives": tp,
        "true_negatives": tn,
        "false_positives": fp,
        "false_negatives": fn,
        "precision": sk.precision_score(TRUTHS, yes),
        "recall": sk.recall_score(TRUTHS, yes),
        "sensitivity": sk.recall_score(TRUTHS, yes),
        "specificity": sk.recall_score(1 - TRUTHS, ~yes),
    }
    for name, value in expected.items():
        assert METRICS[name](TRUTHS, CHANCES, threshold=threshold) == pytest.approx(value), name


def test_ratio_of_nothing_is_zero() -> None:
    """Precision without a positive prediction is 0, not NaN."""
    assert metrics.precision(jnp.ones(3), jnp.zeros(3)) == 0
    assert metrics.recall(jnp.zeros(3), jnp.ones(3)) == 0


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_matches_scikit_learn(k: int) -> None:
    """The share of rows whose class is among the k largest, for all label shapes."""
    expected = sk.top_k_accuracy_score(LABELS, SCORES, k=k, labels=range(5)) if k < 5 else 1.0
    for y_true, sparse in ((ONE_HOT, False), (LABELS, True), (LABELS[:, None], True)):
        assert top_k_categorical_accuracy(y_true, SCORES, k=k, sparse=sparse) == pytest.approx(expected)


@pytest.mark.parametrize("k", [0, 6, True, 1.5])
def test_top_k_outside_the_classes_raises(k: int) -> None:
    """k lies between 1 and the number of classes."""
    with pytest.raises(OptionError, match="expected k"):
        top_k_categorical_accuracy(ONE_HOT, SCORES, k=k)


@pytest.mark.parametrize("name", METRICS)
def test_shapes_are_never_broadcast(name: str) -> None:
    """A column of labels is not compared with every prediction."""
    with pytest.raises(ShapeError, match=r"\(40, 1\).*\(40, 5\)|\(40, 5\).*\(40, 1\)"):
        METRICS[name](LABELS[:, None], SCORES)


def test_float_class_indices_raise() -> None:
    """Class indices are integers."""
    with pytest.raises(DtypeError, match="expected integer class indices"):
        accuracy(LABELS.astype(np.float32), SCORES, sparse=True)


def test_mean_absolute_error_matches_scikit_learn() -> None:
    """The mean is over everything."""
    assert metrics.mean_absolute_error(ONE_HOT, SCORES) == pytest.approx(sk.mean_absolute_error(ONE_HOT, SCORES))


def test_accumulators_combine_batches() -> None:
    """The average weights batches equally, the sum adds them."""
    batches = [(TRUTHS[i : i + 10], CHANCES[i : i + 10]) for i in range(0, 40, 10)]
    mean, total = jnp.zeros(()), jnp.zeros((), jnp.uint32)
    for i, batch in enumerate(batches):
        mean = running_average(accuracy)(mean, batch, i)
        total = running_sum(metrics.true_positives)(total, batch, i)
    assert mean == pytest.approx(sk.accuracy_score(TRUTHS, CHANCES > 0.5))
    assert total == sk.confusion_matrix(TRUTHS, CHANCES > 0.5)[1, 1]
