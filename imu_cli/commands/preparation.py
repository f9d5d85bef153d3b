"""From options to what the methods of unlearning take: the procedure, and a job on the forget set that was opened."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from imu_cli import flags
from imu_cli.commands import held_out, reuse
from imu_cli.config.commands import UnlearnConfig
from imu_cli.features.session import Session
from imu_cli.files import paths
from imu_cli.influence.closed_form import Damping
from imu_cli.influence.scores import Scored
from imu_cli.linear import objective
from imu_cli.linear.rows import Rows, predicted
from imu_cli.models import scopes
from imu_cli.models.replay import tolerance_in
from imu_cli.records.parts import HeldOutInfo
from imu_cli.records.record import Record
from imu_cli.samples.dataset import SampleSet
from imu_cli.unlearning import messages, methods, scenario, targets
from imu_cli.unlearning.procedure import Ascent, Classifier, Forgetting, Job, Matching, Procedure

ASCENT_ONLY = ("preset", "weights", "reweight", "rows", "step", "learning_rate", "max_steps", "keep", "clip_quantile")
"""Options that only the ascent has."""
COARSEST = 4e-3
"""Largest tolerance that counts for ``boundary``."""


def of(config: UnlearnConfig, margin: float = 0.0) -> Procedure:
    """What the options ask for; ``margin`` as in ``procedure.Procedure``.

    Raises:
        ImuError: ``--until`` or ``--damping`` cannot be read.
    """
    given = [name for name in ASCENT_ONLY if getattr(config, name) != getattr(UnlearnConfig(), name)]
    return Procedure(
        method=config.method,
        deeper=config.scope != scopes.HEAD,
        ascent_option=f"--{given[0].replace('_', '-')}" if given else None,
        until=None if config.until is None else targets.parse_until(config.until),
        margin=margin,
        max_drop=config.max_drop,
        max_class_drop=config.max_class_drop,
        max_steps=config.max_steps,
        max_head_change=config.max_head_change,
        ascent=Ascent(
            weights=config.weights,
            reweight=config.reweight,
            keep=config.keep,
            clip_quantile=config.clip_quantile,
            damping=Damping.parse(config.damping),
            step=config.step,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            l1=config.l1,
            minibatch=config.minibatch,
            epochs=config.epochs,
            published=config.preset is not None,
            seed=config.seed,
        ),
        matching=Matching(config.rho, config.max_auc, config.sigma_damping, config.class_factor),
    )


@dataclass(frozen=True)
class Ready:
    """A job that may start, and the held-out data that it chooses by, as the record has them and as samples."""

    job: Job
    held_info: HeldOutInfo | None
    held_samples: SampleSet | None


def ready(opened: Session, config: UnlearnConfig, h: Rows) -> Ready:
    """Scenario, held-out data, target, method and budgets of an opened forget set, told before the first step.

    Args:
        opened: model and forget set.
        config: options.
        h: H (n, d+1) of the forget set.

    Raises:
        ImuError: options contradict each other, held-out data lack a class, or the target is already met.
    """
    labels, matrix, has_data = opened.labels(), opened.matrix(), opened.data is not None
    kind, source = scenario.decide(config.scenario, opened.forget.whole_classes, has_data)
    plan = scenario.plan(kind, source, labels, opened.head.classes, config.rows)
    opened.note(f"scenario {kind} ({source})")
    held, held_info, samples = held_out.chosen_by(opened, config.test, config.reference, plan.forgotten)
    messages.warn_if_at_chance(opened.log, predicted(h, matrix) == labels, opened.head.classes)
    if held is not None:
        messages.warn_if_at_chance(
            opened.log, held.right(matrix), opened.head.classes, "held-out samples of kept classes"
        )
    job = methods.prepare(
        _forgetting(opened, config, h), Classifier(matrix, opened.head.rounded), plan, held,
        of(config, boundary(opened, h)), opened.log,
    )  # fmt: skip
    messages.tell_start(job, proven_classes=has_data)
    return Ready(job, held_info, samples)


def boundary(opened: Session, h: Rows) -> float:
    """Distance from a decision boundary, in logits, by which another way of running the model may move a sample.

    Two logits may each be off by the replay tolerance times the largest logit: so much are folding, batch size, device and
    precision allowed to do. What less than float32 does to features is said as the scores' error, and not counted in full.
    """
    tolerance = min(tolerance_in(opened.precision), COARSEST)
    return 2 * tolerance * objective.largest_logit(h, opened.matrix())


def _forgetting(opened: Session, config: UnlearnConfig, h: Rows) -> Forgetting:
    labels = opened.labels()

    def scores() -> Scored:
        return reuse.cached_scores(opened, config) or reuse.compute_scores(opened, config, h)

    return Forgetting(h, labels, opened.true_labels(), reuse.sample_weights(opened), scores)


def frozen(found: Record, folder: Path) -> UnlearnConfig:
    """The options that a record was made with, method and ρ as they came out; its paths are relative to ``folder``."""
    known = {field.name for field in fields(UnlearnConfig)} & set(found.options)
    kinds = flags.path_kinds(UnlearnConfig)
    values: dict[str, Any] = {}
    for name in known:
        kind, value = kinds[name], found.options[name].value
        values[name] = paths.placed(value, kind, folder) if kind else value
    values |= {"method": found.method, "cache": False, "cache_features": False}
    if found.method == "matched" and isinstance(found.details.get("rho"), float):
        values["rho"] = found.details["rho"]
    no_origins: Mapping[str, str] = {}
    return flags.build(UnlearnConfig, values, no_origins)
