"""Completion tokens of records: what enters a language model's head where it predicts each, from one pass of the model's body."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.features import allocation
from imu_cli.features.engine import Engine, to_device
from imu_cli.models.arithmetic import Kind, float32_as
from imu_cli.models.batches import call
from imu_cli.models.language import Body, without_cache
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.inputs import InputStep
from imu_cli.samples.texts.completions import Completions


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Completion tokens of a set, record after record.

    Attributes:
        features: what enters the head where it predicts the token, (N, d) float32.
        targets: the token, (N,) int64.
        records: row of the set, ascending, (N,) int64.
        ends: whether it is the end token, (N,) bool.
    """

    features: Tensor
    targets: Tensor
    records: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, eq=False)
class Answers:
    """Which tokens of records are their completions.

    Attributes:
        targets: the tokens, record after record, (N,).
        lengths: tokens of each record, (n,).
        counts: those of its completion, (n,).
        ends: whether a token is the end token, (N,).
    """

    targets: Tensor
    lengths: Tensor
    counts: Tensor
    ends: Tensor

    @property
    def starts(self) -> Tensor:
        """Where each record's tokens start in ``targets``, (n,)."""
        return self.counts.cumsum(0) - self.counts

    def of(self, rows: Tensor) -> Tensor:
        """Places in ``targets`` of the tokens of some records (k,), record after record."""
        counts, starts = self.counts[rows], self.starts[rows]
        within = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        return torch.repeat_interleave(starts, counts) + within

    def chosen(self, entered: Tensor, rows: Tensor) -> Tensor:
        """Of what enters the head (k, t, d) for some records, padded on the right, the rows (N', d) that predict their completions."""
        lengths, counts = self.lengths[rows], self.counts[rows]
        record = torch.repeat_interleave(torch.arange(len(rows)), counts)
        within = torch.arange(len(record)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        place = torch.repeat_interleave(lengths - counts - 1, counts) + within
        return entered[record.to(entered.device), place.to(entered.device)]


def answers_of(samples: SampleSet, step: InputStep) -> Answers:
    """The completions of a set; all of its records are tokenised.

    Raises:
        InvalidRowsError: records that cannot be had, are too long, or have no completion; all of them.
    """
    assert isinstance(step, Completions)
    made = step.encoded(samples, range(len(samples)))
    counts = torch.tensor([one.answer for one in made])
    targets = torch.cat([torch.from_numpy(one.ids[len(one) - one.answer :]) for one in made])
    last = torch.zeros(len(targets), dtype=torch.bool)
    last[counts.cumsum(0) - 1] = True
    ends = torch.zeros_like(last) if step.end is None else last & (targets == step.end)
    return Answers(targets, torch.tensor([len(one) for one in made]), counts, ends)


def gather(
    run: Engine, samples: SampleSet, step: InputStep, advance: Callable[[int], object] = lambda _: None
) -> TokenRows:
    """One pass of a model's body over records.

    Args:
        run: ``engine.engine_of_body``.
        samples: records.
        step: ``Completions``.
        advance: hears how many records are done.

    Raises:
        ImuError: features are not finite.
        InvalidRowsError: records that cannot be had, all of them.
    """
    answers = answers_of(samples, step)
    record = torch.repeat_interleave(torch.arange(len(samples)), answers.counts)
    features: Tensor | None = None
    body, on_cpu = run.model, run.device.type == "cpu"
    assert isinstance(body, Body)
    kind: Kind = "tf32" if run.precision == "tf32" else "ieee"
    with (
        allocation.kept() if on_cpu else contextlib.nullcontext(),
        torch.inference_mode(),
        without_cache(body.model),
    ):
        for places, stacked in step.batches(samples, run.batch_size, range(len(samples)), beside=not on_cpu):
            signals.check()
            rows = torch.tensor(list(places))
            with run.casting(), float32_as(kind):
                entered = call(body, to_device(stacked, step, run.device))
            found = answers.chosen(entered, rows).float().cpu()
            if features is None:
                features = torch.empty(len(record), found.shape[1])
            features[answers.of(rows)] = found
            advance(len(places))
    assert features is not None, "a set has records"
    finite = torch.isfinite(features).all(dim=1)
    if not bool(finite.all()):
        bad = int(record[~finite][0])
        raise ImuError(f"{samples.where(bad)}: its features are not finite; check the record and the model's weights")
    return TokenRows(features.clone(), answers.targets, record, answers.ends)
