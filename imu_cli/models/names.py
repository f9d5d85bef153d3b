"""Which of a file's tensors are the model's, and under what names: one set of rules for loading, converting and proposing.

Wrappers and trainers put words before every name (``module.``, ``_orig_mod.model.``, ``net.``) and keep tensors beside the
model (a loss's weights, a counter of averages, a moving average). Words before the names are read over, whatever they are, where
exactly one set of tensors fits the architecture then; tensors beside it are left out by name only, and never without being listed.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice

from imu_cli.errors import ImuError

MOST_WORDS = 24
"""Words that may stand before a name; a name of a million dots was made to mislead."""
Shapes = Mapping[str, tuple[int, ...]]

WRAPPER = re.compile(r"(?:(?:module|_orig_mod|model|net|network)\.)+")
"""What DistributedDataParallel, torch.compile and trainers put before every name, in any order."""
BESIDE = re.compile(
    r"(?:criterions?|criteria|loss|losses|loss_(?:fn|func|function|module)|objective|n_averaged|global_step|step|epoch|"
    r"(?:train|valid|val|test)_?(?:acc|accuracy|auroc|f1|loss|metrics?)\w*|metrics?)(?:\.|$)"
)
"""First words of what trainers keep in a model's state and no classifier computes with: losses, metrics, counters."""
COUNTERS = "num_batches_tracked"
"""Files older than PyTorch 0.4.1 lack batch norm's counter, which plays no part in eval()."""


@dataclass(frozen=True)
class Naming:
    """How a file's names become the model's.

    Attributes:
        prefix: taken off the names that start with it.
        left_out: the file's names that are not loaded.
    """

    prefix: str = ""
    left_out: tuple[str, ...] = ()

    def own(self, name: str) -> str:
        """The model's name for a tensor of the file."""
        return name.removeprefix(self.prefix)


def matches(name: str, pattern: str) -> bool:
    """Whether ``--leave-out`` means a name: the name itself, its first words, or a pattern such as ``*.ema``.

    Words of wrappers before the name need not be given.
    """
    words = WRAPPER.match(name)
    return any(
        each == pattern or each.startswith(f"{pattern.removesuffix('.')}.") or fnmatchcase(each, pattern)
        for each in (name, name[words.end() :] if words else name)
    )


def left_out(names: Collection[str], patterns: Sequence[str], where: object) -> list[str]:
    """The names that ``--leave-out`` means, sorted.

    Raises:
        ImuError: a pattern means none of them, or all are left out.
    """
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise ImuError(
                f"--leave-out {pattern}: no tensor of {where} has such a name; it has {listed(names)}; give a name, its first "
                "words (ema_model) or a pattern ('*.ema')"
            )
    found = sorted(name for name in names if any(matches(name, pattern) for pattern in patterns))
    if patterns and len(found) == len(names):
        raise ImuError(f"--leave-out {' '.join(patterns)}: leaves none of the tensors of {where}")
    return found


def stripped(names: Collection[str], prefix: str, where: object) -> dict[str, str]:
    """The model's name for each of the file's: ``--strip-prefix`` taken off those that start with it.

    Raises:
        ImuError: none does, or two names would become one.
    """
    if not any(name.startswith(prefix) for name in names):
        shared = common_prefix(names)
        hint = f"they share {shared!r}" if shared else f"they are {listed(names)}"
        raise ImuError(f"--strip-prefix {prefix}: no tensor's name in {where} starts with it; {hint}")
    made = {name: name.removeprefix(prefix) for name in names}
    twice = [name for name, count in Counter(made.values()).items() if count > 1 or not name]
    if twice:
        raise ImuError(
            f"--strip-prefix {prefix}: two tensors of {where} would have the same name, {twice[0]!r}, or one none; leave one of "
            "them out with --leave-out"
        )
    return made


def find(
    in_file: Shapes, in_model: Shapes, where: object, strip_prefix: str | None = None, leave_out: Sequence[str] = ()
) -> Naming:
    """What is before the model's names in the file, and what in the file is no part of the model.

    Args:
        in_file: shapes of the file's tensors.
        in_model: shapes of the architecture's.
        where: the file, for messages.
        strip_prefix: ``--strip-prefix``; without it, the prefix under which the file has every tensor of the architecture.
        leave_out: ``--leave-out``.

    Raises:
        ImuError: an option means nothing in this file, or several sets of tensors fit and nobody says which.
    """
    out = left_out(in_file, leave_out, where)
    kept = {name: shape for name, shape in in_file.items() if name not in set(out)}
    prefix = _prefix(kept, in_model, where) if strip_prefix is None else strip_prefix
    if prefix or strip_prefix is not None:
        stripped(kept, prefix, where)
    beside = [name for name in kept if name.removeprefix(prefix) not in in_model and is_beside(name, prefix)]
    return Naming(prefix, tuple(sorted([*out, *beside])))


def is_beside(name: str, prefix: str = "") -> bool:
    """Whether a name is that of a trainer's own tensor, after the prefix, some of its words, or none of them."""
    return any(BESIDE.match(name[len(start) :]) is not None for start in starts(prefix) if name.startswith(start))


def beside_words(name: str, prefix: str) -> str:
    """The first words by which ``--leave-out`` means a tensor beside the model: after those that it shares with the prefix."""
    start = max((start for start in starts(prefix) if name.startswith(start)), key=len)
    return start + name[len(start) :].partition(".")[0]


def _prefix(in_file: Shapes, in_model: Shapes, where: object) -> str:
    wanted = {name for name in in_model if not name.endswith(COUNTERS)}
    found: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    for name, shape in in_file.items():
        for start in starts(name):
            own = name[len(start) :]
            if own in wanted:
                found[start] += 1
                fitting[start] += shape == in_model[own]
    whole = [start for start, count in found.items() if count == len(wanted)]
    best = [start for start in whole if fitting[start] == max(fitting[other] for other in whole)]
    if len(best) > 1:
        raise ImuError(_several(best, where))
    if best:
        return best[0]
    # Nothing fits; the prefix of the most names lets the message show what little is wrong.
    return min(found, key=lambda start: (-found[start], len(start)), default="")


def starts(name: str) -> list[str]:
    """What may be a prefix of the name: nothing, and its first words up to each of the first dots."""
    return ["", *(name[: dot.end()] for dot in islice(re.finditer(r"\.", name), MOST_WORDS))]


def _several(starts: Sequence[str], where: object) -> str:
    ordered = sorted(starts, key=lambda start: (len(start), start))
    shown = ", ".join(repr(start) if start else "(no prefix)" for start in ordered)
    if "" in ordered:
        option = (
            f"leave the other out with --leave-out {ordered[1].removesuffix('.')}, or add --strip-prefix {ordered[1]}"
        )
    else:
        others = " ".join(f"--leave-out {start.removesuffix('.')}" for start in ordered[1:])
        option = f"for the first, add --strip-prefix {ordered[0]} {others}"
    return f"{where}: holds several sets of tensors that fit the architecture, under {shown}; say which is the model: {option}"


def common_prefix(names: Iterable[str]) -> str:
    """The wrappers' words that all names start with; "" where there are none."""
    starts = {found[0] if (found := WRAPPER.match(name)) else "" for name in names}
    return _shared_words(sorted(starts)) if starts else ""


def _shared_words(starts: Sequence[str]) -> str:
    shared = ""
    for word in starts[0].split(".")[:-1]:
        longer = f"{shared}{word}."
        if not all(start.startswith(longer) for start in starts):
            break
        shared = longer
    return shared


def first_word(names: Collection[str]) -> str:
    """The first word that every name has and that is not all of it, with its dot; "" where there is none."""
    words = {name.partition(".")[0] for name in names if "." in name}
    return f"{words.pop()}." if len(words) == 1 and all("." in name for name in names) else ""


def in_groups(names: Iterable[str]) -> str:
    """All of the names, those with the same first word together: ``criterion.weight, ema_model.* (8)``."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return ", ".join(
        members[0] if len(members) == 1 else f"{word}.* ({len(members)})" for word, members in sorted(groups.items())
    )


def listed(names: Iterable[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    every = sorted(names)
    return ", ".join(every[:most]) + (f", +{len(every) - most} more" if len(every) > most else "")
