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
from imu_cli.models.head import Head
from imu_cli.models.replay import check_replay, replay_error
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.inputs import InputStep

# The pass


@dataclass(frozen=True)
class Seen:
    """Features (k, d) float32 of the rows from ``start``, on the CPU, and the head with its largest replay error so far.

    ``logits`` (k, c) are the model's, where it made them.
    """

    start: int
    rows: Tensor
    logits: Tensor
    head: Head


def in_halves(run: Engine, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Features and logits of a batch, in halves where the accelerator's memory does not hold it."""
    with contextlib.suppress(torch.cuda.OutOfMemoryError):
        return run.forward(samples)
    # Only here is there room: while the error is at hand, its frames hold all that the pass had made.
    if len(samples) == 1:
        raise ImuError("--batch-size: one image does not fit the accelerator's memory; use --device cpu")
    torch.cuda.empty_cache()
    parts = [in_halves(run, half) for half in samples.chunk(2)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _refuse_not_finite(h: Tensor, samples: SampleSet, rows: Sequence[int]) -> None:
    finite = torch.isfinite(h).all(dim=1)
    if not bool(finite.all()):
        bad = rows[int((~finite).nonzero()[0])]
        raise ImuError(f"{samples.where(bad)}: its features are not finite; check the image and the model's weights")


def stream(
    run: Engine, head: Head, samples: SampleSet, preprocess: InputStep, rows: Sequence[int] | None = None
) -> Iterator[Seen]:
    """Features of all images, or of the given rows, batch by batch; every batch's logits are replayed.

    The next batch is handed to the device before the last one's results are fetched, so that it never waits.

    Raises:
        InvalidRowsError: images cannot be decoded, all of the set; the model runs no more after the first.
        ImuError: features are not finite, or images differ in shape.
        RefusedError: the replay check fails on some batch.
    """
    wanted = range(len(samples)) if rows is None else rows
    behind: tuple[int, Tensor, Tensor] | None = None
    start, checked = 0, head

    def finish(first: int, h: Tensor, logits: Tensor) -> Seen:
        _refuse_not_finite(h, samples, wanted[first : first + len(h)])
        why = diagnosis.of_a_run(run.precision, run.device.type, len(h))
        error = replay_error(h, head.matrix, head.bias, logits)
        replayed = check_replay(checked, error, logits.dtype, why, run.precision)
        return Seen(first, h.to("cpu", torch.float32), logits, replayed)

    on_cpu = run.device.type == "cpu"
    with allocation.kept() if on_cpu else contextlib.nullcontext():
        for stacked in preprocess.batches(samples, run.batch_size, wanted, beside=not on_cpu):
            signals.check()
            with torch.inference_mode():
                made = in_halves(run, to_device(stacked, preprocess, run.device))
                if behind is not None:
                    seen = finish(*behind)
                    checked = seen.head
            if behind is not None:
                yield seen
            behind, start = (start, *made), start + len(stacked)
    if behind is not None:
        with torch.inference_mode():
            seen = finish(*behind)
        yield seen


def gather(stream: Iterable[Seen], n: int, head: Head, *, narrow: bool = False) -> Tensor:
    """H (n, d+1) float64 on the CPU, from the batches of a pass over n samples; ``narrow``: features (n, d) float32."""
    width = head.matrix.shape[1]
    made = torch.empty(n, width - head.bias) if narrow else torch.ones(n, width, dtype=torch.float64)
    for seen in stream:
        made[seen.start : seen.start + len(seen.rows), : seen.rows.shape[1]] = seen.rows
    return made
