"""Records and evaluations: strict JSON that reads back as what was written, and nothing else is read."""

import contextlib
import copy
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imu_cli.cli import main
from imu_cli.commands import unlearn
from imu_cli.config.commands import UnlearnConfig
from imu_cli.errors import ImuError
from imu_cli.events import Silent
from imu_cli.models.destination import beside
from imu_cli.records.evaluation import ClassRow, Evaluation, Metric, Requirement
from imu_cli.records.json_files import dump, read
from imu_cli.records.metric_definitions import DEFINITIONS
from imu_cli.records.parts import Interval, OptionValue
from imu_cli.records.record import Record

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an unlearned model, its record and its evaluation, as the commands wrote them."""
    made = tmp_path_factory.mktemp("records")
    for name in ("model.safetensors", "model.py", "imu.yaml"):
        shutil.copy(digits / name, made / name)
    (made / "data").symlink_to(digits / "data")
    base = ["--config", "imu.yaml", "--no-cache", "-q", "--test", "data/test"]
    with chdir(made):
        assert main(["unlearn", "model.safetensors", *base, "--forget", "class=3"]) == 0
        assert main(["evaluate", "model.unlearned.safetensors", *base, "--require", "test.accuracy>=0.1"]) == 0
    return made


KINDS = {"record": "model.unlearned.record.json", "evaluation": "model.unlearned.evaluation.json"}


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, folder: Path) -> Path:
    """The record's file, then the evaluation's."""
    return folder / KINDS[request.param]


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def strict(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are none."""
    return json.loads(text, parse_constant=refuse_constant)


def test_reading_and_writing_again_gives_the_same_bytes(path: Path) -> None:
    """``dump`` of what ``read`` read is the file, byte for byte; reading that again gives an equal object."""
    found = read(path)
    assert isinstance(found, Record if path.name == KINDS["record"] else Evaluation)
    assert dump(found) == path.read_text()
    assert next(iter(strict(path.read_text()))) == "schema"


def test_the_file_holds_what_the_run_returned(job: Path) -> None:
    """The record in the file equals the one that the program goes on with, but for the time that writing it took."""
    config = UnlearnConfig(
        arch="model.py:digits_net", preprocess={"mode": "L", "mean": [0.305], "std": [0.376]}, cache=False,
        data=str(Path("imu.yaml").read_text().split("data: ")[1].strip()), forget=["class=3", "class=5"],
    )  # fmt: skip
    done = unlearn.run_unlearn(Path("model.safetensors"), config, {}, Silent())
    found = read(done.record_path)
    assert isinstance(found, Record)
    assert found.rows == [3, 5]
    assert found == done.record.model_copy(update={"seconds": found.seconds})
    assert set(found.seconds) | {"writing"} == set(done.record.seconds)


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
floats = st.none() | st.floats()
intervals = st.none() | st.builds(Interval, low=st.floats(), high=st.floats(), method=st.text())
metrics = st.builds(
    Metric, name=st.text(), title=st.text(), definition=st.text(), value=floats, before=floats, n=st.none() | st.integers(0),
    interval=intervals, target=floats, target_range=intervals, missing=st.none() | st.text(), note=st.text(),
)  # fmt: skip
requirements = st.builds(
    Requirement, text=st.text(), metric=st.text(), verdict=st.sampled_from(["pass", "fail", "inconclusive"]),
    compared=floats, reason=st.text(),
)  # fmt: skip


def without_nan(value: Any) -> Any:
    """A value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return {key: without_nan(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(st.lists(metrics, max_size=3), st.lists(requirements, max_size=2), values, st.floats())
def test_no_nan_at_any_depth(
    folder: Path, found: list[Metric], gates: list[Requirement], anything: Any, number: float
) -> None:
    """Whatever a field holds, the text is strict JSON in which numbers that are not finite are null, the rest exact."""
    evaluation = read(folder / KINDS["evaluation"])
    assert isinstance(evaluation, Evaluation)
    evaluation.metrics, evaluation.requirements = found, gates
    row = {"class": "a", "split": "test", "n": 1, "before": number, "after": None}
    evaluation.per_class = [ClassRow.model_validate(row)]
    evaluation.seconds = {"loading": number}
    evaluation.options = {"x": OptionValue(value=anything, origin="flag")}
    plain = strict(dump(evaluation))
    assert plain["per_class"] == [row | {"before": without_nan(number)}]
    assert plain["seconds"] == {"loading": without_nan(number)}
    assert plain["options"] == {"x": {"value": without_nan(anything), "origin": "flag"}}
    assert [item["value"] for item in plain["metrics"]] == [without_nan(item.value) for item in found]
    lows = [None if item.interval is None else without_nan(item.interval.low) for item in found]
    assert [item["interval"] and item["interval"]["low"] for item in plain["metrics"]] == lows
    assert [item["compared"] for item in plain["requirements"]] == [without_nan(item.compared) for item in gates]


finite = st.none() | st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.lists(
        st.builds(Metric, name=st.text(), title=st.text(), definition=st.text(), value=finite, before=finite),
        max_size=3,
    )
)
def test_what_is_finite_reads_back_equal(folder: Path, found: list[Metric]) -> None:
    """read(dump(x)) == x for any text and any finite number."""
    evaluation = read(folder / KINDS["evaluation"])
    assert isinstance(evaluation, Evaluation)
    evaluation.metrics, evaluation.summary = found, "".join(item.title for item in found)
    (folder / "again.json").write_text(dump(evaluation), encoding="utf-8")
    assert read(folder / "again.json") == evaluation


def test_paths_that_are_not_utf8_survive(folder: Path) -> None:
    """A file name of arbitrary bytes, which Linux allows, is written as JSON can hold it and comes back."""
    record = read(folder / KINDS["record"])
    assert isinstance(record, Record)
    record.forget.given = [os.fsdecode(b"list\xff.csv"), "ü.csv"]
    (folder / "again.json").write_text(dump(record), encoding="utf-8")
    again = read(folder / "again.json")
    assert again.forget.given == record.forget.given
    assert "ü.csv" in (folder / "again.json").read_text(encoding="utf-8")


def models(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to the parts of a record that have fixed keys: those whose keys a stranger cannot choose."""
    free = ("options", "details", "seconds", "architecture", "preprocess", "quantiles", "given", "per_class")
    if isinstance(value, dict):
        yield at
        for key, item in value.items():
            if not (key in free and isinstance(item, dict)) and isinstance(item, list | dict):
                yield from models(item, (*at, key))
    elif isinstance(value, list) and value:
        yield from models(value[-1], (*at, len(value) - 1))


def inside(value: Any, at: tuple[Any, ...]) -> Any:
    """The part at a path."""
    for key in at:
        value = value[key]
    return value


def test_real_files_are_as_the_printed_schema_says(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``imu report --schema`` is a valid schema of draft 2020-12; what the commands wrote fits it, what was spoilt does not."""
    assert main(["report", "--schema"]) == 0
    schema = strict(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    plain = strict(path.read_text())
    assert list(validator.iter_errors(plain)) == []
    for at in models(plain):
        spoilt = copy.deepcopy(plain)
        inside(spoilt, at)["extra"] = 1
        assert not validator.is_valid(spoilt), at
    for key in ("schema", "head", "forget", "environment"):
        assert not validator.is_valid({name: value for name, value in plain.items() if name != key}), key


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every part of a JSON value."""
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from places(item, (*at, key))


FORMATS = (["--format", "table"], ["--format", "json"], ["--format", "csv"], ["--markdown", "-"], ["--html", "-"])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_edit_gives_an_error_or_a_report(path: Path, data: st.DataObject) -> None:
    """Whatever one part of a record is changed into, ``imu report`` refuses it or shows it, in every form."""
    plain = strict(path.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        *at, key = data.draw(st.sampled_from([found for found in places(plain) if found]))
        inside(plain, tuple(at))[key] = data.draw(values)
    spoilt = path.parent / "spoilt.json"
    spoilt.write_text(json.dumps(plain))
    for words in FORMATS:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["report", str(spoilt), *words])
        assert code == 0 or (code == 2 and err.getvalue().startswith(f"imu: {spoilt}: "))
        out.getvalue().encode()


def test_records_nested_without_end_are_refused(tmp_path: Path) -> None:
    """Depth that would exhaust the stack is refused, at the parser's limit and below it."""
    for depth in (100, 100_000):
        (tmp_path / "deep.json").write_text(
            '{"schema": "imu.record/1", "details": {"a": ' + "[" * depth + "]" * depth + "}}"
        )
        with pytest.raises(ImuError, match=r"deep\.json: nested too deeply"):
            read(tmp_path / "deep.json")


def test_unknown_keys_are_refused_at_any_depth(path: Path) -> None:
    """A key too many, wherever, is refused with the file's name and the place: a typo in an edited record is no comment."""
    plain = strict(path.read_text())
    places = list(models(plain))
    assert len(places) > 7
    for at in places:
        spoilt = copy.deepcopy(plain)
        inside(spoilt, at)["extra"] = 1
        (path.parent / "spoilt.json").write_text(json.dumps(spoilt))
        with pytest.raises(ImuError, match=r"spoilt\.json: .*extra.*extra inputs are not permitted"):
            read(path.parent / "spoilt.json")


def test_missing_keys_are_refused_unless_they_have_a_default(path: Path) -> None:
    """Leaving out a key that has no default is refused by the key's name, at any depth."""
    plain = strict(path.read_text())
    required = 0
    for at in models(plain):
        for key in inside(plain, at):
            spoilt = copy.deepcopy(plain)
            del inside(spoilt, at)[key]
            said = answer(path.parent, spoilt)
            if said == "read":
                continue
            required += 1
            assert said.startswith(str(path.parent / "spoilt.json"))
            assert f"{key}: field required" in said or "schema None is not known" in said
    assert required > 30


def answer(folder: Path, plain: Any) -> str:
    """What reading this gives: "read", or the error."""
    (folder / "spoilt.json").write_text(json.dumps(plain))
    try:
        read(folder / "spoilt.json")
    except ImuError as error:
        return str(error)
    return "read"


WRONG: dict[str, Any] = {
    "forget": 3,
    "head": None,
    "options": [1],
    "notes": "one",
    "seed": "many",
    "scenario": "whim",
    "created": 5,
    "seconds": {"loading": "long"},
}


@pytest.mark.parametrize("key", WRONG)
def test_values_of_the_wrong_kind_are_refused(path: Path, key: str) -> None:
    """The message names the file and the key."""
    plain = strict(path.read_text())
    assert key in plain
    plain[key] = WRONG[key]
    (path.parent / "spoilt.json").write_text(json.dumps(plain))
    with pytest.raises(ImuError, match=rf"spoilt\.json: {key}"):
        read(path.parent / "spoilt.json")


@pytest.mark.parametrize(
    "schema", ["imu.record/2", "imu.record", "imu.influence/1", "", None, 1, [], {}, ["imu.record/1"]], ids=str
)
def test_unknown_schemas_are_refused(path: Path, schema: Any) -> None:
    """A record of another version, or of another program, is refused with the schemas that this version reads."""
    plain = strict(path.read_text())
    plain["schema"] = schema
    (path.parent / "spoilt.json").write_text(json.dumps(plain))
    with pytest.raises(ImuError, match=r"spoilt\.json: schema .* it reads imu\.record/1, imu\.evaluation/1"):
        read(path.parent / "spoilt.json")


@pytest.mark.parametrize("text", [b"", b"{", b"schema: imu.record/1", b"\xff\xfe", b"[1, 2", b"\x80\x02}"], ids=repr)
def test_files_that_are_not_json(tmp_path: Path, text: bytes) -> None:
    """What is not JSON is said so."""
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ImuError, match=r"a\.json: not JSON \(.*\); name a \.record\.json or \.evaluation\.json"):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"imu.record/1"', "{}", '[{"schema": "imu.record/1"}]'])
def test_json_that_is_no_record(tmp_path: Path, text: str) -> None:
    """Any other JSON has no schema that is known."""
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ImuError, match=r"a\.json: (schema None is not known|not a JSON object)"):
        read(tmp_path / "a.json")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    """No file, or a folder, is said with the reason of the operating system."""
    with pytest.raises(ImuError, match="No such file or directory"):
        read(tmp_path / "a.json")
    with pytest.raises(ImuError, match="Is a directory"):
        read(tmp_path)


def test_every_cut_of_a_record_is_refused(path: Path) -> None:
    """A record that was cut short is never read as a shorter one."""
    data = path.read_bytes().rstrip()
    for length in range(0, len(data), 97):
        (path.parent / "spoilt.json").write_bytes(data[:length])
        with pytest.raises(ImuError, match="not JSON"):
            read(path.parent / "spoilt.json")


def test_paths_in_a_record_are_relative_to_its_folder(folder: Path, job: Path) -> None:
    """The record can be moved with its files: no absolute path, and model and output are found from its folder."""
    record, evaluation = read(folder / KINDS["record"]), read(folder / KINDS["evaluation"])
    assert isinstance(record, Record)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.record is not None
    assert evaluation.original is not None
    for file in (record.before, record.after, evaluation.model, evaluation.original, evaluation.record):
        assert (folder / file.path).is_file()
    assert str(folder) not in dump(record) + dump(evaluation)


def test_every_metric_has_a_number_or_a_reason(folder: Path) -> None:
    """In an evaluation each metric that is defined stands once, with its value, or with why it was not measured."""
    evaluation = read(folder / KINDS["evaluation"])
    assert isinstance(evaluation, Evaluation)
    assert sorted(metric.name for metric in evaluation.metrics) == sorted(DEFINITIONS)
    for metric in evaluation.metrics:
        assert (metric.value is None) == bool(metric.missing), metric.name
    assert {metric.name for metric in evaluation.metrics if metric.missing} >= {"retain.accuracy", "retain_mia.auc"}


def test_where_records_lie() -> None:
    """A model's record and evaluation lie beside it, under its stem."""
    assert beside(Path("a/m.unlearned.safetensors"), "record") == Path("a/m.unlearned.record.json")
    assert beside(Path("m.safetensors"), "evaluation") == Path("m.evaluation.json")
