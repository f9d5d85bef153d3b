"""``--attack shadow-heads``: heads fitted with and without each forget sample, unlearned as the model was, compared with it.

Candidates are D_f and as many class-matched test samples. Every shadow head is fitted on all retain samples and a random
half of the candidates (each candidate in half of the heads), with the weight decay of the original head; then the
candidates it was fitted on are unlearned with the options of the record: method, target rule, ρ. The retain samples are
not halved: heads on half of them differ so much that what one sample does to a head is lost (a ResNet-20 on CIFAR-10:
AUC of a head that saw D_f 0.53 with halves, 0.60 with all of them).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.evaluation import attacks, likelihood_ratios
from imu_cli.evaluation.evidence import Evidence, Shadow, pair
from imu_cli.events import Log
from imu_cli.influence import scores
from imu_cli.influence.closed_form import influence
from imu_cli.influence.scores import Scored
from imu_cli.linear import objective, refits
from imu_cli.linear.rows import held, with_bias
from imu_cli.statistics.clustered import Sides, some
from imu_cli.statistics.intervals import NotMeasured
from imu_cli.unlearning import methods, scenario
from imu_cli.unlearning.procedure import Classifier, Forgetting, Method, Procedure
from imu_cli.unlearning.targets import HeldOut

FEWEST = 8


@dataclass(frozen=True)
class Unlearning:
    """How the model was unlearned, to be done to every shadow head alike.

    Attributes:
        method: the one that the record has.
        procedure: the options of the record, ρ as it came out.
        rows: which rows of the head may move, as ``scenario.plan`` takes it.
        chosen_by: gives the held-out samples that the unlearning chose by, None where it had none.
        rounded: rounds a head to the values that the checkpoint can hold.
    """

    method: Method
    procedure: Procedure
    rows: str
    chosen_by: Callable[[], HeldOut | None]
    rounded: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """D_f first, then samples never seen: H (n + m, d+1), labels, how many are D_f's, and clusters where they come in such."""

    h: Tensor
    labels: Tensor
    forget: int
    clusters: Sides | None = None

    def members(self, heads: int, generator: torch.Generator) -> Tensor:
        """Which head trains on which of them (K, n + m) bool: each in half of the heads, those of one cluster in the same."""
        if self.clusters is None:
            return likelihood_ratios.balanced_members(heads, len(self.labels), generator)
        place = torch.cat(self.clusters).cpu().unique(return_inverse=True)[1]
        return likelihood_ratios.balanced_members(heads, int(place.max()) + 1, generator)[:, place]

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
    clusters = pair(e.forget.clusters, some(e.test.clusters, pool))
    return Candidates(torch.cat([h_forget, h_test[pool]]), labels, len(e.forget.labels), clusters)


def run(
    e: Evidence, after: Tensor, original: Tensor, unlearning: Unlearning, shadows: int, log: Log
) -> Shadow | NotMeasured:
    """Fit, unlearn and score the shadow heads.

    Args:
        e: what was gathered; test and retain are there, the backbones are the same.
        after: W (c, d+1) of the unlearned model.
        original: W (c, d+1) of the original.
        unlearning: how the one came from the other.
        shadows: how many heads.
        log: hears of progress and of fits that did not converge.
    """
    assert e.retain is not None
    assert e.test is not None
    if e.kind == "mislabelled":
        return NotMeasured(
            "has no meaning in the mislabelled scenario: unseen samples with these wrong labels are not there"
        )
    bias = e.head[1] is not None
    wide = [held(with_bias(split.features, bias)) for split in (e.forget, e.test, e.retain)]
    try:
        candidates = _candidates(e, wide[0], wide[1])
        chosen_by = unlearning.chosen_by()
        l2 = refits.own_weight_decay([(wide[2], e.retain.labels), (wide[0], e.forget.labels)], original)
        if l2 <= 0:
            return NotMeasured("no weight decay explains the original's head, so none can be fitted like it")
        inside = candidates.members(shadows, torch.Generator().manual_seed(e.seed))
        fitted = _fit(candidates, (wide[2], e.retain.labels), inside, original, l2, log)
        with log.timed("unlearning shadow heads"), log.track("shadow heads", shadows) as advance:
            unlearned = []
            for head, mine in zip(fitted[:-1], inside, strict=True):
                unlearned.append(_unlearn(e, unlearning, candidates, mine, head, chosen_by))
                advance(1)
    except ImuError as error:
        return NotMeasured(str(error))
    with log.timed("comparing shadow heads"):
        return _compare(candidates, inside, fitted[:-1], unlearned, (after, original, fitted[-1]))


def _fit(
    candidates: Candidates, retain: tuple[Tensor, Tensor], inside: Tensor, original: Tensor, l2: float, log: Log
) -> Tensor:
    """Heads (K + 1, c, d+1): the shadows, and last one that no candidate was in."""
    h, labels = torch.cat([candidates.h, retain[0]]), torch.cat([candidates.labels, retain[1]])
    none = torch.zeros(1, inside.shape[1], dtype=torch.bool)
    rows = torch.cat([inside, none]).to(h.device)
    members = torch.cat([rows, torch.ones(len(rows), len(retain[1]), dtype=torch.bool, device=h.device)], dim=1)
    takes = refits.seconds(h, len(original), len(members))
    log.note(f"{len(members)} shadow heads on {len(h)} samples: about {max(1, takes):.0f} s to fit")
    with log.timed("fitting shadow heads"), log.track("fitting shadow heads", 100) as advance:
        found = refits.fit(h, labels, members, len(original), l2, start=original, advance=advance)
    if not found.converged:
        log.note(f"shadow heads: a fit stopped {found.decrement:.1g} nats above its best")
    return found.heads


def _unlearn(
    e: Evidence, unlearning: Unlearning, candidates: Candidates, mine: Tensor, head: Tensor, chosen_by: HeldOut | None
) -> Tensor:
    """One shadow head after its candidates were unlearned, by the tool's own methods."""
    rows = mine.nonzero().squeeze(1)
    h, labels, wanted = candidates.h[rows], candidates.labels[rows], unlearning.procedure

    def scored() -> Scored:
        return scores.computed(influence(h, labels, head, wanted.ascent.damping))

    plan = scenario.plan(e.kind, "record", labels, len(head), unlearning.rows)
    job = methods.prepare(
        Forgetting(h, labels, None, None, scored), Classifier(head, unlearning.rounded), plan, chosen_by, wanted, Log(),
        method=(unlearning.method, "record"),
    )  # fmt: skip
    with objective.threads_for(len(h) * head.numel()):
        return methods.run(job).outcome.head.to(h.device)


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
        clusters=candidates.clusters,
    )
