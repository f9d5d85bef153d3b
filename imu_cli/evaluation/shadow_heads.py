"""``--attack shadow-heads``: heads fitted with and without each forget sample, unlearned as the model was, compared with it.

Candidates are D_f and as many class-matched test samples. Every shadow head is fitted on all retain samples and a random
half of the candidates (each candidate in half of the heads), with the weight decay of the original head; then the
candidates it was fitted on are unlearned with the options of the record: method, target rule, ρ. The retain samples are
not halved: heads on half of them differ so much that what one sample does to a head is lost (a ResNet-20 on CIFAR-10:
AUC of a head that saw D_f 0.53 with halves, 0.60 with all of them).
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from imu_cli import options
from imu_cli.commands import held_out, scoring
from imu_cli.config.commands import EvaluateConfig, UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks, likelihood_ratios
from imu_cli.evaluation.evidence import Evidence, Shadow
from imu_cli.events import Silent
from imu_cli.features.session import Clock, Session
from imu_cli.files import paths
from imu_cli.influence.closed_form import Damping, influence
from imu_cli.linear import objective, refits
from imu_cli.linear.rows import held, with_bias
from imu_cli.records.record import Record
from imu_cli.statistics.intervals import NotMeasured
from imu_cli.unlearning import methods, scenario

FEWEST = 8


def require(config: EvaluateConfig, found: Record | None, head_only: bool | None) -> None:
    """Refuse the attack where it cannot be made, before anything is computed.

    Raises:
        ImuError: names what it lacks.
    """
    lacks = [name for name in ("test", "retain") if getattr(config, name) is None]
    if lacks:
        raise ImuError(f"--attack shadow-heads: needs {' and '.join(f'--{name}' for name in lacks)}")
    if config.shadows < FEWEST:
        raise ImuError(f"--shadows {config.shadows}: too few to know a spread by; give {FEWEST} or more")
    if found is None:
        raise ImuError(
            "--attack shadow-heads: needs the record of imu unlearn beside the model; the shadows are unlearned with its options"
        )
    if head_only is None:
        raise ImuError("--attack shadow-heads: needs the original; give --original")
    if not head_only:
        raise ImuError("--attack shadow-heads: needs a change of the head only; here tensors outside the head differ")


def frozen(found: Record, folder: Path) -> UnlearnConfig:
    """The options that the record was made with, method and ρ as they came out."""
    known = {field.name for field in fields(UnlearnConfig)} & set(found.options)
    kinds = options.path_kinds(UnlearnConfig)
    values: dict[str, Any] = {}
    for name in known:
        kind, value = kinds[name], found.options[name].value
        values[name] = paths.placed(value, kind, folder) if kind else value
    values |= {"method": found.method, "cache": False, "cache_features": False}
    if found.method == "matched" and isinstance(found.details.get("rho"), float):
        values["rho"] = found.details["rho"]
    return options.build(UnlearnConfig, values, {})


@dataclass(frozen=True)
class Candidates:
    """D_f first, then samples never seen: H (n + m, d+1), labels, and how many are D_f's."""

    h: Tensor
    labels: Tensor
    forget: int

    def split(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of D_f, and of the samples never seen."""
        return scores[: self.forget], scores[self.forget :]

    def phi(self, head: Tensor) -> Tensor:
        """Logit-scaled confidence (n + m,) under a head."""
        return attacks.logit_confidence(self.h @ head.T, self.labels)


def _candidates(e: Evidence, h_forget: Tensor, h_test: Tensor) -> Candidates:
    assert e.test is not None
    generator = torch.Generator().manual_seed(e.seed)
    pool = attacks.class_matched(e.forget.labels, e.test.labels, generator)
    pool = pool[torch.randperm(len(pool), generator=generator)][: len(e.forget.labels)]
    labels = torch.cat([e.forget.labels, e.test.labels[pool]])
    return Candidates(torch.cat([h_forget, h_test[pool]]), labels, len(e.forget.labels))


def run(
    opened: Session, original: Tensor, e: Evidence, found: Record, config: EvaluateConfig, folder: Path
) -> Shadow | NotMeasured:
    """Fit, unlearn and score the shadow heads.

    Args:
        opened: the unlearned model.
        original: W (c, d+1) of the original.
        e: what was gathered; test and retain are there, the backbones are the same.
        found: the record of the unlearning.
        config: options of the evaluation.
        folder: of the record, that its paths are relative to.
    """
    assert e.retain is not None
    assert e.test is not None
    if e.kind == "mislabelled":
        return NotMeasured(
            "has no meaning in the mislabelled scenario: unseen samples with these wrong labels are not there"
        )
    wanted = frozen(found, folder)
    wide = [held(with_bias(split.features, opened.head.bias)) for split in (e.forget, e.test, e.retain)]
    try:
        candidates = _candidates(e, wide[0], wide[1])
        chosen_by = _held(opened, wanted, e)
        l2 = refits.own_weight_decay([(wide[2], e.retain.labels), (wide[0], e.forget.labels)], original)
        if l2 <= 0:
            return NotMeasured("no weight decay explains the original's head, so none can be fitted like it")
        inside = likelihood_ratios.balanced_members(
            config.shadows, len(candidates.labels), torch.Generator().manual_seed(e.seed)
        )
        fitted = _fit(opened, candidates, (wide[2], e.retain.labels), inside, original, l2)
        with (
            opened.clock.timed("unlearning shadow heads"),
            opened.events.track("shadow heads", config.shadows) as advance,
        ):
            unlearned = []
            for head, mine in zip(fitted[:-1], inside, strict=True):
                unlearned.append(_unlearn(opened, wanted, candidates, mine, head, chosen_by, e))
                advance(1)
    except ImuError as error:
        return NotMeasured(str(error))
    with opened.clock.timed("comparing shadow heads"):
        return _compare(candidates, inside, fitted[:-1], unlearned, (opened.matrix(), original, fitted[-1]))


def _held(opened: Session, wanted: UnlearnConfig, e: Evidence) -> scenario.HeldOut | None:
    """The held-out samples that the unlearning chose by, if it had any."""
    reference = held_out.reference_of(
        replace(opened, config=wanted, notes=[], events=Silent()), wanted.test, wanted.reference
    )
    if reference is None:
        return None
    samples, _ = reference
    labels = opened.labels(samples)
    return scenario.held_out(opened.features_of(samples, "held-out"), labels, e.forgotten)


def _fit(
    opened: Session, candidates: Candidates, retain: tuple[Tensor, Tensor], inside: Tensor, original: Tensor, l2: float
) -> Tensor:
    """Heads (K + 1, c, d+1): the shadows, and last one that no candidate was in."""
    h, labels = torch.cat([candidates.h, retain[0]]), torch.cat([candidates.labels, retain[1]])
    none = torch.zeros(1, inside.shape[1], dtype=torch.bool)
    rows = torch.cat([inside, none]).to(h.device)
    members = torch.cat([rows, torch.ones(len(rows), len(retain[1]), dtype=torch.bool, device=h.device)], dim=1)
    with opened.clock.timed("fitting shadow heads"):
        found = refits.fit(h, labels, members, len(original), l2, start=original)
    if not found.converged:
        opened.note(f"shadow heads: a fit stopped {found.decrement:.1g} nats above its best")
    return found.heads


def _unlearn(
    opened: Session, wanted: UnlearnConfig, candidates: Candidates, mine: Tensor, head: Tensor,
    held: scenario.HeldOut | None, e: Evidence,
) -> Tensor:  # fmt: skip
    """One shadow head after its candidates were unlearned, by the tool's own methods."""
    rows = mine.nonzero().squeeze(1)
    h, labels = candidates.h[rows], candidates.labels[rows]
    shadow = replace(
        opened, config=wanted, head=opened.head.with_matrix(head.cpu()), forget=replace(opened.forget, weights=None),
        events=Silent(), clock=Clock(), notes=[],
    )  # fmt: skip
    plan = scenario.plan(e.kind, "record", labels, len(head), wanted.rows)
    limits, source = methods.bounds(wanted, plan, held, head, h, labels, None)
    method: Literal["imu", "matched"] = "matched" if wanted.method == "matched" else "imu"
    scored = scoring.scored(influence(h, labels, head, Damping.parse(wanted.damping)))
    job = methods.Job(
        h, labels, None, plan, held, None, limits.target, source, limits, scenario.looker(h, plan.members, head, held),
        method, "record", scored=scored,
    )  # fmt: skip
    with objective.threads_for(len(h) * head.numel()):
        done = (methods.match_to if method == "matched" else methods.ascend_on)(shadow, wanted, job)
    return done.outcome.head.to(h.device)


def _compare(
    candidates: Candidates,
    inside: Tensor,
    fitted: Tensor,
    unlearned: list[Tensor],
    models: tuple[Tensor, Tensor, Tensor],
) -> Shadow:
    """Ratios under the unlearned shadows of the unlearned model and a retrained head; under the fitted ones of the original."""
    after, original, without = models
    inside = inside.to(candidates.h.device)
    scores_after = torch.stack([candidates.phi(head) for head in unlearned])
    spread_after = likelihood_ratios.spread(scores_after, inside)
    spread_before = likelihood_ratios.spread(torch.stack([candidates.phi(head) for head in fitted]), inside)
    return Shadow(
        after=candidates.split(spread_after.ratio(candidates.phi(after))),
        before=candidates.split(spread_before.ratio(candidates.phi(original))),
        retrained_head=candidates.split(spread_after.ratio(candidates.phi(without))),
        retrained_head_before=candidates.split(spread_before.ratio(candidates.phi(without))),
        threshold=likelihood_ratios.threshold(likelihood_ratios.left_out(scores_after, inside), inside),
        heads=len(fitted),
    )
