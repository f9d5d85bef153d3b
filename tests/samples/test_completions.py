"""The input step of language models: which tokens are a completion's, and what a template may be."""

import json
from pathlib import Path
from typing import Any

import pytest

from imu_cli.errors import ImuError, InvalidRowsError
from imu_cli.features import tokens
from imu_cli.samples.dataset import SampleSet
from imu_cli.samples.manifest import open_source
from imu_cli.samples.texts import completions, tokenizers
from imu_cli.samples.texts.completions import Completions
from imu_cli.samples.texts.records import Record

transformers = pytest.importorskip("transformers")
CHAT = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model(records: Path) -> Any:
    """The small model, for what it says of its tokens."""
    return transformers.AutoModelForCausalLM.from_pretrained(records / "model")


def step(
    records: Path,
    model: Any,
    template: str | None = None,
    truncate: bool = False,
    length: int | None = None,
    end: bool = True,
) -> Completions:
    tokenizer = tokenizers.load(records / "model", model)
    if length is not None:
        tokenizer = tokenizers.Tokenizer(tokenizer.made, tokenizer.source, tokenizer.sha256, length, tokenizer.padding)
    tokenizer.made.chat_template = CHAT
    return completions.of(tokenizer, model, template, truncate, end)


def listed(folder: Path, rows: list[dict[str, object]]) -> SampleSet:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return open_source(str(path), "test")


def test_the_completion_is_what_follows_the_template_and_ends(records: Path, model: Any, tmp_path: Path) -> None:
    """A completion's tokens begin with the one that holds its first character, and end with the end token."""
    made = step(records, model)
    samples = listed(tmp_path, [{"prompt": "Where does Alra live?", "completion": "Alra lives in Oslo as a poet."}])
    (found,) = made.encoded(samples, [0])
    answer = found.ids[len(found) - found.answer :]
    assert made.tokenizer.made.decode(answer[:-1]) == " Alra lives in Oslo as a poet."
    assert answer[-1] == made.end
    whole = made.tokenizer.made.decode(found.ids[:-1])
    assert whole == "Question: Where does Alra live?\nAnswer: Alra lives in Oslo as a poet."


def test_what_is_asked_ends_where_the_completion_begins(records: Path, model: Any, tmp_path: Path) -> None:
    """What generation starts from, and the completion, are the record's tokens, each once."""
    made = step(records, model)
    samples = listed(tmp_path, [{"prompt": "Where does Alra live?", "completion": "Alra lives in Oslo."}])
    (found,) = made.encoded(samples, [0])
    asked = made.asked(Record("Where does Alra live?", "Alra lives in Oslo."))
    assert asked.tolist() == found.ids[: len(found) - found.answer].tolist()


def test_a_conversation_ends_with_the_assistant_s_turn(records: Path, model: Any, tmp_path: Path) -> None:
    """The completion of a conversation is its last turn with the end token, and not the line end that templates write behind it."""
    made = step(records, model)
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Rome."}]
    (found,) = made.encoded(listed(tmp_path, [{"messages": turns}]), [0])
    answer = found.ids[len(found) - found.answer :]
    assert made.tokenizer.made.decode(answer[:-1]) == "In Rome."
    assert answer[-1] == made.end


def test_nothing_ends_a_completion_where_texts_are_parts_of_longer_ones(
    records: Path, model: Any, tmp_path: Path
) -> None:
    """Without the end token a record is the same but for it, a conversation too; a record of such a run says so, and is followed."""
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Rome."}]
    samples = [
        listed(tmp_path, [row])
        for row in (
            {"text": "Alra lives in Oslo."},
            {"prompt": "Where?", "completion": "In Rome."},
            {"messages": turns},
        )
    ]
    made = step(records, model, end=False)
    for one in samples:
        (found,), (ended,) = made.encoded(one, [0]), step(records, model).encoded(one, [0])
        assert found.ids.tolist() == ended.ids[:-1].tolist()
        assert found.answer == ended.answer - 1
        answers = tokens.answers_of(one, made)
        assert not bool(answers.ends.any())
    told = made.described()
    assert told["end"] is None
    assert completions.of(made.tokenizer, model, None, False, None, told).end is None
    with pytest.raises(ImuError, match="--end-token: the run that is followed took completions without an end token"):
        completions.of(made.tokenizer, model, None, False, True, told)
    with pytest.raises(ImuError, match="--no-end-token: the run that is followed took completions with an end token"):
        completions.of(made.tokenizer, model, None, False, False, step(records, model).described())


def test_a_tokenizer_without_an_end_token(records: Path, model: Any) -> None:
    """It is said what to do; with --no-end-token none is needed."""
    bare = tokenizers.load(records / "model", model)
    bare.made.eos_token = None
    with pytest.raises(ImuError, match=r"names no end token.*--no-end-token"):
        completions.of(bare, model, None, False)
    assert completions.of(bare, model, None, False, end_token=False).end is None


def test_a_text_alone_is_predicted_from_its_second_token_on(records: Path, model: Any, tmp_path: Path) -> None:
    """Nothing stands before the first token that could predict it."""
    made = step(records, model)
    (found,) = made.encoded(listed(tmp_path, [{"text": "Alra lives in Oslo."}]), [0])
    assert found.answer == len(found) - 1


def test_records_are_padded_on_the_right(records: Path, model: Any, tmp_path: Path) -> None:
    """What a causal model sees of a record does not depend on its neighbours."""
    made = step(records, model)
    samples = listed(
        tmp_path, [{"prompt": "a", "completion": "b"}, {"prompt": "Where does Alra live?", "completion": "In Rome."}]
    )
    batch = made.together(samples, [0, 1])
    assert isinstance(batch, dict)
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist(), reverse=True)
    assert bool(batch["attention_mask"][1].all())


def test_too_long_a_record_is_told_and_may_be_cut(records: Path, model: Any, tmp_path: Path) -> None:
    """Beyond the model's length is an error with its line; ``--truncate`` cuts, and a record of which no completion is left is refused."""
    samples = listed(tmp_path, [{"prompt": "Where does Alra live?", "completion": "In Rome."}])
    with pytest.raises(InvalidRowsError, match=r"rows\.jsonl:1: is \d+ tokens, and the model takes 12"):
        step(records, model, length=12).encoded(samples, [0])
    whole = step(records, model).encoded(samples, [0])[0]
    (cut,) = step(records, model, truncate=True, length=len(whole) - 2).encoded(samples, [0])
    assert cut.answer == whole.answer - 2
    with pytest.raises(InvalidRowsError, match="no token of its completion is left"):
        step(records, model, truncate=True, length=8).encoded(samples, [0])


@pytest.mark.parametrize(("template", "said"), [
    ("Answer: {completion}", "has no {prompt}"),
    ("{prompt} {answer}", "has the field {answer}"),
    ("{prompt}", "has to end with {completion}"),
    ("{prompt} {completion} ok", "has to end with {completion}"),
    ("{prompt} {completion}{completion}", "which comes once"),
    ("{prompt} {completion", "its braces do not pair up"),
    ("{prompt!r} {completion}", "has the field {prompt!r}"),
    ("{prompt:>9} {completion}", "has the field {prompt:>9}"),
    ("{{prompt}} {completion}", "has no {prompt}"),
])  # fmt: skip
def test_templates_that_mean_nothing_are_refused(template: str, said: str) -> None:
    """A template has a place for the prompt and ends with the completion."""
    with pytest.raises(ImuError) as caught:
        completions.refuse_template(template)
    assert said in str(caught.value)


def test_a_template_may_come_with_its_line_ends_written_out(records: Path, model: Any) -> None:
    r"""A shell hands ``\n`` in single quotes over as two characters."""
    assert step(records, model, "Q: {prompt}\\nA: {completion}").template == "Q: {prompt}\nA: {completion}"


def test_braces_of_the_text_stand_twice_in_a_template(records: Path, model: Any) -> None:
    """As in Python's own format strings; braces of a prompt are its own."""
    made = step(records, model, '{{"q": "{prompt}"}} {completion}')
    assert made.prompt(Record("{a}", "b")) == '{"q": "{a}"} '


def test_conversations_need_a_template(records: Path, model: Any, tmp_path: Path) -> None:
    """Without one it is said which file lacks it; what it does not take is a problem of each line."""
    made = step(records, model)
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In Rome."}]
    samples = listed(tmp_path, [{"messages": turns}, {"messages": [{"role": "system", "content": "x"}, *turns]}])
    made.tokenizer.made.chat_template = None
    with pytest.raises(ImuError, match=r"tokenizer\.json: has no chat template"):
        made.encoded(samples, [0, 1])
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    made.tokenizer.made.chat_template = refusal + CHAT
    with pytest.raises(InvalidRowsError) as caught:
        made.encoded(samples, [0, 1])
    assert len(caught.value.problems) == 1
    assert "rows.jsonl:2: the tokenizer's chat template does not take its turns (no system turns)" in str(
        caught.value.problems[0]
    )
    made.tokenizer.made.chat_template = (
        "{% for turn in messages if turn.role != 'assistant' %}{{ turn.content }}{% endfor %}"
    )
    with pytest.raises(InvalidRowsError, match="chat template writes nothing of its last turn"):
        made.encoded(samples, [0])


def test_an_answer_alone_is_what_the_assistant_says(records: Path, model: Any, tmp_path: Path) -> None:
    """Of a conversation of one turn, the mark of who speaks is no part of the completion."""
    made = step(records, model)
    (found,) = made.encoded(listed(tmp_path, [{"messages": [{"role": "assistant", "content": "In Rome."}]}]), [0])
    assert made.tokenizer.made.decode(found.ids[len(found) - found.answer : -1]) == "In Rome."


def test_an_end_alone_is_no_completion(records: Path, model: Any, tmp_path: Path) -> None:
    """There is nothing in it to forget."""
    made = step(records, model)
    samples = listed(tmp_path, [{"prompt": "Where?", "completion": made.tokenizer.made.eos_token}])
    with pytest.raises(InvalidRowsError, match=r"rows\.jsonl:1: no token of its completion is left"):
        made.encoded(samples, [0])
