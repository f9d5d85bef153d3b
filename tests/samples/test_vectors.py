"""Files of features that another engine wrote, or nobody honest: dtypes, labels, classes, metadata, each refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imu_cli.cli import main
from imu_cli.errors import ImuError
from imu_cli.samples.vectors import open_features

SAID: dict[str, Any] = {"schema": "imu.features/1", "head": "fc", "classes": ["a", "b", "c"]}
N = 4


def tensors() -> dict[str, torch.Tensor]:
    """Four rows of two features, with every column."""
    return {
        "features": torch.arange(2.0 * N).view(N, 2),
        "labels": torch.tensor([0, 1, 2, -1]),
        "name": torch.frombuffer(bytearray(b"abcd"), dtype=torch.uint8),
        "name.end": torch.tensor([1, 2, 3, 4]),
        "digest": torch.zeros(N, 32, dtype=torch.uint8),
        "size": torch.tensor([5, 6, 7, 8]),
        "weight": torch.ones(N, dtype=torch.float64),
        "true_label": torch.tensor([-1, 1, 1, 1]),
        "logits": torch.zeros(2, 3),
    }


def write(path: Path, values: dict[str, torch.Tensor], said: Any) -> str:
    save_file(values, path, {"imu.features": json.dumps(said)})
    return str(path)


def with_tensor(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda values: values.__setitem__(name, value)


def with_value(name: str, row: int, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda values: values[name].__setitem__(row, value)


WRONG: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "a label below -1": (with_value("labels", 1, -5), "row 1: 'labels' is -5; ids are 0 to 2, and -1 where none is known"),
    "the smallest label": (with_value("labels", 3, -(2**63)), "row 3: 'labels' is -9223372036854775808"),
    "a label beyond the classes": (with_value("labels", 0, 3), "row 0: 'labels' is 3"),
    "a true label below -1": (with_value("true_label", 0, -2), "row 0: 'true_label' is -2"),
    "a true label beyond": (with_value("true_label", 2, 2**40), "row 2: 'true_label' is 1099511627776"),
    "a weight of 0": (with_value("weight", 0, 0.0), "'weight' is not a number above 0"),
    "a weight that is none": (with_value("weight", 0, float("nan")), "'weight' is not a number above 0"),
    "an endless weight": (with_value("weight", 0, float("inf")), "'weight' is not a number above 0"),
    "a negative size": (with_value("size", 0, -1), "'size' is below 0"),
    "ends that go round": (with_tensor("name.end", torch.tensor([2**62, -(2**62), 0, 4])), "'name.end' does not divide"),
    "labels in float8": (with_tensor("labels", torch.zeros(N).to(torch.float8_e4m3fn)), "no 'labels' of shape"),
    "labels in float": (with_tensor("labels", torch.zeros(N)), "no 'labels' of shape"),
    "weights in bfloat16": (with_tensor("weight", torch.ones(N, dtype=torch.bfloat16)), "'weight' is BF16 of shape (4,), not F64"),
    "a weight in float8": (with_tensor("weight", torch.ones(N).to(torch.float8_e5m2)), "'weight' is F8_E5M2"),
    "a digest in float": (with_tensor("digest", torch.zeros(N, 32)), "'digest' is F32"),
    "names as numbers": (with_tensor("name", torch.zeros(4, dtype=torch.int64)), "'name' is I64"),
    "ends as bytes": (with_tensor("name.end", torch.zeros(4, dtype=torch.uint8)), "'name.end' is U8"),
    "true labels of two dimensions": (with_tensor("true_label", torch.zeros(N, 1, dtype=torch.int64)), "'true_label' is I64 of shape (4, 1)"),
    "logits in float8": (with_tensor("logits", torch.zeros(2, 3).to(torch.float8_e4m3fn)), "'logits' is F8_E4M3"),
    "logits in complex": (with_tensor("logits", torch.zeros(2, 3, dtype=torch.complex64)), "'logits' is C64"),
    "features in float8": (with_tensor("features", torch.zeros(N, 2).to(torch.float8_e4m3fn)), "no 'features' of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_columns_that_cannot_be(name: str, tmp_path: Path) -> None:
    """The file, the column and the row are named; no label is ever taken as another one."""
    values = tensors()
    WRONG[name][0](values)
    with pytest.raises(ImuError) as caught:
        open_features(write(tmp_path / "x.safetensors", values, SAID))
    assert str(caught.value).startswith(f"{tmp_path / 'x.safetensors'}: ")
    assert WRONG[name][1] in str(caught.value)


METADATA: dict[str, tuple[Any, str]] = {
    "classes": (5, "classes: found 5"),
    "a class": (["a", 3, "c"], "classes.1: found 3"),
    "classes nested": ([["a"], ["b"]], "classes.0: found ['a']"),
    "classes as a text": ("abc", "classes: found 'abc'"),
    "head": (["fc"], "names no head"),
    "schema": ({"a": 1}, "this imu reads imu.features/1"),
    "architecture": ("resnet", "architecture: found 'resnet'"),
    "architecture's name": ({"name": ["fc"], "source": "x"}, "architecture.name: found ['fc']"),
    "architecture's arguments": ({"arguments": 3}, "architecture.arguments: found 3"),
    "preprocess": ([1], "preprocess: found [1]"),
    "precision": ({}, "precision: found {}"),
    "complete": ("yes", "complete: found 'yes'"),
    "whole_classes": (3, "whole_classes: found 3"),
    "backbone_sha256": (10**30, "backbone_sha256: found 1000000000000000000000000000000"),
    "head_sha256": (False, "head_sha256: found False"),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_that_cannot_be(name: str, tmp_path: Path) -> None:
    """The key is named, and what was found there."""
    key = "classes" if "class" in name and name != "whole_classes" else name.partition("'")[0]
    with pytest.raises(ImuError) as caught:
        open_features(write(tmp_path / "x.safetensors", tensors(), {**SAID, key: METADATA[name][0]}))
    assert METADATA[name][1] in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.complex64, torch.bool, torch.uint16])
def test_tensors_of_other_names_are_left_alone(dtype: torch.dtype, tmp_path: Path) -> None:
    """An engine may keep what it likes beside them, in dtypes that numpy has not."""
    values = {**tensors(), "extra": torch.zeros(3).to(dtype)}
    samples = open_features(write(tmp_path / "x.safetensors", values, SAID))
    assert list(samples.labels) == [0, 1, 2, -1]
    assert list(samples.names) == ["a", "b", "c", "d"]


def test_labels_without_class_names(tmp_path: Path) -> None:
    """What is beyond the model's classes is refused where those are known; -1 alone is not known."""
    values = tensors()
    values["labels"][:] = torch.tensor([0, 1, 2, 700])
    said = {"schema": "imu.features/1", "head": "fc"}
    assert list(open_features(write(tmp_path / "x.safetensors", values, said)).labels) == [0, 1, 2, 700]
    save_file({"fc.weight": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    command = [
        "influence",
        str(tmp_path / "model.safetensors"),
        "--features",
        str(tmp_path / "x.safetensors"),
        "--no-cache",
    ]
    assert main(command) == 2
    values["labels"][3] = -2
    write(tmp_path / "x.safetensors", values, said)
    assert main(command) == 2
    values["labels"][3] = 2
    write(tmp_path / "x.safetensors", values, said)
    assert main(command) == 0


def test_numbers_of_one_column_do_not_reach_another() -> None:
    """The table of dtypes has every column that is written."""
    from imu_cli.samples import vectors

    assert set(tensors()) - set(vectors.KINDS) == {"features", "logits"}
    assert np.dtype(np.float64).name in vectors.CODES
