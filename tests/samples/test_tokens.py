"""Texts as token ids: by the folder's own tokenizer, together by length, never cut in silence."""

import json
from pathlib import Path
from typing import Any

import pytest
import small_texts
import torch
from conftest import refusal

from imu_cli.errors import ImuError, InvalidRowsError, RefusedError
from imu_cli.models.batches import call, count
from imu_cli.models.head import logits_of
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.manifest import open_source
from imu_cli.samples.texts import tokenizers, tokens

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with its tokenizer, and texts."""
    made = tmp_path_factory.mktemp("texts")
    small_texts.write(made, count=40)
    return made


def step_of(folder: Path, model: Any, truncate: bool = False) -> tokens.Tokens:
    return tokens.of(tokenizers.load(folder / "net", model), model, truncate)


def samples_of(folder: Path) -> SampleSet:
    return open_source(str(folder / "texts.jsonl"), "data")


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 7])
def test_every_text_comes_once_beside_others_of_its_length(folder: Path, size: int, window: int | None) -> None:
    """Each batch is what the tokenizer makes of its texts, and holds no more tokens than so many long ones have."""
    step, samples = step_of(folder, small_texts.model()), samples_of(folder)
    known, seen = small_texts.tokenizer(), list[int]()
    for places, batch in step.batches(samples, size, window=window):
        expected = known([samples.read(row) for row in places], padding=True, return_tensors="pt")
        assert {name: tensor.tolist() for name, tensor in batch.items()} == {
            name: expected[name].tolist() for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        assert batch["input_ids"].numel() <= max(size * small_texts.LENGTH, batch["input_ids"].shape[1])
        seen += places
    assert sorted(seen) == list(range(40))
    if window:  # the rows of a window come before those of the next
        assert [at // window for at in seen] == sorted(at // window for at in seen)


def test_padding_is_a_small_share(folder: Path) -> None:
    """Sorted by length, at most a tenth of the tokens that a model is run on are padding; in the list's order a third would be."""
    step, samples = step_of(folder, small_texts.model()), samples_of(folder)
    batches = [batch["attention_mask"] for _, batch in step.batches(samples, 2)]
    assert 1 - sum(int(mask.sum()) for mask in batches) / sum(mask.numel() for mask in batches) < 0.1
    whole = step.together(samples, range(40))["attention_mask"]
    assert 1 - float(whole.float().mean()) > 0.3


def test_rows_in_any_order_come_as_they_were_asked_for(folder: Path) -> None:
    """``together`` keeps the order, and a row may be named twice; the logits are those of each text alone."""
    model = small_texts.model()
    step, samples = step_of(folder, model), samples_of(folder)
    rows = [5, 3, 5, 17]
    with torch.inference_mode():
        made = logits_of(call(model, step.together(samples, rows)))
    torch.testing.assert_close(
        made, small_texts.logits(model, [samples.read(row) for row in rows]), rtol=1e-4, atol=1e-5
    )


def test_a_text_beyond_the_maximum_is_named_with_its_line(folder: Path, tmp_path: Path) -> None:
    """All of them at once, and none is cut; with --truncate each is cut to what the model takes."""
    long = " ".join(["lion"] * 40)
    small_texts.lines(tmp_path / "texts.jsonl", ["blue", long, "grey lion", long + " heart"], ["calm"] * 4)
    model, samples = small_texts.model(), samples_of(tmp_path)
    with pytest.raises(InvalidRowsError) as caught:
        list(step_of(folder, model).batches(samples, 4, window=2))
    assert [problem.split(": is ")[0].rpartition(":")[2] for problem in caught.value.problems] == ["2", "4"]
    assert "42 tokens, and the model takes 24" in caught.value.problems[0]
    assert "--truncate" in caught.value.problems[0]
    cut = step_of(folder, model, truncate=True).together(samples, range(4))
    assert cut["input_ids"].shape == (4, 24)
    assert cut["input_ids"][1, -1] == 3, "the mark at the end stays"


def test_pairs_are_told_apart(folder: Path, tmp_path: Path) -> None:
    """Two texts of a row are tokenised as one pair, with token types where the tokenizer gives them."""
    (tmp_path / "texts.jsonl").write_text('{"text": "blue lion", "text_pair": "grey", "label": "calm"}\n')
    step = step_of(folder, small_texts.model())
    batch = step.together(samples_of(tmp_path), [0])
    assert batch["input_ids"].tolist() == [[2, 5, 7, 3, 6, 3]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1]]


def test_the_models_own_limit_counts_where_it_is_smaller(tmp_path: Path) -> None:
    """A tokenizer that says nothing leaves the position embeddings, of which RoBERTa's begin behind the padding's id."""
    model = small_texts.model("Roberta", max_position_embeddings=34, pad_token_id=1)
    small_texts.tokenizer(length=10**30).save_pretrained(tmp_path / "net")
    assert tokenizers.load(tmp_path / "net", model).max_length == 32


def test_a_model_without_padding_is_given_one(folder: Path) -> None:
    """A classifier of the last token takes one text at a time unless it knows what padding is."""
    model = small_texts.model("GPT2", pad_token_id=None)
    small_texts.tokenizer(pad_token=None)
    step, samples = step_of(folder, model), samples_of(folder)
    with torch.inference_mode():
        made = logits_of(call(model, step.together(samples, range(6))))
    assert count(step.together(samples, range(6))) == 6
    torch.testing.assert_close(
        made, small_texts.logits(model, [samples.read(row) for row in range(6)]), rtol=1e-4, atol=1e-5
    )


def test_what_a_record_says_of_it(folder: Path) -> None:
    """Class, hash, limit, side and cut: another tokenizer is another key, and is refused where a record names the first."""
    tokenizer = tokenizers.load(folder / "net", small_texts.model())
    said = tokens.of(tokenizer, small_texts.model(), False).described()
    assert set(said) == tokens.KEYS
    assert (said["max_length"], said["padding_side"], said["truncate"]) == (24, "right", False)
    assert tokens.is_described(said)
    assert not tokens.is_described({"size": 32})
    tokens.refuse_other(said, tokenizer, "model.record.json")
    with pytest.raises(ImuError, match="was made with another tokenizer"):
        tokens.refuse_other({**said, "sha256": "0" * 64}, tokenizer, "model.record.json")


def broken(path: Path, what: str) -> None:
    """One way in which a tokenizer's files are not what they should be."""
    config = json.loads((path / "tokenizer_config.json").read_text())
    if what == "gone":
        (path / "tokenizer.json").unlink()
    elif what == "no JSON":
        (path / "tokenizer.json").write_text("{")
    elif what == "a pointer":
        (path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    elif what == "code":
        (path / "tokenizer_config.json").write_text(
            json.dumps({**config, "auto_map": {"AutoTokenizer": ["x.Y", None]}})
        )
    elif what == "outside":
        (path.parent / "elsewhere.json").write_text((path / "tokenizer.json").read_text())
        (path / "tokenizer.json").unlink()
        (path / "tokenizer.json").symlink_to("../elsewhere.json")


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("gone", "tokenizer.json: not there, and a text model needs its tokenizer"),
        ("no JSON", "cannot read this tokenizer"),
        ("a pointer", "a Git LFS pointer"),
        ("code", "names code of its own (auto_map)"),
        ("outside", "tokenizer.json"),
    ],
)
def test_a_tokenizer_that_cannot_be_used(tmp_path: Path, what: str, words: str) -> None:
    """Each is one error with the file; code is refused, never asked about."""
    small_texts.tokenizer().save_pretrained(tmp_path / "net")
    broken(tmp_path / "net", what)
    said = refusal(lambda: tokenizers.load(tmp_path / "net", small_texts.model()))
    assert words in said
    if what == "code":
        with pytest.raises(RefusedError):
            tokenizers.load(tmp_path / "net", small_texts.model())


def test_a_config_that_names_other_files_is_not_followed(tmp_path: Path) -> None:
    """What lies in the folder is read, whatever path the config has for it."""
    small_texts.tokenizer().save_pretrained(tmp_path / "net")
    path = tmp_path / "net/tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "tokenizer_file": "/etc/passwd", "vocab_file": "../vocab.txt"})
    )
    made = tokenizers.load(tmp_path / "net", small_texts.model())
    assert made.made("blue lion")["input_ids"] == [2, 5, 7, 3]


def test_a_tokenizer_of_another_model_is_noticed(folder: Path) -> None:
    """An id that the model's table does not have is an error with the line, not a crash inside the model."""
    step, samples = step_of(folder, small_texts.model(vocab_size=12)), samples_of(folder)
    with pytest.raises(InvalidRowsError, match="the tokenizer is another model's"):
        step.together(samples, range(40))
