"""``imu evaluate --relearn``: the models as what can be fine-tuned, on features where only the head moved, else on the samples."""

from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor
from torch.func import functional_call

from imu_cli.commands.other_models import Models
from imu_cli.errors import ImuError
from imu_cli.evaluation import relearning, remaining
from imu_cli.evaluation.evidence import NO_ORIGINAL, Evidence, Split, forgotten_rows, matched_pool
from imu_cli.evaluation.relearning import Asked, Labelled, Learner, Relearned, Side
from imu_cli.features.engine import batch
from imu_cli.features.session import Session
from imu_cli.linear.rows import Rows
from imu_cli.models.arithmetic import float32_as
from imu_cli.models.batches import Batch
from imu_cli.models.head import logits_of
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.vectors import Vectors
from imu_cli.statistics import metrics
from imu_cli.statistics.clustered import some
from imu_cli.statistics.intervals import NotMeasured

LEAST_PART, MOST_PART = 4, 32
"""Samples that pass with gradients at a time, a quarter of those that pass without: what every layer made is kept for these."""

Learners = dict[remaining.Which, Learner]


def run(models: Models, e: Evidence, test: SampleSet | None) -> Mapping[str, Relearned] | NotMeasured:
    """Relearn with every model that is there; ``test`` is the samples that the evidence's test split was made of.

    What is fine-tuned are the tensors that differ between the original and the model at hand, in each model as it has them.
    """
    original = models.original
    if original is None:
        return NO_ORIGINAL
    if not original.changed:
        return NotMeasured("nothing differs from the original")
    head_only = set(original.changed) <= set(models.opened.head.tensors)
    learners = _on_features(e) if head_only else _on_samples(models, test)
    if isinstance(learners, NotMeasured):
        return learners
    asked = _asked(e)
    return {which: relearning.relearn(learner, asked, e.log, which) for which, learner in learners.items()}


def _asked(e: Evidence) -> Asked:
    unseen, kept, taken = None, None, 0.0
    if e.test is not None and e.kind != "mislabelled":
        with suppress(ImuError):  # test lacks a class of D_f: said where accuracies are matched
            unseen = _labelled(e.test, matched_pool(e))
    if e.test is not None and e.kind == "class":
        stays = ~forgotten_rows(e, e.test.labels)
        before = e.test.only(stays).before if bool(stays.any()) else None
        if before is not None:
            kept = _labelled(e.test, stays.nonzero()[:, 0])
            taken = metrics.predicted_as(before, e.forgotten).value
    clusters = e.forget.clusters
    return Asked(
        e.forget.labels, unseen, e.seed, e.forgotten, kept, taken, None if clusters is None else clusters.cpu()
    )


def _labelled(test: Split, rows: Tensor | None) -> Labelled:
    assert rows is not None, "there is test"
    clusters = some(test.clusters, rows)
    return Labelled(rows.cpu(), test.labels[rows].cpu(), None if clusters is None else clusters.cpu())


def _on_features(e: Evidence) -> Learners:
    """The head of each model on the features of its own backbone."""
    made: Learners = {}
    heads = {"after": e.head, "before": e.head_before, "retrained": e.head_retrained}
    for which in remaining.MODELS:
        forget, head = remaining.features_of(e.forget, which), heads[which]
        if forget is None or head is None:
            continue
        by_side = {"forget": forget, "test": None if e.test is None else remaining.features_of(e.test, which)}
        made[which] = relearning.linear(*head, lambda side, rows, by_side=by_side: _rows(by_side[side], rows))  # type: ignore[misc]
    return made


def _rows(features: Rows | None, rows: list[int]) -> Tensor:
    assert features is not None, "no test samples are asked about where there are none"
    return features[torch.tensor(rows)]


def _on_samples(models: Models, test: SampleSet | None) -> Learners | NotMeasured:
    opened, original = models.opened, models.original
    assert original is not None
    sets: dict[Side, SampleSet | None] = {"forget": opened.forget.samples, "test": test}
    if opened.network is None or any(part is not None and isinstance(part.store, Vectors) for part in sets.values()):
        return NotMeasured("needs the samples: the network moved, and files of features know no network")
    own = opened.network.loaded.naming.own
    parameters = dict(opened.network.model.named_parameters())
    moved = [own(name) for name in original.changed if own(name) in parameters]
    if not moved:
        return NotMeasured("nothing that can be trained differs from the original")
    made: Learners = {"after": _learner(opened, moved, {}, sets), "before": _learner(original.opened, moved, {}, sets)}
    if models.retrained is not None:
        again = models.retrained
        fixed = _head_of(again.opened) if again.same_backbone else {}
        made["retrained"] = _learner(again.opened, moved, fixed, sets)
    return made


def _head_of(opened: Session) -> dict[str, Tensor]:
    """A head's parameters as the network has them: where it shares the network of another model, whose head it is not."""
    assert opened.network is not None
    own, parameters = opened.network.loaded.naming.own, dict(opened.network.model.named_parameters())
    return {
        own(name): opened.checkpoint.tensor(name).to(parameters[own(name)]).reshape(parameters[own(name)].shape)
        for name in opened.head.tensors
    }


def _learner(
    opened: Session, moved: list[str], fixed: Mapping[str, Tensor], sets: Mapping[Side, SampleSet | None]
) -> Learner:
    network, device = opened.network, opened.device
    assert network is not None
    parameters = dict(network.model.named_parameters())

    def batches(side: Side, rows: list[int], size: int) -> Iterator[Batch]:
        samples = sets[side]
        assert samples is not None, "no test samples are asked about where there are none"
        for start in range(0, len(rows), size):
            yield batch(samples, rows[start : start + size], network.preprocess, device)

    def logits(tensors: Mapping[str, Tensor], inputs: Batch) -> Tensor:
        given = ((), inputs) if isinstance(inputs, dict) else ((inputs,), None)
        with float32_as("ieee"):
            return logits_of(functional_call(network.model, {**fixed, **tensors}, *given))

    ours = {name: fixed.get(name, parameters[name]) for name in moved}
    size = opened.engine.batch_size
    return Learner(logits, ours, batches, size, part=max(LEAST_PART, min(MOST_PART, size // 4)))
