"""docs/comparison_tables.py: who is ahead is said, whoever it is."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))

import comparison_tables as tables

FIGURES = {
    "unseen": 0.9,
    "auc": 0.51,
    "forget": 0.91,
    "retain": 0.94,
    "test": 0.9,
    "auc_two_sided": 0.51,
    "over_unlearned": 0.01,
    "probe": 0.93,
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of two seeds: ours, a method without retain data that is nearer, and one with retain data that is nearest."""
    made = []
    for seed in (0, 1):
        for method, gap, needs in (
            ("original", None, []),
            ("imu_head", 2.0, ["unseen"]),
            ("npo", 1.5, []),
            ("scrub", 1.0, ["retain"]),
        ):
            row = {
                "kind": "run",
                "part": "random500",
                "method": method,
                "seed": seed,
                "gap": gap and gap + seed,
                "figures": FIGURES,
            }
            made.append({**row, "needs": needs, "seconds": 3.0, "below": 10, "above": 1200})
    (tmp_path / "comparison.jsonl").write_text("\n".join(json.dumps(row) for row in made), encoding="utf-8")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def test_a_method_that_beats_ours_is_named(written: Path) -> None:
    """With the distance, and with retain data apart."""
    said = tables.smallest("random500")
    assert "Nearest without retain data: NPO, 2.00 points; ours is 0.50 points behind" in said
    assert "With retain data SCRUB comes nearer: 1.50" in said
    assert "Nearer than ours: SCRUB (1.50), NPO (2.00)." in said


def test_rows_are_means_over_seeds_nearest_first(written: Path) -> None:
    """The original first, with what doing nothing comes to, then by gap; spread, data and cost beside it."""
    lines = tables.table("random500").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| original", "| SCRUB", "| NPO", "| **`imu unlearn`**"]
    assert lines[2].startswith(
        "| original | 0.50 ± 0.00 |"
    )  # forget and AUC are a point off, retain and test as they were
    assert "| SCRUB | 1.50 ± 0.71 | 91.00 ± 0.00 |" in lines[3]
    assert lines[3].endswith("| retain | 3 | 1,200 | 2 |")


def test_the_nearest_is_bold_whoever_it_is(written: Path) -> None:
    """In the README's table too."""
    said = tables.readme()
    assert "| SCRUB | retain | **1.50** |" in said
    assert said.count("**") == 2


def test_pictures_are_svg_with_a_dot_a_method(written: Path) -> None:
    """Well-formed, each method in the plot and in the legend."""
    root = ElementTree.fromstring(tables.picture("random500"))
    circles = [item for item in root if item.tag.endswith("circle")]
    assert len(circles) == 2 * 4
    assert sum(item.get("fill") == "white" for item in circles) == 2


def test_a_part_that_was_not_run_says_so(written: Path) -> None:
    """And gives the command."""
    assert tables.table("airplanes") == "Not run yet: `python benchmarks/compare.py --parts airplanes`."


def test_published_loop_stands_beside_the_specification_by_border(written: Path) -> None:
    """A row a border and epoch, and how far each border's means are off, in points and in the seeds' spread."""
    figures = {5: {"forget": 0.005, "retain": 0.918, "test": 0.855}, 10: {"forget": 0.0, "retain": 0.87, "test": 0.823}}
    made = [
        {"kind": "published", "border": "mean", "seed": seed, "epoch": epoch, "figures": {**of, "retain": of["retain"] + seed / 100}}
        for seed in (-1, 1)
        for epoch, of in figures.items()
    ]  # fmt: skip
    (written / "comparison.jsonl").write_text("\n".join(json.dumps(row) for row in made), encoding="utf-8")
    said = tables.repeated()
    assert (
        "| 5 | specification | 0.5 | 91.8 | 85.5 | |\n| | mean colour | 0.50 ± 0.00 | 91.80 ± 1.41 | 85.50 ± 0.00 | 2 |"
        in said
    )
    assert "With mean colour the means are off from the specification by up to 1.0 points (0.2 in the mean)" in said
    assert "up to 0.7 standard deviations" in said
    assert "Not run with black." in said
