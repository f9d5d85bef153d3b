"""The path along ρ of records at a head: the largest ρ that meets the aim within the budget, and no less ρ than helps."""

import pytest
import test_matched_words as cases
import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.unlearning.demotion.completions import Aim, Completed
from imu_cli.unlearning.matched import records
from imu_cli.unlearning.matched.records import Chosen, Point

EACH = 4
"""Tokens of a record."""


def completed(rows: cases.Rows) -> Completed:
    record = torch.arange(len(rows.targets)) // EACH
    return Completed(
        lambda at: at, rows.features, rows.targets, record, torch.zeros(len(record), dtype=torch.bool), lambda at: at
    )


def ran(aim: Aim, max_drop: float = 1.0, rho: float | None = None, unseen: bool = True) -> tuple[list[Point], Chosen]:
    case = cases.made(n=24, v=60, width=16)
    ours, theirs = completed(case.rows), completed(case.unseen) if unseen else None
    problem, sides = records.problem_of(ours, theirs, case.head, aim, 0.01)
    *points, last = records.run(problem, sides, aim, max_drop, lambda change: change, rho)
    assert isinstance(last, Chosen)
    assert all(isinstance(point, Point) for point in points)
    return points, last  # type: ignore[return-value]


def test_the_largest_rho_that_meets_the_aim_is_taken() -> None:
    """Every larger ρ leaves more known than is aimed at, the chosen one does not."""
    _, found = ran(Aim(None, 0.8, 1.0, ""))
    assert found.reached
    assert found.reason == "target"
    assert found.start.forget == 1
    assert found.point.look.forget <= 0.805
    assert all(point.look.forget > 0.805 for point in found.points if point.rho > found.point.rho)


def test_a_reference_models_margins_are_fixed_targets() -> None:
    """Without unseen records margins come to those that are given, never upwards."""
    given = torch.linspace(-3, 30, 24, dtype=torch.float64)
    points, found = ran(Aim(given, 0.0, 0.0, ""), unseen=False)
    assert found.reason in ("target", "path")
    assert bool((found.targets <= given + 1e-9).all())
    assert points[-1].missed < points[0].missed


def test_a_budget_ends_the_path() -> None:
    """Where unseen records may lose nothing at all, what goes beyond is not taken; where even the first step does, it is said."""
    _, found = ran(Aim(None, 0.0, 0.0, ""), max_drop=0.02)
    assert not found.reached
    assert not found.point.look.fell_beyond(0.02)
    with pytest.raises(ImuError, match="--max-drop"):
        ran(Aim(None, 0.0, 0.0, ""), max_drop=-1.0)


def test_a_rho_that_is_given_is_the_only_one() -> None:
    """One point, whatever it comes to."""
    points, found = ran(Aim(None, 0.0, 0.0, ""), rho=0.1)
    assert [point.rho for point in points] == [0.1]
    assert found.reason == "rho"


def test_what_is_met_already_is_an_error() -> None:
    """Nothing is solved where no more is known than is aimed at."""
    with pytest.raises(ImuError, match="nothing to forget"):
        ran(Aim(None, 1.0, 1.0, ""))


def test_the_path_ends_where_less_rho_brings_nothing() -> None:
    """Three looks alike, with margins most of the way: no more ρ is tried, though the aim is not met."""
    points, found = ran(Aim(torch.full((24,), 0.5, dtype=torch.float64), 0.0, 0.0, ""), unseen=False)
    assert len(points) < len(records.RHOS)
    assert found.reason == "path"


def test_what_is_chosen_is_what_the_file_holds() -> None:
    """The change that is returned went through the file's dtype."""
    case = cases.made(n=24, v=60, width=16)

    def coarse(change: Tensor) -> Tensor:
        return change.bfloat16().float()

    aim = Aim(None, 0.8, 1.0, "")
    problem, sides = records.problem_of(completed(case.rows), completed(case.unseen), case.head, aim, 0.01)
    *_, last = records.run(problem, sides, aim, 1.0, coarse, None)
    assert isinstance(last, Chosen)
    assert torch.equal(last.change, coarse(last.change))
