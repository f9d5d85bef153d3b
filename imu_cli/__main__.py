"""``python -m imu_cli`` and the console script ``imu``."""

import gc
import sys

from .cli import main as run


def main() -> None:
    """Run the command line and exit with its code."""
    code = run()
    # Python looks through everything that torch made for garbage before it exits, several times: a fifth of what importing
    # torch takes. The process ends here and the files are closed, so there is nothing to find.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
