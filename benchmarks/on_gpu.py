"""Is everything right on a GPU, and what does it cost there? One script for a machine that is lent for minutes.

It sets itself up, runs what it can in ``--minutes``, and writes what it found as it goes to ``$OUT`` or else to
``benchmarks/results/on_gpu``: ``results.json``, ``junit.xml``, ``log.txt``. In this order:

* ``tests``: the whole test suite with every command on the device, a process a test file; then, if there is time at the
  end, what failed once more with the commands on the CPU, which tells the device's fault from the versions';
* ``commands``: class and matched unlearning, ``influence`` and ``evaluate`` of the demo's digits against the CPU's numbers, in
  every precision;
* ``models``: a ResNet-18 and a ViT with random weights: batch norms folded, replay, features against the CPU's;
* ``memory``: the batch is halved where the device's memory does not hold it, with the same features;
* ``floor``: a pass of those two models and their scores over the bare forward pass, images decoded and in memory.

It needs nothing but the repository and its packages: no network, no ``../shared``. Packages that the machine lacks are
taken from ``--wheels``. Without a GPU it says so and ends with exit code 0; ``--device cpu`` rehearses it on one.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PHASES = ("tests", "commands", "models", "memory", "floor", "again")
SHARE = {"tests": 0.6, "commands": 0.5, "models": 0.5, "memory": 0.5, "floor": 0.9, "again": 1.0}
"""Of the time that is left when a phase begins, what it may take."""
PACKAGES = (
    "hypothesis", "jinja2", "jsonschema", "numpy", "PIL", "platformdirs", "psutil", "pydantic", "pytest", "pytest_timeout", "rich",
    "safetensors", "scipy", "sklearn", "timm", "torch", "torchvision", "transformers", "typer", "yaml",
)  # fmt: skip
"""What package and tests import; only timm, transformers, hypothesis and jsonschema may be missing, with their tests."""
GRACE = 10
"""Seconds in which a process that is to end may write what it has."""
LINE = "on_gpu: "
"""How a phase's process begins a line of standard output that holds a result."""


@dataclass
class Run:
    """One run of the script: where it writes, until when, and what was found so far."""

    device: str
    place: Path
    scratch: Path
    deadline: float
    environment: dict[str, str]
    started: float = field(default_factory=time.monotonic)
    found: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """To standard output and ``log.txt``, with the seconds since the start."""
        line = f"[{time.monotonic() - self.started:5.0f} s] {text}"
        print(line, flush=True)
        with (self.place / "log.txt").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def keep(self, name: str, value: Any) -> None:
        """Add a result, and write all of them."""
        self.found[name] = value
        text = json.dumps(self.found, indent=1, ensure_ascii=False) + "\n"
        for path in (self.scratch, REPOSITORY, Path(sys.prefix)):  # no path of the machine in what is committed
            text = text.replace(str(path), "…")
        (self.place / "results.json").write_text(text, encoding="utf-8")


# Set-up


def set_up(wheels: Path, target: Path) -> list[str]:
    """Packages that are still missing, after those in ``wheels`` were installed beside the machine's own."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing and wheels.is_dir():
        files = sorted(map(str, wheels.glob("*.whl")))
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--target",
            str(target),
        ]
        subprocess.run([*command, *files], check=True)
        sys.path.append(str(target))  # after the machine's own: its torch fits its GPU
        importlib.invalidate_caches()
        missing = [name for name in missing if importlib.util.find_spec(name) is None]
    return missing


# The test suite


@dataclass
class Job:
    """A test file that runs in a process of its own."""

    file: Path
    report: Path
    process: subprocess.Popen[str]


def start(run: Run, arguments: Sequence[str], number: int, device: str) -> Job:
    """Pytest on one file, or on some of its tests."""
    report, temporary = run.scratch / f"{number}.xml", run.scratch / f"tests-{number}"
    command = [sys.executable, "-m", "pytest", *arguments, "--device", device, "--quiet", "-p", "no:cacheprovider",
               f"--junit-xml={report}", f"--basetemp={temporary}"]  # fmt: skip
    log = (run.scratch / f"{number}.log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env={**run.environment, "OMP_NUM_THREADS": "2"}, stdout=log, stderr=log, text=True,
        start_new_session=True,
    )  # fmt: skip
    return Job(Path(arguments[0].partition("::")[0]), report, process)


def stop(jobs: Sequence[Job]) -> None:
    """Let each pytest write what it has; then end those that do not, with all that they started."""
    for job in jobs:
        job.process.send_signal(signal.SIGINT)
    until = time.monotonic() + GRACE
    for job in jobs:
        try:
            job.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(job.process.pid, signal.SIGKILL)
            job.process.wait()


def tested(
    run: Run, wanted: Sequence[Sequence[str]], device: str, seconds: float
) -> tuple[list[ET.Element], list[str]]:
    """Pytest's suites of each list of arguments, as many at a time as half the cores, and the files that time did not allow."""
    until, waiting, running = time.monotonic() + seconds, list(enumerate(wanted)), list[Job]()
    suites: list[ET.Element] = []
    unfinished: list[str] = []
    most = max(1, min(8, (os.cpu_count() or 2) // 2))
    while waiting or running:
        out_of_time = time.monotonic() > until
        while waiting and len(running) < most and not out_of_time:
            number, arguments = waiting.pop(0)
            running.append(start(run, arguments, number, device))
        if out_of_time:
            late = [job for job in running if job.process.poll() is None]
            stop(late)
            unfinished += [str(job.file) for job in late]
        for job in list(running):
            if job.process.poll() is not None:
                running.remove(job)
                suites += collected(job)
        if out_of_time:
            unfinished += [arguments[0] for _, arguments in waiting]
            waiting = []
        time.sleep(0.05)
    return suites, unfinished


def collected(job: Job) -> list[ET.Element]:
    """The suites of a report, if pytest came to write it; no test of a file at all is an error of the file."""
    try:
        found = list(ET.parse(job.report).getroot().iter("testsuite"))
    except (OSError, ET.ParseError):
        suite = ET.Element("testsuite", name=str(job.file), tests="1", errors="1", failures="0", skipped="0", time="0")
        case = ET.SubElement(suite, "testcase", classname=str(job.file), name="(none was reported)")
        ET.SubElement(case, "error", message=f"pytest ended with exit code {job.process.returncode}")
        found = [suite]
    for suite in found:
        suite.set("name", str(job.file))
    return found


def totals(suites: Sequence[ET.Element]) -> dict[str, int]:
    """Tests, failures, errors and skipped ones of all suites."""
    return {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }


def failed(suites: Sequence[ET.Element]) -> list[dict[str, str]]:
    """Each failed test as pytest takes it again, with the first line of what it said."""
    found = []
    for suite in suites:
        for case in suite.iter("testcase"):
            bad = case.find("failure") if case.find("failure") is not None else case.find("error")
            if bad is not None:
                said = (bad.get("message") or "").strip().splitlines() or [""]
                found.append({"test": f"{suite.get('name')}::{case.get('name')}", "said": said[0][:300]})
    return found


def run_tests(run: Run, files: Sequence[str], seconds: float) -> None:
    """The suite on the device, longest files first, and its report."""
    given = [Path(name) for name in files] or [Path("tests")]
    found = [path for name in given for path in (sorted((REPOSITORY / name).rglob("test_*.py")) or [REPOSITORY / name])]
    ordered = sorted(found, key=lambda path: path.stat().st_size, reverse=True)
    names = [[str(path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path)] for path in ordered]
    suites, unfinished = tested(run, names, run.device, seconds)
    whole = ET.Element("testsuites")
    whole.extend(suites)
    ET.ElementTree(whole).write(run.place / "junit.xml", encoding="utf-8", xml_declaration=True)
    made = {**totals(suites), "files": len(names), "unfinished": unfinished, "failed": failed(suites)}
    run.keep("tests", made)
    run.say(f"tests on {run.device}: {totals(suites)}; files that time did not allow: {len(unfinished)}")


def run_again(run: Run, seconds: float) -> None:
    """What failed on the device, with the commands on the CPU: what fails there as well is not the device's fault."""
    tests = [item["test"] for item in run.found.get("tests", {}).get("failed", []) if not item["test"].endswith(")")]
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    wanted = [[test for test in tests if test.startswith(f"{file}::")] for file in files]
    suites, unfinished = tested(run, wanted, "cpu", seconds) if wanted else ([], [])
    also = {item["test"] for item in failed(suites)}
    alone = [test for test in tests if test not in also and test.partition("::")[0] not in unfinished]
    run.keep(
        "again",
        {**totals(suites), "failed_on_cpu_too": sorted(also), "on_device_alone": alone, "unfinished": unfinished},
    )
    run.say(f"failed again on the CPU: {len(also)} of {len(tests)}")


# Phases in processes of their own


def run_phase(run: Run, name: str, seconds: float) -> None:
    """A phase of this script that needs torch; its lines are kept as they come, also where it is ended."""
    command = [
        sys.executable,
        str(Path(__file__)),
        "--phase",
        name,
        "--device",
        run.device,
        "--scratch",
        str(run.scratch),
    ]
    errors = run.scratch / f"{name}.err"
    kept: dict[str, Any] = {}
    with errors.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=run.environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        timer = time.monotonic() + seconds
        for item, value in results(process, timer):
            kept[item] = value
            run.keep(name, kept)
            run.say(f"{name}: {item}: {json.dumps(value, ensure_ascii=False)[:400]}")
    if process.returncode != 0:
        last = errors.read_text(encoding="utf-8").strip().splitlines()[-3:]
        kept["ended"] = {"code": process.returncode, "said": " / ".join(last)[-600:]}
        run.keep(name, kept)
        run.say(f"{name}: ended with {kept['ended']}")


def results(process: subprocess.Popen[str], until: float) -> Iterator[tuple[str, Any]]:
    """Name and value of each result line, until the process ends or its time is up."""
    import threading

    timer = threading.Timer(max(1.0, until - time.monotonic()), process.kill)
    timer.start()
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(LINE):
                item = json.loads(line.removeprefix(LINE))
                yield item["name"], item["value"]
        process.wait()
    finally:
        timer.cancel()


def tell(name: str, value: Any) -> None:
    """A result of a phase."""
    print(LINE + json.dumps({"name": name, "value": value}, allow_nan=True), flush=True)


def phase(name: str, device: str, scratch: Path) -> None:
    """What runs in a phase's process."""
    sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]
    import on_gpu_phases

    made: dict[str, Callable[[str, Path, Callable[[str, Any], None]], None]] = on_gpu_phases.PHASES
    made[name](device, scratch, tell)


def gpu() -> str:
    """The name of the GPU that torch can use, or why there is none."""
    command = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: rehearse without a GPU")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="time for everything, set-up included (default: 7.5)"
    )
    parser.add_argument("--only", nargs="+", choices=PHASES, default=list(PHASES), help="some phases")
    parser.add_argument(
        "--tests", nargs="+", default=[], metavar="PATH", help="files or folders of tests, in place of all"
    )
    parser.add_argument(
        "--wheels", type=Path, default=REPOSITORY / ".wheels", help="folder of .whl files (default: .wheels)"
    )
    parser.add_argument(
        "--results", type=Path, help="folder to write to (default: $OUT, else benchmarks/results/on_gpu)"
    )
    parser.add_argument("--phase", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Run, and return 1 where packages are missing or something was not right."""
    given, begun = options(), time.monotonic()
    if given.phase:
        phase(given.phase, given.device, given.scratch)
        return 0
    scratch = Path(tempfile.mkdtemp(prefix="imu-on-gpu-"))
    try:
        return whole(given, scratch, begun)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def whole(given: argparse.Namespace, scratch: Path, begun: float) -> int:
    """Everything, in a scratch folder."""
    missing = set_up(given.wheels, scratch / "packages")
    if "torch" in missing:
        print("no torch: nothing was run; install the package's dependencies")
        return 1
    name = gpu() if given.device == "cuda" else "rehearsed on a CPU"
    if not name:
        print(f"no GPU: nothing of this was run: {', '.join(given.only)}; --device cpu rehearses it")
        return 0
    place: Path = given.results or Path(os.environ.get("OUT") or Path(__file__).parent / "results" / "on_gpu")
    place.mkdir(parents=True, exist_ok=True)
    for left in ("log.txt", "results.json", "junit.xml"):
        (place / left).unlink(missing_ok=True)
    paths = os.pathsep.join([str(REPOSITORY), str(scratch / "packages")])
    clean = {key: value for key, value in os.environ.items() if not re.match("IMU_|PYTEST_", key)}
    environment = {
        **clean,
        "PYTHONPATH": paths,
        "IMU_CACHE_DIR": str(scratch / "cache"),
        "IMU_BENCH_DIR": str(scratch / "bench"),
    }
    run = Run(given.device, place, scratch, begun + 60 * given.minutes, environment, begun)
    run.keep("gpu", name)
    run.keep("missing_packages", missing)
    run.say(f"{name}; packages missing: {', '.join(missing) or 'none'}")
    for item in PHASES:
        if item not in given.only:
            continue
        seconds = SHARE[item] * run.left()
        if seconds < 5:
            run.keep(item, {"ended": "no time was left"})
            continue
        if item == "tests":
            run_tests(run, given.tests, seconds)
        elif item == "again":
            run_again(run, seconds)
        else:
            run_phase(run, item, seconds)
    run.keep("seconds", round(time.monotonic() - begun, 1))
    wrong = not_right(run.found)
    run.say(f"not right: {', '.join(wrong)}" if wrong else "all right")
    return int(bool(wrong))


def not_right(found: dict[str, Any]) -> list[str]:
    """Phases that did not come to their end, or in which something was not as it should be."""
    wrong = []
    for name in PHASES:
        made = found.get(name) or {}
        checks = [value for value in made.values() if isinstance(value, dict) and value.get("right") is False]
        if made.get("failures") or made.get("errors") or "ended" in made or checks:
            wrong.append(name)
    return [name for name in wrong if name != "again"]


if __name__ == "__main__":
    sys.exit(main())
