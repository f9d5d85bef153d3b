"""What the record beside a model knows for an evaluation, where no option says otherwise."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from imu_cli.config.commands import EvaluateConfig
from imu_cli.errors import ImuError
from imu_cli.files import paths
from imu_cli.models.architecture import Architecture
from imu_cli.models.sidecar import Said
from imu_cli.records.record import Record
from imu_cli.samples.vectors import is_features

NAMING = ("strip_prefix", "leave_out", "columns")
"""Options of the record by which the file's tensors are the model's, and the columns of lists what they are."""


def from_record(
    config: EvaluateConfig, origins: Mapping[str, str], found: Record | None, file: Path
) -> tuple[EvaluateConfig, dict[str, str], Said | None]:
    """The config with what the record beside the model knows, where no option says otherwise; never code."""
    merged = dict(origins)
    if found is None:
        return config, merged, None
    folder = file.parent
    known: dict[str, Any] = {"original": paths.placed(found.before.path, "file", folder), "head": found.head.module}
    if not config.forget and config.features is None:
        known |= {
            "forget": paths.placed(found.forget.given, "forget", folder),
            "label": found.forget.label,
            "data": paths.placed(found.forget.data, "data", folder) if config.data is None else config.data,
        }
    if found.embedding is not None:
        known |= _without_names(found, folder, config)
        known |= {"head": None, "task": "embedding", "embedding": found.embedding.module or None}
    elif found.scenario == "record":
        known |= _without_names(found, folder, config)
    known |= {name: found.options[name].value for name in NAMING if name in found.options and found.options[name].value}
    if config.scenario == "auto" and found.scenario not in ("person", "record"):
        known["scenario"] = found.scenario
    values = {
        name: value
        for name, value in known.items()
        if value is not None and (name == "scenario" or getattr(config, name) in (None, [], "auto"))
    }
    merged.update(dict.fromkeys(values, "record"))
    name = str(found.architecture["name"])
    is_registry = not Architecture(name, "record").runs_code
    arguments = dict(found.architecture["arguments"]) if is_registry else {}
    if found.details.get("untied") and isinstance(arguments.get("config"), dict):
        # The record tells the model that was unlearned; in the one that was written the head is a tensor of its own.
        arguments["config"] = {**arguments["config"], "tie_word_embeddings": False}
    known_of = Said(
        source=file.name,
        arch=name if is_registry else None,
        arguments=arguments,
        preprocess=found.preprocess,
        classes=tuple(found.classes) if found.classes else None,
    )
    on_features = config.features is not None or is_features(str(values.get("data", config.data)))
    if config.arch is None and not is_registry and not on_features:
        raise ImuError(
            f"--arch: the record names {name!r}, which is code, and code runs only where you name it; add --arch {name} "
            "or a --config that does"
        )
    return replace(config, **values), merged, known_of


def _without_names(found: Record, folder: Path, config: EvaluateConfig) -> dict[str, Any]:
    """What a record that names nobody knows of people and of records: no label, and the weights from before they were seen.

    Raises:
        ImuError: who or what was to be forgotten is left out of it, and was not given again.
    """
    given = found.forget.given
    if not config.forget and any("=…" in text for text in given):
        raise ImuError(
            "--forget: the record leaves out whom the model was to forget, since it names nobody; give them again with --forget"
        )
    before = found.options.get("reference_model")
    return {
        "label": None,
        "reference_model": None if before is None else paths.placed(before.value, "file", folder),
    }


def stdin_again(config: EvaluateConfig, found: Record | None) -> None:
    """Refuse to evaluate by a list that came from standard input and is gone.

    Raises:
        ImuError: it has to be given again.
    """
    if found is not None and config.forget == ["-"] and found.forget.given == ["-"] and found.forget.manifest is None:
        raise ImuError(
            "--forget: the record's forget list came from standard input and is gone; give it again with --forget"
        )
