"""Files of features: what ``imu features`` writes, alone or in several processes, is what a run on images computes."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import Run, Server
from plans import assert_close_metrics, assert_close_models, assert_close_rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from imu_cli.cli import main
from imu_cli.commands import features
from imu_cli.errors import ImuError, StoppedError
from imu_cli.samples import packing, vectors

COMMON = ["model.safetensors", "--config", "imu.yaml"]


def run(capsys: pytest.CaptureFixture[str], *command: str, code: int = 0) -> tuple[str, str]:
    """What a command printed on stdout and on stderr."""
    assert main(list(command)) == code
    shown = capsys.readouterr()
    return shown.out, shown.err


def extract(capsys: pytest.CaptureFixture[str], *more: str, output: str = "train.safetensors") -> dict[str, Any]:
    """``imu features`` of all training images."""
    return json.loads(run(capsys, "features", *COMMON, "-o", output, "--format", "json", "-q", *more)[0])


def scores(capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    """Rows of ``imu influence``."""
    return json.loads(run(capsys, "influence", *more, "--no-cache", "--format", "json", "-q")[0])["rows"]


def said(path: str) -> dict[str, Any]:
    """The metadata of a file of features."""
    with safe_open(path, framework="np") as file:
        return json.loads(file.metadata()["imu.features"])


def rewritten(path: str, target: str, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> str:
    """A file of features with something about it changed."""
    tensors, meta = dict(load_file(path)), said(path)
    change(tensors, meta)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, target, {"imu.features": json.dumps(meta)})
    return target


def test_a_run_on_features_is_the_run_on_images(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores, the written checkpoint and what is measured of it are the same, but for rounding, from features as from images.

    The images of one class make a batch of their own; in the file of all images they come from batches with others.
    """
    made = extract(capsys)
    assert (made["complete"], made["forget"]["n"], made["precision"]) == (True, 1347, "float32")
    assert stat.S_IMODE(Path("train.safetensors").stat().st_mode) == 0o600
    assert not Path("train.safetensors.parts").exists()
    extract(capsys, "--data", str(digits / "data/test"), output="test.safetensors")
    on_features = ["model.safetensors", "--features", "train.safetensors", "--forget", "class=3"]
    assert_close_rows(scores(capsys, *COMMON, "--forget", "class=3"), scores(capsys, *on_features))
    run(capsys, "unlearn", *COMMON, "--forget", "class=3", "-o", "a.safetensors", "-q")
    run(capsys, "unlearn", *on_features, "-o", "b.safetensors", "-q")
    assert_close_models("a.safetensors", "b.safetensors", head="8")
    told = []
    for name, test, retain in (
        ("a", str(digits / "data/test"), str(digits / "data/train")),
        ("b", "test.safetensors", "train.safetensors"),
    ):
        more = ["--config", "imu.yaml"] if name == "a" else []
        run(capsys, "evaluate", f"{name}.safetensors", "--test", test, "--retain", retain, *more, "-q")
        told.append(json.loads(Path(f"{name}.evaluation.json").read_text()))
    assert_close_metrics(told[0]["metrics"], told[1]["metrics"])
    assert told[0]["run"]["source"] == "model"
    assert told[1]["run"]["source"] == "train.safetensors"
    assert told[1]["run"]["batch_size"] is None


def test_a_file_of_forget_samples_is_the_forget_set(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --forget all of the file goes; whether that is a whole class is what the list said when it was made."""
    extract(capsys, "--forget", "class=3", output="threes.safetensors")
    run(capsys, "unlearn", "model.safetensors", "--features", "threes.safetensors", "-o", "a.safetensors", "-q")
    assert json.loads(Path("a.record.json").read_text())["scenario"] == "class"
    extract(capsys, "--forget", "index=0:30", output="some.safetensors")
    command = ["unlearn", "model.safetensors", "--features", "some.safetensors", "-o", "b.safetensors"]
    run(capsys, *command, "--max-head-change", "0.01", "-q")
    record = json.loads(Path("b.record.json").read_text())
    assert record["scenario"] == "sample"
    assert any("the written model is not run" in note for note in record["notes"])


def test_columns_of_the_list_travel_with_the_features(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """id, group, weight and true_label of a forget.csv stand in the file, and by its names a list finds its rows."""
    names = sorted(path.name for path in (digits / "data/train/3").iterdir())[:4]
    lines = [f"3/{name},{number},g,{number + 1},8" for number, name in enumerate(names)]
    Path("forget.csv").write_text("file_name,id,group,weight,true_label\n" + "\n".join(lines) + "\n")
    extract(capsys, "--forget", "forget.csv", output="four.safetensors")
    found = vectors.open_features("four.safetensors")
    assert list(found.names) == [f"3/{name}" for name in names]
    assert {name: list(texts) for name, texts in found.columns.items()} == {
        "id": ["0", "1", "2", "3"],
        "group": ["g"] * 4,
    }
    assert isinstance(found.store, vectors.Vectors)
    assert np.array_equal(found.store.weights, [1.0, 2.0, 3.0, 4.0])
    assert np.array_equal(found.store.true_labels, [8] * 4)
    extract(capsys)
    by_name = scores(capsys, "model.safetensors", "--features", "train.safetensors", "--forget", "forget.csv")
    own = scores(capsys, "model.safetensors", "--features", "four.safetensors")
    assert_close_rows(own, by_name)  # features of a batch of four, and of these four in a batch of others
    Path("forget.csv").write_text("file_name\n3/none.png\n")
    _, told = run(
        capsys, "influence", "model.safetensors", "--features", "train.safetensors", "--forget", "forget.csv", code=2
    )
    assert "'3/none.png' is not in train.safetensors" in told


def test_another_engine_may_write_the_least(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """features, labels and the head's name are enough; what is not checked then is said."""
    extract(capsys)
    found = load_file("train.safetensors")
    least = {"features": found["features"].clone(), "labels": found["labels"].clone()}
    save_file(least, "least.safetensors", {"imu.features": json.dumps({"schema": "imu.features/1", "head": "8"})})
    _, told = run(
        capsys, "influence", "model.safetensors", "--features", "least.safetensors", "--forget", "class=3", "--no-cache"
    )
    assert "does not say which backbone made it" in told
    assert "has no logits of its first rows" in told
    whole = scores(capsys, "model.safetensors", "--features", "train.safetensors", "--forget", "class=3")
    bare = scores(capsys, "model.safetensors", "--features", "least.safetensors", "--forget", "class=3")
    assert [row["score"] for row in bare] == [row["score"] for row in whole]
    half = {"features": least["features"].bfloat16(), "labels": least["labels"]}
    save_file(half, "half.safetensors", {"imu.features": json.dumps({"schema": "imu.features/1", "head": "8"})})
    rough = scores(capsys, "model.safetensors", "--features", "half.safetensors", "--forget", "class=3")
    assert rough != bare
    assert np.corrcoef([row["score"] for row in rough], [row["score"] for row in bare])[0, 1] > 0.99


def _other_backbone(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    meta["backbone_sha256"] = "0" * 64


def _other_head(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    meta["head"] = "5"


def _no_layer(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    meta["head"] = "fc"


def _narrow(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    tensors["features"] = tensors["features"][:, :5]


def _shifted(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    tensors["features"] += 1


def _not_finite(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    tensors["features"][7, 3] = float("nan")
    del tensors["logits"]


def _newer(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    meta["schema"] = "imu.features/9"


def _few_labels(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    tensors["labels"] = tensors["labels"][:5]


def _wrong_ends(tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
    tensors["name.end"] = tensors["name.end"] + 1


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (_other_backbone, 2, "was made by another model"),
        (_other_head, 2, "names the head '5', and model.safetensors has no matrix of that name"),
        (_no_layer, 2, "names the head 'fc', and model.safetensors has no matrix of that name"),
        (_narrow, 2, "has 5 features a row, the head 8 takes 128"),
        (_shifted, 4, "the replay check failed"),
        (_not_finite, 2, "changed.safetensors:7: its features are not finite"),
        (_newer, 2, "this imu reads imu.features/1"),
        (_few_labels, 2, "has no 'labels' of shape (1347,) in I64"),
        (_wrong_ends, 2, "'name.end' does not divide"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_features_of_something_else_are_refused(
    job: Path, capsys: pytest.CaptureFixture[str], change: Any, code: int, message: str
) -> None:
    """Every way in which a file cannot be this model's, as far as it tells, is one message; nothing is written."""
    extract(capsys)
    rewritten("train.safetensors", "changed.safetensors", change)
    _, told = run(
        capsys, "unlearn", "model.safetensors", "--features", "changed.safetensors", "--forget", "index=0:40", code=code
    )
    assert message in told
    assert not Path("model.unlearned.safetensors").exists()


def test_features_and_data_win_over_each_other_by_where_they_are_given(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flag replaces what imu.yaml or the environment says in its place; the environment replaces the file's."""
    extract(capsys)
    Path("imu.yaml").write_text(f"data: {digits / 'data/train'}\nforget: index=0:30\n")
    command = ["influence", "model.safetensors", "--config", "imu.yaml", "--format", "json"]
    on_features = [*command, "--features", "train.safetensors"]
    made = json.loads(run(capsys, *on_features)[0])
    assert (made["forget"]["data"], made["forget"]["n"]) == ("train.safetensors", 30)
    monkeypatch.setenv("IMU_FEATURES", "train.safetensors")
    assert json.loads(run(capsys, *command)[0])["rows"] == made["rows"]
    assert "stands in place of --data" in run(capsys, *on_features, "--data", "x", code=2)[1]
    Path("imu.yaml").write_text("features: gone.safetensors\nforget: index=0:30\n")
    assert json.loads(run(capsys, *on_features)[0])["rows"] == made["rows"]


def test_wrong_calls(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint given as features, images beside features, two data sets: each says what to write."""
    extract(capsys)
    base = ["influence", "model.safetensors", "--features"]
    assert "so it is not a file of features" in run(capsys, *base, "model.safetensors", code=2)[1]
    assert "stands in place of --data" in run(capsys, *base, "train.safetensors", "--data", "x", code=2)[1]
    assert "not a .safetensors file" in run(capsys, *base, "train.csv", code=2)[1]
    assert "name a file of features" in run(capsys, *base, "gone.safetensors", code=2)[1]
    listed = ["influence", "model.safetensors", "--data", "train.safetensors", "--forget", "train.safetensors"]
    assert "give it as --features" in run(capsys, *listed, code=2)[1]
    command = ["unlearn", "model.safetensors", "--features", "train.safetensors", "--forget", "index=0:30"]
    assert "extract them too (imu features)" in run(capsys, *command, "--test", str(digits / "data/test"), code=2)[1]
    assert "exists; choose another --output" in run(capsys, "features", *COMMON, "-o", "train.safetensors", code=2)[1]
    assert "not a file of features" in run(capsys, "features", *COMMON, "-o", "model.safetensors", "--force", code=2)[1]
    assert "--data: not given" in run(capsys, "features", "model.safetensors", code=2)[1]
    assert (
        "holds features already"
        in run(capsys, "features", "model.safetensors", "--data", "train.safetensors", "-o", "x.safetensors", code=2)[1]
    )


def test_an_interrupted_run_goes_on(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed before an interruption is kept and not computed again; the file is the same."""
    extract(capsys, "--batch-size", "50", output="whole.safetensors")
    write, count = features._write_block, 0

    def interrupted(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == 10:
            raise StoppedError(signal.SIGINT)
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_write_block", interrupted)
        _, told = run(capsys, "features", *COMMON, "-o", "train.safetensors", "--batch-size", "50", code=130)
    assert "train.safetensors.parts: the blocks that are done stay; the same command goes on from there" in told
    assert told.endswith("imu: interrupted; no output was written\n")
    parts = Path("train.safetensors.parts")
    assert len(list(parts.glob("*.safetensors"))) == 9
    torn = parts / "00003.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4])
    _, told = run(capsys, "features", *COMMON, "-o", "train.safetensors", "--batch-size", "20", code=2)
    assert "was left by another run, which differs in batch_size" in told
    _, told = run(capsys, "features", *COMMON, "-o", "train.safetensors", "--batch-size", "50")
    assert "8 of 27 blocks are there from an earlier run" in told
    assert Path("train.safetensors").read_bytes() == Path("whole.safetensors").read_bytes()
    assert not parts.exists()


def test_a_folder_of_somebody_elses_is_not_touched(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder under the name of the parts that imu did not make stays, with --force too."""
    Path("train.safetensors.parts").mkdir()
    Path("train.safetensors.parts/mine.txt").write_text("x")
    _, told = run(capsys, "features", *COMMON, "-o", "train.safetensors", "--force", code=2)
    assert "was not left by imu features" in told
    assert Path("train.safetensors.parts/mine.txt").read_text() == "x"


def torchrun(*command: str) -> subprocess.Popen[str]:
    """Two processes on this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "imu_cli"]
    return subprocess.Popen([*launch, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _rank(folder: Path, wanted: str) -> int | None:
    """The process of a rank that works in this folder."""
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            here = (entry / "cwd").resolve() == folder.resolve()
        except OSError:
            continue
        if here and f"RANK={wanted}".encode() in environment:
            return int(entry.name)
    return None


def test_two_processes_give_the_bits_of_one_and_survive_a_killed_rank(
    job: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of two processes is killed half way; run again they go on; the scores are one process's, bit for bit.

    They are what torchrun starts but for torchrun itself, which ``test_torchrun_starts_and_ends_the_processes`` has.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of several processes: more would add up in another order
    small = ["--batch-size", "8"]
    extract(capsys, *small, output="one.safetensors")
    torch.set_num_threads(threads)
    command = ["features", *COMMON, "-o", "two.safetensors", "--format", "json", *small]
    ended = server.run(*two_ranks(job, command, before=60))
    assert ended[1].code == -signal.SIGKILL
    assert ended[0].code != 0
    left = len(list(Path("two.safetensors.parts").glob("*.safetensors")))
    assert 3 <= left < 128
    assert not Path("two.safetensors").exists()
    first, second = server.run(*two_ranks(job, command))
    assert (first.code, second.code, second.out) == (0, 0, ""), first.err + second.err
    assert "blocks are there from an earlier run" in first.err
    assert json.loads(first.out)["processes"] == 2
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    assert scores(capsys, "model.safetensors", "--features", "one.safetensors", "--forget", "class=3") == scores(
        capsys, "model.safetensors", "--features", "two.safetensors", "--forget", "class=3"
    )


def two_ranks(job: Path, command: list[str], before: int = 0) -> list[Run]:
    """Two processes of one group; the second is killed before that change of the file system, if any."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        Run(command, str(job), str(job / "cache"), before * rank, signal.SIGKILL,
            {**group, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"})
        for rank in (0, 1)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the ranks in /proc")
def test_torchrun_starts_and_ends_the_processes(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same under torchrun itself, which ends the other process where one is killed."""
    small = ["--batch-size", "4"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    extract(capsys, *small, output="one.safetensors")
    torch.set_num_threads(threads)
    command = ["features", *COMMON, "-o", "two.safetensors", *small]
    parts = Path("two.safetensors.parts")
    with torchrun(*command) as running:
        while not parts.exists() or len(list(parts.glob("*.safetensors"))) < 3:
            assert running.poll() is None, running.communicate()
            time.sleep(0.002)
        victim = _rank(job, "1")
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        running.communicate()
        assert running.returncode != 0
    left = len(list(parts.glob("*.safetensors")))
    assert 3 <= left < 256
    assert not Path("two.safetensors").exists()
    with torchrun(*command, "--format", "json") as running:
        out, told = running.communicate()
    assert running.returncode == 0, told
    assert "blocks are there from an earlier run" in told
    made = json.loads(out)
    assert made["processes"] == 2
    assert Path("one.safetensors").read_bytes() == Path("two.safetensors").read_bytes()
    assert scores(capsys, "model.safetensors", "--features", "one.safetensors", "--forget", "class=3") == scores(
        capsys, "model.safetensors", "--features", "two.safetensors", "--forget", "class=3"
    )


# --- streaming and precision, on images


def test_what_does_not_fit_is_streamed_with_the_same_result(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With too little memory allowed the features lie in a file, nothing of it is left, and the checkpoint is the same.

    But for rounding: where a matrix lies in memory decides in what order some processors' products add up.
    """
    for name, more in (("held", []), ("streamed", ["--max-memory", "1KB"])):
        run(capsys, "unlearn", *COMMON, "--forget", "class=3", "-o", f"{name}.safetensors", "--no-cache", *more)
    assert_close_models("held.safetensors", "streamed.safetensors", head="8")
    runs = [json.loads(Path(f"{name}.record.json").read_text())["run"] for name in ("held", "streamed")]
    assert [one["streamed"] for one in runs] == [False, True]
    assert [one["feature_bytes"] for one in runs] == [137 * 129 * 8, 137 * 129 * 4]
    assert all(one["peak_bytes"] > 10**7 for one in runs)
    assert not list(Path(os.environ["IMU_CACHE_DIR"]).glob("*"))
    more = ["--max-memory", "1KB", "--method", "matched", "--until", "forget.accuracy<=0.5", "-o", "x.safetensors"]
    assert (
        "holds the features of every forget sample in memory"
        in run(capsys, "unlearn", *COMMON, "--forget", "index=0:40", *more, code=2)[1]
    )


def test_cached_features_skip_the_model_streamed_or_held(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second run's features come from the cache, and what it writes is the same."""
    for name, more in (("a", []), ("b", []), ("c", ["--max-memory", "1KB"])):
        command = ["unlearn", *COMMON, "--forget", "class=3", "--cache-features", "-o", f"{name}.safetensors", "-q"]
        run(capsys, *command, *more)
    sources = [json.loads(Path(f"{name}.record.json").read_text())["run"]["source"] for name in "abc"]
    assert sources == ["model", "cache", "cache"]
    assert_close_models("a.safetensors", "b.safetensors", head="8")  # matrices that lie elsewhere in memory
    assert_close_models("a.safetensors", "c.safetensors", head="8")


def test_a_lower_precision_says_what_it_does_to_the_scores(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error that is told is that of the scores of float32, within the sample; the cache keeps precisions apart."""
    exact = scores(capsys, *COMMON, "--forget", "class=3")
    command = ["influence", *COMMON, "--forget", "class=3", "--precision", "bfloat16", "--format", "json"]
    out, told = run(capsys, *command)
    found = json.loads(out)
    error = found["scores"]["precision_error"]
    assert "precision bfloat16: scores of 128 samples computed again in float32 differ by" in told
    assert error["n"] == 128
    low, high = ([row["score"] for row in rows] for rows in (found["rows"], exact))
    rms = float(np.sqrt(np.mean(np.subtract(low, high) ** 2) / np.mean(np.square(high))))
    assert 0 < error["relative_rms"] < 0.5
    assert error["relative_rms"] == pytest.approx(rms, rel=0.5)
    assert error["rank_correlation"] > 0.9
    again = json.loads(run(capsys, *command)[0])
    assert again["scores"]["from_cache"]
    assert again["scores"]["precision_error"] == error
    plain = json.loads(run(capsys, "influence", *COMMON, "--forget", "class=3", "--format", "json")[0])
    assert plain["scores"]["precision_error"] is None
    assert not plain["scores"]["from_cache"]


def test_unlearning_in_a_lower_precision_is_replayed_and_recorded(
    job: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The written model is replayed within that precision; the record says in what features were computed."""
    command = ["unlearn", *COMMON, "--forget", "class=3", "--precision", "bfloat16", "-o", "low.safetensors", "-q"]
    run(capsys, *command)
    record = json.loads(Path("low.record.json").read_text())
    assert record["run"]["precision"] == "bfloat16"
    assert record["scores"]["precision_error"]["n"] == 128
    run(capsys, "evaluate", "low.safetensors", "--config", "imu.yaml", "--test", str(digits / "data/test"), "-q")
    assert json.loads(Path("low.evaluation.json").read_text())["run"]["precision"] == "float32"
    shown, _ = run(capsys, "report", "low.record.json")
    assert f"bfloat16, from model, {record['run']['batch_size']} samples at a time" in shown


def test_an_evaluation_takes_features_in_place_of_the_records_images(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--features given to evaluate replaces the forget list and data set of the record."""
    run(capsys, "unlearn", *COMMON, "--forget", "class=3", "-o", "a.safetensors", "-q")
    extract(capsys, "--forget", "class=3", output="threes.safetensors")
    run(capsys, "evaluate", "a.safetensors", "--features", "threes.safetensors", "-q")
    found = json.loads(Path("a.evaluation.json").read_text())
    assert found["run"]["source"] == "threes.safetensors"
    assert next(item for item in found["metrics"] if item["name"] == "forget.accuracy")["value"] <= 0.005


def test_rows_that_were_promised_have_to_come(tmp_path: Path) -> None:
    """Too few rows are no file."""
    with pytest.raises(ImuError, match="1 rows of features came, 2 were promised"):
        vectors.write(tmp_path / "x.safetensors", (2, 3), [torch.ones(1, 3)])


def test_text_survives_any_name() -> None:
    """Names with accents, line ends and undecodable bytes come back as they were."""
    texts = ["a/é.png", "", "b\n.png", "c\udcff.png"]
    assert list(packing.Texts.of(texts)) == texts
