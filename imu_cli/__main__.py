"""``python -m imu_cli`` and the console script ``imu``."""

import gc
import os
import sys

from imu_cli import signals


def _open_streams() -> None:
    """Give closed standard streams nothing to read or write.

    Else the next file that is opened, the model for instance, gets their number, and what a library says on standard error
    is written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def main() -> None:
    """Run the command line and exit with its code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what torch's C++ warns of names its own source files
    _open_streams()
    signals.install()
    from imu_cli.cli import main as run  # a signal that comes during this import is noted, and obeyed after it

    code = run()
    signals.over()
    # Python looks through everything that torch made for garbage before it exits, several times: a fifth of what importing
    # torch takes. The process ends here and the files are closed, so there is nothing to find.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
