"""From a checkpoint and an architecture's name to a model with the checkpoint's weights, loaded strictly.

The name comes from ``--arch``, else from a record, the file's metadata or the ``config.json`` beside it; where none of them says,
those that fit are listed, and the user is asked. Code runs only if the user named it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imu_cli.errors import ImuError, RefusedError
from imu_cli.files.reading import cut, json_value
from imu_cli.files.yaml_reading import DEEPEST, parse_yaml
from imu_cli.models import bounds, candidates, factories, names, sidecar, silent_arguments
from imu_cli.models.checkpoint import Checkpoint
from imu_cli.models.names import Naming
from imu_cli.models.sidecar import Said


@dataclass(frozen=True)
class Architecture:
    """What was built: the name as given, its source, factory arguments, and the SHA-256 of a user's own file."""

    name: str
    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    code_sha256: str | None = None

    @property
    def runs_code(self) -> bool:
        """Whether naming it again would run a file or module that is not a registry's."""
        return not sidecar.is_registry(self.name)

    def described(self) -> dict[str, Any]:
        """As it stands in the record and the cache key."""
        return {"name": self.name, "source": self.source, "arguments": dict(self.arguments), "code": self.code_sha256}


@dataclass(frozen=True)
class Loaded:
    """A model in ``eval()`` mode with the checkpoint's weights, which of the file's tensors they are, and what its files say.

    ``notes`` are what a user should know of how it was built: what was left out, and what was not chosen by anybody.
    """

    model: nn.Module
    architecture: Architecture
    naming: Naming
    said: tuple[Said, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """What the file's names have before the model's."""
        return self.naming.prefix

    @property
    def takes(self) -> Literal["image", "text", "word", "record"] | None:
        """What the model is a classifier of, or answers, as its library says; None for somebody's own."""
        if self.architecture.runs_code:
            return None
        if type(self.model).__name__.endswith(CAUSAL):
            return "record"
        if type(self.model).__name__.endswith(OF_WORDS):
            return "word"
        return "text" if getattr(self.model, "main_input_name", "") == "input_ids" else "image"

    def state_of(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The model's tensors in a file like the one that it was loaded from, under the model's names."""
        return _state(checkpoint, self.naming)


def _state(checkpoint: Checkpoint, naming: Naming) -> dict[str, Tensor]:
    return {naming.own(name): tensor for name, tensor in checkpoint.tensors(naming.left_out).items()}


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``key=value`` pairs; values are read as YAML scalars, so ``width=2`` is a number.

    Raises:
        ImuError: a pair without a key or an equals sign, or a value that is not YAML.
    """
    arguments = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not (sign and key.isidentifier()):
            raise ImuError(f"--arch-arg {pair}: not key=value; write for example --arch-arg width=2")
        arguments[key] = _scalar(pair, value)
    return arguments


def _scalar(pair: str, text: str) -> Any:
    """JSON where it is JSON, so that 1e-3 is a number also in a list (PyYAML reads it as text); else a YAML scalar."""
    with suppress(ValueError):
        return json_value(text, deepest=DEEPEST)
    return parse_yaml(text, f"--arch-arg {cut(pair)}", "quote the value")


def _build(factory: Callable[..., nn.Module], name: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        model = factory(**arguments)
    except ImuError:
        raise
    except (Exception, SystemExit) as error:
        said = str(error).partition("\nException raised from ")[0]  # and torch's own frames, of which nobody asked
        raise ImuError(f"--arch {name}: the factory failed ({type(error).__name__}: {said}); see --arch-arg") from error
    if not isinstance(model, nn.Module):
        raise ImuError(f"--arch {name}: returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def _classes_in_file(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Number of outputs in the file, if all that differs from the template is one first dimension; else None.

    A bias that has the template's outputs beside a weight that has the file's is a damaged head.
    """
    template = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in shapes}
    differing = {name: shape for name, shape in template.items() if shapes[name] != shape}
    sizes = {shapes[name][:1] for name in differing}
    fits = all(len(shapes[name]) == len(shape) and shapes[name][1:] == shape[1:] for name, shape in differing.items())
    layers = {(name.rpartition(".")[0], shape[:1]) for name, shape in differing.items()}
    stays = any(
        (name.rpartition(".")[0], shape[:1]) in layers for name, shape in template.items() if name not in differing
    )
    return sizes.pop()[0] if fits and len(sizes) == 1 and not stays else None


def _widen(model: nn.Module) -> None:
    """Weights narrower than float32 become float32, before float32 values of the file would be rounded to them."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor.data = tensor.data.float()


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str, prefix: str = "") -> None:
    """Copy the tensors into the model, in its dtypes but float32 at least, or say every way in which they do not fit.

    ``prefix`` is what the file has before their names.

    Raises:
        ImuError: tensors are missing, unexpected, misshapen or not finite.
        RefusedError: numbers without a fraction, or complex ones, stand where the architecture computes with fractions.
    """
    _widen(model)
    tensors = {name: tensor.float() if _is_float8(tensor) else tensor for name, tensor in tensors.items()}
    _refuse_other_numbers(model, tensors, where)
    own = _own_names(model, {name: tensor.shape for name, tensor in tensors.items()})
    state: Mapping[str, Tensor] = tensors
    misfits: dict[str, list[str]] = {}
    if own is not None:
        state = {name: tensors[given] for name, given in own.items()}
    elif _is_transformers(model):
        state, misfits = _translated(model, tensors)
    else:
        misfits = _misfits(model, tensors)
    found = [f"{kind}: {names.listed(those)}" for kind, those in misfits.items() if those]
    if found:
        raise ImuError(f"{where}: does not fit the architecture; {'; '.join(found)}; {_mend(model, misfits, prefix)}")
    bad = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if bad:
        raise ImuError(f"{where}: not finite (NaN or infinity) in {names.listed(bad)}; this checkpoint is damaged")
    # Into a state of the model's own: it has the layers' versions, which mnasnet asks for and no safetensors file has.
    full = model.state_dict()
    full.update(state)
    model.load_state_dict(full)


def _mend(model: nn.Module, misfits: Mapping[str, Sequence[str]], prefix: str) -> str:
    """What to do about tensors that do not fit: leave out what lies beside the model, or say the architecture better."""
    words = {name.partition(".")[0] for name in model.state_dict()}
    unexpected = misfits["unexpected"]
    if unexpected and not any(name.partition(".")[0] in words for name in unexpected) and not misfits["missing"]:
        options = sorted({names.beside_words(name, prefix) for name in unexpected})[:3]
        shown = " ".join(f"--leave-out {option}" for option in options)
        return f"if these are no part of the classifier, add {shown}; else check --arch and --arch-arg"
    return "check --arch and --arch-arg"


def _is_float8(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() == 1


def _refuse_other_numbers(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse integers and truth values where the architecture has fractions, and whatever a cast would change in silence.

    Names that the model does not know are told as unexpected, or are transformers' older names, of which weights are floats.
    """
    expected, older = model.state_dict(), _is_transformers(model)
    for name, tensor in tensors.items():
        target = expected.get(name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_weight = older and (name.endswith((".weight", ".bias")) or tensor.element_size() == 1)
        if (target is None and not is_weight) or (target is not None and target.dtype == tensor.dtype):
            continue
        if (target is None or target.is_floating_point()) and not tensor.is_floating_point():
            quantised = tensor.dtype in (torch.int8, torch.uint8)
            why = "quantised weights mean nothing without their scales: give the checkpoint from before quantisation"
            raise RefusedError(
                f"{where}: {name} is {dtype} in the file, where the architecture computes with fractions; "
                + (why if quantised else "imu does not turn one into the other: check --arch, or save it as floats")
            )
        if target is None:
            continue
        exact = target.is_floating_point() or name.endswith(names.COUNTERS) or target.is_complex()
        if not exact and not bool((tensor.to(target.dtype).to(tensor.dtype) == tensor).all()):
            raise RefusedError(
                f"{where}: {name} is {dtype} in the file and {str(target.dtype).removeprefix('torch.')} in the architecture, "
                "which cannot hold its values; check --arch"
            )


def _misshapen(name: str, in_file: Sequence[int], in_model: Sequence[int]) -> str:
    return f"{name} is {tuple(in_file)} in the file, {tuple(in_model)} in the architecture"


def _misfits(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What is missing, unexpected and misshapen."""
    expected = model.state_dict()
    return {
        # Files older than PyTorch 0.4.1 lack the batch counter, which plays no part in eval().
        "missing": sorted(name for name in set(expected) - set(tensors) if not name.endswith(names.COUNTERS)),
        "unexpected": sorted(set(tensors) - set(expected)),
        "misshapen": [
            _misshapen(name, tensors[name].shape, tensor.shape)
            for name, tensor in expected.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }


CAUSAL = ("ForCausalLM", "LMHeadModel")
"""What the names of transformers' language models end in."""
OF_WORDS = "ForTokenClassification"
"""What those of its classifiers of words end in."""
FIRST = 4096.0
"""The first number of ``library_names``: none that a layer begins with."""


def _is_transformers(model: nn.Module) -> bool:
    return type(model).__module__.startswith("transformers.models.")


def _own_names(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, str] | None:
    """Under which of these names each tensor of a transformers model stands, if all are its own, tied weights once; else None.

    They need no translation by transformers' loader, which makes a second model of what it is given, as large as the first.
    """
    expected = model.state_dict(keep_vars=True)
    if not _is_transformers(model) or any(
        name not in expected or tuple(expected[name].shape) != tuple(shape) for name, shape in shapes.items()
    ):
        return None
    standing: dict[int, list[str]] = {}
    for name in shapes:
        standing.setdefault(id(expected[name]), []).append(name)
    if any(len(standing.get(id(tensor), ())) != 1 for tensor in expected.values()):
        return None
    return {name: standing[id(tensor)][0] for name, tensor in expected.items()}


def _translated(model: Any, tensors: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], dict[str, list[str]]]:
    """The tensors under the model's names, by transformers itself: its files keep older names than its models have."""
    made, report = type(model).from_pretrained(
        None, config=model.config, state_dict=dict(tensors), dtype=torch.float32, output_loading_info=True,
        ignore_mismatched_sizes=True,
    )  # fmt: skip
    return made.state_dict(), {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "misshapen": [_misshapen(*item) for item in sorted(report["mismatched_keys"])],
    }


def library_names(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What transformers' loader makes of a file's tensors, by the file's names with their shapes: the file's name for each of the model's.

    Found by loading tensors that are numbered. What is joined or cut on loading has no name; whether a tensor is turned is not seen.
    """
    if not _is_transformers(model) or _own_names(model, shapes) is not None:
        return {}
    given = list(shapes)
    numbered = {name: torch.full((1,), FIRST + at).expand(tuple(shapes[name])) for at, name in enumerate(given)}
    state, _ = _translated(model, numbered)
    found = {}
    for name, tensor in state.items():
        at = float(tensor.flatten()[0]) - FIRST if tensor.numel() else -1.0
        if at in range(len(given)) and bool((tensor == FIRST + at).all()):
            found[name] = given[int(at)]
    return found


def read_said(checkpoint: Checkpoint) -> list[Said]:
    """What the model's own files say of it."""
    return sidecar.read(checkpoint.path, checkpoint.metadata, checkpoint.folder)


def choose(
    checkpoint: Checkpoint,
    name: str | None,
    pairs: Sequence[str],
    said: Sequence[Said],
    fallback: Said | None = None,
    proposed: Callable[[], Sequence[str]] = tuple,
) -> Architecture:
    """Which architecture to build, with what arguments, and who said so; ``num_classes`` may still be missing.

    Args:
        checkpoint: the opened model.
        name: ``--arch``; ``hf:`` alone means the config beside the weights.
        pairs: ``--arch-arg``, which win over other sources' arguments.
        said: what the files say (``sidecar.read``).
        fallback: what a record knows; a record that describes this very model is believed before its files.
        proposed: makes the names of architectures that the tensors fit.

    Raises:
        ImuError: nobody says; the message lists the architectures that the tensors fit.
        RefusedError: the files say that it is a model which imu does not handle.
    """
    given = parse_arguments(pairs)
    sources = [*([fallback] if fallback is not None else []), *said]
    if name is not None:
        for item in sources if name.startswith("hf:") else ():
            item.refuse("arch")
        same = next((item for item in sources if item.arch is not None and _same(item.arch, name)), None)
        arguments = {} if same is None or not sidecar.is_registry(name) else dict(same.arguments)
        return Architecture(name, "--arch", {**arguments, **given})
    for item in sources:
        if item.arch is not None:
            return Architecture(item.arch, item.source, {**item.arguments, **given})
        item.refuse("arch")
    raise ImuError(f"{checkpoint.path}: its architecture is not known; {_advice(proposed())}")


def _same(said: str, name: str) -> bool:
    """Whether a file's architecture is the one the user named, so that its arguments belong to it."""
    return said == name or (name == "hf:" and said.startswith("hf:"))


def _advice(found: Sequence[str]) -> str:
    if not found:
        return (
            "no architecture of torchvision or timm, built with its default arguments, fits its tensors; add --arch with the "
            "arguments that it was built with (such as --arch torchvision:vit_b_16 --arch-arg image_size=384), or "
            "--arch file.py:factory"
        )
    lines = "".join(f"\n  --arch {name}" for name in found)
    return (
        f"{len(found)} fit its tensors, and tensors do not tell them apart (a stride, an activation or a missing pooling does not "
        f"show in them); add the one that it was trained as:{lines}"
    )


def load(
    checkpoint: Checkpoint,
    name: str | None,
    pairs: Sequence[str] = (),
    fallback: Said | None = None,
    *,
    strip_prefix: str | None = None,
    leave_out: Sequence[str] = (),
) -> Loaded:
    """Build the architecture and load the checkpoint into it strictly; in ``eval()`` mode, without gradients.

    The number of outputs is passed where the factory takes it, read off the file's head if the default does not fit.

    Args:
        checkpoint: the opened model.
        name: ``--arch``, or None to use what its files say.
        pairs: ``--arch-arg``.
        fallback: what a record knows.
        strip_prefix: ``--strip-prefix``.
        leave_out: ``--leave-out``.

    Raises:
        ImuError: no architecture known, an argument of it that nobody may guess, or the tensors do not fit it.
        RefusedError: the files say that it is a model which imu does not handle.
    """
    sidecar.refuse_other_heads(checkpoint.folder)
    said, where = read_said(checkpoint), str(checkpoint.path)
    in_file = {name: entry.shape for name, entry in checkpoint.entries.items()}

    def proposed() -> Sequence[str]:
        naming = names.find(in_file, {}, where, strip_prefix, leave_out)
        return candidates.find({naming.own(key): in_file[key] for key in set(in_file) - set(naming.left_out)})

    chosen = choose(checkpoint, name, pairs, said, fallback, proposed)
    factory, code = factories.resolve(chosen.name)
    arguments = dict(chosen.arguments)
    if sidecar.is_registry(chosen.name):
        bounds.refuse_larger(factory, arguments, checkpoint, f"{chosen.source} {chosen.name}")
    model = _build(factory, chosen.name, arguments)
    silent_arguments.refuse_unsaid(model, chosen.name, arguments)
    naming = names.find(in_file, _shapes(model), where, strip_prefix, leave_out)
    own = {naming.own(key): in_file[key] for key in set(in_file) - set(naming.left_out)}
    outputs = factories.outputs_argument(factory, chosen.name)
    if outputs is not None and outputs not in parse_arguments(pairs) and not _is_settled(outputs, arguments):
        count = _classes_in_file(model, own)
        if count is not None:
            arguments[outputs] = count
            model = _build(factory, chosen.name, arguments)
    overlooked = silent_arguments.overlooked(model, chosen.name, arguments)
    try:
        load_into(model, _state(checkpoint, naming), where, naming.prefix)
    except ImuError as error:
        if overlooked:
            raise type(error)(f"{error}; {overlooked[0]}") from error
        raise
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    built = Architecture(chosen.name, chosen.source, arguments, code)
    notes = (
        *_left_out(naming, where),
        *_from_float8(checkpoint),
        *overlooked,
        *silent_arguments.unsaid(model, built.name, arguments, built.source),
    )
    return Loaded(model.eval(), built, naming, tuple(said), notes)


def _is_settled(outputs: str, arguments: Mapping[str, Any]) -> bool:
    """Whether somebody gave the number of outputs; a transformers config often has a wrong one, and the file is asked."""
    return outputs == "num_classes" and outputs in arguments


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _left_out(naming: Naming, where: str) -> list[str]:
    if not naming.left_out:
        return []
    return [f"{where}: not loaded, no part of the classifier: {names.in_groups(naming.left_out)}; kept on writing"]


def _from_float8(checkpoint: Checkpoint) -> list[str]:
    narrow = {entry.dtype for entry in checkpoint.entries.values() if entry.dtype.startswith("F8_")}
    return [f"{checkpoint.path}: weights in {', '.join(sorted(narrow))} are computed with in float32"] if narrow else []
