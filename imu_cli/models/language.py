"""Causal language models: token ids become logits of the next token, by a linear head with a row for every word.

Most models' logits are the head's output. Some scale it (Cohere, Granite) or keep it below a cap (Gemma): both are read from the config
and proved by running the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError, RefusedError
from imu_cli.models import correspondence
from imu_cli.models.architecture import Loaded
from imu_cli.models.arithmetic import float32_as
from imu_cli.models.batches import Batch, call, count, logits_in, tensors
from imu_cli.models.checkpoint import Checkpoint, same_bits
from imu_cli.models.head import Head, hooked, in_words
from imu_cli.models.replay import REPLAY_TOLERANCE

CAP = "final_logit_softcapping"
"""The config's key for what logits stay below."""


def words_of(output: Any) -> Tensor:
    """The logits (n, t, V) in a model's output.

    Raises:
        RefusedError: it returns something else.
    """
    found = logits_in(output)
    if not isinstance(found, Tensor) or found.ndim != 3:
        raise RefusedError(
            f"model: returned {in_words(found)}, not one (records, tokens, words) tensor of logits; this is no causal language model"
        )
    return found


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """The logits (n, t, V) of a batch."""
    return words_of(call(model, batch))


class _Reached(Exception):  # noqa: N818 the pass ends at the head: its product is never made here
    """The head was reached."""


class Body(nn.Module):
    """A language model up to what enters its head: (n, t, d) for a batch, differentiable; the head does not run."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.layer = layer

    def forward(self, *args: Tensor, **batch: Tensor) -> Tensor:
        """What enters the head."""
        return entering(self.model, self.layer, batch or args[0])


def entering(model: nn.Module, layer: str, batch: Batch) -> Tensor:
    """What enters the head (n, t, d) for a batch; the head does not run."""
    seen: list[Tensor] = []

    def reached(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        raise _Reached

    with hooked([model.get_submodule(layer).register_forward_pre_hook(reached)]):
        try:
            call(model, batch)
        except _Reached:
            return seen[0]
    raise RefusedError(f"head {layer}: did not run; name another with --head")


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """While the context lasts, a model of transformers keeps no keys and values: nothing is generated here."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is None:
        yield
        return
    config.use_cache = False
    try:
        yield
    finally:
        config.use_cache = before


def find_head(model: nn.Module, probe: Batch, checkpoint: Checkpoint, loaded: Loaded, path: str | None = None) -> Head:
    """The head of a language model, proved by replaying the logits of a few records.

    Args:
        model: in ``eval()`` mode, on the records' device.
        probe: a batch as the model takes it.
        checkpoint: the file, for the tensors' names and dtypes.
        loaded: which of the file's names are the model's.
        path: ``--head``.

    Raises:
        ImuError: there is no such layer.
        RefusedError: logits are not this layer's, scaled or capped.
    """
    name, layer = _choose(model, probe, path)
    with torch.inference_mode(), float32_as("ieee"):
        expected = logits(model, probe)
        entered = entering(model, name, probe)
        words = layer(entered)
    real = _real(probe)
    expected, words = expected[real].double(), words[real].double()
    if expected.shape != words.shape:
        raise RefusedError(
            f"head {name}: has {words.shape[-1]:,} outputs, the model {expected.shape[-1]:,} words; name another with --head"
        )
    scale, cap = _scaling(model, expected, words)
    made = words * scale if cap is None else cap * torch.tanh(words * scale / cap)
    error = float((made - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    if not error <= REPLAY_TOLERANCE[torch.float32]:
        raise RefusedError(
            f"head {name}: the model's logits differ from this layer's by {error:.2g} of the largest one: something acts on them that imu does "
            "not know; only a scale and final_logit_softcapping are known"
        )
    bias = layer.bias
    own = {f"{name}.{part}": value for part, value in (("weight", layer.weight), ("bias", bias)) if value is not None}
    found = correspondence.find(checkpoint, loaded, own)
    names = [(found[key] or [checkpoint.named(loaded.prefix, key)])[0] for key in own]
    tied = _tied(model, name, layer)
    if tied:
        _refuse_other_head(checkpoint, *(checkpoint.named(loaded.prefix, one) for one in (f"{name}.weight", tied)))
    entries = checkpoint.entries
    dtypes = [entries[one].dtype if one in entries else "F32" for one in names]
    return Head(
        name, matrix_of(model, name), tuple(names), dtypes[0], dtypes[1] if bias is not None else "", "the layer that makes the logits", error,
        writes=True, tied=tied, scale=scale, cap=cap,
    )  # fmt: skip


def matrix_of(model: nn.Module, layer: str) -> Tensor:
    """A head's weight (V, d) as it is, the model's own memory; with a bias (V, d+1), a copy."""
    head = model.get_submodule(layer)
    assert isinstance(head, nn.Linear)
    weight = head.weight.detach()
    return weight if head.bias is None else torch.cat([weight, head.bias.detach()[:, None]], dim=1)


def _choose(model: nn.Module, probe: Batch, path: str | None) -> tuple[str, nn.Linear]:
    modules = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if path is not None:
        if path not in modules:
            raise ImuError(f"--head {path}: not a linear layer of this model")
        return path, modules[path]
    ask = getattr(model, "get_output_embeddings", None)
    own = ask() if callable(ask) else None
    found = next((name for name, module in modules.items() if module is own and own is not None), None)
    if found is not None:
        return found, modules[found]
    ran: list[str] = []
    handles = [module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in modules.items()]
    with hooked(handles), torch.inference_mode(), float32_as("ieee"):
        words = logits(model, probe).shape[-1]
    fitting = [name for name in ran if modules[name].out_features == words]
    if not fitting:
        raise RefusedError(f"head: no linear layer with {words:,} outputs runs; name one with --head")
    return fitting[-1], modules[fitting[-1]]


def _real(probe: Batch) -> Tensor:
    """Which places (n, t) are a record's own."""
    if isinstance(probe, dict) and "attention_mask" in probe:
        return probe["attention_mask"].bool()
    return torch.ones(count(probe), tensors(probe)[0].shape[1], dtype=torch.bool, device=tensors(probe)[0].device)


def _scaling(model: nn.Module, expected: Tensor, words: Tensor) -> tuple[float, float | None]:
    """Scale and cap that make the model's logits of the head's output, as far as they can be told."""
    cap = getattr(getattr(model, "config", None), CAP, None)
    if cap:
        return 1.0, float(cap)
    scale = float((expected * words).sum() / words.square().sum().clamp(min=1e-300))
    return (1.0 if abs(scale - 1) < REPLAY_TOLERANCE[torch.float32] else scale), None


def _refuse_other_head(checkpoint: Checkpoint, own: str, other: str) -> None:
    """Refuse a file with a head of its own where the model has it tied: what was loaded is not what the file holds.

    Raises:
        RefusedError: naming both tensors.
    """
    if {own, other} <= set(checkpoint.entries) and not same_bits(checkpoint.tensor(own), checkpoint.tensor(other)):
        raise RefusedError(
            f"{checkpoint.path}: holds {own}, which differs from {other}, and its config says that both are one tensor; set "
            "tie_word_embeddings to false in config.json"
        )


def _tied(model: nn.Module, name: str, layer: nn.Linear) -> str:
    """The other name under which the head's weight is used, such as that of the embedding; empty where it is not."""
    own = layer.weight.data_ptr()
    for other, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.data_ptr() == own and not other.startswith(f"{name}."):
            return other
    return ""
