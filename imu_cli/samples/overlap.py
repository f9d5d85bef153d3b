"""Samples that stand in two sets: one file or index, or twins, which are the same bytes at two places."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.packing import numbers


@dataclass(frozen=True)
class Overlap:
    """Pairs (row of ``a``, row of ``b``): ``same`` are one file, or one index of one array; ``twins`` only the same bytes.

    Every row that has a partner stands in some pair of its kind; copies do not multiply out.
    """

    same: list[tuple[int, int]]
    twins: list[tuple[int, int]]


def overlap(a: SampleSet, b: SampleSet) -> Overlap:
    """What two sets have in common. Only files whose sizes occur on both sides are hashed.

    The same picture in two encodings (a PNG and an array) is not found.

    Raises:
        ImuError: a file cannot be read.
    """
    same = _meet([a.location(row) for row in range(len(a))], [b.location(row) for row in range(len(b))])
    sizes_a, sizes_b = ([samples.size(row) for row in range(len(samples))] for samples in (a, b))
    rows_a, rows_b = _rows_of_size(sizes_a, set(sizes_b)), _rows_of_size(sizes_b, set(sizes_a))
    contents_a, contents_b = (dict(zip(rows, s.digests(rows), strict=True)) for s, rows in ((a, rows_a), (b, rows_b)))
    here, there = {i for i, _ in same}, {j for _, j in same}
    # A row that is in both sets already is no twin of another such row: what is asked is who is beside them.
    beside = _meet_rows(contents_a, {j: key for j, key in contents_b.items() if j not in there})
    beside |= _meet_rows({i: key for i, key in contents_a.items() if i not in here}, contents_b)
    return Overlap(sorted(same), sorted(beside))


def without(samples: SampleSet, rows: set[int]) -> SampleSet:
    """The set without some rows."""
    return samples.subset(numbers(row for row in range(len(samples)) if row not in rows)) if rows else samples


def _rows_of_size(sizes: Sequence[int], wanted: set[int]) -> list[int]:
    return [row for row, size in enumerate(sizes) if size in wanted]


def _meet_rows(a: Mapping[int, Hashable], b: Mapping[int, Hashable]) -> set[tuple[int, int]]:
    rows_a, rows_b = list(a), list(b)
    return {(rows_a[i], rows_b[j]) for i, j in _meet(list(a.values()), list(b.values()))}


def _meet(a: Sequence[Hashable], b: Sequence[Hashable]) -> set[tuple[int, int]]:
    """Each entry that stands on both sides, with the first equal entry of the other side."""
    first_a = {key: i for i, key in reversed(list(enumerate(a)))}
    first_b = {key: j for j, key in reversed(list(enumerate(b)))}
    forth = {(i, first_b[key]) for i, key in enumerate(a) if key in first_b}
    return forth | {(first_a[key], j) for j, key in enumerate(b) if key in first_a}
