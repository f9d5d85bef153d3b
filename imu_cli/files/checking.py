"""What was read, held against a model of its file: one message, *where: what was found; what to do*."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from annotated_types import Gt, Le
from pydantic import AfterValidator, AllowInfNan, BaseModel, ConfigDict, TypeAdapter, ValidationError

from imu_cli.errors import ImuError
from imu_cli.files.reading import shown

Kind = TypeVar("Kind")

MAX_SIDE = 16_384
"""Pixels of a side of what enters a model; more is a mistake, and would take all memory."""

Side = Annotated[int, Gt(0), Le(MAX_SIDE)]


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL, which no file's name holds")
    return text


FileName = Annotated[str, AfterValidator(_no_nul)]
Finite = Annotated[float, AllowInfNan(False)]
Spread = Annotated[float, AllowInfNan(False), Gt(0)]
"""A standard deviation: it is divided by."""


class Said(BaseModel):
    """Base of what a file that others wrote may say: keys that are not named here are let through, values are not turned."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


def _place(error: Any, values: Any) -> list[str]:
    """The keys that lead to what was found; names of the alternatives of a type, which pydantic puts in, are left out."""
    parts: list[str] = []
    here = values
    for part in error["loc"]:
        inside = part in here if isinstance(here, Mapping) else isinstance(here, Sequence) and isinstance(part, int)
        if inside:
            parts.append(shown(part).strip("'"))
            here = here[part] if isinstance(here, Mapping) or part < len(here) else None
    if error["type"] in ("missing", "missing_argument"):
        parts.append(str(error["loc"][-1]))
    return parts


def problem(error: ValidationError, values: Any) -> str:
    """The first thing that is wrong: ``key: found …: what it has to be``; of a type's alternatives, the one that fits furthest."""
    errors: list[Any] = error.errors(include_url=False)
    same = [item for item in errors if item["loc"][:1] == errors[0]["loc"][:1]]
    first = max(same, key=lambda item: len(_place(item, values)))
    where, said = ".".join(_place(first, values)), first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] in ("missing", "missing_argument", "extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: {said}"
    return f"{where + ': ' if where else ''}found {shown(first['input'])}: {said}"


def checked(kind: type[Kind], values: Any, where: str, remedy: str) -> Kind:
    """The values as the model has them.

    Raises:
        ImuError: names the first that cannot be; ``remedy`` says what to do.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ImuError(f"{where}: {problem(error, values)}; {remedy}") from error
