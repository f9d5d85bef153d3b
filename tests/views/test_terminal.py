"""Results as tables, CSV and JSON: at any width everything is there, and what machines read parses back."""

import csv
import io
import json
import math
import re
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType

from imu_cli.files import streams
from imu_cli.influence.closed_form import decades
from imu_cli.records.evaluation import Evaluation, Metric, Requirement
from imu_cli.records.influence import Influence, KernelRow, Mover, ScoreRow, ScoreRows
from imu_cli.records.metric_definitions import DEFINITIONS, EVERY, NUMBERS
from imu_cli.records.parts import Decade, Environment, FileHash, ForgetInfo, HeadInfo, Interval, OptionValue, ScoreInfo
from imu_cli.records.record import LookInfo, Record, Target
from imu_cli.unlearning.ascent import Reason
from imu_cli.views import machine, markdown, page, tables, terminal, words

WIDTHS = [60, 80, 140]
HASH = "0" * 64


def shared() -> dict[str, Any]:
    """What records and evaluations have in common."""
    return {
        "architecture": {"name": "torchvision:resnet18", "source": "--arch", "arguments": {}, "code": None},
        "preprocess": {"size": 256, "crop": 224, "mode": "RGB", "mean": None},
        "preprocess_source": "--preprocess",
        "classes": [f"class {k}" for k in range(10)],
        "classes_source": "--classes names.txt",
        "head": HeadInfo(
            module="fc", tensors=["fc.weight", "fc.bias"], dtype="F32", classes=10, features=512, bias=True,
            source="last linear layer that runs", replay_error=1.5e-7,
        ),
        "forget": ForgetInfo(
            given=["class=3"], label=None, data="train", n=137, per_class={"class 3": 137}, whole_classes=True, sha256=HASH,
            manifest=None,
        ),
        "scenario": "class",
        "scenario_source": "auto: proof",
        "options": {"seed": OptionValue(value=0, origin="default")},
        "seed": 0,
        "environment": Environment(imu="0", python="3", torch="2", torchvision="0", platform="Linux", device="cpu"),
        "seconds": {"loading": 0.5},
        "notes": ["the first note", "the [bold]second[/bold] note"],
    }  # fmt: skip


def metric(name: str, at: int) -> Metric:
    """A metric: every third was not measured, the others have all that a metric can have."""
    known: dict[str, Any] = {"name": name, "title": DEFINITIONS[name].title, "definition": DEFINITIONS[name].text}
    if at % 3 == 0:
        return Metric(**known, missing=f"needs {DEFINITIONS[name].needs}")
    interval = Interval(low=0.91234, high=0.98765, method="Clopper-Pearson")
    return Metric(
        **known, value=0.954321, before=0.991, n=10000 + at, interval=interval, target=0.5, target_range=interval,
        note="a note of its own",
    )  # fmt: skip


def evaluation(**changed: Any) -> Evaluation:
    """An evaluation with every metric."""
    values = {
        "model": FileHash(path="m.unlearned.safetensors", sha256=HASH),
        "original": None,
        "record": None,
        "changed": ["fc.bias", "fc.weight"],
        "head_only": True,
        "summary": "What it comes to.",
        "metrics": [metric(name, at) for at, name in enumerate(DEFINITIONS)],
        "per_class": [{"class": "class 3", "split": "forget", "n": 137, "before": 1.0, "after": None}],
        "requirements": [
            Requirement(
                text="test.accuracy>=0.9", metric="test.accuracy", verdict="pass", compared=0.9123, reason="low end"
            ),
            Requirement(
                text="retain.accuracy>=0.9",
                metric="retain.accuracy",
                verdict="fail",
                compared=None,
                reason="not measured",
            ),
            Requirement(
                text="mia.auc<=0.6", metric="mia.auc", verdict="inconclusive", compared=0.61, reason="few samples"
            ),
        ],
        "given": {"test": "val"},
    }
    return Evaluation(**{**shared(), **values, **changed})


def record(**changed: Any) -> Record:
    """A record of a run of three steps."""
    looks = [LookInfo(step=step, loss=0.1 * step, forget=1 - 0.3 * step, head_change=0.01 * step) for step in range(4)]
    values = {
        "before": FileHash(path="m.safetensors", sha256=HASH),
        "after": FileHash(path="m.unlearned.safetensors", sha256=HASH),
        "changed": ["fc.weight", "fc.bias"],
        "unchanged": 120,
        "outside_sha256": HASH,
        "method": "imu",
        "method_source": "auto: whole classes",
        "rows": [3],
        "target": Target(value=0.005, source="the scenario's", range=Interval(low=0.0, high=0.0219, method="binomial")),
        "scores": None,
        "reason": "target",
        "reached": True,
        "start": looks[0],
        "end": looks[-1],
        "trajectory": looks,
        "held_out": None,
    }
    return Record(**{**shared(), **values, **changed})


def influence(rows: int = 30, **changed: Any) -> Influence:
    """An influence of so many samples, some of them with positive scores."""
    common = shared()
    scored = [
        ScoreRow(
            id=f"person {at}", path=f"3/{at:04d}.png", label="class 3", score=(-1) ** (at % 3 // 2) * -(10.0 ** -(at % 5)) * (1 + at / 100),
            weight=0.25 * at, confidence=1 - 1e-9 * at,
        )
        for at in range(rows)
    ]  # fmt: skip
    counts = decades(torch.tensor([row.score for row in scored], dtype=torch.float64))
    values: dict[str, Any] = {
        "model": FileHash(path="m.safetensors", sha256=HASH),
        **{key: common[key] for key in ("architecture", "preprocess", "preprocess_source", "head", "forget", "notes")},
        "accuracy": 0.97,
        "scores": ScoreInfo(
            negative=sum(row.score < 0 for row in scored), kept=18, damping=0.01, mean_fisher=3e-4,
            quantiles={"median": -1e-3}, from_cache=True,
            decades=[Decade(power=power, count=count) for power, count in counts],
        ),
        "sign": "score < 0 supports forgetting",
        "cached": None,
        "rows": scored,
    }  # fmt: skip
    return Influence(**{**values, **changed})


def flat(text: str) -> str:
    """Text with every run of blanks and line ends as one blank: what stands in a cell, however it was folded."""
    return " ".join(text.split())


SHOWN: dict[str, RenderableType] = {
    "evaluation": terminal.evaluation(evaluation()),
    "record": terminal.record(record()),
    "influence": terminal.influence(influence(), 10),
    "report": terminal.report([record(), evaluation(), evaluation()], ["r.json", "a.json", "b.json"]),
}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_metric_is_named_at_any_width(width: int) -> None:
    """Each metric's name stands whole on a line, so that it can be read, searched and copied into a gate.

    One that was not measured says why in full; one that was shows its value unfolded.
    """
    text = terminal.text_of(terminal.evaluation(evaluation()), width=width)
    lines, said = text.splitlines(), flat(text)
    for item in evaluation().metrics:
        line = next(line for line in lines if line.startswith(f"{item.name} "))
        if item.missing is None:
            assert f"  {words.shown(item.name, item.value)}  " in line
            assert f"  {words.shown(item.name, item.before)}  " in line
        else:
            assert f"{item.name} not measured ({item.missing})" in said


def test_a_narrow_terminal_shows_the_notes_below() -> None:
    """Where seven columns do not fit, the last goes under the table; nothing is said twice."""
    made = evaluation(metrics=[metric("mia.auc", 1), metric("mia.ks", 2)])
    for width, lines in ((80, 2), (140, 0)):
        text = terminal.text_of(terminal.evaluation(made), width=width)
        assert text.count("a note of its own") == 2
        assert (
            sum(line.split() == ["mia.auc", "a", "note", "of", "its", "own"] for line in text.splitlines()) * 2 == lines
        )


@pytest.mark.parametrize(
    ("summary", "first"),
    [
        ("DAMAGE, not forgetting: 0.5 % and 1. More. And more.", "DAMAGE, not forgetting: 0.5 % and 1."),
        ("NOT forgotten: still there.", "NOT forgotten: still there."),
        ("Nothing to warn of. More.", ""),
        ("", ""),
    ],
)
def test_warnings_stand_out_in_every_form(summary: str, first: str) -> None:
    """The first sentence of a summary that warns is set apart, and no word is lost."""
    warned, rest = words.warning(summary)
    assert warned == first
    assert " ".join(part for part in (warned, rest) if part) == summary
    made = evaluation(summary=summary, requirements=[])
    assert summary in flat(terminal.text_of(terminal.evaluation(made), width=200))
    bold = f"**{markdown.escaped(first)}**"
    assert (bold in markdown.report([made], ["a"])) == bool(first)
    assert ('<strong class="fail">' in page.report([made], ["a"])) == bool(first)
    assert (
        '<li class="fail">' + first.partition(":")[0].capitalize() in page.report([made, record()], ["a", "b"])
    ) == bool(first)


@pytest.mark.parametrize("text", ["\x1b[31mred", "a\rb", "\x07", "\ud800", "\u202eabc", "\x9b31m"])
def test_control_characters_are_shown_as_escapes(text: str) -> None:
    """A name in a record cannot colour, move or empty the terminal of whoever reads it, nor break its encoding."""
    made = evaluation(
        summary=text, notes=[text], per_class=[{"class": text, "split": text, "n": 1, "before": 1.0, "after": None}]
    )
    for item in (
        terminal.report([made, made, record(reason=text)], [text, "b", "c"]),
        terminal.plain_table(text, ["a"], [[text]]),
    ):
        said = terminal.text_of(item, width=140)
        said.encode()
        assert all(character.isprintable() or character == "\n" for character in said)
        assert said.count(streams.plain(text)) >= 1


@pytest.mark.parametrize("width", [80, 140])
def test_metrics_are_shown_with_all_that_is_needed_to_read_them(width: int) -> None:
    """From 80 columns on, before, after, interval, n and target of a metric stand in its row."""
    text = terminal.text_of(terminal.drawn(tables.measured([metric("test_forgotten.accuracy", 1)])), width=width)
    for cell in ("99.10 %", "95.43 %", "91.23 to", "98.77", "10001", "50.00 %"):
        assert cell in text
    numbers = terminal.text_of(terminal.drawn(tables.measured([metric("mia.auc", 1)])), width=width)
    for cell in ("0.991", "0.9543", "0.9123 to", "0.9877", "0.5"):
        assert cell in numbers
    assert "%" not in numbers.replace("95 %", "")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SHOWN)
def test_nothing_is_wider_than_the_terminal_or_coloured(name: str, width: int) -> None:
    """Without colour there is not one control character, and no line is longer than the width or ends in blanks."""
    text = terminal.text_of(SHOWN[name], width=width)
    assert all(character.isprintable() or character == "\n" for character in text)
    for line in text.splitlines():
        assert len(line) <= width
        assert line == line.rstrip()
    assert text.endswith("\n")


@pytest.mark.parametrize("name", SHOWN)
def test_colour_adds_only_colour(name: str) -> None:
    """With colour the same words stand in the same places, between escape codes."""
    plain = terminal.text_of(SHOWN[name], width=100)
    coloured = terminal.text_of(SHOWN[name], width=100, color=True)
    assert "\x1b[" in coloured
    stripped = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in stripped.splitlines()] == plain.splitlines()


@pytest.mark.parametrize("width", WIDTHS)
def test_an_evaluation_says_everything(width: int) -> None:
    """Summary, per-class table, gates with verdict and reason, head, notes and the limit, at any width."""
    said = flat(terminal.text_of(terminal.evaluation(evaluation()), width=width))
    for text in ("What it comes to.", "class 3 forget 137 100.00 % –", "pass test.accuracy>=0.9 0.9123 low end", "the first note",
                 "the [bold]second[/bold] note", "fc.bias, fc.weight; head only", "It is not a finding that data were erased"):  # fmt: skip
        assert text in said
    short = flat(terminal.text_of(terminal.evaluation(evaluation(), per_class=False, notes=False), width=width))
    assert "Accuracy per class" not in short
    assert "the first note" not in short
    assert "unknown (no original)" in flat(terminal.text_of(terminal.evaluation(evaluation(changed=None)), width=width))
    assert "nothing" in flat(terminal.text_of(terminal.evaluation(evaluation(changed=[])), width=width))


def of_classes(count: int, changed: int) -> list[dict[str, Any]]:
    """Rows of so many classes in two splits, of which the last ``changed`` fell, each a little more than the one before."""
    rows = [(k, split) for split in ("test", "retain") for k in range(count)]
    fell = {at: 0.01 * (at - len(rows) + changed + 1) for at in range(len(rows) - changed, len(rows))}
    return [
        {"class": f"class {k}", "split": split, "n": 50, "before": 0.9, "after": 0.9 - fell.get(at, 0.0)}
        for at, (k, split) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("count", "changed", "title", "rows"),
    [
        (100, 45, "Accuracy per class: the 20 most changed of 45 that changed, of 200; all are in JSON", 20),
        (100, 7, "Accuracy per class: the 7 that changed, of 200; all are in JSON", 7),
        (10, 7, "Accuracy per class\n", 20),
    ],
)
def test_a_terminal_shows_the_classes_that_changed_most(count: int, changed: int, title: str, rows: int) -> None:
    """Of a hundred classes in two splits the twenty that changed most, those first, and how many there are; of few all."""
    made = evaluation(per_class=of_classes(count, changed))
    text = terminal.text_of(terminal.evaluation(made), width=140)
    assert title in text
    shown = [line.split() for line in text.splitlines() if line.startswith("class ") and "90.00 %" in line]
    assert len(shown) == rows
    if count == 100:
        assert shown[0][:3] == ["class", "99", "retain"]
        assert len(text.splitlines()) < 175
    assert len(tables.per_class(made).rows) == 2 * count  # what Markdown and HTML draw


def test_the_verdict_is_the_last_thing_on_the_screen() -> None:
    """After the tables a terminal stops scrolling at the gates and the paragraph; a record at whether its target was met."""
    text = terminal.text_of(
        terminal.evaluation(evaluation(summary="DAMAGE, not forgetting: so it is. And more.")), width=140
    )
    assert text.rstrip().endswith("DAMAGE, not forgetting: so it is. And more.")
    assert text.index("Requirements") > text.index("It is not a finding") > text.index("Not measured")
    ended = terminal.text_of(terminal.record(record()), width=140).rstrip()
    assert ended.splitlines()[-1].startswith(("Target met", "TARGET NOT MET", "No target was given"))


def test_what_a_gate_lets_pass_stands_beside_it() -> None:
    """A warning in the table, whose verdict stays."""
    gate = Requirement(
        text="mia.auc<=0.6", metric="mia.auc", verdict="pass", compared=0.5, reason="fine", warning="one-sided: so"
    )
    assert tables.requirements(evaluation(requirements=[gate])).rows == [
        ("pass", "mia.auc<=0.6", "0.5", "fine; one-sided: so")
    ]


@pytest.mark.parametrize("reason", get_args(Reason))
@pytest.mark.parametrize(
    ("reached", "verdict"), [(True, "Target met"), (False, "TARGET NOT MET"), (None, "No target was given")]
)
def test_a_record_says_why_it_stopped(reason: str, reached: bool | None, verdict: str) -> None:
    """Each reason for stopping is told in words, with the option that set it, under the verdict."""
    said = flat(terminal.text_of(terminal.record(record(reason=reason, reached=reached))))
    assert f"{verdict}: stopped because {words.REASONS[reason]}." in said
    assert "100.00 % 10.00 %" in said
    assert "0.00 % 3.00 %" in said
    assert "≤ 0.50 % (the scenario's; n = 137 samples show 0.00 to 2.19 % at that rate)" in said
    assert "rows of the head that moved: class 3" in said


def test_words_of_another_version_are_shown_as_they_are() -> None:
    """A record with a reason or metric that this version does not know is still rendered, with what it says itself."""
    assert "stopped because of the moon." in terminal.text_of(terminal.record(record(reason="of the moon")))
    strange = Metric(name="new.metric", title="a newer title", definition="d", value=0.25)
    made = evaluation(metrics=[strange])
    for text in (
        terminal.text_of(terminal.evaluation(made)),
        terminal.text_of(terminal.drawn(tables.comparison([made, made], ["a", "b"]))),
    ):
        assert "new.metric" in text
        assert "25.00 %" in text
    assert "a newer title" in terminal.text_of(terminal.evaluation(made))


def test_the_path_of_a_matched_run_is_shown() -> None:
    """Each ρ tried has a line, and the chosen one is marked."""
    looks = [
        LookInfo(step=i, forget=0.9, head_change=0.01, rho=rho, auc=0.5, margin_error=0.1)
        for i, rho in enumerate((1.0, 0.1, 0.01))
    ]
    made = record(method="matched", trajectory=looks, details={"rho": 0.1}, rows=None)
    lines = terminal.text_of(terminal.record(made)).splitlines()
    rows = [line.split() for line in lines if "90.00 %" in line and "1.00 %" in line]
    assert [row[: 2 if row[0] == "→" else 1] for row in rows] == [["1"], ["→", "0.1"], ["0.01"]]


@pytest.mark.parametrize("show", [0, 1, 7, 100])
def test_the_most_influential_samples_come_first(show: int) -> None:
    """--show N lists the N samples with the largest scores in size, in that order, with their own numbers."""
    made = influence()
    lines = terminal.text_of(terminal.influence(made, show), width=140).splitlines()
    listed = [line.split() for line in lines if line.startswith("3/")]
    expected = sorted(made.rows, key=lambda row: -abs(row.score))[:show]
    assert [words[0] for words in listed] == [row.path for row in expected]
    assert [float(words[3]) for words in listed] == [float(f"{row.score:.4g}") for row in expected]


def test_the_histogram_counts_every_sample_once() -> None:
    """Bars by powers of ten hold the negative scores, the rest are counted as left out: together all samples."""
    made = influence(100)
    lines = terminal.text_of(terminal.influence(made, 0), width=140).splitlines()
    bars = [line for line in lines if line.startswith("−1e")]
    counts = {line.split()[0]: int(line.split()[-1]) for line in bars}
    negative = [row.score for row in made.rows if row.score < 0]
    left_out = next(int(line.split()[3]) for line in lines if line.startswith("zero or positive: "))
    assert sum(counts.values()) == len(negative)
    assert left_out == 100 - len(negative)
    for start, count in counts.items():
        low = -float(start.replace("−", "-"))
        assert count == sum(low <= -score < 10 * low for score in negative)


def test_only_positive_or_no_scores_are_rendered() -> None:
    """Limit cases: all scores positive or zero, and a Fisher diagonal of 0, are told and divide nothing by 0."""
    rows = [ScoreRow(id="a", path="a.png", label="3", score=score, weight=0.0, confidence=0.5) for score in (0.0, 1.0)]
    scores = ScoreInfo(negative=0, kept=0, damping=0.01, mean_fisher=0.0, quantiles={}, from_cache=False)
    text = terminal.text_of(terminal.influence(influence(rows=0, scores=scores).model_copy(update={"rows": rows}), 5))
    assert "zero or positive: 2 (left out of the ascent)" in text
    assert "infinite (F is 0)" in text


def test_strengths_are_shown_with_their_movers() -> None:
    """With --kernel the samples of largest strength come first, each with the samples that move it."""
    kernel = [
        KernelRow(
            path=f"{i}.png",
            strength=0.1 * i,
            self_influence=1.0,
            margin=2.0,
            target=1.0,
            movers=[Mover(path="[b]m.png", moved=0.5)],
        )
        for i in range(5)
    ]
    said = flat(terminal.text_of(terminal.influence(influence(kernel=kernel), 2)))
    assert said.index("4.png") < said.index("3.png")
    assert "2.png 0.2" not in said
    assert "[b]m.png (+0.5)" in said


NAMES = [
    "[bold]a[/bold].png",
    "a[/b].png",
    "[red]",
    "x[1].png",
    ":smile:.png",
    "back\\slash[b].png",
    "[link=http://x]y[/link]",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_never_taken_for_markup(name: str) -> None:
    """Brackets and colons in a file's or class's name are shown as they are, and break nothing."""
    rows = [ScoreRow(id="a", path=name, label=name, score=-1.0, weight=1.0, confidence=1.0)]
    per_class = [{"class": name, "split": name, "n": 1, "before": 1.0, "after": 1.0}]
    model = FileHash(path=name, sha256=HASH)
    gate = Requirement(text=name, metric="m", verdict="fail", compared=None, reason=name)
    made = evaluation(model=model, per_class=per_class, requirements=[gate], summary=name, notes=[name])
    for shown in (
        terminal.influence(influence(rows=0).model_copy(update={"rows": rows}), 1),
        terminal.evaluation(made),
        terminal.record(record(after=model, changed=[name], notes=[name])),
        terminal.drawn(tables.comparison([made, made], [name, "b"])),
        terminal.plain_table(name, [name], [[name]]),
        terminal.cache_entry(name, "key", {"model": name}, [[name, name, -1.0]]),
    ):
        assert name in terminal.text_of(shown, width=200)


def test_evaluations_side_by_side() -> None:
    """Each metric that any of them has stands in one row, with the difference of the last from the first."""
    second = evaluation(metrics=[metric("test.accuracy", 1).model_copy(update={"value": 0.9}), metric("mia.auc", 1)])
    text = terminal.text_of(
        terminal.drawn(tables.comparison([evaluation(), evaluation(), second], ["a.json", "b.json", "c.json"]))
    )
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert rows["metric"].split()[1:4] == ["a.json", "b.json", "c.json"]
    measured = {item.name for item in evaluation().metrics if item.missing is None} | {"test.accuracy", "mia.auc"}
    assert measured <= set(rows)
    assert not {item.name for item in evaluation().metrics if item.missing} - measured & set(rows)
    both = {item.name for item in evaluation().metrics if item.missing is None} & {"test.accuracy", "mia.auc"}
    differences = {"test.accuracy": "-5.43", "mia.auc": "+0"}
    assert both
    for name in both:
        assert rows[name].split()[-1] == differences[name]


def read_csv(text: str) -> list[dict[str, str]]:
    """CSV text as rows."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_influence_as_csv_parses_back() -> None:
    """Every sample in its order, every number to the last digit."""
    made = influence()
    rows = read_csv("".join(machine.influence_csv(made)))
    assert len(rows) == 30
    for row, item in zip(rows, made.rows, strict=True):
        assert (row["id"], row["path"], row["label"]) == (item.id, item.path, item.label)
        assert (float(row["score"]), float(row["weight"]), float(row["confidence"])) == (
            item.score,
            item.weight,
            item.confidence,
        )


def test_evaluations_as_csv_parse_back() -> None:
    """One line a metric and model: value, interval and n as they are, the reason where there is no value."""
    made = [evaluation(), evaluation()]
    rows = read_csv("".join(machine.evaluation_csv(made, ["a, b.json", 'c".json'])))
    metrics = [
        (name, item) for result, name in zip(made, ["a, b.json", 'c".json'], strict=True) for item in result.metrics
    ]
    for row, name in zip(rows[len(metrics) :], ["a, b.json", 'c".json'], strict=True):
        assert (row["model"], row["metric"], row["n"]) == (name, "forget.class_accuracy[class 3]", "137")
        assert (row["before"], row["after"]) == ("1.0", "")
    for row, (name, item) in zip(rows[: len(metrics)], metrics, strict=True):
        assert (row["model"], row["metric"], row["missing"]) == (name, item.name, item.missing or "")
        assert row["after"] == ("" if item.value is None else repr(item.value))
        assert row["n"] == ("" if item.n is None else str(item.n))
        assert row["low"] == ("" if item.interval is None else repr(item.interval.low))


def test_a_record_as_csv_parses_back() -> None:
    """One line a look, numbers to the last digit, empty where nothing was measured."""
    made = record()
    for row, look in zip(read_csv("".join(machine.record_csv(made))), made.trajectory, strict=True):
        for name, text in row.items():
            value = getattr(look, name)
            assert text == "" if value is None else float(text) == value


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_any_text_survives_csv(rows: list[list[str]]) -> None:
    """Commas, quotes and line ends in names are quoted so that any reader gets them back."""
    parsed = list(csv.reader(io.StringIO("".join(machine.rows_csv(["a", "b"], rows)), newline="")))
    assert parsed == [["a", "b"], *rows]


def test_rows_made_when_asked_for_are_written_as_a_list_of_them_is() -> None:
    """A run keeps columns and no rows: table, CSV and JSON are those of the rows themselves."""
    listed = influence()
    ids, paths, scores, weights, confidence = (
        [getattr(row, name) for row in listed.rows] for name in ("id", "path", "score", "weight", "confidence")
    )
    columns = ScoreRows(
        ids, paths, [int(row.label[6:]) for row in listed.rows], "class {}".format, scores, weights, confidence
    )
    made = listed.model_copy(update={"rows": columns})
    assert made.rows[2:5] == listed.rows[2:5]
    values = {name: value for name, value in dict(listed).items() if name != "schema_"}
    assert Influence(**{**values, "rows": columns}).rows is columns
    for show in (0, 1, 7, 100):
        assert made.largest(show) == sorted(range(30), key=lambda row: -abs(scores[row]))[:show] == listed.largest(show)
    assert terminal.text_of(terminal.influence(made, 7)) == terminal.text_of(terminal.influence(listed, 7))
    assert list(machine.influence_csv(made)) == list(machine.influence_csv(listed))
    text = "".join(machine.as_json([made]))
    assert text == "".join(machine.as_json([listed]))
    assert [ScoreRow(**row) for row in json.loads(text)["rows"]] == listed.rows
    assert json.loads("".join(machine.as_json([influence(rows=0)])))["rows"] == []


def test_json_parses_back() -> None:
    """One result is its object, several are an array of the same objects; each is what the file would hold."""
    made = [evaluation(), record(), influence()]
    texts = ["".join(machine.as_json([item])) for item in made]
    assert json.loads("".join(machine.as_json(made))) == [json.loads(text) for text in texts]
    assert Evaluation.model_validate(json.loads(texts[0])) == made[0]
    assert Record.model_validate(json.loads(texts[1])) == made[1]
    assert Influence.model_validate(json.loads(texts[2])) == made[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_empty_or_null(value: float) -> None:
    """CSV and JSON hold no NaN and no infinity."""
    item = metric("test.accuracy", 1).model_copy(update={"value": value})
    made = evaluation(metrics=[item])
    assert read_csv("".join(machine.evaluation_csv([made], ["a"])))[0]["after"] == ""
    assert json.loads("".join(machine.as_json([made])))["metrics"][0]["value"] is None


def test_values_in_their_units() -> None:
    """Shares are percent with two decimals, AUC, entropy and distances plain numbers; what is unknown is a dash, not 0."""
    assert words.percent(0.12345) == "12.35 %"
    assert words.percent(0.0) == "0.00 %"
    assert words.number(0.123456) == "0.1235"
    assert words.number(0.0) == "0"
    assert words.percent(None) == words.number(None) == "–"
    assert set(EVERY) >= NUMBERS
    for name in EVERY:
        assert words.shown(name, 0.5) == ("0.5" if name in NUMBERS else "50.00 %")
