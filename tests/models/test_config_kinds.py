"""What configs beside the weights say in every form that people have them in, and that options come before them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from test_sidecar import CLASSES, edit, picture, timm_folder, vit_folder

from imu_cli.cli import main
from imu_cli.errors import ImuError, RefusedError
from imu_cli.models.architecture import load, read_said
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.samples.images.preprocessing import find
from imu_cli.samples.images.steps import stack


def opened(folder: Path) -> Any:
    return open_checkpoint(folder)


def steps(folder: Path) -> Any:
    return find(None, [(item.steps, item.source) for item in read_said(opened(folder))])[0]


def guessed(model: Any, data: Path, made: Any) -> int:
    """A class that the untrained model says of one of that class's own images, so that there is something to unlearn."""
    for number, name in enumerate(CLASSES):
        for path in sorted((data / name).iterdir()):
            with Image.open(path) as image:
                batch = made.scale(stack([made.shape(image)]))
            if int(logits(model, batch).argmax()) == number:
                return number
    raise AssertionError("the model guesses none of its images' classes; draw others")


def logits(model: Any, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = model(batch)
    made: torch.Tensor = getattr(found, "logits", found)
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class folders of the four classes."""
    for number, name in enumerate(CLASSES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for seed in range(2):
            picture(10 * number + seed).save(tmp_path / "data" / name / f"{seed}.png")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path / "data"


# --- heads that are no softmax


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("multi_label_classification", "a multi-label model, whose outputs are sigmoids"),
        ("regression", "a regression model, whose outputs are numbers"),
    ],
)
def test_heads_that_are_no_softmax_are_called_what_they_are(
    tmp_path: Path, data: Path, kind: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused at opening by every command, with the reason; inspect says it too and proposes nothing."""
    vit_folder(tmp_path / "net", problem_type=kind)
    for command in ("unlearn", "influence"):
        assert main([command, str(tmp_path / "net"), "--data", str(data), "--forget", "class=cat"]) == 4
        assert said in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "net")]) == 4
    shown = " ".join(capsys.readouterr().out.split())
    assert "REFUSED: " in shown
    assert f"problem_type is {kind}: {said}".replace(" ", "") in shown.replace(
        " ", ""
    )  # a long path is broken anywhere
    assert "next:" not in shown
    assert not (tmp_path / "net.unlearned").exists()


def test_features_of_a_multi_label_model_are_refused_too(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No way round by features from a file: the head is the same."""
    vit_folder(tmp_path / "net")
    file = str(tmp_path / "f.safetensors")
    assert main(["features", str(tmp_path / "net"), "--data", str(data), "-o", file, "--quiet"]) == 0
    edit(tmp_path / "net" / "config.json", problem_type="multi_label_classification")
    assert main(["influence", str(tmp_path / "net"), "--features", file]) == 4
    assert "problem_type is multi_label_classification" in capsys.readouterr().err


def test_one_output_is_called_one_output(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With or without a problem_type, of any library: one output is no choice between classes."""
    vit_folder(tmp_path / "net", num_labels=1, id2label={0: "Test"}, label2id={"Test": 0})
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=1)
    timm.models.save_for_hf(model, tmp_path / "timm", safe_serialization=True)
    shutil.copytree(tmp_path / "net", tmp_path / "said")
    edit(tmp_path / "said" / "config.json", problem_type="single_label_classification")
    for folder in ("net", "timm", "said"):
        assert main(["unlearn", str(tmp_path / folder), "--data", str(data), "--forget", "class=cat"]) == 4
        assert "has one output, a regression or a yes-or-no head" in capsys.readouterr().err
        assert main(["inspect", str(tmp_path / folder)]) == 4
        assert "has one output" in " ".join(capsys.readouterr().out.split())


def test_a_model_of_one_number_an_image_is_called_that(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head whose single output is squeezed away is named as well."""
    Path("flat.py").write_text(
        "from model import digits_net\nfrom torch import nn\n\nclass Flat(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.net = digits_net(1)\n\n    def forward(self, x):\n        return self.net(x)[:, 0]\n"
    )
    values = {f"net.{k}": v[:1].clone() if k.startswith("8.") else v for k, v in load_file("model.safetensors").items()}
    save_file(values, "flat.safetensors")
    import sys

    sys.path.insert(0, str(job))
    try:
        go = ["influence", "flat.safetensors", "--config", "imu.yaml", "--arch", "flat.py:Flat", "--forget", "class=3"]
        assert main(go) == 4
    finally:
        sys.path.remove(str(job))
    assert "returned one number for a sample" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.int32], ids=str)
def test_integers_under_older_names_of_transformers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    """The library renames the tensors of older files as it loads them; quantised ones are refused before that, by their name."""
    vit_folder(tmp_path)
    values = load_file(tmp_path / "model.safetensors")
    name = next(key for key in values if key.endswith(("query.weight", "q_proj.weight")))
    save_file({**values, name: (values[name] * 100).to(dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(RefusedError, match=f"{name} is .* in the file, where the architecture computes with fractions"):
        load(opened(tmp_path), None)


# --- class names


ODD: dict[str, tuple[Any, str | None]] = {
    "integers": ({"0": 7, "1": 3, "2": 2, "3": 1}, "id2label: 7 is not a name"),
    "null": ({"0": "cat", "1": None, "2": "owl", "3": "rat"}, "id2label: None is not a name"),
    "nested": ({"0": ["cat", "felis"], "1": ["dog"], "2": ["owl"], "3": ["rat"]}, "is not a name"),
    "mixed": ({"0": "cat", "1": "dog", "2": {"en": "owl"}, "3": "rat"}, "is not a name"),
    "no ids": ({"a": "cat", "b": "dog", "c": "owl", "d": "rat"}, "is not a name"),
    "too few": ({"0": "cat", "1": "dog", "2": "owl"}, "names 3 classes, the head has 4"),
    "own ids": ({"0": 0, "1": 1, "2": 2, "3": 3}, None),
    "turned round": ({"cat": 0, "dog": 1, "owl": 2, "rat": 3}, None),
    "list": (CLASSES, None),
    "spaces": ({"0": "cat ", "1": " dog", "2": "owl", "3": "rat"}, None),
    "absent": (None, None),
    "empty": ({}, None),
    "padded": ({"00": "cat", "01": "dog", "02": "owl", "03": "rat"}, None),
    "gaps": ({"0": "cat", "2": "dog", "5": "owl", "9": "rat"}, None),
}


@pytest.mark.parametrize("name", ODD)
def test_the_option_comes_before_the_config(
    tmp_path: Path, data: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever id2label holds, --classes is enough; without it, what is wrong is told, and nothing where nothing is."""
    labels, wrong = ODD[name]
    vit_folder(tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    (tmp_path / "net" / "config.json").write_text(json.dumps(config | ({} if labels is None else {"id2label": labels})))
    go = ["influence", str(tmp_path / "net"), "--data", str(data), "--forget", "class=cat", "--quiet"]
    assert main([*go, "--classes", str(tmp_path / "classes.txt")]) == 0
    capsys.readouterr()
    assert main(go) == (2 if wrong else 0)
    if wrong:
        said = capsys.readouterr().err
        assert wrong in said
        assert "give --classes FILE" in said


def test_names_from_label2id_alone(tmp_path: Path) -> None:
    """A config that has only the mapping from names to ids names the classes all the same."""
    vit_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_said(opened(tmp_path))[0].classes == tuple(CLASSES)
    assert load(opened(tmp_path), None).model.config.num_labels == 4


def test_other_options_come_before_broken_configs(tmp_path: Path, data: Path) -> None:
    """A config or processor that cannot be read, or names code, is an error only where no option says what it should say."""
    vit_folder(tmp_path / "net")
    processor = tmp_path / "net" / "preprocessor_config.json"
    go = ["influence", str(tmp_path / "net"), "--data", str(data), "--forget", "class=cat", "--quiet"]
    prep = tmp_path / "prep.yaml"
    prep.write_text("{size: [32, 32]}")
    for text, code in (("{", 2), (json.dumps({"auto_map": {"AutoImageProcessor": "evil.P"}}), 4)):
        processor.write_text(text)
        assert main(go) == code
        assert main([*go, "--preprocess", str(prep)]) == 0
    timm_folder(tmp_path / "timm")
    (tmp_path / "timm" / "config.json").write_text("{")
    go[1] = str(tmp_path / "timm")
    assert main(go) == 2
    given = ["--arch", "timm:test_resnet", "--preprocess", str(prep), "--classes", str(tmp_path / "classes.txt")]
    assert main([*go, *given]) == 0


# --- image processors


def processors(folder: Path) -> dict[str, dict[str, Any]]:
    said = json.loads((folder / "preprocessor_config.json").read_text())
    plain = {key: value for key, value in said.items() if key != "image_processor_type"}
    return {
        "typed": {"preprocessor_config.json": said},
        "without a type": {"preprocessor_config.json": plain},
        "feature extractor": {"preprocessor_config.json": {**plain, "feature_extractor_type": "ViTFeatureExtractor"}},
        "nested": {"processor_config.json": {"image_processor": said, "processor_class": "X"}},
        "nested without a type": {"processor_config.json": {"image_processor": plain}},
        "nested wins": {
            "processor_config.json": {"image_processor": said}, "preprocessor_config.json": {**said, "do_resize": False}
        },
        "a processor of text beside it": {"processor_config.json": {"processor_class": "X"}, "preprocessor_config.json": said},
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "without a type",
        "feature extractor",
        "nested",
        "nested without a type",
        "nested wins",
        "a processor of text beside it",
    ],
)
def test_image_processors_in_every_file_that_transformers_reads(tmp_path: Path, name: str) -> None:
    """The pixels are those of the processor that was saved, whichever file says it, and with no type it is the model's."""
    model = vit_folder(tmp_path / "net")
    files = processors(tmp_path / "net")[name]
    (tmp_path / "net" / "preprocessor_config.json").unlink()
    for file, said in files.items():
        (tmp_path / "net" / file).write_text(json.dumps(said))
    expected = transformers.ViTImageProcessor(size={"height": 32, "width": 32})(picture(), return_tensors="pt")[
        "pixel_values"
    ]
    made = steps(tmp_path / "net")
    # The same processor on the same image: the same bits.
    assert torch.equal(made.scale(stack([made.shape(picture())])), expected)
    assert "image_processor_type" in made.described()["config"]
    assert torch.allclose(
        logits(load(opened(tmp_path / "net"), None).model, expected), logits(model, expected), rtol=1e-5, atol=1e-6
    )


def test_a_processor_that_is_none_is_named(tmp_path: Path) -> None:
    """A nested value that is no object, and a kind of model without a processor, are told with the option."""
    vit_folder(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"image_processor": 3}')
    with pytest.raises(ImuError, match="image_processor is no object; give --preprocess"):
        steps(tmp_path)


# --- timm's folders, as timm and transformers write them

WRITES_ARGUMENTS = pytest.mark.skipif(
    not hasattr(timm.models._hub, "get_model_args"), reason="made from what timm writes from 1.0.31 on"
)


TIMM: dict[str, tuple[str, dict[str, Any], tuple[int, int, int]]] = {
    "grey": ("test_resnet", {"in_chans": 1}, (1, 28, 28)),
    "five channels": ("test_resnet", {"in_chans": 5}, (5, 64, 64)),
    "small": ("test_vit", {"img_size": 32}, (3, 32, 32)),
    "plain": ("test_resnet", {}, (3, 96, 96)),
}


def saved(folder: Path, name: str) -> Any:
    """As timm's ``save_for_hf`` writes it today."""
    model_name, arguments, size = TIMM[name]
    torch.manual_seed(0)
    model = timm.create_model(model_name, num_classes=4, **arguments)
    model.pretrained_cfg.update(input_size=size, mean=(0.5,) * size[0], std=(0.5,) * size[0])
    timm.models.save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": CLASSES})
    return model.eval()


@WRITES_ARGUMENTS
@pytest.mark.parametrize("layout", ["today", "before model_args", "flat"])
@pytest.mark.parametrize("name", TIMM)
def test_timm_folders_of_every_age_are_the_model_that_was_saved(tmp_path: Path, name: str, layout: str) -> None:
    """Channels and size come from the config as timm itself takes them; the logits are the saved model's."""
    model, size = saved(tmp_path / "net", name), TIMM[name][2]
    path = tmp_path / "net" / "config.json"
    config = json.loads(path.read_text())
    if layout != "today":
        config.pop("model_args", None)
        config["pretrained_cfg"]["fixed_input_size"] = name == "small"
    if layout == "flat":
        about = config.pop("pretrained_cfg")
        config = {**config, **about, "labels": config.pop("label_names")}
    path.write_text(json.dumps(config))
    loaded = load(opened(tmp_path / "net"), None)
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(logits(loaded.model, images), logits(model, images), rtol=1e-5, atol=1e-6)
    assert read_said(opened(tmp_path / "net"))[0].classes == tuple(CLASSES)
    if layout == "before model_args":
        theirs = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
        assert torch.allclose(logits(loaded.model, images), logits(theirs, images), rtol=1e-5, atol=1e-6)


def test_a_config_of_timm_reads_no_other_weights(tmp_path: Path) -> None:
    """What pretrained_cfg says of weights elsewhere is not handed on."""
    timm_folder(tmp_path)
    edit(tmp_path / "config.json", pretrained_cfg={"file": str(tmp_path / "x.bin"), "hf_hub_id": "a/b", "url": "http://a",
                                                   "input_size": [3, 96, 96], "classifier": "fc"})  # fmt: skip
    loaded = load(opened(tmp_path), None)
    kept = loaded.model.pretrained_cfg
    assert not {"file", "hf_hub_id", "url"} & {key for key, value in kept.items() if value}


@WRITES_ARGUMENTS
def test_a_pooling_that_timm_does_not_read_is_told(tmp_path: Path) -> None:
    """Older configs name the pooling beside the arguments: timm builds its own, which is said, with the option for the other."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4, global_pool="max").eval()
    timm.models.save_for_hf(model, tmp_path / "net", safe_serialization=True)
    assert load(opened(tmp_path / "net"), None).notes == ()
    path = tmp_path / "net" / "config.json"
    config = json.loads(path.read_text())
    config.pop("model_args")
    path.write_text(json.dumps(config))
    (note,) = load(opened(tmp_path / "net"), None).notes
    assert "names the pooling 'max' where timm does not read it, and timm builds 'avg'" in note
    asked = load(opened(tmp_path / "net"), None, ["global_pool=max"])
    assert asked.notes == ()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(logits(asked.model, images), logits(model, images), rtol=1e-5, atol=1e-6)
    edit(path, global_pool="catavgmax")
    cat = timm.create_model("test_resnet", num_classes=4, global_pool="catavgmax")
    save_file({k: v.contiguous() for k, v in cat.state_dict().items()}, tmp_path / "net" / "model.safetensors")
    with pytest.raises(ImuError, match="does not fit") as caught:
        load(opened(tmp_path / "net"), None)
    assert "--arch-arg global_pool=catavgmax" in str(caught.value)


def wrapper(folder: Path, **arguments: Any) -> Any:
    """A timm model as transformers saves it."""
    torch.manual_seed(0)
    about = {
        "input_size": [3, 96, 96],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
    said = {
        "architecture": "test_resnet",
        "num_classes": 4,
        "label_names": CLASSES,
        "pretrained_cfg": about,
        "model_args": arguments,
    }
    model = transformers.TimmWrapperForImageClassification(transformers.TimmWrapperConfig.from_dict(said))
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "max"}], ids=str)
def test_timm_saved_by_transformers_is_unlearned_and_loads_there_again(
    tmp_path: Path, data: Path, arguments: dict[str, str]
) -> None:
    """A timm_wrapper folder needs no flag; pixels and logits are transformers' own, and so are the result's."""
    model = wrapper(tmp_path / "net", **arguments)
    made = steps(tmp_path / "net")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "net", local_files_only=True)
    pixels = processor(picture(), return_tensors="pt")["pixel_values"]
    mine = made.scale(stack([made.shape(picture())]))
    # Normalised from bytes here and from fractions there: one rounding apart.
    assert torch.allclose(mine, pixels, rtol=1e-5, atol=1e-5)
    loaded = load(opened(tmp_path / "net"), None)
    assert torch.allclose(logits(loaded.model, pixels), logits(model, pixels), rtol=1e-5, atol=1e-6)
    gone = guessed(model, data, made)
    go = ["unlearn", str(tmp_path / "net"), "--data", str(data), "--forget", f"class={CLASSES[gone]}", "--quiet"]
    assert main(go) in (0, 3)
    again = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "net.unlearned", local_files_only=True
    ).eval()
    there = logits(again, pixels)
    kept = [number for number in range(4) if number != gone]
    assert not torch.equal(there[:, gone], logits(model, pixels)[:, gone])
    assert torch.allclose(there[:, kept], logits(model, pixels)[:, kept], rtol=1e-5, atol=1e-6)


def test_timm_wrapper_with_another_head_is_refused(tmp_path: Path) -> None:
    """problem_type stands in these configs too."""
    wrapper(tmp_path / "net")
    edit(tmp_path / "net" / "config.json", problem_type="multi_label_classification")
    with pytest.raises(RefusedError, match="multi-label"):
        load(opened(tmp_path / "net"), None)


# --- two vocabularies


@pytest.mark.parametrize(
    "names", [["n01440764", "n01443537", "n01484850", "n01491361"], ["katze", "hund", "eule", "ratte"]], ids=len
)
def test_two_vocabularies_are_the_cause(
    tmp_path: Path, data: Path, names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders named otherwise than the config's classes: one message names the cause and --classes, and with it an id works."""
    vit_folder(tmp_path / "net")
    for old, new in zip(CLASSES, names, strict=True):
        shutil.move(data / old, data / new)
    go = ["influence", str(tmp_path / "net"), "--data", str(data), "--quiet"]
    for selector in ("class=0", f"class={names[0]}", "index=0:2", "class=cat"):
        assert main([*go, "--forget", selector]) == 2
        said = capsys.readouterr().err
        assert "and none is in both; name the model's classes as the data do, with --classes FILE" in said, selector
        assert len(said.strip().splitlines()) == 1
    assert ("WordNet ids" in said) == names[0].startswith("n0")
    (tmp_path / "theirs.txt").write_text("\n".join(names))
    for selector in ("class=0", f"class={names[0]}"):
        assert main([*go, "--forget", selector, "--classes", str(tmp_path / "theirs.txt")]) == 0


# --- the Hugging Face cache


def test_a_result_in_the_cache_is_asked_for(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A snapshot in the Hugging Face cache, or a file of it: -o is asked for by unlearn and evaluate, and nothing is written there."""
    gone = guessed(vit_folder(tmp_path / "net"), data, steps(tmp_path / "net"))
    home = tmp_path / "hub" / "models--me--net"
    snapshot = home / "snapshots" / "4d7a"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, path in enumerate(sorted((tmp_path / "net").iterdir())):
        shutil.move(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    before = sorted(tmp_path.joinpath("hub").rglob("*"))
    go = ["--data", str(data), "--forget", f"class={CLASSES[gone]}", "--quiet"]
    for model in (snapshot, snapshot / "model.safetensors"):
        for command in ("unlearn", "evaluate"):
            assert main([command, str(model), *go]) == 2
            assert "lies in the Hugging Face cache" in capsys.readouterr().err
    assert main(["unlearn", str(snapshot), *go, "-o", str(tmp_path / "mine")]) in (0, 3)
    assert sorted(tmp_path.joinpath("hub").rglob("*")) == before
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    assert main(["unlearn", str(link), *go]) in (0, 3)
    assert (tmp_path / "link.unlearned").is_dir()
    capsys.readouterr()
    assert main(["inspect", str(snapshot)]) == 0
    assert "--output unlearned" in " ".join(capsys.readouterr().out.split())
