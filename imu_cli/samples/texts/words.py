"""The input step of words: sentences by the model's own tokenizer, each once in a batch, and the token that stands for each word."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imu_cli.errors import ImuError, InvalidRowsError, RefusedError
from imu_cli.models.batches import ALONE, WORDS, Batch
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.inputs import Placed
from imu_cli.samples.texts import sentences, tokens
from imu_cli.samples.texts.sentences import Word
from imu_cli.samples.texts.tokenizers import Tokenizer
from imu_cli.samples.texts.tokens import IDS, TYPES, WINDOW, Encoded, Tokens


@dataclass(frozen=True)
class Sentence:
    """A sentence's token ids, and the first token of each of its words (w,); −1 where a word has none."""

    encoded: Encoded
    starts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class WordTokens(Tokens):
    """Words to the token ids of their sentences: a word's class is read at its first token, as token classifiers are trained.

    A batch holds each sentence once, however many of its words are in it.
    """

    def together(self, samples: SampleSet, rows: Sequence[int]) -> Batch:
        """These words as one batch, their sentences padded to the longest."""
        return self._joined(*self._sentences(samples, rows))

    def of(self, texts: Sequence[str]) -> Batch:
        """Every word of texts that are no samples, parted at spaces."""
        made = self._split([text.split() for text in texts])
        at = [(number, word) for number, one in enumerate(made) for word, start in enumerate(one.starts) if start >= 0]
        of, words = np.array(at, np.int64).reshape(-1, 2).T
        return self._joined(made, of, words)

    def batches(
        self,
        samples: SampleSet,
        size: int,
        rows: Sequence[int] | None = None,
        *,
        beside: bool = False,
        window: int | None = None,
    ) -> Iterator[Placed]:
        """Words of sentences of about one length together, the longest first: as many sentences as ``size`` long texts have tokens.

        Raises:
            InvalidRowsError: sentences that are longer than the model takes, or words that no token is made of; all of the set.
        """
        wanted = range(len(samples)) if rows is None else rows
        step, problems = window or WINDOW, list[str]()
        for start in range(0, len(wanted), step):
            part = range(start, min(start + step, len(wanted)))
            try:
                made, of, numbers = self._sentences(samples, [wanted[at] for at in part])
            except InvalidRowsError as error:
                problems += error.problems
                continue
            if not problems:
                yield from self._portions(part, made, of, numbers, size)
        if problems:
            raise InvalidRowsError(list(dict.fromkeys(problems)))

    def _portions(
        self, part: range, made: Sequence[Sentence], of: NDArray[np.int64], numbers: NDArray[np.int64], size: int
    ) -> Iterator[Placed]:
        words: list[list[int]] = [[] for _ in made]
        for row, sentence in enumerate(of.tolist()):
            words[sentence].append(row)
        for chosen in self._by_length([one.encoded for one in made], size):
            rows = [row for sentence in chosen for row in words[sentence]]
            place = {sentence: at for at, sentence in enumerate(chosen)}
            batch = self._joined(
                [made[at] for at in chosen], np.array([place[at] for at in of[rows].tolist()], np.int64), numbers[rows]
            )
            yield [part[row] for row in rows], batch

    def sentences(self, samples: SampleSet) -> tuple[Sequence[int], NDArray[np.int64], NDArray[np.int64]]:
        """The first row of each sentence, the place of each word's sentence among those (n,), and its token (n,)."""
        numbers = sentences.sentences(samples)
        assert numbers is not None, "the samples are words"
        alone = sentences.firsts(samples)
        place = {int(numbers[row]): at for at, row in enumerate(alone)}
        of = np.array([place[number] for number in numbers.tolist()], np.int64)
        at = np.zeros(len(samples), np.int64)
        for start in range(0, len(samples), WINDOW):
            rows = range(start, min(start + WINDOW, len(samples)))
            made, which, words = self._sentences(samples, rows)
            at[rows.start : rows.stop] = [made[one].starts[word] for one, word in zip(which, words, strict=True)]
        return alone, of, at

    def alone(self, batch: Batch) -> tuple[int, Batch] | None:
        """The first word of the batch's shortest sentence as it would be without the others; None where all are of one length."""
        assert isinstance(batch, dict)
        own = self._own(batch)
        words = batch[WORDS]
        row = int(own.sum(dim=1)[words[:, 0]].argmin())
        sentence, token = words[row].tolist()
        at = own[sentence].nonzero()[:, 0]
        if len(at) == own.shape[1]:
            return None
        made = {name: tensor[sentence : sentence + 1, at] for name, tensor in batch.items() if name != WORDS}
        place = int((at == token).nonzero()[0])
        return row, {**made, WORDS: torch.tensor([[0, place]], device=words.device)}

    def _where(self, samples: SampleSet, row: int) -> str:
        """The sentence that a word stands in: the problem is all its words'."""
        whole = samples.where(row)
        return whole.rpartition(", word ")[0] or whole

    # --- sentences to ids

    def _sentences(
        self, samples: SampleSet, rows: Sequence[int]
    ) -> tuple[list[Sentence], NDArray[np.int64], NDArray[np.int64]]:
        """The sentences of some words, each once, the place of each word's among them (k,), and its number there (k,).

        Raises:
            InvalidRowsError: all that cannot be had.
        """
        words: list[Word] = [samples.read(row) for row in rows]
        place: dict[int, int] = {}
        of = np.array([place.setdefault(word.of, len(place)) for word in words], np.int64)
        first = [int(at) for at in np.unique(of, return_index=True)[1]] if len(of) else []
        made = self._split([words[at].sentence for at in first]) if first else []
        numbers = np.array([word.number for word in words], np.int64)
        problems = [
            text for at, one in zip(first, made, strict=True) for text in self._problems(samples, rows[at], one.encoded)
        ]
        whole = not problems  # else a word may have no token for that
        for row, sentence, number in zip(rows, of.tolist(), numbers.tolist(), strict=True):
            if whole and made[sentence].starts[number] < 0:
                cut = self.truncate and number > int(made[sentence].starts.argmax())
                why = "is beyond what the model takes" if cut else "is made into no token"
                problems.append(
                    f"{samples.where(row)}: {why}; "
                    + (
                        "split the sentence, or write -100 as its tag"
                        if cut
                        else "take it and its tag out, or write -100 as its tag"
                    )
                )
        if problems:
            raise InvalidRowsError(list(dict.fromkeys(problems)))
        return made, of, numbers

    def _split(self, given: Sequence[Sequence[str]]) -> list[Sentence]:
        """Sentences by the tokenizer, which is told where words end."""
        if not self.tokenizer.made.is_fast:
            raise RefusedError(
                f"{self.tokenizer.source}: this tokenizer ({self.tokenizer.name}) does not say which word a token is of; save a "
                "tokenizer.json beside the weights"
            )
        cut: dict[str, Any] = {"truncation": False}
        if self.truncate and self.tokenizer.max_length:
            cut = {"truncation": True, "max_length": self.tokenizer.max_length}
        try:
            found = self.tokenizer.made(
                [list(words) for words in given], is_split_into_words=True, padding=False, return_attention_mask=False,
                return_token_type_ids=TYPES in self.names, verbose=False, **cut,
            )  # fmt: skip
        except (AssertionError, ValueError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ImuError(
                f"{self.tokenizer.source}: this tokenizer takes no sentences of words ({said}); save the one that the model was "
                "trained with beside the weights"
            ) from error
        types = found.get(TYPES) if TYPES in self.names else None
        made = []
        for at, words in enumerate(given):
            starts = np.full(len(words), -1, np.int64)
            for token, word in enumerate(found.word_ids(at)):
                if word is not None and starts[word] < 0:
                    starts[word] = token
            ids = np.asarray(found[IDS][at], np.int64)
            made.append(Sentence(Encoded(ids, None if types is None else np.asarray(types[at], np.int64)), starts))
        return made

    def _joined(self, made: Sequence[Sentence], of: NDArray[np.int64], numbers: NDArray[np.int64]) -> Batch:
        """Sentences as one batch, and the sentence and the token of each word."""
        batch = self._padded([one.encoded for one in made])
        longest = max(len(one.encoded) for one in made)
        at = [
            int(made[one].starts[word]) + (longest - len(made[one].encoded) if self.left else 0)
            for one, word in zip(of.tolist(), numbers.tolist(), strict=True)
        ]
        rows = torch.tensor(np.stack([of, np.array(at, np.int64)], axis=1))
        return {**batch, WORDS: rows} if isinstance(batch, dict) else {ALONE: batch, WORDS: rows}


def of(tokenizer: Tokenizer, model: nn.Module, truncate: bool) -> WordTokens:
    """The step for a token classifier, as ``tokens.of`` makes it for a classifier of texts."""
    made = tokens.of(tokenizer, model, truncate)
    return WordTokens(made.tokenizer, made.names, made.vocabulary, made.truncate)
