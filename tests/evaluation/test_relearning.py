"""Relearning on networks of which it is known what they hold."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from imu_cli.evaluation import relearning
from imu_cli.evaluation.relearning import Asked, Labelled, Learner, Relearned, Side
from imu_cli.events import Log
from imu_cli.statistics.intervals import Estimate, NotMeasured

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, WIDTH = 4, 10


def samples(n: int, seed: int, hidden: bool = False) -> tuple[Tensor, Tensor]:
    """Features (n, d) float64 around class means, and labels; ``hidden``: samples of class 3 look like those of the others."""
    means = 6 * torch.eye(CLASSES, WIDTH, dtype=torch.float64)
    labels = torch.arange(n) % CLASSES
    seen = torch.where(labels == 3, torch.arange(n) // CLASSES % 3, labels) if hidden else labels
    generator = torch.Generator().manual_seed(seed)
    return means[seen] + torch.randn(n, WIDTH, generator=generator, dtype=torch.float64), labels


def asked(hidden: bool = False, forgotten: tuple[int, ...] = (3,)) -> tuple[Asked, dict[Side, Tensor]]:
    """Class 3 is to be relearnt, or all samples of D_f; and the features of both sides."""
    h, labels = samples(600, 1, hidden)
    test, test_labels = samples(800, 2, hidden)
    gone = labels == 3 if forgotten else labels >= 0
    there = test_labels == 3 if forgotten else test_labels >= 0
    rows = torch.arange(800)
    kept = Labelled(rows[~there], test_labels[~there]) if forgotten else None
    made = Asked(labels[gone], Labelled(rows[there], test_labels[there]), 0, forgotten, kept, 0.01)
    return made, {"forget": h[gone], "test": test}


def head(hide: bool = True) -> tuple[Tensor, Tensor]:
    """A head that knows the classes, its row of class 3 driven far down."""
    weight, bias = torch.eye(CLASSES, WIDTH, dtype=torch.float64), torch.zeros(CLASSES, dtype=torch.float64)
    bias[3] -= 20 * hide
    return weight, bias


def learner(h: Mapping[Side, Tensor], hide: bool = True) -> Learner:
    """The head on these features."""
    return relearning.linear(*head(hide), lambda side, rows: h[side][rows])


def shares(found: Relearned) -> list[float]:
    """What comes back of D_f, by shots."""
    assert all(isinstance(each, Estimate) for each in found.forget.values())
    return [each.value for each in found.forget.values() if isinstance(each, Estimate)]


def test_what_the_features_hold_comes_back_and_what_they_do_not_stays_away() -> None:
    """A class that only the head hides is all there; one whose samples look like the others' is not, though it was as hidden."""
    made, h = asked()
    back = relearning.relearn(learner(h), made, Log(), "after")
    assert min(shares(back)) > 0.97
    unseen = back.unseen[25]
    assert isinstance(unseen, Estimate)
    assert unseen.value > 0.97
    gone, features = asked(hidden=True)
    assert max(shares(relearning.relearn(learner(features), gone, Log(), "after"))) < 0.1


def test_single_samples_come_back_as_their_labels() -> None:
    """No class is shifted where single samples went: a head that is right stays so, on 200 others and in every draw."""
    made, h = asked(forgotten=())
    found = relearning.relearn(learner(h, hide=False), made, Log(), "after").forget[5]
    assert isinstance(found, Estimate)
    assert found.n == relearning.HELD
    assert found.value > 0.99


def test_it_is_adamw_on_all_samples_at_once() -> None:
    """Ten steps of torch's own optimiser on one batch give the same tensors as parts of three; the model keeps its own."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x, labels = samples(10, 1)

    def batches(_: Side, rows: list[int], size: int) -> Iterator[Tensor]:
        return iter(x[rows].split(size))

    moved = {name: tensor for name, tensor in network.named_parameters() if name.startswith("2.")}
    made = Learner(
        lambda tensors, inputs: functional_call(network, dict(tensors), (inputs,)), moved, batches, 64, part=3
    )
    found = relearning.fine_tuned(made, [("forget", Labelled(torch.arange(10), labels))])
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    optimiser = torch.optim.AdamW(network[2].parameters(), lr=relearning.LEARNING_RATE, weight_decay=0.0)
    for _ in range(relearning.STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(x), labels).backward()
        optimiser.step()
    assert found.keys() == {"2.weight", "2.bias"}
    for name, tensor in found.items():
        assert torch.allclose(tensor, network.state_dict()[name], rtol=0, atol=1e-12)
        assert not torch.equal(tensor, before[name])


def test_the_seed_decides() -> None:
    """The same seed the same numbers; another one other samples."""
    made, h = asked(hidden=True)
    first, again, other = (
        relearning.relearn(learner(h), replace(made, seed=seed), Log(), "after") for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_forgotten_classes_win_what_they_may_win(share: float) -> None:
    """The shift lets them lead on exactly this share of the kept samples."""
    lead = torch.randn(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert int((lead > relearning._level(lead, share)).sum()) == round(200 * share)


def test_what_cannot_be_relearnt_says_what_it_needs() -> None:
    """Fewer samples than shots, no never-seen ones, no kept ones beside a class."""
    made, h = asked()
    few = relearning.relearn(learner(h), replace(made, labels=made.labels[:10], unseen=None), Log(), "after")
    assert isinstance(few.forget[5], Estimate)
    assert few.forget[10] == NotMeasured("needs more than 10 forget samples of each class")
    assert few.unseen[5] == NotMeasured("no never-seen samples")
    bare = relearning.relearn(learner(h), replace(made, kept=None), Log(), "after")
    assert bare.forget[5] == NotMeasured("needs --test samples of kept classes")
