"""What samples go through before the model: preprocessing of images, the tokenizer of texts, and who knew it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from imu_cli.config.shared import ModelConfig
from imu_cli.errors import ImuError
from imu_cli.files.reading import cut
from imu_cli.models.architecture import Loaded
from imu_cli.models.sidecar import Said
from imu_cli.samples.dataset import FEATURES, RECORDS, TEXTS, TOKENIZED, WORDS, SampleSet
from imu_cli.samples.images import preprocessing
from imu_cli.samples.inputs import InputStep
from imu_cli.samples.texts import completions, tokenizers, tokens, words

Takes = Literal["image", "text", "word", "record"]


@dataclass(frozen=True)
class Step:
    """An input step, and where it comes from."""

    made: InputStep
    source: str


def find(
    takes: Takes, config: ModelConfig, loaded: Loaded, folder: Path, said: Sequence[Said], max_memory: int | None = None
) -> Step:
    """The input step of a model that was loaded.

    Args:
        takes: what it is a classifier of.
        config: options.
        loaded: the model.
        folder: where its weights lie, and the tokenizer beside them.
        said: what a record and the model's files say.
        max_memory: as in ``preprocessing.find``.

    Raises:
        ImuError: nobody knows it, it is not the record's, or an option is of the other kind.
        RefusedError: it needs code of its own.
    """
    if takes != "record":
        refuse_for_records(
            config, "this model takes images" if takes == "image" else f"this is a classifier of {takes}s"
        )
    if takes == "image":
        if config.truncate:
            raise ImuError("--truncate: cuts texts, and this model takes images; leave it out")
        images = [(item.steps, item.source) for item in said if not tokens.is_described(item.steps)]
        return Step(*preprocessing.find(config.preprocess, images, max_memory))
    if config.preprocess is not None:
        raise ImuError(
            "--preprocess: is for images, and this model takes texts, which its own tokenizer prepares; leave it out"
        )
    tokenizer = tokenizers.load(folder, loaded.model)
    known = next((item for item in said if tokens.is_described(item.steps)), None)
    if known is not None:
        tokens.refuse_other(known.steps, tokenizer, known.source)
    truncate = config.truncate or (known is not None and bool(known.steps["truncate"]))
    if takes == "record":
        steps = None if known is None else known.steps
        made = completions.of(tokenizer, loaded.model, config.template, truncate, config.end_token, steps)
        return Step(made, tokenizer.source)
    made_of = words.of if takes == "word" else tokens.of
    return Step(made_of(tokenizer, loaded.model, truncate), tokenizer.source)


def refuse_for_records(config: ModelConfig, what: str) -> None:
    """Refuse options of records where none are read.

    Raises:
        ImuError: names the first.
    """
    given = {
        "--template": config.template is not None,
        "--no-end-token": config.end_token is False,
        "--end-token": bool(config.end_token),
    }
    for option in (name for name, there in given.items() if there):
        raise ImuError(f"{option}: is for language models, and {what}; leave it out")


def share(step: InputStep, model: nn.Module, path: Path) -> None:
    """Have another model take what a step makes for the evaluated one.

    Raises:
        ImuError: a tokenizer of its own lies beside it, and makes other tokens.
        RefusedError: that tokenizer needs code of its own.
    """
    if not isinstance(step, tokens.Tokens):
        return
    folder = path if path.is_dir() else path.parent
    if tokenizers.is_there(folder):
        tokens.refuse_other(step.described(), tokenizers.load(folder, model), f"{path}: the evaluated model")
    tokenizers.tell_padding(model, step.tokenizer.padding)


def refuse_other_words(step: InputStep, model: nn.Module, path: Path) -> None:
    """Refuse a model that is to take another one's tokens, and has a tokenizer that gives some of its words other ids.

    Raises:
        ImuError: how many, and which is the first.
        RefusedError: that tokenizer needs code of its own.
    """
    folder = path if path.is_dir() else path.parent
    if not isinstance(step, tokens.Tokens) or not tokenizers.is_there(folder):
        return
    own, theirs = step.tokenizer.made.get_vocab(), tokenizers.load(folder, model).made.get_vocab()
    other = [word for word, at in own.items() if theirs.get(word, at) != at]
    if other:
        raise ImuError(
            f"{path}: its tokenizer gives {len(other):,} of {len(own):,} words another id ({cut(other[0])!r} is {theirs[other[0]]} there and "
            f"{own[other[0]]} here), and it is to take the same tokens; give a model of the same tokenizer"
        )


def refuse_other_kind(takes: Takes, samples: SampleSet, model: Path) -> None:
    """Refuse samples of a kind that the model does not take.

    Raises:
        ImuError: images for a model of texts, or the other way round.
    """
    fits = {
        "image": samples.kind not in TOKENIZED,
        "text": samples.kind is TEXTS,
        "word": samples.kind is WORDS,
        "record": samples.kind in (TEXTS, RECORDS),
    }
    if samples.kind is FEATURES or fits[takes]:
        return
    if takes == "record":
        raise ImuError(
            f"{samples.source}: holds {samples.kind.many}, and {model.name or model} is a language model; give records: prompt and "
            "completion, question and answer, messages, or text"
        )
    how = ": sentences with the columns tokens and tags" if takes == "word" else ""
    raise ImuError(
        f"{samples.source}: holds {samples.kind.many}, and {model.name or model} is a classifier of {takes}s; name a data set of those{how}"
    )
