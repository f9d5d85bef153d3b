"""The input step of language models: token ids of a prompt and its completion, and how many of them are the completion's."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.files.reading import cut
from imu_cli.models.batches import Batch
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.texts import tokens
from imu_cli.samples.texts.records import Record, as_record
from imu_cli.samples.texts.tokenizers import Tokenizer
from imu_cli.samples.texts.tokens import IDS, MASK, Encoded, Ids, Tokens

TEMPLATE = "Question: {prompt}\nAnswer: {completion}"
"""How a prompt and its completion become one text, where nothing else is said."""
FIELDS = ("prompt", "completion")


class _NotTakenError(ImuError):
    """A chat template that does not take a conversation; the message has no place in it."""


@dataclass(frozen=True)
class Completed(Encoded):
    """One record's token ids (t,), of which the last ``answer`` are the completion, the end token included."""

    answer: int = 0


@dataclass(frozen=True, eq=False)
class Completions(Tokens):
    """Records to token ids, padded on the right; the rows of a language model's head are the completion's tokens.

    Attributes:
        template: how prompt and completion become one text; conversations have the tokenizer's own.
        end: the id that ends a completion; None where nothing does.
    """

    template: str = TEMPLATE
    end: int | None = 0

    @property
    def left(self) -> bool:
        """Padding goes behind a record, which a causal model does not see."""
        return False

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key."""
        return {**super().described(), "template": self.template, "end": self.end}

    def encoded(self, samples: SampleSet, rows: Sequence[int]) -> list[Completed]:
        """Token ids of some records, in the order given.

        Raises:
            InvalidRowsError: every record of them that cannot be had, is too long, or has no completion left.
        """
        return self.encode(samples, rows)  # type: ignore[return-value]

    def encode(self, samples: SampleSet, rows: Sequence[int]) -> list[Encoded]:
        """Token ids of some records, in the order given.

        Raises:
            ImuError: there is no chat template, and records are conversations.
            InvalidRowsError: every record of them that cannot be had, that the template does not take, or that is too long.
        """
        try:
            return super().encode(samples, rows)
        except _NotTakenError:
            problems = list[str]()
            for row in rows:
                try:
                    super().encode(samples, [row])
                except _NotTakenError as error:
                    problems.append(f"{samples.where(row)}: {error}")
                except InvalidRowsError as error:
                    problems += error.problems
            raise InvalidRowsError(problems) from None

    def _tokenised(self, texts: Sequence[Any]) -> list[Encoded]:
        return [self._completed(as_record(text)) for text in texts]

    def _completed(self, record: Record) -> Completed:
        ids, start = self._conversation(record) if record.messages else self._filled(record)
        if self.truncate and self.tokenizer.max_length is not None:
            ids = ids[: self.tokenizer.max_length]
        # The first token of a text has nothing before it that could predict it.
        answer = len(ids) - max(start, 1)
        return Completed(np.asarray(ids, np.int64), None, max(answer, 0))

    def _filled(self, record: Record) -> tuple[list[int], int]:
        """Ids of the filled template, and where those of the completion start: with the token that holds its first character."""
        before = "" if not record.prompt and self.template == TEMPLATE else self.prompt(record)
        text = before + record.completion
        made = self.tokenizer.made(
            text, padding=False, truncation=False, verbose=False, return_offsets_mapping=self._fast
        )
        ids = list(made[IDS])
        if self._fast:
            spans = made["offset_mapping"]
            start = next((at for at, (_, to) in enumerate(spans) if to > len(before)), len(ids))
        else:
            own = self.tokenizer.made(before, padding=False, truncation=False, verbose=False)[IDS]
            start = next((at for at, (one, other) in enumerate(zip(own, ids, strict=False)) if one != other), len(own))
        while len(ids) > start and ids[-1] in (self._eos, self.tokenizer.made.sep_token_id):
            ids.pop()
        return ids if self.end is None else [*ids, self.end], start

    def _conversation(self, record: Record) -> tuple[list[int], int]:
        """Ids of a conversation by the tokenizer's own template, and where those of the last turn start."""
        turns = [dict(turn) for turn in record.messages]
        before = self._chat(turns[:-1], True)
        whole = self._chat(turns, False)
        start = next(
            (at for at, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), len(before)
        )
        # Templates write a line end behind the end of a turn, which no model is asked for.
        last = next((at for at in range(len(whole) - 1, start, -1) if whole[at] == self._eos), None)
        if last is None:
            return whole, start
        return whole[: last if self.end is None else last + 1], start

    def _chat(self, turns: list[dict[str, str]], ask: bool) -> list[int]:
        if not getattr(self.tokenizer.made, "chat_template", None):
            raise ImuError(
                f"{self.tokenizer.source}: has no chat template, which makes one text of a conversation (messages); save the tokenizer with "
                "the one that the model was trained with (chat_template.jinja), or write records as prompt and completion"
            )
        try:
            # As a list of one: alone, a conversation without turns is none to the library.
            made = self.tokenizer.made.apply_chat_template(
                [turns], add_generation_prompt=ask, tokenize=True, return_dict=True
            )
        except Exception as error:  # a template is a program of the model's authors, and raises anything
            if not turns:  # many look at the first turn: then nothing stands before it
                return []
            said = cut((str(error).strip().splitlines() or [type(error).__name__])[0])
            raise _NotTakenError(
                f"the tokenizer's chat template does not take its turns ({said}); write them as it has them"
            ) from error
        found: list[int] = list(made[IDS][0])
        return found

    @property
    def _eos(self) -> int | None:
        """The tokenizer's end token, whether or not a completion is to have it."""
        return self.tokenizer.made.eos_token_id if self.end is None else self.end

    @property
    def _fast(self) -> bool:
        return bool(self.tokenizer.made.is_fast)

    def prompt(self, record: Record) -> str:
        """What stands before the completion: what a model is asked with."""
        before, _, _ = self.template.rpartition("{completion}")
        return before.format(prompt=record.prompt)  # a brace of the text itself stands twice in it

    def asked(self, record: Record) -> Ids:
        """Token ids (t,) that a completion of this record follows, for generation."""
        if record.messages:
            return np.asarray(self._chat([dict(turn) for turn in record.messages[:-1]], True), np.int64)
        made = self._completed(record)
        return made.ids[: len(made) - made.answer]

    def pieces(self, made: Completed) -> list[str]:
        """The tokens of a completion, each as the text that it adds to those before it."""
        ids = [int(one) for one in made.ids[len(made) - made.answer :]]
        texts = [str(self.tokenizer.made.decode(ids[:to])) for to in range(len(ids) + 1)]
        return [text[len(before) :] if text.startswith(before) else text[-1:] for before, text in pairwise(texts)]

    def _problems(self, samples: SampleSet, row: int, made: Encoded) -> list[str]:
        found = super()._problems(samples, row, made)
        if not found and isinstance(made, Completed) and not self._says(made):
            talk = as_record(samples.read(row)).messages and not self.truncate
            why = (
                "the tokenizer's chat template writes nothing of its last turn; leave it out"
                if talk
                else "no token of its completion is left; shorten the prompt, or leave the record out"
            )
            return [f"{samples.where(row)}: {why}"]
        return found

    def _says(self, made: Completed) -> bool:
        """Whether anything of a completion is left beside the token that ends it."""
        return any(one != self.end for one in made.ids[len(made) - made.answer :].tolist())

    def _padded(self, encoded: Sequence[Encoded]) -> Batch:
        length = max(len(one) for one in encoded)
        ids = np.full((len(encoded), length), self.tokenizer.padding, np.int64)
        mask = np.zeros_like(ids)
        for row, one in enumerate(encoded):
            ids[row, : len(one)], mask[row, : len(one)] = one.ids, 1
        made = {IDS: torch.from_numpy(ids), MASK: torch.from_numpy(mask)}
        return {name: made[name] for name in self.names} if self.names else made[IDS]


def of(
    tokenizer: Tokenizer,
    model: nn.Module,
    template: str | None,
    truncate: bool,
    end_token: bool | None = None,
    known: Mapping[str, Any] | None = None,
) -> Completions:
    """The step for a language model.

    Args:
        tokenizer: of the model's folder.
        model: what takes its ids.
        template: ``--template``; else the record's, else ``TEMPLATE``.
        truncate: cut what is longer than the model takes.
        end_token: whether an end token closes a completion; None: as ``known`` says, else it does.
        known: what a record says of the step.

    Raises:
        ImuError: the template has no place for the prompt or the completion, or something after it; the tokenizer has no end token;
            ``known`` says otherwise of it.
    """
    plain = tokens.of(tokenizer, model, truncate)
    chosen = template or (str(known["template"]) if known and "template" in known else TEMPLATE)
    chosen = chosen.replace("\\n", "\n")  # as a shell hands it over from single quotes
    refuse_template(chosen)
    end, recorded = (
        tokenizer.made.eos_token_id,
        None if known is None or "end" not in known else known["end"] is not None,
    )
    if None not in (end_token, recorded) and end_token != recorded:
        given, was = ("--end-token", "without") if end_token else ("--no-end-token", "with")
        raise ImuError(f"{given}: the run that is followed took completions {was} an end token; leave it out")
    if (recorded if end_token is None else end_token) is False:
        end = None
    elif end is None:
        raise ImuError(
            f"{tokenizer.source}: names no end token (eos_token), which ends every completion; set it in tokenizer_config.json, or add "
            "--no-end-token where the model was trained on texts without one"
        )
    return Completions(plain.tokenizer, plain.names, plain.vocabulary, truncate, chosen, end)


def refuse_template(template: str) -> None:
    """Refuse a template that does not end with the completion, or has other fields.

    Raises:
        ImuError: with what it lacks.
    """
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ImuError(
            f"--template {cut(template)!r}: its braces do not pair up ({error}); write {TEMPLATE!r}, and a brace of the text itself twice"
        ) from error
    fields = [name for _, name, _, _ in parts]
    wrong = [f"{name}{'!' + turned if turned else ''}{':' + form if form else ''}" for _, name, form, turned in parts]
    wrong = [name for name in wrong if name not in FIELDS]
    if wrong:
        raise ImuError(
            f"--template {cut(template)!r}: has the field {{{wrong[0]}}}; a record has {{prompt}} and {{completion}} (a brace of the text "
            "itself is written twice)"
        )
    if fields.count("completion") != 1 or not template.endswith("{completion}"):
        raise ImuError(
            f"--template {cut(template)!r}: has to end with {{completion}}, which comes once; write {TEMPLATE!r}"
        )
    if "prompt" not in fields:
        raise ImuError(
            f"--template {cut(template)!r}: has no {{prompt}}, so that every record would be asked alike; write {TEMPLATE!r}"
        )
