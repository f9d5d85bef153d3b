"""``imu influence`` of a language model: every record to be forgotten scored, and every token of its completion."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from imu_cli.commands import people, provenance, reuse
from imu_cli.config.commands import InfluenceConfig
from imu_cli.config.shared import ForgetConfig
from imu_cli.features import cache, cache_entries
from imu_cli.features.session import Session, Taken
from imu_cli.features.tokens import TokenRows
from imu_cli.influence import closed_form, scores
from imu_cli.influence import tokens as influence
from imu_cli.influence.scores import Scored
from imu_cli.records.token_influence import RecordScore, TokenInfluence
from imu_cli.samples.texts.completions import Completions

NOT_FOR_LANGUAGE = (
    "kernel",
    "images",
    "scenario",
    "rho",
    "max_auc",
    "sigma_damping",
    "class_factor",
    "classes",
    "features",
)
"""Options of ``imu influence`` that mean nothing for a language model."""


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of tokens, record after record, and how many each record has (n,)."""

    tokens: Scored
    counts: Tensor

    @property
    def records(self) -> Tensor:
        """The record of each token (N,)."""
        return torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)

    def by_record(self, values: Tensor) -> Tensor:
        """Sums (n,) over the tokens of each record."""
        return influence.by_record(values.cpu(), self.records, len(self.counts))

    @property
    def probability(self) -> Tensor:
        """Exp of minus the mean loss of a token, by record (n,)."""
        return (self.by_record(self.tokens.confidence.log()) / self.counts).exp()

    @property
    def exact(self) -> Tensor:
        """Share of tokens that have the largest logit, by record (n,)."""
        return self.by_record(self.tokens.right.double()) / self.counts


def run(opened: Session, config: InfluenceConfig, origins: Mapping[str, str]) -> TokenInfluence:
    """Score every record and token; only the cache is written.

    Raises:
        ImuError: an option of classifiers, or scores that are not finite.
    """
    people.refuse_options(NOT_FOR_LANGUAGE, origins, "a language model")
    found = scores_of(opened, config)
    given = reuse.sample_weights(opened)
    weights = None if given is None else given.cpu()[found.records]
    selection = closed_form.weigh(found.tokens.scores.cpu(), config.keep, config.clip_quantile, weights)
    samples = opened.forget.samples
    here = Path()
    made = TokenInfluence(
        model=provenance.model_hash_of(opened.checkpoint, here),
        **opened.described(),
        head=provenance.head_info(opened.head),
        forget=provenance.forget_info(opened, config, here),
        tokens=len(found.tokens.scores),
        scores=scores.described(found.tokens, selection),
        sign=closed_form.SIGN,
        cached=found.tokens.entry,
        notes=opened.log.notes,
        rows=_rows(found, opened.forget.ids or samples.names, samples.names),
        run=reuse.run_info(opened),
    )
    if not config.tokens:
        return made
    shown = made.largest(config.show)
    return made.model_copy(update={"texts": dict(zip(shown, _texts(opened, shown), strict=True))})


def scores_of(opened: Session, config: ForgetConfig) -> TokenScores:
    """Scores of the forget records' tokens: from the cache, or in closed form from one pass of the model's body."""
    return _cached(opened, config) or _computed(opened, config, opened.tokens_of(opened.forget.samples, "forget"))


def _computed(opened: Session, config: ForgetConfig, rows: TokenRows) -> TokenScores:
    if opened.precision != "float32":
        opened.note(
            f"features are computed in {opened.precision}: every number that follows from them carries its error"
        )
    opened.taken = Taken("model", streamed=False, bytes=rows.features.numel() * 4)
    damping, head = closed_form.Damping.parse(config.damping), opened.head
    on_device = TokenRows(
        *(part.to(opened.math_device) for part in (rows.features, rows.targets, rows.records, rows.ends))
    )
    with opened.log.timed("scores"), opened.log.track("influence, words", head.classes) as advance:
        found = influence.influence(on_device, head, damping, advance=advance)
    counts = torch.bincount(rows.records, minlength=len(opened.forget.samples))
    made = Scored(
        found.scores.cpu(), found.confidence.cpu(), found.seen.hit.cpu(), found.damping, found.mean_fisher, False, None
    )
    return _kept(opened, config.damping, TokenScores(made, counts)) if config.cache else TokenScores(made, counts)


def _kept(opened: Session, damping: str, found: TokenScores) -> TokenScores:
    """The same, once they are in the cache."""
    own = found.tokens
    tensors = {
        "scores": found.by_record(own.scores),
        "confidence": found.probability,
        "right": found.exact,
        "token_scores": own.scores,
        "token_confidence": own.confidence,
        "token_right": own.right.to(torch.uint8),
        "counts": found.counts,
        "damping": torch.tensor([own.damping], dtype=torch.float64),
        "mean_fisher": torch.tensor([own.mean_fisher], dtype=torch.float64),
    }
    plain = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with opened.log.timed("cache"):
        fields, samples = reuse.score_fields(opened, damping), reuse.sample_lines(opened)
        entry = str(cache.write("scores", fields, samples, lambda path: save_file(plain, path)))
    return TokenScores(replace(own, entry=entry), found.counts)


def _cached(opened: Session, config: ForgetConfig) -> TokenScores | None:
    if not config.cache:
        return None
    fields = reuse.score_fields(opened, config.damping)
    found = cache.find("scores", fields)
    if found.tensors is None:
        if found.why:
            opened.note(f"score cache: not used, {found.why}")
        return None
    t = found.tensors
    path = str(cache_entries.files_of("scores", cache_entries.key_of("scores", fields), cache.folder())[1])
    own = Scored(
        t["token_scores"], t["token_confidence"], t["token_right"].bool(), float(t["damping"]), float(t["mean_fisher"]), True, path,
    )  # fmt: skip
    return TokenScores(own, t["counts"])


def _rows(found: TokenScores, ids: Any, names: Any) -> list[RecordScore]:
    own, counts = found.tokens, found.counts.tolist()
    sums, probability, exact = found.by_record(own.scores), found.probability, found.exact
    values, probabilities = own.scores.split(counts), own.confidence.split(counts)
    return [
        RecordScore(
            id=ids[row], path=names[row], score=float(sums[row]), probability=float(probability[row]), exact=float(exact[row]),
            scores=values[row].tolist(), probabilities=probabilities[row].tolist(),
        )
        for row in range(len(counts))
    ]  # fmt: skip


def _texts(opened: Session, rows: list[int]) -> list[list[str]]:
    """The tokens of some records' completions, each as the text that it adds."""
    network = opened.network
    assert network is not None
    step = network.preprocess
    assert isinstance(step, Completions)
    return [step.pieces(one) for one in step.encoded(opened.forget.samples, rows)]
