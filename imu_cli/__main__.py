"""``python -m imu_cli`` and the console script ``imu``."""

import gc
import os
import signal
import sys
from types import FrameType

from imu_cli.cli import main as run
from imu_cli.errors import StoppedError

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _stop(number: int, _: FrameType | None) -> None:
    raise StoppedError(number)


def main() -> None:
    """Run the command line and exit with its code."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what torch's C++ warns of names its own source files
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # nohup has SIGHUP ignored
            signal.signal(number, _stop)
    code = run()
    for number in SIGNALS:  # what was to be done is done: a signal that comes now must not end it with another code
        signal.signal(number, signal.SIG_IGN)
    # Python looks through everything that torch made for garbage before it exits, several times: a fifth of what importing
    # torch takes. The process ends here and the files are closed, so there is nothing to find.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
