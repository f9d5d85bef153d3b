"""The commands as a user runs them: through main(), on a real small model and real images."""

import csv
import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import listing
from safetensors.torch import load_file, save_file

from imu_cli.cli import main

BASE = ["--config", "imu.yaml"]
UNLEARN = ["unlearn", "model.safetensors", *BASE]


def tensors_outside_the_head(path: Path) -> dict[str, bytes]:
    tensors = load_file(path)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items() if not name.startswith("8.")}


def test_demo_runs_the_whole_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``imu demo`` trains, scores, unlearns, evaluates and reports, and prints commands that can be repeated."""
    assert main(["demo", str(tmp_path / "d")]) == 0
    out = capsys.readouterr().out
    for command in ("select", "influence", "unlearn", "evaluate", "report"):
        assert f"$ imu {command}" in out
    assert "Target met" in out
    assert main(["demo", str(tmp_path / "d")]) == 2
    assert main(["demo", str(tmp_path)]) == 2


def test_a_class_goes_and_the_rest_stays(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of one class: none of it is predicted, the kept classes lose nothing, and only the head's bytes change."""
    before = load_file("model.safetensors")
    assert main([*UNLEARN, "--forget", "class=3", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["scenario"], made["reached"], made["reason"]) == ("class", True, "target")
    assert made["end"]["forget"] <= 0.005
    out = Path("model.unlearned.safetensors")
    assert tensors_outside_the_head(out) == tensors_outside_the_head(Path("model.safetensors"))
    after = load_file(out)
    kept = [row for row in range(10) if row != 3]
    assert torch.equal(after["8.weight"][kept], before["8.weight"][kept])
    assert not torch.equal(after["8.weight"][3], before["8.weight"][3])
    command = ["evaluate", str(out), *BASE, "--test", str(digits / "data/test"), "--retain", str(digits / "data/train")]
    assert main([*command, "--require", "forget.accuracy<=0.005", "--format", "json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["metrics"]}
    assert found["test.accuracy"]["value"] == found["mask_bound.test"]["value"]
    assert found["test.accuracy_drop"]["value"] <= 0
    assert found["test.lost_to_forgotten"]["value"] == 0
    assert found["retain.accuracy"]["n"] == 1347 - found["forget.accuracy"]["n"]
    assert found["features.drift"]["value"] == 0


def test_a_head_of_zeros_is_an_error(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head that was never trained (torchvision's ViT begins with zeros) has no norm that a change could be a part of."""
    tensors = load_file("model.safetensors")
    save_file(
        {**tensors, **{name: torch.zeros_like(tensors[name]) for name in ("8.weight", "8.bias")}}, "zero.safetensors"
    )
    assert main(["unlearn", "zero.safetensors", *BASE, "--forget", "class=3"]) == 2
    assert "head 8: all its weights are 0" in " ".join(capsys.readouterr().err.split())
    assert not Path("zero.unlearned.safetensors").exists()


def test_several_classes_at_once(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Several classes: none of them is predicted on more than the target's share, and their rows alone move."""
    assert main([*UNLEARN, "--forget", "class=3,5,8", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["rows"] == [3, 5, 8]
    assert made["end"]["forget"] <= 0.005


def test_same_seed_same_bytes(job: Path) -> None:
    """Two runs write the same checkpoint, byte for byte; so does one that reads its scores and features from the cache."""
    assert main([*UNLEARN, "--forget", "class=3", "-o", "a.safetensors", "--cache-features", "-q"]) == 0
    assert main([*UNLEARN, "--forget", "class=3", "-o", "b.safetensors", "--cache-features", "-q"]) == 0
    assert main([*UNLEARN, "--forget", "class=3", "-o", "c.safetensors", "--no-cache", "-q"]) == 0
    assert (
        Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes() == Path("c.safetensors").read_bytes()
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--weights", "uniform"],
        ["--rows", "all"],
        ["--keep", "0.1", "--damping", "relative:0.1"],
        ["--reweight", "step"],
        ["--learning-rate", "0.003", "--momentum", "0.9", "--minibatch", "64"],
    ],
    ids=" ".join,
)
def test_ways_to_ascend_all_stop_at_the_target(
    job: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every variant of the ascent ends at the target and not far beyond it."""
    assert main([*UNLEARN, "--forget", "class=3", "--format", "json", *options]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["reason"] == "target"
    assert made["end"]["forget"] <= 0.005
    assert made["trajectory"][-2]["forget"] > 0.005


def test_preset_paper_runs_its_epochs(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--preset paper has no stop rule: ten epochs over the top tenth, and its values are recorded as the preset's."""
    assert main([*UNLEARN, "--forget", "class=3", "--preset", "paper", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["reason"], made["reached"], made["end"]["step"]) == ("epochs", None, 10)
    assert made["options"]["l1"] == {"value": 0.2, "origin": "preset"}
    assert made["scores"]["kept"] == 14


def test_mixed_samples_without_a_target_move_little(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """37 mixed images and no target: the head moves by at most 2 %, accuracy hardly falls, and the output says so."""
    assert main([*UNLEARN, "--forget", "index=0:1332:36", "--format", "json"]) == 0
    shown = capsys.readouterr()
    made = json.loads(shown.out)
    assert (made["forget"]["n"], made["reason"], made["reached"]) == (37, "max_head_change", None)
    assert 0.0199 < made["end"]["head_change"] <= 0.02
    assert "no target was given" in shown.err
    assert (
        main(
            ["evaluate", "model.unlearned.safetensors", *BASE, "--test", str(digits / "data/test"), "--format", "json"]
        )
        == 0
    )
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["metrics"]}
    assert found["test.accuracy_drop"]["value"] <= 0.003


@pytest.mark.parametrize("method", ["imu", "matched"])
def test_unreachable_target_stops_at_the_allowed_drop(
    job: Path, digits: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --test and a target far away the run ends at the allowed fall of test accuracy, writes, and exits with 3."""
    options = [
        "--method",
        method,
        "--forget",
        "index=0:1332:36",
        "--test",
        str(digits / "data/test"),
        "--until",
        "forget.accuracy<=0.0",
    ]
    assert main([*UNLEARN, *options, "--format", "json"]) == 3
    made = json.loads(capsys.readouterr().out)
    assert (made["reason"], made["reached"]) == ("max_drop", False)
    assert 0 <= made["end"]["test_drop"] <= 0.01
    assert Path("model.unlearned.safetensors").exists()


def test_influence_formats_agree(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV and JSON hold the same scores; the second run reads them from the cache."""
    command = ["influence", "model.safetensors", *BASE, "--forget", "class=3"]
    assert main([*command, "--format", "json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in first["rows"]]
    assert main([*command, "--format", "json", "--damping", "0.02"]) == 0
    shown = capsys.readouterr()
    assert "differs in damping" in shown.err
    assert main([*command, "--format", "json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (first["scores"]["from_cache"], again["scores"]["from_cache"]) == (False, True)
    assert again["rows"] == first["rows"]
    assert main([*command]) == 0
    assert "score < 0" in capsys.readouterr().out


def test_report_reads_both_kinds(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records and evaluations are shown in full, and several evaluations side by side with their difference."""
    assert main([*UNLEARN, "--forget", "class=3", "-q"]) == 0
    for name, model in (("a", "model.unlearned.safetensors"), ("b", "model.unlearned.safetensors")):
        command = ["evaluate", model, *BASE, "--test", str(digits / "data/test"), "-o", f"{name}.json", "-q"]
        assert main(command) == 0
    capsys.readouterr()
    assert main(["report", "model.unlearned.record.json", "a.json", "b.json"]) == 0
    out = capsys.readouterr().out
    assert "Target met" in out
    assert "Side by side" in out
    assert "not a finding that data were erased" in out
    assert main(["report", "a.json", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "imu.evaluation/1"
    assert main(["report", "a.json", "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("model,metric,")


def test_ids_and_names_stay_out_of_the_record(job: Path, digits: Path) -> None:
    """A record may be handed on: it holds counts and hashes of the forget list, none of its names or ids."""
    image = next((digits / "data/train/3").glob("*.png"))
    Path("forget.csv").write_text(f"file_name,label,id,reason\n3/{image.name},3,person-4711,asked\n")
    options = ["--forget", "forget.csv", "--scenario", "sample", "--until", "forget.accuracy<=0"]
    assert main([*UNLEARN, *options, "-q"]) == 0
    text = Path("model.unlearned.record.json").read_text()
    assert "person-4711" not in text
    assert image.name not in text


def test_mislabelled_images(job: Path, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """500 labels set at random, learnt by a model: the wrong labels fall to the held-out rate, true ones are reported."""
    import numpy as np
    from safetensors.torch import save_file

    from imu_cli.commands import demo

    images, labels = demo.digits(0)["train"]
    random = np.random.default_rng(0)
    rows = random.choice(len(images), 500, replace=False)
    wrong = labels.copy()
    wrong[rows] = (labels[rows] + random.integers(1, 10, 500)) % 10
    save_file(demo.train(images, wrong, 0, epochs=60).state_dict(), "wrong.safetensors")
    lines = [f"{labels[row]}/{row:04d}.png,{wrong[row]},{labels[row]}" for row in rows]
    Path("bad.csv").write_text("\n".join(["file_name,label,true_label", *lines]) + "\n")
    test = str(digits / "data/test")
    options = [*BASE, "--forget", "bad.csv", "--scenario", "mislabelled", "--test", test, "--max-drop", "0.05"]
    assert main(["unlearn", "wrong.safetensors", *options, "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["start"]["forget"] > 0.9
    assert made["end"]["forget"] <= made["target"]["value"]
    command = ["evaluate", "wrong.unlearned.safetensors", *BASE, "--test", test, "--format", "json"]
    assert main(command) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["metrics"]}
    assert found["forget.accuracy"]["value"] <= found["forget.accuracy"]["target"]
    true = found["forget.true_accuracy"]
    assert true["value"] > true["before"]


def test_gates_give_exit_codes(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed gate is 3, an undecided one 5, a passed one 0; an unknown metric is 2 and writes nothing."""
    assert main([*UNLEARN, "--forget", "class=3", "-q"]) == 0
    command = ["evaluate", "model.unlearned.safetensors", *BASE, "-q", "--test", str(digits / "data/test")]
    assert main([*command, "--require", "test.acuracy<=1"]) == 2
    assert not Path("model.unlearned.evaluation.json").exists()
    assert "did you mean 'test.accuracy'" in capsys.readouterr().err
    assert main([*command, "--require", "test.accuracy>=0.5"]) == 0
    assert main([*command, "--require", "test_forgotten.accuracy<=0.05"]) == 5
    assert main([*command, "--require", "test_forgotten.accuracy<=0.05", "--require", "test.accuracy>=0.999"]) == 3
    assert main([*command, "--require", "retain.accuracy>=0.5"]) == 3  # not measured
    assert main([*command, "--require", "test_forgotten.accuracy<=0.05", "--require-on", "value"]) == 0
    assert main([*command, "--original", "model.safetensors", "--require", "test.accuracy.before>=0.5"]) == 0


def test_the_original_fails_every_forgetting_gate(job: Path, digits: Path) -> None:
    """The model as it was, evaluated as if unlearned, does not pass."""
    command = ["evaluate", "model.safetensors", *BASE, "-q", "--forget", "class=3", "--test", str(digits / "data/test")]
    for gate in ("forget.accuracy<=0.005", "test_forgotten.accuracy<=0.05", "forget.confidence<=0.05"):
        assert main([*command, "--require", gate]) == 3


def test_evaluation_replaces_only_its_own_file(job: Path, digits: Path) -> None:
    """An evaluation may be written again; a file that is something else is never touched."""
    assert main([*UNLEARN, "--forget", "class=3", "-q"]) == 0
    command = ["evaluate", "model.unlearned.safetensors", *BASE, "-q"]
    assert main(command) == 0
    assert main(command) == 0
    Path("notes.json").write_text('{"mine": true}')
    assert main([*command, "-o", "notes.json"]) == 2
    assert Path("notes.json").read_text() == '{"mine": true}'


def test_select_writes_a_manifest_that_forget_reads(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``imu select`` to a file equals the selector itself: the same set, the same checkpoint."""
    data = str(digits / "data/train")
    assert main(["select", "class=3", "--data", data, "-o", "forget.csv"]) == 0
    assert main(["select", "class=3", "--data", data, "-o", "forget.csv"]) == 2
    assert main([*UNLEARN, "--forget", "forget.csv", "-o", "a.safetensors", "-q"]) == 0
    assert main([*UNLEARN, "--forget", "class=3", "-o", "b.safetensors", "-q"]) == 0
    assert Path("a.safetensors").read_bytes() == Path("b.safetensors").read_bytes()


def test_forget_list_on_standard_input(job: Path, digits: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    """``--forget -`` reads from a pipe the list that ``imu select`` prints."""
    assert main(["select", "class=3", "--data", str(digits / "data/train")]) == 0
    listed = capsysbinary.readouterr().out
    command = [sys.executable, "-m", "imu_cli", *UNLEARN, "--forget", "-", "-q", "--format", "json"]
    done = subprocess.run(command, input=listed, capture_output=True, check=True)
    assert json.loads(done.stdout)["scenario"] == "class"


def test_a_second_request_chains_to_the_first(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unlearning an unlearned model links to the first record by hash and recommends the union."""
    assert main([*UNLEARN, "--forget", "class=3", "-q"]) == 0
    second = ["unlearn", "model.unlearned.safetensors", *BASE, "--forget", "class=5", "-o", "twice.safetensors"]
    assert main(second) == 0
    made = json.loads(Path("twice.record.json").read_text())
    assert made["previous"]["n"] == json.loads(Path("model.unlearned.record.json").read_text())["forget"]["n"]
    assert "union" in capsys.readouterr().err


def test_flags_win_over_environment_over_yaml(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each option's origin is recorded, and the order flag, environment, file, default holds."""
    with Path("imu.yaml").open("a") as file:
        file.write("step: 0.02\nmax_steps: 500\nkeep: 0.5\n")
    monkeypatch.setenv("IMU_STEP", "0.01")
    monkeypatch.setenv("IMU_MAX_STEPS", "600")
    assert main([*UNLEARN, "--forget", "class=3", "--step", "0.004", "--format", "json"]) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    assert options["step"] == {"value": 0.004, "origin": "flag"}
    assert options["max_steps"] == {"value": 600, "origin": "environment"}
    assert options["keep"] == {"value": 0.5, "origin": "file"}
    assert options["seed"] == {"value": 0, "origin": "default"}


def test_cache_commands(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Entries are listed, shown, verified and removed by the samples they hold; an edited one is found and recomputed."""
    command = ["influence", "model.safetensors", *BASE, "--forget", "class=3", "--cache-features", "-q"]
    assert main(command) == 0
    assert main(["cache", "verify"]) == 0
    capsys.readouterr()
    assert main(["cache", "ls", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert sorted(row["kind"] for row in listed) == ["features", "scores"]
    key = next(row["key"] for row in listed if row["kind"] == "scores")
    assert main(["cache", "show", key, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 138
    from imu_cli.features import cache

    assert cache.folder().stat().st_mode & 0o777 == 0o700
    entry = cache.named(key)
    data = bytearray(entry.paths[0].read_bytes())
    data[-1] ^= 1
    entry.paths[0].write_bytes(bytes(data))
    assert main(["cache", "verify"]) == 3
    capsys.readouterr()
    assert main([*command[:-1], "--format", "json"]) == 0
    shown = capsys.readouterr()
    assert "torn or was edited" in shown.err
    assert json.loads(shown.out)["scores"]["from_cache"] is False
    assert main(["cache", "verify"]) == 0
    assert main(["cache", "rm", "--forget", "class=5", "--data", str(digits / "data/train")]) == 0
    assert len(cache.entries()[0]) == 2
    assert main(["cache", "rm", "--forget", "class=3", "--data", str(digits / "data/train")]) == 0
    assert cache.entries() == ([], [])


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """``imu --help`` starts without torch and friends, in well under a second of processor time, however busy the machine."""
    code = (
        "import sys, contextlib, io\nfrom imu_cli.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print([m for m in ('torch', 'numpy', 'sklearn', 'scipy', 'PIL', 'pydantic', 'yaml') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.strip() == "[]"
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 2


def test_report_does_not_import_torch(job: Path) -> None:
    """Reading a record needs no torch, in no form."""
    assert main([*UNLEARN, "--forget", "class=3", "-q"]) == 0
    code = (
        "import sys, contextlib, io\nfrom imu_cli.cli import main\n"
        "for words in ([], ['--html', '-'], ['--markdown', '-']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        code = main(['report', 'model.unlearned.record.json', *words])\n"
        "print(code, [m for m in ('torch', 'numpy', 'sklearn', 'scipy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"


def test_kernel_shows_strengths_and_movers(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``influence --kernel`` writes nothing and shows what matched unlearning would do to each sample, and who moves it."""
    command = ["influence", "model.safetensors", *BASE, "--forget", "index=0:1332:36", "--kernel"]
    assert main(command) == 2
    assert "add --test DATA" in capsys.readouterr().err
    before = listing(job)
    assert main([*command, "--test", str(digits / "data/test"), "--max-drop", "0.05", "--format", "json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert len(made["kernel"]) == 37
    for row in made["kernel"]:
        assert row["target"] <= row["margin"]
        assert row["self_influence"] > 0
        assert row["path"] not in [item["path"] for item in row["movers"]]
    assert listing(job) == before
