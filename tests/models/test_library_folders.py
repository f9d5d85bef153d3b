"""Folders as timm and transformers save them: the whole of ``unlearn`` with no flag, and back into their own library."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from conftest import listing
from safetensors.torch import load_file, save_file
from test_security import OUTSIDE, audited
from test_sidecar import CLASSES, edit, picture, timm_folder, vit_folder
from torch import Tensor, nn

from imu_cli.cli import main
from imu_cli.files.reading import MAX_JSON
from imu_cli.models import architecture
from imu_cli.models.checkpoint import open_checkpoint
from imu_cli.models.layout import resolve
from imu_cli.records.json_files import read
from imu_cli.records.record import Record

IMAGES = 6


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with audited() as events:
        yield
    called = [event for event in events if event[0] in OUTSIDE]
    assert called == [], "a connection was opened or a program was started"


def sharded_vit(folder: Path) -> nn.Module:
    """``save_pretrained`` with so small a limit that it writes shards."""
    model = vit_folder(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="3KB")  # type: ignore[operator]
    return model


def vit_logits(folder: Path, images: list[Any]) -> Tensor:
    """Logits by transformers alone, model and processor from the folder."""
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    with torch.inference_mode():
        found: Tensor = model(**processor(images=images, return_tensors="pt")).logits
    return found


def timm_logits(folder: Path, images: list[Any]) -> Tensor:
    """Logits by timm alone, model and transform from the folder."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    steps = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    with torch.inference_mode():
        found: Tensor = model(torch.stack([steps(image) for image in images]))
    return found


KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path, list[Any]], Tensor]]] = {
    "transformers": (vit_folder, vit_logits),
    "transformers, shards": (sharded_vit, vit_logits),
    "timm": (timm_folder, timm_logits),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_librarys_folder_needs_no_flag(name: str) -> None:
    """Unlearned and evaluated by names of classes from the config; the library loads the result and forgets with it.

    Its logits are the original's but for the forgotten class's, and those are what the new head makes of the same features.
    """
    make, logits = KINDS[name]
    make(Path("net"))
    images = [picture(seed) for seed in range(IMAGES)]
    before = logits(Path("net"), images)
    predicted = before.argmax(dim=1)
    gone = int(predicted.mode().values)
    place = Path("data") / CLASSES[gone]
    place.mkdir(parents=True)
    rows = (predicted == gone).nonzero().flatten().tolist()
    for row in rows:
        images[row].save(place / f"{row}.png")
    assert main(["unlearn", "net", "--data", "data", "--forget", f"class={CLASSES[gone]}", "--quiet"]) == 0
    found = read(next(Path("net.unlearned").glob("*.record.json")))
    assert isinstance(found, Record)
    assert found.reached
    assert found.end.step > 0
    assert {path.name for path in Path("net").iterdir()} == {
        path.name for path in Path("net.unlearned").iterdir() if path.name != "model.record.json"
    }
    after = logits(Path("net.unlearned"), images)
    others = [number for number in range(len(CLASSES)) if number != gone]
    assert torch.equal(after[:, others], before[:, others])
    assert not bool((after[rows].argmax(dim=1) == gone).any())
    assert main(["evaluate", "net.unlearned", "--quiet"]) == 0


def test_inspect_says_where_a_folder_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Each finding names the config that it was learnt from, and the line to copy has no flag."""
    timm_folder(Path("net"))
    assert main(["inspect", "net", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    sources = {item["what"]: item["source"] for item in found["findings"]}
    assert sources["architecture"] == sources["preprocessing"] == sources["classes"] == "config.json (timm)"
    assert found["next"] == "imu unlearn net --forget forget.csv"


BAD: dict[str, tuple[Callable[[], object], int, str]] = {
    "auto_map": (lambda: edit(Path("net/config.json"), auto_map={"AutoConfig": "evil.C"}), 4, "auto_map"),
    "auto_map of the processor": (
        lambda: edit(Path("net/preprocessor_config.json"), auto_map={"AutoImageProcessor": "evil.P"}), 4, "auto_map"),
    "config of 60 MB": (lambda: os.truncate("net/config.json", MAX_JSON + 1), 2, "it is not read"),
    "config nested deeply": (lambda: Path("net/config.json").write_text('{"a":' * 100_000), 2, "nested too deeply"),
    "config with a key twice": (lambda: Path("net/config.json").write_text('{"model_type": "vit", "model_type": "x"}'), 2, "twice"),
    "config is a list": (lambda: Path("net/config.json").write_text("[]"), 2, "not a JSON object"),
    "config linked outside": (lambda: linked("config.json"), 2, "a link that leaves the folder"),
    "another model's config": (lambda: edit(Path("net/config.json"), hidden_size=24), 2, "does not fit the architecture"),
}  # fmt: skip


def linked(name: str) -> None:
    """The file moved away, with a link to it in its place."""
    Path("away").mkdir()
    (Path("net") / name).rename(Path("away") / name)
    (Path("net") / name).symlink_to(Path("../away") / name)


@pytest.mark.parametrize("name", BAD)
def test_a_config_that_misleads_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Code, size, depth, links and wrong sizes in a config: one message, the exit code, and nothing written."""
    vit_folder(Path("net"))
    Path("evil.py").write_text("open('ran', 'w')")
    (Path("data") / "cat").mkdir(parents=True)
    picture().save("data/cat/1.png")
    spoil, code, said = BAD[name]
    spoil()
    before = listing(Path())
    assert main(["unlearn", "net", "--data", "data", "--forget", "class=cat", "--quiet"]) == code
    assert said in capsys.readouterr().err
    assert listing(Path()) == before
    assert not Path("ran").exists()


def test_a_folder_of_a_pickle_is_converted_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    """Where the config lies beside the new file, convert has nothing to ask for, and no command needs a flag."""
    model = vit_folder(Path("net"))
    Path("net/model.safetensors").unlink()
    torch.save(model.state_dict(), "net/pytorch_model.bin")
    assert main(["inspect", "net"]) == 4
    line = capsys.readouterr().err.strip().split("imu convert ")[1].split()
    assert main(["convert", *line]) == 0
    assert "does not say" not in capsys.readouterr().err
    assert main(["inspect", "net", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["next"] == "imu unlearn net --forget forget.csv"


def test_only_the_heads_shard_is_rewritten() -> None:
    """Of a model that transformers saved in shards, every other file is the same, byte for byte."""
    sharded_vit(Path("net"))
    assert len(resolve(Path("net")).shards) > 2
    gone = int(vit_logits(Path("net"), [picture()]).argmax())
    place = Path("data") / CLASSES[gone]
    place.mkdir(parents=True)
    picture().save(place / "1.png")
    assert main(["unlearn", "net", "--data", "data", "--forget", f"class={CLASSES[gone]}", "--quiet", "-o", "out"]) == 0
    changed = [
        path.name for path in Path("net").iterdir() if path.read_bytes() != (Path("out") / path.name).read_bytes()
    ]
    holders = {
        shard.path.name
        for shard in resolve(Path("net")).shards
        if {"classifier.weight", "classifier.bias"} & set(shard.entries)
    }
    assert set(changed) == holders
    for name in changed:
        old, new = load_file(Path("net") / name), load_file(Path("out") / name)
        assert {key for key in old if not torch.equal(old[key], new[key])} <= {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_held_once(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the library's own names is loaded without its loader, which would make a second model; a tie stays a tie."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).bfloat16().eval()
    model.save_pretrained("llm", max_shard_size="3KB")

    def never(*_: object) -> None:
        raise AssertionError("the library's loader was asked")

    monkeypatch.setattr(architecture, "_translated", never)
    loaded = architecture.load(open_checkpoint(Path("llm")), None).model
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.allclose(loaded(ids).logits, model.float()(ids).logits, atol=1e-6)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert architecture.library_names(loaded, {name: tensor.shape for name, tensor in load_of("llm").items()}) == {}


def test_a_tie_that_stands_twice_goes_through_the_library() -> None:
    """A file that has both names of a tied weight is the library's to read."""
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained("llm")
    values = load_of("llm")
    save_file(
        {**values, "lm_head.weight": values["model.embed_tokens.weight"].clone()},
        "llm/model.safetensors",
        {"format": "pt"},
    )
    loaded = architecture.load(open_checkpoint(Path("llm")), None).model
    with torch.inference_mode():
        assert torch.allclose(loaded(torch.arange(9)[None]).logits, model(torch.arange(9)[None]).logits, atol=1e-6)


def load_of(folder: str) -> dict[str, Tensor]:
    """Every tensor of a folder's files."""
    return {
        name: tensor for file in sorted(Path(folder).glob("*.safetensors")) for name, tensor in load_file(file).items()
    }
