"""Images of people as Market-1501 and MARS name them: who, by which camera, in the file's name; junk and distractors as they define them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.dataset import UNKNOWN, SampleSet
from imu_cli.samples.images.folders import open_flat
from imu_cli.samples.people import DISTRACTOR, JUNK, QUERY


@dataclass(frozen=True)
class Layout:
    """How a data set of people lies in a folder.

    Attributes:
        pattern: finds ``id`` and ``camera`` at the start of a file's name.
        example: such a name, for messages.
        splits: folders that a split's name stands for; the images of ``query`` are what is looked for.
        roles: ids that stand for no person.
    """

    pattern: re.Pattern[str]
    example: str
    splits: Mapping[str, tuple[str, ...]]
    roles: Mapping[str, str]

    def folders(self, split: str) -> tuple[str, ...]:
        """Folders of a split, or of the name of one."""
        return self.splits.get(split, (split,))

    @property
    def names(self) -> tuple[str, ...]:
        """What may stand after ``#``."""
        return tuple(dict.fromkeys([*self.splits, *(name for found in self.splits.values() for name in found)]))


MARKET1501 = Layout(
    re.compile(r"(?P<id>-1|[0-9]{4,8})_c(?P<camera>[0-9]{1,3})(?![0-9])"),
    "0002_c1s1_000451_03.jpg",
    {"train": ("bounding_box_train",), "test": ("query", "bounding_box_test")},
    {"-1": JUNK, "0000": DISTRACTOR},
)
MARS = Layout(
    re.compile(r"(?P<id>00-1|[0-9]{4})C(?P<camera>[0-9])T(?P<tracklet>[0-9]{4})F[0-9]{3,}"),
    "0003C4T0003F001.jpg",
    {"train": ("bbox_train",), "test": ("bbox_test",)},
    {"00-1": JUNK, "0000": DISTRACTOR},
)
LAYOUTS: Mapping[str, Layout] = {"market1501": MARKET1501, "mars": MARS}
"""By the scheme that names them."""


def open_people(layout: Layout, path: Path, source: str, split: str) -> SampleSet:
    """The images of a split, labelled with their people; columns ``id``, ``camera`` and ``role``, and ``tracklet`` of MARS.

    ``path`` is the data set's folder, or a split's own where it holds none of them.

    Raises:
        ImuError: no such folder, or no image in it.
        InvalidRowsError: every file whose name does not say whom it shows.
    """
    parts = [name for name in layout.folders(split) if (path / name).is_dir()]
    if not parts and any((path / name).is_dir() for name in layout.names):
        raise ImuError(
            f"{source}: has no folder {' or '.join(layout.folders(split))}; name the data set's folder, or another split"
        )
    return _told(layout, path, open_flat(path, source, parts or ("",)), source)


def _told(layout: Layout, path: Path, images: SampleSet, source: str) -> SampleSet:
    matches = [layout.pattern.match(name.rpartition("/")[2]) for name in images.names]
    problems = [
        f"{path / name}: its name does not say who it is, as {layout.example} does; rename it or take it out"
        for name, match in zip(images.names, matches, strict=True)
        if match is None
    ]
    if problems:
        raise InvalidRowsError(problems)
    found = [match for match in matches if match is not None]
    ids = [match["id"] for match in found]
    in_query = (QUERY if name.partition("/")[0] == "query" else "" for name in images.names)
    roles = [layout.roles.get(person, asked) for person, asked in zip(ids, in_query, strict=True)]
    people = sorted({person for person, role in zip(ids, roles, strict=True) if role in ("", QUERY)})
    numbers = {person: number for number, person in enumerate(people)}
    columns = {"id": ids, "camera": [match["camera"] for match in found], "role": roles}
    if "tracklet" in layout.pattern.groupindex:
        columns["tracklet"] = [match["tracklet"] for match in found]
    return replace(
        images,
        source=source,
        labels=[numbers.get(person, UNKNOWN) for person in ids],
        classes=tuple(people),
        class_order="people in the order of their numbers",
        columns=columns,
    )


def looks_like(name: str) -> str | None:
    """The scheme whose data sets name their images like this, None where it is none's."""
    return next((scheme for scheme, layout in LAYOUTS.items() if layout.pattern.match(name.rpartition("/")[2])), None)
