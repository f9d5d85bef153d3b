"""``imu influence``: score every forget sample; only the cache is written, and the page of ``--images``."""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from imu_cli.commands import opening, preparation, provenance, reuse, ties, token_influence
from imu_cli.config.commands import InfluenceConfig, UnlearnConfig
from imu_cli.config.shared import TargetConfig
from imu_cli.errors import ImuError
from imu_cli.events import Events
from imu_cli.features.session import Session
from imu_cli.files import outputs, writing
from imu_cli.influence import closed_form, scores
from imu_cli.linear import margins
from imu_cli.linear.rows import Rows
from imu_cli.linear.rows import logits as logits_by_rows
from imu_cli.records import influence
from imu_cli.records.ties import Ties
from imu_cli.records.token_influence import TokenInfluence
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images import thumbnails
from imu_cli.samples.packing import reals
from imu_cli.samples.texts import sentences
from imu_cli.unlearning import messages, methods
from imu_cli.unlearning.matched import kernel
from imu_cli.views import page

MOVERS = 3
"""Forget samples shown beside each one with ``influence --kernel``."""


def run_influence(
    model: Path, config: InfluenceConfig, origins: Mapping[str, str], events: Events
) -> influence.Influence | Ties | TokenInfluence:
    """Score every forget sample; only the cache is written, and the page of ``--images``.

    Of a language model every token is scored, of an embedding model what ties its people.

    Raises:
        ImuError: bad input, or options of another kind of model.
    """
    if config.images is not None:
        outputs.refuse_foreign(Path(config.images), page.MARK, "--images")
    config = opening.with_features(config)
    opened = opening.open_all(model, config, events)
    if opened.head.embeds:
        return ties.run(opened, config, origins)
    if opened.head.writes:
        return token_influence.run(opened, config, origins)
    if config.tokens:
        raise ImuError("--tokens: shows what a language model writes, and this is a classifier; leave it out")
    scored, h = reuse.cached_scores(opened, config), None
    if scored is None or config.kernel:
        h = reuse.forget_features(opened, config)
        scored = scored or reuse.compute_scores(opened, config, h)
    selection = closed_form.weigh(scored.scores, config.keep, config.clip_quantile, reuse.sample_weights(opened))
    accuracy, samples = float(scored.right.double().mean()), opened.forget.samples
    messages.warn_if_at_chance(opened.log, scored.right, opened.head.classes)
    ids = opened.forget.ids or samples.names
    rows = influence.ScoreRows(
        ids, samples.names, samples.labels, opened.classes.name,
        *(reals(column.cpu().numpy()) for column in (scored.scores, selection.weights, scored.confidence)),
    )  # fmt: skip
    here = Path()
    made = influence.Influence(
        model=provenance.model_hash_of(opened.checkpoint, here),
        **opened.described(),
        head=provenance.head_info(opened.head),
        forget=provenance.forget_info(opened, config, here),
        accuracy=accuracy,
        scores=scores.described(scored, selection),
        sign=closed_form.SIGN,
        cached=scored.entry,
        notes=opened.log.notes,
        rows=rows,
        kernel=_kernel(opened, config, h) if config.kernel and h is not None else [],
        run=reuse.run_info(opened),
    )
    if config.images is not None:
        _gallery(made, samples, Path(config.images), config.show)
    return made


def _gallery(made: influence.Influence, samples: SampleSet, path: Path, show: int) -> None:
    """The page with the samples that matter most, images or texts, readable by its owner alone."""
    pictures = {row: _shown(samples.read(row)) for row in made.largest(show)}
    replaced = partial(outputs.refuse_foreign, mark=page.MARK, option="--images")
    with writing.together(path, private=True, replaced=replaced) as (file,):
        file.write_text(page.gallery(made, pictures), encoding="utf-8")


def _shown(sample: Any) -> str:
    """An image as a data URI; a text, a pair or a word in its sentence after a space, and never taken for an image."""
    if isinstance(sample, Image.Image):
        return thumbnails.data_uri(sample)
    return " " + sentences.as_text(sample)


def _kernel(opened: Session, config: InfluenceConfig, h: Rows) -> list[influence.KernelRow]:
    """Matched unlearning solved but not written: strengths, self-influence, and the samples that move each most."""
    shared = {item.name: getattr(config, item.name) for item in fields(TargetConfig)}
    wanted = UnlearnConfig(**shared, method="matched")
    job = preparation.ready(opened, wanted, h).job
    problem, found = methods.solve_matched(job)
    rows = kernel.kernel_rows(problem, found.strengths, head=found.outcome.head, top=MOVERS)
    names = opened.forget.samples.names
    before = margins.margins(logits_by_rows(h, opened.matrix()), opened.labels())
    return [
        influence.KernelRow(
            path=names[row],
            strength=float(found.strengths[row]),
            self_influence=float(rows.self_influence[row]),
            margin=float(before[row]),
            target=float(found.targets[row]),
            movers=[
                influence.Mover(path=names[other], moved=moved)
                for other, moved in zip(rows.movers[row].tolist(), rows.moved[row].tolist(), strict=True)
            ],
        )
        for row in range(len(names))
    ]
