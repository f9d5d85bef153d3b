"""Compact sequences answer like the lists that they stand for, and take the bytes that they promise."""

import sys
import tracemalloc
from array import array
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imu_cli.samples import packing
from imu_cli.samples.packing import Digests, RowNames, Texts, numbers, take

TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
UNDECODABLE = "c\udcff.png"


@given(st.lists(TEXT | st.just(UNDECODABLE), min_size=1), st.data())
def test_a_sequence_of_any_kind_gives_rows_like_a_list(texts: list[str], data: st.DataObject) -> None:
    """Rows taken once, and rows of those, are what a list gives, by number, from the end, sliced and in turn."""
    n = len(texts)
    kinds: list[tuple[Sequence[object], list[object]]] = [
        (Texts.of(texts), list(texts)),
        (RowNames(range(n)), [str(row) for row in range(n)]),
        (range(n), list(range(n))),
        (numbers(range(n)), list(range(n))),
        (texts, list(texts)),
    ]
    rows = data.draw(st.lists(st.integers(0, n - 1)) | st.just(range(n)) | st.just(range(n - 1, -1, -1)))
    again = data.draw(st.lists(st.integers(0, len(rows) - 1))) if len(rows) else []
    for made, plain in kinds:
        taken, wanted = take(made, rows), [plain[row] for row in rows]
        assert list(taken) == wanted
        assert list(take(taken, again)) == [wanted[row] for row in again]
        assert [made[-1], len(made), list(made[1:])] == [plain[-1], n, plain[1:]]


def test_single_numbers_are_pythons_own() -> None:
    """What an array gives goes into JSON and into messages, which numpy's numbers do not."""
    for made in (numbers(np.arange(3)), take(range(9), [1, 2]), take(numbers([5, 6]), [1])):
        assert {type(number) for number in made} == {int}


@pytest.mark.parametrize("values", [range(2, 40, 3), range(9, -1, -1), [4, 4, 0], array("q", [1, 2]), []])
def test_numbers_for_arithmetic_are_the_same(values: Sequence[int]) -> None:
    """Ranges, lists and arrays become int64."""
    made = packing.as_array(values)
    assert made.dtype == np.int64
    assert made.tolist() == list(values)


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_members_are_those_of_a_set(values: list[int], of: list[int]) -> None:
    """Rows inside and outside, in order."""
    for inside in (True, False):
        wanted = [at for at, value in enumerate(values) if (value in set(of)) is inside]
        assert list(packing.members(values, of, inside=inside)) == wanted


@given(st.lists(st.integers(0, 3), max_size=6), st.booleans())
def test_equal_digests_are_found(values: list[int], prefix: bool) -> None:
    """Also where the first bytes of different digests are the same."""
    raw = [bytes(8) * prefix + sha256(bytes([value])).digest() for value in values]
    digests = np.array([list(one[:32]) for one in raw], np.uint8).reshape(-1, 32)
    assert packing.alike(digests) == (len(set(values)) < len(values))


def test_a_digest_is_kept_as_it_is() -> None:
    """Put one, read it back as text; the others are not known."""
    made = Digests.unknown(3)
    made.put(1, sha256(b"x").digest())
    assert made[1] == sha256(b"x").hexdigest()
    assert made.known.tolist() == [False, True, False]


def test_bytes_a_sample() -> None:
    """Numbers take 8 bytes, row names none, texts their own and 8; a list takes four times as much."""
    n = 100_000
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [numbers(range(n)), RowNames(range(n)), Texts.of(f"{row:07d}" for row in range(n))]
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used <= n * (8 + 0 + 15) * 1.3 + 10_000, (used, [sys.getsizeof(one) for one in kept])
