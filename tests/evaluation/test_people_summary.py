"""The paragraph about an embedding model says what is true first, in every case that it knows."""

import pytest
import torch
from torch import Tensor

from imu_cli.evaluation import people, people_summary
from imu_cli.evaluation.scene import Evidence, Scene, View
from imu_cli.statistics import retrieval
from imu_cli.statistics.retrieval import Sightings

COUNT, SHOTS = 24, 6


@pytest.fixture(autouse=True)
def _quick(one_thread: None) -> None:
    """Small matrices are quicker on one thread."""


def side(first: int, count: int = COUNT) -> Sightings:
    """``count`` people with three images on each of two cameras."""
    n = count * SHOTS
    people_of = torch.arange(count).repeat_interleave(SHOTS) + first
    return Sightings(torch.empty(n, 0), people_of, torch.arange(n) % 2, torch.arange(n) + 1000 * first)


def scene(count: int = COUNT) -> Scene:
    """Forgotten, kept and unseen people."""
    rest = side(100)
    return Scene(
        side(0, count),
        rest,
        side(200),
        torch.ones(len(rest), dtype=torch.bool),
        torch.zeros(COUNT * SHOTS, dtype=torch.bool),
    )


def seen(who: Sightings, spread: float, seed: int) -> Tensor:
    """Directions around a person's own; the larger the spread, the less alike."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(1000, 16, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    noise = torch.randn(len(who), 16, generator=generator, dtype=torch.float64)
    return retrieval.directions(centres[who.people] + spread * noise)


def view(of: Scene, forget: float, others: float = 0.9, unseen: float = 0.9, seed: int = 0) -> View:
    """A model that draws forgotten people together to a degree, and the others."""
    assert of.rest is not None
    assert of.test is not None
    return View(of, seen(of.forget, forget, seed), seen(of.rest, others, seed + 1), seen(of.test, unseen, seed + 2))


def said(after: View, changed: list[str] | None = None, **more: View | int) -> str:
    """The paragraph."""
    e = Evidence(after, **more)  # type: ignore[arg-type]
    return people_summary.of(e, people.measure(e), ["a"] if changed is None else changed)


def test_remembered_people_are_not_called_forgotten() -> None:
    """Images that lie nearer together than unseen people's, or than under the retrained model, are said first."""
    of = scene()
    text = said(view(of, 0.3), before=view(of, 0.25))
    assert text.startswith(
        "NOT forgotten to the level of unseen people: two images of a forgotten person are more alike than two of"
    )
    text = said(view(of, 0.5), before=view(of, 0.25), retrained=view(of, 0.9, seed=5))
    assert text.startswith("NOT forgotten to the level of the retrained model")
    assert "under the retrained model" in text


def test_forgotten_people_who_are_easier_than_others_are_forgotten_by_the_reference() -> None:
    """The level of a model that never saw them decides, where it is known: above 0.5 may be right."""
    of = scene()
    easy = said(view(of, 0.6), before=view(of, 0.3), reference=view(of, 0.6, seed=9))
    assert easy.startswith(
        "As far as these people show, two images of a forgotten person are no more and no less alike than under the"
    )
    assert said(view(of, 0.6), before=view(of, 0.3)).startswith("NOT forgotten")


def test_people_driven_apart_are_damage() -> None:
    """Less alike than unseen people's images gives them away, and is called damage; so is a model that finds unseen people less."""
    of = scene()
    text = said(view(of, 3.0), before=view(of, 0.3))
    assert text.startswith(
        "DAMAGE, not forgetting: two images of a forgotten person are less alike than those of unseen people"
    )
    text = said(view(of, 0.9, unseen=3.0), before=view(of, 0.3))
    assert "points of unseen people's mAP are lost" in text.partition(". ")[0]


def test_alike_is_said_where_it_is_known() -> None:
    """Many people as alike as unseen ones: said, with what was found and what it cost."""
    of = scene()
    text = said(view(of, 0.9), before=view(of, 0.3))
    assert text.startswith("As far as these people show")
    assert "Forgotten people are found with mAP" in text
    assert text.endswith("1 tensors differ from the original.")


def test_too_few_people_prove_nothing() -> None:
    """Of one person against few nothing is known, and a model that equals its original is not called forgotten."""
    of = scene()
    same = view(of, 0.9)
    text = said(same, changed=[], before=same)
    assert text.startswith("NOT known to be forgotten")
    assert text.endswith("Nothing differs from the original: this model was not unlearned.")
    left = said(view(of, 0.9), before=view(of, 0.3), left=4)
    assert left.startswith("NOT forgotten: 4 images of these people stay in the training data")


def test_without_unseen_people_it_is_said_that_nothing_was_measured() -> None:
    """No --test: whether they are told apart is not known."""
    of = scene()
    bare = Scene(of.forget, of.rest, None, of.kept, torch.zeros(0, dtype=torch.bool))
    assert of.rest is not None
    text = said(View(bare, seen(of.forget, 0.5, 0), seen(of.rest, 0.5, 1), None))
    assert text.startswith("Whether forgotten people are told from unseen ones was not measured")


def test_the_curves_count_every_pair() -> None:
    """Each series of the picture has as many counts as there are pairs."""
    of = scene()
    e = Evidence(view(of, 0.9), before=view(of, 0.3))
    found = people.curves(e)
    assert found is not None
    assert [(item.split, item.when) for item in found.series] == [
        ("forget", "before"),
        ("forget", "after"),
        ("test", "after"),
    ]
    assert all(sum(item.counts) == COUNT * 9 for item in found.series)
