"""``--resume``: what a training went on from at its last look, kept in the cache until the run has written its model.

It holds weights and optimiser moments, and no sample: neither names nor features.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from imu_cli import __version__
from imu_cli.errors import ImuError
from imu_cli.features import cache
from imu_cli.files import locks

STALE = 7 * 24 * 3600
"""Age in seconds from which the state of an interrupted run is removed in passing."""
APART = 10.0
"""Seconds between two states at least: a run that takes less is begun anew."""


@dataclass
class Progress:
    """Where the state of one training lies: a file of the cache that is named by everything the training depends on.

    Attributes:
        path: the file.
        kept: whether a state of this run lies there.
        beside: those of the other processes, where each keeps its own part of the weights.
    """

    path: Path
    beside: Sequence[Path] = ()
    kept: bool = False
    _last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether the last state is old enough for another one."""
        return time.monotonic() - self._last >= APART

    def save(self, tensors: Mapping[str, Tensor], said: Mapping[str, Any], due: bool | None = None) -> None:
        """Keep a state, if it is ``due`` by the clock, or as is said; numbers and texts as JSON beside the tensors.

        Raises:
            ImuError: the cache cannot be written.
        """
        if not (self.due() if due is None else due):
            return
        _tidy()
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with cache.scratch("set IMU_CACHE_DIR") as file:  # no output, of which a run that is stopped would have to tell
            save_file(on_cpu, file, metadata={"said": json.dumps(said)})
            file.chmod(0o600)
            with locks.held_folder(cache.folder()):
                file.replace(self.path)
        self.kept, self._last = True, time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state that an earlier run left, None where there is none.

        Raises:
            ImuError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(str(self.path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no mapping
                said = json.loads((file.metadata() or {})["said"])
        except (safetensors.SafetensorError, KeyError, ValueError, OSError) as error:
            raise ImuError(f"{self.path}: cannot be read ({error}); remove it and run without --resume") from error
        self.kept = True
        return tensors, said

    def done(self) -> None:
        """Remove the state: the run has ended."""
        for path in (self.path, *self.beside):
            path.unlink(missing_ok=True)
        self.kept = False


def _tidy() -> None:
    for path in cache.trainings():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def progress(fields: Mapping[str, Any], part: int = 0, parts: int = 1) -> Progress:
    """The place of a training that depends on these values, on the version of imu and on that of torch; of one of its parts."""

    def place(number: int) -> Path:
        of = {} if parts == 1 else {"part": number, "parts": parts}
        said = json.dumps({**fields, **of, "imu": __version__, "torch": torch.__version__}, sort_keys=True, default=str)
        return cache.folder() / f"training-{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"

    return Progress(place(part), [place(number) for number in range(parts) if number != part])
