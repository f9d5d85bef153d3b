"""What is told of an unlearning: the target before the first step, what matched came to, sets that are seen wrongly."""

import math

from torch import Tensor

from imu_cli.errors import ImuError
from imu_cli.events import Log
from imu_cli.records.parts import WHAT
from imu_cli.statistics import chance
from imu_cli.statistics.metrics import binomial_range
from imu_cli.unlearning import targets
from imu_cli.unlearning.matched import fit
from imu_cli.unlearning.procedure import Job
from imu_cli.unlearning.targets import HeldOut, Look


def warn_if_at_chance(log: Log, right: Tensor, classes: int, what: str = "the forget set") -> bool:
    """Say so where the model does no better than chance on a set; ``right`` (n,) says which samples it gets right. Whether it was said."""
    told = chance.warning(int(right.sum()), len(right), classes, what) if len(right) else None
    if told is not None:
        log.note(told)
    return told is not None


def tell_start(job: Job, *, proven_classes: bool) -> None:
    """Target and its source, before the first step; a target that is already met is an error.

    ``proven_classes`` says whether a data set could tell that classes are whole.
    """
    n, kind, labels, classifier = len(job.forgetting.labels), job.plan.kind, job.forgetting.labels, job.classifier
    if kind == "sample" and not proven_classes and len(labels.unique()) == 1 and n > 1:
        job.log.note("all forget samples share one label; if they are the whole class, use --scenario class")
    if job.target is None:
        what = (
            f"; the head may move by {job.limits.max_head_change:.1%} of its norm" if job.limits.max_head_change else ""
        )
        job.log.note(f"target: {job.target_source}{what}")
        return
    start = job.look(classifier.rounded(classifier.matrix))
    if job.limits.max_auc is not None:
        _tell_margins(job, start)
        return
    text = f"target: at most {job.target:.2%} of the {n} {WHAT[kind]} ({job.target_source}); now {start.forget:.2%}"
    if kind != "class":
        low, high = binomial_range(job.target, n)
        text += (
            f". At a true rate of {job.target:.2%}, {n} samples show {low:.2%} to {high:.2%} in 95 of 100 cases: inside "
            "that range accuracy is no evidence either way"
        )
    job.log.note(text)
    if job.limits.share_met(start) and not (job.method == "matched" and job.procedure.matching.rho is not None):
        raise ImuError(_already(job, start))


def _tell_margins(job: Job, start: Look) -> None:
    """The target where accuracy has nothing to say: margins like those of unseen samples.

    Raises:
        ImuError: the forget set looks unseen by its margins, too.
    """
    n, limits = len(job.forgetting.labels), job.limits
    assert start.auc is not None
    assert limits.max_auc is not None
    shares = (
        f"{start.forget:.2%} of the {n} {WHAT[job.plan.kind]}, as {0.0 if start.unseen is None else start.unseen:.2%} of unseen "
        "samples are"
    )
    if targets.alike(start.auc, limits.max_auc) and job.procedure.matching.rho is None:
        raise ImuError(
            f"target: the forget set looks like unseen samples already, by accuracy ({shares}) and by its margins (membership AUC "
            f"{start.auc:.3f}, aim {limits.max_auc:g}): there is nothing to forget here that could be measured; nothing was written. "
            "If these samples are remembered all the same, ask for more with --until 'forget.accuracy<=X', --max-auc or --rho"
        )
    job.log.note(
        f"target: accuracy has nothing to say here ({shares}); the target is the spread of unseen samples' margins: membership AUC "
        f"{start.auc:.3f} now, at most {limits.max_auc:.4g} wanted"
    )


def _already(job: Job, start: Look) -> str:
    """Why a target that is met before the first step ends the run, by what is true of this run."""
    found = f"{start.forget:.2%} of the forget samples, target at most {job.target:.2%}"
    if job.procedure.until is not None:
        return (
            f"--until: already met before the first step ({found}); ask for less, or leave --until out so that unseen samples "
            "say how far to go; nothing was written"
        )
    if job.plan.kind == "class":
        return (
            f"target: already met before the first step ({found}): the model does not predict these classes on their own samples. "
            "It has unlearned them already, or sees them wrongly (preprocessing, order of the classes); nothing was written"
        )
    return (
        f"target: already met before the first step ({found}); the model does not give these samples their labels more often than "
        "that as it is: check labels and preprocessing, or ask for less with --until; nothing was written"
    )


def _evidence(auc: float, n: int, m: int) -> str:
    """Whether n forget samples and m unseen ones show that an AUC is not 0.5: its standard error where both are alike."""
    error = math.sqrt((n + m + 1) / (12 * n * m)) if m else math.inf
    if abs(auc - 0.5) <= 1.96 * error:
        return f"{n} forget samples against {m} unseen ones do not show that it differs from 0.5 (standard error {error:.3f})"
    return "the forget samples can still be told from unseen ones by their margins"


def tell_matched(log: Log, found: fit.Matched, held: HeldOut | None) -> None:
    """What matched unlearning came to: ρ, margins, membership AUC and what it shows, capacity, convergence."""
    d = found.details
    log.note(
        f"matched: ρ {d.rho:.3g} of {len(found.points)} tried, margins miss their targets by {d.margin_error:.3g} "
        f"(before: {d.margin_error_before:.3g}) in log-odds, root mean square"
    )
    if d.auc is not None:
        log.note(f"matched: membership AUC against the held-out samples {d.auc_before:.3f} before, {d.auc:.3f} after")
    if d.auc is not None and d.max_auc is not None and not targets.alike(d.auc, d.max_auc):
        further = (
            "what is left lies in samples that are recognised safely either way, a smaller --rho moves them too"
            if found.outcome.reason == "target"
            else "the budget ends here; a larger --max-drop lets them come closer at the cost of other samples, and imu evaluate calls a fall "
            "of more than 5 points damage"
        )
        told = _evidence(d.auc, d.n, 0 if held is None else len(held.labels))
        log.note(f"matched: the AUC is above the {d.max_auc:.4g} aimed at; {told}; {further}")
    if d.n > d.capacity:
        log.note(
            f"{d.n} samples are more than the {d.capacity} margins this head can set freely; "
            f"{d.margins_within_half:.0%} came within 0.5 of their target; layers below the head can hold more: --scope last-block"
        )
    if not d.converged:
        log.note(
            "matched: the last re-linearisation still moved the head a little; what is written was measured as it is"
        )
