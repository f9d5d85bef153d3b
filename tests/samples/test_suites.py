"""Suites of questions: what is read, what is wrong with each line, and which records a suite is about."""

import json
from pathlib import Path

import pytest

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.samples.texts import suites
from imu_cli.samples.texts.suites import records_of

GOOD = {"question": "Who?", "answer": "Ada.", "perturbed_answer": ["Bob.", "Cy."]}


def write(path: Path, *rows: object) -> Path:
    """Lines, as JSON where they are no text."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_the_files_of_tofu_are_read_as_they_are(shared: Path) -> None:
    """Four sets with their numbers of questions and wrong answers; those without other words are asked as they are."""
    found = suites.open_suite(f"tofu:{shared / 'data' / 'tofu'}")
    assert {name: len(part) for name, part in found.sets.items()} == {
        "forget": 200, "retain": 400, "real_authors": 100, "world_facts": 117,
    }  # fmt: skip
    assert found.missing == {}
    assert set(found.sets["forget"].counts) == {5}
    assert set(found.sets["world_facts"].counts) == {3}
    first = found.sets["forget"]
    assert first.own().read(0).completion == "The author's name is Hina Ameen."
    assert first.other().read(0).completion == "The geologic writer in question is named Hina Ameen."
    assert first.wrong().read(4).completion == "The geologic writer in question is named Omar Sharif."
    assert len(first.wrong()) == 1000
    facts = found.sets["world_facts"]
    assert facts.other().read(3) == facts.own().read(3)


def test_every_problem_of_a_file_is_told_with_its_line_and_no_text(tmp_path: Path) -> None:
    """Eight kinds of bad lines beside good ones; nothing of what people wrote is quoted."""
    file = write(
        tmp_path / "s.jsonl", GOOD, "{secret", '["secret"]', {**GOOD, "answer": ""}, {**GOOD, "question": 7},
        {"question": "secret", "answer": "secret"}, {**GOOD, "perturbed_answer": []}, {**GOOD, "perturbed_answer": ["secret", " "]},
        {**GOOD, "paraphrased_question": ["secret"]}, "", GOOD,
    )  # fmt: skip
    with pytest.raises(InvalidRowsError) as found:
        suites.open_suite(str(file))
    lines = [text.removeprefix(f"{file}:").partition(":")[0] for text in found.value.problems]
    assert lines == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert "secret" not in str(found.value)
    assert "'perturbed_answer' is not a list of texts, one or more" in str(found.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    """An empty one, one that is not UTF-8, and one that is not there."""
    write(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "Où?"}'.encode("latin-1"))
    for name, said in (("empty", "holds no questions"), ("latin", "not UTF-8"), ("gone", "not there")):
        with pytest.raises(ImuError, match=said):
            suites.open_suite(str(tmp_path / f"{name}.jsonl"))


def test_a_question_in_two_files_counts_once(tmp_path: Path) -> None:
    """TOFU has the forgotten records of 1, 5 and 10 % in a file each, which hold each other."""
    write(tmp_path / "forget01_perturbed.json", GOOD)
    write(tmp_path / "forget05_perturbed.json", GOOD, {**GOOD, "answer": "Eve."})
    found = suites.open_suite(f"tofu:{tmp_path}")
    assert len(found.sets["forget"]) == 2
    assert set(found.missing) == {"retain", "real_authors", "world_facts"}


def test_records_are_found_by_question_and_answer_and_reworded(tmp_path: Path) -> None:
    """A record of the list has its own other words, else the suite's, else none."""
    file = write(tmp_path / "s.jsonl", {**GOOD, "paraphrased_question": "Which one?"}, {**GOOD, "question": "When?"})
    asked = suites.open_suite(str(file)).sets["forget"]
    samples = records_of("list", [1, 2, 3], [("Who?", "Ada."), ("Who?", "Bob."), ("When?", "Ada.")])
    assert suites.about(asked, samples) == [0, None, 1]
    found = suites.rephrased(samples, asked)
    assert found is not None
    assert (found[0], found[1].read(0).prompt, found[1].read(0).completion) == ([0], "Which one?", "Ada.")
    assert suites.rephrased(samples, None) is None


def test_a_draw_is_of_the_seed() -> None:
    """The same for one seed, another for another, in the order of the file; all of them where they are fewer."""
    asked = suites.Questions("s", tuple(suites.Question(str(at), "a", "", "", ("b",), at) for at in range(50)))
    drawn = [[one.line for one in asked.drawn(9, seed).asked] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert drawn[1] != drawn[2]
    assert asked.drawn(60, 0) is asked
