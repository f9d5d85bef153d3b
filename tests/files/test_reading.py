"""One reader a format: JSON and YAML bounded in size, depth and digits; numbers of the environment; memory asked for first."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.files import memory, reading, yaml_reading
from imu_cli.files.checking import Said, checked

DIGITS = "9" * 5000


def parsed(text: str) -> Any:
    return yaml_reading.parse_yaml(text, "a.yaml", "mend it")


# --- YAML

READ: dict[str, Any] = {
    "label: 2020-13-45": {"label": "2020-13-45"},
    "label: 2020-01-01 25:00:00": {"label": "2020-01-01 25:00:00"},
    "day: 2020-01-01": {"day": "2020-01-01"},
    "forget: 1:30": {"forget": "1:30"},
    "a: =": {"a": "="},
    "no: 1": {"no": 1},
    "3: x": {"3": "x"},
    "<<: {a: 1}": {"<<": {"a": 1}},
    "a: &name 1": {"a": 1},
    "a: [1, -2, 0x1f, 2.5, .5, 1e-3, .inf]": {"a": [1, -2, 31, 2.5, 0.5, "1e-3", float("inf")]},
    "a: [yes, No, on, off, true, null, ~, '3', \"x\\ty\"]": {"a": [True, False, True, False, True, None, None, "3", "x\ty"]},
    "a:\n  - b: 1\n    c:\n": {"a": [{"b": 1, "c": None}]},
    "": None,
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_what_yaml_is_read_as(text: str) -> None:
    """As PyYAML reads it, but for dates, which are text whether they exist or not, sexagesimal numbers, and keys."""
    assert parsed(text) == READ[text]


REFUSED = {
    "a: &x 1\nb: *x": "an alias",
    "forget: &a [*a]": "an alias",
    "a: !!python/object/apply:os.system [x]": "a tag",
    "a: !!timestamp 2020-13-45": "a tag",
    "a: !!binary x": "a tag",
    "a: ! 3": "a tag",
    "a: 1\na: 2": "the key 'a' stands twice",
    "a: {b: 1, b: 2}": "the key 'b' stands twice",
    "? [a]\n: 1": "a list or mapping as a key",
    f"a: {DIGITS}": "a number of 5,000 digits",
    f"a: 0x{'f' * 5000}": "a number of 5,002 digits",
    f"a: -0b{'1' * 5000}": "a number of 5,003 digits",
    'a: "b\\0c"': "holds a NUL",
    '"b\\0c": 1': "holds a NUL",
    'a: "\\uD800"': "holds half a character",
    'a: "\\UFFFFFFFF"': "not YAML",
    "a: 0x_": "not YAML",
    "[" * 50_000: "nested too deeply",
    "- " * 50_000: "nested too deeply",
    "{a: " * 30 + "1" + "}" * 30: "nested too deeply",
    "\x00": "not YAML",
    "--- 1\n--- 2": "not YAML",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:30]))
def test_what_yaml_is_not_read(text: str) -> None:
    """One line: where, what was found, what to do, whatever the length of what was found."""
    with pytest.raises(ImuError) as caught:
        parsed(text)
    said = str(caught.value)
    assert said.startswith("a.yaml: not YAML")
    assert REFUSED[text] in said
    assert said.endswith("; mend it")
    assert len(said) < 600
    assert "\n" not in said


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=8)
"""Without line ends of other scripts, which PyYAML folds when it writes them."""


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )
)
def test_what_is_written_reads_back(value: Any) -> None:
    """What PyYAML writes without aliases and tags comes back the same, but for what is refused by name."""
    text = yaml.safe_dump(value, allow_unicode=True)
    assert "!!" not in text or "'" in text or '"' in text
    try:
        found = parsed(text)
    except ImuError as error:
        assert any(reason in str(error) for reason in ("holds a NUL", "special characters", "a tag"))  # noqa: PT017
        return
    assert found == value


def test_an_alias_bomb_is_refused_at_once(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two kilobytes that stand for ten to the ninth items are not expanded, in no message either."""
    lines = ["seed:", "  a0: &a0 [lol, lol, lol, lol]"]
    lines += [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 10)]
    with Path("imu.yaml").open("a") as file:
        file.write("\n".join(lines) + "\n")
    start = time.process_time()
    assert main(["influence", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3"]) == 2
    assert time.process_time() - start < 5
    assert "imu.yaml: not YAML (an alias (*a0)" in capsys.readouterr().err


ENDLESS = {
    "--config": ["influence", "model.safetensors", "--forget", "class=3", "--config"],
    "--preprocess": ["influence", "model.safetensors", "--forget", "class=3", "--config", "imu.yaml", "--preprocess"],
    "--classes": ["influence", "model.safetensors", "--forget", "class=3", "--config", "imu.yaml", "--classes"],
    "report": ["report"],
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_file_without_end_is_not_read_to_it(name: str, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More bytes than any such file has are not read, let alone parsed."""
    with Path("big.yaml").open("wb") as file:
        file.truncate(2**40)  # a hole, which takes no disk
    assert main([*ENDLESS[name], "big.yaml"]) == 2
    assert "big.yaml: has more than" in capsys.readouterr().err


# --- options in imu.yaml, as a user meets them

OPTIONS = {
    "seed: " + DIGITS: "imu.yaml: not YAML (a number of 5,000 digits",
    "label: 0x" + "f" * 5000: "imu.yaml: not YAML (a number of 5,002 digits",
    'classes: "a\\0b"': "holds a NUL",
    'forget: "a\\0b.csv"': "holds a NUL",
    "label: 2020-13-45": "--label: label '2020-13-45' is not a class",
    "forget: &a [*a]": "an alias",
    "max_memory: 2020-13-45": "--max-memory 2020-13-45: not a size",
    "batch_size: 99999999999999999999": "batch_size 99999999999999999999: not a number that can be used",
    "keep: .nan": "keep nan: ",
    "max-drop: 1\nmax_drop: 1": "'max_drop' stands twice",
    "preprocess: {size: yes}": "size: found True: value error, a number, not yes or no",
    "preprocess: {size: 2020-13-45}": "size: found '2020-13-45'",
    "preprocess: {mean: [.nan], std: [1]}": "mean.0: found nan: input should be a finite number",
    "preprocess: {mean: [0], std: [.inf]}": "std.0: found inf: input should be a finite number",
    "preprocess: {crop: 30000}": "crop: found 30000: input should be less than or equal to 16384",
    "arch_arg: {width: " + "8" * 30 + "}": "misshapen|too large|factory failed|does not fit",
}


@pytest.mark.parametrize("text", OPTIONS, ids=lambda text: text[:30])
def test_options_that_cannot_be(text: str, job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that names file or option, nothing written."""
    kept = [
        line for line in Path("imu.yaml").read_text().splitlines() if line.partition(":")[0] != text.partition(":")[0]
    ]
    Path("imu.yaml").write_text("\n".join([*kept, text]) + "\n")
    given = (
        ["--forget", "class=3" if "label" not in text else str(digits / "data/test/3")] if "forget" not in text else []
    )
    assert main(["influence", "model.safetensors", "--config", "imu.yaml", *given]) == 2
    said = capsys.readouterr()
    assert any(part in said.err for part in OPTIONS[text].split("|")), said.err
    assert len(said.err) < 2000


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (f"width={DIGITS}", "a number of 5,000 digits"),
        ("width=" + "[" * 3000, "nested too deeply"),
        ("width=" + '{"a":' * 3000, "nested too deeply"),
        ("width=&a [*a]", "an alias"),
        ('width="\\ud800"', "half a character"),
        ("width=!!python/name:os.system x", "a tag"),
    ],
    ids=lambda text: text[:20],
)
def test_arguments_that_cannot_be(pair: str, said: str, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--arch-arg`` goes through the same reader, JSON or YAML."""
    assert main(["inspect", "model.safetensors", "--arch", "model.py:digits_net", "--arch-arg", pair]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert said in shown
    assert "--arch-arg" in shown


# --- JSON

BAD_JSON: dict[str, str] = {
    '{"a": 1, "a": 2}': "the key 'a' stands twice",
    '{"b": {"a": 1, "a": 2}}': "the key 'a' stands twice",
    f'{{"a": {DIGITS}}}': "a number of 5,000 digits",
    '{"a": "\\u0000"}': "holds a NUL",
    '{"\\ud800": 1}': "holds half a character",
    '{"a": ' * 70 + "1" + "}" * 70: "nested too deeply",
    "[" * 100_000: "nested too deeply",
    "[]": "not a JSON object",
    "{": "not JSON",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=lambda text: text[:20])
def test_what_json_is_not_read(text: str) -> None:
    """One short line with what to do."""
    with pytest.raises(ImuError) as caught:
        reading.parse_json(text.encode(), "a.json", remedy="mend it")
    assert str(caught.value).startswith("a.json: ")
    assert BAD_JSON[text] in str(caught.value)
    assert str(caught.value).endswith("; mend it")
    assert len(str(caught.value)) < 300


def test_a_key_twice_among_a_million_is_found_in_time() -> None:
    """The search for the key is no search for each key."""
    text = "{" + ",".join(f'"{number}": 0' for number in range(200_000)) + ', "199999": 1}'
    start = time.process_time()
    with pytest.raises(ImuError, match="the key '199999' stands twice"):
        reading.parse_json(text.encode(), "a.json")
    assert time.process_time() - start < 5


TWICE = {
    '{"file_name": "3/a.png", "file_name": "3/b.png", "label": "3"}': "the key 'file_name' stands twice",
    '{"file_name": "3/a.png", " File_Name": "3/b.png", "label": "3"}': "the key 'file_name' stands twice",
    f'{{"file_name": "3/a.png", "label": {DIGITS}}}': "a number of 5,000 digits",
    '{"file_name": "3/a.png", "label": "\\ud800"}': "'label' holds half a character",
    '{"file_name": "3/a.png", "label": {"a": 1}}': "'label' is a dict",
}


@pytest.mark.parametrize("row", TWICE, ids=lambda text: text[20:50])
def test_rows_that_say_two_things(row: str, job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A JSON line goes through the same reader; the line is named."""
    Path("l.jsonl").write_text(row + "\n")
    assert main(["influence", "model.safetensors", "--config", "imu.yaml", "--forget", "l.jsonl"]) == 2
    said = capsys.readouterr().err
    assert f"l.jsonl:1: no JSON object of plain values ({TWICE[row]}" in said


def test_a_selector_of_thousands_of_digits(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``index=`` is a number from the command line too."""
    for text in (DIGITS, f"0:{DIGITS}", f"::{DIGITS}", f"-{DIGITS}"):
        assert main(["influence", "model.safetensors", "--config", "imu.yaml", "--forget", f"index={text}"]) == 2
        said = capsys.readouterr().err
        assert "neither a row number nor a slice" in said
        assert len(said) < 500


# --- values in messages


def bomb() -> list[Any]:
    value: list[Any] = [0]
    for _ in range(60):
        value = [value, value]
    return value


LONG: dict[str, Callable[[], Any]] = {
    "digits": lambda: 10**6000,
    "text": lambda: "x" * 10**6,
    "list": lambda: [0.5] * 10**5,
    "references": bomb,
    "keys": lambda: {str(number): number for number in range(10**5)},
}


@pytest.mark.parametrize("name", LONG)
def test_a_found_value_is_short_in_a_message(name: str) -> None:
    """Nothing that was found makes a message long, or slow, or fail."""
    start = time.process_time()
    assert 0 < len(reading.shown(LONG[name]())) <= 200
    assert time.process_time() - start < 5


class Page(Said):
    """A file with a few keys."""

    number: int
    parts: list[int] | dict[str, int] | None = None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"number": "3"}, "number: found '3': input should be a valid integer"),
        ({"number": True}, "number: found True: "),
        ({}, "number: field required"),
        ({"number": 1, "parts": [1, "b"]}, "parts.1: found 'b': "),
        ({"number": 1, "parts": {"a": None}}, "parts.a: found None: "),
        ({"number": 1, "parts": 5}, "parts: found 5: "),
        ([], "found []: "),
    ],
    ids=str,
)
def test_the_place_and_the_value_are_named(values: Any, said: str) -> None:
    """*Where: what was found; what to do*, without pydantic's names of alternatives."""
    with pytest.raises(ImuError) as caught:
        checked(Page, values, "a.json", "mend it")
    assert str(caught.value).startswith(f"a.json: {said}")
    assert str(caught.value).endswith("; mend it")
    assert "\n" not in str(caught.value)


# --- memory


def test_what_does_not_fit_is_refused_before_it_is_made() -> None:
    """``--max-memory`` where it is given, else half of what is free."""
    memory.require(1000, 1000, "a", "it", "do")
    with pytest.raises(ImuError, match=r"a: it would take 2 GB, --max-memory is 1 GB; do"):
        memory.require(2 * 10**9, 10**9, "a", "it", "do")
    with pytest.raises(ImuError, match="half of what is free"):
        memory.require(2**60, None, "a", "it", "do")


def test_a_preprocessing_that_does_not_fit(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A size within the bounds is held against ``--max-memory`` before an image is decoded."""
    Path("p.yaml").write_text(json.dumps({"mode": "L", "size": 4000, "mean": [0.3], "std": [0.3]}))
    command = [
        "influence",
        "model.safetensors",
        "--config",
        "imu.yaml",
        "--forget",
        "class=3",
        "--preprocess",
        "p.yaml",
    ]
    assert main([*command, "--max-memory", "1GB"]) == 2
    assert (
        "--preprocess: 12 images of 4,000 x 4,000 would take 4.61 GB, --max-memory is 1 GB" in capsys.readouterr().err
    )
