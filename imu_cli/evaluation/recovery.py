"""What the features still hold: a forgotten class put back from a few samples, and what a fresh linear probe finds.

Features are (n, d) entering the head, a head its weight (c, d) and bias (c,) or None, labels (n,) class ids.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.linear.rows import Rows, blocks, by_rows, mean, only
from imu_cli.statistics import clustered
from imu_cli.statistics.clustered import Clusters
from imu_cli.statistics.intervals import Estimate, NotMeasured, class_counts
from imu_cli.statistics.metrics import accuracy_of, among, class_matched_accuracy, predictions


@dataclass(frozen=True)
class Recovery:
    """How well a class comes back from k of its samples.

    ``accuracy``: share of the other forget samples predicted as their label. ``taken``: share of kept-class samples
    that the put-back rows take, without which ``accuracy`` could be a row that wins everywhere; None if none were
    given. ``own_accuracy`` and ``own_taken`` are the same where the rows keep the bias they came with, ``adjusted`` says
    whether it was set. All are means over draws of the k samples, the ends the lowest and highest draw.
    """

    k: int
    accuracy: Estimate
    taken: Estimate | None
    own_accuracy: Estimate
    own_taken: Estimate | None
    adjusted: bool


def k_shot_recovery(
    features: Rows,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    k: int,
    generator: torch.Generator,
    *,
    kept_features: Rows | None = None,
    taken_before: float | None = None,
    repeats: int = 10,
    clusters: Clusters = None,
) -> Recovery | NotMeasured:
    """``recovery.k1|k5|k10``: put the mean feature of k forget samples back as their class's row, then classify.

    Class scenario; every class in ``labels`` counts as forgotten. High: the features still hold the class, and the
    head's change hides it. The row is the mean feature projected on the span of the kept rows (and of the differences
    between forgotten classes), with their mean norm and mean bias. Without the projection the part that all features
    share makes the row win everywhere: on a CIFAR-10 ResNet-20 it takes 64 % of the kept test samples, with it 1 %.
    Where the span leaves nothing out (c > d) the mean of kept features is taken off instead, and needed.
    After weight imprinting (Qi, Brown and Lowe, CVPR 2018).

    How much comes back depends on the rows' bias, and among many classes the one they come with takes many kept samples
    too (36 % of them in a hundred classes, 88 % recovered). Where it is known which share of the kept samples the
    original's own rows took, one constant is added to the rows' biases so that they take that many and no more.

    Args:
        features: (n, d) of D_f.
        weight: (c, d) of the unlearned head.
        bias: (c,) or None.
        labels: (n,) of D_f.
        k: samples drawn of each class.
        generator: of the draws.
        kept_features: (m, d) of kept-class test samples, for ``taken``.
        taken_before: the share of these that the original predicts as a forgotten class.
        repeats: draws.
        clusters: (n,) of D_f, where samples come in such: those of a cluster that k is drawn from are not asked about.
    """
    if min(class_counts(labels).values(), default=0) <= k:
        return NotMeasured(f"needs more than {k} forget samples of each class")
    centre = None if kept_features is None else mean(kept_features)
    own, fair, held_out = list[tuple[float, float]](), list[tuple[float, float]](), 0
    adjusted = kept_features is not None and taken_before is not None
    for _ in range(repeats):
        signals.check()
        shots, held = _draw(labels, k, generator, clusters)
        if len(held) == 0:
            return NotMeasured(f"needs forget samples of more sentences than {k} of each class stand in")
        means = torch.stack([features[rows].double().mean(0) for rows in shots.values()])
        head = put_back(means, weight, bias, list(shots), centre)
        if isinstance(head, NotMeasured):
            return head
        others = (only(features, held), labels[held])
        own.append(_recognised(head, others, kept_features, list(shots)))
        if kept_features is not None and taken_before is not None:
            head = _taking(head, kept_features, list(shots), taken_before)
            fair.append(_recognised(head, others, kept_features, list(shots)))
        held_out = len(held)

    def over(draws: list[tuple[float, float]]) -> tuple[Estimate, Estimate | None]:
        right, taken = ([draw[at] for draw in draws] for at in (0, 1))
        return _over_draws(right, held_out), None if kept_features is None else _over_draws(taken, len(kept_features))

    return Recovery(k, *over(fair if adjusted else own), *over(own), adjusted)


def _recognised(
    head: tuple[Tensor, Tensor], others: tuple[Rows, Tensor], kept: Rows | None, classes: list[int]
) -> tuple[float, float]:
    """Share of the other forget samples predicted as their label, and of kept samples as a forgotten class."""
    right = float((_predict(others[0], head) == others[1]).double().mean())
    return right, 0.0 if kept is None else float(among(_predict(kept, head), classes).double().mean())


def _taking(
    head: tuple[Tensor, Tensor], kept: Rows, classes: list[int], share: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The head with one constant on the biases of ``classes`` so that they win on this share of the kept samples."""
    weight, bias = head
    others = [j for j in range(len(weight)) if j not in set(classes)]
    if not others:
        return head

    def lead_of(h: Tensor, _: slice) -> Tensor:
        logits = h.double() @ weight.T + bias
        return logits[:, classes].amax(dim=1) - logits[:, others].amax(dim=1)

    lead = by_rows(kept, lead_of).sort(descending=True).values
    count = round(share * len(lead))
    above = lead[count - 1] if count else lead[0] + 1
    below = lead[count] if count < len(lead) else lead[-1] - 1
    moved = bias.clone()
    moved[classes] -= (above + below) / 2 if count else below + (1 + below.abs()) * 1e-9
    return weight, moved


def put_back(
    means: Tensor, weight: Tensor, bias: Tensor | None, classes: Sequence[int], centre: Tensor | None = None
) -> tuple[Tensor, Tensor] | NotMeasured:
    """The head with one row a forgotten class made from its mean feature; see ``k_shot_recovery``.

    ``means`` is (f, d), in the order of ``classes``. With no kept class the norm and bias are those of all rows.
    """
    weight, bias = _head(weight, bias)
    kept = torch.tensor([j not in set(classes) for j in range(len(weight))], device=weight.device)
    rows, offsets = (weight[kept], bias[kept]) if bool(kept.any()) else (weight, bias)
    span = _orthonormal(torch.cat([weight[kept], means - means.mean(0)]))
    if len(span) < means.shape[1]:
        direction, level, centre = means @ span.T @ span, offsets.mean(), torch.zeros_like(means[0])
    elif centre is not None:
        # At the kept samples' mean the new row scores as the kept rows do on average.
        direction, level = means - centre, (rows @ centre + offsets).mean()
    else:
        return NotMeasured("needs --test: with no more features than classes, only kept samples show a row's reach")
    length = direction.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        return NotMeasured("a mean feature of the forget samples has no part that the head's kept rows read")
    new = direction / length * rows.norm(dim=1).mean()
    weight[list(classes)], bias[list(classes)] = new, level - new @ centre
    return weight, bias


@dataclass(frozen=True)
class Probe:
    """What a fresh linear classifier finds in the features.

    ``accuracy`` is the answer and ``reference`` what the same probe reaches where nothing was forgotten.
    ``converged`` is False where the solver ran out of steps: both are then lower than they could be.
    """

    accuracy: Estimate
    reference: Estimate
    converged: bool


def linear_probe(
    forget_features: Rows,
    forget_labels: Tensor,
    test_features: Rows,
    test_labels: Tensor,
    forgotten: Collection[int],
    generator: torch.Generator,
    *,
    per_class: int = 500,
    confidence: float = 0.95,
    clusters: Clusters = None,
) -> Probe | NotMeasured:
    """``probe.accuracy``: what logistic regression recovers from the features, with forget and test samples alone.

    Class scenario (``forgotten`` given): trained on D_f and a random half of the kept-class test samples; ``accuracy``
    is on the test samples of the forgotten classes, none of which it saw, ``reference`` on the other half. Near the
    reference: the features still hold the class. Where samples come in clusters, all test samples are parted by these,
    and of the forgotten classes only those in the half that is not trained on are asked about.

    Sample scenario: trained on a random half of test; ``accuracy`` is on D_f (a census), ``reference`` on the other half
    at D_f's class proportions. Above the reference's interval: the features still mark D_f as trained on. At most
    ``per_class`` training samples of a class, so that D_f does not outweigh the rest.
    Features are standardised. Alain and Bengio, arXiv 1610.01644.

    Args:
        forget_features: (n, d).
        forget_labels: (n,).
        test_features: (m, d).
        test_labels: (m,).
        forgotten: class ids; empty in the sample scenario.
        generator: of the halves and of the training samples.
        per_class: training samples of each class at most.
        confidence: two-sided level.
        clusters: (m,) of test, where samples come in such: halves do not part them.
    """
    gone = among(test_labels, forgotten)
    if forgotten and (not bool(gone.any()) or len(class_counts(test_labels[~gone])) == 0):
        return NotMeasured("needs --test samples of the forgotten and of the kept classes")
    of = None if clusters is None else clusters.cpu()
    dealt = _dealt(gone.cpu(), of, generator)
    if isinstance(dealt, NotMeasured):
        return dealt
    train, other, unseen = dealt
    y = torch.cat([forget_labels, test_labels[train]]) if forgotten else test_labels[train]
    rows = _at_most(y, per_class, generator)
    if len(class_counts(y[rows])) < 2:
        return NotMeasured("needs training samples of two classes")
    x = _trained_on(rows, forget_features if forgotten else None, test_features, train)
    asked = (only(test_features, unseen), test_labels[unseen]) if forgotten else (forget_features, forget_labels)
    right, right_other, converged = _probe(x, y[rows], asked, (only(test_features, other), test_labels[other]))
    if forgotten:
        found = accuracy_of(right, confidence, clusters=clustered.some(of, unseen))
        reference = accuracy_of(right_other, confidence, clusters=clustered.some(of, other))
    else:
        found = accuracy_of(right, census=True)
        try:
            of_other = clustered.some(of, other)
            reference = class_matched_accuracy(right_other, test_labels[other], forget_labels, confidence, of_other)
        except ImuError as error:
            return NotMeasured(str(error))
    return Probe(found, reference, converged)


def _dealt(gone: Tensor, clusters: Clusters, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor] | NotMeasured:
    """Kept test samples to train on, others to compare with, and those of forgotten classes (``gone``, a mask) to ask about.

    Where they come in clusters, none has one in common with what is trained on; the halves change places if only then there
    is something of each kind.
    """
    if clusters is None or not bool(gone.any()):
        kept = torch.nonzero(~gone)[:, 0]
        train, other = (kept[half] for half in clustered.parted(len(kept), clustered.some(clusters, kept), generator))
        if len(train) == 0 or len(other) == 0:
            return NotMeasured("needs at least two --test samples")
        return train, other, torch.nonzero(gone)[:, 0]
    halves = clustered.parted(len(gone), clusters, generator)
    for learnt, held in (halves, halves[::-1]):
        train, other, unseen = learnt[~gone[learnt]], held[~gone[held]], held[gone[held]]
        if min(map(len, (train, other, unseen))) > 0:
            return train, other, unseen
    return NotMeasured("needs --test samples of the forgotten and of the kept classes in more sentences")


def _trained_on(rows: Tensor, forget: Rows | None, test: Rows, train: Tensor) -> Tensor:
    """Features (n, d) float64 of some ``rows`` of D_f's samples, where they are trained on, and the test samples ``train``."""
    first = 0 if forget is None else len(forget)
    x = torch.empty(len(rows), test.shape[1], dtype=torch.float64)
    for part in blocks(len(rows), test.shape[1]):
        wanted, made = rows[part], x[part]
        ours = wanted < first
        if forget is not None:
            made[ours] = forget[wanted[ours]].to(x)
        made[~ours] = test[train[wanted[~ours] - first]].to(x)
    return x


def _probe(
    x: Tensor, y: Tensor, first: tuple[Rows, Tensor], second: tuple[Rows, Tensor]
) -> tuple[Tensor, Tensor, bool]:
    """Fit on x, y; whether each row of two labelled sets is predicted rightly, and whether the solver converged.

    x (n, d) float64 is standardised in its place: the caller has no use for it afterwards.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler, model = StandardScaler().fit(x.numpy()), LogisticRegression(max_iter=1000)
    with warnings.catch_warnings():
        # Reported as a field of the result instead; and that many classes have few samples each is no mistake here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(scaler.transform(x.numpy(), copy=False), y.cpu().numpy())

    def called(h: Tensor, _: slice) -> Tensor:
        return torch.from_numpy(model.predict(scaler.transform(h.double().cpu().numpy())))

    # Back to where the labels are: scikit-learn has answered on the CPU.
    right = [by_rows(h, called).to(labels.device) == labels for h, labels in (first, second)]
    return right[0], right[1], bool(model.n_iter_.max() < 1000)


def _head(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """A float64 copy that may be written to."""
    rows = weight.detach().double().clone()
    return rows, rows.new_zeros(len(rows)) if bias is None else bias.detach().double().clone()


def _predict(features: Rows, head: tuple[Tensor, Tensor]) -> Tensor:
    return by_rows(features, lambda rows, _: predictions(rows.double() @ head[0].T + head[1]))


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows (r, d) that span the given ones."""
    decomposition = torch.linalg.svd(rows, full_matrices=False)
    sizes, directions = decomposition.S, decomposition.Vh
    basis: Tensor = directions[sizes > sizes[0] * max(rows.shape) * torch.finfo(rows.dtype).eps]
    return basis


def _draw(labels: Tensor, k: int, generator: torch.Generator, clusters: Clusters) -> tuple[dict[int, Tensor], Tensor]:
    """K rows of each class, of few clusters where there are such, and all other rows that share no cluster with them."""
    shots, held = {}, []
    for label in class_counts(labels):
        rows = torch.nonzero(labels.cpu() == label)[:, 0]
        rows = rows[clustered.mixed(len(rows), clustered.some(clusters, rows), generator)]
        shots[label] = rows[:k]
        held.append(rows[k:])
    others = torch.cat(held)
    return shots, others[clustered.apart(clusters, others, torch.cat(list(shots.values())))]


def _over_draws(values: list[float], n: int) -> Estimate:
    return Estimate(sum(values) / len(values), min(values), max(values), n, f"mean and range of {len(values)} draws")


def _at_most(labels: Tensor, per_class: int, generator: torch.Generator) -> Tensor:
    """Random rows, at most ``per_class`` of each class."""
    mixed = torch.randperm(len(labels), generator=generator)
    return torch.cat([mixed[labels.cpu()[mixed] == k][:per_class] for k in class_counts(labels)])
