"""Records as files: written as JSON without NaN, read with suspicion, and their JSON Schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    TypeAdapter,
)

from imu_cli.errors import ImuError
from imu_cli.files.checking import checked
from imu_cli.files.reading import read_json, shown
from imu_cli.records.evaluation import Evaluation
from imu_cli.records.influence import Influence
from imu_cli.records.parts import Model
from imu_cli.records.recall import Recall
from imu_cli.records.record import Record
from imu_cli.records.retrieval import Judged, Retrieval
from imu_cli.records.token_influence import TokenInfluence

DEEPEST = 40
"""Levels of nesting in a record; what the tool writes has fewer than ten."""
KINDS = "name a .record.json or .evaluation.json"
RESULTS = (".record.json", ".evaluation.json")
"""What the results in a folder that was written are called by."""

Written = Record | Judged
"""What a file may hold, told apart by its ``schema``."""
SCHEMAS: dict[str, type[Written]] = {
    "imu.record/1": Record,
    "imu.evaluation/1": Evaluation,
    "imu.retrieval/1": Retrieval,
    "imu.recall/1": Recall,
}


def dump(record: Model) -> str:
    """A record as JSON text: stable keys, no NaN."""
    return "".join(dumped(record))


def dumped(record: Model) -> Iterator[str]:
    """The text of ``dump`` in pieces; the rows of scores, one a line and one a piece, at the end."""
    plain = record.model_dump(mode="json", by_alias=True)
    ordered = {"schema": plain.pop("schema"), **plain} if "schema" in plain else plain
    text = _json(ordered, indent=1)
    if not isinstance(record, Influence | TokenInfluence):
        yield text + "\n"
        return
    yield text.removesuffix("\n}") + ',\n "rows": ['
    for number, row in enumerate(record.rows):
        yield (",\n  " if number else "\n  ") + _json(row.model_dump(mode="json"))
    yield "\n ]\n}\n"


def _json(plain: Any, indent: int | None = None) -> str:
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
    return text.encode("utf-8", "backslashreplace").decode()  # a path that is not UTF-8 becomes JSON's own escape


def as_shown(result: Model) -> Any:
    """A result as plain values, under the names that its class reads."""
    return result.model_dump(by_alias=True)


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the files: a record or an evaluation of one of three kinds of models, told apart by ``schema``."""
    made = TypeAdapter(Annotated[Written, Field(discriminator="schema_")]).json_schema(by_alias=True)
    for kind in SCHEMAS.values():
        made["$defs"][kind.__name__]["required"].insert(0, "schema")  # it has a default for us, none for a file
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What imu unlearn and imu evaluate write",
        **made,
    }


def read(path: Path) -> Written:
    """Read a record or an evaluation.

    Raises:
        ImuError: missing, not JSON, of an unknown schema, or not as the schema says.
    """
    there = sorted(str(file) for file in path.glob("model.*.json") if file.name.endswith(RESULTS))
    plain = read_json(path, remedy=f"name {' or '.join(there)}" if there else KINDS, texts="names", deepest=DEEPEST)
    schema = plain.get("schema")
    if not isinstance(schema, str) or schema not in SCHEMAS:
        raise ImuError(f"{path}: schema {shown(schema)} is not known to this version; it reads {', '.join(SCHEMAS)}")
    return checked(SCHEMAS[schema], plain, str(path), "the file was edited or cut short, make it again")
