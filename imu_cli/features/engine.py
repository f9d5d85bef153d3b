"""Features: what enters the head, for every sample, from one batched pass of the frozen backbone."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError, InvalidRowsError, RefusedError
from imu_cli.features import folding, prepacking
from imu_cli.features.precision import Precision
from imu_cli.models.arithmetic import Kind, float32_as
from imu_cli.models.batches import Batch, call, count, each, first, tensors, word
from imu_cli.models.embedding import embed
from imu_cli.models.head import PRECISIONS, hooked, logits_of, tapped
from imu_cli.models.language import Body
from imu_cli.models.replay import REPLAY_TOLERANCE
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.inputs import InputStep
from imu_cli.samples.texts.sentences import firsts

PROBE = 4
"""Samples used to find the head and to try whether two passes agree."""
TRIED = 64
"""Samples of which so many have to be readable: those that are not are named, with all others, when the set is decoded."""

FEW = 2
"""Samples of the probe that the way a model runs is tried on."""

CACHED_BYTES = {"image": 16 * 2**20, "text": 32 * 2**20}
"""Bytes of a layer's output for a batch on the CPU up to which it was quickest: of images for small and large networks alike, of
texts on one MiniLM and a busy machine."""
SMALLEST, LARGEST = 4, 256
"""Samples in a batch on the CPU."""
LARGEST_ON_GPU = 1024
TF32_FROM = 8
"""Compute capability of the first GPUs that have TF32, Ampere's."""
GPU_SHARE = 0.5
"""Share of an accelerator's free memory that a batch's activations may take."""


def pick_device(wanted: str, local_rank: int = 0) -> torch.device:
    """``auto`` is CUDA where there is one, else Apple's GPU, else the CPU; of several GPUs the ``local_rank``-th.

    Raises:
        ImuError: the wanted device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = next(name for name in ("cuda", "mps", "cpu") if there[name]) if wanted == "auto" else wanted
    if not there[found]:
        raise ImuError(f"--device {wanted}: not available to this torch; use --device auto or cpu")
    return torch.device(found, local_rank % torch.cuda.device_count()) if found == "cuda" else torch.device(found)


def refuse_precision(precision: Precision, device: torch.device) -> None:
    """Refuse TF32 where nothing computes in it.

    Raises:
        ImuError: no NVIDIA GPU, or one from before Ampere.
    """
    if precision != "tf32":
        return
    if device.type != "cuda" or torch.version.cuda is None:
        raise ImuError(
            f"--precision tf32: what NVIDIA's GPUs compute in, and the model runs on {device.type}; use --precision float32"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if major < TF32_FROM:
        raise ImuError(
            f"--precision tf32: this GPU's compute capability is {major}.{minor}, and TF32 comes with {TF32_FROM}.0; "
            "use --precision float32"
        )


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """The model where and how it runs fastest: on the device, convolutions in channels_last."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def batch(samples: SampleSet, rows: Sequence[int], preprocess: InputStep, device: torch.device) -> Batch:
    """Some rows, in the order given, as one batch that the model takes, on the device.

    Images are (n, channels, height, width) float32, channels_last.
    """
    return to_device(preprocess.together(samples, rows), preprocess, device)


def probe_of(samples: SampleSet, preprocess: InputStep, device: torch.device) -> Batch:
    """The first ``PROBE`` samples that can be had, as a batch.

    Raises:
        InvalidRowsError: none can.
        ImuError: they differ in shape.
    """
    try:
        return batch(samples, firsts(samples)[:PROBE], preprocess, device)
    except InvalidRowsError:
        readable, problems = list[int](), list[str]()
        for row in range(len(samples)):
            try:
                preprocess.together(samples, [row])
                readable.append(row)
            except InvalidRowsError as error:
                problems += error.problems
            if len(readable) == PROBE:
                break
        if not readable:
            raise InvalidRowsError(list(dict.fromkeys(problems))) from None
        return batch(samples, readable, preprocess, device)


def to_device(stacked: Batch, preprocess: InputStep, device: torch.device) -> Batch:
    """What an input step made as the model takes it, on the device; images in channels_last."""

    # Copied while the device computes, from memory that is pinned: a batch that decoding joined is so already.
    def moved(tensor: Tensor) -> Tensor:
        return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

    return each(preprocess.scale(each(stacked, moved)), _laid_out)


def _laid_out(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


CHECKED = {"image": "mode, size and crop of the preprocessing", "text": "the tokenizer beside the weights"}
"""What may be wrong with samples that a model cannot run on."""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _logits(model: nn.Module, samples: Batch) -> Tensor:
    return logits_of(call(model, samples))


def refuse_if_random(model: nn.Module, probe: Batch, output: Callable[[nn.Module, Batch], Tensor] = _logits) -> None:
    """Run the same few samples twice; a model whose ``output`` differs cannot be scored.

    Raises:
        ImuError: two passes differ, or the model cannot run on such samples.
    """
    try:
        with torch.inference_mode(), float32_as("ieee"):
            first, second = output(model, probe), output(model, probe)
    except ImuError:
        raise
    except Exception as error:  # models raise anything where a sample does not suit them
        shown = tensors(probe)[0]
        raise ImuError(
            f"model: cannot run on {tuple(shown.shape[1:])} {str(shown.dtype).removeprefix('torch.')} {word(probe)}s "
            f"({_first_line(error)}); check {CHECKED[word(probe)]}, and the architecture"
        ) from error
    if not torch.allclose(first, second, rtol=0, atol=0, equal_nan=True):
        gap = float((first - second).abs().max())
        raise ImuError(
            f"model: two passes over the same {count(probe)} {word(probe)}s differ by up to {gap:.2g} in eval() mode; "
            "its forward is random (dropout or noise that ignores eval()?), so scores would not be reproducible"
        )


def refuse_if_padding_counts(model: nn.Module, probe: Batch, preprocess: InputStep) -> None:
    """Refuse a model whose answer for a sample depends on what it is padded to; images are not padded.

    Raises:
        RefusedError: the shortest sample of the probe, alone, gets other logits than beside longer ones.
    """
    found = preprocess.alone(probe)
    if found is None:
        return
    row, single = found
    with torch.inference_mode(), float32_as("ieee"):
        alone, beside = logits_of(call(model, single))[0], logits_of(call(model, probe))[row]
    gap = float((alone - beside).abs().max())
    if gap > PADDED * float(alone.abs().max()):
        short, long = (tensors(one)[0].shape[1] for one in (single, probe))
        raise RefusedError(
            f"model: a text of {short} tokens gets other logits alone than padded to {long} (by up to {gap:.2g}), so that its "
            "result would depend on its neighbours; check pad_token_id and padding_side, or name a factory whose model "
            "takes input_ids and attention_mask"
        )


PADDED = 1e-3
"""Largest difference, relative to the largest logit, that padding may make."""


# How the model runs


@dataclass(frozen=True)
class Engine:
    """A model as it runs over many samples: folded and laid out where that can be, in a precision, so many samples at a time.

    ``folded`` counts the batch norms that were folded into convolutions, ``prepacked`` the linear layers whose weights are laid out
    for the processor; ``batch_size`` is the plan that results depend on in their last bits. ``embeds``: the features are what
    ``layer`` returns, not what enters it, and there are no logits.
    """

    model: nn.Module
    layer: str
    device: torch.device
    batch_size: int
    precision: Precision
    folded: int = 0
    embeds: bool = False
    prepacked: int = 0

    def forward(self, samples: Batch) -> tuple[Tensor, Tensor]:
        """Features (n, d) and logits (n, c) of a batch, as the model makes them in this precision and no other."""
        kind: Kind = "tf32" if self.precision == "tf32" else "ieee"
        if self.embeds:
            with self.casting(), float32_as(kind):
                found = embed(self.model, self.layer, samples)
            return found, found[:, :0]
        with tapped(self.model.get_submodule(self.layer)) as seen, self.casting(), float32_as(kind):
            logits = logits_of(call(self.model, samples))
        h = seen[0].rows(logits, samples)
        if h is None:
            raise RefusedError(
                f"head {self.layer}: the logits of some {word(samples)} are not this layer's output at one place of it, as they were for "
                "the first ones; this model cannot be handled"
            )
        return h, logits

    def casting(self) -> AbstractContextManager[Any]:
        """The context in which the model computes in less than float32."""
        if PRECISIONS[self.precision] == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision])


def engine(
    model: nn.Module,
    layer: str,
    probe: Batch,
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    full: float = 1.0,
    embeds: bool = False,
) -> Engine:
    """The quickest way to run a model that gives its features: norms folded, weights laid out, and a batch size that suits the device.

    Args:
        model: in ``eval()`` mode, on its device.
        layer: path of the head.
        probe: a few samples on the device, as the model takes them.
        batch_size: samples at a time; found if None.
        precision: what the backbone computes in.
        full: the room that a sample may take, where one of the probe takes 1; ``InputStep.full``.
        embeds: whether the layer's output is wanted, as the embedding of a model without classes.
    """
    probe = first(probe, FEW)
    size = batch_size or _batch_size(model, probe, full)
    plain = Engine(model, layer, tensors(probe)[0].device, size, "float32", embeds=embeds)
    quick, count = folding.folded(model, probe)
    chosen = replace(plain, model=quick, folded=count)
    if count and not _alike(plain, chosen, probe):
        chosen = plain
    if precision == "float32":
        quick, laid_out = prepacking.prepacked(chosen.model, layer)
        faster = replace(chosen, model=quick, prepacked=laid_out)
        chosen = faster if laid_out and _alike(plain, faster, probe) else chosen
    return replace(chosen, precision=precision)


def engine_of_body(
    model: nn.Module, layer: str, probe: Batch, batch_size: int | None, precision: Precision, full: float
) -> Engine:
    """A language model as it runs over many records, up to what enters its head; arguments as for ``engine``."""
    probe = first(probe, FEW)
    body = Body(model, layer)
    size = batch_size or _batch_size(body, probe, full)
    return Engine(body, layer, tensors(probe)[0].device, size, precision)


def _alike(one: Engine, other: Engine, probe: Batch) -> bool:
    """Whether both give the probe the same features to the replay tolerance, where they are finite; not where the other cannot run."""
    with torch.inference_mode():
        expected = one.forward(probe)[0]
        try:
            found = other.forward(probe)[0]
        except Exception:  # noqa: BLE001 a copy of own code may run the layers of the model that it was copied from
            return False
    finite = torch.isfinite(expected).all(dim=1)
    if not bool(finite.any()):
        return True
    error = float((expected[finite] - found[finite]).abs().max())
    return error <= REPLAY_TOLERANCE[torch.float32] * max(float(expected[finite].abs().max()), 1e-30)


def _batch_size(model: nn.Module, probe: Batch, full: float) -> int:
    """A power of two: on the CPU what keeps a layer's output in the cache, on CUDA what its free memory holds.

    On the CPU it depends on the model and the samples' size alone, so that results are the same bits again.
    """
    if tensors(probe)[0].device.type == "cuda":
        return _batch_size_on_gpu(model, probe, full)
    return _power_of_two(CACHED_BYTES[word(probe)] / (full * max(_outputs(model, first(probe, 1)))), LARGEST)


def _power_of_two(samples: float, most: int) -> int:
    return max(SMALLEST, min(most, 1 << max(0, int(samples)).bit_length() >> 1))


def _outputs(model: nn.Module, samples: Batch) -> list[int]:
    """Bytes of what goes in, and of the output of every layer that runs."""
    found: list[int] = [tensor.numel() * tensor.element_size() for tensor in tensors(samples)]

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append(output.numel() * output.element_size())

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    with hooked(handles), torch.inference_mode(), float32_as("ieee"):
        call(model, samples)
    return found


def _batch_size_on_gpu(model: nn.Module, probe: Batch, full: float) -> int:
    device = tensors(probe)[0].device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode(), float32_as("ieee"):
        call(model, probe)
    each_one = max((torch.cuda.max_memory_allocated(device) - before) / count(probe), 1.0)
    free, _ = torch.cuda.mem_get_info(device)
    return _power_of_two(GPU_SHARE * free / (full * each_one), LARGEST_ON_GPU)
