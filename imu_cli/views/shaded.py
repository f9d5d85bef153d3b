"""Texts on a terminal whose tokens are shaded by a number: which words carry it."""

from collections.abc import Sequence

from rich.text import Text

from imu_cli.files import streams

SHADES = 5
"""Steps of shading from nothing to the largest number."""
SUPPORTS, HINDERS = "22,78,160", "150,50,30"
"""Colours of numbers below 0, whose token's own gradient raises the forget set's loss, and above 0."""
NAMED = 3
"""Tokens that are named with their numbers under a text."""
SHOWN_AS = {"\n": "⏎", "\t": "⇥"}


def text(pieces: Sequence[str], scores: Sequence[float], most: float) -> Text:
    """The pieces of a text one after another, each the stronger shaded the nearer its number's size comes to ``most``."""
    made = Text()
    for piece, score in zip(pieces, scores, strict=True):
        made.append(_plain(piece), style=_style(score, most))
    return made


def named(pieces: Sequence[str], scores: Sequence[float]) -> str:
    """The tokens with the largest numbers in size, with them: what is seen where there are no colours."""
    order = sorted(range(len(scores)), key=lambda at: -abs(scores[at]))[:NAMED]
    return ", ".join(f"{_plain(pieces[at])!r} {scores[at]:.3g}" for at in order)


def _plain(piece: str) -> str:
    for character, mark in SHOWN_AS.items():
        piece = piece.replace(character, mark)
    return streams.plain(piece)


def _style(score: float, most: float) -> str:
    level = 0 if most <= 0 else round(SHADES * min(1.0, (abs(score) / most) ** 0.5))
    if level == 0:
        return ""
    colour = [int(part) for part in (SUPPORTS if score < 0 else HINDERS).split(",")]
    red, green, blue = (round(part * level / SHADES) for part in colour)
    return f"white on rgb({red},{green},{blue})"
