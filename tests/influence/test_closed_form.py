import math

import oracles
import pytest
import torch
from cases import CASES, Case

from imu_cli.errors import ImuError
from imu_cli.influence import closed_form as subject
from imu_cli.influence.closed_form import Damping
from imu_cli.linear import objective, rows

ABSOLUTE = Damping(0.01)


def scores_of(h, head, labels, damping=ABSOLUTE):
    return subject.influence(h, labels, head, damping)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_equal_autograd_per_sample(case: Case) -> None:
    """The closed form is the definition: batch-size-1 float64 autograd gives the same scores to 1e-9."""
    h, head, labels = case.make()
    expected = oracles.influence(head, h, labels, 0.01)
    torch.testing.assert_close(scores_of(h, head, labels).scores, expected, rtol=1e-9, atol=1e-300)


def test_published_code_differs_in_row_0_only() -> None:
    """The published loop adds into the first sample's gradient: its row 0 is wrong, and only that row."""
    h, head, labels = Case(7, 10, 7, True, 5.0).make()
    ours = scores_of(h, head, labels).scores
    published = oracles.published_scores(head, h, labels, 0.01)
    torch.testing.assert_close(ours[1:], published[1:], rtol=1e-9, atol=0)
    assert abs(float(ours[0] - published[0])) > 1e-3 * abs(float(published[0]))


def test_sign_is_that_of_the_loss_of_the_set() -> None:
    """A negative score means: a small step up the sample's own loss raises the preconditioned mean loss of the set."""
    h, head, labels = Case(40, 10, 7, True, 5.0).make()
    scores = scores_of(h, head, labels).scores
    g = oracles.gradients(head, h, labels)
    fisher = g.square().mean(0)
    for row in range(0, 40, 7):
        step = 1e-6 * g[row] / (fisher + 0.01)

        def mean_loss(w):
            return objective.losses(h @ w.T, objective.one_hot(labels, 10)).mean()

        change = float(mean_loss(head + step) - mean_loss(head - step)) / 2e-6
        assert math.isclose(change, -float(scores[row]), rel_tol=1e-4, abs_tol=1e-7)


def test_order_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permuting the samples permutes their scores, and how many rows are taken at once changes nothing."""
    h, head, labels = Case(40, 10, 7, True, 5.0).make()
    whole = scores_of(h, head, labels).scores
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(scores_of(h[order], head, labels[order]).scores, whole[order], rtol=1e-12, atol=0)
    monkeypatch.setattr(rows, "ROWS_AT_ONCE", 7)
    torch.testing.assert_close(scores_of(h, head, labels).scores, whole, rtol=1e-12, atol=0)


def test_relative_damping_is_a_multiple_of_the_mean_fisher() -> None:
    """``relative:0.1`` is 0.1 times the mean of the Fisher diagonal, and the scores are those of that number."""
    h, head, labels = Case(40, 10, 7, True, 5.0).make()
    found = scores_of(h, head, labels, Damping.parse("relative:0.1"))
    assert found.damping == pytest.approx(0.1 * found.mean_fisher, rel=1e-12)
    torch.testing.assert_close(found.scores, scores_of(h, head, labels, Damping(found.damping)).scores)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x", "relative:", "half:0.1", ""])
def test_bad_damping_is_refused(text: str) -> None:
    """A damping is a positive finite number, or relative to the mean: anything else is named."""
    with pytest.raises(ImuError, match="--damping"):
        Damping.parse(text)


def test_weights_follow_the_definition() -> None:
    """Of the negative scores the top share is kept, √|s| is the weight, and the clip is the quantile of the kept."""
    scores = torch.tensor([-4.0, -1.0, 3.0, -9.0, 0.0, -16.0], dtype=torch.float64)
    made = subject.weigh(scores, keep=0.75, clip_quantile=0.5)
    assert (made.negative, made.kept) == (4, 3)
    assert made.clip == 3.0
    assert made.weights.tolist() == [2.0, 0.0, 0.0, 3.0, 0.0, 3.0]


def test_one_kept_sample_keeps_its_own_weight() -> None:
    """With one sample the quantile is its own weight: no crash, no zero."""
    assert subject.weigh(torch.tensor([-4.0]), 0.1, 0.93).weights.tolist() == [2.0]


def test_manifest_weights_multiply() -> None:
    """The manifest's weight column scales what influence gives."""
    scores = torch.tensor([-4.0, -1.0], dtype=torch.float64)
    made = subject.weigh(scores, 1.0, 1.0, torch.tensor([1.0, 5.0], dtype=torch.float64))
    assert made.weights.tolist() == [2.0, 5.0]


def test_no_negative_score_is_an_error() -> None:
    """Nothing to ascend on is said, with what to do."""
    with pytest.raises(ImuError, match="no forget sample has a negative score"):
        subject.weigh(torch.tensor([0.0, 1.0]), 1.0, 0.93)


def test_vanished_scores_are_an_error() -> None:
    """Scores whose roots are all zero cannot be weights."""
    with pytest.raises(ImuError, match="every weight is 0"):
        subject.weigh(torch.tensor([-5e-324], dtype=torch.float64), 1.0, 0.93, torch.zeros(1))
