"""Charts as inline SVG: small functions over plain numbers. Colours and sizes are the page's, by class.

Every text is escaped here; what comes out is safe to put into a page as it is. Lines, bars and bands take their colour
from the classes ``s1`` to ``s3`` and lines differ in their dashes too, so that nothing hangs on colour alone.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 246
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 40
LARGEST = 1e12
"""Numbers beyond are not drawn: an edited record may hold any."""
STEPS = (1.0, 2.0, 2.5, 5.0)
MOST_POINTS = 200

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A scale from ``low`` to ``high`` with its ticks (value, text) and its name."""

    name: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, 0 at ``low`` and 1 at ``high``; cut to that range."""
        low, high, value = (self._scaled(item) for item in (self.low, self.high, value))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def drawable(value: float | None) -> bool:
    """Whether a number can be put on an axis."""
    return value is not None and -LARGEST < value < LARGEST


def plain_tick(value: float) -> str:
    """A tick as a number with a true minus."""
    return f"{value:.6g}".replace("-", "−")


def percent_tick(value: float) -> str:
    """A tick as percent."""
    return f"{100 * value:.6g} %".replace("-", "−")


def linear(name: str, values: Iterable[float], as_percent: bool = False, zero: bool = False) -> Axis:
    """An axis with round ticks around the values (and 0); shares never reach beyond 100 % unless a value does."""
    every = [value for value in values if drawable(value)] + ([0.0] if zero else [])
    low, high = min(every, default=0.0), max(every, default=1.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - (0.0 if zero else 0.5), high + (0.01 if as_percent else 1.0)
    step = _step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    text = percent_tick if as_percent else plain_tick
    ticks = tuple((at * step, text(at * step)) for at in range(first, last + 1))
    return Axis(name, first * step, last * step, ticks)


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next((step * power for step in STEPS if step * power >= least * (1 - 1e-9)), 10 * power)


def logarithmic(name: str, lowest: float) -> Axis:
    """Shares from a power of ten up to 1, on a log axis."""
    first = max(-6, min(-1, math.floor(math.log10(max(lowest, 1e-6)) + 1e-9)))
    ticks = tuple((10.0**power, percent_tick(10.0**power)) for power in range(first, 1))
    return Axis(name, 10.0**first, 1.0, ticks, log=True)


@dataclass(frozen=True)
class Line:
    """Points joined by a line of one style, with a band (x, low, high) behind it."""

    style: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most ``MOST_POINTS`` of the points, evenly, first and last among them; those that cannot be drawn left out."""
    kept = [(float(x), float(y)) for x, y in points if drawable(x) and drawable(y)]
    if len(kept) <= MOST_POINTS:
        return kept
    last = len(kept) - 1
    return [kept[round(at * last / (MOST_POINTS - 1))] for at in range(MOST_POINTS)]


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _path(points: Iterable[Point]) -> str:
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _framed(title: str, about: str, parts: Iterable[str], height: int = HEIGHT) -> str:
    """The picture with the title and description that a screen reader tells."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}. {escape(about)}">'
        f"<title>{escape(title)}</title><desc>{escape(about)}</desc>{''.join(parts)}</svg>"
    )


def _frame(x: Axis, y: Axis) -> Iterator[str]:
    """Grid, ticks and the names of both axes."""
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    for value, text in y.ticks:
        at = _y(y, value)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>'
    every = 1 + (len(x.ticks) - 1) // 6
    zero = next((number for number, (value, _) in enumerate(x.ticks) if value == 0), 0)  # 0 keeps its label
    for number, (value, text) in enumerate(x.ticks):
        at = _x(x, value)
        yield f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{floor}" y2="{floor + 4}"/>'
        if (number - zero) % every == 0:
            side = "end" if at > right - 14 else "middle"
            yield f'<text x="{min(at, right):.1f}" y="{floor + 16}" text-anchor="{side}">{escape(text)}</text>'
    yield f'<text class="name" x="8" y="12">{escape(y.name)}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>'
    yield f'<text class="name" x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.name)}</text>'


def lines(
    title: str,
    about: str,
    x: Axis,
    y: Axis,
    drawn: Sequence[Line],
    *,
    level: float | None = None,
    diagonal: bool = False,
    mark: Point | None = None,
) -> str:
    """Lines over common axes; a dashed ``level``, the ``diagonal`` of chance, and a ring round one point."""
    parts = list(_frame(x, y))
    if diagonal:
        ends = [(_x(x, value), _y(y, value)) for value in (max(x.low, y.low), 1.0)]
        parts.append(f'<path class="guide" d="{_path(ends)}"/>')
    if level is not None and drawable(level):
        at = _y(y, level)
        parts.append(f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for line in drawn:
        band = [(_x(x, at), _y(y, low), _y(y, high)) for at, low, high in line.band]
        if band:
            edge = [(at, high) for at, _, high in band] + [(at, low) for at, low, _ in reversed(band)]
            parts.append(f'<path class="band {line.style}" d="{_path(edge)} Z"/>')
    for line in drawn:
        points = [(_x(x, a), _y(y, b)) for a, b in thinned(line.points)]
        if points:
            parts.append(f'<path class="line {line.style}" d="{_path(points)}"/>')
        if line.dots or len(points) == 1:
            parts += [f'<circle class="dot {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in points]
    if mark is not None and all(map(drawable, mark)):
        parts.append(f'<circle class="mark" cx="{_x(x, mark[0]):.1f}" cy="{_y(y, mark[1]):.1f}" r="7"/>')
    return _framed(title, about, parts)


def histogram(
    title: str, about: str, x: Axis, y: Axis, edges: Sequence[float], shares: Sequence[tuple[str, Sequence[float]]]
) -> str:
    """Shares in bins: the first series filled, the others as steps over it."""
    parts = list(_frame(x, y))
    floor = HEIGHT - BOTTOM
    for number, (style, values) in enumerate(shares):
        outline = [(_x(x, edges[0]), float(floor))]
        for low, high, value in zip(edges, edges[1:], values, strict=False):
            outline += [(_x(x, low), _y(y, value)), (_x(x, high), _y(y, value))]
        outline.append((outline[-1][0], float(floor)))
        kind = "area" if number == 0 else "line"
        parts.append(f'<path class="{kind} {style}" d="{_path(outline)}"/>')
    return _framed(title, about, parts)


ROW = 20
NAMES = 118


@dataclass(frozen=True)
class Bar:
    """A named row: how far the bar reaches (0 to 1), and the number written beside it."""

    name: str
    reach: float
    text: str


def bars(title: str, about: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars, each with its number."""
    right = WIDTH - 64
    parts = []
    for number, row in enumerate(rows):
        top = 4 + number * ROW
        wide = max(1.0, min(1.0, max(0.0, row.reach)) * (right - NAMES))
        parts.append(f'<text x="{NAMES - 8}" y="{top + 13}" text-anchor="end">{escape(shortened(row.name))}</text>')
        parts.append(f'<rect class="bar s1" x="{NAMES}" y="{top + 3}" width="{wide:.1f}" height="{ROW - 7}" rx="2"/>')
        parts.append(f'<text class="value" x="{NAMES + wide + 6:.1f}" y="{top + 13}">{escape(row.text)}</text>')
    return _framed(title, about, parts, 8 + ROW * len(rows))


@dataclass(frozen=True)
class Change:
    """A named row that went from ``before`` to ``after`` (0 to 1)."""

    name: str
    before: float
    after: float
    text: str


def changes(title: str, about: str, rows: Sequence[Change]) -> str:
    """Dumbbells from before (hollow) to after (filled) on 0 to 100 %, each with its change."""
    right = WIDTH - 64
    floor = 6 + ROW * len(rows)

    def x(share: float) -> float:
        return NAMES + min(1.0, max(0.0, share)) * (right - NAMES)

    parts = []
    for share in (0.0, 0.5, 1.0):
        parts.append(f'<line class="grid" x1="{x(share):.1f}" x2="{x(share):.1f}" y1="4" y2="{floor}"/>')
        parts.append(f'<text x="{x(share):.1f}" y="{floor + 14}" text-anchor="middle">{percent_tick(share)}</text>')
    for number, row in enumerate(rows):
        at = 4 + number * ROW + ROW / 2
        a, b = x(row.before), x(row.after)
        parts.append(f'<text x="{NAMES - 10}" y="{at + 4:.1f}" text-anchor="end">{escape(shortened(row.name))}</text>')
        parts.append(f'<line class="line s1" x1="{a:.1f}" x2="{b:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<circle class="hollow s1" cx="{a:.1f}" cy="{at:.1f}" r="4"/>')
        parts.append(f'<circle class="dot s1" cx="{b:.1f}" cy="{at:.1f}" r="4"/>')
        parts.append(f'<text class="value" x="{right + 10}" y="{at + 4:.1f}">{escape(row.text)}</text>')
    return _framed(title, about, parts, floor + 22)


def shortened(name: str, length: int = 17) -> str:
    """A name that fits beside its row."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
