"""The HTML page: self-contained, true to the record, safe from what a record holds, and whole in a real browser."""

import base64
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_terminal import HASH, evaluation, record

from imu_cli.cli import main
from imu_cli.records.evaluation import Curves, Histogram, RocCurve, Series
from imu_cli.records.parts import Decade, FileHash, ScoreInfo
from imu_cli.records.record import LookInfo
from imu_cli.samples.images import thumbnails
from imu_cli.views import figures, page, svg

VOID = {"meta", "link", "br", "hr", "img", "input"}


def curves() -> Curves:
    """Small curves of every kind."""
    series = [
        Series(split=split, when=when, counts=[1, 5, 0, 2]) for split in ("forget", "test") for when in ("before", "after")
    ]  # fmt: skip
    roc = [
        RocCurve(when=when, tail=tail, fpr=[0.01, 0.1, 1.0], tpr=[0.02, 0.3, 1.0], low=[0.0, 0.2, 0.9], high=[0.1, 0.4, 1.0])
        for when, tail in (("before", "remembered"), ("after", "remembered"), ("after", "over-unlearned"))
    ]  # fmt: skip
    return Curves(confidence=Histogram(edges=[-4.0, -2.0, 0.0, 2.0, 4.0], series=series), roc=roc)


def scores() -> ScoreInfo:
    decades = [Decade(power=-1, count=3), Decade(power=-2, count=40)]
    return ScoreInfo(
        negative=43, kept=40, damping=0.01, mean_fisher=1e-4, quantiles={}, from_cache=False, decades=decades
    )


def along_rho() -> list[LookInfo]:
    return [
        LookInfo(
            step=i, forget=1 - 0.02 * i, head_change=0.1 * i, test_drop=0.002 * i, rho=10.0**-i, auc=0.6 - 0.01 * i
        )
        for i in range(1, 6)
    ]


def full() -> str:
    """A page with everything that a page can have."""
    after = [{"class": f"class {k}", "split": "test", "n": 9, "before": 0.9, "after": 0.1 * k} for k in range(10)]
    return page.report(
        [
            record(scores=scores()),
            evaluation(curves=curves(), per_class=after),
            record(
                method="matched", trajectory=along_rho(), details={"rho": 0.01},
                after=FileHash(path="other.safetensors", sha256="1" * 64),
            ),
            evaluation(model=FileHash(path="third.safetensors", sha256="2" * 64), given={"test": None}),
        ],
        ["a.record", "a.evaluation", "b.record", "c.evaluation"],
    )  # fmt: skip


class Reader(HTMLParser):
    """Tags that are open, every attribute, and the text outside style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)


def said(text: str) -> str:
    """What a page says, blanks made one."""
    return " ".join(" ".join(Reader(text).texts).split())


def test_the_page_is_whole_and_asks_for_nothing() -> None:
    """Every tag is closed; no script, no handler, no link but within the page; the policy forbids every request."""
    found = Reader(full())
    assert found.open == []
    assert not any(tag in ("script", "iframe", "object", "form") for tag, _, _ in found.attributes)
    for tag, name, value in found.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href", "action", "srcset"):
            assert value.startswith("#") or (tag, value) == ("link", "data:,")
    policy = next(v for t, n, v in found.attributes if n == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'")
    assert "http://" not in full()
    assert "https://" not in full()
    assert "url(" not in full()
    assert page.MARK in full()[:1000]


def test_the_page_says_everything() -> None:
    """Sentence, verdicts, every metric with its number or its reason, hashes, options with origin, notes, the limit."""
    made, text = evaluation(), said(full())
    assert "What it comes to." in text
    for item in made.requirements:
        assert f"{item.verdict} {item.text}" in text
    for metric in made.metrics:
        assert metric.name in text
        assert metric.definition in text
        if metric.missing:
            assert f"{metric.name} not measured ({metric.missing})" in text
    for words in (HASH, "seed 0 default", "the first note", "torch 2,", "It is not a finding that data were erased"):
        assert words in text
    assert "1 of 3 requirements passed" in text
    assert "95.43 %" in text
    assert "interval: Clopper-Pearson" in text


def test_a_record_stands_with_the_evaluation_of_the_same_file() -> None:
    """They are told by hash: three models from four files, whatever their order."""
    both = [record(), evaluation()]
    for order in (both, both[::-1]):
        (one,) = page.subjects(order, ["x", "y"])
        assert (one.record, one.evaluation) == (both[0], both[1])
    other = evaluation(model=FileHash(path="m", sha256="f" * 64))
    assert len(page.subjects([record(), other, evaluation(), evaluation()], ["a", "b", "c", "d"])) == 3
    assert len(re.findall("<section id=", full())) == 3
    assert "2 models side by side" not in page.report(both, ["a", "b"])


def pictures(text: str) -> list[ElementTree.Element]:
    """Every picture of a page, parsed as XML."""
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_pictures_are_valid_and_told_in_words() -> None:
    """Each is well-formed, has a title and a description, and draws within its frame."""
    found = pictures(full())
    titles = [picture.findtext("title") for picture in found]
    assert titles == [
        "Confidence before", "Confidence after", "Membership attack, ROC", "Accuracy per class, test",
        "Forget samples predicted as a forgotten class", "Change of the head", "Influence scores by size",
        "Forget samples predicted as a forgotten class, and what it costs", "Membership AUC, and what it costs",
    ]  # fmt: skip
    for picture in found:
        assert len(picture.findtext("desc") or "") > 30
        _, _, width, height = map(float, (picture.get("viewBox") or "").split())
        for path in picture.iter("path"):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.get("d") or "")]
            assert all(0 <= x <= width for x in numbers[::2])
            assert all(0 <= y <= height for y in numbers[1::2])


def test_histogram_heights_are_the_shares() -> None:
    """The filled outline has the split's shares as heights, on the axis that the ticks say."""
    made = figures.of_evaluation(evaluation(curves=curves()))[0]
    area = next(path for path in ElementTree.fromstring(made.svg).iter("path") if "area" in (path.get("class") or ""))
    ys = [float(point.split(",")[1]) for point in re.split(" L|M", area.get("d") or "") if point][1:-1:2]
    floor, top = svg.HEIGHT - svg.BOTTOM, svg.TOP
    axis = svg.linear("", [0.625], as_percent=True, zero=True)
    assert [(floor - y) / (floor - top) * axis.high for y in ys] == pytest.approx([1 / 8, 5 / 8, 0, 2 / 8], abs=0.005)
    assert made.numbers.rows[1] == ("-2 to 0", "5", "5")


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7*7 }}",
    "</style><b>",
    "&amp;",
    "]]>",
    "\x1b[31m",
]


@pytest.mark.parametrize("name", EVIL)
def test_what_a_record_holds_is_text(name: str) -> None:
    """Class names, file names, notes and values of options come out as text: the page has the same tags as with "x"."""

    def made(text: str) -> str:
        rows = [{"class": text, "split": "test", "n": 1, "before": 1.0, "after": 0.5}]
        return page.report(
            [
                evaluation(summary=text, per_class=rows, notes=[text], given={text: text}, model=FileHash(path=text, sha256=text)),
                record(after=FileHash(path=text, sha256="0"), reason=text, changed=[text], classes=[text] * 4),
            ],
            [text, text],
        )  # fmt: skip

    evil, plain = made(name), made("x")
    assert len(Reader(evil).attributes) == len(Reader(plain).attributes)
    assert [tag for tag, _, _ in Reader(evil).attributes] == [tag for tag, _, _ in Reader(plain).attributes]
    shown = name if name.isprintable() else "\\x1b[31m"
    assert "\n".join(Reader(evil).texts).count(shown) >= 8


numbers = st.floats() | st.integers(-(10**400), 10**400)


@given(st.lists(st.tuples(numbers, numbers), max_size=300))
@settings(deadline=None)
def test_charts_draw_any_numbers(points: list[Any]) -> None:
    """NaN, infinities and numbers without end are left out; the picture stays well-formed, finite and small."""
    x, y = (svg.linear("n", [point[at] for point in points]) for at in (0, 1))
    ElementTree.fromstring(svg.lines("t", "a", x, y, [svg.Line("s1", points)], level=points[0][0] if points else None))
    assert len(svg.thinned(points)) <= svg.MOST_POINTS
    for axis in (x, y):
        assert axis.low < axis.high
        assert 2 <= len(axis.ticks) <= 12


def test_images_only_where_they_were_asked_for(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``imu influence --images`` shows the images with the largest scores, as they are, to the page's owner alone."""
    command = ["influence", "model.safetensors", "--config", "imu.yaml", "--forget", "class=3", "--show", "5"]
    assert main([*command, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not list(job.glob("*.html"))
    assert main([*command, "--images", "top.html"]) == 0
    out, err = capsys.readouterr()
    assert "wrote top.html: it holds samples from the forget list" in err
    text = Path("top.html").read_text(encoding="utf-8")
    assert Reader(text).open == []
    assert Path("top.html").stat().st_mode & 0o777 == 0o600
    rows = sorted(found["rows"], key=lambda row: -abs(row["score"]))[:5]
    assert [a for tag, name, a in Reader(text).attributes if (tag, name) == ("img", "alt")] == [
        f"forget sample {row['path']}" for row in rows
    ]
    uris = [value for tag, name, value in Reader(text).attributes if (tag, name) == ("img", "src")]
    data = Path(yaml.safe_load(Path("imu.yaml").read_text())["data"])
    for uri, row in zip(uris, rows, strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))
        assert np.array_equal(np.asarray(shown), np.asarray(Image.open(data / row["path"]).convert("RGB")))
    assert "delete it" in said(text)
    assert main([*command, "--images", "imu.yaml"]) == 2


def test_thumbnails_are_small_and_carry_nothing_else() -> None:
    """A large photograph becomes a JPEG of at most 160 pixels without the place where it was taken."""
    photo = Image.new("RGBA", (1000, 400), (200, 30, 30, 255))
    exif = Image.Exif()
    exif[0x010E] = "at home"
    buffer = io.BytesIO()
    photo.convert("RGB").save(buffer, "JPEG", exif=exif)
    for image in (photo, Image.open(buffer)):
        data = base64.b64decode(thumbnails.data_uri(image).removeprefix("data:image/jpeg;base64,"))
        made = Image.open(io.BytesIO(data))
        assert made.size == (160, 64)
        assert b"at home" not in data


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<!doctype html><body style="margin:0"><iframe src="report.html" style="width:{width}px;height:900px;border:0"></iframe>
<script>addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const off = [...page.querySelectorAll("body *")].filter(e => !e.closest(".wide") && e.getBoundingClientRect().right > root.clientWidth + 1);
  document.body.dataset.found = JSON.stringify({{
    wide: root.scrollWidth - root.clientWidth, off: off.map(e => e.tagName + "." + e.getAttribute("class")),
    ground: getComputedStyle(page.body).backgroundColor, ink: getComputedStyle(page.body).color,
    text: [...page.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height).filter(h => h < 9).length,
    requests: page.defaultView.performance.getEntriesByType("resource").map(e => e.name),
    pictures: page.querySelectorAll("svg").length,
  }});
}});</script></body>"""
SCHEMES = {"light": "1", "dark": "0"}


def browse(folder: Path, width: int, scheme: str) -> tuple[dict[str, Any], str]:
    """What a browser makes of report.html in the folder at a width, and what it says on its console."""
    assert CHROMIUM is not None
    (folder / "probe.html").write_text(PROBE.format(width=width), encoding="utf-8")
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
        f"--window-size={width + 40},1000", "--virtual-time-budget=4000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *options, (folder / "probe.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return json.loads(html.unescape(found[1])), done.stderr


def luminance(color: str) -> float:
    """Relative luminance of an rgb() colour, WCAG 2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (360, "dark"), (1200, "light")])
def test_in_a_browser(width: int, scheme: str, tmp_path: Path) -> None:
    """On a phone and a desktop, light and dark: nothing runs over the edge, nothing is asked for, nothing is illegible."""
    (tmp_path / "report.html").write_text(full(), encoding="utf-8")
    found, console = browse(tmp_path, width, scheme)
    assert found["wide"] <= 0
    assert found["off"] == []
    assert found["requests"] == []
    assert found["pictures"] == 9
    assert found["text"] == 0
    ground, ink = luminance(found["ground"]), luminance(found["ink"])
    assert (ground > ink) == (scheme == "light")
    assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 7
    assert "CONSOLE" not in console
