"""Reports for machines and for CI: JUnit, Markdown, and which files may be replaced by them."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_terminal import evaluation, record

from imu_cli.cli import main
from imu_cli.commands import report
from imu_cli.records.evaluation import Requirement
from imu_cli.records.json_files import dump
from imu_cli.views import junit, markdown


def test_verdicts_as_junit() -> None:
    """Passed, failed and inconclusive gates are passed, failed and erroneous test cases; the counts are theirs."""
    made = evaluation()
    root = ElementTree.fromstring(junit.junit(made).encode())
    assert root.tag == "testsuites"
    (suite,) = root.findall("testsuite")
    for element in (root, suite):
        assert [element.get(name) for name in ("tests", "failures", "errors")] == ["3", "1", "1"]
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == [item.text for item in made.requirements]
    assert [[part.tag for part in case] for case in cases] == [["system-out"], ["failure"], ["error"]]
    failed = cases[1].find("failure")
    assert failed is not None
    assert failed.get("message") == "fail: compared –; not measured"
    assert made.summary in (suite.findtext("system-out") or "")
    assert suite.get("timestamp") == made.created.removesuffix("+00:00")


@given(st.text())
@settings(deadline=None, max_examples=50)
def test_junit_parses_back_whatever_names_hold(text: str) -> None:
    """Quotes, brackets and line ends come back; control characters, which XML cannot hold, come as escapes."""
    gate = Requirement(text=f"<{text}", metric="m", verdict="fail", compared=None, reason=f"{text}]]>")
    root = ElementTree.fromstring(junit.junit(evaluation(requirements=[gate], summary=text)).encode())
    case = root.find("testsuite/testcase")
    assert case is not None
    if text.isprintable():
        assert case.get("name") == f"<{text}"
        assert (case.find("failure").get("message") or "").endswith(f"{text}]]>")  # type: ignore[union-attr]


EVIL = [
    "<script>alert(1)</script>",
    "![x](http://evil.example/x.png)",
    "a | b",
    "[a](http://b)",
    "**x**\n# y",
    "www.x.yz",
]


@pytest.mark.parametrize("name", EVIL)
def test_names_are_no_markup_in_markdown(name: str) -> None:
    """A class or file name is text: it opens no tag, no link, no image and no cell, and stays on its line."""
    per_class = [{"class": name, "split": "test", "n": 1, "before": 1.0, "after": 1.0}]
    made = evaluation(summary=name, per_class=per_class, notes=[name])
    clean = evaluation(summary="x", per_class=[per_class[0] | {"class": "x"}], notes=["x"])
    text, plain = (markdown.report([item, record()], ["a", "b"]) for item in (made, clean))
    assert name not in text
    for sign in ("<", "](", "![", "|", "**", "://", "www."):
        assert text.count(sign) == plain.count(sign), sign
    assert len(text.splitlines()) == len(plain.splitlines())


def test_markdown_says_what_the_terminal_says() -> None:
    """Summary, verdicts, every metric measured or not, notes and the limit stand in it; every table's rows fit its head."""
    made = evaluation()
    text = markdown.report([made, made, record()], ["a.json", "b.json", "c.json"])
    assert text.startswith(f"{markdown.MARK}\n\n## Evaluation: m.unlearned.safetensors\n\nWhat it comes to.\n")
    for item in made.metrics:
        name = markdown.escaped(item.name)
        wanted = rf"^\| {name} \| not measured" if item.missing else rf"^\| {name} \| 99\.10 %|^\| {name} \| 0\.991"
        assert re.search(wanted, text, re.MULTILINE), item.name
    assert "| **FAIL** |" in text
    assert "| **inconclusive** |" in text
    assert "Side by side" in text
    assert text.count("It is not a finding that data were erased") == 3
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if set(line) <= set("|-: ") and line.startswith("|"):
            width = line.count("|")
            assert lines[at - 1].count("|") == width
            assert lines[at + 1].count("|") == width


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an evaluation and a record, the current one."""
    (tmp_path / "e.json").write_text(dump(evaluation()), encoding="utf-8")
    (tmp_path / "r.json").write_text(dump(record()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", report.PAGES)
def test_pages_replace_only_their_own(files: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A report is made again without asking; another file is never replaced, and nothing is on stdout but for -."""
    page = files / "page"
    for _ in range(2):
        assert main(["report", "e.json", f"--{form}", "page"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "wrote page\n" * 2)
    made = page.read_text(encoding="utf-8")
    assert main(["report", "e.json", f"--{form}", "-"]) == 0
    assert capsys.readouterr().out == made
    page.write_text("# my notes\n")
    assert main(["report", "e.json", f"--{form}", "page"]) == 2
    assert f"imu: --{form} page: exists and was not written by this option" in capsys.readouterr().err
    assert page.read_text() == "# my notes\n"
    page.write_text("")
    assert main(["report", "e.json", f"--{form}", "page"]) == 0
    assert main(["report", "e.json", f"--{form}", "no/page"]) == 2
    assert main(["report", "e.json", f"--{form}", "."]) == 2
    assert main(["report", "e.json", f"--{form}", "x" * 300]) == 2
    assert "File name too long" in capsys.readouterr().err
    assert sorted(path.name for path in files.iterdir()) == ["e.json", "page", "r.json"]


def test_two_pages_need_two_files(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One page does not overwrite the other, and both are written from one call."""
    for other in ("a", "./a", str(files / "a")):
        assert main(["report", "e.json", "--markdown", "a", "--html", other]) == 2
        assert "--markdown and --html: name the same file" in capsys.readouterr().err
    assert not (files / "a").exists()
    assert main(["report", "e.json", "--markdown", "a.md", "--html", "a.html"]) == 0
    assert (files / "a.md").read_text().startswith(markdown.MARK)
    assert "<!doctype html>" in (files / "a.html").read_text()


def test_report_without_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    """No file to report on is said, with what to name."""
    assert main(["report"]) == 2
    assert "report: no RECORD; name a .record.json" in capsys.readouterr().err


def test_gates_of_the_file_cannot_be_loosened(job: Path, digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``gates:`` in imu.yaml hold whatever --require says; both are judged, shown, and written as JUnit."""
    config = Path("imu.yaml").read_text()
    Path("imu.yaml").write_text(f"{config}\ngates: [test.accuracy>=0.999, forget.accuracy<=1]\nrequire: mia.auc<=1\n")
    assert main(["unlearn", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3", "-q"]) == 0
    command = ["evaluate", "model.unlearned.safetensors", "--config", "imu.yaml", "--test", str(digits / "data/test")]
    capsys.readouterr()
    assert main([*command, "--require", "test.accuracy>=0.1", "--junit", "j.xml", "--format", "markdown"]) == 3
    out, err = capsys.readouterr()
    assert "| **FAIL** | test.accuracy&#62;=0.999 |" in out
    assert "wrote model.unlearned.evaluation.json and j.xml" in err
    cases = ElementTree.parse("j.xml").findall("testsuite/testcase")
    verdicts = {case.get("name"): case.find("failure") is None for case in cases}
    assert verdicts == {"test.accuracy>=0.999": False, "forget.accuracy<=1": True, "test.accuracy>=0.1": True}


def test_a_wrong_gate_is_told_where_an_earlier_verdict_stood(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Yesterday's JUnit file does not stay green beside a requirement that nobody can judge today."""
    command = ["evaluate", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3", "--junit", "j.xml"]
    for _ in range(2):
        assert main([*command, "--require", "forget.acuracy<=1"]) == 2
        assert "'forget.acuracy' is not a metric (did you mean 'forget.accuracy'?)" in capsys.readouterr().err
    assert ElementTree.parse("j.xml").find("testsuite/testcase/error") is not None


WRONG: dict[str, tuple[str, list[str], str]] = {
    "a gate of the file": (
        "gates: [test.acuracy>=1]",
        [],
        "gates: 'test.acuracy>=1': 'test.acuracy' is not a metric (did you",
    ),
    "no gate": ("", ["--junit", "j.xml"], "--junit: holds verdicts, and there is no requirement"),
    "a foreign file": ("gates: mia.auc<=1", ["--junit", "imu.yaml"], "--junit imu.yaml: exists and was not written"),
    "the evaluation": ("gates: mia.auc<=1", ["--junit", "./model.evaluation.json"], "is the evaluation's own file"),
    "a folder": ("gates: mia.auc<=1", ["--junit", "."], "--junit .: a folder"),
    "gates as a number": ("gates: 3", [], "gates: '3': not a requirement"),
    "no flag": ("", ["--gates", "mia.auc<=1"], "No such option: --gates"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_gates_and_files_are_refused(job: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is said before anything is computed, and nothing is written."""
    line, words, said = WRONG[case]
    config = Path("imu.yaml")
    config.write_text(f"{config.read_text()}\n{line}\n")
    before: Any = sorted(job.iterdir())
    assert main(["evaluate", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3", *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(job.iterdir()) == before


def test_a_folder_is_told_which_results_are_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that was written has a record; its name is in the message."""
    (tmp_path / "model.record.json").write_text(dump(record()))
    assert main(["report", str(tmp_path)]) == 2
    assert f"(Is a directory); name {tmp_path}/model.record.json\n" in capsys.readouterr().err
