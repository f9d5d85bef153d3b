"""One pass of the backbone over a set: features and replayed logits, batch by batch."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imu_cli import signals
from imu_cli.errors import ImuError
from imu_cli.features import allocation
from imu_cli.features.engine import Engine, to_device
from imu_cli.models import diagnosis
from imu_cli.models.batches import Batch, count, halves
from imu_cli.models.head import Head
from imu_cli.models.replay import check_replay, replay_error
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.inputs import InputStep
from imu_cli.samples.packing import as_array

# The pass


@dataclass(frozen=True)
class Seen:
    """Features (k, d) float32 of some samples, on the CPU, and the head with its largest replay error so far.

    ``places`` are theirs among the rows of the pass, a range where they come in order; ``logits`` (k, c) are the model's, where
    it made them.
    """

    places: Sequence[int]
    rows: Tensor
    logits: Tensor
    head: Head


def in_halves(run: Engine, samples: Batch) -> tuple[Tensor, Tensor]:
    """Features and logits of a batch, in halves where the accelerator's memory does not hold it."""
    with contextlib.suppress(torch.cuda.OutOfMemoryError):
        return run.forward(samples)
    # Only here is there room: while the error is at hand, its frames hold all that the pass had made.
    if count(samples) == 1:
        raise ImuError("--batch-size: one sample does not fit the accelerator's memory; use --device cpu")
    torch.cuda.empty_cache()
    parts = [in_halves(run, half) for half in halves(samples)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _refuse_not_finite(h: Tensor, samples: SampleSet, rows: Sequence[int], places: Sequence[int]) -> None:
    finite = torch.isfinite(h).all(dim=1)
    if not bool(finite.all()):
        bad = rows[places[int((~finite).nonzero()[0])]]
        raise ImuError(f"{samples.where(bad)}: its features are not finite; check the sample and the model's weights")


def stream(
    run: Engine,
    head: Head,
    samples: SampleSet,
    preprocess: InputStep,
    rows: Sequence[int] | None = None,
    window: int | None = None,
) -> Iterator[Seen]:
    """Features of all samples, or of the given rows, batch by batch; every batch's logits are replayed.

    The next batch is handed to the device before the last one's results are fetched, so that it never waits. ``window``: see
    ``InputStep.batches``.

    Raises:
        InvalidRowsError: samples cannot be had, all of the set; the model runs no more after the first.
        ImuError: features are not finite, or samples differ in shape.
        RefusedError: the replay check fails on some batch.
    """
    wanted = range(len(samples)) if rows is None else rows
    behind: tuple[Sequence[int], Tensor, Tensor] | None = None
    checked = head

    def finish(places: Sequence[int], h: Tensor, logits: Tensor) -> Seen:
        _refuse_not_finite(h, samples, wanted, places)
        why = diagnosis.of_a_run(run.precision, run.device.type, len(h))
        error = replay_error(h, head.matrix, head.bias, logits)
        replayed = check_replay(checked, error, logits.dtype, why, run.precision)
        return Seen(places, h.to("cpu", torch.float32), logits, replayed)

    on_cpu = run.device.type == "cpu"
    with allocation.kept() if on_cpu else contextlib.nullcontext():
        batches = preprocess.batches(samples, run.batch_size, wanted, beside=not on_cpu, window=window)
        for places, stacked in batches:
            signals.check()
            with torch.inference_mode():
                made = in_halves(run, to_device(stacked, preprocess, run.device))
                if behind is not None:
                    seen = finish(*behind)
                    checked = seen.head
            if behind is not None:
                yield seen
            behind = (places, *made)
    if behind is not None:
        with torch.inference_mode():
            seen = finish(*behind)
        yield seen


def gather(stream: Iterable[Seen], n: int, head: Head, *, narrow: bool = False) -> Tensor:
    """H (n, d+1) float64 on the CPU, from the batches of a pass over n samples; ``narrow``: features (n, d) float32."""
    width = head.matrix.shape[1]
    made = torch.empty(n, width - head.bias) if narrow else torch.ones(n, width, dtype=torch.float64)
    for seen in stream:
        made[_index(seen.places), : seen.rows.shape[1]] = seen.rows.to(made.dtype)
    return made


def _index(places: Sequence[int]) -> slice | Tensor:
    in_order = isinstance(places, range) and places.step == 1
    return slice(places.start, places.stop) if in_order else torch.tensor(as_array(places))  # type: ignore[attr-defined]


def in_order(stream: Iterable[Seen]) -> Iterator[Tensor]:
    """Features (k, d) float32 of a pass, piece by piece, in the order of its rows; no more than a window of them waits."""
    waiting: dict[int, Tensor] = {}
    at = 0
    for seen in stream:
        if not waiting and isinstance(seen.places, range) and seen.places == range(at, at + len(seen.rows)):
            at += len(seen.rows)
            yield seen.rows
            continue
        waiting |= zip(seen.places, seen.rows, strict=True)
        ready = []
        while at in waiting:
            ready.append(waiting.pop(at))
            at += 1
        if ready:
            yield torch.stack(ready)
