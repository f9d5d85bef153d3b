"""``imu cache``: what is removed from it."""

import sys
from collections.abc import Sequence

from imu_cli.errors import ImuError
from imu_cli.samples import csv_lines, manifest
from imu_cli.samples import selectors as dataset


def clear_cache(
    keys: Sequence[str], forget: str | None, data: str | None, *, broken: bool, everything: bool
) -> list[str]:
    """Remove cache entries by key, by the samples they hold, the broken ones, or all; says what was removed.

    What processes that were killed left goes with any of them.

    Raises:
        ImuError: nothing named, an unknown key, or an unreadable forget list.
    """
    from imu_cli.features import cache

    if not (keys or forget or broken or everything):
        raise ImuError("imu cache rm: nothing named; give keys, --forget FORGET, --broken or --all")
    readable, torn = cache.entries()
    torn = [*torn, *(entry.paths[1] for entry in readable if broken and cache.read(entry) is None)]
    chosen = {entry.paths[1]: entry for entry in [cache.named(key) for key in keys]}
    if forget is not None:
        chosen |= {entry.paths[1]: entry for entry in cache.belonging(_digests(forget, data))}
    if everything:
        chosen |= {entry.paths[1]: entry for entry in readable}
    for entry in chosen.values():
        cache.remove(entry)
    said = [f"removed {entry.kind} {entry.key[:12]} ({entry.count} samples)" for entry in chosen.values()]
    if broken or everything:
        for path in cache.remove_torn(torn):
            said.append(f"removed {path.name} ({cache.BROKEN})")
    # Nobody can say whose features these are: they go with whatever is removed.
    said += [
        f"removed {path.name} (left by a process that was killed)"
        for path in cache.sweep(everything or forget is not None)
    ]
    return said or ["nothing in the cache belongs to that"]


def _digests(forget: str, data: str | None) -> set[str]:
    """Content hashes of the samples of a forget list, folder or selector."""
    samples = manifest.open_source(data, "data") if data else None
    if dataset.is_selector(forget) and samples is not None:
        return set(samples.digests(dataset.select_rows(samples, [forget])))
    if samples is not None and forget.lower().endswith(csv_lines.SUFFIXES):
        return set(manifest.open_source(forget, "data", samples).digests())
    return set(manifest.peek(forget, None, sys.maxsize).digests())
