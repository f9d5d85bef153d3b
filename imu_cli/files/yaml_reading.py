"""YAML from files that are not trusted: bounded in size, depth and digits, no aliases, no tags, every key once, no dates.

What is left are mappings with text as keys, lists, text, numbers, true and false (``yes`` and ``no`` too, as PyYAML reads
them) and null. A key is the text that stands there: ``no: 1`` is a key called ``no``.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.events import AliasEvent

from imu_cli.errors import ImuError
from imu_cli.files import reading

MAX_YAML = 100_000
"""Bytes of a file of options; PyYAML needs seconds for so many."""
DEEPEST = 20
SIMPLE = {
    "bool": (re.compile(r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF"), "yYnNtTfFoO"),
    "null": (re.compile(r"~|null|Null|NULL|"), "~nN\0"),
    "int": (re.compile(r"[-+]?(?:0b[0-1_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)"), "-+0123456789"),
    "float": (
        re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"),
        "-+0123456789.",
    ),
}  # fmt: skip
"""What plain text is read as, and the characters it starts with: YAML 1.1 but for dates, and for 1:30, which is text."""


def _refused(said: str, node: Any) -> ConstructorError:
    return ConstructorError(None, None, said, node.start_mark)


class _Bounded(yaml.SafeLoader):
    """PyYAML's safe loader with our bounds."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 PyYAML's own class attribute
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses aliases, tags and depth before anything is made of them."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, AliasEvent):
            raise _refused(f"an alias (*{event.anchor}), which is not read; write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _refused(f"a tag ({event.tag}), which is not read; write the value without", event)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _refused("nested too deeply", event)
        made = super().compose_node(parent, index)
        self.depth -= 1
        return made

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Every key once, as the text that it is."""
        made: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a list or mapping as a key", key)
            if key.value in made:
                raise _refused(f"the key {reading.shown(key.value)} stands twice", key)
            made[key.value] = self.construct_object(value, deep=True)
        return made

    def construct_whole(self, node: Any) -> int:
        """A number of so many digits at most."""
        if len(node.value) > reading.MAX_DIGITS:
            raise _refused(f"a number of {len(node.value):,} digits", node)
        return self.construct_yaml_int(node)


for _name, (_pattern, _first) in SIMPLE.items():
    _starts = ["" if character == "\0" else character for character in _first]
    _Bounded.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern.pattern})\Z"), _starts)
_Bounded.add_constructor("tag:yaml.org,2002:map", _Bounded.construct_mapping)
_Bounded.add_constructor("tag:yaml.org,2002:int", _Bounded.construct_whole)


def parse_yaml(text: str, where: str, remedy: str) -> Any:
    """A YAML value from a file, or the command line, that is not trusted; None where it is empty.

    Raises:
        ImuError: not YAML, or more than we read of it (see the module); ``remedy`` says what to do.
    """
    try:
        found = yaml.load(text, _Bounded)  # noqa: S506 a SafeLoader that takes less
        reading.refuse_texts(found)
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ImuError(f"{where}: not YAML ({said[:400]}); {remedy}") from error
    except (ValueError, OverflowError, RecursionError) as error:  # a character, number or depth beyond Python's own
        raise ImuError(f"{where}: not YAML that is read ({reading.shown(str(error))}); {remedy}") from error
    return found


def read_yaml(path: Path, remedy: str, where: str | None = None) -> Any:
    """What a YAML file holds; None where it is empty. ``where`` is the file's name with its option, if it cannot be read.

    Raises:
        ImuError: cannot be read, larger than any such file, or not as ``parse_yaml`` wants it.
    """
    raw = reading.content(path, MAX_YAML, remedy, where)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImuError(f"{path}: not YAML (not UTF-8 at byte {error.start}); {remedy}") from error
    return parse_yaml(text, str(path), remedy)
