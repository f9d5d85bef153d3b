"""Rows by blocks: held or mapped, whatever the blocks, the same but for rounding, and memory that does not grow with them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Case
from safetensors.torch import load_file, save_file

from imu_cli.errors import ImuError
from imu_cli.files import memory
from imu_cli.files import memory as sizes
from imu_cli.influence import closed_form
from imu_cli.linear import objective, rows
from imu_cli.linear.rows import Logits, Mapped
from imu_cli.statistics import metrics
from imu_cli.unlearning import ascent
from imu_cli.unlearning.targets import held_out

CASE = Case(40, 10, 7, True, 5.0)
DAMPING = closed_form.Damping(0.01)


def setting(tmp_path: Path) -> tuple[torch.Tensor, Mapped, torch.Tensor, torch.Tensor]:
    """H held, the same mapped from a float32 file, labels and head."""
    h, head, labels = CASE.make()
    features = h[:, :-1].float()
    save_file({"features": features.contiguous()}, tmp_path / "f.safetensors")
    mapped = Mapped(load_file(tmp_path / "f.safetensors")["features"], True, torch.device("cpu"))
    return rows.homogeneous(features, bias=True), mapped, labels, head


@pytest.mark.parametrize("most", [3, 7, 8192])
def test_mapped_rows_give_what_held_ones_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Scores, gradient, loss, look and predictions do not know whether features are in memory, but for float64's rounding.

    Some processors' products add up in another order where a matrix begins elsewhere in memory.
    """
    monkeypatch.setattr(rows, "ROWS_AT_ONCE", most)
    held, mapped, labels, head = setting(tmp_path)
    one, other = (closed_form.influence(h, labels, head, DAMPING) for h in (held, mapped))
    for name in ("scores", "confidence", "right", "preconditioned"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)
    members = objective.Members(labels, 10)
    problems = [ascent.Objective(h, members, torch.ones(10, dtype=torch.bool), one.confidence) for h in (held, mapped)]
    (gradient, loss), (again, same) = (problem.at(head) for problem in problems)
    torch.testing.assert_close(gradient, again, rtol=1e-9, atol=1e-12)
    assert loss == pytest.approx(same, rel=1e-12)
    assert objective.counts_in(held, head, members) == objective.counts_in(mapped, head, members)
    assert torch.equal(rows.predicted(held, head), rows.predicted(mapped, head))
    torch.testing.assert_close(rows.logits(held, head), rows.logits(mapped, head), rtol=1e-12, atol=1e-12)
    assert torch.equal(mapped.held(), held)


@pytest.mark.parametrize("most", [1, 3, 7, 39])
def test_blocks_change_nothing_but_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """However many rows are taken at once, scores and gradient are those of all at once."""
    held, _, labels, head = setting(tmp_path)
    members, weights = objective.Members(labels, 10), torch.linspace(0, 1, 40, dtype=torch.float64)
    problem = ascent.Objective(held, members, torch.ones(10, dtype=torch.bool), weights)
    whole, expected = closed_form.influence(held, labels, head, DAMPING), problem.at(head)
    monkeypatch.setattr(rows, "ROWS_AT_ONCE", most)
    found, gradient = closed_form.influence(held, labels, head, DAMPING), problem.at(head)
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[0], expected[0], rtol=1e-12, atol=1e-15)
    assert gradient[1] == pytest.approx(expected[1], rel=1e-12)


def test_few_weighty_rows_are_all_that_is_looked_at(tmp_path: Path) -> None:
    """Where most weights are 0 the gradient is that of the rest, with and without the batch."""
    held, mapped, labels, head = setting(tmp_path)
    weights = torch.zeros(40, dtype=torch.float64)
    weights[[3, 17, 30]] = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    some = torch.tensor([3, 17, 30])
    everything = torch.ones(10, dtype=torch.bool)
    for h in (held, mapped):
        found = ascent.Objective(h, objective.Members(labels, 10), everything, weights)
        alone = ascent.Objective(h[some], objective.Members(labels[some], 10), everything, weights[some])
        torch.testing.assert_close(found.at(head)[0], alone.at(head)[0], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found.at(head, some)[0], alone.at(head)[0], rtol=1e-12, atol=1e-15)


def test_rows_in_another_order_are_those_rows(tmp_path: Path) -> None:
    """A part of a file in an order of its own is read as that, by slices and by numbers."""
    held, mapped, _, _ = setting(tmp_path)
    order = torch.tensor([5, 1, 1, 39])
    some = Mapped(mapped.features, True, mapped.device, order)
    assert len(some) == 4
    assert some.shape == (4, held.shape[1])
    assert torch.equal(some[:], held[order])
    assert torch.equal(some[torch.tensor([3, 0])], held[[39, 5]])
    assert torch.equal(rows.with_bias(some, False)[:], mapped.features[order].double())


def test_held_out_predictions_are_those_of_kept_classes(tmp_path: Path) -> None:
    """What is right on held-out data is looked up for kept classes alone, mapped or held."""
    held, mapped, labels, head = setting(tmp_path)
    kept = labels != int(labels[0])
    expected = ((held @ head.T).argmax(dim=1) == labels)[kept]
    for h in (held, mapped):
        assert torch.equal(held_out(h, labels, (int(labels[0]),)).right(head), expected)


def test_features_that_are_not_finite_are_named() -> None:
    """NaN in the features names the sample."""
    spoilt = torch.ones(5, 3, dtype=torch.float64)
    spoilt[3, 1] = float("nan")
    with pytest.raises(ImuError, match="row of anna 3: its features are not finite"):
        rows.refuse_not_finite(spoilt, lambda row: f"row of anna {row}")


MEMORY = """
import gc, sys, torch
from safetensors.torch import load_file, save_file
from imu_cli.influence import closed_form
from imu_cli.linear import objective
from imu_cli.linear.rows import Mapped

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

n, c, d = 50_000, 1_000, 8
save_file({"features": torch.randn(n, d)}, sys.argv[1])
h = Mapped(load_file(sys.argv[1])["features"], True, torch.device("cpu"))
head, labels = torch.randn(c, d + 1, dtype=torch.float64), torch.randint(c, (n,))
damping = closed_form.Damping(0.01)
closed_form.influence(h[:64], labels[:64], head, damping)
gc.collect()
before, most = anonymous(), 0
residual = objective.residual_and_losses

def looking(logits, members):
    global most
    most = max(most, anonymous())
    return residual(logits, members)

objective.residual_and_losses = looking
closed_form.influence(h, labels, head, damping)
print(most - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how much memory no file backs")
def test_scores_of_many_classes_make_no_matrix_of_samples_times_classes(tmp_path: Path) -> None:
    """50,000 samples of 1,000 classes: 400 MB as one matrix of float64, of which nothing is to be seen.

    In a process of its own: in one that has freed much, what is taken again does not show.
    """
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "f.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 64_000_000


@pytest.mark.parametrize(("text", "size"), [("8GB", 8 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("7", 7)])
def test_sizes_are_read(text: str, size: int) -> None:
    """Decimal and binary units, with and without a space."""
    assert memory.parse(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GB", "much", "1XB", "nan", "9" * 5000, "9" * 18 + "TB", "٣GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """The option is named, with what to write."""
    with pytest.raises(ImuError, match=r"--max-memory .*: not a size; write 8GB"):
        memory.parse(text)


def test_the_limit_is_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a container's memory, where that is less than the machine's."""
    (tmp_path / "max").write_text("1000000\n")
    (tmp_path / "used").write_text("400000\n")
    monkeypatch.setattr(sizes, "LIMITS", (tmp_path / "max",))
    monkeypatch.setattr(sizes, "USED", (tmp_path / "used",))
    assert memory.limit(None) == 300_000
    assert memory.limit(memory.parse("1MB")) == 1_000_000
    (tmp_path / "max").write_text("max\n")
    assert memory.limit(None) > 1_000_000
    assert memory.peak() > 10**7


def test_logits_are_computed_where_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By slices, numbers and masks, of a part as of the whole, they are H Wᵀ; what was found for a row goes with it."""
    monkeypatch.setattr(rows, "ROWS_AT_ONCE", 7)
    held, mapped, _, head = setting(tmp_path)
    whole, mask = held @ head.T, torch.arange(40) % 3 == 0
    for h in (held, mapped):
        made = Logits(h, head)
        assert (len(made), made.shape) == (40, (40, 10))
        torch.testing.assert_close(made[5:9], whole[5:9], rtol=1e-12, atol=1e-13)
        for some in (torch.tensor([3, 39, 3]), mask):
            torch.testing.assert_close(made[some], whole[some], rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(rows.only(made, some)[:], whole[some], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(rows.by_rows(made, lambda part, _: part), whole, rtol=1e-12, atol=1e-13)
        assert torch.equal(rows.by_rows(made, lambda part, at: torch.arange(at.start, at.stop)), torch.arange(40))
        assert torch.equal(metrics.predictions(made), whole.argmax(1))
        part = rows.only(rows.only(made, mask), torch.tensor([4, 0]))
        assert torch.equal(part.memo["predicted"], whole[mask][[4, 0]].argmax(1))
        torch.testing.assert_close(part[:], whole[mask][[4, 0]], rtol=1e-12, atol=1e-13)
        assert rows.by_rows(rows.only(made, mask & ~mask), lambda part, _: part).shape == (0, 10)
        torch.testing.assert_close(rows.mean(h), held.mean(0), rtol=1e-12, atol=0)
    assert torch.equal(rows.held(rows.with_bias(mapped, False)), held[:, :-1])
    assert torch.equal(rows.held(rows.with_bias(rows.with_bias(mapped, False), True)), held)
