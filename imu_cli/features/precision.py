"""What a backbone computes in, by the names that options and files have for it."""

from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
