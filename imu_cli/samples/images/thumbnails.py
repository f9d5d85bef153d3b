"""Small pictures of images as data URIs, for a page that loads nothing. Made only where they were asked for."""

import base64
import io

from PIL import Image

SIDE = 160
"""Longest side of a thumbnail in pixels; smaller images stay as they are."""
LOSSLESS = 64
"""Images up to this side are kept as PNG: on so few pixels the blocks of JPEG are what one would see."""


def data_uri(image: Image.Image) -> str:
    """``data:image/…;base64,…`` of the image, at most ``SIDE`` pixels wide and high, without its metadata."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    kind = "PNG" if max(small.size) <= LOSSLESS else "JPEG"
    out = io.BytesIO()
    small.save(out, kind, **({} if kind == "PNG" else {"quality": 85}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
