"""Weights in parts, ``--shard``: two processes that each hold about half do what one does that holds all."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What two processes of torchrun say of ``in_parts``."""
    out = tmp_path_factory.mktemp("parts") / "found.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launch, str(Path(__file__).with_name("in_parts.py")), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_in_parts_end_where_whole_ones_do(found: Any, kind: str) -> None:
    """Looks, the interpolated end and every weight, but for float error, most of all where gradients are nothing else (GPT-2's key biases)."""
    one = found[kind]
    assert one["moved"] > 0.001
    assert one["away"] < 1e-3
    assert len(one["looks"][0]) > 1
    for mine, theirs in zip(*one["looks"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    (reason, fraction), (expected, aimed) = one["ends"]
    assert (reason, fraction) == (expected, aimed)
    assert reason == "target"
    assert 0 < fraction < 1
    assert one["spent"][0] == one["spent"][1]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_process_holds_about_half(found: Any, kind: str) -> None:
    """Of weights that move, of what they were, their gradients, moments and maps, and of blocks that stay; together they hold all once."""
    whole = found[kind]["whole"]
    for name, count in whole.items():
        each = [process[kind][name] for process in found["every"]]
        assert sum(each) == count, name
        assert max(each) <= 0.52 * count, name
    mine, all_of_it = found[kind]["blocks"]
    assert mine <= 0.52 * all_of_it


def test_what_cannot_be_dealt_out_is_refused(found: Any) -> None:
    """A weight of two blocks, and one whose outputs do not divide."""
    assert found["shared"].startswith(
        "--shard: model.layers.1.mlp.up_proj.weight moves, and is also model.layers.2.mlp.up_proj.weight"
    )
    assert found["odd"].startswith(
        "--shard: transformer.h.2.mlp.c_fc.weight has 65 outputs, which 2 processes cannot share evenly"
    )
