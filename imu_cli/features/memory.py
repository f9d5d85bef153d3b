"""How much memory there is, how much this process has taken at most, and sizes as people write them."""

import ctypes
import math
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imu_cli.errors import ImuError

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
SHARE = 0.5
"""Share of the free memory that features take without ``--max-memory``."""
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))


def parse(text: str) -> int:
    """``8GB``, ``500 MB`` or ``1.5GiB`` in bytes.

    Raises:
        ImuError: not a size, or 0.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(match.group(2).upper()) if match else None
    size = math.floor(float(match.group(1)) * unit) if match and unit else 0
    if size <= 0:
        raise ImuError(f"--max-memory {text}: not a size; write 8GB or 500MB")
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


def peak() -> int:
    """Bytes of memory that this process has had resident at most, pages of mapped files among them."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


TRIM, MMAP = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (malloc.h)."""
NEVER = 2**30
USUAL = {MMAP: 2**25, TRIM: 2**26}
"""Where glibc's own thresholds end once large blocks were freed; they cannot be left to it again."""


@contextmanager
def kept() -> Iterator[None]:
    """Memory that is freed stays with the process while the context lasts, and goes back to the system at its end.

    The layers of a network take and free the same megabytes in every batch; glibc by default gets them from the system anew,
    page by page, in a fresh process a twentieth of a ResNet-18's time and a fifth of a ResNet-20's. Without glibc nothing
    changes.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):  # musl has neither
        yield
        return
    assert library is not None
    for option in USUAL:
        if not library.mallopt(option, NEVER):  # earlier versions take no more than this
            library.mallopt(option, USUAL[option])
    try:
        yield
    finally:
        for option, value in USUAL.items():
            library.mallopt(option, value)
        library.malloc_trim(0)
