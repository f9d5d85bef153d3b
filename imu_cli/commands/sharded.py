"""``--shard``: a language model whose blocks are dealt out among torchrun's processes while it is trained."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from imu_cli.commands import opening
from imu_cli.commands.processes import Ranks
from imu_cli.config.commands import UnlearnConfig
from imu_cli.errors import ImuError, RefusedError
from imu_cli.features import engine
from imu_cli.features.cut import Upper
from imu_cli.features.session import Session
from imu_cli.files.reading import environment_number
from imu_cli.models import language, sharding
from imu_cli.models.batches import Batch, each
from imu_cli.models.replay import REPLAY_TOLERANCE
from imu_cli.models.scopes import Scope
from imu_cli.models.sharding import Shards


def refuse(config: UnlearnConfig, ranks: Ranks) -> None:
    """Refuse the option where there is nobody to share with, or something that does not go with it.

    Raises:
        ImuError: names the first.
    """
    if ranks.count == 1:
        raise ImuError(
            "--shard: there is one process, and nothing to deal out; start several with torchrun --nproc-per-node N -m imu_cli unlearn …, "
            "or leave it out"
        )
    if config.precision != "float32":
        raise ImuError(
            f"--shard: weights are gathered in float32, and --precision {config.precision} would keep a second copy of all of them; use "
            "--precision float32"
        )
    if config.device == "mps":
        raise ImuError("--shard: torch sends nothing between Apple's GPUs; use --device cpu, or leave it out")
    sharding.refuse_old_torch()


def dealt_out(
    opened: Session, config: UnlearnConfig, moving: Scope, upper: Upper, ranks: Ranks
) -> tuple[Upper, Shards]:
    """The part that moves on a model in parts, on each process's own device, proved by running it beside the whole one.

    The whole model stays in the first process's memory, on the CPU, until the result is checked; others give its blocks back.

    Raises:
        ImuError: the device that is wanted is not there.
        RefusedError: the model cannot be dealt out, or does not compute the same.
    """
    network, head = opened.network, opened.head.module
    assert network is not None
    wanted = engine.pick_device(config.device, environment_number("LOCAL_RANK", 0, 0, 4095, opening.TORCHRUN))
    device = torch.device("cpu") if wanted.type == "mps" else wanted
    # Processes have to run as many portions as each other.
    opened.engine = replace(opened.engine, batch_size=ranks.of_first(opened.engine.batch_size))
    shards = sharding.shard(network.model, moving.parameters, moving.modules, head, ranks.mesh(device))
    made = replace(upper, model=shards.model, device=device, probe=_on(upper.probe, device))
    _refuse_other_answers(upper, made, head)
    paths = sharding.units(network.model, moving.modules, head)
    held = sum(part.numel() for part in shards.parameters.values())
    opened.note(
        f"{len(paths)} parts of the model lie in rows of their weights in {ranks.count} processes (--shard): {held:,} of the "
        f"{moving.count:,} weights that move in this one; the first holds the whole model in the CPU's memory too"
    )
    if not ranks.first:
        sharding.release(network.model, paths)
    return made, shards


def gathered(shards: Shards, moving: Scope, ranks: Ranks) -> dict[str, Tensor]:
    """The weights that moved, whole, in the whole model of the first process; one is gathered at a time, and others keep none."""
    made = {}
    for name, parameter in moving.parameters.items():
        whole = shards.whole(name, shards.parameters[name])
        if ranks.first:
            with torch.no_grad():
                parameter.copy_(whole)
            made[name] = parameter.detach()
    return made


def _on(batch: Batch, device: torch.device) -> Batch:
    return each(batch, lambda tensor: tensor.to(device))


def _refuse_other_answers(whole: Upper, parted: Upper, head: str) -> None:
    run = partial(language.entering, layer=head)
    with torch.no_grad():
        expected = run(whole.model, batch=whole.probe)
        try:
            found = run(parted.model, batch=parted.probe).to(expected)
        except RuntimeError as error:
            said = (str(error).splitlines() or [""])[0]
            raise RefusedError(
                f"--shard: the model does not run with its weights in parts ({said}); leave the option out"
            ) from error
    gap = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    if not gap <= REPLAY_TOLERANCE[torch.float32]:
        raise RefusedError(
            f"--shard: with its weights in parts the model's answers differ by {gap:.2g} of the largest number; leave the option out"
        )
