"""Cold start: what a process imports before it does its work. ``benchmarks/coldstart.py`` has the times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision
from safetensors.torch import save_file

from imu_cli.cli import main
from imu_cli.models import libraries
from imu_cli.models.digits import digits_net

HEAVY = ("torchvision", "torch._dynamo", "sympy", "scipy", "sklearn", "jinja2", "matplotlib", "timm", "transformers")
"""Each takes from a tenth of a second to as long as torch to import."""
COMMAND = ["model.safetensors", "--config", "imu.yaml", "--forget", "class=3"]


def imported(*commands: list[str]) -> tuple[list[int], set[str]]:
    """Exit codes of command lines in one process of their own, and the heavy packages it imported beyond torch's own."""
    code = (
        "import sys, json, torch\nbefore = set(sys.modules)\nfrom imu_cli.cli import main\n"
        "code = [main(command) for command in json.loads(sys.argv[1])]\n"
        f"print(json.dumps([code, [name for name in {HEAVY!r} if name in set(sys.modules) - before]]), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    codes, names = json.loads(done.stderr.splitlines()[-1])
    return codes, set(names)


def test_a_model_of_ones_own_needs_only_torch(job: Path) -> None:
    """Neither torchvision nor scipy on the way from a plain checkpoint to its head, scores and an unlearned checkpoint."""
    inspect = ["inspect", "model.safetensors", "--config", "imu.yaml"]
    assert imported(inspect, *([name, *COMMAND, "--no-cache"] for name in ("influence", "unlearn"))) == ([0] * 3, set())


def test_listing_the_cache_needs_no_torch(job: Path) -> None:
    """``imu cache ls`` reads JSON alone."""
    code = "import sys\nfrom imu_cli.cli import main\nmain(['cache', 'ls'])\nprint('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False"


def test_held_out_data_need_an_interval_and_no_torchvision(job: Path, digits: Path) -> None:
    """Even sample unlearning to a held-out target imports no torchvision, no sklearn, and no scipy.stats."""
    given = [*COMMAND[:-1], "index=0:30", "--test", str(digits / "data/test"), "--until", "forget.accuracy<=0.9"]
    (code,), names = imported(["unlearn", *given])
    assert code in (0, 3)
    assert names <= {"scipy"}


def test_resizing_is_what_imports_torchvision(job: Path) -> None:
    """With a size the decoding thread imports torchvision, and the run ends as it should."""
    config = Path("imu.yaml").read_text()
    assert "{mode: L," in config
    Path("imu.yaml").write_text(config.replace("{mode: L,", "{mode: L, size: 8, crop: 8,"))
    codes, names = imported(["influence", *COMMAND, "--no-cache"])
    assert codes == [0]
    assert "torchvision" in names
    assert not names & {"scipy", "sklearn"}


def test_the_record_has_torchvisions_own_version(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is the imported package's, build and all; without its file, the installed metadata's."""
    assert main(["unlearn", *COMMAND, "-q"]) == 0
    said = json.loads(Path("model.unlearned.record.json").read_text())["environment"]["torchvision"]
    assert said == libraries.torchvision_version() == torchvision.__version__
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda _: None)
    assert torchvision.__version__.startswith(libraries.torchvision_version())


def test_a_torchvision_that_does_not_fit_is_said(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A torchvision built for another torch is one message, where an image is resized, and plays no part elsewhere."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["influence", *COMMAND, "-q"]) == 0
    Path("imu.yaml").write_text(Path("imu.yaml").read_text().replace("{mode: L,", "{mode: L, size: 8,"))
    assert main(["influence", *COMMAND, "-q"]) == 2
    assert "install matching builds of both" in capsys.readouterr().err


def test_the_process_ends_with_its_code_and_all_it_wrote(tmp_path: Path) -> None:
    """Leaving out the last search for garbage loses neither the exit code nor output that is on its way to a pipe."""
    save_file(digits_net().state_dict(), tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "imu_cli", "inspect", str(tmp_path / "model.safetensors"), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)
    assert subprocess.run([*command[:4], "missing"], capture_output=True, check=False).returncode == 2
