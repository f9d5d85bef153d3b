"""``imu cache``: what is in it, what is torn, and what is removed from it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imu_cli.errors import ImuError
from imu_cli.features import cache, cache_entries
from imu_cli.samples import csv_lines, manifest, selectors
from imu_cli.samples.column_names import ColumnNames

HEADER = ["key", "kind", "samples", "bytes", "damping", "model"]


def listed() -> tuple[list[str], list[list[Any]], list[str]]:
    """Header and a row for each entry, oldest first; and a line for each file that is torn, or not the cache's."""
    entries, broken = cache.entries()
    rows = [
        [
            item.key[:12],
            item.kind,
            item.count,
            item.size(),
            item.fields.get("damping", ""),
            item.fields.get("model", ""),
        ]
        for item in entries
    ]
    lines = []
    for path in broken:
        ours = path.suffix != ".json" or cache.is_named_so(path)
        what = "imu cache rm --broken removes it" if ours else "it is not of the cache, and stays"
        lines.append(f"{path}: {cache_entries.BROKEN}; {what}")
    return HEADER, rows, lines


def rows_of(key: str) -> tuple[cache_entries.Entry, list[list[Any]]]:
    """An entry, and for each of its samples name, label and score (None where the entry holds features).

    Raises:
        ImuError: no such entry, or its tensors are missing or edited.
    """
    entry = cache.named(key)
    tensors = cache_entries.read(entry)
    if tensors is None:
        raise ImuError(f"{entry.paths[0]}: missing or edited (checksum); imu cache rm {entry.key[:12]}")
    scores = tensors["scores"].tolist() if entry.kind == "scores" else [None] * entry.count
    return entry, [
        [sample["name"], sample["label"], score] for sample, score in zip(entry.samples(), scores, strict=True)
    ]


def verified() -> tuple[int, list[Path]]:
    """How many entries there are, and the files of those that are torn or edited."""
    entries, broken = cache.entries()
    bad = [*broken, *(entry.paths[0] for entry in entries if cache_entries.read(entry) is None)]
    return len(entries) + len(broken), bad


def clear_cache(
    keys: Sequence[str],
    forget: str | None,
    data: str | None,
    *,
    broken: bool,
    everything: bool,
    columns: str | None = None,
) -> list[str]:
    """Remove cache entries by key, by the samples they hold, the broken ones, or all; says what was removed.

    What processes that were killed left goes with any of them.

    Raises:
        ImuError: nothing named, an unknown key, or an unreadable forget list.
    """
    if not (keys or forget or broken or everything):
        raise ImuError("imu cache rm: nothing named; give keys, --forget FORGET, --broken or --all")
    readable, torn = cache.entries()
    torn = [*torn, *(entry.paths[1] for entry in readable if broken and cache_entries.read(entry) is None)]
    chosen = {entry.paths[1]: entry for entry in [cache.named(key) for key in keys]}
    if forget is not None:
        chosen |= {
            entry.paths[1]: entry for entry in cache.belonging(_digests(forget, data, ColumnNames.parse(columns)))
        }
    if everything:
        chosen |= {entry.paths[1]: entry for entry in readable}
    for entry in chosen.values():
        cache.remove(entry)
    said = [f"removed {entry.kind} {entry.key[:12]} ({entry.count} samples)" for entry in chosen.values()]
    if broken or everything:
        for path in cache.remove_torn(torn):
            said.append(f"removed {path.name} ({cache_entries.BROKEN})")
    # Nobody can say whose features these are: they go with whatever is removed.
    said += [
        f"removed {path.name} (left by a process that was killed)"
        for path in cache.sweep(everything or forget is not None)
    ]
    if everything or forget is not None:
        for path in cache.trainings():
            path.unlink(missing_ok=True)
            said.append(f"removed {path.name} (the state of a training that was interrupted)")
    return said or ["nothing in the cache belongs to that"]


def _digests(forget: str, data: str | None, names: ColumnNames) -> set[str]:
    """Content hashes of the samples of a forget list, folder or selector."""
    samples = manifest.open_source(data, "data", names=names) if data else None
    if selectors.is_selector(forget) and samples is not None:
        return set(samples.digests(selectors.select_rows(samples, [forget])))
    if samples is not None and forget.lower().endswith(csv_lines.READ_SUFFIXES):
        return set(manifest.open_source(forget, "forget", samples, names=names).digests())
    return set(manifest.peek(forget, None, sys.maxsize, names=names).digests())
