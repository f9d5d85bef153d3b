"""A model that was opened with its forget set, and the features of any set by one pass of its backbone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imu_cli.errors import ImuError
from imu_cli.events import Log
from imu_cli.features import cache, extraction, origin, tokens
from imu_cli.features import engine as engine_module
from imu_cli.features.engine import Engine
from imu_cli.features.extraction import Seen
from imu_cli.features.precision import Precision
from imu_cli.features.tokens import TokenRows
from imu_cli.files import memory
from imu_cli.linear.rows import Mapped, Rows, refuse_not_finite
from imu_cli.models.architecture import Loaded
from imu_cli.models.batches import Batch
from imu_cli.models.checkpoint import Checkpoint
from imu_cli.models.head import Head
from imu_cli.samples import vectors
from imu_cli.samples.classes import ClassNames
from imu_cli.samples.column_names import NO_NAMES, ColumnNames
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.forget import ForgetSet
from imu_cli.samples.inputs import InputStep
from imu_cli.samples.packing import as_array
from imu_cli.samples.vectors import Vectors


@dataclass(frozen=True)
class Network:
    """The model with the weights it was given, on its device, what samples go through before it, and a few that did.

    ``preprocess_source`` says who knew the preprocessing; ``probe`` is a batch as the model takes it.
    """

    loaded: Loaded
    model: nn.Module
    preprocess: InputStep
    preprocess_source: str
    probe: Batch


@dataclass(frozen=True)
class Taken:
    """Where the forget set's features came from, ``model``, ``cache`` or a file, and what they take: in memory, or streamed."""

    source: str
    streamed: bool
    bytes: int


@dataclass(frozen=True)
class Run:
    """How features are computed.

    Attributes:
        batch_size: samples in a forward pass; found if None.
        precision: what the backbone computes in.
        max_memory: bytes that the features of a set may take; half of what is free if None.
        seed: of every random choice.
    """

    batch_size: int | None = None
    precision: Precision = "float32"
    max_memory: int | None = None
    seed: int = 0


@dataclass
class Session:
    """A model that was opened, its head found and replayed, and a forget set that was validated against it.

    ``network`` runs on samples; it is None where the forget samples come as features from a file, ``vectors``.
    """

    run: Run
    checkpoint: Checkpoint
    network: Network | None
    vectors: Vectors | None
    device: torch.device
    head: Head
    outside_sha256: str
    classes: ClassNames
    forget: ForgetSet
    data: SampleSet | None
    log: Log = field(default_factory=Log)
    taken: Taken | None = None
    columns: ColumnNames = NO_NAMES

    def note(self, text: str) -> None:
        """Tell the user now, and keep it for the result; once."""
        self.log.note(text)

    @cached_property
    def engine(self) -> Engine:
        """The model as it runs over many samples."""
        assert self.network is not None, "features from a file need no engine"
        if self.head.writes:
            return engine_module.engine_of_body(
                self.network.model, self.head.module, self.network.probe, self.run.batch_size, self.run.precision,
                self.network.preprocess.full(self.network.probe),
            )  # fmt: skip
        return engine_module.engine(
            self.network.model, self.head.module, self.network.probe,
            batch_size=self.run.batch_size, precision=self.run.precision,
            full=self.network.preprocess.full(self.network.probe), embeds=self.head.embeds,
        )  # fmt: skip

    def plainly(self, most: int) -> tuple[Tensor, Tensor]:
        """Features and logits of the first forget samples by the network as it is: not folded, all in one batch."""
        network, samples = self.network, self.forget.samples
        assert network is not None
        rows = range(min(most, len(samples)))
        batch = engine_module.batch(samples, rows, network.preprocess, self.device)
        head = self.head
        run = Engine(network.model, head.module, self.device, len(rows), self.run.precision, embeds=head.embeds)
        with torch.inference_mode():
            return extraction.in_halves(run, batch)

    def described(self) -> dict[str, Any]:
        """Architecture and preprocessing as they stand in records: the model's own, or what the features' file says."""
        if self.network is not None:
            return {
                "architecture": self.network.loaded.architecture.described(),
                "preprocess": self.network.preprocess.described(),
                "preprocess_source": self.network.preprocess_source,
            }
        assert self.vectors is not None
        said, shown = self.vectors.said, self.vectors.shown
        unknown: dict[str, Any] = {"name": "not known", "source": shown, "arguments": {}, "code": None}
        given = said.get("architecture") or {}
        whole = set(given) == set(unknown) and None not in (given["name"], given["source"], given["arguments"])
        return {
            "architecture": given if whole else unknown,
            "preprocess": dict(said.get("preprocess") or {}),
            "preprocess_source": shown,
        }

    @property
    def precision(self) -> str:
        """What the features of the forget set were, or are, computed in."""
        return self.run.precision if self.vectors is None else str(self.vectors.said.get("precision", "not known"))

    @property
    def math_device(self) -> torch.device:
        """Where the head's float64 arithmetic runs: CUDA has float64, Apple's GPU does not."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def features_of(self, samples: SampleSet, what: str, *, narrow: bool = False) -> Rows:
        """H (n, d+1) float64 of a set: from one pass of the backbone, or from the file of features that it is.

        Held in memory where that takes no more than ``--max-memory``, else read by rows from a file. ``narrow``: for what
        goes over the rows a few times, made from the float32 features that are held, or from the file.

        Raises:
            ImuError: features are not finite or not this model's, or samples come where there is no model to run.
        """
        if isinstance(samples.store, Vectors):
            return self._from_file(samples.store, samples, narrow)
        if self.network is None:
            shown = None if self.vectors is None else self.vectors.shown
            raise ImuError(
                f"{samples.source}: {samples.kind.many}, where the forget samples are features of {shown}; "
                f"extract them too (imu features), or give the forget samples as {samples.kind.many}"
            )
        n = len(samples)
        if self._fits(n, narrow):
            made = extraction.gather(self.stream(samples, what), n, self.head, narrow=narrow)
            if narrow:
                return Mapped(made, self.head.bias, self.math_device, resident=True)
            return made.to(self.math_device)
        self.note(
            f"features of {what}: {self._bytes(n, narrow) / 1e9:.3g} GB do not fit --max-memory, they are streamed from a file"
        )
        shape = (n, self.head.matrix.shape[1] - self.head.bias)
        with cache.scratch("set IMU_CACHE_DIR to a folder with room, or raise --max-memory") as path:
            vectors.write(path, shape, extraction.in_order(self.stream(samples, what)))
            # The mapping holds on to the file when its name is gone: nothing of it is left behind.
            return Mapped(load_file(path)["features"], self.head.bias, self.math_device)

    def tokens_of(self, samples: SampleSet, what: str) -> TokenRows:
        """The completion tokens of records and what enters the head where it predicts each, by one pass of the model's body.

        Raises:
            ImuError: features are not finite.
            InvalidRowsError: records that cannot be had, all of them.
        """
        network = self.network
        assert network is not None
        with self.log.timed(f"features of {what}"), self.log.track(f"features, {what}", len(samples)) as advance:
            return tokens.gather(self.engine, samples, network.preprocess, advance)

    def stream(
        self, samples: SampleSet, what: str, rows: Sequence[int] | None = None, window: int | None = None
    ) -> Iterator[Seen]:
        """One pass of the backbone over a set, or over some rows of it, timed, batch by batch; see ``extraction.stream``."""
        network, total = self.network, len(samples) if rows is None else len(rows)
        assert network is not None
        with self.log.timed(f"features of {what}"), self.log.track(f"features, {what}", total) as advance:
            for seen in extraction.stream(self.engine, self.head, samples, network.preprocess, rows, window):
                self.head = seen.head
                yield seen
                advance(len(seen.rows))

    def _bytes(self, n: int, narrow: bool) -> int:
        return (4 if narrow else 8) * n * self.head.matrix.shape[1]

    def _fits(self, n: int, narrow: bool) -> bool:
        return self._bytes(n, narrow) <= memory.limit(self.run.max_memory)

    def read(self, found: Tensor, samples: SampleSet, order: Tensor | None = None, *, narrow: bool = False) -> Rows:
        """H of a set whose features (N, d) lie in a file, all of them or those of ``order``.

        Held in memory where there is room, unless ``narrow``.

        Raises:
            ImuError: a row is not finite; names the sample.
        """
        mapped = Mapped(found, self.head.bias, self.math_device, order)
        h = mapped.held() if not narrow and self._fits(len(mapped), narrow) else mapped
        refuse_not_finite(h, samples.where)
        return h

    def _from_file(self, store: Vectors, samples: SampleSet, narrow: bool) -> Rows:
        with self.log.timed("reading features"):
            self.head = origin.require(store, self.head, self.outside_sha256, self.note)
            whole = samples.positions == range(store.entry.shape[0])
            order = None if whole else torch.tensor(as_array(samples.positions))
            return self.read(store.mapped(), samples, order, narrow=narrow)

    def matrix(self) -> Tensor:
        """W (c, d+1) float64 where the head's arithmetic runs."""
        return self.head.matrix.to(self.math_device)

    def true_labels(self) -> Tensor | None:
        """True labels (n,) of the forget set, below 0 where one is not given; None where the list has none."""
        true = self.forget.true_labels
        return None if true is None else torch.tensor(list(true), dtype=torch.int64, device=self.math_device)

    def labels(self, samples: SampleSet | None = None) -> Tensor:
        """Labels (n,) of the forget set, or of another set in the model's ids, where the head's arithmetic runs."""
        labelled = self.forget.samples if samples is None else samples
        return torch.tensor(as_array(labelled.labels), device=self.math_device)
