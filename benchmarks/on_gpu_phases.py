"""The parts of ``on_gpu.py`` that need torch, each in a process of its own; ``tell`` hears each result with whether it is right.

Whatever they need they make: scikit-learn's digits with the demo's network, and torchvision's and timm's models with random weights.
"""

import contextlib
import functools
import io
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imu_cli.cli import main as imu
from imu_cli.commands import demo
from imu_cli.features import engine, extraction
from imu_cli.features.engine import Engine
from imu_cli.features.precision import Precision
from imu_cli.influence import closed_form
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.models.head import Head
from imu_cli.models.head_search import find_head
from imu_cli.models.replay import replay_tolerance
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images.preprocessing import parse
from imu_cli.samples.images.steps import Preprocessing
from imu_cli.samples.images.stores import Pixels

Tell = Callable[[str, Any], None]
SCORES, HEAD = 1e-4, 1e-3
"""What float32 on a GPU may differ from float32 on a CPU: of the largest score, of the head's change."""
LOWER = {"tf32": 0.05, "bfloat16": 0.5}
"""And lower precisions, of the largest score: no more than says that it is the same model."""


def allowed(precision: str) -> float:
    """The share of the largest score that a precision may be off."""
    return LOWER.get(precision, SCORES)


# Commands on the digits


def ran(device: str, precision: str, *command: str) -> tuple[int, Any, str]:
    """Exit code, what was printed as JSON, and the messages of a command on a device."""
    out, err = io.StringIO(), io.StringIO()
    line = [*command, "--config", "imu.yaml", "--device", device, "--precision", precision, "--format", "json"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = imu(line)
    with contextlib.suppress(ValueError):
        return code, json.loads(out.getvalue()), err.getvalue().strip()[-400:]
    return code, None, err.getvalue().strip()[-400:]


def precisions(device: str) -> list[str]:
    """What the device computes in; a CPU has no TF32."""
    return ["float32", "tf32", "bfloat16"] if device == "cuda" else ["float32", "bfloat16"]


UNLEARN = {
    "class": ("--forget", "class=3"),
    "matched": (
        "--forget",
        "index=0:60",
        "--method",
        "matched",
        "--until",
        "forget.accuracy<=0.8",
        "--test",
        "data/test",
    ),
}


def commands(device: str, scratch: Path, tell: Tell) -> None:
    """Unlearning, scores and evaluation on the device, each beside the CPU's."""
    folder = scratch / "digits"
    demo.make(folder, seed=0)
    with contextlib.chdir(folder):
        original = head_of("model.safetensors")
        for precision in precisions(device):
            tell(f"influence, {precision}", scores(device, precision))
            for kind in UNLEARN:
                tell(f"{kind}, {precision}", unlearning(device, precision, kind, original))
        for kind in UNLEARN:
            tell(f"evaluate {kind}, float32", evaluation(device, kind))


def head_of(path: str) -> Tensor:
    """The digits' head (c, d+1)."""
    found = load_file(path)
    return torch.cat([found["8.weight"], found["8.bias"][:, None]], dim=1).double()


def scores(device: str, precision: str) -> dict[str, Any]:
    """Scores of a class, against the CPU's in float32."""
    command = ("influence", "model.safetensors", "--forget", "class=3", "--no-cache")
    (code, mine, said), (_, cpu, _) = ran(device, precision, *command), ran("cpu", "float32", *command)
    if code:
        return {"right": False, "code": code, "said": said}
    one, other = (np.array([row["score"] for row in made["rows"]]) for made in (mine, cpu))
    off = float(np.abs(one - other).max() / np.abs(other).max())
    return {
        "right": off <= allowed(precision),
        "off": off,
        "allowed": allowed(precision),
        "said_off": mine["scores"]["precision_error"],
    }


def unlearning(device: str, precision: str, kind: str, original: Tensor) -> dict[str, Any]:
    """A head that was unlearned on the device, against one from the CPU in float32."""
    made = {}
    for where, what in ((device, precision), ("cpu", "float32")):
        name = f"{kind}-{where}-{what}.safetensors"
        code, record, said = ran(
            where, what, "unlearn", "model.safetensors", *UNLEARN[kind], "-o", name, "--no-cache", "--force"
        )
        if code:
            return {"right": False, "on": where, "code": code, "said": said}
        made[where, what] = head_of(name), record
    (head, record), (other, _) = made[device, precision], made["cpu", "float32"]
    off = float((head - other).norm() / (other - original).norm())
    most = HEAD if precision == "float32" else 1.0
    return {
        "right": bool(record["reached"]) and off <= most, "reached": record["reached"], "off": off, "allowed": most,
        "folded": record["run"]["folded"], "replay_error": record["head"]["replay_error"], "batch_size": record["run"]["batch_size"],
    }  # fmt: skip


def evaluation(device: str, kind: str) -> dict[str, Any]:
    """Every metric of a file from the CPU, measured on the device and on the CPU; a share may differ by one sample."""
    name = f"{kind}-cpu-float32.safetensors"
    command = ("evaluate", name, "--test", "data/test", "--retain", "data/train")
    told = []
    for where in (device, "cpu"):
        code, found, said = ran(where, "float32", *command)
        if found is None:
            return {"right": False, "on": where, "code": code, "said": said}
        told.append({item["name"]: item for item in found["metrics"]})
    off = {}
    for metric, item in told[1].items():
        one, other = told[0][metric]["value"], item["value"]
        if one is None or other is None:
            if one is not other:
                off[metric] = [one, other]
        elif abs(one - other) > max(1.5 / item["n"] if item["n"] else 0.0, 1e-3 * abs(other), 1e-4):
            off[metric] = [one, other]
    return {"right": not off, "metrics": len(told[1]), "differ": off}


# Models with random weights


def photographs(n: int, side: int) -> SampleSet:
    """Random pictures with structure, (n, side, side, 3), in memory."""
    coarse = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 3, side // 16, side // 16), dtype=np.uint8))
    fine = nn.functional.interpolate(coarse.float(), size=(side, side), mode="bilinear").round().to(torch.uint8)
    values = fine.permute(0, 2, 3, 1).contiguous().numpy()
    return SampleSet("pictures", [str(row) for row in range(n)], [0] * n, None, Pixels("pictures", values), range(n))


def network(name: str, side: int) -> tuple[nn.Module, str]:
    """A model with statistics and scales of its own, and the path of its head."""
    torch.manual_seed(0)
    if name == "ViT":
        from torchvision.models import VisionTransformer

        model: nn.Module = VisionTransformer(side, 16, 12, 6, 384, 1536, num_classes=100)
        nn.init.normal_(model.heads[-1].weight, std=0.02)  # type: ignore[index,union-attr,arg-type]
        return model.eval(), "heads.head"
    from torchvision.models import resnet18

    model = resnet18(num_classes=100)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
    return model.eval(), "fc"


NETWORKS = ("ResNet-18", "ViT")
STEPS = parse({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]})


def opened(name: str, images: SampleSet, side: int, device: str, scratch: Path) -> tuple[nn.Module, Head, Tensor]:
    """A model on a device with its head as ``imu`` finds it, and the probe."""
    model, layer = network(name, side)
    path = scratch / "network.safetensors"
    save_file(model.state_dict(), path)
    there = engine.pick_device(device)
    model = engine.prepare(model, there)
    probe = engine.probe_of(images, STEPS, there)
    engine.refuse_if_random(model, probe)
    head = find_head(model, probe, open_checkpoint(path), "")
    assert head.module == layer, (head.module, layer)
    return model, head, probe


def features(run: Engine, head: Head, images: SampleSet, steps: Preprocessing = STEPS) -> tuple[Tensor, float]:
    """H (n, d+1) and the largest replay error of a pass."""
    seen = list(extraction.stream(run, head, images, steps))
    return extraction.gather(seen, len(images), head), seen[-1].head.replay_error


def models(device: str, scratch: Path, tell: Tell) -> None:
    """Folding, replay and features of each network in each precision, against the CPU's in float32."""
    side, n = (224, 64) if device == "cuda" else (64, 12)
    images = photographs(n, side)
    for name in NETWORKS:
        model, head, probe = opened(name, images, side, "cpu", scratch)
        expected, _ = features(engine.engine(model, head.module, probe), head, images)
        for precision in precisions(device):
            tell(f"{name}, {precision}", one_model(name, precision, images, side, device, scratch, expected))


def one_model(
    name: str, precision: str, images: SampleSet, side: int, device: str, scratch: Path, expected: Tensor
) -> dict[str, Any]:
    """What became of a network in a precision; float32 folds every batch norm and is off by rounding."""
    model, head, probe = opened(name, images, side, device, scratch)
    what: Precision = precision  # type: ignore[assignment]
    run = engine.engine(model, head.module, probe, precision=what)
    found, error = features(run, head, images)
    off = float((found - expected).abs().max() / expected.abs().max())
    plain, _ = features(replace(run, batch_size=7), head, images)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network(name, side)[0].modules())
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    right = run.folded == norms and error <= replay_tolerance(dtype, precision)
    return {
        "right": right and (precision != "float32" or off <= SCORES), "folded": run.folded, "batch_norms": norms,
        "replay_error": error, "features_off": off, "in_batches_of_7_off": float((plain - found).abs().max() / found.abs().max()),
        "batch_size": run.batch_size,
    }  # fmt: skip


# Memory


class Small(nn.Module):
    """Runs out of an accelerator's memory with more images than this; for the rehearsal on a CPU."""

    def __init__(self, inside: nn.Module, most: int) -> None:
        super().__init__()
        self.inside, self.most = inside, most

    def forward(self, images: Tensor) -> Any:
        """Images (n, 3, h, w) to what the model makes of them."""
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return self.inside(images)


def memory(device: str, scratch: Path, tell: Tell) -> None:
    """All images in one batch where the memory holds a part of it, against batches that fit."""
    side, n = (224, 512) if device == "cuda" else (64, 24)
    images = photographs(n, side)
    model, head, _ = opened("ResNet-18", images, side, device, scratch)
    there = engine.pick_device(device)
    expected, _ = features(Engine(model, head.module, there, 8, "float32"), head, images)
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    run = Engine(model, head.module, there, n, "float32")
    if device == "cuda":
        total = torch.cuda.get_device_properties(there).total_memory
        torch.cuda.empty_cache()
        # The images themselves take 0.3 GB, what a ResNet-18 makes of all of them some 5 GB.
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(there) + 2.0e9) / total, there)
    else:
        run = replace(run, model=Small(model, 7), layer=f"inside.{head.module}")
    found, _ = features(run, head, images)
    off = float((found - expected).abs().max() / expected.abs().max())
    right = off <= SCORES and n // 32 <= min(sizes) < n  # as it runs out, so much fits as fitted before
    tell("halved", {"right": right, "off": off, "batches": sizes[:12], "images": n})


# The floor


@contextlib.contextmanager
def clocked(device: str, times: list[float]) -> Iterator[None]:
    """Seconds until the device is done."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    yield
    wait()
    times.append(time.perf_counter() - start)


def floor(device: str, scratch: Path, tell: Tell) -> None:
    """A whole pass with scores over the bare forward pass of the same batches, which lie on the device already."""
    side, n, repeats = (224, 8192, 3) if device == "cuda" else (64, 48, 1)
    images = photographs(n // 4, side).subset([row % (n // 4) for row in range(n)])
    labels = torch.arange(n) % 100
    for name in NETWORKS:
        model, head, probe = opened(name, images, side, device, scratch)
        for precision in precisions(device)[:2]:
            what: Precision = precision  # type: ignore[assignment]
            run = engine.engine(model, head.module, probe, precision=what)
            whole: list[float] = []
            bare: list[float] = []
            parts = [range(start, min(start + run.batch_size, n)) for start in range(0, n, run.batch_size)]
            ready = [engine.batch(images, rows, STEPS, probe.device) for rows in parts]
            plain = replace(run, model=model, folded=0)
            forward = functools.partial(bare_pass, plain, ready)
            forward()
            for _ in range(repeats):
                with clocked(device, bare):
                    forward()
                with clocked(device, whole):
                    h, _ = features(run, head, images)
                    there = probe.device if device == "cuda" else torch.device("cpu")
                    closed_form.influence(
                        h.to(there), labels.to(there), head.matrix.to(there), closed_form.Damping(0.01)
                    )
            ratios = [one / other for one, other in zip(whole, bare, strict=True)]
            tell(f"{name}, {precision}", {
                "ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios],
                "images_a_second": round(n / statistics.median(whole)), "bare_images_a_second": round(n / statistics.median(bare)),
                "batch_size": run.batch_size, "images": n,
            })  # fmt: skip
            del ready


def bare_pass(run: Engine, ready: list[Tensor]) -> None:
    """The forward pass alone, of the model as it was loaded."""
    with torch.inference_mode():
        for batch in ready:
            run.forward(batch)


PHASES = {"commands": commands, "models": models, "memory": memory, "floor": floor}
