"""Whom images show, and by which camera: from a column ``id``, a folder a person, or a data set of people; numbers for any of them.

An id is one name for one person in everything that a command is given. The column ``role`` says of images of nobody who is looked for
what they are, and of a data set with queries of its own which they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from imu_cli.errors import ImuError, nearest
from imu_cli.files.reading import cut
from imu_cli.samples.classes import ClassNames
from imu_cli.samples.dataset import UNKNOWN, SampleSet

JUNK, DISTRACTOR, QUERY = "junk", "distractor", "query"
"""Roles: passed over; somebody who is not looked for; what is looked for, where the rest of the set is searched."""


class PeopleNames(ClassNames):
    """The people of a command as classes are held: told by id alone, never by a number of ours."""

    def parse(self, text: str) -> int:
        """The number of the person of this id.

        Raises:
            ImuError: nobody has it; the message has no place in it.
        """
        found = self._ids.get(text)
        if found is None:
            raise ImuError(f"id '{cut(text)}' is nobody's in {self.source}{self._alike(text)}")
        return found[0]

    @property
    def required(self) -> bool:
        """Images of nobody who is known have a place in a gallery."""
        return False

    def _alike(self, text: str) -> str:
        """A hint at the same number written otherwise, or the nearest id."""
        number = as_number(text)
        same = next((name for name in self.names or () if number is not None and as_number(name) == number), None)
        return f"; did you mean '{same}'?" if same is not None else nearest(text, self.names or ())

    def ambiguous(self, text: str) -> bool:
        """No id is a number of ours."""
        return False


def as_number(text: str) -> int | None:
    """The whole number that an id reads as, so that 2 and 0002 are seen to be alike."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None


def with_people(samples: SampleSet) -> SampleSet:
    """The same images labelled with people: by the column ``id`` where there is one, else by class folder or label.

    Images without an id are of nobody who is known. Classes are the ids, sorted.

    Raises:
        ImuError: nothing says whom an image shows.
    """
    ids = ids_of(samples)
    roles = samples.columns.get("role", [""] * len(samples))
    people = sorted({person for person, role in zip(ids, roles, strict=True) if person and role in ("", QUERY)})
    if not people:
        raise ImuError(
            f"{samples.source}: does not say whom its images show; give a list with an id column, a folder for each person, or "
            "market1501:DIR or mars:DIR"
        )
    numbers = {person: number for number, person in enumerate(people)}
    labels = [
        numbers.get(person, UNKNOWN) if role in ("", QUERY) else UNKNOWN
        for person, role in zip(ids, roles, strict=True)
    ]
    columns = {**samples.columns, "id": ids}
    return replace(samples, labels=labels, classes=tuple(people), class_order=None, columns=columns)


def ids_of(samples: SampleSet) -> list[str]:
    """Each image's id as text, empty where none is known."""
    if "id" in samples.columns:
        return [text.strip() for text in samples.columns["id"]]
    return ["" if own == UNKNOWN else samples.class_text(own) for own in samples.labels]


def names_of(sets: Sequence[SampleSet]) -> PeopleNames:
    """Everybody whom some sets of ``with_people`` show."""
    names = sorted({person for samples in sets for person in samples.classes or ()})
    return PeopleNames(len(names), tuple(names), " and ".join(dict.fromkeys(samples.source for samples in sets)))


@dataclass
class Register:
    """Numbers for people, cameras and images, the same in all sets that are asked about one after the other."""

    people: PeopleNames
    cameras: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def people_of(self, samples: SampleSet, junk: int, distractor: int) -> NDArray[np.int64]:
        """Each image's person (n,) by the names' numbers; of nobody who is known ``junk``, of one who is not looked for ``distractor``.

        Args:
            samples: as ``with_people`` labels them.
            junk: the number of images that are passed over.
            distractor: the number of images of others.
        """
        numbers = {name: number for number, name in enumerate(self.people.names or ())}
        own = [numbers.get(name, junk) for name in samples.classes or ()]
        roles = samples.columns.get("role", [""] * len(samples))
        return np.array(
            [
                distractor if role == DISTRACTOR else junk if label == UNKNOWN else own[label]
                for label, role in zip(samples.labels, roles, strict=True)
            ],
            np.int64,
        )

    def cameras_of(self, samples: SampleSet, unknown: int) -> NDArray[np.int64]:
        """Each image's camera (n,), ``unknown`` where none is told."""
        texts = [text.strip() for text in samples.columns.get("camera", [""] * len(samples))]
        return np.array(
            [self.cameras.setdefault(text, len(self.cameras)) if text else unknown for text in texts], np.int64
        )

    def images_of(self, samples: SampleSet) -> NDArray[np.int64]:
        """A number for each image (n,), the same for one file wherever it is listed."""
        places = (samples.location(row) for row in range(len(samples)))
        return np.array([self.images.setdefault(place, len(self.images)) for place in places], np.int64)


def queries_of(samples: SampleSet) -> NDArray[np.bool_]:
    """Which images (n,) a data set has its own queries in; none where it names none."""
    return np.array([role == QUERY for role in samples.columns.get("role", [""] * len(samples))], bool)
