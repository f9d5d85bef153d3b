"""Scores of an opened forget set: from the cache, or in closed form from its features; and what they look like in numbers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from imu_cli.config.shared import ForgetConfig
from imu_cli.features import cache, cache_entries, extraction, origin
from imu_cli.features.session import Session, Taken
from imu_cli.files import memory
from imu_cli.influence import closed_form, scores
from imu_cli.influence.scores import Scored
from imu_cli.linear.rows import Mapped, Rows, blocks
from imu_cli.records.parts import PrecisionError, RunInfo
from imu_cli.samples import vectors

EXACT_ROWS = 128
"""Samples whose features are computed again in float32, to say what a lower precision did to the scores."""


def _cache_fields(opened: Session) -> dict[str, Any]:
    described = opened.described()
    return {
        "samples": opened.forget.sha256,
        "backbone": opened.outside_sha256,
        "head_module": opened.head.module,
        "architecture": described["architecture"],
        "preprocess": described["preprocess"],
        "dtype": opened.precision,
        "float32": "ieee",  # and not what earlier versions left it to be on a GPU
        "model": opened.checkpoint.path.name or opened.checkpoint.path.resolve().name,
    }


def sample_lines(opened: Session) -> Iterator[dict[str, Any]]:
    """The forget samples as a cache entry lists them."""
    samples = opened.forget.samples
    for row, (name, label) in enumerate(zip(samples.names, samples.labels, strict=True)):
        yield {"name": name, "label": opened.classes.name(label), "digest": samples.digest(row)}


def forget_features(opened: Session, config: ForgetConfig, *, narrow: bool = False) -> Rows:
    """H (n, d+1) of the forget set: from the feature cache if asked for and there, else from its file or from one pass.

    ``narrow`` as for ``Session.features_of``.
    """
    h, source = _forget_features(opened, config, narrow)
    if opened.network is not None and opened.precision != "float32":
        opened.note(
            f"features are computed in {opened.precision}: every number that follows from them carries its error"
        )
    opened.taken = Taken(
        source, isinstance(h, Mapped) and not h.resident, len(h) * h.shape[1] * (4 if isinstance(h, Mapped) else 8)
    )
    return h


def _forget_features(opened: Session, config: ForgetConfig, narrow: bool) -> tuple[Rows, str]:
    samples = opened.forget.samples
    if opened.vectors is not None:
        return opened.features_of(samples, "forget", narrow=narrow), opened.vectors.shown
    fields = _cache_fields(opened)
    if config.cache_features:
        found = cache.find("features", fields)
        if found.tensors is not None:
            return opened.read(found.tensors["features"], samples, narrow=narrow), "cache"
        if found.why:
            opened.note(f"feature cache: {found.why}")
    h = opened.features_of(samples, "forget", narrow=narrow)
    if config.cache_features:
        _keep(opened, h, fields)
    return h, "model"


def _keep(opened: Session, h: Rows, fields: dict[str, Any]) -> None:
    """Write the features to the cache, by blocks."""
    width = opened.head.matrix.shape[1] - opened.head.bias
    parts = (h[rows][:, :width] for rows in blocks(len(h), h.shape[1]))
    with opened.log.timed("cache"):
        cache.write("features", fields, sample_lines(opened), lambda path: vectors.write(path, (len(h), width), parts))
    opened.note(
        "features of the forget samples, which are personal data, were cached; imu cache rm --forget removes them"
    )


def run_info(opened: Session) -> RunInfo:
    """How the features came about, and the memory that they and this process took."""
    taken = opened.taken or Taken("cached scores", False, 0)
    ran = taken.source == "model"
    return RunInfo(
        source=taken.source,
        precision=opened.precision,
        batch_size=opened.engine.batch_size if ran else None,
        folded=opened.engine.folded if ran else None,
        prepacked=opened.engine.prepacked if ran else None,
        streamed=taken.streamed,
        feature_bytes=taken.bytes,
        peak_bytes=memory.peak(),
        accelerator_peak_bytes=torch.cuda.max_memory_allocated(opened.device) if opened.device.type == "cuda" else None,
    )


def score_fields(opened: Session, damping: str) -> dict[str, Any]:
    """What cached scores depend on."""
    return {**_cache_fields(opened), "head": origin.head_hash(opened.head), "damping": damping}


def cached_scores(opened: Session, config: ForgetConfig) -> Scored | None:
    """Scores from the cache, if it is to be used and holds exactly these."""
    if not config.cache:
        return None
    fields = score_fields(opened, config.damping)
    found = cache.find("scores", fields)
    if found.tensors is None:
        if found.why:
            opened.note(f"score cache: not used, {found.why}")
        return None
    t = {name: tensor.to(opened.math_device) for name, tensor in found.tensors.items()}
    path = str(cache_entries.files_of("scores", cache_entries.key_of("scores", fields), cache.folder())[1])
    return Scored(
        t["scores"], t["confidence"], t["right"].bool(), float(t["damping"]), float(t["mean_fisher"]), True, path,
        _unpacked(t["precision_error"]) if "precision_error" in t else None,
    )  # fmt: skip


def _unpacked(numbers: Tensor) -> PrecisionError:
    n, rms, rank, signs = numbers.tolist()
    return PrecisionError(n=int(n), relative_rms=rms, rank_correlation=rank, sign_changed=int(signs))


def compute_scores(opened: Session, config: ForgetConfig, h: Rows) -> Scored:
    """Scores in closed form from the features, written to the cache unless that is turned off."""
    damping = closed_form.Damping.parse(config.damping)
    with opened.log.timed("scores"):
        found = closed_form.influence(h, opened.labels(), opened.matrix(), damping)
    error = _precision_error(opened, found)
    if error is None and opened.precision != "float32":
        opened.note(f"features in precision {opened.precision}: what that does to the scores was not measured here")
    entry = _write_scores(opened, config.damping, found, error) if config.cache else None
    return scores.computed(found, entry, error)


def _write_scores(opened: Session, damping: str, found: closed_form.Influence, error: PrecisionError | None) -> str:
    tensors = {
        "scores": found.scores,
        "confidence": found.confidence,
        "right": found.right.to(torch.uint8),
        "damping": torch.tensor([found.damping], dtype=torch.float64),
        "mean_fisher": torch.tensor([found.mean_fisher], dtype=torch.float64),
    }
    if error is not None:
        numbers = [error.n, error.relative_rms, error.rank_correlation, error.sign_changed]
        tensors["precision_error"] = torch.tensor(numbers, dtype=torch.float64)
    with opened.log.timed("cache"):
        on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        return str(
            cache.write(
                "scores", score_fields(opened, damping), sample_lines(opened), lambda path: save_file(on_cpu, path)
            )
        )


def _precision_error(opened: Session, found: closed_form.Influence) -> PrecisionError | None:
    """What less than float32 did to the scores, on a random part of the set; None in float32, or where no model can run."""
    if opened.network is None or opened.run.precision == "float32":
        return None
    samples = opened.forget.samples
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(opened.run.seed))
    rows = sorted(order[:EXACT_ROWS].tolist())
    exact = replace(opened.engine, precision="float32")
    with opened.log.timed("precision check"):
        again = extraction.stream(exact, opened.head, samples, opened.network.preprocess, rows)
        h = extraction.gather(again, len(rows), opened.head)
    labels, device = opened.labels()[rows], opened.math_device
    wanted = closed_form.along(h.to(device), labels, opened.matrix(), found.preconditioned)
    got = found.scores[rows]
    scale = float(wanted.square().mean().sqrt())
    made = PrecisionError(
        n=len(rows),
        relative_rms=float((got - wanted).square().mean().sqrt()) / scale if scale > 0 else 0.0,
        rank_correlation=_rank_correlation(got, wanted),
        sign_changed=int((got.sign() != wanted.sign()).sum()),
    )
    opened.note(
        f"precision {opened.run.precision}: scores of {made.n} samples computed again in float32 differ by {made.relative_rms:.2%} "
        f"(root mean square), rank correlation {made.rank_correlation:.4f}, {made.sign_changed} change their sign"
    )
    return made


def _rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's ρ of two (n,) without ties; 1 for fewer than two samples."""
    ranks = torch.stack([values.argsort().argsort() for values in (one, other)]).double()
    return float(ranks.corrcoef()[0, 1]) if len(one) > 1 else 1.0


def sample_weights(opened: Session) -> Tensor | None:
    """The manifest's ``weight`` column (n,), or None."""
    given = opened.forget.weights
    return None if given is None else torch.tensor(list(given), dtype=torch.float64, device=opened.math_device)
