"""The tokenizer that lies beside a model's weights, read by transformers itself: local files only, and never code of theirs."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from imu_cli.errors import ImuError
from imu_cli.files.reading import read_json
from imu_cli.models import kinds, layout, libraries
from imu_cli.models.sidecar import refuse_foreign_config

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
OTHERS = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
          "spm.model", "tekken.json", "entity_vocab.json")  # fmt: skip
"""What older tokenizers are kept as."""
BESIDE = (CONFIG, "special_tokens_map.json", "added_tokens.json")
"""Files that change what any of those do."""
ENDLESS = 10**9
"""From here on transformers' ``model_max_length`` means that nobody said one."""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer and what the folder says of it.

    Attributes:
        made: transformers' own.
        source: the file it was read from.
        sha256: of the files that decide what it does; of ``tokenizer.json`` alone where nothing lies beside it.
        max_length: tokens that the model takes, special ones included; None where the folder does not say.
        padding: the id that the model takes for padding.
    """

    made: Any
    source: str
    sha256: str
    max_length: int | None
    padding: int

    @property
    def name(self) -> str:
        """Its class."""
        return type(self.made).__name__


def is_there(folder: Path) -> bool:
    """Whether a folder has a tokenizer."""
    return bool(_files(folder))


def _files(folder: Path) -> list[str]:
    """The files that a tokenizer is made from, the one that stands for it first."""
    return [name for name in (FILE, *OTHERS) if (folder / name).is_file()]


def load(folder: Path, model: nn.Module) -> Tokenizer:
    """The tokenizer of a model's folder.

    Raises:
        ImuError: there is none, or it cannot be read.
        RefusedError: it needs code of its own.
    """
    files = _files(folder)
    if not files:
        raise ImuError(
            f"{folder / FILE}: not there, and a text model needs its tokenizer; copy the tokenizer's files beside the weights "
            "(tokenizer.save_pretrained writes them)"
        )
    there = [name for name in (*files, *BESIDE) if (folder / name).is_file()]
    for name in there:
        kinds.refuse_pointer(layout.inside(folder, name))
    said = read_json(folder / CONFIG) if CONFIG in there else {}
    refuse_foreign_config(said, folder / CONFIG)
    config = getattr(model, "config", None)
    made = _made(folder, files, said, config)
    return Tokenizer(made, files[0], _hash(folder, there), _max_length(made, model), _padding(made, model))


def _made(folder: Path, files: list[str], said: Mapping[str, Any], config: Any) -> Any:
    named = [key for key, value in said.items() if key.endswith(("_file", "_files")) and value]
    if named and FILE not in files:
        raise ImuError(
            f"{folder / CONFIG}: names files of its own ({named[0]}); save the tokenizer again (save_pretrained), or remove the key"
        )
    # A config may name other files, which some versions follow: what lies beside it is meant, whatever it names.
    given: dict[str, Any] = dict.fromkeys(named)
    if FILE in files:
        given["tokenizer_file"] = str(folder / FILE)
    transformers = libraries.transformers(str(folder / files[0]))
    kind = config if isinstance(config, transformers.PretrainedConfig) else transformers.PretrainedConfig()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            str(folder), config=kind, local_files_only=True, trust_remote_code=False, **given
        )
    except Exception as error:  # the library and its parsers raise anything for a file that they cannot read
        said_so = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ImuError(
            f"{folder / files[0]}: transformers cannot read this tokenizer ({said_so}); save it again beside the weights "
            "(tokenizer.save_pretrained)"
        ) from error


def _hash(folder: Path, names: list[str]) -> str:
    hashes = {name: layout.file_hash(folder / name) for name in names if name != CONFIG}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(
        "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items())).encode()
    ).hexdigest()


def _max_length(made: Any, model: nn.Module) -> int | None:
    """The fewest tokens of what tokenizer, config and position embeddings say."""
    found = [made.model_max_length if isinstance(made.model_max_length, int) else ENDLESS]
    config = getattr(model, "config", None)
    for key in ("max_position_embeddings", "n_positions"):
        with suppress(AttributeError):  # some configs raise it for a key that they map to another
            value = getattr(config, key, None)
            found += [value] if isinstance(value, int) and value > 0 else []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith("embeddings.position_embeddings"):
            # RoBERTa counts its positions from behind the id of padding.
            found.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    shortest = min(found)
    return None if shortest >= ENDLESS else int(shortest)


def _padding(made: Any, model: nn.Module) -> int:
    """The model's id of padding, else the tokenizer's; else one that no text has, which the model is then told."""
    config = getattr(model, "config", None)
    own = getattr(config, "pad_token_id", None)
    if isinstance(own, int) and own >= 0:
        return own
    found = next((one for one in (made.pad_token_id, made.eos_token_id) if isinstance(one, int)), len(made) - 1)
    tell_padding(model, found)
    return found


def tell_padding(model: nn.Module, padding: int) -> None:
    """Let a model that was saved without an id of padding know one: what classifies by the last token takes one text otherwise."""
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = padding
