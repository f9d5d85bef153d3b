"""Memory kept with the process while a network runs, so that each batch does not get its pages from the system anew."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
