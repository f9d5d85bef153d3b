"""The TOFU benchmark: a step of each method worked out by hand, and the whole on a small model that knows a few answers by heart."""

import importlib
import json
import shutil
import sys
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn

from imu_cli.errors import ImuError
from imu_cli.linear.vocabulary import Words
from imu_cli.unlearning.demotion.completions import Completed

sys.path.insert(0, str(ROOT / "benchmarks"))

from baselines import language_models
from baselines.training import Settings

RATE, D, V, COUNTS = 0.05, 4, 7, (3, 2, 4)


class Tiny:
    """Three records whose features are x M, M (D, D) what moves; a head (V, D) that stays."""

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(2)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draws, dtype=torch.float64)

        self.x, self.head = drawn(sum(COUNTS), D), drawn(V, D)
        self.moving = {"m": nn.Parameter(drawn(D, D))}
        self.targets = torch.randint(V, (sum(COUNTS),), generator=draws)
        self.record = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))

    def places(self, rows: Tensor) -> Tensor:
        """Tokens of some records."""
        return torch.cat([(self.record == row).nonzero().squeeze(1) for row in rows])

    def completed(self) -> Completed:
        """As the methods are given them."""
        return Completed(
            lambda rows: self.x[self.places(rows)] @ self.moving["m"],
            self.x @ self.moving["m"].detach(),
            self.targets,
            self.record,
            torch.zeros(len(self.record), dtype=torch.bool),
            self.places,
        )

    def by_record(self) -> tuple[Tensor, list[Tensor]]:
        """Σ ℓ of each record, and its gradient in closed form: xᵀ (p − onehot) W."""
        logits = self.x @ self.moving["m"].detach() @ self.head.T
        residual = logits.softmax(dim=1) - torch.eye(V, dtype=torch.float64)[self.targets]
        each = -logits.log_softmax(dim=1)[torch.arange(len(self.record)), self.targets]
        own = [self.record == row for row in range(3)]
        return torch.stack([each[rows].sum() for rows in own]), [
            self.x[rows].T @ residual[rows] @ self.head for rows in own
        ]


def stepped(weight: Tensor, gradient: Tensor) -> Tensor:
    """The first step of AdamW: decay, then the sign of the gradient, nearly."""
    return weight * (1 - RATE * language_models.DECAY) - RATE * gradient / (gradient.abs() + 1e-8)


def by_hand(name: str, tiny: Tiny, beta: float) -> Tensor:
    """The gradient of a method's loss on all three records, as its weights are."""
    losses, slopes = tiny.by_record()
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    if name == "gradient_ascent":
        shares = -torch.ones(3).double() / counts.sum()
    elif name == "npo":  # d/dΣℓ of (2/β) log(1 + exp(β (Σℓ⁰ − Σℓ))) is −2 σ(0) at the start
        shares = -torch.ones(3).double() / 3
    else:
        shares = -2 * torch.sigmoid(-beta * losses / counts) / counts / 3
    made: Tensor = sum((share * slope for share, slope in zip(shares, slopes, strict=True)), torch.zeros(D, D))
    return made


@pytest.mark.parametrize("name", ["gradient_ascent", "npo", "simnpo"])
def test_a_step_is_the_one_worked_out_by_hand(name: str) -> None:
    """One step of AdamW down the loss of the docstring, whose gradient in closed form is in the test; over tokens or records as it says."""
    tiny, beta = Tiny(), 0.7
    start = tiny.moving["m"].detach().clone()
    wanted = stepped(start, by_hand(name, tiny, beta))
    method = getattr(language_models, name)
    assert list(method(tiny.moving, tiny.completed(), Words(tiny.head), Settings(RATE, 1, beta, batch=3))) == [1]
    torch.testing.assert_close(tiny.moving["m"].detach(), wanted)
    assert not torch.allclose(wanted, start)


def test_npo_weighs_less_what_is_far_gone() -> None:
    """At a second step a record counts 2 σ(β (Σℓ⁰ − Σℓ)): less than the first, since it is less likely now."""
    tiny, beta = Tiny(), 0.7
    before = tiny.by_record()[0]
    steps = language_models.npo(tiny.moving, tiny.completed(), Words(tiny.head), Settings(RATE, 2, beta, batch=3))
    next(steps)
    losses, slopes = tiny.by_record()
    shares = -2 * torch.sigmoid(beta * (before - losses)) / 3
    assert bool((shares.abs() < 1 / 3).all())
    next(steps)
    found = tiny.moving["m"].grad
    assert found is not None
    torch.testing.assert_close(found, sum((s * g for s, g in zip(shares, slopes, strict=True)), torch.zeros(D, D)))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The benchmark, as a module; it works in ``tmp_path``."""
    monkeypatch.setenv("IMU_BENCH_DIR", str(tmp_path / "scratch"))
    return importlib.import_module("language")


@pytest.fixture
def lists(records: Path, tmp_path: Path, benchmark: Any) -> Any:
    """The small model three times, and a suite on its forgotten people."""
    for name in ("full", "retain", "none"):
        shutil.copytree(records / "model", tmp_path / "models" / name)
    suite = tmp_path / "suite"
    suite.mkdir()
    for name, source in (("forget05", "forget"), ("retain", "retain")):
        rows = [json.loads(line) for line in (records / f"{source}.jsonl").read_text().splitlines()]
        written = [
            {
                "question": row["question"], "answer": row["answer"], "paraphrased_question": "Home?" + row["question"],
                "paraphrased_answer": row["answer"] + " Yes.", "perturbed_answer": ["Nobody knows.", "On the moon."],
            }
            for row in rows
        ]  # fmt: skip
        (suite / f"{name}_perturbed.json").write_text("".join(json.dumps(row) + "\n" for row in written))
    return benchmark.Lists(str(records / "forget.jsonl"), str(records / "unseen.jsonl"), f"tofu:{suite}")


def options(**more: Any) -> Namespace:
    """Those of the command line."""
    given = {"row": [], "batches": 2, "minibatch": 4, "rate": 0.01, "rows": ["retrained", "before", "NPO"]}
    return Namespace(**{**given, **more})


@pytest.mark.usefixtures("one_thread")
def test_rows_are_made_once_and_moved_weights_come_back(benchmark: Any, lists: Any, tmp_path: Path) -> None:
    """Before and retrained are one model here: same figures, p 1; NPO leaves the model before as it was; a second run makes nothing."""
    rows: list[dict[str, Any]] = []
    kept: list[int] = []
    with ExitStack() as stack:
        world = benchmark.World(tmp_path / "models", lists, 2, 0, "float32", stack)
        benchmark.run(world, options(), rows, lambda: kept.append(len(rows)))
        benchmark.run(world, options(), rows, lambda: kept.append(len(rows)))
        again = benchmark.figures(world.judged_now())
    assert kept == [1, 2, 3]
    retrained, before, npo = (row["figures"] for row in rows)
    for side, found in before.items():
        if side in ("forget", "unseen", "kept", "paraphrased"):
            for name, value in found.items():
                assert value["value"] == pytest.approx(retrained[side][name]["value"], abs=1e-5)
                assert again[side][name] == value
    assert (before["forget"]["loss"]["n"], before["kept"]["loss"]["n"], before["unseen"]["loss"]["n"]) == (3, 8, 6)
    assert before["forget_quality"] == {"p": 1.0, "distance": 0.0, "n": 3}
    assert npo["forget"]["loss"]["value"] > before["forget"]["loss"]["value"] + 0.05
    assert rows[2]["steps"] == len(rows[2]["looks"]) * 2 == 2


@pytest.mark.usefixtures("one_thread")
def test_a_written_folder_is_judged_like_the_weights_that_it_holds(benchmark: Any, lists: Any, tmp_path: Path) -> None:
    """By the upper part and as a whole a folder says the same; a folder without a record is refused as a row."""
    with ExitStack() as stack:
        world = benchmark.World(tmp_path / "models", lists, 2, 0, "float32", stack)
        found = benchmark.made(world, "before", options(), [])
        world.names = {name: [] for name in world.names}
        shutil.copytree(tmp_path / "models/full", tmp_path / "other")
        changed(tmp_path / "other/model.safetensors")
        whole = world.judged_folder(tmp_path / "other")
        with pytest.raises(ImuError, match=r"no model\.record\.json"):
            benchmark.made(world, "ours", options(row=[f"ours={tmp_path / 'other'}"]), [])
        upper = benchmark.World(tmp_path / "models", lists, 2, 0, "float32", stack).judged_folder(tmp_path / "other")
    for side, said in whole.records.items():
        torch.testing.assert_close(upper.records[side].loss, said.loss, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(said.loss, found.judged.records[side].loss, atol=1e-3)
    torch.testing.assert_close(upper.log_ratio["forget"], whole.log_ratio["forget"], atol=1e-4, rtol=1e-3)


def changed(path: Path) -> None:
    """Scale a weight of the last block."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["model.layers.2.mlp.down_proj.weight"] *= 0.5
    save_file(tensors, path, metadata={"format": "pt"})


def test_absent_models_are_said_with_how_to_make_them(benchmark: Any, tmp_path: Path) -> None:
    """What is missing is named, and the script that makes it."""
    said = benchmark.missing(tmp_path / "nowhere")
    assert "has no retain, full, none;" in said
    assert "smollm2_tofu.py" in said
