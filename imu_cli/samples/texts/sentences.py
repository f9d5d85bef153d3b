"""Sentences whose words have a class each, as token classifiers are trained with: a row for every word.

In a file a sentence is a list of words (``tokens``) and a list of as many tags (``tags``, or ``ner_tags``). A row of the table that is
made of it is one word, so that a word is a sample: it has a label, a score, a margin and a target of its own; what a list says of a
sentence (``id``, ``group``, ``weight``) holds for each of its words.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imu_cli.files.reading import cut, json_value, strings_in
from imu_cli.samples import packing
from imu_cli.samples.column_names import ABOUT_COLUMNS, COMPLETION, FILE_COLUMNS, MESSAGES, NER_TAGS, TAGS, TEXT, TOKENS
from imu_cli.samples.dataset import UNKNOWN, WORDS, SampleSet
from imu_cli.samples.packing import Digests, Names, as_array, numbers
from imu_cli.samples.tables import Problems, Table
from imu_cli.samples.vectors import Vectors

IGNORED = "-100"
"""The tag of a word that has no class, as libraries write it: the word stands in its sentence and is no sample."""
REMEDY = "write both as lists, one tag for each word"


def holds_sentences(table: Table) -> bool:
    """Whether the rows of a list are sentences of words: with their tags, or with no text, and name no files."""
    others = {COMPLETION, MESSAGES, *FILE_COLUMNS} | (set() if {TAGS, NER_TAGS} & set(table.columns) else {TEXT})
    return TOKENS in table.columns and not others & set(table.columns)


def words_of(table: Table, problems: Problems) -> Table:
    """The table with a row for every word that has a class; a list that holds no sentences as it is.

    What is wrong with a sentence goes to ``problems``, which quote none of its words; its rows are left out.
    """
    if not holds_sentences(table):
        return table
    tags = next((name for name in (TAGS, NER_TAGS) if name in table.columns), None)
    if tags is not None and "label" in table.columns:
        problems.add(0, "has tags and a column label; a word's class is its tag: leave label out, or name it otherwise")
    # Without the sentence as one text, which is the same again; of ner_tags beside tags a note says that they are not read.
    table = replace(table, columns=tuple(name for name in table.columns if name != TEXT))
    own, words, labels, written = numbers([]), numbers([]), list[str](), list[str]()
    given = table.column(tags) if tags is not None else None
    for row, cell in enumerate(table.column(TOKENS)):
        found = _listed(cell)
        wrong = _wrong_words(found)
        said = None if given is None or wrong else _listed(given[row])
        if not wrong and given is not None:
            wrong = _wrong_tags(said, len(found or ()), tags or TAGS)
        # One way to write it: a sentence is known by these bytes, whatever kind of file it stands in.
        written.append("" if wrong else json.dumps(found, ensure_ascii=False))
        if wrong:
            problems.add(table.lines[row], wrong)
            continue
        assert found is not None
        named = [str(tag) for tag in said] if said is not None else [""] * len(found)
        for word, tag in enumerate(named):
            if tag != IGNORED:
                own.append(row)
                words.append(word)
                labels.append(tag)
    if len(table) and not words and not problems.found:
        problems.add(
            0, f"no word of it has a class: every tag is {IGNORED}; give the classes of the words that are samples"
        )
    table = replace(table, cells={**table.cells, TOKENS: packing.Texts.of(written)})
    made = replace(table.over(own), words=words)
    if tags is None:
        return made
    columns = tuple("label" if name == tags else name for name in table.columns)
    return replace(made, columns=columns, cells={**made.cells, "label": packing.Texts.of(labels)})


def _listed(cell: str) -> list[Any] | None:
    """A cell's list; None where it is none, or holds half a character (a lone surrogate), which no text does."""
    try:
        found = json_value(cell, "any")
        "".join(strings_in(found)).encode()
    except ValueError:
        return None
    return found if isinstance(found, list) else None


def _wrong_words(found: Sequence[Any] | None) -> str:
    if found is None:
        return f'tokens is no list of words; write ["…", "…"], as JSON has it ({REMEDY})'
    if not found:
        return "tokens holds no words; write them, or take the row out"
    bad = next((number for number, word in enumerate(found, 1) if not isinstance(word, str) or not word.strip()), None)
    if bad is not None:
        return f"word {bad} of its tokens is {'empty' if isinstance(found[bad - 1], str) else 'no text'}; write it, or take it and its tag out"
    return next((f"word {at} holds a NUL, which no text does" for at, word in enumerate(found, 1) if "\0" in word), "")


def _wrong_tags(found: Sequence[Any] | None, count: int, name: str) -> str:
    if found is None:
        return f"{name} is no list of classes; {REMEDY}"
    if len(found) != count:
        return f"has {count} words and {len(found)} tags; {REMEDY}"
    bad = next((at for at, tag in enumerate(found, 1) if isinstance(tag, bool) or not isinstance(tag, str | int)), None)
    return "" if bad is None else f"the tag of word {bad} is neither a class's name nor its id; write one of them"


# --- what holds them


@dataclass(frozen=True)
class Word:
    """A word: the sentence that it stands in, its number there from 0, and the sentence's number in its file."""

    sentence: tuple[str, ...]
    number: int
    of: int


def as_text(sample: Any) -> str:
    """A text, a pair, or a word in its sentence, for people to read: the word between marks."""
    if isinstance(sample, Word):
        return " ".join(f"▸{word}◂" if at == sample.number else word for at, word in enumerate(sample.sentence))
    return sample if isinstance(sample, str) else " ⏐ ".join(sample)


@dataclass(frozen=True, eq=False)
class Words:
    """Words of one file, by the sentences that they stand in.

    Attributes:
        shown: the file as the user named it, for messages.
        identity: the file, all links resolved.
        lines: physical line of each word's sentence.
        sentences: each word's sentence as JSON, written in one way, packed once.
        words: number of each word in its sentence.
    """

    shown: str
    identity: str
    lines: Sequence[int]
    sentences: packing.Texts
    words: NDArray[np.int64]
    root: None = None

    kind = WORDS

    @cached_property
    def of(self) -> NDArray[np.int64]:
        """The sentence of each word (n,), counted from 0 as the file has them."""
        return as_array(self.sentences.rows)

    @cached_property
    def digests(self) -> Digests:
        """sha256 by position."""
        return Digests.of(self.stored(at) for at in range(len(self.words)))

    def where(self, at: int) -> str:
        """The file, the line in it and the word's number, from 1, such as ``train.jsonl:17, word 3``."""
        return f"{self.shown}:{self.lines[at]}, word {self.words[at] + 1}"

    def location(self, at: int) -> str:
        """The same with links resolved."""
        return f"{self.identity}:{self.lines[at]}, word {self.words[at] + 1}"

    def size(self, at: int) -> int:
        """Bytes of the sentence, which a word's class depends on."""
        return int(self.sentences.lengths[self.sentences.rows[at]])

    def sentence(self, at: int) -> bytes:
        """The word's sentence as JSON."""
        return self.sentences.bytes_of(self.sentences.rows[at])

    def stored(self, at: int) -> bytes:
        """The sentence as JSON, and the word's number after a NUL."""
        return numbered(self.sentence(at), int(self.words[at]))

    def decode(self, at: int) -> Word:
        """The word in its sentence."""
        found = tuple(json.loads(self.sentences[at]))
        return Word(found, int(self.words[at]), int(self.of[at]))

    def arrays(self, _: NDArray[np.int64]) -> None:
        """Words are taken one by one."""
        return


def numbered(sentence: bytes, word: int) -> bytes:
    """What a word is known by: its sentence as JSON, and its number after a NUL."""
    return sentence + b"\0%d" % word


class WordNames(Names):
    """Names of words: the sentence's number and the word's in it, both from 0, as a list's column ``index`` has them: ``17:3``."""

    def __init__(self, rows: Sequence[int], store: Words) -> None:
        super().__init__(rows)
        self.store = store

    def of_row(self, row: int) -> str:
        """The two numbers."""
        return f"{self.store.of[row]}:{self.store.words[row]}"

    def over(self, rows: Sequence[int]) -> "WordNames":
        """Those of these rows."""
        return WordNames(rows, self.store)


def samples_of(table: Table, identity: str, rows: Sequence[int] | None = None) -> SampleSet:
    """The words of a table (``words_of``), or some of them, without labels."""
    assert table.words is not None
    store = Words(table.name, identity, table.lines, table.cells[TOKENS], as_array(table.words))
    columns = {name: table.cells[name] for name in ABOUT_COLUMNS if name in table.cells}
    every = range(len(table))
    samples = SampleSet(
        table.name, WordNames(every, store), numbers([UNKNOWN]) * len(table), None, store, every, columns=columns
    )
    return samples if rows is None else samples.subset(rows)


# --- rows by sentences


@dataclass(frozen=True, eq=False)
class Places:
    """Where each row's word stands, of words in a file or of their features in one.

    Attributes:
        of: the number of its sentence (n,), from 0 as the file has them.
        words: its number in the sentence (n,), from 0.
    """

    of: NDArray[np.int64]
    words: NDArray[np.int64]

    @cached_property
    def count(self) -> int:
        """Sentences, those without a row of their own before the last one included."""
        return int(self.of.max(initial=-1)) + 1

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows by sentences, and where those of each begin (count + 1,)."""
        order = np.argsort(self.of, kind="stable")
        return order, np.searchsorted(self.of[order], np.arange(self.count + 1))

    def rows(self, sentence: int, word: int | None = None) -> NDArray[np.int64]:
        """The rows of a sentence's words, or of one of them, in their order; none where it has no class."""
        order, starts = self._order
        found = order[starts[sentence] : starts[sentence + 1]]
        return found if word is None else found[self.words[found] == word]


def places(samples: SampleSet) -> Places | None:
    """Where the word of each row stands; None where samples are no words."""
    at, store = as_array(samples.positions), samples.store
    if isinstance(store, Words):
        return Places(store.of[at], store.words[at])
    if isinstance(store, Vectors) and store.words is not None:
        return Places(store.words[at, 0], store.words[at, 1])
    return None


def sentences(samples: SampleSet) -> NDArray[np.int64] | None:
    """The number of each row's sentence (n,); None where samples stand for themselves."""
    found = places(samples)
    return None if found is None else found.of


def clusters(samples: SampleSet) -> NDArray[np.int64] | None:
    """A number for each row that is the same for words of one sentence, in whatever file it stands (n,); None where samples are no words.

    Made of the sentence's words. Files of features do not hold them: there it is made of the digest of the first of them that the
    file has, which is that of the same sentence elsewhere unless its first word has no row here; without digests, of the file (links
    resolved) and the sentence's number in it.
    """
    of, store = sentences(samples), samples.store
    if of is None:
        return None
    found, rows, place = np.unique(of, return_index=True, return_inverse=True)
    if isinstance(store, Words):
        at = as_array(samples.positions)[rows].tolist()
        digests = [hashlib.sha256(numbered(store.sentence(each), 0)).digest() for each in at]
    else:
        assert isinstance(store, Vectors)
        digests = _first_digests(store, found)
    number = np.array([int.from_bytes(digest[:8], "big", signed=True) for digest in digests], np.int64)
    made: NDArray[np.int64] = number[place]
    return made


def _first_digests(store: Vectors, wanted: NDArray[np.int64]) -> list[bytes]:
    """A digest of each of these sentences: that of its first word in the file, where the file has digests."""
    assert store.words is not None
    of, words = store.words.T
    order = np.lexsort((words, of))
    firsts = order[np.searchsorted(of[order], wanted)].tolist()
    return [
        store.digests.raw[at].tobytes()
        if store.digests.known[at]
        else hashlib.sha256(f"{store.path}\0{sentence}".encode()).digest()
        for sentence, at in zip(wanted.tolist(), firsts, strict=True)
    ]


def firsts(samples: SampleSet) -> Sequence[int]:
    """The first row of each sentence; every row where samples stand for themselves."""
    of = sentences(samples)
    return range(len(samples)) if of is None else numbers(np.sort(np.unique(of, return_index=True)[1]))


def with_index(table: Table, data: SampleSet | None, problems: Problems) -> Table:
    """A list whose column ``index`` names sentences of ``data`` (``17``), or words of them (``17:3``), with a row for every word.

    The cells then count words, as ``data`` has them. Lists of other data, and of other columns, stay as they are.
    """
    stand = None if data is None else places(data)
    if data is None or stand is None or "index" not in table.columns or table.words is not None:
        return table
    own, cells = numbers([]), list[str]()
    for row, cell in enumerate(table.column("index")):
        found = re.fullmatch(r"([0-9]{1,18})(?::([0-9]{1,18}))?", cell.strip())
        if found is None:
            problems.add(
                table.lines[row],
                f"index '{cut(cell)}' is neither a sentence's number nor a word's in it, such as 17 or 17:3 (both count from 0)",
            )
            continue
        sentence = int(found[1])
        if sentence >= stand.count:
            problems.add(
                table.lines[row],
                f"index {sentence} is out of range; {data.source} has the sentences 0 to {stand.count - 1}",
            )
            continue
        at = stand.rows(sentence, None if found[2] is None else int(found[2]))
        if len(at) == 0:
            problems.add(table.lines[row], f"index {cell.strip()}: {data.source} has no word with a class there")
        own.extend([row] * len(at))
        cells += map(str, at.tolist())
    made = table.over(own)
    return replace(made, cells={**made.cells, "index": packing.Texts.of(cells)})
