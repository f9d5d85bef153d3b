"""Records of language models: how lists of them are read, found again, and refused."""

import json
from pathlib import Path

import pytest

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.asked import forgotten_records
from imu_cli.samples.column_names import ColumnNames
from imu_cli.samples.dataset import RECORDS, UNKNOWN
from imu_cli.samples.manifest import open_source
from imu_cli.samples.texts.records import Record

ROWS = [{"prompt": "Who?", "completion": "Ann."}, {"prompt": "Where?", "completion": "In Rome."}]
CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]


def lines(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_questions_and_answers_are_prompts_and_completions(tmp_path: Path) -> None:
    """``question`` and ``answer`` together are records; other columns of the ecosystem's sets are kept or said to mean nothing."""
    given = [{"question": "Who?", "answer": "Ann.", "paraphrased_question": "Which one?", "perturbed_answer": ["Bob."]}]
    found = open_source(lines(tmp_path / "a.jsonl", given), "data")
    assert found.kind is RECORDS
    assert found.read(0) == Record("Who?", "Ann.")
    assert list(found.columns["paraphrased_question"]) == ["Which one?"]
    assert "'perturbed_answer'" in found.notes[0]


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", "id,prompt,completion\n7,Who?,Ann.\n8,\"Where, then?\",In Rome.\n"),
    ("a.tsv", "id\tprompt\tcompletion\n7\tWho?\tAnn.\n8\tWhere, then?\tIn Rome.\n"),
])  # fmt: skip
def test_separated_files_hold_records(tmp_path: Path, name: str, text: str) -> None:
    """CSV and TSV hold prompts and completions as JSON lines do, and ids by which rows are named."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = open_source(str(tmp_path / name), "data")
    assert [data.read(row) for row in range(2)] == [Record("Who?", "Ann."), Record("Where, then?", "In Rome.")]
    found = forgotten_records(["id=8"], data, None)
    assert found.samples.read(0) == Record("Where, then?", "In Rome.")
    assert list(found.samples.labels) == [UNKNOWN]


def test_conversations_end_with_what_is_forgotten(tmp_path: Path) -> None:
    """The last turn of ``messages`` is the completion."""
    found = open_source(lines(tmp_path / "a.jsonl", [{"messages": CHAT}]), "data")
    assert found.read(0) == Record("", "Ann.", tuple(CHAT))


def test_a_completion_alone_has_no_prompt(tmp_path: Path) -> None:
    """A list without prompts is of texts that follow nothing."""
    found = open_source(lines(tmp_path / "a.jsonl", [{"completion": "Ann lives here."}]), "data")
    assert found.read(0) == Record("", "Ann lives here.")


def test_columns_are_named(tmp_path: Path) -> None:
    """``--columns prompt=ask,completion=say`` reads what a file calls otherwise."""
    names = ColumnNames.parse("prompt=ask,completion=say")
    found = open_source(lines(tmp_path / "a.jsonl", [{"ask": "Who?", "say": "Ann."}]), "data", names=names)
    assert found.read(0) == Record("Who?", "Ann.")


def test_records_are_found_in_the_data_by_what_they_say(tmp_path: Path) -> None:
    """A list of whole records, of indices or of ids stands for rows of ``--data``."""
    rows = [{"id": str(at), **row} for at, row in enumerate(ROWS)]
    data = open_source(lines(tmp_path / "data.jsonl", rows), "data")
    for given in ([ROWS[1]], [{"index": 1}], [{"id": "1"}]):
        found = forgotten_records([lines(tmp_path / "forget.jsonl", given)], data, None)
        assert found.samples.read(0) == Record("Where?", "In Rome.")
        assert found.samples.where(0).endswith("data.jsonl:2")


def test_a_record_that_comes_twice_is_told(tmp_path: Path) -> None:
    """The same record twice is a note, since each counts."""
    found = forgotten_records([lines(tmp_path / "a.jsonl", [ROWS[0], ROWS[1], ROWS[0]])], None, None)
    assert "1 rows repeat a record; each counts" in found.notes[0]
    assert len(found) == 3


WRONG: dict[str, tuple[list[object], str]] = {
    "no completion": ([{"prompt": "Who?", "completion": ""}], "a.jsonl:1: the completion is empty; write it"),
    "spaces alone": ([ROWS[0], {"prompt": "Who?", "completion": "  "}], "a.jsonl:2: the completion is empty"),
    "null": ([{"prompt": "Who?", "completion": None}], "a.jsonl:1: 'completion' is null, not a text"),
    "a number": ([{"prompt": "Who?", "completion": 3}], "a.jsonl:1: 'completion' is a number, not a text"),
    "a list": ([{"prompt": "Who?", "completion": ["Ann."]}], "a.jsonl:1: 'completion' is a list, not a text"),
    "an object": ([{"prompt": {"role": "user"}, "completion": "Ann."}], "a.jsonl:1: 'prompt' is an object, not a text"),
    "answer is a list": ([{"question": "Who?", "answer": ["Ann."]}], "a.jsonl:1: 'answer' is a list, not a text"),
    "prompts alone": ([{"prompt": "Who?"}], "no text"),
    "an instruction": ([{"instruction": "Who?", "output": "Ann."}], "no text; add --columns prompt=instruction,completion=output"),
    "a response": ([{"prompt": "Who?", "response": "Ann."}], "no text; add --columns completion=response"),
    "turns of another name": ([{"conversations": [{"from": "gpt", "value": "Ann."}]}], "no text; add --columns messages=conversations"),
    "turns of other keys": (
        [{"messages": [{"from": "gpt", "value": "Ann."}]}], "content of text in turn 1, which 'from' and 'value' are elsewhere; write both",
    ),
    "a record twice over": (
        [{**ROWS[0], "messages": CHAT}], "a.jsonl: has completions ('completion') and conversations ('messages'); put them into two lists",
    ),
    "records of two kinds": ([ROWS[0], {"messages": CHAT}], "a.jsonl: has completions ('completion') and conversations ('messages')"),
    "an empty answer": ([{"question": "Who?", "answer": " "}], "a.jsonl:1: the answer is empty; write it"),
    "no turns": ([{"messages": []}], "a.jsonl:1: messages hold no turns"),
    "messages of text": ([{"messages": "Who?"}], "a.jsonl:1: messages are no JSON"),
    "messages are an object": ([{"messages": {"role": "user"}}], "a.jsonl:1: 'messages' is an object, not a list of messages"),
    "a turn without role": ([{"messages": [{"content": "Ann."}]}], "a.jsonl:1: messages have no role and content of text in turn 1"),
    "a turn of parts": (
        [{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "Ann."}]}]}],
        "a.jsonl:1: messages have no role and content of text in turn 1",
    ),
    "ends with a question": ([{"messages": CHAT[:1]}], "a.jsonl:1: messages end with a turn of 'user'"),
    "ends with nothing": ([{"messages": [CHAT[0], {"role": "assistant", "content": " "}]}], "a.jsonl:1: messages end with an empty turn"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_records_are_refused_with_their_line(tmp_path: Path, case: str) -> None:
    """Each kind of wrong record ends with the line and what to do; nothing of the texts stands in the message."""
    given, said = WRONG[case]
    with pytest.raises(ImuError) as caught:
        forgotten_records([lines(tmp_path / "a.jsonl", given)], None, None)
    text = "\n".join(caught.value.problems) if isinstance(caught.value, InvalidRowsError) else str(caught.value)
    assert said in text
    assert "Ann" not in text


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    """A list is checked whole."""
    rows: list[object] = [{"prompt": "Who?", "completion": ""}, ROWS[0], {"prompt": "Who?", "completion": 5}]
    with pytest.raises(InvalidRowsError) as caught:
        forgotten_records([lines(tmp_path / "a.jsonl", rows)], None, None)
    assert [text.split(": ")[0].rpartition(":")[2] for text in caught.value.problems] == ["1", "3"]


def test_records_are_not_looked_for_among_texts(tmp_path: Path) -> None:
    """A list of records and data of texts do not meet, and the message says so."""
    data = open_source(lines(tmp_path / "data.jsonl", [{"text": "Ann lives here.", "label": "a"}]), "data")
    with pytest.raises(InvalidRowsError, match=r"holds records, and .* texts"):
        forgotten_records([lines(tmp_path / "a.jsonl", [ROWS[0]])], data, None)


def test_labels_are_for_classifiers(tmp_path: Path) -> None:
    """``--label`` names a class, and a record has none."""
    with pytest.raises(ImuError, match="--label cat: is for classifiers"):
        forgotten_records([lines(tmp_path / "a.jsonl", [ROWS[0]])], None, "cat")
