"""Where a result comes from, as records say it: files and their hashes, options and their origins, versions."""

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imu_cli import __version__, flags
from imu_cli.commands import reuse
from imu_cli.config.shared import ForgetConfig, SamplesConfig
from imu_cli.features.session import Session
from imu_cli.files import paths
from imu_cli.models import libraries
from imu_cli.models.checkpoint import Checkpoint
from imu_cli.models.head import Head
from imu_cli.models.layout import file_hash
from imu_cli.records.parts import Environment, FileHash, ForgetInfo, HeadInfo, OptionValue
from imu_cli.records.record import Record
from imu_cli.samples.selectors import is_selector


def head_info(head: Head) -> HeadInfo:
    """The head, for records."""
    return HeadInfo(
        module=head.module,
        tensors=list(head.tensors),
        dtype=head.dtype,
        classes=head.classes,
        features=head.matrix.shape[1] - head.bias,
        bias=head.bias,
        source=head.source,
        replay_error=head.replay_error,
    )


def forget_info(opened: Session, config: SamplesConfig, folder: Path) -> ForgetInfo:
    """The forget set without naming a sample; paths relative to ``folder``."""
    forget = opened.forget
    counts: dict[str, int] = {}
    for label in (
        () if opened.head.embeds or opened.head.writes else forget.samples.labels
    ):  # names of people stand in no record
        name = opened.classes.name(label)
        counts[name] = counts.get(name, 0) + 1
    listed = not is_selector(config.forget[0])
    manifest = Path(config.forget[0] if listed else "")
    return ForgetInfo(
        given=paths.relative_to(config.forget, "forget", folder),
        label=config.label,
        data=paths.relative_to(config.data, "data", folder),
        n=len(forget.samples),
        per_class=counts,
        whole_classes=bool(forget.whole_classes),
        sha256=forget.sha256,
        manifest=file_hash_of(manifest, folder) if listed and manifest.is_file() else None,
        relabelled=forget.relabelled,
    )


def model_hash_of(checkpoint: Checkpoint, folder: Path) -> FileHash:
    """Path relative to ``folder`` and the one hash of a model."""
    return FileHash(path=model_path(checkpoint.path, folder), sha256=checkpoint.sha256)


def model_path(path: Path, folder: Path) -> str:
    """Path of a model relative to ``folder``; one that *is* the folder is ``../name``, so that reports have a name."""
    relative: str = paths.relative_to(str(path), "file", folder)
    return f"../{path.resolve().name}" if relative == "." else relative


def file_hash_of(path: Path, folder: Path) -> FileHash:
    """Path relative to ``folder`` and SHA-256 of a file."""
    return FileHash(path=paths.relative_to(str(path), "file", folder), sha256=file_hash(path))


def option_values(config: ForgetConfig, origins: Mapping[str, str], folder: Path) -> dict[str, OptionValue]:
    """Every option with its origin; paths relative to ``folder``, so that a record can be moved with its files."""
    found = {}
    for name, kind in flags.path_kinds(type(config)).items():
        value = getattr(config, name)
        value = paths.relative_to(value, kind, folder) if kind else value
        found[name] = OptionValue(value=value, origin=origins.get(name, "default"))
    return found


def environment(device: torch.device) -> Environment:
    """Versions and device of this run."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )
    return Environment(
        imu=__version__,
        python=sys.version.split()[0],
        torch=str(torch.__version__),
        torchvision=libraries.torchvision_version(),
        platform=f"{platform.system()} {platform.machine()}",
        device=name,
    )


def read_record(beside: Path, sha256: str) -> Record | None:
    """The record in the file ``beside`` a model, where it describes the weights of this hash; None where there is none."""
    from imu_cli.records import json_files

    if not beside.is_file():
        return None
    found = json_files.read(beside)
    return found if isinstance(found, Record) and found.after.sha256 == sha256 else None


def common(opened: Session, config: ForgetConfig, origins: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """What records and evaluations share."""
    return {
        **opened.described(),
        "classes": list(opened.classes.names) if opened.classes.names else None,
        "classes_source": opened.classes.source,
        "head": head_info(opened.head),
        "forget": forget_info(opened, config, folder),
        "options": option_values(config, origins, folder),
        "seed": config.seed,
        "environment": environment(opened.device),
        "seconds": opened.log.clock.seconds,
        "notes": opened.log.notes,
        "run": reuse.run_info(opened),
    }
