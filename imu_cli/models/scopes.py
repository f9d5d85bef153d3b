"""Scopes: which of a network's weights move. Found by running it, so that own code needs no names that we know.

Only weights of linear, convolution, embedding and affine normalisation layers move; buffers, positions and class tokens never do.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import translate

import torch
from torch import nn

from imu_cli.errors import ImuError
from imu_cli.models.arithmetic import float32_as
from imu_cli.models.batches import Batch, call, each, first
from imu_cli.models.head import hooked, logits_of
from imu_cli.models.layers import is_conv1d

HEAD, LAST_BLOCK, ALL = "head", "last-block", "all"
STACK = 6
"""Blocks of one kind and size from which on they are a stack, of which the last third is the last block."""
WEIGHTY = 2
"""Linear or convolution layers from which on a module is a block, and not a layer with its activation."""
MOST = 2 / 3
"""Share of a network's linear and convolution layers from which on one part is the network, and those before it its stem."""
LINEAR = (nn.Linear, nn.modules.conv._ConvNd, nn.Bilinear)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
TABLES = (nn.Embedding, nn.EmbeddingBag)
ATTENTION = (nn.MultiheadAttention,)
OWN = re.compile(r"(?:Norm|RMSNorm|LayerNorm2d|Conv1D)$")
"""Ends the class of a normalisation that a library wrote itself (RMSNorm of language models), or of GPT-2's linear layer."""
POSITIONS = re.compile(r"(?:^|_)(?:wpe|pos|positions?|positional)(?:_|$)")
"""In the name of an embedding that says where a token stands, and not which it is."""
RANGE = re.compile(r"\\?\[(\d+)-(\d+)\\?\]")


@dataclass(frozen=True)
class Event:
    """A module was entered, or left with an output."""

    path: str
    entered: bool
    output: object = field(default=None, repr=False)


@dataclass(frozen=True)
class Scope:
    """What moves.

    Attributes:
        given: as the user wrote it.
        modules: paths of the layers that move, in the order in which they first run.
        parameters: their weights by the model's names; one that several layers share stands once.
        shown: what is said of it: ``layer3, linear``.
    """

    given: str
    modules: tuple[str, ...]
    parameters: Mapping[str, nn.Parameter] = field(repr=False)
    shown: str

    @property
    def count(self) -> int:
        """Numbers that move."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def described(self) -> str:
        """One line for the user, before the first step."""
        return f"{self.shown}: {self.count:,} weights of {len(self.modules)} layers"


def events(model: nn.Module, probe: Batch, *, outputs: bool = False) -> list[Event]:
    """Every entering and leaving of a module in one pass over a few samples, in order; with the modules' outputs if asked for."""
    found: list[Event] = []
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: found.append(Event(path, True))))
        handles.append(
            module.register_forward_hook(
                lambda _, __, made, path=path: found.append(Event(path, False, made if outputs else None))
            )
        )
    with hooked(handles), torch.inference_mode(), float32_as("ieee"):
        call(model, probe)
    return found


Answers = Callable[[nn.Module, Batch], torch.Tensor]
"""What a model says of a batch: its logits, or an embedding."""


def logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """The logits (n, c) of a classifier."""
    return logits_of(call(model, batch))


def find(
    model: nn.Module, probe: Batch, given: str, head: str, answers: Answers = logits, without: str | None = None
) -> Scope:
    """The layers that a scope means.

    Args:
        model: in ``eval()`` mode.
        probe: a few samples as the model takes them.
        given: ``last-block``, ``all``, or patterns of module paths separated by commas: ``layer3.*``, ``blocks.[10-11]``. A pattern
            that matches a module means everything inside it.
        head: path of the head.
        answers: what depends on the weights that may move.
        without: path of a layer that stays whatever is given.

    Raises:
        ImuError: a pattern matches nothing that moves; the message lists what there is.
    """
    order = list(dict.fromkeys(event.path for event in events(model, first(probe, 1)) if event.entered))
    movable = [path for path in _movable(model, first(probe, 1), order, answers) if path != without]
    if given == ALL:
        return _scope(model, given, movable, "all layers")
    if given == LAST_BLOCK:
        block = last_block(model, order, head)
        start = order.index(block[0])
        return _scope(model, given, [path for path in movable if _place(path, order) >= start], "")
    patterns = [pattern.strip() for pattern in given.split(",")]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {path for path in movable if any(_pattern(pattern).fullmatch(start) for start in _starts(path))}
        if not found:
            raise ImuError(f"--scope {given}: {_matches_nothing(model, pattern, order, movable)}")
        chosen |= found
    return _scope(model, given, [path for path in movable if path in chosen], "")


def _movable(model: nn.Module, probe: Batch, order: Sequence[str], answers: Answers) -> list[str]:
    """Paths of the layers that may move, as they run: those whose weights the answers depend on.

    A layer is not always called: attention often takes the weights of its projections and multiplies by itself.
    """
    own = {id(parameter): parameter for parameter in model.parameters() if parameter.is_floating_point()}
    before = {key: parameter.requires_grad for key, parameter in own.items()}
    try:
        for parameter in own.values():
            parameter.requires_grad_(True)
        with torch.enable_grad(), float32_as("ieee"):
            # Clones: what was made in inference mode cannot be differentiated through.
            made = answers(model, each(probe, lambda tensor: tensor.clone()))
        gradients = torch.autograd.grad(made.float().square().sum(), list(own.values()), allow_unused=True)
    finally:
        for key, parameter in own.items():
            parameter.requires_grad_(before[key])
    used = {key for key, gradient in zip(own, gradients, strict=True) if gradient is not None}
    paths = [
        path
        for path, module in model.named_modules()
        if moves(module, path) and any(id(parameter) in used for parameter in module.parameters(recurse=False))
    ]
    return sorted(paths, key=lambda path: _place(path, order))


def _place(path: str, order: Sequence[str]) -> int:
    """When a layer runs: when it is entered, or the module around it whose forward uses its weights."""
    return next(order.index(start) for start in [*reversed(_starts(path)), ""] if start in order)


def moves(module: nn.Module, path: str) -> bool:
    """Whether the own weights of the layer at a path may move."""
    own = list(module.parameters(recurse=False))
    if isinstance(module, TABLES) and POSITIONS.search(path.rpartition(".")[2]):
        return False
    known = isinstance(module, (*LINEAR, *NORMS, *TABLES, *ATTENTION)) or OWN.search(type(module).__name__) is not None
    return known and any(parameter.is_floating_point() for parameter in own)


def last_block(model: nn.Module, order: Sequence[str], head: str) -> list[str]:
    """Paths of the last block: the last stage of a network that has stages, the last third of one that stacks equal blocks.

    From the model down: of the parts that run and hold two linear or convolution layers at least, the only one is looked into, and
    of several the last is the last stage, unless it is most of the network or a stack (then those before it are a stem, and it is
    looked into). Where no part does, it is the last third of the layers themselves.
    """
    layers = [
        path for path in order if isinstance(model.get_submodule(path), LINEAR) or is_conv1d(model.get_submodule(path))
    ]
    layers = [path for path in layers if path != head] or [head]
    inside = ""
    while True:
        sizes: dict[str, int] = {}
        for path in layers:
            if not inside or path.startswith(f"{inside}."):
                part = _part(path, inside)
                sizes[part] = sizes.get(part, 0) + (part != path)
        blocks = [part for part in sizes if sizes[part] >= WEIGHTY]
        if len(blocks) > 1:
            if _stacked(model, blocks):
                return blocks[-(-(len(blocks) * 2) // 3) :]
            last = model.get_submodule(blocks[-1])
            children = [f"{blocks[-1]}.{name}" for name, _ in last.named_children()]
            if not (sizes[blocks[-1]] > MOST * sum(sizes.values()) or _stacked(model, children)):
                return blocks[-1:]
            blocks = blocks[-1:]
        if not blocks or len(list(model.get_submodule(blocks[0]).parameters(recurse=False))) == len(
            list(model.get_submodule(blocks[0]).parameters())
        ):
            own = [path for path in layers if not inside or path.startswith(f"{inside}.")]
            return own[-(-(len(own) * 2) // 3) :] or own[-1:]
        inside = blocks[0]


def _stacked(model: nn.Module, blocks: Sequence[str]) -> bool:
    """Whether blocks are of one kind and size, and enough of them."""
    kinds = {
        (type(module), tuple(tuple(p.shape) for p in module.parameters()))
        for module in map(model.get_submodule, blocks)
    }
    return len(blocks) >= STACK and len(kinds) == 1


def _part(path: str, inside: str) -> str:
    """The part directly below ``inside`` that a path lies in."""
    rest = path[len(inside) + 1 :] if inside else path
    return f"{inside}." * bool(inside) + rest.partition(".")[0]


def _starts(path: str) -> list[str]:
    words = path.split(".")
    return [".".join(words[:count]) for count in range(1, len(words) + 1)]


def _pattern(pattern: str) -> re.Pattern[str]:
    """A shell pattern in which ``[19-21]`` is a range of numbers, as those who name blocks mean it; ``layer3.*`` is what lies inside."""
    found, marks = pattern, []
    for low, high in RANGE.findall(pattern):
        marks.append(
            "(?:" + "|".join(str(number) for number in range(int(low), min(int(high), int(low) + 9999) + 1)) + ")"
        )
        found = found.replace(f"[{low}-{high}]", f"\0{len(marks) - 1}\0", 1)
    made = translate(found)
    for number, mark in enumerate(marks):
        made = made.replace(re.escape(f"\0{number}\0"), mark).replace(f"\0{number}\0", mark)
    return re.compile(made)


def _matches_nothing(model: nn.Module, pattern: str, order: Sequence[str], movable: Sequence[str]) -> str:
    there = [path for path in dict(model.named_modules()) if path and _pattern(pattern).fullmatch(path)]
    if there:
        never = (
            "never runs"
            if not set(there) & set(order)
            else "has no weights that move (linear, convolution, norm, embedding)"
        )
        return f"{pattern} matches {there[0]}, which {never}; {_what_there_is(movable)}"
    return f"{pattern} matches no module; {_what_there_is(movable)}"


def _what_there_is(movable: Sequence[str]) -> str:
    """The model's parts, two words deep, and how many layers each has."""
    parts: dict[str, int] = {}
    for path in movable:
        part = ".".join(path.split(".")[:2])
        parts[part] = parts.get(part, 0) + 1
    shown = [part if count == 1 and part in movable else f"{part} ({count} layers)" for part, count in parts.items()]
    return f"there are {', '.join(shown[:40])}{', …' if len(shown) > 40 else ''}; write last-block, all or patterns of such paths"


def _scope(model: nn.Module, given: str, paths: Sequence[str], shown: str) -> Scope:
    known: dict[int, str] = {}
    parameters: dict[str, nn.Parameter] = {}
    for path in paths:
        for name, parameter in model.get_submodule(path).named_parameters(recurse=False):
            if id(parameter) not in known and parameter.is_floating_point():
                known[id(parameter)] = f"{path}.{name}"
                parameters[f"{path}.{name}"] = parameter
    return Scope(given, tuple(paths), parameters, shown or _shortened(model, paths))


def _shortened(model: nn.Module, paths: Sequence[str]) -> str:
    """The largest modules all of whose movable layers are among the paths."""
    wanted = set(paths)
    whole: list[str] = []
    for path, module in model.named_modules():
        inside = {f"{path}.{name}" if name else path: inner for name, inner in module.named_modules()}
        inner = [place for place, layer in inside.items() if moves(layer, place)]
        inside_known = any(path == other or path.startswith(f"{other}.") for other in whole)
        if path and inner and not inside_known and set(inner) <= wanted:
            whole.append(path)
    return ", ".join(whole[:12]) + (f" and {len(whole) - 12} more" if len(whole) > 12 else "")
