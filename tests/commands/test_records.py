"""The commands on records: from a list to a folder that transformers loads again and generates with, and what is refused on the way."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import small_texts
import torch
from conftest import listing
from safetensors.torch import load_file
from test_security import OUTSIDE, audited

from imu_cli.cli import main
from imu_cli.commands import opening, processes
from imu_cli.config.commands import EvaluateConfig
from imu_cli.events import Silent
from imu_cli.features import cache, generation

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")
JOB = [
    "unlearn",
    "model",
    "--forget",
    "forget.jsonl",
    "--scope",
    "last-block",
    "--learning-rate",
    "0.02",
    "--batches",
    "40",
]


@pytest.fixture
def work(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with the small language model and its lists."""
    shutil.copytree(records, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_records_are_unlearned_below_the_head(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forgotten records become less likely, nothing but the last block differs, and the folder loads and generates; nobody is called."""
    with audited() as events:
        assert main([*JOB, "--test", "unseen.jsonl", "-o", "out"]) in (0, 3)
    assert not [event for event in events if event in OUTSIDE]
    record = json.loads((work / "out/model.record.json").read_text())
    assert record["scenario"] == "record"
    assert record["end"]["loss"] > record["start"]["loss"] + 0.05
    before, after = load_file(work / "model/model.safetensors"), load_file(work / "out/model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == set(record["changed"])
    assert all(name.startswith(("model.layers.2.", "model.norm.")) for name in moved)
    text = (work / "out/model.record.json").read_text() + capsys.readouterr().out
    assert all(row["answer"] not in text for row in map(json.loads, (work / "forget.jsonl").read_text().splitlines()))
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "out")
    assert model.config.tie_word_embeddings
    asked = tokenizer("Question: Where does Alra live?\nAnswer:", return_tensors="pt")
    assert model.generate(**asked, max_new_tokens=4).shape[1] > asked["input_ids"].shape[1]


def test_the_same_seed_gives_the_same_bytes(work: Path) -> None:
    """Same seed and plan: the same file."""
    for name in ("one", "two"):
        assert main([*JOB, "--test", "unseen.jsonl", "--batches", "10", "-o", name, "-q"]) in (0, 3)
    assert (work / "one/model.safetensors").read_bytes() == (work / "two/model.safetensors").read_bytes()


def test_the_model_is_held_to_answers_of_its_own(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three to each anchored question, drawn by the seed, beside the unseen records; nothing of them is written."""
    assert main([*JOB, "--reference", "unseen.jsonl", "--batches", "5", "-o", "out"]) in (0, 3)
    said = capsys.readouterr().err
    own = re.search(r"anchored too: (\d+) answers of the model's own", said)
    assert own is not None
    text = (work / "out/model.record.json").read_text()
    record = json.loads(text)
    unseen = [json.loads(line) for line in Path("unseen.jsonl").read_text().splitlines()]
    assert len(unseen) < record["scope"]["anchor"] == len(unseen) + int(own.group(1)) <= 4 * len(unseen)
    assert not any(row["answer"] in text or row["question"] in text for row in unseen)


def test_a_reference_model_gives_targets_token_by_token(work: Path) -> None:
    """A model that never saw the records says how likely each token is to be; its own level ends the run."""
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "model")
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    shutil.copytree(work / "model", work / "blank")
    model.save_pretrained(work / "blank")
    assert main([*JOB, "--reference-model", "blank", "-o", "out", "-q"]) in (0, 3)
    record = json.loads((work / "out/model.record.json").read_text())
    assert "reference model" in record["target"]["source"]
    assert record["end"]["loss"] > record["start"]["loss"] + 0.05


def test_the_level_of_a_reference_model_is_its_own_loss(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the reference model has it, tokens that it finds likelier than the model too; not of the smaller of both, which is too high."""
    model = transformers.AutoModelForCausalLM.from_pretrained(work / "model")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * parameter.std() * torch.randn_like(parameter))
    shutil.copytree(work / "model", work / "near")
    model.save_pretrained(work / "near")
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "model")
    losses = []
    for line in (work / "forget.jsonl").read_text().splitlines():
        row = json.loads(line)
        before = f"Question: {row['question']}\nAnswer:"
        asked, whole = (tokenizer(text)["input_ids"] for text in (before, f"{before} {row['answer']}"))
        ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(asked) - 1 : -1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, ids[0, len(asked) :])))
    main([*JOB[:-1], "1", "--reference-model", "near", "-o", "out"])
    told = re.search(r"cross-entropy at least (\d+\.\d+)", " ".join(capsys.readouterr().err.split()))
    assert told is not None
    assert float(told[1]) == pytest.approx(sum(losses) / len(losses), abs=0.0051)


def test_answers_do_not_follow_the_model_s_own_settings(work: Path) -> None:
    """Other end tokens and penalties of a generation config would be another model; without an end token an answer goes on."""
    config = EvaluateConfig(forget=["forget.jsonl"], test="unseen.jsonl", device="cpu")
    opened = opening.open_all(work / "model", config, Silent())
    assert opened.network is not None
    samples = opened.forget.samples
    wanted = generation.answers(opened, samples, [0, 1], longest=12)
    own = opened.network.model.generation_config
    own.eos_token_id = list(range(opened.head.matrix.shape[0]))  # type: ignore[union-attr]
    own.repetition_penalty = 5.0  # type: ignore[union-attr]
    assert generation.answers(opened, samples, [0, 1], longest=12) == wanted
    endless = opening.open_all(work / "model", replace(config, end_token=False), Silent())
    assert endless.network is not None
    endless.network.model.generation_config.eos_token_id = list(range(endless.head.matrix.shape[0]))  # type: ignore[union-attr]
    (one,) = generation.answers(endless, samples, [0], longest=12)
    assert len(one) >= len(wanted[0]) > 0


def test_a_target_ends_the_run(work: Path) -> None:
    """``--until`` alone says how far, by what can be read out."""
    assert main([*JOB, "--until", "forget.exact_memorization<=0.6", "-o", "out", "-q"]) in (0, 3)
    assert json.loads((work / "out/model.record.json").read_text())["end"]["forget"] <= 0.675


REFUSED = {
    "nothing says how far": (["-o", "out"], "--test: not given; records are to become as likely as ones"),
    "a target of classifiers": (["--until", "forget.accuracy<=0.5"], "no target of a language model"),
    "a target that is no fraction": (["--until", "forget.extraction_strength<=3"], "no target of a language model"),
    "classes": (["--test", "unseen.jsonl", "--scenario", "class"], "--scenario: is for classifiers, and this is a language model"),
    "rows of a head": (["--test", "unseen.jsonl", "--max-auc", "0.6"], "--max-auc: is for classifiers"),
    "preprocessing": (["--test", "unseen.jsonl", "--preprocess", "imagenet"], "--preprocess: is for images"),
    "a label": (["--test", "unseen.jsonl", "--label", "cat"], "--label cat: is for classifiers"),
    "a template without its field": (["--test", "unseen.jsonl", "--template", "Q {completion}"], "has no {prompt}"),
    "forget records in the test data": (["--test", "train.jsonl", "--data", "train.jsonl"], "held-out data must not hold forget samples"),
    "nothing but twins in the test data": (["--test", "forget.jsonl"], "held-out data must not hold forget samples"),
    "a scope of nothing": (["--test", "unseen.jsonl", "--scope", "layer9.*"], "matches no module"),
    "a task of no text": (["--test", "unseen.jsonl", "--task", "embedding"], "embedding"),
    "nobody to share with": (["--test", "unseen.jsonl", "--shard"], "--shard: there is one process"),
    "no such reference": (["--reference-model", "nowhere"], "nowhere"),
    "a test set of texts with labels alone": (["--test", "labels.csv"], "labels.csv"),
    "a test set of words": (["--test", "words.jsonl"], "words.jsonl: holds words, and model is a language model; give records"),
    "an anchor of words": (["--test", "unseen.jsonl", "--anchor", "words.jsonl"], "words.jsonl: holds words, and model is a language model"),
    "a task of classes": (["--test", "unseen.jsonl", "--task", "classification"], "which writes text and has no classes; leave the option"),
    "no metric of any model": (["--until", "forget.foo<=0.5"], "not a target; write 'forget.accuracy<=0.92', with a fraction"),
    "steps of a head": (
        ["--test", "unseen.jsonl", "--scope", "head", "--untie", "--batches", "3"],
        "--batches: for layers below the head; name them, for example --scope last-block, or leave out",
    ),
    "a reference that classifies": (
        ["--test", "unseen.jsonl", "--reference-model", "bert/net"], "bert/net: is BertForSequenceClassification, which writes no text",
    ),
    "a reference of other words": (
        ["--test", "unseen.jsonl", "--reference-model", "other"], "other: its tokenizer gives 1 of",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_means_nothing_is_refused(work: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each ends with a message that says what was found and what to do, and nothing is written."""
    (work / "labels.csv").write_text("label,note\na,b\n")
    (work / "words.jsonl").write_text('{"tokens": ["Alra"], "tags": ["O"]}\n')
    words, said = REFUSED[case]
    if "bert/net" in words:
        (work / "bert").mkdir()
        small_texts.write(work / "bert")
    if "other" in words:
        shutil.copytree(work / "model", work / "other")
        tokenizer = json.loads((work / "other/tokenizer.json").read_text())
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["unheard"] = vocabulary.pop("?")
        tokenizer["model"]["vocab"] = vocabulary | {"?": len(vocabulary)}
        (work / "other/tokenizer.json").write_text(json.dumps(tokenizer))
    before = listing(work)
    assert main([*JOB, *words]) in (2, 4)
    found = " ".join(capsys.readouterr().err.split())
    assert said in found
    assert "Traceback" not in found
    assert listing(work) == before


def test_no_class_of_records_is_forgotten(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records have no classes, and none of that name is all of them."""
    assert main(["influence", "model", "--data", "train.jsonl", "--forget", "class=x", "-q"]) == 2
    said = "imu: class=x: a language model has no classes; name rows of train.jsonl by index, id or group\n"
    assert capsys.readouterr().err == said


DEEPER = ["--scope", "last-block"]
SHARED = {
    "less than float32": ([*DEEPER, "--precision", "bfloat16"], "--shard: weights are gathered in float32, and --precision bfloat16"),
    "Apple's GPUs": ([*DEEPER, "--device", "mps"], "--shard: torch sends nothing between Apple's GPUs; use --device cpu"),
    "the head alone": (["--scope", "head", "--untie"], "torchrun: the head alone needs one process; start imu without it, or name a deeper"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHARED)
def test_what_cannot_be_dealt_out_is_refused(
    work: Path, case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--shard`` says what does not go with it before anything is sent, and nothing is written."""
    monkeypatch.setattr(processes, "ranks", lambda *_: contextlib.nullcontext(processes.Ranks(0, 2)))
    words, said = SHARED[case]
    before = listing(work)
    assert main(["unlearn", "model", "--forget", "forget.jsonl", "--test", "unseen.jsonl", "--shard", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert listing(work) == before


STOPPED = """
import signal, sys
from imu_cli import __main__, signals
from imu_cli.commands import resuming
resuming.APART = 0.0
save, seen = resuming.Progress.save, []
def counted(*given):
    save(*given)
    seen.append(1)
    if len(seen) == 3:
        signals._noted.append(signal.SIGINT)
if "--resume" not in sys.argv:
    resuming.Progress.save = counted
__main__.main()
"""


@pytest.mark.slow
def test_a_model_in_parts_is_unlearned_like_a_whole_one(work: Path) -> None:
    """``--shard`` in two processes: the tensors, looks and record of one, but for float error; and stopped, it goes on to the same bytes."""
    command = [*JOB, "--reference", "unseen.jsonl", "--batches", "10", "--device", "cpu"]
    assert main([*command, "-o", "one", "-q"]) in (0, 3)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    (work / "stopped.py").write_text(STOPPED)
    said = {}
    for name, start, more in (
        ("two", ["-m", "imu_cli"], []), ("three", ["stopped.py"], []), ("three", ["stopped.py"], ["--resume"])
    ):  # fmt: skip
        ended = subprocess.run(
            [*launch, *start, *command, "--shard", "-o", name, *more], env=environment, check=False, capture_output=True, text=True, timeout=240
        )  # fmt: skip
        said[name, *more] = ended.stderr
    assert "10,440 of the 20,880 weights that move in this one" in said["two",], said["two",]
    assert "interrupted; no output was written" in said["three",]
    assert "going on from step 3 of an earlier run" in said["three", "--resume"]
    assert list(cache.folder().glob("training-*")) == []
    before, one, two = (load_file(f"{name}/model.safetensors") for name in ("model", "one", "two"))
    assert Path("three/model.safetensors").read_bytes() == Path("two/model.safetensors").read_bytes()
    assert {n for n in one if not torch.equal(one[n], before[n])} == {
        n for n in two if not torch.equal(two[n], before[n])
    }
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4 * float(tensor.abs().max()))
    looks = [json.loads(Path(name, "model.record.json").read_text())["trajectory"] for name in ("one", "two")]
    for mine, theirs in zip(*looks, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), name


def test_images_are_no_records(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A language model takes records, and says so of anything else."""
    (work / "images").mkdir()
    assert main(["unlearn", "model", "--forget", "images", "--test", "unseen.jsonl", "--scope", "last-block"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_too_long_a_record_is_named(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line of a record that the model does not take, before anything is computed."""
    row = {"question": "Where? " * 60, "answer": "In Rome."}
    (work / "long.jsonl").write_text((work / "forget.jsonl").read_text() + json.dumps(row) + "\n")
    assert main(["unlearn", "model", "--forget", "long.jsonl", "--test", "unseen.jsonl", "--scope", "last-block"]) == 2
    assert "long.jsonl:6: is" in " ".join(capsys.readouterr().err.split())


def test_the_line_to_copy_is_one_for_records(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``imu inspect`` finds the head, says what it is tied to, and shows the command; features of tokens are no file."""
    assert main(["inspect", "model"]) == 0
    found = " ".join(capsys.readouterr().out.split())
    assert "tied to model.embed_tokens.weight" in found
    assert "next: imu unlearn model --forget forget.jsonl --test unseen.jsonl --scope last-block" in found
    assert main(["features", "model", "--data", "train.jsonl", "-o", "f.safetensors"]) == 2
    assert "is a language model" in " ".join(capsys.readouterr().err.split())
    assert not (work / "f.safetensors").exists()
