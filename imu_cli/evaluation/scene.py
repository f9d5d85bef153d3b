"""Forgotten, kept and unseen people and where they are looked for, as up to four models see them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from imu_cli.statistics import retrieval, same_person
from imu_cli.statistics.intervals import NotMeasured
from imu_cli.statistics.retrieval import Found, Sightings
from imu_cli.statistics.same_person import Pairs

NO_TEST = NotMeasured("needs --test with unseen people")


@dataclass(frozen=True, eq=False)
class Scene:
    """Who is to be seen where, by numbers, whatever model looks.

    Attributes:
        forget: the forgotten images (n,), without directions (n, 0).
        rest: the other training images: the gallery beside them.
        test: unseen people's images.
        kept: which of ``rest`` are of people who stay (k,).
        queries: which of ``test`` are looked for (m,).
        gallery: in words, what forgotten people are looked for in.
    """

    forget: Sightings
    rest: Sightings | None
    test: Sightings | None
    kept: Tensor
    queries: Tensor
    gallery: str = "the training images given"

    @cached_property
    def pairs(self) -> Mapping[str, Pairs | NotMeasured]:
        """Two images each of one person, of forgotten, kept and unseen people."""
        kept = None if self.rest is None else self.rest.of(self.kept)
        sides = {"forget": self.forget, "retain": kept, "test": self.test}
        return {name: _pairs(side) for name, side in sides.items()}


def _pairs(side: Sightings | None) -> Pairs | NotMeasured:
    if side is None or not len(side):
        return NotMeasured("needs images of such people")
    return same_person.pairs(side) or NotMeasured("nobody has two images on two cameras")


@dataclass(frozen=True, eq=False)
class View:
    """The scene as a model sees it: directions (n, d) of ``forget``, ``rest`` and ``test``."""

    scene: Scene
    forget: Tensor
    rest: Tensor | None
    test: Tensor | None

    @cached_property
    def gallery(self) -> Sightings:
        """What forgotten and kept people are looked for in."""
        sides = [self.scene.forget.seen_by(self.forget)]
        if self.scene.rest is not None and self.rest is not None:
            sides.append(self.scene.rest.seen_by(self.rest))
        elif self.scene.test is not None and self.test is not None:
            sides.append(self.scene.test.seen_by(self.test))
        return retrieval.joined(sides)

    @cached_property
    def found(self) -> Mapping[str, Found | NotMeasured]:
        """What became of the queries of forgotten, kept and unseen people."""
        scene = self.scene
        return {
            "forget": _searched(scene.forget.seen_by(self.forget), self.gallery),
            "retain": _searched(self._of_rest(), self.gallery),
            "test": NO_TEST if self._test is None else _searched(self._test.of(self._asked), self._seen),
        }

    @property
    def _test(self) -> Sightings | None:
        scene = self.scene
        return None if scene.test is None or self.test is None else scene.test.seen_by(self.test)

    @property
    def _asked(self) -> Tensor:
        """The queries of a data set that has its own, else every image of a person."""
        assert self.scene.test is not None
        return self.scene.queries if bool(self.scene.queries.any()) else self.scene.test.people >= 0

    @property
    def _seen(self) -> Sightings:
        """The gallery of unseen people: what is not a query where queries are told apart."""
        assert self._test is not None
        return self._test.of(~self.scene.queries) if bool(self.scene.queries.any()) else self._test

    def _of_rest(self) -> Sightings | None:
        if self.scene.rest is None or self.rest is None:
            return None
        return self.scene.rest.seen_by(self.rest).of(self.scene.kept)

    @cached_property
    def similar(self) -> Mapping[str, Tensor]:
        """Similarity of every pair, of the sides that have pairs."""
        kept = self._of_rest()
        sides = {"forget": self.forget, "retain": None if kept is None else kept.directions, "test": self.test}
        return {
            name: pairs.similar(directions)
            for name, pairs in self.scene.pairs.items()
            if isinstance(pairs, Pairs) and (directions := sides[name]) is not None
        }


@dataclass(frozen=True)
class Hit:
    """An image that a query finds: its place in the gallery, how alike, and whether it shows the person."""

    at: int
    similarity: float
    right: bool


def ranking(view: View, row: int, most: int) -> list[Hit]:
    """The ``most`` images that a forgotten image finds first; the gallery is ``forget`` and then ``rest``, or ``test`` without it."""
    own, gallery = view.scene.forget.seen_by(view.forget).of(torch.tensor([row])), view.gallery
    right, counted = (mask[0] for mask in retrieval.takes_part(own, gallery))
    similar = torch.where(counted, (own.directions @ gallery.directions.T)[0], float("-inf"))
    order = similar.argsort(descending=True, stable=True)[: min(most, int(counted.sum()))]
    return [Hit(at, float(similar[at]), bool(right[at])) for at in order.tolist()]


def shown(view: View, count: int) -> list[int]:
    """So many queries to look at, of every forgotten person in turn; those that have something to be found."""
    found = view.found["forget"]
    if isinstance(found, NotMeasured):
        return []
    rows = found.valid.nonzero().squeeze(1).tolist()
    turn: dict[int, int] = {}
    order = []
    for row in rows:
        person = int(found.people[row])
        turn[person] = turn.get(person, -1) + 1
        order.append((turn[person], person, row))
    return [row for _, _, row in sorted(order)[:count]]


def _searched(queries: Sightings | None, gallery: Sightings) -> Found | NotMeasured:
    if queries is None or not len(queries):
        return NotMeasured("needs images of such people")
    found = retrieval.search(queries, gallery)
    return (
        found
        if bool(found.valid.any())
        else NotMeasured("no query has an image of the person on another camera in the gallery")
    )


@dataclass(frozen=True, eq=False)
class Evidence:
    """The scene as the model sees it, and those that it is compared with.

    ``allowed`` is the fall of mAP that the run was allowed, if that is known; ``left`` counts images of forgotten people that stay in the
    training data.
    """

    after: View
    before: View | None = None
    retrained: View | None = None
    reference: View | None = None
    seed: int = 0
    left: int = 0
    allowed: float | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def scene(self) -> Scene:
        """Who is to be seen where."""
        return self.after.scene
