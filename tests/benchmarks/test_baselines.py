"""The methods of ``benchmarks/baselines``: one step of each on a linear model, beside the same step worked out by hand."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import baselines
from baselines import (
    boundary_shrink,
    delete,
    fine_tuning,
    gradient_ascent,
    lotus,
    neggrad_plus,
    npo,
    published_imu,
    random_labels,
    retraining,
    salun,
    scrub,
    simnpo,
    ssd,
    training,
)

from tests import oracles

RATE, DECAY, N, M, D, C = 0.1, 5e-4, 4, 6, 3, 3
Unlearn = Callable[[nn.Module, Any, Any], Any]


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, C, bias=False).double()


@pytest.fixture
def data() -> Any:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(N + M, D, generator=draws, dtype=torch.float64)
    y = torch.randint(C, (N + M,), generator=draws)
    forget = training.Samples(x, torch.arange(N), y[:N])
    retain = training.Samples(x, torch.arange(N, N + M), y[N:])
    return training.Data(forget, retain, retain)


def onehot(y: Tensor) -> Tensor:
    return torch.eye(C, dtype=torch.float64)[y]


def slope(w: Tensor, samples: Any, target: Tensor) -> Tensor:
    """Gradient by W of the mean cross-entropy with soft targets: (p − q)ᵀ x / n."""
    x = samples.x[samples.rows]
    return ((x @ w.T).softmax(1) - target).T @ x / len(x)


def moved(
    unlearn: Unlearn, model: nn.Linear, data: Any, strength: float = 1.0, steps: int = 1
) -> tuple[Tensor, Tensor]:
    """Weights before, and after full-batch steps."""
    before = model.weight.detach().clone()
    assert list(unlearn(model, data, training.Settings(RATE, steps, strength, 0, batch=100)))[-1:] == [steps]
    return before, model.weight.detach()


def after(w: Tensor, gradient: Tensor) -> Tensor:
    """One step of SGD with weight decay."""
    return w - RATE * (gradient + DECAY * w)


def test_gradient_ascent_goes_up_the_loss(model: nn.Linear, data: Any) -> None:
    """The gradient of the mean cross-entropy, added."""
    w, found = moved(gradient_ascent.unlearn, model, data)
    assert torch.allclose(found, after(w, -slope(w, data.forget, onehot(data.forget.y))))


def test_neggrad_plus_weighs_both_sets(model: nn.Linear, data: Any) -> None:
    """β of the retain loss less 1 − β of the forget loss."""
    w, found = moved(neggrad_plus.unlearn, model, data, 0.9)
    both = 0.9 * slope(w, data.retain, onehot(data.retain.y)) - 0.1 * slope(w, data.forget, onehot(data.forget.y))
    assert torch.allclose(found, after(w, both))


def test_fine_tuning_sees_retain_data_alone(model: nn.Linear, data: Any) -> None:
    """Ordinary descent; not one forget row is read."""
    w, found = moved(fine_tuning.unlearn, model, data)
    assert torch.allclose(found, after(w, slope(w, data.retain, onehot(data.retain.y))))
    assert not data.forget.touched


def test_random_labels_are_others(model: nn.Linear, data: Any) -> None:
    """Descent on labels that differ from every sample's own."""
    labels = training.other_labels(data.forget.y, C, torch.Generator().manual_seed(0))
    w, found = moved(random_labels.unlearn, model, data)
    assert not (labels == data.forget.y).any()
    assert torch.allclose(found, after(w, slope(w, data.forget, onehot(labels))))


def test_other_labels_avoid_classes_that_go() -> None:
    """Of three classes, with one gone as a whole, a sample of the second can only become the third."""
    found = training.other_labels(torch.ones(50, dtype=torch.int64), 3, torch.Generator(), (0,))
    assert found.eq(2).all()


def test_salun_moves_the_salient_half(model: nn.Linear, data: Any) -> None:
    """The half of the weights with the largest gradient of the forget loss takes the step of random labels and retain data."""
    labels = training.other_labels(data.forget.y, C, torch.Generator().manual_seed(0))
    w, found = moved(salun.unlearn, model, data)
    size = slope(w, data.forget, onehot(data.forget.y)).abs().flatten()
    chosen = torch.zeros(C * D, dtype=torch.bool)
    chosen[size.topk(round(C * D / 2)).indices] = True
    step = after(w, slope(w, data.forget, onehot(labels)) + slope(w, data.retain, onehot(data.retain.y)))
    assert torch.allclose(found, torch.where(chosen.view(C, D), step, w))


def test_npo_starts_as_ascent_and_weighs_less_what_is_gone(model: nn.Linear, data: Any) -> None:
    """At the original r = 0, so that each sample's gradient has the weight 2 σ(0) = 1; later 2 σ(β r)."""
    w, found = moved(npo.unlearn, model, data)
    assert torch.allclose(found, after(w, -slope(w, data.forget, onehot(data.forget.y))))
    now = torch.tensor([-3.0], requires_grad=True)
    npo.preference(now, torch.tensor([-1.0]), 0.5).backward()  # type: ignore[no-untyped-call]
    assert now.grad is not None
    assert math.isclose(float(now.grad), 2 / (1 + math.exp(0.5 * 2)), rel_tol=1e-6)


def test_simnpo_weighs_by_probability(model: nn.Linear, data: Any) -> None:
    """With β = 1 the weight of log p is 2 σ(log p) = 2p/(1 + p)."""
    w, found = moved(simnpo.unlearn, model, data)
    x, y = data.forget.x[:N], data.forget.y
    p = (x @ w.T).softmax(1)
    own = p[torch.arange(N), y]
    gradient = -((2 * own / (1 + own))[:, None] * (p - onehot(y))).T @ x / N
    assert torch.allclose(found, after(w, gradient))


def test_boundary_shrink_takes_the_label_across_the_boundary() -> None:
    """Two boundaries: a sample that is nearer to the second's is given its label, never its own."""
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    x = torch.tensor([[1.0, 0.9], [1.0, -1.9]])
    samples = training.Samples(x, torch.arange(2), torch.zeros(2, dtype=torch.int64))
    assert boundary_shrink.nearest_labels(model, samples, 0.1).tolist() == [1, 2]


def test_boundary_shrink_trains_on_the_nearest_label(model: nn.Linear, data: Any) -> None:
    """A step of descent on the labels found at the original."""
    near = boundary_shrink.nearest_labels(model, data.forget, 0.3)
    w, found = moved(boundary_shrink.unlearn, model, data, 0.3)
    assert not (near == data.forget.y).any()
    assert torch.allclose(found, after(w, slope(w, data.forget, onehot(near))))


def test_ssd_dampens_by_the_ratio_of_importances() -> None:
    """Beyond α the weight is multiplied by F_D/F_f, below it stays; it never grows."""
    found = ssd.dampened(torch.ones(3), torch.tensor([8.0, 3.0, 0.0]), torch.tensor([2.0, 2.0, 2.0]), alpha=2.0)
    assert found.tolist() == [0.25, 1.0, 1.0]


def test_ssd_weighs_importance_by_the_sizes_of_the_sets(model: nn.Linear, data: Any) -> None:
    """F_D is that of all training data; with one minibatch a set it is the squared gradient of the mean loss."""
    f, r = (slope(model.weight.detach(), one, onehot(one.y)).square() for one in (data.forget, data.retain))
    w, found = moved(ssd.unlearn, model, data, 1.2)
    every = (N * f + M * r) / (N + M)
    assert torch.allclose(found, torch.where(f > 1.2 * every, w * every / f, w))
    assert not torch.equal(found, w)


def test_delete_masks_the_label(model: nn.Linear, data: Any) -> None:
    """The teacher is the original without the label, in its proportions, and the step is that of its cross-entropy."""
    w = model.weight.detach().clone()
    x, y = data.forget.x[:N], data.forget.y
    p = (x @ w.T).softmax(1) * (1 - onehot(y))
    teacher = p / p.sum(1, keepdim=True)
    before, found = moved(delete.unlearn, model, data)
    assert torch.allclose(found, after(before, slope(w, data.forget, teacher)))


def test_lotus_temperature_and_noise() -> None:
    """τ is 1 where forget samples are known as unseen ones are, larger above; hard answers are one-hot, soft ones sum to 1."""
    assert lotus.temperature(0.9, 0.9, 2.0) == 1
    assert math.isclose(lotus.temperature(1.0, 0.5, 2.0), math.e)
    logits = torch.tensor([[9.0, 0.0, 0.0]]).repeat(2000, 1)
    soft = lotus.uncertain(logits, 2.0, False, torch.Generator().manual_seed(0))
    hard = lotus.uncertain(logits, 1.0, True, torch.Generator().manual_seed(0))
    assert torch.allclose(soft.sum(1), torch.ones(2000))
    assert hard.sum(1).eq(1).all()
    share = math.exp(9) / (math.exp(9) + 2)  # what the Gumbel-max of these logits picks
    assert abs(float(hard[:, 0].mean()) - share) < 0.005
    assert soft[:, 0].mean() < hard[:, 0].mean()


def test_lotus_first_step(model: nn.Linear, data: Any) -> None:
    """Adam's first step moves every weight by the rate, against the gradient of the cross-entropy with the noisy teacher."""
    draws, w = training.Settings(RATE, 1).generator(), model.weight.detach().clone()
    at, ar = torch.randperm(N, generator=draws), torch.randperm(M, generator=draws)
    tau = lotus.temperature(lotus.accuracy(model, data.forget), lotus.accuracy(model, data.unseen), 2.0)
    xf, xr = data.forget.x[:N][at], data.retain.x[N:][ar]
    q = torch.cat([lotus.uncertain(xf @ w.T, tau, False, draws), lotus.uncertain(xr @ w.T, 1.0, True, draws)])
    x = torch.cat([xf, xr])
    gradient = ((x @ w.T).softmax(1) - q).T @ x / len(x)
    known = lotus.accuracy(model, data.forget) - lotus.accuracy(model, data.unseen)
    steps = list(lotus.unlearn(model, data, training.Settings(RATE, 1, 2.0, 0, batch=100)))
    wanted = w * (1 - RATE * 0.01) - RATE * gradient.sign() if known > -0.01 else w
    assert steps == ([1] if known > -0.01 else [])
    assert torch.allclose(model.weight.detach(), wanted, atol=1e-4)


def test_scrub_disobeys_first_and_obeys_then(model: nn.Linear, data: Any) -> None:
    """At the original KL has no gradient, so a max step does nothing; the min step after it descends the retain loss."""
    w, found = moved(scrub.unlearn, model, data, steps=2)
    first = after(w, torch.zeros_like(w))
    t = scrub.TEMPERATURE
    x = data.retain.x[N:]
    apart = ((x @ first.T / t).softmax(1) - (x @ w.T / t).softmax(1)).T @ x / M * t  # of T² KL_T, by the chain rule
    gradient = scrub.ALPHA * apart + scrub.GAMMA * slope(first, data.retain, onehot(data.retain.y))
    velocity = 0.9 * DECAY * w + gradient + DECAY * first
    assert torch.allclose(found, first - RATE * velocity)


def test_published_scores_are_the_published_loop(model: nn.Linear) -> None:
    """Corrected, the slow oracle's; uncorrected, those of the loop with its in-place sum, which differ in the first row alone."""
    draws = torch.Generator().manual_seed(2)
    h, labels = torch.randn(9, D, generator=draws, dtype=torch.float64), torch.randint(C, (9,), generator=draws)
    w = model.weight.detach()
    residuals = (h @ w.T).softmax(1) - onehot(labels)
    right, wrong = (published_imu.scores(h, residuals, corrected=one) for one in (True, False))
    assert torch.allclose(right, oracles.influence(w, h, labels, published_imu.DAMPING))
    assert torch.allclose(wrong, oracles.published_scores(w, h, labels, published_imu.DAMPING))
    assert torch.equal(right[1:], wrong[1:])
    assert right[0] != wrong[0]


def test_published_weights_keep_the_most_negative_tenth() -> None:
    """Two of twenty are kept, the root of their scores clipped at the 0.93 quantile; positive scores never are."""
    rows, weights = published_imu.chosen(torch.tensor([-4.0, -9.0, *range(1, 19)]))
    assert rows.tolist() == [1, 0]
    assert torch.allclose(weights, torch.tensor([2 + 0.93, 2.0]))


def images_network() -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = published_imu.Network(body.eval(), nn.Linear(4, C))
    return network, torch.rand(30, 3, 8, 8), torch.randint(C, (30,))


def test_published_loop_corrected_leaves_the_body_alone() -> None:
    """Uncorrected, the statistics of batch norm drift; corrected, nothing below the head changes."""
    drifted = {}
    for corrected in (True, False):
        network, images, labels = images_network()
        before = {key: value.clone() for key, value in network.body.state_dict().items()}
        head = network.head.weight.detach().clone()
        assert list(published_imu.unlearn(network, images, labels, corrected=corrected, epochs=2)) == [1, 2]
        assert not torch.equal(head, network.head.weight)
        drifted[corrected] = [k for k, v in network.body.state_dict().items() if not torch.equal(v, before[k])]
    assert drifted == {True: [], False: ["1.running_mean", "1.running_var", "1.num_batches_tracked"]}


@pytest.mark.parametrize("border", [(0.0, 0.0, 0.0), (0.485, 0.456, 0.406)])
def test_crops_are_shifts_and_flips(border: tuple[float, ...]) -> None:
    """Every crop lies in the padded image, as it is or flipped; its border's mean colour is zero once normalised."""
    images, colour = torch.rand(6, 3, 5, 5), torch.tensor(border)
    found = published_imu.cropped(images, torch.Generator().manual_seed(0), padding=1, border=colour)
    apart = colour[:, None, None]
    wide = nn.functional.pad(images - apart, (1, 1, 1, 1)) + apart
    for one, all_of in zip(found, wide, strict=True):
        parts = [all_of[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
        assert any(torch.allclose(one, part) or torch.allclose(one, part.flip(2)) for part in parts)


def test_published_border_is_what_batch_norm_sees() -> None:
    """The colour beyond the image moves batch norm's statistics, and the unlearnt head with them."""
    means = {}
    for colour in (0.0, 0.5):
        network, images, labels = images_network()
        list(published_imu.unlearn(network, images, labels, corrected=False, epochs=2, border=torch.full((3,), colour)))
        means[colour] = network.body.get_buffer("1.running_mean").clone(), network.head.weight.detach().clone()
    assert not any(torch.equal(one, other) for one, other in zip(means[0.0], means[0.5], strict=True))


def test_retraining_costs_its_epochs() -> None:
    """Images that go forward: retain times epochs."""
    assert retraining.images(45_000) == 45_000 * 24


def test_methods_that_need_no_retain_data_read_none(model: nn.Linear, data: Any) -> None:
    """What a method's entry says that it needs is what it reads."""
    for name, method in baselines.METHODS.items():
        data.retain.touched.clear()
        list(method.unlearn(model, data, training.Settings(0.001, 2, method.strengths[0])))
        assert bool(data.retain.touched) <= ("retain" in method.needs or "unseen" in method.needs), name


def test_methods_say_what_they_are() -> None:
    """Every module has a formula, its source and its needs."""
    for path in (Path(baselines.__file__).parent).glob("*.py"):
        text = path.read_text(encoding="utf-8").partition('"""\n')[0]
        if path.stem not in ("__init__", "training"):
            assert "Need" in text, path.name
            assert "=" in text, path.name
