"""``imu influence`` of a language model, and ``imu unlearn --scope head``: what is scored, cached, shown, written, told and refused."""

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
import small_records
import torch

from imu_cli.cli import main
from imu_cli.models import checkpoint
from imu_cli.records import json_files
from imu_cli.records.record import Record

transformers = pytest.importorskip("transformers")
INFLUENCE = ["influence", "model", "--forget", "forget.jsonl"]
UNLEARN = ["unlearn", "model", "--forget", "forget.jsonl", "-o", "out"]
HEAD = [*UNLEARN, "--scope", "head", "--untie", "--max-drop", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that knows people's answers by heart, its head tied."""
    folder = tmp_path_factory.mktemp("records")
    small_records.make(folder)
    return folder


@pytest.fixture
def known(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Path:
    """A copy of it to work in, the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], command: Sequence[str], code: int = 2) -> str:
    """What a command says on standard error."""
    found = main(list(command))
    said = capsys.readouterr().err
    assert found == code, said
    return said


def answers(texts: Path) -> list[str]:
    return [json.loads(line)["answer"] for line in texts.read_text().splitlines()]


# --- influence


def test_every_record_and_token_has_a_score(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record's score is the sum of its tokens'; JSON and CSV agree, hold no text, and come from the cache the second time."""
    assert main([*INFLUENCE, "--format", "json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert found["schema"] == "imu.token_influence/1"
    assert len(found["rows"]) == small_records.FORGOTTEN
    assert found["tokens"] == sum(len(row["scores"]) for row in found["rows"])
    for row in found["rows"]:
        assert row["score"] == pytest.approx(sum(row["scores"]), rel=1e-9)
        assert 0.1 < row["probability"] <= 1
        assert len(row["probabilities"]) == len(row["scores"])
    assert not any(word in text for word in ("lives", *small_records.CITIES, *small_records.TRADES))
    assert main([*INFLUENCE, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in found["rows"]]
    assert main([*INFLUENCE, "--format", "csv", "--tokens"]) == 0
    by_token = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["score"]) for row in by_token] == [score for row in found["rows"] for score in row["scores"]]
    assert main([*INFLUENCE, "--format", "json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["scores"]["from_cache"]
    assert again["rows"] == found["rows"]


def test_texts_are_shown_where_they_are_asked_for(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``--tokens`` prints the completions of the records in the table; without it no word of them is printed or cached."""
    shown = answers(known / "forget.jsonl")
    assert main(INFLUENCE) == 0
    plain = capsys.readouterr().out
    assert not any(answer in plain for answer in shown)
    assert main([*INFLUENCE, "--tokens", "--show", "2"]) == 0
    asked = capsys.readouterr().out
    assert sum(answer in asked for answer in shown) == 2
    assert asked.count("most: ") == 2


def test_what_says_nothing_to_a_language_model_is_refused(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Options of classifiers are named, all at once."""
    said = told(capsys, [*INFLUENCE, "--kernel", "--rho", "1"])
    assert "--kernel, --rho: are for classifiers, and this is a language model" in said


# --- the head


def test_a_tied_head_goes_alone_once_it_is_untied(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One new tensor stands beside the old ones; the folder loads in transformers, untied, and knows less; the record says so."""
    command = [*HEAD, "--test", "unseen.jsonl", "--quiet"]
    assert main(command) == 0, capsys.readouterr().err
    before, after = (checkpoint.open_checkpoint(known / name) for name in ("model", "out"))
    assert checkpoint.differing(before, after) == ["lm_head.weight"]
    text = (known / "out/model.record.json").read_text(encoding="utf-8")
    record = json_files.read(known / "out/model.record.json")
    assert isinstance(record, Record)
    jsonschema.validate(json.loads(text), Record.model_json_schema(by_alias=True))
    assert (record.method, record.scenario, record.changed) == ("matched", "record", ["lm_head.weight"])
    assert record.reached
    assert record.end.forget is not None
    assert record.start.forget is not None
    assert record.end.forget < record.start.forget - 0.1
    assert record.details["untied"] is True
    assert 0 < record.details["words"] <= record.head.classes
    assert not any(answer in text for answer in answers(known / "forget.jsonl"))
    model = transformers.AutoModelForCausalLM.from_pretrained(known / "out")
    assert model.config.tie_word_embeddings is False
    old = before.tensor("model.embed_tokens.weight")
    assert torch.equal(model.get_input_embeddings().weight, old.float())
    assert not torch.equal(model.lm_head.weight, old.float())
    tokenizer = transformers.AutoTokenizer.from_pretrained(known / "out")
    given = tokenizer("Question: Where does Alra live?\nAnswer:", return_tensors="pt")
    assert model.generate(**given, max_new_tokens=3, do_sample=False).shape[1] > given["input_ids"].shape[1]
    assert {path.name for path in (known / "out").iterdir()} >= {"generation_config.json", "tokenizer.json"}


def test_a_head_of_its_own_needs_no_untying(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was untied once is unlearned further in place; ``--untie`` has nothing to do there, and says so."""
    assert main([*HEAD, "--until", "forget.exact_memorization<=0.3", "--quiet"]) == 0, capsys.readouterr().err
    given = ["--forget", "retain.jsonl", "--until", "forget.exact_memorization<=0.05"]
    again = ["unlearn", "out", *given, "--scope", "head", "--max-drop", "1", "-o", "more"]
    assert "--untie: lm_head is a tensor of its own already" in told(capsys, [*again, "--untie"])
    assert main([*again, "--quiet"]) in (0, 3), capsys.readouterr().err
    before, after = (checkpoint.open_checkpoint(known / name) for name in ("out", "more"))
    assert checkpoint.differing(before, after) == ["lm_head.weight"]


def test_margins_of_a_reference_model_are_the_targets(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside a model of other weights, tokens come to its margins where these are lower, and the run needs no unseen records."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(known / "model")
    transformers.LlamaForCausalLM(model.config).save_pretrained(known / "never")
    shutil.copyfile(known / "model/tokenizer.json", known / "never/tokenizer.json")
    shutil.copyfile(known / "model/tokenizer_config.json", known / "never/tokenizer_config.json")
    assert main([*HEAD, "--reference-model", "never", "--quiet"]) == 0, capsys.readouterr().err
    record = json_files.read(known / "out/model.record.json")
    assert isinstance(record, Record)
    assert record.details["targets"].startswith("targets from the reference model, token by token")
    assert record.details["margin_error"] < 0.8 * record.details["margin_error_before"]
    assert record.held_out is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scope", "head", "--test", "unseen.jsonl"], "lm_head: is tied to model.embed_tokens.weight"),
        (["--scope", "head", "--test", "unseen.jsonl"], "Add --untie"),
        (["--scope", "head", "--test", "unseen.jsonl"], "--scope last-block"),
        (["--scope", "head", "--untie"], "--test: not given"),
        (["--scope", "last-block", "--untie", "--test", "unseen.jsonl"], "--untie: is for --scope head"),
        (["--scope", "head", "--untie", "--test", "unseen.jsonl", "--l1", "0.1"], "--l1: "),
        (["--scope", "head", "--untie", "--until", "forget.exact_memorization<=1.5"], "--until"),
        (["--scope", "head", "--untie", "--until", "forget.exact_memorization<=0.99"], "there is nothing to forget"),
    ],
)
def test_what_cannot_be_done_is_told_before(
    known: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """One clear message with what to do, and nothing is written."""
    code = main([*UNLEARN, *options])
    assert said in capsys.readouterr().err
    assert code in (2, 4)
    assert not (known / "out").exists()


def test_a_file_says_nothing_of_the_tie(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Untying needs the folder, whose config goes along."""
    command = [*HEAD, "--test", "unseen.jsonl"]
    command[1], command[command.index("out")] = "model/model.safetensors", "out.safetensors"
    assert "name the folder as MODEL" in told(capsys, command)


# --- the published update


def test_the_published_update_runs_at_its_scope(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At a named scope it runs its epochs without a target; where its own scope has no layers, what there is is told."""
    command = [*UNLEARN, "--preset", "paper-llm", "--test", "unseen.jsonl"]
    said = told(capsys, command)
    assert "model.layers.[19-21].self_attn.*" in said
    assert not (known / "out").exists()
    named = [*command, "--scope", "model.layers.1.self_attn.*", "--epochs", "2", "--learning-rate", "0.001", "--quiet"]
    assert main(named) == 0, capsys.readouterr().err
    record = json_files.read(known / "out/model.record.json")
    assert isinstance(record, Record)
    assert (record.method, record.method_source, record.reason, record.reached) == (
        "imu",
        "--preset paper-llm",
        "epochs",
        None,
    )
    assert all(name.startswith("model.layers.1.self_attn.") for name in record.changed)
    assert (record.options["l1"].value, record.options["clip_quantile"].value) == (0.02, 0.93)
    assert record.start.loss is not None
    assert record.end.loss is not None
    assert record.end.loss > record.start.loss


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--preset", "paper-llm", "--until", "forget.exact_memorization<=0.5"], "--until: --preset paper-llm runs"),
        (["--preset", "paper"], "--preset paper: is for another kind of model"),
        (["--preset", "paper-llm", "--scope", "all"], "--preset paper-llm: lm_head"),
    ],
)
def test_the_preset_says_what_it_is_not_for(
    known: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    """Targets, other kinds of models, and the head among what moves."""
    assert said in told(capsys, [*UNLEARN, "--test", "unseen.jsonl", *options])
