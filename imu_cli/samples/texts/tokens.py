"""The input step of texts: token ids by the model's own tokenizer, in batches of texts of about one length."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.files.reading import shown
from imu_cli.models.batches import Batch, each, tensors
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.inputs import InputStep, Placed
from imu_cli.samples.texts.tokenizers import Tokenizer

WINDOW = 4096
"""Texts that are tokenised at a time, and sorted by length among themselves."""
LONG = 512
"""Tokens of a text that a batch's size is counted in, where the model takes more."""
IDS, MASK, TYPES = "input_ids", "attention_mask", "token_type_ids"
KEYS = {"tokenizer", "sha256", "max_length", "padding_side", "truncate"}
"""What ``Tokens.described`` says."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """One text's token ids (t,), and which of a pair's texts each belongs to, where the tokenizer says that."""

    ids: Ids
    types: Ids | None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Tokens(InputStep):
    """Texts to token ids as the model's tokenizer makes them, padded on its side to the longest of a batch.

    Attributes:
        tokenizer: of the model's folder.
        names: arguments of the model that it is given, ``input_ids`` first; empty for a model that takes ids alone.
        vocabulary: ids that the model knows, None where it is not known.
        truncate: cut a text that is longer than the model takes.
    """

    tokenizer: Tokenizer
    names: tuple[str, ...]
    vocabulary: int | None = None
    truncate: bool = False

    @property
    def window(self) -> int:
        """Rows that are sorted by length among themselves."""
        return WINDOW

    @property
    def padding(self) -> int:
        """The id that the tokenizer pads with."""
        return self.tokenizer.padding

    @property
    def left(self) -> bool:
        """Whether padding goes before a text."""
        return bool(self.tokenizer.made.padding_side == "left")

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key."""
        return {
            "tokenizer": self.tokenizer.name,
            "sha256": self.tokenizer.sha256,
            "max_length": self.tokenizer.max_length,
            "padding_side": "left" if self.left else "right",
            "truncate": self.truncate,
        }

    def full(self, batch: Batch) -> float:
        """Tokens of a long text for one of this batch's."""
        return self._long / max(1, tensors(batch)[0].shape[1])

    @property
    def _long(self) -> int:
        return min(self.tokenizer.max_length or LONG, LONG)

    def together(self, samples: SampleSet, rows: Sequence[int]) -> Batch:
        """These texts as one batch, padded to the longest."""
        return self._padded(self.encode(samples, rows))

    def of(self, texts: Sequence[str]) -> Batch:
        """Texts that are no samples as one batch."""
        return self._padded(self._tokenised(texts))

    def batches(
        self,
        samples: SampleSet,
        size: int,
        rows: Sequence[int] | None = None,
        *,
        beside: bool = False,
        window: int | None = None,
    ) -> Iterator[Placed]:
        """Texts of about one length together, the longest first: as many as have the tokens of ``size`` long ones.

        Raises:
            InvalidRowsError: texts that are longer than the model takes, or that no token is made of; all of the set.
        """
        wanted = range(len(samples)) if rows is None else rows
        step = window or WINDOW
        parts = [range(start, min(start + step, len(wanted))) for start in range(0, len(wanted), step)]
        for part, encoded in zip(
            parts, self._ahead(samples, [wanted[at.start : at.stop] for at in parts]), strict=True
        ):
            for chosen in self._by_length(encoded, size):
                yield [part[at] for at in chosen], self._padded([encoded[at] for at in chosen])

    def _by_length(self, encoded: Sequence[Encoded], size: int) -> Iterator[list[int]]:
        """Places of texts of about one length, the longest first: as many as have the tokens of ``size`` long ones."""
        order = sorted(range(len(encoded)), key=lambda at: -len(encoded[at]))  # stable: equal ones stay in order
        start = 0
        while start < len(order):
            most = max(1, size * self._long // len(encoded[order[start]]))
            yield order[start : start + most]
            start += most

    def alone(self, batch: Batch) -> tuple[int, Batch] | None:
        """The shortest text of a batch as it would be without the others; None where all are of one length."""
        own = self._own(batch)
        row = int(own.sum(dim=1).argmin())
        at = own[row].nonzero()[:, 0]
        if len(at) == own.shape[1]:
            return None
        return row, each(batch, lambda tensor: tensor[row : row + 1, at])

    def _own(self, batch: Batch) -> Tensor:
        """Which tokens (k, t) are a text's own, and no padding."""
        if isinstance(batch, dict) and MASK in batch:
            return batch[MASK].bool()
        return tensors(batch)[0] != self.tokenizer.padding

    def scale(self, batch: Batch) -> Batch:
        """Token ids are what the model takes."""
        return batch

    # --- texts to ids

    def _ahead(self, samples: SampleSet, parts: Sequence[Sequence[int]]) -> Iterator[list[Encoded]]:
        """Windows of texts, the next one tokenised while the model runs on this one; after an error only more of them are sought.

        Raises:
            InvalidRowsError: all texts that cannot be had.
        """
        pool, problems = ThreadPoolExecutor(1), list[str]()
        try:
            pending = [pool.submit(self.encode, samples, part) for part in parts[:1]]
            for number in range(len(parts)):
                made = pending.pop()
                if number + 1 < len(parts):
                    pending.append(pool.submit(self.encode, samples, parts[number + 1]))
                try:
                    encoded = made.result()
                except InvalidRowsError as error:
                    problems += error.problems
                    continue
                if not problems:
                    yield encoded
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if problems:
            raise InvalidRowsError(list(dict.fromkeys(problems)))

    def encode(self, samples: SampleSet, rows: Sequence[int]) -> list[Encoded]:
        """The token ids of some texts, in the order given.

        Raises:
            InvalidRowsError: every text of them that cannot be had, is too long, or has no tokens.
        """
        problems, texts = list[str](), list[Any]()
        for row in rows:
            try:
                texts.append(samples.read(row))
            except ImuError as error:
                problems.append(str(error))
        if problems:
            raise InvalidRowsError(list(dict.fromkeys(problems)))
        made = self._tokenised(texts) if texts else []
        problems = [text for row, one in zip(rows, made, strict=True) for text in self._problems(samples, row, one)]
        if problems:
            raise InvalidRowsError(list(dict.fromkeys(problems)))
        return made

    def _tokenised(self, texts: Sequence[Any]) -> list[Encoded]:
        """Texts, or pairs of them, by the tokenizer alone: no padding, and cut only where that was asked for."""
        pairs = [text for text in texts if not isinstance(text, str)]
        if pairs and len(pairs) < len(texts):  # a list has one or the other; a set of both is taken apart
            made = {at: self._tokenised([text])[0] for at, text in enumerate(texts)}
            return [made[at] for at in range(len(texts))]
        given = [list(part) for part in zip(*pairs, strict=True)] if pairs else [list(texts)]
        cut = {"truncation": True, "max_length": self.tokenizer.max_length} if self.truncate else {"truncation": False}
        found = self.tokenizer.made(
            *given, padding=False, return_attention_mask=False, return_token_type_ids=TYPES in self.names, verbose=False,
            **(cut if self.tokenizer.max_length else {"truncation": False}),
        )  # fmt: skip
        types = found.get(TYPES) if TYPES in self.names else None
        return [
            Encoded(np.asarray(ids, np.int64), None if types is None else np.asarray(types[at], np.int64))
            for at, ids in enumerate(found[IDS])
        ]

    def _where(self, samples: SampleSet, row: int) -> str:
        """Where a text stands that cannot be had."""
        return samples.where(row)

    def _problems(self, samples: SampleSet, row: int, made: Encoded) -> list[str]:
        most, where = self.tokenizer.max_length, self._where(samples, row)
        if not len(made):
            return [f"{where}: no token is made of this text; leave it out"]
        if most is not None and len(made) > most:
            return [
                f"{where}: is {len(made):,} tokens, and the model takes {most:,}; shorten or split the text, or let such texts be "
                "cut with --truncate"
            ]
        if self.vocabulary is not None and int(made.ids.max()) >= self.vocabulary:
            return [
                f"{where}: has the token {int(made.ids.max()):,}, and the model knows {self.vocabulary:,}; the tokenizer is another "
                "model's: put its own beside the weights"
            ]
        return []

    # --- ids to a batch

    def _padded(self, encoded: Sequence[Encoded]) -> Batch:
        """(n, t) ids and what else the model takes, padded to the longest text."""
        length = max(len(one) for one in encoded)
        ids = np.full((len(encoded), length), self.tokenizer.padding, np.int64)
        mask, types = np.zeros_like(ids), np.full_like(ids, self.tokenizer.made.pad_token_type_id or 0)
        for row, one in enumerate(encoded):
            at = slice(length - len(one), None) if self.left else slice(len(one))
            ids[row, at], mask[row, at] = one.ids, 1
            if one.types is not None:
                types[row, at] = one.types
        made = {name: torch.from_numpy(value) for name, value in ((IDS, ids), (MASK, mask), (TYPES, types))}
        return {name: made[name] for name in self.names} if self.names else made[IDS]


def of(tokenizer: Tokenizer, model: nn.Module, truncate: bool) -> Tokens:
    """The step for a model: what it is given by name is what its ``forward`` takes, and what its tokenizer makes."""
    taken = inspect.signature(model.forward).parameters
    names = tuple(name for name in (IDS, MASK) if name in taken)
    if IDS not in names:
        names = ()
    elif TYPES in taken and TYPES in tokenizer.made.model_input_names:
        names += (TYPES,)
    return Tokens(tokenizer, names, _vocabulary(model), truncate)


def _vocabulary(model: nn.Module) -> int | None:
    """How many ids the model's first table of embeddings has."""
    ask = getattr(model, "get_input_embeddings", None)
    try:
        table = ask() if callable(ask) else None
    except NotImplementedError:
        table = None
    if table is None:
        table = next((part for part in model.modules() if isinstance(part, nn.Embedding)), None)
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def is_described(value: Any) -> bool:
    """Whether a record's preprocessing is that of texts."""
    return isinstance(value, Mapping) and set(value) >= KEYS


def refuse_other(value: Mapping[str, Any], tokenizer: Tokenizer, source: str) -> None:
    """Refuse a tokenizer that is not the one a record was made with.

    Raises:
        ImuError: another one lies beside the model now.
    """
    if value["sha256"] != tokenizer.sha256:
        raise ImuError(
            f"{source}: was made with another tokenizer ({shown(value['tokenizer'])}, SHA-256 {str(value['sha256'])[:12]}…, here "
            f"{tokenizer.sha256[:12]}…); put that one's files beside the model"
        )
