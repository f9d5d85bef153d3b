"""``imu inspect``: what the headers say, then what imu learns of the model by building and running it, without any data."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from imu_cli.commands import opening, preparing
from imu_cli.config.shared import ModelConfig
from imu_cli.errors import ImuError, RefusedError
from imu_cli.features import engine
from imu_cli.flags import CONFIG_FILE
from imu_cli.models import architecture, embedding, kinds, language, layout, sidecar
from imu_cli.models.checkpoint import Checkpoint
from imu_cli.models.head import Head
from imu_cli.models.head_search import find_head
from imu_cli.models.headers import Finding, Inspection, header
from imu_cli.models.silent_arguments import UnsaidError
from imu_cli.samples.classes import ClassNames
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images import preprocessing
from imu_cli.samples.images.stores import Pixels
from imu_cli.samples.inputs import InputStep
from imu_cli.samples.texts import tokenizers
from imu_cli.samples.texts.tokens import Tokens

SIDES = (224, 32, 28, 8)
"""Sides of the synthetic images that are tried in turn, where the preprocessing does not bring them to one size."""
IMAGES = 4
SENTENCES = (
    "A text.",
    "Another one, which is longer.",
    "What does it say?",
    "It says nothing that anybody would have to forget.",
)
"""Texts that a text model is tried with."""
SHOWN_CLASSES = 5

OF_TEXTS = "tokenizer"
"""In place of a flag where what prepares texts is missing: files beside the weights, which no flag names."""

What = Literal["architecture", "preprocessing", "head", "classes", "embedding"]
Found = TypeVar("Found")


def run(model: Path, config: ModelConfig, origins: Mapping[str, str]) -> Inspection:
    """Everything that ``unlearn`` would learn of a model before it sees a sample, and what it would ask for.

    What cannot be learnt is a finding with its reason, not an error; a file that cannot be read is an error.

    Raises:
        RefusedError: a pickle.
        ImuError: missing, truncated, or not safetensors.
    """
    files = layout.resolve(model)
    made = header(files)
    found = made.findings
    loaded = _tried(found, "architecture", "--arch", lambda: opening.load_model(model, config))
    if loaded is not None:
        built = loaded[1].architecture
        plain = {name: value for name, value in built.arguments.items() if not isinstance(value, dict)}
        arguments = ", ".join(f"{name}={value}" for name, value in plain.items())
        _learnt(found, "architecture", f"{built.name}{f' ({arguments})' if arguments else ''}", built.source)
        made.notes += loaded[1].notes
        if loaded[1].prefix:
            made.notes.append(f"all names start with {loaded[1].prefix!r}, which is read over and kept on writing")
    said = _said(files)
    takes = _takes(config, loaded, files.folder, said)
    flag = "--preprocess" if takes == "image" or config.preprocess is not None else OF_TEXTS
    step = None
    if loaded is not None or takes == "image":
        step = _tried(found, "preprocessing", flag, lambda: _step(takes, config, loaded, files.folder, said))
    if step is not None:
        shown = ", ".join(f"{name} {value}" for name, value in step.made.described().items() if value is not None)
        _learnt(found, "preprocessing", shown, step.source)
    if loaded is not None:
        # A head does not depend on how images are prepared: where that is not known, plain noise shows it all the same.
        known = found if step is not None else []
        head = _head(
            known, loaded[0], loaded[1], preprocessing.parse("none") if step is None else step.made, config, takes
        )
        if head is not None and (head.embeds or head.writes):
            made.head = list(head.tensors) if head.writes else made.head
            found += [] if step is not None else known
        elif head is not None:
            found += [] if step is not None else known
            made.head = list(head.tensors)
            _tell_classes(
                found,
                _tried(
                    found, "classes", "--classes", lambda: opening.names_of_classes(config, said, None, head.classes)
                ),
            )
    made.next = _next(model, config, origins, found, takes)
    return made


def _takes(
    config: ModelConfig,
    loaded: tuple[Checkpoint, architecture.Loaded] | None,
    folder: Path,
    said: Sequence[sidecar.Said],
) -> preparing.Takes:
    """What the model takes; where its library does not say: texts where a tokenizer lies beside it and nothing prepares images."""
    prepared = config.preprocess is not None or any(item.steps for item in said)
    guess: preparing.Takes = "text" if tokenizers.is_there(folder) and not prepared else "image"
    if config.task == "language":
        return "record"
    return (loaded[1].takes if loaded is not None else None) or guess


def _step(
    takes: preparing.Takes,
    config: ModelConfig,
    loaded: tuple[Checkpoint, architecture.Loaded] | None,
    folder: Path,
    said: Sequence[sidecar.Said],
) -> preparing.Step:
    """The input step."""
    if loaded is None:
        return preparing.Step(*preprocessing.find(config.preprocess, [(item.steps, item.source) for item in said]))
    return preparing.find(takes, config, loaded[1], folder, said)


def _said(files: layout.Layout) -> list[sidecar.Said]:
    """What the model's files say; nothing where they cannot be believed, which the architecture's finding then tells."""
    try:
        return sidecar.read(files.model, files.metadata, files.folder)
    except ImuError:
        return []


def _tried(found: list[Finding], what: What, flag: str, step: Callable[[], Found]) -> Found | None:
    """What the step returns; None, and a finding that says why, where it cannot."""
    try:
        return step()
    except RefusedError as error:
        found.append(Finding(what=what, problem=str(error)))
    except ImuError as error:
        flag = "--arch-arg" if isinstance(error, UnsaidError) else flag
        found.append(Finding(what=what, problem=str(error), flag=flag))
    return None


def _learnt(found: list[Finding], what: What, value: str, source: str) -> None:
    found.append(Finding(what=what, value=value, source=source))


def synthetic(side: int, seed: int) -> SampleSet:
    """A few RGB images of uniform noise, ``side`` pixels wide and high."""
    values = np.random.default_rng(seed).integers(0, 256, (IMAGES, side, side, 3), dtype=np.uint8)
    rows = range(IMAGES)
    names = [str(row) for row in rows]
    return SampleSet("synthetic", names, [0] * IMAGES, None, Pixels("synthetic", values), rows)


def _head(
    found: list[Finding],
    checkpoint: Checkpoint,
    loaded: architecture.Loaded,
    step: InputStep,
    config: ModelConfig,
    takes: preparing.Takes,
) -> Head | None:
    """The head, found and replayed on synthetic images of the first size that the model takes, or on a few texts; or the embedding."""
    device = engine.pick_device(config.device)
    model = engine.prepare(loaded.model, device)
    embeds = _tried(found, "embedding", "--task", lambda: opening.is_embedding(config, loaded))
    if embeds is None:
        return None
    what: What = "embedding" if embeds else "head"

    def attempt(side: int) -> Head:
        if isinstance(step, Tokens):
            batch = engine.to_device(step.of(SENTENCES), step, device)
        else:
            batch = engine.batch(synthetic(side, config.seed), range(IMAGES), step, device)
        if takes == "record":
            engine.refuse_if_random(model, batch, language.logits)
            return language.find_head(model, batch, checkpoint, loaded, config.head)
        if embeds:
            engine.refuse_if_random(model, batch, embedding.output(config.embedding or embedding.OUTPUT))
            return embedding.find_embedding(model, batch, config.embedding)
        engine.refuse_if_random(model, batch)
        engine.refuse_if_padding_counts(model, batch, step)
        return find_head(model, batch, checkpoint, loaded.prefix, config.head)

    # Without --head, what can be mended is how the images come in: a head that is not there is a refusal.
    flag = "--head" if config.head else "--embedding" if config.embedding else "--preprocess"
    tries: list[Finding] = []
    for side in SIDES:
        head = _tried(tries, what, flag, lambda side=side: attempt(side))  # type: ignore[misc]
        if head is not None:
            noise = f"{IMAGES} images of noise, {side} x {side} before preprocessing"
            tried = f"{len(SENTENCES)} texts" if isinstance(step, Tokens) else noise
            value = (
                f"{head.matrix.shape[1]} numbers, {head.module or 'what the model returns'}; on {tried}"
                if embeds
                else (
                    f"{head.module} ({head.classes} x {head.matrix.shape[1] - head.bias}{' + bias' if head.bias else ''}, {head.dtype}"
                    f"{', tied to ' + head.tied if head.tied else ''}); "
                    f"replay error {head.replay_error:.1e} of the largest logit on {tried}"
                )
            )
            _learnt(found, what, value, head.source)
            return head
        if tries[-1].flag is None or isinstance(step, Tokens):  # refused: another size changes nothing
            break
    found.append(tries[-1] if tries[-1].flag is None else tries[0])
    return None


def _tell_classes(found: list[Finding], classes: ClassNames | None) -> None:
    if classes is None:
        return
    if classes.names is None:
        reason = f"{classes.num_classes} outputs without names; labels are ids, or name them with --classes FILE or a --data of all classes"
        found.append(Finding(what="classes", problem=reason, flag="--classes"))
        return
    more = f", +{len(classes.names) - SHOWN_CLASSES} more" if len(classes.names) > SHOWN_CLASSES else ""
    _learnt(found, "classes", ", ".join(classes.names[:SHOWN_CLASSES]) + more, classes.source)


PLACEHOLDERS = {
    "--arch": "ARCH", "--arch-arg": "KEY=VALUE", "--preprocess": "PRESET", "--head": "MODULE", "--embedding": "MODULE",
}  # fmt: skip
"""What stands in the line to copy for a flag that is missing and not optional."""


def _next(
    model: Path, config: ModelConfig, origins: Mapping[str, str], found: Sequence[Finding], takes: preparing.Takes
) -> str | None:
    """The line to copy, with the flags that were given and those that are missing.

    None for a model that is refused, and where a file is missing that no flag names.
    """
    if any(item.problem and item.flag is None for item in found):
        return None
    wrong = {item.flag for item in found if item.problem}
    if OF_TEXTS in wrong:
        return None
    words = ["imu", "unlearn", str(model), "--forget", "forget.jsonl" if takes == "record" else "forget.csv"]
    words += ["--test", "unseen.jsonl", "--scope", "last-block"] if takes == "record" else []
    words += ["--template", config.template] if config.template and origins.get("template") != "file" else []
    words += ["--no-end-token"] if not config.end_token and origins.get("end_token") != "file" else []
    words += ["--config", origins[CONFIG_FILE]] if CONFIG_FILE in origins else []
    for flag, value in (("--arch", config.arch), ("--preprocess", config.preprocess), ("--head", config.head),
                        ("--classes", config.classes), ("--embedding", config.embedding),
                        ("--task", None if config.task == "auto" else config.task)):  # fmt: skip
        told = flag in wrong or origins.get(flag.removeprefix("--")) == "file"  # which says it again by itself
        words += [flag, value] if isinstance(value, str) and not told else []
    words += ["--truncate"] if config.truncate and takes != "image" and origins.get("truncate") != "file" else []
    for pair in config.arch_arg if origins.get("arch_arg") != "file" else []:
        words += ["--arch-arg", pair]
    if config.strip_prefix is not None and origins.get("strip_prefix") != "file":
        words += ["--strip-prefix", config.strip_prefix]
    for name in config.leave_out if origins.get("leave_out") != "file" else []:
        words += ["--leave-out", name]
    words += ["--output", "unlearned"] if kinds.in_cache(model.absolute()) else []
    for flag in [flag for flag in PLACEHOLDERS if flag in wrong and (flag != "--preprocess" or takes == "image")]:
        words += [flag, PLACEHOLDERS[flag]]
    return shlex.join(words)
