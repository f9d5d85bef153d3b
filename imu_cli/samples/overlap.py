"""Samples that stand in two sets: one file, one index, or the same bytes."""

from collections.abc import Hashable, Sequence

from imu_cli.samples.dataset import SampleSet


def overlap(a: SampleSet, b: SampleSet) -> list[tuple[int, int]]:
    """Pairs (row of ``a``, row of ``b``) of the same image: one location, or the same stored bytes.

    Every row that has a partner stands in some pair; copies do not multiply out. Only files whose sizes occur on both
    sides are hashed. The same picture in two encodings (a PNG and an array) is not found.

    Raises:
        ImuError: a file cannot be read.
    """
    pairs = _meet([a.location(row) for row in range(len(a))], [b.location(row) for row in range(len(b))])
    sizes_a, sizes_b = ([samples.size(row) for row in range(len(samples))] for samples in (a, b))
    rows_a, rows_b = _rows_of_size(sizes_a, set(sizes_b)), _rows_of_size(sizes_b, set(sizes_a))
    by_content = _meet(a.digests(rows_a), b.digests(rows_b))
    return sorted(pairs | {(rows_a[i], rows_b[j]) for i, j in by_content})


def _rows_of_size(sizes: Sequence[int], wanted: set[int]) -> list[int]:
    return [row for row, size in enumerate(sizes) if size in wanted]


def _meet(a: Sequence[Hashable], b: Sequence[Hashable]) -> set[tuple[int, int]]:
    """Each entry that stands on both sides, with the first equal entry of the other side."""
    first_a = {key: i for i, key in reversed(list(enumerate(a)))}
    first_b = {key: j for j, key in reversed(list(enumerate(b)))}
    forth = {(i, first_b[key]) for i, key in enumerate(a) if key in first_b}
    return forth | {(first_a[key], j) for j, key in enumerate(b) if key in first_a}
