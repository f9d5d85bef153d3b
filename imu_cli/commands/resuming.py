"""``--resume``: what a training went on from at its last look, kept in the cache until the run has written its model.

It holds weights and optimiser moments, and no sample: neither names nor features.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
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
    """

    path: Path
    kept: bool = False
    _last: float = field(default_factory=time.monotonic)

    def save(self, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> None:
        """Keep a state, if the last one is old enough; numbers and texts as JSON beside the tensors.

        Raises:
            ImuError: the cache cannot be written.
        """
        if time.monotonic() - self._last < APART:
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
        self.path.unlink(missing_ok=True)
        self.kept = False


def _tidy() -> None:
    for path in cache.trainings():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def progress(fields: Mapping[str, Any]) -> Progress:
    """The place of a training that depends on these values, on the version of imu and on that of torch."""
    said = json.dumps({**fields, "imu": __version__, "torch": torch.__version__}, sort_keys=True, default=str)
    return Progress(cache.folder() / f"training-{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors")
