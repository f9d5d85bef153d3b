"""The documentation cannot go stale: every README command runs, every command and metric is documented."""

import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from imu_cli.cli import main

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]
    return [shlex.split(line) for line in lines]


def test_every_readme_command_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who pastes the README's commands one after the other gets what it says, without an error."""
    monkeypatch.chdir(tmp_path)
    found = commands()
    assert len(found) >= 7
    for words in found:
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
            continue
        assert words[0] == "imu"
        assert main(words[1:]) == 0, words


def test_generated_documentation_is_current(tmp_path: Path) -> None:
    """docs/cli.md and the table of metrics are what the code says."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_documents_link_to_files_that_exist() -> None:
    """No dead link between the documents."""
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_documents_name_modules_that_exist() -> None:
    """A file or a module in backticks is there: tests and benchmarks from the root, the tool's own from its package too."""
    rooms = [path.name for path in (ROOT / "imu_cli").iterdir() if path.is_dir() and path.name.islower()]
    for page in [ROOT / "README.md", *ROOT.glob("*/*.md")]:
        for word in re.findall(r"`([\w/.]+)`", page.read_text(encoding="utf-8")):
            room = re.split(r"[/.]", word)[0]
            if word.endswith(".py") and room in (*rooms, "tests", "benchmarks", "docs", "imu_cli"):
                assert any((base / word).exists() for base in (ROOT, ROOT / "imu_cli", page.parent)), (
                    f"{page.name}: {word}"
                )
            elif page.name == "development.md" and room in rooms and "." in word:
                names = word.split(".")
                found = [ROOT / "imu_cli" / Path(*names[:end]) for end in range(2, len(names) + 1)]
                assert any(path.is_dir() or path.with_suffix(".py").exists() for path in found), f"{page.name}: {word}"


def test_exit_codes_are_documented() -> None:
    """Every exit code that an error class or a command gives stands in the README's table."""
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert re.search(rf"^\| {code} \|", README, re.MULTILINE)


def test_console_script_is_installed() -> None:
    """The distribution installs ``imu``."""
    if not any(importlib.metadata.distributions(name="imu-cli")):
        pytest.skip("it runs from the repository, and is not installed")
    found = shutil.which("imu", path=str(Path(sys.executable).parent))
    assert found is not None
    assert subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.startswith("imu ")
