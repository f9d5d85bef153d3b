"""``imu evaluate --samples``: what forgotten people's images find, before and after, as a page that its owner alone may read."""

from functools import partial
from pathlib import Path

from imu_cli.commands.people import Outcome, Sets
from imu_cli.evaluation import scene
from imu_cli.files import outputs, writing
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.images import thumbnails
from imu_cli.views import page

SHOWN = 10
"""Images that are shown of what a query finds."""
ENDING = ".evaluation.json"


def place(output: Path, count: int, ending: str = ".samples.html", mark: str = page.MARK) -> Path | None:
    """The page, or another file of personal data, beside an evaluation; None where none is wanted.

    Args:
        output: the evaluation.
        count: samples that are asked for.
        ending: of the file's name.
        mark: what one that imu wrote holds.

    Raises:
        ImuError: something else stands there.
    """
    if not count:
        return None
    stem = output.name.removesuffix(ENDING) if output.name.endswith(ENDING) else output.stem
    path = output.with_name(f"{stem}{ending}")
    outputs.refuse_foreign(path, mark, "--samples")
    return path


def write(path: Path, outcome: Outcome, count: int, model: str) -> None:
    """``count`` forgotten images, of every person in turn, and what each finds."""
    e = outcome.evidence
    views = {"Before": e.before, "After": e.after}
    queries = []
    for row in scene.shown(e.after, count):
        found = {
            when: [
                (_picture(outcome.sets, hit.at), hit.similarity, hit.right) for hit in scene.ranking(view, row, SHOWN)
            ]
            for when, view in views.items()
            if view is not None
        }
        queries.append(page.Ranking(thumbnails.data_uri(outcome.sets.forget.read(row)), found))
    replaced = partial(outputs.refuse_foreign, mark=page.MARK, option="--samples")
    with writing.together(path, private=True, replaced=replaced) as (file,):
        file.write_text(page.rankings(model, queries), encoding="utf-8")


def _picture(sets: Sets, at: int) -> str:
    """An image of the gallery, which is the forget samples and then the others."""
    beside: SampleSet | None = sets.rest if sets.rest is not None else sets.test
    if at < len(sets.forget) or beside is None:
        return thumbnails.data_uri(sets.forget.read(at))
    return thumbnails.data_uri(beside.read(at - len(sets.forget)))
