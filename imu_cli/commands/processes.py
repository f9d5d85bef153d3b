"""The processes that torchrun started, and what they do together: wait, add up, put rows beside each other."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from imu_cli.commands import opening
from imu_cli.errors import ImuError
from imu_cli.files.reading import environment_number
from imu_cli.samples.images import decoding

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

MOST_PROCESSES = 65_536
BACKENDS = "cpu:gloo,cuda:nccl"
"""What tensors on each kind of device are sent by; nothing but ``--shard`` sends a GPU's."""
Kind = TypeVar("Kind")


class HelpedError(Exception):
    """This process has done its share, and another one writes."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that torchrun started; one of one without it."""

    rank: int
    count: int

    @property
    def first(self) -> bool:
        """Whether this is the one that plans, joins, writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """For all of them."""
        if self.count > 1:
            torch.distributed.barrier()

    def of_first(self, value: Kind) -> Kind:
        """Give every process what the first one has."""
        if self.count == 1:
            return value
        given = [value]
        torch.distributed.broadcast_object_list(given, src=0)
        return given[0]

    def of_all(self, value: Kind) -> list[Kind]:
        """Give every process what each has, in the order of their ranks."""
        if self.count == 1:
            return [value]
        given = [value] * self.count
        torch.distributed.all_gather_object(given, value)
        return given

    def mesh(self, device: torch.device) -> "DeviceMesh":
        """All of them in a row, each with a device of this kind of its own."""
        from torch.distributed.device_mesh import init_device_mesh

        if device.type == "cuda":
            torch.cuda.set_device(device)
        return init_device_mesh(device.type, (self.count,))

    def share(self, rows: Tensor) -> Tensor:
        """The rows (k,) that this process takes of (n,)."""
        return rows[self.rank :: self.count]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the sum of all processes' tensors, in place, by way of the CPU."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).to("cpu") for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


@contextmanager
def ranks(on_gpus: bool = False) -> Iterator[Ranks]:
    """The process group while the context lasts, where torchrun made one; ``on_gpus`` also sends what lies on GPUs.

    Raises:
        ImuError: what the environment says of processes makes no group.
    """
    count = environment_number("WORLD_SIZE", 1, 1, MOST_PROCESSES, opening.TORCHRUN)
    if count == 1 or "RANK" not in os.environ:
        yield Ranks(0, 1)
        return
    environment_number("RANK", 0, 0, count - 1, opening.TORCHRUN)
    here = environment_number("LOCAL_WORLD_SIZE", 1, 1, count, opening.TORCHRUN)
    environment_number("MASTER_PORT", 0, 1, 65535, opening.TORCHRUN)
    # torchrun gives each process one thread, whatever the cores.
    torch.set_num_threads(max(1, decoding.workers() // here))
    try:
        torch.distributed.init_process_group(BACKENDS if on_gpus and torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise ImuError(f"RANK, WORLD_SIZE: no process group is made of them ({said}); {opening.TORCHRUN}") from error
    try:
        yield Ranks(torch.distributed.get_rank(), count)
    finally:
        torch.distributed.destroy_process_group()
