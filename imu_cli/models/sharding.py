"""A copy of a model whose weights lie in parts: each process holds some rows of each, by torch's FSDP2.

A unit (a block of the network, or a layer that moves outside the blocks) has its weights gathered while it runs, forward and backward, and
its gradients summed into the parts. The head does not run here, and is left out: its logits are made from its matrix by blocks.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models.layers import is_conv1d
from imu_cli.models.parts import Gradients, Join, Parts

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

BLOCKS = "_no_split_modules"
"""Where models of transformers name the classes of their blocks."""


class Shards(Parts):
    """Some rows of every weight are in this process (of a weight (in, out), as GPT-2's are, some columns).

    Attributes:
        model: the network that runs, its units' weights in parts.
        parameters: of the weights that move, the parts that this process holds; writing to them moves the network.
    """

    def __init__(
        self, model: nn.Module, mesh: "DeviceMesh", leaves: Mapping[str, nn.Parameter], alone: Mapping[str, Tensor]
    ) -> None:
        self.model, self._mesh, self._leaves = model, mesh, dict(leaves)
        self.count, self._rank, self._group = mesh.size(), mesh.get_local_rank(), mesh.get_group()
        self._sizes = {name: len(whole) for name, whole in alone.items()}
        self.parameters: dict[str, Tensor] = {
            name: leaf.detach().to_local()  # type: ignore[attr-defined]
            for name, leaf in leaves.items()
        } | {name: whole[self.rows(len(whole))].clone() for name, whole in alone.items()}

    def sums(self, values: Tensor) -> Tensor:
        """Sums (k,) over what this process holds as sums over all."""
        made = values.to(self._mesh.device_type)
        torch.distributed.all_reduce(made, group=self._group)
        return made.to(values.device)

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Norms (k,) of tensors of which this process holds a part each."""
        return self.sums(super().norms(tensors).double().square()).sqrt().to(tensors[0].dtype)

    def roots(self, tensors: Sequence[Tensor]) -> list[float]:
        """Root mean squares of tensors of which this process holds a part each."""
        own = [[float(each.detach().double().square().sum()), float(each.numel())] for each in tensors]
        squares, counts = self.sums(torch.tensor(own, dtype=torch.float64)).T
        return (squares / counts).sqrt().tolist()  # type: ignore[no-any-return]

    def rows(self, n: int) -> slice:
        """Of n rows those that this process holds: the same number in all but the last ones."""
        each = -(-n // self.count)
        return slice(min(n, self._rank * each), min(n, (self._rank + 1) * each))

    def joined(self, own: Tensor, n: int) -> Tensor:
        """All rows (n, …) of a tensor of which this process holds its own."""
        each = -(-n // self.count)
        padded = own.new_zeros(each, *own.shape[1:])
        padded[: len(own)] = own
        made = own.new_empty(each * self.count, *own.shape[1:])
        torch.distributed.all_gather(list(made.split(each)), padded, group=self._group)
        return made[:n]

    def whole(self, name: str, own: Tensor) -> Tensor:
        """All of the weight of this name, gathered."""
        if name in self._sizes:
            return self.joined(own, self._sizes[name])
        return self._leaves[name].detach().full_tensor()  # type: ignore[attr-defined, no-any-return]

    def gradients(self, parameters: Mapping[str, Tensor]) -> "ShardGradients":
        """What gradients of a batch are summed in."""
        return ShardGradients(self, parameters, self._leaves)


class ShardGradients(Gradients):
    """Gradients of which every process holds the part of its weights; each backward pass adds them up over processes."""

    def __init__(self, parts: Shards, parameters: Mapping[str, Tensor], leaves: Mapping[str, nn.Parameter]) -> None:
        self.parts, self.parameters, self._leaves = parts, parameters, leaves
        self._whole: dict[str, Tensor] = {}
        for leaf in leaves.values():
            leaf.grad = None

    def add(self, made: Tensor, along: Tensor | None = None) -> None:
        """Those of ``made``, which a part of the network gave; every process calls this as often."""
        torch.autograd.backward([made], None if along is None else [along])

    def add_to(self, name: str, gradient: Tensor) -> None:
        """A weight's own, in the shape of all of it."""
        self._whole[name] = self._whole[name].add_(gradient) if name in self._whole else gradient.clone()

    def over_processes(self, loss: float, join: Join) -> tuple[dict[str, Tensor], float]:
        """They and the loss, summed over processes: of each weight the part that this process holds."""
        whole = torch.tensor([loss])
        join([*self._whole.values(), whole])
        made = {}
        for name, parameter in self.parameters.items():
            leaf = self._leaves.get(name)
            found = None if leaf is None or leaf.grad is None else leaf.grad.to_local()  # type: ignore[attr-defined]
            made[name] = torch.zeros_like(parameter) if found is None else found
            if name in self._whole:
                made[name].add_(self._whole[name][self.parts.rows(len(self._whole[name]))])
        for leaf in self._leaves.values():
            leaf.grad = None
        return made, float(whole)


def refuse_old_torch() -> None:
    """Refuse a torch whose FSDP2 does not add up gradients, or keeps those of all units whole until the last is done.

    Raises:
        ImuError: it is too old.
    """
    from torch.distributed import fsdp

    found = getattr(fsdp, "FSDPModule", None)
    if not (hasattr(found, "set_force_sum_reduction_for_comms") and hasattr(fsdp, "share_comm_ctx")):
        raise ImuError(
            f"--shard: torch {torch.__version__} has no torch.distributed.fsdp.share_comm_ctx, or does not add up gradients; update torch, or "
            "leave it out"
        )


def shard(
    model: nn.Module, moving: Mapping[str, nn.Parameter], modules: Collection[str], head: str, mesh: "DeviceMesh"
) -> Shards:
    """A copy of a model with its weights in parts; the model itself, on the CPU, stays as it is.

    Args:
        model: whole, in ``eval()`` mode.
        moving: its weights that move, by name.
        modules: paths of the layers that they belong to.
        head: path of the head, which does not run.
        mesh: the processes.

    Raises:
        RefusedError: weights that move are shared between units, or cannot be dealt out.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, share_comm_ctx
    from torch.distributed.tensor import Shard

    paths = units(model, modules, head)
    _refuse_shared(model, paths, moving, head)
    _refuse_uneven(model, moving, mesh.size())
    moves = {id(parameter) for parameter in moving.values()}
    # Parameters of its own on the same memory: what is moved to the device, and dealt out, is the copy.
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=id(parameter) in moves)
        for parameter in model.parameters()
    }
    made = copy.deepcopy(model, memo)
    columns = {id(memo[id(module.weight)]) for module in model.modules() if is_conv1d(module)}

    def place(parameter: nn.Parameter) -> Shard | None:
        return Shard(1) if id(parameter) in columns and _deals(parameter, mesh.size()) else None

    dealt: list[FSDPModule] = []
    for path in paths:
        unit = fully_shard(made.get_submodule(path), mesh=mesh, reshard_after_forward=True, shard_placement_fn=place)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        dealt.append(unit)
    share_comm_ctx(dealt)  # else each keeps its gradients whole until the backward pass is done
    layer = made.get_submodule(head)
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
    _to(made, torch.device(mesh.device_type, torch.cuda.current_device() if mesh.device_type == "cuda" else 0))
    own = dict(made.named_parameters())
    inside = [name for name in moving if any(name.startswith(f"{path}.") for path in paths)]
    return Shards(made, mesh, {name: own[name] for name in inside}, {
        name: parameter.detach().to(mesh.device_type) for name, parameter in moving.items() if name not in inside
    })  # fmt: skip


def units(model: nn.Module, modules: Collection[str], head: str) -> list[str]:
    """Paths of what is gathered together: the blocks that transformers names, moving or not, and layers that move outside of them."""
    kinds = {kind for module in model.modules() for kind in getattr(module, BLOCKS, None) or ()}
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{other}.") for other in found)
        if path and not inside and (type(module).__name__ in kinds or (path in modules and path != head)):
            found.append(path)
    return found


def release(model: nn.Module, paths: Sequence[str]) -> None:
    """Give back the memory of a model's weights that lie in parts elsewhere; it cannot run any more."""
    for path in paths:
        for parameter in model.get_submodule(path).parameters():
            parameter.data = parameter.data.new_empty(0)


def _to(model: nn.Module, device: torch.device) -> None:
    """What is in no unit, on the device; what has no values stays without."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta and tensor.device.type != device.type:
            tensor.data = tensor.data.to(device)


def _deals(parameter: Tensor, count: int) -> bool:
    return parameter.ndim > 1 and parameter.shape[1] % count == 0


def _refuse_shared(model: nn.Module, paths: Sequence[str], moving: Mapping[str, nn.Parameter], head: str) -> None:
    names: dict[int, str] = {}
    known = {id(parameter): name for name, parameter in moving.items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        unit = next((path for path in paths if name.startswith(f"{path}.")), name)
        if id(parameter) not in known or name.rpartition(".")[0] == head:
            continue
        if names.setdefault(id(parameter), unit) != unit:
            raise RefusedError(
                f"--shard: {known[id(parameter)]} moves, and is also {name}: a weight of two blocks cannot be dealt out; name a --scope "
                "without it, or leave the option out"
            )


def _refuse_uneven(model: nn.Module, moving: Mapping[str, nn.Parameter], count: int) -> None:
    for name, parameter in moving.items():
        if (
            is_conv1d(model.get_submodule(name.rpartition(".")[0]))
            and parameter.ndim > 1
            and not _deals(parameter, count)
        ):
            raise RefusedError(
                f"--shard: {name} has {parameter.shape[1]:,} outputs, which {count} processes cannot share evenly; start a number of processes "
                "that divides it, or leave the option out"
            )
