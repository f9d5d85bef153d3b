"""Which architectures go through the whole of ``imu unlearn``, and which are refused, and why?

Each is built by its own library with random weights and 10 outputs, saved as that library saves it (torchvision: a
state_dict; timm: ``save_for_hf``; transformers: ``save_pretrained``), and given to ``imu unlearn`` with random images that
carry the model's own predictions as labels. *Works* means: head found and replayed, at least one step taken, the changed
tensors are the head's, the output loads strictly in its own library, and there gives h W'ᵀ + b' of the original's features
and the written head, and the forget accuracy that the record names. *Refused* means exit code 4 with the reason that was
expected. Everything else fails. Folders are given without ``--arch`` and ``--preprocess``; torchvision needs both.
"""

import contextlib
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import common
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imu_cli.cli import main as imu
from imu_cli.models.batches import WORDS, Batch, call

CLASSES = 10
IMAGES = 12
HALF = [0.5, 0.5, 0.5]
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """An architecture, the arguments that make it small, the side of its images, and the reason if it is to be refused."""

    library: str
    name: str
    size: int = 64
    arguments: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Saved:
    """What was given to ``imu``, with the flags it needs, and how the library loads a model of it again."""

    model: nn.Module
    path: Path
    flags: list[str]
    load: Callable[[Path], nn.Module]


def _torchvision(case: Case, folder: Path, images: Tensor) -> Saved:
    from torchvision import models

    def build() -> nn.Module:
        return models.get_model(case.name, weights=None, num_classes=CLASSES, **case.arguments)

    def load(path: Path) -> nn.Module:
        made = build()
        state = made.state_dict()
        names = set(state)
        state.update(load_file(path))  # keeps the version that mnasnet asks a state for and no safetensors file has
        assert set(state) == names
        made.load_state_dict(state, strict=True)
        return made

    model = build()
    _calibrate(model, images)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "half.yaml").write_text(json.dumps({"mean": HALF, "std": HALF}), encoding="utf-8")
    arguments = [word for key, value in case.arguments.items() for word in ("--arch-arg", f"{key}={json.dumps(value)}")]
    flags = ["--arch", f"torchvision:{case.name}", *arguments, "--preprocess", str(folder / "half.yaml")]
    return Saved(model, folder / "model.safetensors", flags, load)


def _timm(case: Case, folder: Path, images: Tensor) -> Saved:
    import timm
    from timm.models import save_for_hf

    model = timm.create_model(case.name, pretrained=False, num_classes=CLASSES, **case.arguments)
    _calibrate(model, images)
    model.pretrained_cfg |= {
        "input_size": (3, case.size, case.size), "crop_pct": 1.0, "mean": HALF, "std": HALF, "fixed_input_size": False,
    }  # fmt: skip
    save_for_hf(model, folder / "model", model_args=case.arguments or None, safe_serialization=True)

    def load(path: Path) -> nn.Module:
        made = timm.create_model(case.name, pretrained=False, num_classes=CLASSES, **case.arguments)
        made.load_state_dict(load_file(path / "model.safetensors"), strict=True)
        return made  # type: ignore[no-any-return]

    return Saved(model, folder / "model", [], load)


def _transformers(case: Case, folder: Path, images: Tensor) -> Saved:
    import transformers

    kind = getattr(transformers, case.name)
    config = kind.config_class(num_labels=CLASSES, **case.arguments)
    model = kind(config)
    _calibrate(model, images)
    model.save_pretrained(folder / "model")
    processor = transformers.ViTImageProcessor(
        size={"height": case.size, "width": case.size}, image_mean=HALF, image_std=HALF
    )
    processor.save_pretrained(folder / "model")
    return Saved(model, folder / "model", [], kind.from_pretrained)


LIBRARIES = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers}


def _images(folder: Path, size: int) -> Tensor:
    """Random images as PNG files; the same, normalised, as (n, 3, size, size)."""
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 3, size, size), generator=random, dtype=torch.uint8)
    for row, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{row}.png")
    return (pixels.float() / 255 - 0.5) / 0.5


def logits_of(model: nn.Module, samples: Batch) -> Tensor:
    """What a model makes of a batch."""
    with torch.inference_mode():
        made = call(model.eval(), samples)
    made = getattr(made, "logits", made)
    return made if isinstance(made, Tensor) else made[0]  # several heads: only what is refused comes here


def _features(model: nn.Module, module: str, samples: Batch) -> Tensor:
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    logits_of(model, samples)
    handle.remove()
    if isinstance(samples, dict) and WORDS in samples:
        return seen[0][samples[WORDS][:, 0], samples[WORDS][:, 1]]
    if seen[0].ndim == 3 and isinstance(samples, dict):  # on every token: the last one's count
        last = samples["attention_mask"].cumsum(dim=1).argmax(dim=1)
        return seen[0][torch.arange(len(last)), last]
    return seen[0].flatten(1)


def run_imu(saved: Saved, forget: Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, record and messages of ``imu unlearn``."""
    out, said = io.StringIO(), io.StringIO()
    command = ["unlearn", str(saved.path), "--forget", str(forget), *saved.flags, "--device", "cpu"]
    rest = ["--until", "forget.accuracy<=0.5", "--max-head-change", "10", "--no-cache", "--format", "json", "--quiet"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        code = imu([*command, *rest])
    return code, json.loads(out.getvalue()) if out.getvalue().strip() else {}, " ".join(said.getvalue().split())


def _weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / "model.safetensors" if path.is_dir() else path)


def faults_of(
    saved: Saved, record: dict[str, Any], output: Path, samples: Batch, labels: Tensor
) -> tuple[list[str], float]:
    """What is not as promised, and the largest error of the loaded output's logits relative to the largest logit."""
    before, after = _weights(saved.path), _weights(output)
    head = record["head"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    logits = logits_of(saved.load(output), samples).double()
    wide = [
        after[name].double().flatten(1) if number == 0 else after[name].double()
        for number, name in enumerate(head["tensors"])
    ]
    promised = _features(saved.model.eval(), head["module"], samples).double() @ wide[0].T + sum(wide[1:])
    error = float((logits - promised).abs().max() / promised.abs().max())
    share = float((logits.argmax(dim=1) == labels).double().mean())
    # The last step stops where predictions turn: a tie closer than the tolerance may fall either way.
    first, second = logits.topk(2, dim=1).values.T
    ties = float((first - second <= TOLERANCE * logits.abs().max()).double().mean())
    found = {
        "no step was taken": record["end"]["step"] < 1 or not changed,
        f"changed {sorted(changed)}": not changed <= set(head["tensors"]),
        f"other tensors: {sorted(set(before) ^ set(after))[:3]}": set(before) != set(after),
        f"logits are off by {error:.1e}": not error <= TOLERANCE,
        f"{share:.2f} right, record says {record['end']['forget']:.2f}": abs(share - record["end"]["forget"])
        > ties + 1e-9,
    }
    return [what for what, wrong in found.items() if wrong], error


def _calibrate(model: nn.Module, images: Tensor) -> None:
    """Batch normalisation with the statistics of these images: else random features fade, and all logits with them."""
    norms = [part for part in model.eval().modules() if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    for part in model.modules():
        if isinstance(part, nn.Linear) and not bool(part.weight.any()):
            nn.init.normal_(part.weight, std=0.02)  # timm's mixers begin with a head of zeros
    logits_of(model, images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    model.eval()


def run(case: Case, folder: Path) -> dict[str, Any]:
    """One architecture, from building to loading the output; ``outcome`` is works, refused or fails."""
    started = time.perf_counter()
    torch.manual_seed(0)
    row: dict[str, Any] = {"library": case.library, "name": case.name, "size": case.size, "arguments": case.arguments}
    images = _images(folder, case.size)
    saved = LIBRARIES[case.library](case, folder, images)
    labels = logits_of(saved.model, images).argmax(dim=1)
    rows = [f"{number}.png,{int(label)}" for number, label in enumerate(labels)]
    (folder / "forget.csv").write_text("\n".join(["file_name,label", *rows]) + "\n", encoding="utf-8")
    return finished(case, row, saved, folder / "forget.csv", images, labels, started)


def finished(
    case: Case, row: dict[str, Any], saved: Saved, forget: Path, samples: Batch, labels: Tensor, started: float
) -> dict[str, Any]:
    """The row with what became of ``imu unlearn`` on the list that lies beside the model."""
    code, record, said = run_imu(saved, forget)
    said = said.replace(str(forget.parent), "…")
    row |= {"parameters": sum(p.numel() for p in saved.model.parameters()), "code": code}
    if code == 4 and case.refused and case.refused in said:
        row |= {"outcome": "refused", "said": said}
    elif code in (0, 3) and not case.refused:
        output = saved.path.with_name(f"{saved.path.stem}.unlearned{saved.path.suffix}")
        faults, error = faults_of(saved, record, output, samples, labels)
        head = {key: record["head"][key] for key in ("module", "features", "bias", "source", "replay_error")}
        row |= {"outcome": "fails" if faults else "works", "said": "; ".join(faults), "head": head}
        row |= {"steps": record["end"]["step"], "forget": record["end"]["forget"], "loaded_error": error}
    else:
        row |= {"outcome": "fails", "said": said}
    return {**row, "seconds": round(time.perf_counter() - started, 2)}


def run_quietly(case: Case) -> dict[str, Any]:
    """The same in a folder of its own; an exception is a failure with its message."""
    with common.folder("compatibility") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run(case, folder)
        except Exception as error:  # noqa: BLE001 - a library that cannot build or save one is a row, not the end
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}".replace(str(folder), "…")
            return {"library": case.library, "name": case.name, "size": case.size, "outcome": "fails", "said": said}


def _many(library: str, names: str, size: int = 64, **arguments: Any) -> list[Case]:
    return [Case(library, name, size, arguments) for name in names.split()]


POOLED_LATE = "pooled afterwards"
DOUBLE = "a distilled or double head"
TORCHVISION = [
    *_many(
        "torchvision", "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small"
    ),
    *_many("torchvision", "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0"),
    *(Case("torchvision", name, 64, refused=POOLED_LATE) for name in ("squeezenet1_0", "squeezenet1_1")),
    *_many("torchvision", "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf"),
    *_many("torchvision", "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_v2_s"),
    *_many("torchvision", "densenet121 densenet169 densenet201 resnet18 resnet34 resnet50 resnext50_32x4d"),
    *_many("torchvision", "regnet_x_3_2gf regnet_y_3_2gf convnext_tiny swin_t swin_v2_t"),
    *_many("torchvision", "maxvit_t", 224),
    *_many("torchvision", "googlenet", 64, init_weights=False, transform_input=False),
    *_many("torchvision", "inception_v3", 96, init_weights=False, transform_input=False),
    *_many("torchvision", "resnet101 alexnet"),
    *_many("torchvision", "vit_b_32", image_size=64),
    *_many("torchvision", "vgg11"),
]

TIMM = [
    *_many("timm", "resnet10t resnet18 legacy_seresnet18 skresnet18 resnest14d ecaresnet26t resnet26d"),
    *_many("timm", "efficientnet_lite0 efficientnet_b0 tf_efficientnet_b0 mixnet_s mnasnet_small tinynet_e"),
    *_many("timm", "mobilenetv2_035 mobilenetv3_small_050 mobilenetv3_large_100 mobilenetv4_conv_small lcnet_035"),
    *_many(
        "timm",
        "ghostnet_050 ghostnetv2_100 repghostnet_050 fbnetc_100 spnasnet_100 hardcorenas_a rexnet_100 semnasnet_050",
    ),
    *_many("timm", "regnetx_002 regnety_002 repvgg_a0 dla34 dla46_c hrnet_w18_small selecsls42"),
    *_many("timm", "ese_vovnet19b_slim nf_resnet26 mobileone_s0 hgnetv2_b0 inception_next_atto densenet121"),
    *_many(
        "timm", "convnext_atto convnextv2_atto edgenext_xx_small mambaout_femto starnet_s1 fasternet_t0 poolformer_s12"
    ),
    *_many("timm", "mobilevit_xxs mobilevitv2_050 fastvit_t8 efficientvit_b0 pvt_v2_b0"),
    *_many("timm", "vit_tiny_patch16_224 deit_tiny_patch16_224 eva02_tiny_patch14_224 resnetv2_50", 224),
    *_many("timm", "mixer_s32_224 gmlp_ti16_224 convit_tiny xcit_nano_12_p16_224", 224),
    *_many("timm", "cait_xxs24_224 pit_ti_224 efficientvit_m0 shvit_s1 tiny_vit_5m_224", 224),
    Case("timm", "deit_tiny_distilled_patch16_224", 224, refused=DOUBLE),
    Case("timm", "pit_ti_distilled_224", 224, refused=DOUBLE),
    Case("timm", "crossvit_tiny_240", 240, refused=DOUBLE),
    Case("timm", "repvit_m0_9", 64, refused=DOUBLE),
    Case("timm", "levit_128s", 224, refused=DOUBLE),
    Case("timm", "swiftformer_xs", 64, refused=DOUBLE),
    Case("timm", "efficientformerv2_s0", 224, refused=DOUBLE),
]


def _vision(kind: str, **changed: Any) -> Case:
    """A transformer of transformers' with two narrow layers."""
    small = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 64, "patch_size": 16,
    }  # fmt: skip
    return Case("transformers", f"{kind}ForImageClassification", 64, {**small, **changed})


def _stages(kind: str, refused: str = "", **arguments: Any) -> Case:
    """A hierarchical network of transformers'."""
    return Case("transformers", f"{kind}ForImageClassification", 64, arguments, refused)


_CLIP = {
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 64, "patch_size": 16,
    },
    "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48},
}  # fmt: skip

TRANSFORMERS = [
    *(
        _vision(kind)
        for kind in ("ViT", "DeiT", "Beit", "Data2VecVision", "Dinov2", "Dinov2WithRegisters", "IJepa", "ViTMSN")
    ),
    *(_stages(kind, **_CLIP) for kind in ("CLIP", "Siglip", "MetaClip2")),
    _stages("ConvNext", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    _stages("ConvNextV2", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    _stages("ResNet", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"),
    _stages("RegNet", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], groups_width=8),
    _stages("Bit", embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_groups=2),
    _stages("Swin", image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
    _stages("Swinv2", image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
    _stages("DonutSwin", image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4),
    _stages("FocalNet", image_size=64, embed_dim=16, depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3]),
    _stages("MobileNetV1", image_size=64, initializer_range=0.3, depth_multiplier=0.25),
    _stages("MobileNetV2", image_size=64, initializer_range=0.3, depth_multiplier=0.35),
    _stages(
        "MobileViT",
        image_size=64,
        initializer_range=0.3,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 12, 16, 24, 32, 64],
    ),
    _stages("MobileViTV2", image_size=64, initializer_range=0.3, width_multiplier=0.5),
    _stages("PoolFormer", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    _stages("Pvt", image_size=64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]),
    _stages(
        "PvtV2", image_size=64, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]
    ),
    _stages("Segformer", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]),
    _stages("SwiftFormer", DOUBLE, image_size=64, embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    _stages("EfficientNet", image_size=64, initializer_range=0.3, width_coefficient=0.25, hidden_dim=320),
    _stages("TextNet"),
    _stages("HGNetV2"),
    _stages("PPLCNet", "not one (samples, classes) tensor of logits"),
]


PROMISED = {"torchvision": (TORCHVISION, 40), "timm": (TIMM, 60), "transformers": (TRANSFORMERS, 20)}
"""What is tried of each library, and of how many a table was promised."""


def _one_by_one(cases: Sequence[Case], path: Path, resume: bool) -> Iterator[dict[str, Any]]:
    """Rows as they come, each kept in ``path``; with ``resume`` those that are there are not run again."""
    there = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if resume and path.exists() else []
    )
    known = {(row["library"], row["name"]): row for row in there if row["outcome"] != "fails"}
    for case in cases:
        row = known.get((case.library, case.name)) or run_quietly(case)
        if (case.library, case.name) not in known:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        common.console.print(case.library, case.name, row["outcome"], row.get("seconds"), row["said"][:200])
        yield row


def main() -> None:
    """Run all, or with --quick two of each library; exit code 1 if one fails or there are fewer than promised."""
    parser = common.parser(__doc__)
    parser.add_argument("--resume", action="store_true", help="keep what an interrupted run of this benchmark has done")
    parser.add_argument(
        "--library", choices=list(PROMISED), help="this one alone; for --resume, nothing is kept in results"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = common.scratch() / "compatibility.jsonl"
    if not (options.resume or options.library):
        path.unlink(missing_ok=True)
    started, rows, criteria = common.environment(), [], []
    for library, (cases, promised) in PROMISED.items():
        if options.library not in (None, library):
            continue
        mine = list(_one_by_one(cases[:2] if options.quick else cases, path, options.resume))
        rows += mine
        outcomes = [row["outcome"] for row in mine]
        told = ", ".join(f"{outcomes.count(word)} {word}" for word in ("works", "refused", "fails"))
        enough = len(mine) >= (2 if options.quick else promised)
        criteria.append(
            common.Criterion(library, f"≥ {promised}, none fails", told, enough and "fails" not in outcomes)
        )
    found = {"runs": rows, "criteria": common.verdicts(criteria)}
    common.keep("compatibility", options.quick or options.library is not None, found, started)
    common.stop(criteria)


if __name__ == "__main__":
    main()
