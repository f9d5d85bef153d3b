"""Why samples go: what is decided from that, which share must fall, to what, and what may not be lost on the way."""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.unlearning.scenario import decide, plan
from imu_cli.unlearning.targets import CLASS_TARGET, Comparison, confusion_share, held_out, looker, parse_until, target

C, D = 4, 6


pytestmark = pytest.mark.usefixtures("one_thread")


def random(seed: int) -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(seed)


def samples(n: int, seed: int, classes: int = C) -> tuple[Tensor, Tensor]:
    """Features (n, d+1) with a column of ones, and labels (n,) in which every class occurs."""
    h = torch.cat(
        [torch.randn(n, D, generator=random(seed), dtype=torch.float64), torch.ones(n, 1, dtype=torch.float64)], dim=1
    )
    labels = torch.arange(n) % classes
    return h, labels[torch.randperm(n, generator=random(seed))]


def head(seed: int = 0) -> Tensor:
    """A random head (c, d+1)."""
    return torch.randn(C, D + 1, generator=random(seed), dtype=torch.float64)


# --- who decides


@pytest.mark.parametrize("wanted", ["class", "sample", "mislabelled"])
@pytest.mark.parametrize("whole", [True, False, None])
@pytest.mark.parametrize("has_data", [True, False])
def test_what_is_asked_for_is_done(wanted: str, whole: bool | None, has_data: bool) -> None:
    """--scenario is never overruled, whatever the data look like."""
    assert decide(wanted, whole, has_data) == (wanted, "--scenario")


@pytest.mark.parametrize(
    ("whole", "has_data", "kind", "why"),
    [
        (True, True, "class", "holds every row of its labels in --data"),
        (False, True, "sample", "some rows of its labels in --data stay"),
        (None, True, "sample", "some rows of its labels in --data stay"),
        (None, False, "sample", "without --data nothing proves that these are whole classes"),
        (False, False, "sample", "without --data nothing proves that these are whole classes"),
    ],
)
def test_auto_needs_proof_of_a_whole_class(whole: bool | None, has_data: bool, kind: str, why: str) -> None:
    """Ten pictures of one cat are not the class cat: only a set that holds every row of its labels is taken for it."""
    found, source = decide("auto", whole, has_data)
    assert found == kind
    assert source.startswith("auto: ")
    assert why in source


@pytest.mark.parametrize(
    ("selector", "scenario"),
    [("class=3", "class"), ("class=3,5", "class"), ("index=0:40", "sample"), ("index=0:1347", None)],
)
def test_auto_on_real_data(job: Path, selector: str, scenario: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    """All rows of one or two classes are a class scenario, the first 40 rows of a class folder are not.

    Every row of all classes is refused: nothing would be kept.
    """
    command = [
        "unlearn",
        "model.safetensors",
        "--config",
        "imu.yaml",
        "--forget",
        selector,
        "--format",
        "json",
        "--no-cache",
    ]
    assert main(command) == (2 if scenario is None else 0)
    shown = capsys.readouterr()
    if scenario is None:
        assert "none would be kept" in shown.err
    else:
        assert json.loads(shown.out)["scenario"] == scenario
        assert f"scenario {scenario} (auto: " in shown.err


# --- which share, which rows


@pytest.mark.parametrize("rows", ["auto", "all", "forgotten"])
@pytest.mark.parametrize("classes", [[2], [0, 3], [3, 1, 0]], ids=str)
def test_the_class_scenario(classes: list[int], rows: str) -> None:
    """Every forgotten class counts as a member for every row, and by default only the forgotten classes' rows move."""
    labels = torch.tensor(classes * 3)
    made = plan("class", "x", labels, C, rows)
    gone = [k in classes for k in range(C)]
    assert made.forgotten == tuple(sorted(classes))
    assert made.members[:].tolist() == [gone] * len(labels)
    assert made.rows.tolist() == ([True] * C if rows == "all" else gone)
    assert made.moving() == (None if rows == "all" else sorted(classes))


@pytest.mark.parametrize("kind", ["sample", "mislabelled"])
@pytest.mark.parametrize("rows", ["auto", "all"])
def test_the_other_scenarios(kind: Any, rows: str) -> None:
    """A row's own label is its only member, and all rows of the head move."""
    labels = torch.tensor([0, 3, 3, 1])
    made = plan(kind, "x", labels, C, rows)
    assert made.members[:].tolist() == [[k == label for k in range(C)] for label in labels.tolist()]
    assert (made.forgotten, made.moving(), made.rows.all().item()) == ((), None, True)
    with pytest.raises(ImuError, match="--rows forgotten: only whole classes have rows of their own"):
        plan(kind, "x", labels, C, "forgotten")


def test_not_every_class_can_be_forgotten() -> None:
    """With no class kept there is nothing that could be predicted instead; as samples they may go."""
    with pytest.raises(ImuError, match="holds every class of the model"):
        plan("class", "x", torch.arange(C), C, "auto")
    assert plan("sample", "x", torch.arange(C), C, "auto").forgotten == ()


# --- what is lost on held-out data


@pytest.mark.parametrize("forgotten", [(), (1,), (0, 2, 3)], ids=str)
def test_held_out_accuracy_is_that_of_kept_classes(forgotten: tuple[int, ...]) -> None:
    """Samples of forgotten classes do not count: a class that goes is no loss. The drop is counted sample by sample."""
    h, labels = samples(41, 1)
    held = held_out(h, labels, forgotten)
    kept = [row for row in range(41) if int(labels[row]) not in forgotten]
    assert held.kept.nonzero().squeeze(1).tolist() == kept

    def right(weights: Tensor) -> list[bool]:
        return [int((weights @ h[row]).argmax()) == int(labels[row]) for row in kept]

    before, after = head(0), head(1)
    assert held.right(before).tolist() == right(before)
    forget, own = samples(9, 2)
    made = plan("sample", "x", own, C, "auto")
    look = looker(forget, made.members, before, held)(after)
    assert look.test_drop == pytest.approx((sum(right(before)) - sum(right(after))) / len(kept), abs=1e-12)
    hits = [int((after @ forget[row]).argmax()) == int(own[row]) for row in range(9)]
    assert look.forget == pytest.approx(sum(hits) / 9, abs=1e-12)
    change = math.sqrt(sum(float(x) ** 2 for x in (after - before).flatten()))
    assert look.head_change == pytest.approx(
        change / math.sqrt(sum(float(x) ** 2 for x in before.flatten())), rel=1e-12
    )


def test_without_held_out_data_no_drop_is_claimed() -> None:
    """What was not measured is None, not 0."""
    h, labels = samples(5, 0)
    assert looker(h, plan("sample", "x", labels, C, "auto").members, head(), None)(head()).test_drop is None


def test_held_out_data_of_forgotten_classes_alone_are_refused() -> None:
    """They say nothing of what is to be kept."""
    h, _ = samples(5, 0)
    with pytest.raises(ImuError, match="has no sample of a kept class"):
        held_out(h, torch.full((5,), 2), (2,))


def predictions(job: Path, model: str, folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (n, c), predictions and labels of a class folder, computed without the package."""
    spec = importlib.util.spec_from_file_location("digits_model", job / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.digits_net()
    network.load_state_dict(load_file(job / model))
    files = sorted(folder.glob("*/*.png"))
    pixels = np.stack([np.array(Image.open(file)) for file in files])
    with torch.no_grad():
        logits = network.eval()((torch.from_numpy(pixels).float().unsqueeze(1) / 255 - 0.305) / 0.376)
    return logits, logits.argmax(dim=1), torch.tensor([int(file.parent.name) for file in files])


@pytest.mark.parametrize("classes", [[3], [0, 1, 8]], ids=str)
def test_no_sample_is_lost_between_kept_classes(
    job: Path, digits: Path, classes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """In the class scenario the kept classes' logits are the same bits before and after, so no kept sample changes sides.

    A held-out sample of a kept class is predicted as before, or was predicted as a forgotten class; with features after
    a ReLU none is lost to a forgotten class, and the run says so.
    """
    command = ["unlearn", "model.safetensors", "--config", "imu.yaml", "--no-cache", "--format", "json"]
    options = ["--forget", f"class={','.join(map(str, classes))}", "--test", str(digits / "data/test")]
    assert main([*command, *options]) == 0
    shown = capsys.readouterr()
    old_logits, old, labels = predictions(job, "model.safetensors", digits / "data/test")
    new_logits, new, _ = predictions(job, "model.unlearned.safetensors", digits / "data/test")
    gone = torch.tensor(classes)
    kept = [k for k in range(10) if k not in classes]
    assert torch.equal(old_logits[:, kept], new_logits[:, kept])
    assert bool((new_logits[:, classes] <= old_logits[:, classes]).all())
    assert bool((new == old)[~torch.isin(old, gone)].all())
    assert float(torch.isin(new[torch.isin(labels, gone)], gone).double().mean()) < 0.1
    half = json.loads(shown.out)["held_out"]["used"]
    said = next(line for line in shown.err.splitlines() if "were lost to a forgotten class" in line)
    lost, of = (int(word) for word in said.split() if word.isdecimal())
    assert lost == 0
    assert 0 < of < half


# --- targets


@given(st.floats(min_value=0, max_value=1, exclude_max=True), st.sampled_from(["", " ", "  "]))
def test_until_takes_any_fraction(value: float, space: str) -> None:
    """Every fraction below 1 is read exactly, with or without spaces around the sign."""
    assert parse_until(f"{space}forget.accuracy{space}<={space}{value!r}{space}") == value


@pytest.mark.parametrize(
    "text",
    ["", "0.9", "forget.accuracy", "forget.accuracy<0.9", "forget.accuracy=0.9", "forget.accuracy>=0.9", "forget.accuracy<=",
     "forget.accuracy<=1", "forget.accuracy<=1.5", "forget.accuracy<=-0.1", "forget.accuracy<=92", "forget.accuracy<=90%",
     "forget.accuracy<=nan", "forget.accuracy<=inf", "forget.accuracy<=0,9", "test.accuracy<=0.9", "forget_accuracy<=0.9",
     "forget.accuracy<=0.9 and more", "xforget.accuracy<=0.9"],
)  # fmt: skip
def test_until_takes_nothing_else(text: str) -> None:
    """Another metric, another sign, percent or what is no fraction: the message shows what to write."""
    with pytest.raises(ImuError, match=r"--until .*: not a target; write 'forget\.accuracy<=0\.92'"):
        parse_until(text)


def brute_force_accuracy(h: Tensor, labels: Tensor, forget: Tensor, weights: Tensor) -> float:
    """Mean over forget samples of the held-out accuracy on the sample's class."""
    total = 0.0
    for label in forget.tolist():
        rows = [row for row in range(len(labels)) if int(labels[row]) == label]
        total += sum(int((weights @ h[row]).argmax()) == label for row in rows) / len(rows)
    return total / len(forget)


@pytest.mark.parametrize("seed", range(6))
def test_samples_fall_to_the_accuracy_of_unseen_ones(seed: int) -> None:
    """The target of random samples is the held-out accuracy weighted by their classes, as near as n samples can show it.

    It is a share that n samples can have, below what they have now, and no other such share is nearer to the rate.
    """
    h, labels = samples(60, seed)
    weights = head(seed)
    forget = torch.randint(0, C - 1, (37,), generator=random(seed))
    rate = brute_force_accuracy(h, labels, forget, weights)
    made = plan("sample", "x", forget, C, "auto")
    for hits in (37, math.ceil(37 * rate) + 1):
        found, source = target(made, None, Comparison(made, forget, None, held_out(h, labels, ())), weights, hits, 37)
        assert found is not None
        counts = [k / 37 for k in range(hits)]
        assert found == min(counts, key=lambda share: abs(share - rate))
        assert f"{rate:.2%}, the original's accuracy on class-matched held-out samples" in source


def test_samples_that_are_at_the_target_already_are_given_the_rate_itself() -> None:
    """Where no sample has to go, the target is the rate: rounding may not make one up."""
    h, labels = samples(60, 0)
    forget = torch.zeros(37, dtype=torch.int64)
    made = plan("sample", "x", forget, C, "auto")
    rate = brute_force_accuracy(h, labels, forget, head())
    found, _ = target(
        made, None, Comparison(made, forget, None, held_out(h, labels, ())), head(), math.floor(37 * rate), 37
    )
    assert found == pytest.approx(rate, abs=1e-12)


def test_other_sources_of_a_target() -> None:
    """--until wins in every scenario; a class falls to the fixed share; samples without data have no target but a hint."""
    _, labels = samples(12, 0, classes=2)
    h, test_labels = samples(40, 1)
    held = held_out(h, test_labels, ())
    for kind in ("class", "sample", "mislabelled"):
        made = plan(kind, "x", labels, C, "auto")
        assert target(made, 0.5, Comparison(made, labels, None, held), head(), 12, 12) == (0.5, "--until")
    assert (
        target(plan("class", "x", labels, C, "auto"), None, Comparison(made, labels, None, held), head(), 12, 12)[0]
        == CLASS_TARGET
    )
    value, why = target(plan("sample", "x", labels, C, "auto"), None, None, head(), 12, 12)
    assert value is None
    assert "add --test DATA (held-out accuracy) or --until" in why
    assert target(plan("mislabelled", "x", labels, C, "auto"), None, None, head(), 12, 12)[0] == 1 / C


def brute_force_confusion(predicted: Tensor, test_labels: Tensor, labels: Tensor, true: Tensor | None) -> float:
    """Mean over forget samples of how often held-out samples of the true class are predicted as the wrong label."""
    total = 0.0
    for i, wrong in enumerate(labels.tolist()):
        truth = -1 if true is None else int(true[i])
        pool = [
            int(p)
            for p, t in zip(predicted, test_labels, strict=True)
            if (int(t) == truth if truth >= 0 else int(t) != wrong)
        ]
        total += pool.count(wrong) / len(pool)
    return total / len(labels)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("known", ["all", "some", "none"])
def test_wrong_labels_fall_to_the_rate_of_that_confusion(seed: int, known: str) -> None:
    """With true labels, without, or with some: the rate is the mean over the forget set, counted one by one."""
    draw = random(seed)
    labels = torch.randint(0, C, (23,), generator=draw)
    true = (labels + torch.randint(1, C, (23,), generator=draw)) % C
    if known == "some":
        true[::3] = -1
    truth = None if known == "none" else true
    test_labels = torch.cat([torch.arange(C), torch.randint(0, C, (50,), generator=draw)])
    h = samples(54, seed)[0]
    predicted = (h @ head(seed).T).argmax(dim=1)
    rate = brute_force_confusion(predicted, test_labels, labels, truth)
    assert confusion_share(predicted, test_labels, labels, truth) == pytest.approx(rate, rel=1e-12)
    made = plan("mislabelled", "x", labels, C, "auto")
    found, source = target(
        made, None, Comparison(made, labels, truth, held_out(h, test_labels, ())), head(seed), 23, 23
    )
    assert found == min((k / 23 for k in range(23)), key=lambda share: abs(share - rate))
    assert f"{rate:.2%}, the original's rate of these confusions" in source


def test_confusions_need_held_out_samples_of_their_classes() -> None:
    """A true class, or every other class, without held-out samples is named."""
    labels = torch.tensor([0, 0])
    with pytest.raises(ImuError, match="has no sample of class 3; give data of it, or --until"):
        confusion_share(torch.tensor([0, 1]), torch.tensor([0, 1]), labels, torch.tensor([1, 3]))
    with pytest.raises(ImuError, match="has no sample of a class other than 0"):
        confusion_share(torch.tensor([0, 0]), torch.tensor([0, 0]), labels, None)
