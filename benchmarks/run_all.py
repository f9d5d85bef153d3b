"""Run every benchmark that needs no more than ../shared, one after the other (``make bench``).

Exit code 1 if one of them failed or missed a criterion. --quick and --threads are passed on.
"""

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "coldstart.py",
    "floor.py",
    "images.py",
    "scaling.py",
    "scaling.py --memory",
    "published.py",
    "evaluation.py",
    "references.py",
    "quality_classes.py",
    "quality_samples.py",
    "quality_wide.py",
    "quality_mislabelled.py",
    "sequences.py",
    "matched_cost.py",
    "compare.py",
    "worked_example.py",
)


def run(script: str, options: list[str]) -> int:
    """Run a script in a process of its own; returns its exit code."""
    print(f"\n$ python benchmarks/{script} {' '.join(options)}".rstrip(), flush=True)
    name, *own = script.split()
    return subprocess.run([sys.executable, str(Path(__file__).parent / name), *own, *options], check=False).returncode


def main() -> None:
    """Run all of them, also after one has failed, and say which did."""
    codes = {script: run(script, sys.argv[1:]) for script in SCRIPTS}
    missed = [script for script, code in codes.items() if code]
    print(
        f"\n{len(codes) - len(missed)} of {len(codes)} met their criteria"
        + f"; not: {', '.join(missed)}" * bool(missed)
    )
    sys.exit(int(bool(missed)))


if __name__ == "__main__":
    main()
