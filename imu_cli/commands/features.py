"""``imu features``: the features of a set in a file, by one process or many, in blocks that an interrupted run keeps.

The set is cut into batches once, and the batches into blocks; who computes a block changes nothing. Each block is written
whole to ``OUTPUT.parts``; when all are there they are joined in the order of the list. Under torchrun every process takes
each N-th block, and PyTorch's process group is what they wait for each other by.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file

from imu_cli import __version__
from imu_cli.commands import opening, processes, provenance
from imu_cli.config.commands import FeaturesConfig
from imu_cli.config.shared import ForgetConfig, SamplesConfig
from imu_cli.errors import ImuError, StoppedError
from imu_cli.events import Events, Silent
from imu_cli.features import origin
from imu_cli.features.extraction import Seen
from imu_cli.features.session import Session
from imu_cli.files import blocks, memory, outputs, writing
from imu_cli.records.features import Extracted
from imu_cli.samples import vectors
from imu_cli.samples.texts import sentences

BLOCKS = 256
"""Blocks that a set is cut into at most: so much of the work is lost at most when a process dies."""
LOGITS = 64
"""First rows whose logits are kept, so that whoever reads the file can replay the head."""


# --- the plan


@dataclass(frozen=True)
class Plan:
    """What the blocks of a run have to agree in, and the rows of each.

    ``said`` is everything that the numbers depend on.
    """

    said: Mapping[str, Any]
    blocks: tuple[range, ...]

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that."""
        return hashlib.sha256(json.dumps(self.said, sort_keys=True).encode()).hexdigest()

    def path(self, folder: Path, number: int) -> Path:
        """The file of a block."""
        return folder / f"{number:05d}.safetensors"


def _plan(opened: Session) -> Plan:
    assert opened.network is not None
    n, size = len(opened.forget.samples), opened.engine.batch_size
    batches = -(-n // size)
    # At least a window: fewer samples could not be brought together by their length.
    rows = size * max(-(-batches // BLOCKS), -(-opened.network.preprocess.window // size))
    said = {
        "samples": opened.forget.sha256,
        "backbone_sha256": opened.outside_sha256,
        "head": opened.head.module,
        **{name: value for name, value in opened.described().items() if name != "preprocess_source"},
        "precision": opened.run.precision,
        "batch_size": size,
        "folded": opened.engine.folded,
        "prepacked": opened.engine.prepacked,
        "device": opened.device.type,
        "torch": str(torch.__version__),
    }
    # As the plan's file has it, so that both can be compared.
    return Plan(json.loads(json.dumps(said)), tuple(range(start, min(start + rows, n)) for start in range(0, n, rows)))


def _error_of(path: Path, plan: Plan, rows: range) -> float | None:
    """The replay error of a block's rows; None where it is not there, not whole, or of another plan."""
    try:
        with safetensors.safe_open(str(path), framework="np") as file:
            said = file.metadata() or {}
            whole = said.get("plan") == plan.key and file.get_slice("features").get_shape()[0] == len(rows)
            return float(said["replay_error"]) if whole else None
    except (OSError, safetensors.SafetensorError):
        return None


# --- the work


def _compute(opened: Session, plan: Plan, folder: Path, ranks: processes.Ranks) -> None:
    """The blocks of this process that are not there yet, one after the other."""
    mine = [number for number in range(len(plan.blocks)) if number % ranks.count == ranks.rank]
    missing = [number for number in mine if _error_of(plan.path(folder, number), plan, plan.blocks[number]) is None]
    if len(missing) < len(mine):
        opened.note(f"{folder}: {len(mine) - len(missing)} of {len(mine)} blocks are there from an earlier run")
    wanted = [row for number in missing for row in plan.blocks[number]]
    # All blocks but the last are of one length, so that each is a window of the pass.
    stream = opened.stream(opened.forget.samples, "the samples", wanted, len(plan.blocks[0]))
    for number in missing:
        made: list[Seen] = []
        while sum(len(seen.rows) for seen in made) < len(plan.blocks[number]):
            made.append(next(stream))
        _write_block(plan, folder, number, made)
    for _ in stream:  # what is after the last batch: the stage's time, and the bar's end
        raise AssertionError("blocks are whole batches")


def _write_block(plan: Plan, folder: Path, number: int, made: list[Seen]) -> None:
    path = plan.path(folder, number)
    order = torch.tensor([place for seen in made for place in seen.places]).argsort()
    tensors = {"features": torch.cat([seen.rows for seen in made])[order]}
    if number == 0:
        logits = torch.cat([seen.logits.cpu() for seen in made])
        tensors["logits"] = logits[order[:LOGITS]].float().contiguous()
    worst = max(seen.head.replay_error for seen in made)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with writing.said_as(lambda why: f"{folder}: cannot write ({why}); what is there is kept, run again to go on"):
            save_file(tensors, part, {"plan": plan.key, "replay_error": repr(worst)})
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _join(opened: Session, plan: Plan, folder: Path, output: Path, config: FeaturesConfig) -> float:
    """The file, from all blocks in order; returns the largest replay error."""
    paths = [plan.path(folder, number) for number in range(len(plan.blocks))]
    errors = [_error_of(path, plan, rows) for path, rows in zip(paths, plan.blocks, strict=True)]
    lacking = [path.name for path, error in zip(paths, errors, strict=True) if error is None]
    if lacking:
        raise ImuError(f"{folder}: {len(lacking)} blocks are missing or torn ({lacking[0]}); run again to go on")
    worst, samples = max([0.0, *(error for error in errors if error is not None)]), opened.forget.samples
    stand = sentences.places(samples)
    words = None if stand is None else np.stack([stand.of, stand.words], axis=1)
    columns = vectors.columns_of(samples, opened.forget.weights, opened.forget.true_labels, words)
    with safetensors.safe_open(str(paths[0]), framework="np") as file:
        columns["logits"] = file.get_tensor("logits")
    said = {
        **plan.said,
        "head_sha256": origin.head_hash(opened.head),
        "head_tensors": list(opened.head.tensors),
        "classes": list(opened.classes.names) if opened.classes.names else None,
        "replay_error": worst,
        "complete": not config.forget,
        "whole_classes": opened.forget.whole_classes,
        "imu": __version__,
        **({"task": "embedding"} if opened.head.embeds else {}),
    }
    width = opened.head.matrix.shape[1] - opened.head.bias
    pieces = (load_file(path)["features"] for path in paths)
    with opened.log.timed("joining"), _written(output, config, folder) as file:
        vectors.write(file, (len(samples), width), pieces, columns, said)
    return worst


@contextmanager
def _written(output: Path, config: FeaturesConfig, folder: Path) -> Iterator[Path]:
    """Where the file is made; once it stands, the blocks go."""
    replaced = partial(_refuse, force=True) if config.force else writing.nothing
    with writing.together(output, private=True, replaced=replaced, goes=[folder]) as (file,):
        yield file


def _forget_config(config: FeaturesConfig) -> ForgetConfig:
    if not config.forget and config.data is None:
        raise ImuError("--data: not given; name the data set whose features are wanted, or --forget")
    shared = {item.name: getattr(config, item.name) for item in fields(SamplesConfig)}
    return ForgetConfig(**{**shared, "forget": config.forget or opening.EVERYTHING})


def _output(config: FeaturesConfig) -> Path:
    path = Path(config.output or "features.safetensors")
    if not vectors.is_features(path.name):
        raise ImuError(f"--output {path}: not a .safetensors file; that is what features are written as")
    _refuse(path, config.force)
    return path


def _refuse(path: Path, force: bool) -> None:
    outputs.refuse_output(path, None, force)
    if path.exists():
        vectors.open_features(str(path))  # force replaces features, and nothing else


def run_features(model: Path, config: FeaturesConfig, events: Events) -> Extracted | None:
    """Write the features of a set; what was written, or None in a process that leaves that to another.

    Raises:
        ImuError: bad input, an output that may not be replaced, or what an interrupted run of another kind left.
        RefusedError: the checkpoint cannot be handled.
    """
    output = _output(config)
    folder, start = blocks.of(output), time.perf_counter()
    with processes.ranks() as ranks, ExitStack() as held:
        wanted = _forget_config(config)
        opened = opening.open_all(model, wanted, events if ranks.first else Silent())
        if opened.network is None:
            raise ImuError(f"{config.data}: holds features already; name images")
        if opened.head.writes:
            raise ImuError(
                f"{model}: is a language model, whose features are many a record and are not kept as a file; imu influence, unlearn and "
                "evaluate take its records themselves"
            )
        plan = _plan(opened)
        if ranks.first:
            held.callback(blocks.leave, output, blocks.prepare(output, plan.said, config.force))
        ranks.wait()
        try:
            _compute(opened, plan, folder, ranks)
        except StoppedError:
            if blocks.has_any(output):
                opened.note(f"{folder}: the blocks that are done stay; the same command goes on from there")
            raise
        ranks.wait()
        if not ranks.first:
            return None
        worst = _join(opened, plan, folder, output, config)
    opened.head = replace(opened.head, replay_error=worst)
    return Extracted(
        output=str(output),
        model=provenance.model_hash_of(opened.checkpoint, Path()),
        head=provenance.head_info(opened.head),
        forget=provenance.forget_info(opened, wanted, Path()),
        complete=not config.forget,
        precision=config.precision,
        batch_size=opened.engine.batch_size,
        folded=opened.engine.folded,
        processes=ranks.count,
        blocks=len(plan.blocks),
        bytes=output.stat().st_size,
        peak_bytes=memory.peak(),
        seconds={**opened.log.clock.seconds, "all": round(time.perf_counter() - start, 4)},
        notes=opened.log.notes,
    )
