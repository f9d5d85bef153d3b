"""What two plans of work may differ by: the same sums in batches of another size, with other threads or other vectors.

Float32 sums in another order differ in their last bits, by some 1e-7 of what is summed; what follows from them in float64
keeps that, times how far sums cancel. Only the same plan, run twice on one machine, gives the same bits.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

RELATIVE = 1e-4
"""Of the largest score, weight or tensor element: a thousand times float32's rounding, a thousandth of any effect."""


def assert_close_rows(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Rows of ``imu influence`` of the same samples: what is no float is the same, floats but for rounding."""
    assert [_rest(row) for row in found] == [_rest(row) for row in expected]
    for name in {name for row in expected for name, value in row.items() if isinstance(value, float)}:
        wanted = [row[name] for row in expected]
        size = max(map(abs, wanted))
        assert [row[name] for row in found] == pytest.approx(wanted, rel=RELATIVE, abs=RELATIVE * size), name


def _rest(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, float)}


def assert_close_models(one: str | Path, other: str | Path, head: str) -> None:
    """Two files whose tensors outside the head are the same bits, and whose heads are one but for rounding."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if name.startswith(f"{head}."):
            size = RELATIVE * float(tensor.abs().max())
            torch.testing.assert_close(tensor, second[name], rtol=0, atol=size)
        else:
            assert torch.equal(tensor, second[name]), name


def assert_close_metrics(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """The same metrics with the same words; a share may differ by one sample that stands on a boundary."""
    floats = ("value", "before", "target")
    assert [item["name"] for item in found] == [item["name"] for item in expected]
    for one, other in zip(found, expected, strict=True):
        assert {key: one[key] for key in ("n", "missing")} == {key: other[key] for key in ("n", "missing")}
        for name in floats:
            if other[name] is None:
                assert one[name] is None
            else:
                most = max(1.5 / other["n"] if other["n"] else 0, RELATIVE)
                assert one[name] == pytest.approx(other[name], rel=RELATIVE, abs=most), (one["name"], name)
