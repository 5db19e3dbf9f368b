"""Every figure by hand on small numbers, and against scikit-learn on random ones."""

import math

import numpy as np
import pytest
import sklearn.metrics

from patchword.core.picture import DecodeError
from patchword.data.dataset import Arrays, Split
from patchword.evaluation.metrics import (
    Predictions,
    average_precision,
    balanced_accuracy,
    calibration,
    measure,
    wilson_interval,
)
from patchword.evaluation.mistakes import confident_mistakes, sure_hits


def test_wilson_interval_by_hand() -> None:
    """Wilson 1927: 15 of 20; the value is Newcombe's (1998) for this case."""
    low, high = wilson_interval(15, 20)
    assert (low, high) == (pytest.approx(0.5313, abs=1e-4), pytest.approx(0.8881, abs=1e-4))
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    assert wilson_interval(0, 10)[1] == pytest.approx(0.2775, abs=1e-4)
    assert wilson_interval(0, 0) == [0.0, 1.0]


def one_label() -> Predictions:
    """Five pictures of three classes; the fourth cannot be read."""
    logits = np.log(np.array([[8, 1, 1], [1, 8, 1], [6, 2, 2], [1, 1, 1], [1, 2, 7]], dtype=np.float32) / 10)
    return Predictions(logits, np.array([0, 1, 1, 2, 2]), {3: "is empty"})


def test_unreadable_pictures_count_as_wrong() -> None:
    figures = measure(one_label(), ("ant", "bee", "cat"))
    assert (figures["n"], figures["correct"], figures["value"]) == (5, 3, 0.6)
    assert figures["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert figures["majority"] == 0.4
    assert figures["top5"] is None
    assert figures["classes"][2] == {
        "name": "cat",
        "n": 2,
        "correct": 1,
        "predicted": 1,
        "precision": 1.0,
        "recall": 0.5,
        "f1": 2 / 3,
    }
    assert figures["loss"] == pytest.approx(-(math.log(0.8) * 2 + math.log(0.2) + math.log(0.7)) / 4, rel=1e-5)


def test_the_balanced_accuracy_is_the_mean_recall() -> None:
    """9 of 10, 1 of 2, and a class of which there is nothing: 70 %; half widths of Wilson's intervals add up in squares."""
    found = balanced_accuracy(np.array([9, 1, 0]), np.array([10, 2, 0]))
    assert found["value"] == pytest.approx(0.7)
    (a, b), (c, d) = wilson_interval(9, 10), wilson_interval(1, 2)
    below, above = math.hypot(0.9 - a, 0.5 - c) / 2, math.hypot(b - 0.9, d - 0.5) / 2
    assert found["ci95"] == pytest.approx([0.7 - below, 0.7 + above])
    assert balanced_accuracy(np.zeros(2, int), np.zeros(2, int)) == {"value": 0.0, "ci95": [0.0, 1.0]}
    # Of one class it is the accuracy, with its interval.
    assert balanced_accuracy(np.array([15]), np.array([20]))["ci95"] == pytest.approx(wilson_interval(15, 20))


def test_the_interval_of_the_balanced_accuracy_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    n, recalls, held = np.array([200, 40, 7]), np.array([0.9, 0.7, 0.4]), 0
    for _ in range(1000):
        low, high = balanced_accuracy(generator.binomial(n, recalls), n)["ci95"]
        held += low <= recalls.mean() <= high
    assert 0.93 <= held / 1000 <= 0.98


def test_one_answer_of_several_that_are_right() -> None:
    """Right, wrong, right, without a label, and unreadable."""
    labels = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]], np.uint8)
    logits = np.array([[1, 3, 2], [1, 3, 2], [-5, -4, -3], [1, 0, 0], [0, 0, 0]], np.float32)
    figures = measure(Predictions(logits, labels, {4: "is empty"}), ("ant", "bee", "cat"), one_answer=True)
    assert figures == {
        "metric": "real_accuracy",
        "n": 4,
        "unlabelled": 1,
        "correct": 2,
        "value": 0.5,
        "value_ci95": wilson_interval(2, 4),
    }
    none = measure(Predictions(logits, np.zeros_like(labels), {}), ("ant", "bee", "cat"), one_answer=True)
    assert (none["n"], none["value"], none["value_ci95"]) == (0, 0.0, [0.0, 1.0])


def test_top5_counts_unreadable_pictures_as_wrong() -> None:
    """Ranks 1, 5, 6 and 2 of seven; the fifth picture cannot be read."""
    logits = np.array([[7, 6, 5, 4, 3, 2, 1]] * 4 + [[0] * 7], np.float32)
    figures = measure(Predictions(logits, np.array([0, 4, 5, 1, 0]), {4: "is empty"}), tuple("abcdefg"))
    assert figures["top5"] == {"correct": 3, "value": 0.6, "ci95": wilson_interval(3, 5)}


def test_the_worst_mistakes_come_first() -> None:
    """Wrong at 0.6, 0.9 and 0.7; picture 1 is right, and picture 4 cannot be read."""
    logits = np.log(np.array([[6, 4], [9, 1], [1, 9], [7, 3], [5, 5]], dtype=np.float32) / 10)
    predictions = Predictions(logits, np.array([1, 0, 0, 1, 1]), {4: "is empty"})
    split = Split(Arrays(np.zeros((5, 4, 4, 3), np.uint8), "p"), predictions.labels)
    mistakes = confident_mistakes(predictions, split, ("ant", "bee"))
    assert [row["name"] for row in mistakes] == ["p:2", "p:3", "p:0"]
    assert [row["confidence"] for row in mistakes] == pytest.approx([0.9, 0.7, 0.6])
    assert [(row["label"], row["predicted"]) for row in mistakes] == [("ant", "bee"), ("bee", "ant"), ("bee", "ant")]
    assert confident_mistakes(predictions, split, ("ant", "bee"), most=2) == mistakes[:2]


def test_the_surest_right_answer_of_each_class_is_shown() -> None:
    """Right at 0.6 and 0.9 (ant) and at 0.7 (bee); picture 3 is wrong, and picture 4 cannot be read any more."""
    logits = np.log(np.array([[6, 4], [9, 1], [3, 7], [2, 8], [0.5, 9.5]], dtype=np.float32) / 10)
    predictions = Predictions(logits, np.array([0, 0, 1, 0, 1]), {})
    items = Arrays(np.zeros((5, 4, 4, 3), np.uint8), "p")
    split = Split(items, predictions.labels)
    hits = sure_hits(predictions, split, ("ant", "bee"))
    assert [(row["name"], row["label"], row["predicted"]) for row in hits] == [
        ("p:4", "bee", "bee"),
        ("p:1", "ant", "ant"),
    ]
    assert [row["index"] for row in hits] == [4, 1]
    assert [row["confidence"] for row in hits] == pytest.approx([0.95, 0.9])
    assert sure_hits(predictions, split, ("ant", "bee"), most=1) == hits[:1]

    def gone(row: int) -> np.ndarray:
        raise DecodeError("does not exist")

    items.read = gone
    assert [row["thumbnail"] for row in sure_hits(predictions, split, ("ant", "bee"))] == [None, None]
    assert [row["thumbnail"] for row in confident_mistakes(predictions, split, ("ant", "bee"))] == [None]


def test_calibration_by_hand() -> None:
    """Two of two at 0.9 and one of two at 0.6: (2/4)·0.1 + (2/4)·0.1."""
    result = calibration(np.array([0.9, 0.9, 0.6, 0.6]), np.array([True, True, True, False]), bins=5)
    assert result["ece"] == pytest.approx(0.1)
    assert [row["n"] for row in result["bins"]] == [0, 0, 0, 2, 2]
    assert calibration(np.array([1.0]), np.array([True]))["bins"][-1]["n"] == 1


def test_against_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    labels, logits = generator.integers(0, 7, 211), generator.normal(size=(211, 7)).astype(np.float32)
    figures = measure(Predictions(logits, labels, {}), tuple("abcdefg"))
    predicted = logits.argmax(1)
    assert figures["value"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predicted))
    balanced = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert figures["balanced"]["value"] == pytest.approx(balanced)
    assert figures["confusion"] == sklearn.metrics.confusion_matrix(labels, predicted).tolist()
    precision, recall, f1, count = map(np.asarray, sklearn.metrics.precision_recall_fscore_support(labels, predicted))
    for i, row in enumerate(figures["classes"]):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[i], recall[i], f1[i]))
        assert row["n"] == count[i]
    assert figures["top5"]["value"] == pytest.approx(sklearn.metrics.top_k_accuracy_score(labels, logits, k=5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert figures["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities), rel=1e-5)


def test_a_model_that_says_nothing_has_the_first_five_classes() -> None:
    """Equal logits are no knowledge: the labels 0 to 4 are among the five, 5 and 6 are not."""
    labels = np.repeat(np.arange(7), [3, 1, 4, 1, 5, 9, 2])
    figures = measure(Predictions(np.zeros((25, 7), np.float32), labels, {}), tuple("abcdefg"))
    assert (figures["correct"], figures["top5"]["correct"]) == (3, 14)


def test_several_labels_against_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    truth = (generator.random((151, 5)) < 0.3).astype(np.uint8)
    logits = (generator.normal(size=(151, 5)) + truth).round(1).astype(np.float32)  # rounded: with ties
    figures = measure(Predictions(logits, truth, {}), tuple("abcde"))
    each = np.array([sklearn.metrics.average_precision_score(truth[:, i], logits[:, i]) for i in range(5)])
    assert [row["average_precision"] for row in figures["labels"]] == pytest.approx(list(each))
    assert figures["value"] == pytest.approx(each.mean())
    assert figures["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, logits > 0, average="macro"))
    assert figures["micro_f1"] == pytest.approx(sklearn.metrics.f1_score(truth, logits > 0, average="micro"))
    low, high = figures["value_ci95"]
    assert low < figures["value"] < high


def test_several_labels_with_a_label_that_never_occurs_and_a_bad_picture() -> None:
    truth = np.array([[1, 0], [1, 0], [0, 0]], np.uint8)
    figures = measure(
        Predictions(np.array([[2, -1], [9, 9], [1, -1]], np.float32), truth, {1: "is truncated"}), ("a", "b")
    )
    assert figures["labels"][1]["average_precision"] is None
    # Found first at rank 1; the unreadable one last, at rank 3, together with nothing else.
    assert figures["labels"][0]["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert figures["labels"][0]["recall"] == 0.5


def test_an_unreadable_picture_is_ranked_below_every_logit() -> None:
    """A zero in its row would stand above these: found at ranks 2 and 4, not at 1 and 3."""
    logits = np.array([[-1], [-2], [0], [-3]], np.float32)
    figures = measure(Predictions(logits, np.array([[0], [1], [1], [0]], np.uint8), {2: "is empty"}), ("a",))
    assert figures["value"] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_the_interval_of_several_labels_holds_95_in_100() -> None:
    """The same bootstrap by another way, with other draws: pictures are repeated, not weighted."""
    generator = np.random.default_rng(2)
    truth = (generator.random((60, 3)) < 0.4).astype(np.uint8)
    logits = (generator.normal(size=(60, 3)) + truth).astype(np.float32)
    low, high = measure(Predictions(logits, truth, {}), ("a", "b", "c"))["value_ci95"]
    values = []
    for _ in range(400):
        drawn = generator.integers(0, 60, 60)
        values.append(np.mean([average_precision(logits[drawn, i], truth[drawn, i]) for i in range(3)]))
    assert 0.91 < np.mean([low <= value <= high for value in values]) < 0.985
    assert low == pytest.approx(np.quantile(values, 0.025), abs=0.03)
    assert high == pytest.approx(np.quantile(values, 0.975), abs=0.03)


def test_weights_of_average_precision_are_repetitions() -> None:
    scores, truth, counts = np.array([0.9, 0.5, 0.5, 0.1]), np.array([1.0, 0, 1, 1]), np.array([2.0, 0, 3, 1])
    repeated = np.repeat(np.arange(4), counts.astype(int))
    assert average_precision(scores, truth, counts) == pytest.approx(
        average_precision(scores[repeated], truth[repeated])
    )
