"""The paragraph about a language model says what the numbers prove, and what speaks against success comes first."""

import pytest
import torch

from imu_cli.evaluation import recall as measuring
from imu_cli.evaluation import recall_summary
from imu_cli.evaluation.recall import Account, Evidence, Questioned
from imu_cli.statistics.recall import Recalled


@pytest.fixture(autouse=True)
def _quick(one_thread: None) -> None:
    """Small matrices are quicker on one thread."""


def said(n: int, extraction: float, exact: float, loss: float, seed: int = 0) -> Recalled:
    """What is said of n records that lie about these numbers."""
    draws = torch.Generator().manual_seed(seed)

    def about(value: float, spread: float) -> torch.Tensor:
        return (value + spread * (torch.rand(n, generator=draws, dtype=torch.float64) - 0.5)).clamp_min(0)

    losses = about(loss, 0.4)
    return Recalled(losses, about(exact, 0.1).clamp_max(1), about(extraction, 0.04).clamp_max(1), -losses, -losses)


KNOWN, UNKNOWN = (0.95, 0.98, 0.1), (0.04, 0.52, 3.0)


def account(forget: tuple[float, float, float], n: int = 60, kept: float = 0.98, **more: object) -> Account:
    """A model that knows forgotten records so well, unseen ones not, and kept ones by heart."""
    sets = {"forget": said(n, *forget), "test": said(50, *UNKNOWN, seed=1), "retain": said(50, 0.95, kept, 0.1, seed=2)}
    return Account(sets, **more)  # type: ignore[arg-type]


def paragraph(after: Account, **more: object) -> str:
    """The summary of a model beside its original."""
    sizes = {"forget": torch.full((len(after.said["forget"]),), 50.0), "test": torch.full((50,), 50.0)}
    e = Evidence(after, before=account(KNOWN, len(after.said["forget"])), sizes=sizes, **more)  # type: ignore[arg-type]
    return recall_summary.of(e, measuring.measure(e), ["a", "b"])


def test_a_model_that_knows_them_has_not_forgotten() -> None:
    """It begins with that, and says what can be read out, there and of unseen records."""
    found = paragraph(account((0.60, 0.8, 0.8)))
    assert found.startswith(
        "NOT forgotten to the level of unseen records: of a forgotten answer, 60 % at its end can still be read out"
    )
    assert "0.950 before, 0.040 of unseen records" in found
    assert "They are still likelier than unseen records" in found


def test_words_that_are_still_known_are_not_forgotten_either() -> None:
    """No piece can be read out, and single words can."""
    found = paragraph(account((0.04, 0.75, 2.9)))
    assert found.startswith(
        "NOT forgotten to the level of unseen records: more words of forgotten answers are still the model's first choice"
    )


def test_a_model_like_the_retrained_one_is_said_to_be() -> None:
    """As far as so many records show; its target is then the retrained model's number."""
    found = paragraph(account(UNKNOWN), retrained=account((0.038, 0.524, 3.1)))
    assert found.startswith(
        "As far as these records show, no more can be read out of forgotten records than from the same records under the retrained model"
    )


def test_few_records_prove_nothing() -> None:
    """Of three records nobody can tell."""
    sets = account(UNKNOWN, 3)
    sets.said["forget"].extraction[:] = torch.tensor([0.0, 0.0, 0.5])  # type: ignore[index]
    assert paragraph(sets).startswith("NOT known to be forgotten: 3 records are too few to tell")


def test_what_is_lost_elsewhere_is_damage_and_comes_first() -> None:
    """A fall of kept answers' words by 20 points."""
    assert paragraph(account(UNKNOWN, kept=0.78)).startswith(
        "DAMAGE, not forgetting: 19.7 of 100 words of kept answers"
    )


def test_other_ways_to_the_answers_are_told() -> None:
    """Four bits that bring them back, or do not."""
    back = paragraph(account(UNKNOWN, four_bit=said(60, 0.4, 0.7, 1.0)))
    assert "More of it comes back another way: by rounding the weights to four bits 0.40" in back
    assert "No more of it comes back by rounding the weights to four bits." in paragraph(
        account(UNKNOWN, four_bit=said(60, *UNKNOWN))
    )


def test_records_that_are_less_likely_than_unseen_ones_are_given_away() -> None:
    """What is pushed too far is said, though nothing can be read out."""
    assert "They are less likely than unseen records, which gives them away" in paragraph(account((0.04, 0.52, 6.0)))


def test_every_metric_is_there_whatever_was_asked() -> None:
    """With the forgotten records alone, each of the others says what it needs."""
    e = Evidence(Account({"forget": said(9, *KNOWN)}))
    found = measuring.measure(e)
    assert {item.name for item in found if item.missing is None} == {
        f"forget.{name}" for name in ("loss", "probability", "exact_memorization", "extraction_strength")
    }
    assert all(item.missing for item in found if item.value is None)
    assert "how much that is of records that were never seen was not measured" in recall_summary.of(e, found, None)


def test_truth_ratios_are_compared_record_by_record() -> None:
    """A model against itself has a forget quality of 1."""
    tested = Questioned(said(20, *UNKNOWN), torch.randn(20, dtype=torch.float64), torch.rand(20, dtype=torch.float64))
    both = account(UNKNOWN, 20, tested={"forget": tested})
    found = paragraph(both, retrained=both)
    assert (
        "Truth ratios of the forgotten records are as under the retrained model, as far as a test tells (forget quality p = 1)."
        in found
    )
