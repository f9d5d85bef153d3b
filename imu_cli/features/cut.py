"""Features at a cut: what enters the part of a network that moves, for every sample, from one pass of what is below it.

Where the moving part begins is found by running the network: the last module that has run to its end before the first moving layer
begins is the cut. Its output is kept; when the part above runs again, that module returns what was kept, and those before it, which
are not run, return zeros that nobody reads. Whether that is so is not assumed: the part above has to reproduce the whole network's
logits, or the whole network runs.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from imu_cli import signals
from imu_cli.errors import ImuError, RefusedError
from imu_cli.features import allocation
from imu_cli.features.engine import to_device
from imu_cli.files import writing
from imu_cli.models.batches import ALONE, WORDS, Batch, call, count, each, first, tensors, twice
from imu_cli.models.head import Tap, hooked, logits_of
from imu_cli.models.replay import REPLAY_TOLERANCE
from imu_cli.models.scopes import Answers, Event, events, logits
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.inputs import InputStep
from imu_cli.samples.packing import as_array

ACCELERATOR_SHARE = 0.25
"""Share of what is free of an accelerator's memory that what is kept of one set may take."""
MASK = "attention_mask"
IDS = "input_ids"


@dataclass(frozen=True)
class Shape:
    """A tensor's dimensions as they follow from a batch: numbers, or "n" for its samples and "t" for its tokens."""

    sides: tuple[int | str, ...]
    dtype: torch.dtype

    def zeros(self, batch: Batch) -> Tensor:
        """A tensor of that shape for a batch."""
        n, length = _sizes(batch)
        sides = [n if side == "n" else length if side == "t" else int(side) for side in self.sides]
        return torch.zeros(sides, dtype=self.dtype, device=tensors(batch)[0].device)


@dataclass(frozen=True)
class Cut:
    """Where the part that moves begins.

    Attributes:
        module: path of the module whose output is kept; "" where nothing is, and the network runs from its input.
        kept: what it returns: shapes in place of tensors.
        skipped: paths of the other modules that do not run again, and what they return.
    """

    module: str = ""
    kept: Any = None
    skipped: Mapping[str, Any] = field(default_factory=dict)


def _sizes(batch: Batch) -> tuple[int, int]:
    """Samples of a batch, and tokens of each (0 for images)."""
    shown = tensors(batch)[0]
    return shown.shape[0], shown.shape[1] if _is_text(batch) else 0


def _is_text(batch: Batch) -> bool:
    """Whether samples have lengths: token ids, alone or by names."""
    shown = tensors(batch)[0]
    return isinstance(batch, dict) or (shown.ndim == 2 and not shown.is_floating_point())


def _shorter(batch: Batch) -> Batch:
    """Fewer samples of fewer tokens, so that it shows which dimensions follow the batch."""
    fewer = first(batch, max(1, count(batch) - 1))
    if not _is_text(batch):
        return fewer
    keep = max(1, _sizes(batch)[1] - 1)
    cut = each(fewer, lambda tensor: tensor[:, :keep] if tensor.ndim > 1 else tensor)
    if isinstance(fewer, dict) and isinstance(cut, dict) and WORDS in fewer:
        cut[WORDS] = torch.stack([fewer[WORDS][:, 0], fewer[WORDS][:, 1].clamp(max=keep - 1)], dim=1)
    return cut


def _shape_of(one: Any, other: Any, sizes: tuple[int, int], others: tuple[int, int]) -> Any:
    """The shape of an output that was seen for two batches; None where it does not follow them."""
    if not isinstance(one, Tensor):
        return one if not isinstance(other, Tensor) else None
    if not isinstance(other, Tensor) or one.ndim != other.ndim:
        return None
    sides: list[int | str] = []
    for at, (left, right) in enumerate(zip(one.shape, other.shape, strict=True)):
        if (left, right) == (sizes[0], others[0]) and at == 0:
            sides.append("n")
        elif left != right and (left, right) == (sizes[1], others[1]):
            sides.append("t")
        elif left == right:
            sides.append(left)
        else:
            return None
    return Shape(tuple(sides), one.dtype)


def find(model: nn.Module, probe: Batch, moving: Collection[str], *, tried: int = 3, answers: Answers = logits) -> Cut:
    """The last module that has run to its end before the first moving layer begins, if what it returns is all that is needed.

    Args:
        model: in ``eval()`` mode.
        probe: samples as the model takes them; a single one is taken twice.
        moving: paths of the layers that move.
        tried: modules that are tried, from the last one back.
        answers: what has to come out the same.
    """
    if len(tensors(probe)[0]) < 2:
        probe = twice(probe)
    few = _shorter(probe)
    one, other = events(model, probe, outputs=True), events(model, few, outputs=True)
    done = _completed(one, moving)
    outputs = [{event.path: event.output for event in found if not event.entered} for found in (one, other)]
    shapes: dict[str, Any] = {}
    for path in done:
        flat, spec = pytree.tree_flatten(outputs[0][path])
        again, _ = pytree.tree_flatten(outputs[1].get(path))
        if len(flat) != len(again):
            continue
        made = [_shape_of(a, b, _sizes(probe), _sizes(few)) for a, b in zip(flat, again, strict=True)]
        if all(shape is not None or value is None for shape, value in zip(made, flat, strict=True)):
            shapes[path] = pytree.tree_unflatten(made, spec)
    candidates = [path for path in done if path in shapes and _holds_samples(shapes[path])]
    for path in reversed(candidates[-tried:]):
        # What has no weights (positions that turn, activations) costs nothing and may be needed above.
        before = [
            other for other in done[: done.index(path)] if any(True for _ in model.get_submodule(other).parameters())
        ]
        cut = Cut(path, shapes[path], {skipped: shapes[skipped] for skipped in before if skipped in shapes})
        if all(
            _reproduces(model, cut, batch, made[path], answers)
            for batch, made in zip((probe, few), outputs, strict=True)
        ):
            return cut
    return Cut()


def _completed(found: Sequence[Event], moving: Collection[str]) -> list[str]:
    """The largest modules that have run, once, to their end before the first moving layer begins, in order."""
    wanted = set(moving)
    around = {path.rpartition(".")[0] for path in moving}
    entered = {event.path for event in found if event.entered}
    # A layer that is never called works where the module around it does.
    starts = wanted | {
        path for path in around if not all(inner in entered for inner in wanted if inner.rpartition(".")[0] == path)
    }
    start = next((at for at, event in enumerate(found) if event.entered and event.path in starts), 0)
    runs: dict[str, int] = {}
    for event in found:
        runs[event.path] = runs.get(event.path, 0) + event.entered
    left = [event.path for event in found[:start] if not event.entered and runs[event.path] == 1]
    return [path for path in left if not any(path.startswith(f"{other}.") for other in left)]


def _holds_samples(shape: Any) -> bool:
    leaves = [leaf for leaf in pytree.tree_leaves(shape) if isinstance(leaf, Shape)]
    return bool(leaves) and all(leaf.sides[:1] == ("n",) for leaf in leaves)


def _reproduces(model: nn.Module, cut: Cut, batch: Batch, kept: Any, answers: Answers) -> bool:
    """Whether the part above gives the whole network's logits from what was kept."""
    with torch.inference_mode():
        expected = answers(model, batch)
        try:
            with _returning(model, cut, kept, batch):
                found = answers(model, batch if _is_text(batch) else each(batch, torch.zeros_like))
        except ImuError:
            raise
        except Exception:  # noqa: BLE001 zeros of a shape that a model's own code does not expect: then the whole network runs
            return False
    if found.shape != expected.shape:
        return False
    scale = max(float(expected.abs().max()), 1e-30)
    return float((found - expected).abs().max()) <= REPLAY_TOLERANCE[torch.float32] * scale


@contextmanager
def _returning(model: nn.Module, cut: Cut, kept: Any, batch: Batch) -> Iterator[None]:
    """While the context lasts, the cut's module returns what was kept, and those before it zeros."""

    def zeros(shape: Any) -> Any:
        return pytree.tree_map(lambda leaf: leaf.zeros(batch) if isinstance(leaf, Shape) else leaf, shape)

    changed = [(model.get_submodule(cut.module), kept)]
    changed += [(model.get_submodule(path), zeros(shape)) for path, shape in cut.skipped.items()]
    own = [module.__dict__.get("forward") for module, _ in changed]  # libraries give some modules one of their own
    try:
        for module, made in changed:
            module.forward = lambda *_, _made=made, **__: _made
        yield
    finally:
        for (module, _), forward in zip(changed, own, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


# What is kept


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its bytes: one that is only long, and mapped, kills the process by a signal where the disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:  # macOS
        os.ftruncate(descriptor, size)


def _no_room(folder: Path, size: int, why: str) -> str:
    return (
        f"{folder.parent}: cannot hold the features at the cut, {size / 2**30:.1f} GiB ({why}); set TMPDIR to a folder with room, or "
        "raise --max-memory"
    )


class Kept:
    """What is kept of each sample of a set: the output at a cut, or what enters the network, and the tokens of a text.

    Images have tensors (n, …) of one shape; of a text the tokens of its own length are kept, and padded where it runs again.
    """

    def __init__(self, length: int, folder: Path | None, device: torch.device) -> None:
        self._count, self._folder, self._device = length, folder, device
        self._parts: dict[str, Tensor] = {}
        self._ragged: dict[str, list[Tensor | None]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return self._count

    def put(self, name: str, places: Sequence[int], rows: Tensor, mask: Tensor | None) -> None:
        """Keep rows (k, …) of the samples at these places; with a mask (k, t), only its tokens of each."""
        if mask is not None and rows.ndim > 1 and rows.shape[1] == mask.shape[1]:
            held = self._ragged.setdefault(name, [None] * self._count)
            for at, row, real in zip(places, rows, mask.bool(), strict=True):
                held[at] = row[real].to(self._device)
                self.bytes += row.element_size() * int(real.sum()) * row[0].numel()
            return
        if name not in self._parts:
            self._parts[name] = self._room(rows)
        self._parts[name][torch.tensor(as_array(places))] = rows.to(self._parts[name].device)

    def _room(self, like: Tensor) -> Tensor:
        shape = (self._count, *like.shape[1:])
        size = like.element_size() * self._count * like[0].numel()
        self.bytes += size
        if self._folder is None:
            return torch.empty(shape, dtype=like.dtype, device=self._device)
        with writing.said_as(partial(_no_room, self._folder, size)):
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                _allocate(file.fileno(), max(size, 1))
            path = Path(file.name)
        made = torch.from_file(str(path), shared=True, size=max(self._count * like[0].numel(), 1), dtype=like.dtype)
        path.unlink()  # the mapping holds on to it: nothing of it is left behind
        return made[: self._count * like[0].numel()].view(shape)

    def get(self, name: str, rows: Tensor, device: torch.device, left: bool) -> tuple[Tensor, Tensor | None]:
        """Rows (k, …) of some samples on a device, padded to the longest of them, and their mask (k, t) where they have lengths."""
        if name in self._parts:
            part = self._parts[name]
            return part[rows.to(part.device)].to(device), None
        wanted = [self._ragged[name][at] for at in rows.tolist()]
        assert all(row is not None for row in wanted), "every place was put once"
        sizes = [len(row) for row in wanted if row is not None]
        longest = max(sizes)
        example = wanted[0]
        assert example is not None
        made = torch.zeros(len(wanted), longest, *example.shape[1:], dtype=example.dtype, device=example.device)
        mask = torch.zeros(len(wanted), longest, dtype=torch.int64, device=example.device)
        for at, (row, size) in enumerate(zip(wanted, sizes, strict=True)):
            where = slice(longest - size, longest) if left else slice(0, size)
            made[at, where] = row
            mask[at, where] = 1
        return made.to(device), mask.to(device)

    @property
    def lengths(self) -> Tensor | None:
        """(n,) tokens of each text; None for images."""
        if not self._ragged:
            return None
        held = next(iter(self._ragged.values()))
        return torch.tensor([0 if row is None else len(row) for row in held])

    @property
    def names(self) -> list[str]:
        """What is kept."""
        return [*self._parts, *self._ragged]


@dataclass(frozen=True)
class KeptWords:
    """What is kept of the sentences that a set's words stand in, each once.

    Attributes:
        sentences: what is kept of them.
        of: (n,) the place of each word's sentence among them.
        at: (n,) its token in the sentence.
    """

    sentences: Kept
    of: Tensor
    at: Tensor

    def __len__(self) -> int:
        return len(self.of)

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        return self.sentences.bytes

    @property
    def lengths(self) -> Tensor | None:
        """(n,) tokens of each word's sentence."""
        found = self.sentences.lengths
        return None if found is None else found[self.of]

    def of_rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The sentences (b,) of some words, and each word's sentence among those and its token (k, 2)."""
        chosen, which = torch.unique(self.of[rows], return_inverse=True)
        return chosen, torch.stack([which, self.at[rows]], dim=1)


def firsts(kept: Kept | KeptWords, places: Tensor) -> Tensor:
    """Which of some places (k,) of a set hold a sentence that none before them does; all where samples stand for themselves."""
    if isinstance(kept, Kept):
        return torch.arange(len(places))
    _, which = torch.unique(kept.of[places], return_inverse=True)
    first = torch.full((int(which.max()) + 1,), len(places)).scatter_reduce(0, which, torch.arange(len(places)), "amin")
    return first.sort().values


@dataclass(frozen=True)
class Blend:
    """Other samples of a set (k,) to mix some with, and the share (k,) that those some keep."""

    rows: Tensor
    share: Tensor

    def of(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """Share · mine + (1 − share) · theirs, (k, …)."""
        share = self.share.to(mine).view(-1, *(1,) * (mine.ndim - 1))
        return theirs.lerp(mine, share)


@dataclass(frozen=True)
class Upper:
    """The part of a network from the cut on, which moves.

    Attributes:
        model: the network that moves.
        layer: path of the head.
        cut: where it begins.
        step: what samples go through before the model.
        device, cast: where it runs, and a context that says in what precision.
        probe: a sample of what the model takes; images are zeros of its shape above a cut.
    """

    model: nn.Module
    layer: str
    cut: Cut
    step: InputStep
    device: torch.device
    cast: Callable[[], contextlib.AbstractContextManager[Any]]
    probe: Batch

    def keep(
        self, samples: SampleSet, size: int, most: int, folder: Callable[[], Path], advance: Callable[[int], None]
    ) -> Kept | KeptWords:
        """One pass of what is below the cut over a set, kept in memory where it takes no more than ``most`` bytes, else in a file.

        Args:
            samples: the set.
            size: samples in a forward pass.
            most: bytes.
            folder: where a file may lie; asked for where it is needed.
            advance: hears how many samples are done.
        """
        whole = self.step.sentences(samples)
        if whole is None:
            return self._keep(samples, size, most, folder, advance)
        alone, of, at = whole
        kept = self._keep(samples.subset(alone), size, most, folder, lambda _: None)
        advance(len(samples))
        return KeptWords(kept, torch.from_numpy(of), torch.from_numpy(at))

    def _keep(
        self, samples: SampleSet, size: int, most: int, folder: Callable[[], Path], advance: Callable[[int], None]
    ) -> Kept:
        made: Kept | None = None
        on_cpu = self.device.type == "cpu"
        with allocation.kept() if on_cpu else contextlib.nullcontext():
            for places, stacked in self.step.batches(samples, size, range(len(samples)), beside=not on_cpu):
                signals.check()
                found = self._below(stacked)
                if made is None:
                    size_of_all = len(samples) * sum(
                        tensor.element_size() * tensor[0].numel() for _, tensor, _ in found
                    )
                    at_hand = self.device if size_of_all <= self._room() else torch.device("cpu")
                    fits = at_hand.type != "cpu" or size_of_all <= most
                    made = Kept(len(samples), None if fits else folder(), at_hand)
                for name, rows, mask in found:
                    made.put(name, places, rows, mask)
                advance(len(places))
        assert made is not None, "a set has samples"
        return made

    def _room(self) -> int:
        """Bytes of an accelerator's memory that a set may take, 0 on the CPU: what a batch of the training needs has to stay free."""
        return int(ACCELERATOR_SHARE * torch.cuda.mem_get_info(self.device)[0]) if self.device.type == "cuda" else 0

    def _below(self, stacked: Batch) -> list[tuple[str, Tensor, Tensor | None]]:
        """What is kept of a batch: names, rows (k, …), and the mask (k, t) of tokens."""
        mask = self._mask(stacked)
        if isinstance(stacked, dict):
            given = [(f"in.{key}", value, mask) for key, value in stacked.items() if key != WORDS]
        else:
            given = [("in", stacked, mask)] if _is_text(stacked) or not self.cut.module else []
        if not self.cut.module:
            return given
        seen: list[Any] = []
        handle = self.model.get_submodule(self.cut.module).register_forward_hook(lambda _, __, made: seen.append(made))

        class Stop(Exception):  # noqa: N818 the pass ends at the cut: nothing above it is needed
            pass

        def stop(*_: object) -> None:
            raise Stop

        after = self.model.get_submodule(self.cut.module).register_forward_hook(stop)
        batch = to_device(stacked, self.step, self.device)
        with hooked([handle, after]), torch.no_grad(), self.cast(), contextlib.suppress(Stop):
            call(self.model, batch)
        on_device = None if mask is None else mask.to(self.device)
        leaves = [leaf for leaf in pytree.tree_leaves(seen[0]) if isinstance(leaf, Tensor)]
        shapes = [leaf for leaf in pytree.tree_leaves(self.cut.kept) if isinstance(leaf, Shape)]
        # As many numbers as a batch has tokens do not make tokens of them.
        masks = [on_device if shape.sides[1:2] == ("t",) else None for shape in shapes]
        rows = enumerate(zip(leaves, masks, strict=True))
        return [*given, *((f"cut.{at}", leaf.detach(), mask) for at, (leaf, mask) in rows)]

    @property
    def blends(self) -> bool:
        """Whether samples of a kept set can be mixed: tensors of one shape can, texts of many lengths cannot."""
        return not _is_text(self.probe)

    def _mask(self, batch: Batch) -> Tensor | None:
        """Which tokens (k, t) are a text's own; None for images."""
        if not _is_text(batch):
            return None
        if isinstance(batch, dict) and MASK in batch:
            return batch[MASK]
        return torch.ne(tensors(batch)[0], self.step.padding or 0).long()

    def __call__(self, kept: Kept | KeptWords, rows: Tensor, blend: Blend | None = None) -> tuple[Tensor, Tensor]:
        """What enters the head (k, d), and logits (k, c), of some samples of a kept set; differentiable in the moving weights.

        With ``blend``, of the samples mixed with others at the cut, in these shares.
        """
        kept, rows, batch = self._batch(kept, rows, blend)
        seen: list[Tap] = []
        handle = self.model.get_submodule(self.layer).register_forward_hook(
            lambda _, inputs, made: seen.append(Tap(inputs[0], made))
        )
        with hooked([handle]), self.cast(), self._from_cut(kept, rows, batch, blend):
            logits = logits_of(call(self.model, batch))
        features = seen[0].rows(logits, batch)
        if features is None:
            raise RefusedError(f"head {self.layer}: what enters it cannot be told for some samples; use --scope head")
        return features.float(), logits.float()

    def answers(self, kept: Kept | KeptWords, rows: Tensor, of: Answers, blend: Blend | None = None) -> Tensor:
        """What the model says (k, …) of some samples of a kept set, differentiable in the moving weights; mixed as in ``__call__``."""
        kept, rows, batch = self._batch(kept, rows, blend)
        with self.cast(), self._from_cut(kept, rows, batch, blend):
            return of(self.model, batch).float()

    def _batch(self, kept: Kept | KeptWords, rows: Tensor, blend: Blend | None) -> tuple[Kept, Tensor, Batch]:
        """What is kept of some samples, their places there, and the batch that they make; of words, of their sentences."""
        if isinstance(kept, Kept):
            return kept, rows, self._inputs(kept, rows, blend)
        chosen, words = kept.of_rows(rows.cpu())
        batch = self._inputs(kept.sentences, chosen, None)
        assert isinstance(batch, dict)
        if self.step.left:
            name = next(name for name in kept.sentences.names if name.startswith("in."))
            mask = kept.sentences.get(name, chosen, self.device, left=True)[1]
            assert mask is not None, "sentences have lengths"
            words = words + torch.stack(
                [torch.zeros_like(words[:, 0]), (mask == 0).sum(dim=1).cpu()[words[:, 0]]], dim=1
            )
        return kept.sentences, chosen, {**batch, WORDS: words.to(self.device)}

    def _inputs(self, kept: Kept, rows: Tensor, blend: Blend | None) -> Batch:
        if not _is_text(self.probe):
            if self.cut.module:
                shape = tensors(self.probe)[0]
                return torch.zeros(len(rows), *shape.shape[1:], dtype=shape.dtype, device=self.device)
            mine = self._scaled(kept.get("in", rows, self.device, self.step.left)[0])
            if blend is None:
                return mine
            theirs = self._scaled(kept.get("in", blend.rows, self.device, self.step.left)[0])
            assert isinstance(mine, Tensor)
            assert isinstance(theirs, Tensor)
            return blend.of(mine, theirs)
        made = {name: self._tokens(kept, name, rows) for name in kept.names if name.startswith("in")}
        if isinstance(self.probe, dict):
            return self._scaled({name.removeprefix("in."): tensor for name, tensor in made.items()})
        return self._scaled(made["in"])

    def _tokens(self, kept: Kept, name: str, rows: Tensor) -> Tensor:
        """One of the model's arguments (k, t) for some texts, padded."""
        found, mask = kept.get(name, rows, self.device, self.step.left)
        fills = name in ("in", f"in.{IDS}", f"in.{ALONE}") and mask is not None and self.step.padding is not None
        return torch.where(mask.bool(), found, self.step.padding) if fills else found  # type: ignore[union-attr, arg-type]

    def _scaled(self, batch: Batch) -> Batch:
        """What was kept, on the device, as the model takes it."""
        return each(
            self.step.scale(batch),
            lambda tensor: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor,
        )

    def _from_cut(
        self, kept: Kept, rows: Tensor, batch: Batch, blend: Blend | None
    ) -> contextlib.AbstractContextManager[None]:
        if not self.cut.module:
            return contextlib.nullcontext()
        leaves, spec = pytree.tree_flatten(self.cut.kept)
        names = iter(range(len(leaves)))

        def at_cut() -> Tensor:
            name = f"cut.{next(names)}"
            mine = kept.get(name, rows, self.device, self.step.left)[0]
            return mine if blend is None else blend.of(mine, kept.get(name, blend.rows, self.device, self.step.left)[0])

        made = [at_cut() if isinstance(leaf, Shape) else leaf for leaf in leaves]
        return _returning(self.model, self.cut, pytree.tree_unflatten(made, spec), batch)
