"""How much memory there is and was taken, sizes as people write them, and what a file claims held against both."""

import math
import re
import resource
import sys
from pathlib import Path

from imu_cli.errors import ImuError
from imu_cli.files.reading import cut

UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
MOST = 2**62
"""Bytes that no machine has."""
SHARE = 0.5
"""Share of the free memory that features take without ``--max-memory``."""
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))


def parse(text: str) -> int:
    """``8GB``, ``500 MB`` or ``1.5GiB`` in bytes.

    Raises:
        ImuError: not a size, or 0.
    """
    match = re.fullmatch(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = UNITS.get(match.group(2).upper()) if match else None
    size = math.floor(float(match.group(1)) * unit) if match and unit else 0
    if not 0 < size <= MOST:
        raise ImuError(f"--max-memory {cut(text)}: not a size; write 8GB or 500MB")
    return size


def _number(path: Path) -> float:
    try:
        return float(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return math.inf


def available() -> int:
    """Bytes that can be had without swapping: what the system has free, or what a container's limit leaves, if less."""
    import psutil

    inside = min(
        (_number(limit) - _number(used) for limit, used in zip(LIMITS, USED, strict=True) if _number(limit) < math.inf),
        default=math.inf,
    )
    return int(max(0, min(psutil.virtual_memory().available, inside)))


def limit(given: int | None) -> int:
    """Bytes that a set's features may take: as many as given, else half of what is free."""
    return given if given is not None else int(SHARE * available())


def require(wanted: int, given: int | None, where: str, what: str, remedy: str) -> None:
    """Refuse what would take more memory than there is, before any of it is taken.

    Args:
        wanted: bytes.
        given: ``--max-memory`` in bytes.
        where: what asks for it.
        what: what it is, as "32 images of 30,000 x 30,000".
        remedy: what to do.

    Raises:
        ImuError: it does not fit.
    """
    room = limit(given)
    if wanted > room:
        source = "--max-memory" if given is not None else "half of what is free"
        raise ImuError(f"{where}: {what} would take {wanted / 1e9:,.3g} GB, {source} is {room / 1e9:.3g} GB; {remedy}")


def peak() -> int:
    """Bytes of memory that this process has had resident at most, pages of mapped files among them."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
