"""Options: made from the config classes, merged as flags over environment over YAML over defaults, with their origins."""

import inspect
import os
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.models import OptionInfo

from imu_cli import cli
from imu_cli.cli import main
from imu_cli.config.commands import EvaluateConfig, InfluenceConfig, UnlearnConfig
from imu_cli.config.fields import Option
from imu_cli.errors import ImuError
from imu_cli.files.paths import PathKind, placed, relative_to
from imu_cli.flags import CONFIG_FILE, merge, path_kinds, read_yaml, takes

CONFIGS: dict[str, type[Any]] = {"influence": InfluenceConfig, "unlearn": UnlearnConfig, "evaluate": EvaluateConfig}
EACH = sorted({(command, field.name) for command, config in CONFIGS.items() for field in fields(config)})


def kind_of(config: type[Any], name: str) -> Any:
    """An option's type, without None and without the mapping that only YAML can hold."""
    annotation = get_args(get_type_hints(config, include_extras=True)[name])[0]
    if get_origin(annotation) in (list, Literal):
        return annotation
    parts = [part for part in get_args(annotation) if part is not type(None) and get_origin(part) is not dict]
    return parts[0] if parts else annotation


def option_of(config: type[Any], name: str) -> Option:
    """What the config class says of an option."""
    hint = get_type_hints(config, include_extras=True)[name]
    return next(item for item in get_args(hint) if isinstance(item, Option))


@cache
def command_of(name: str) -> tuple[typer.Typer, list[Any]]:
    """A command with a config's flags, and the list that its calls are added to."""
    app, calls = typer.Typer(), []

    @app.command()
    @takes(next(config for config in CONFIGS.values() if config.__name__ == name))
    def run(config: Any, origins: Any) -> None:
        calls.append((config, origins))

    return app, calls


def parsed(config: type[Any], *argv: str) -> tuple[Any, dict[str, str]]:
    """Config and origins as a command gets them from a command line."""
    app, calls = command_of(config.__name__)
    app(args=list(argv), standalone_mode=False)
    found: tuple[Any, dict[str, str]] = calls.pop()
    return found


@pytest.fixture(autouse=True)
def _no_options_but_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """``pytest --device`` is an option from the environment, and here it is counted where options come from."""
    monkeypatch.delenv("IMU_DEVICE", raising=False)


def samples(kind: Any) -> list[Any]:
    """Three values of a type, different where it has as many."""
    if get_origin(kind) is Literal:
        return (list(get_args(kind)) * 3)[:3]
    if get_origin(kind) is list:
        return [["a"], ["b"], ["c"]]
    choices: dict[Any, list[Any]] = {
        bool: [True, False, True],
        int: [3, 4, 5],
        float: [0.55, 0.7, 0.85],
        str: ["a", "b", "c"],
    }
    return choices[kind]


def as_flag(name: str, value: Any) -> list[str]:
    """A value on the command line."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [flag, *value] if isinstance(value, list) else [flag, str(value)]


def as_text(value: Any) -> str:
    """A value in the environment."""
    return " ".join(value) if isinstance(value, list) else str(value)


FLAGS = [(command, name) for command, name in EACH if not option_of(CONFIGS[command], name).file_only]


@pytest.mark.parametrize(("command", "name"), FLAGS)
def test_flags_over_environment_over_yaml_over_defaults(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every option of every command: the strongest source that is given wins, and is said to be the origin."""
    config = CONFIGS[command]
    from_flag, from_environment, from_file = samples(kind_of(config, name))
    default = getattr(config(), name)
    if kind_of(config, name) is bool:
        usual = bool(default)  # one that is not said is followed from elsewhere
        from_flag, from_environment, from_file = not usual, usual, not usual
    monkeypatch.chdir(tmp_path)
    Path("imu.yaml").write_text(yaml.safe_dump({name.replace("_", "-"): from_file}))
    assert parsed(config)[1][name] == "default"
    assert getattr(parsed(config)[0], name) == default
    made, origins = parsed(config, "--config", "imu.yaml")
    assert (getattr(made, name), origins[name]) == (from_file, "file")
    monkeypatch.setenv(f"IMU_{name.upper()}", as_text(from_environment))
    made, origins = parsed(config, "--config", "imu.yaml")
    assert (getattr(made, name), origins[name]) == (from_environment, "environment")
    made, origins = parsed(config, "--config", "imu.yaml", *as_flag(name, from_flag))
    assert (getattr(made, name), origins[name]) == (from_flag, "flag")
    assert {origin for key, origin in origins.items() if key != CONFIG_FILE} == {"default", "flag"}


def test_every_option_names_its_flag() -> None:
    """One that leaves its name to typer has no flag at all under typer 0.27."""
    found = []
    for command in (*cli.app.registered_commands, *cli.cache_app.registered_commands):
        assert command.callback is not None
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            options = [item for item in get_args(parameter.annotation) if isinstance(item, OptionInfo)]
            # In an annotation the first name stands where typer has a default, until typer moves it.
            found += [(name, [option.default, *(option.param_decls or ())]) for option in options]
    assert len(found) > 100
    assert [name for name, flags in found if not any(str(flag).startswith("--") for flag in flags)] == []


@pytest.mark.parametrize("command", CONFIGS)
def test_every_option_is_in_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` of each command shows a flag and the whole help text of each of its options."""
    assert main([command, "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for field in fields(CONFIGS[command]):
        option = option_of(CONFIGS[command], field.name)
        assert len(option.help) > 10
        assert option.help.endswith(".")
        assert ("--" + field.name.replace("_", "-") in shown) != option.file_only
        assert option.file_only or "".join(option.help.split()) in shown


@pytest.mark.parametrize("command", CONFIGS)
def test_defaults_stand_once(command: str) -> None:
    """Without options the command gets the config's own defaults: flags have none of their own."""
    config = CONFIGS[command]
    assert parsed(config)[0] == config()


def test_one_yaml_file_serves_all_commands(tmp_path: Path) -> None:
    """Keys of other commands' options are allowed and ignored; keys with dashes and underscores are the same."""
    (tmp_path / "imu.yaml").write_text("max-steps: 7\nshow: 3\nrequire_on: value\nbatch_size: 9\nseed:\n")
    path = str(tmp_path / "imu.yaml")
    assert merge(UnlearnConfig, {}, path)[0] == UnlearnConfig(max_steps=7, batch_size=9)
    assert merge(InfluenceConfig, {}, path)[0] == InfluenceConfig(show=3, batch_size=9)
    assert merge(EvaluateConfig, {}, path)[0] == EvaluateConfig(require_on="value", batch_size=9)


YAML_VALUES: dict[str, tuple[str, Any]] = {
    "step: 1e-3": ("step", 0.001),
    "learning_rate: 1E-4": ("learning_rate", 0.0001),
    "cache: no": ("cache", False),
    "force: yes": ("force", True),
    "cache: off": ("cache", False),
    "damping: 0.02": ("damping", "0.02"),
    "damping: 1e-3": ("damping", "1e-3"),
    "damping: relative:0.1": ("damping", "relative:0.1"),
    "label: 3": ("label", "3"),
    "label: '3'": ("label", "3"),
    "head: classifier.3": ("head", "classifier.3"),
    "forget: class=3": ("forget", ["class=3"]),
    "forget: [class=3, class=5]": ("forget", ["class=3", "class=5"]),
    "arch_arg: width=2": ("arch_arg", ["width=2"]),
    "arch_arg: {width: 2, act: gelu, norm: null, bias: no, eps: 1e-5}": (
        "arch_arg", ["width=2", "act=gelu", "norm=null", "bias=false", "eps=1e-5"],
    ),
    "preprocess: {size: 8, mean: [0.5]}": ("preprocess", {"size": 8, "mean": [0.5]}),
    "max_head_change: null": ("max_head_change", None),
    "test: ~": ("test", None),
}  # fmt: skip


@pytest.mark.parametrize("text", YAML_VALUES)
def test_values_as_people_write_them_in_yaml(tmp_path: Path, text: str) -> None:
    """1e-3, which PyYAML takes for text, is a number; numbers are text where text is meant; yes and no are switches."""
    name, value = YAML_VALUES[text]
    (tmp_path / "imu.yaml").write_text(text + "\n")
    made, origins = merge(UnlearnConfig, {}, str(tmp_path / "imu.yaml"))
    assert getattr(made, name) == value
    assert origins[name] == ("default" if value is None else "file")


BAD_YAML: dict[str, str] = {
    "head: no": "--config: head False: input should be a valid string",
    "scenario: no": "--config: scenario False: ",
    "max_steps: 1e3.5": "--config: max_steps '1e3.5': ",
    "max_steps: 2.5": "--config: max_steps 2.5: ",
    "step: fast": "--config: step 'fast': ",
    "step: 1": "--config: step 1: input should be less than 1",
    "cache: maybe": "--config: cache 'maybe': ",
    "data: [a, b]": "--config: data ['",
    "data: ''": "--config: data: is empty; leave it out, or give a value",
    "no: 3": "'no' is not an option",
    "3: 3": "'3' is not an option",
    "seed: yes": "--config: seed True: a switch",
    "keep: .nan": "--config: keep nan: ",
    "seed: 99999999999999999999": "--config: seed 99999999999999999999: not a number that can be used",
    "stepp: 0.1": "'stepp' is not an option (did you mean 'step'?)",
    "step: {": "not YAML",
    "step: 0.1\n step: 0.2": "not YAML",
    "just text": "not a mapping",
    "[step]": "not a mapping",
}


@pytest.mark.parametrize("text", BAD_YAML)
def test_values_that_yaml_reads_otherwise_are_an_error(tmp_path: Path, text: str) -> None:
    """What PyYAML reads as something that the option cannot be is refused with the key and what was read."""
    (tmp_path / "imu.yaml").write_text(text + "\n")
    with pytest.raises(ImuError) as caught:
        merge(UnlearnConfig, {}, str(tmp_path / "imu.yaml"))
    assert BAD_YAML[text] in str(caught.value)


def test_a_bad_value_is_blamed_on_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the flag, the variable or the key that the value came from, and all bad values at once."""
    (tmp_path / "imu.yaml").write_text("max_drop: 2\n")
    monkeypatch.setenv("IMU_KEEP", "0")
    with pytest.raises(ImuError) as caught:
        parsed(UnlearnConfig, "--config", str(tmp_path / "imu.yaml"), "--step", "1.5")
    assert sorted(line.partition(":")[0] for line in str(caught.value).splitlines()) == [
        "--config",
        "--step 1.5",
        "IMU_KEEP 0.0",
    ]


@pytest.mark.parametrize("name", [name for name, kind in path_kinds(UnlearnConfig).items() if kind])
def test_an_empty_value_is_no_value(name: str) -> None:
    """``--test "$TEST"`` with TEST unset is refused: an empty path is neither no path nor the current folder."""
    with pytest.raises(ImuError, match=f"--{name.replace('_', '-')}: is empty|'': "):
        merge(UnlearnConfig, {name: ("", "flag")}, None)


def test_paths_in_yaml_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, the paths of a YAML file lead to the same files; flags stay relative to the current folder."""
    project = tmp_path / "project"
    elsewhere = tmp_path / "else" / "where"
    elsewhere.mkdir(parents=True)
    (project / "conf").mkdir(parents=True)
    for name in ("model.py", "conf/steps.yaml", "forget.csv", "names.txt", "holdout"):
        (project / name).write_text(name)
    absolute = str(tmp_path / "absolute")
    values = {
        "arch": "../model.py:net", "preprocess": "steps.yaml", "forget": ["../forget.csv", "class=3", "-"],
        "classes": "../names.txt", "data": "cifar10:../c10#test", "test": "../holdout", "reference": absolute,
    }  # fmt: skip
    (project / "conf" / "imu.yaml").write_text(yaml.safe_dump(values))
    for here, config in (
        (project / "conf", "imu.yaml"),
        (project, "conf/imu.yaml"),
        (elsewhere, "../../project/conf/imu.yaml"),
        (elsewhere, str(project / "conf/imu.yaml")),
    ):
        monkeypatch.chdir(here)
        made, _ = parsed(UnlearnConfig, "--config", config)
        assert made.arch.endswith("model.py:net")
        assert Path(made.arch.removesuffix(":net")).read_text() == "model.py"
        assert Path(made.preprocess).read_text() == "conf/steps.yaml"
        assert Path(made.forget[0]).read_text() == "forget.csv"
        assert made.forget[1:] == ["class=3", "-"]
        assert Path(made.classes).read_text() == "names.txt"
        assert Path(made.test).read_text() == "holdout"
        assert os.path.abspath(made.data.removeprefix("cifar10:").removesuffix("#test")) == str(project / "c10")
        assert os.path.abspath(made.reference) == absolute
        assert parsed(UnlearnConfig, "--config", config, "--test", "x/y")[0].test == "x/y"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arch", "torchvision:resnet18"),
        ("arch", "package.module:net"),
        ("preprocess", "imagenet"),
        ("forget", ["index=0:5", "-"]),
    ],
)
def test_what_is_no_path_is_left_alone(tmp_path: Path, key: str, value: Any) -> None:
    """Registry names, modules, presets, selectors and standard input are not taken for files beside the YAML file."""
    (tmp_path / "imu.yaml").write_text(yaml.safe_dump({key: value}))
    assert read_yaml(tmp_path / "imu.yaml") == {key: value}


paths = st.builds(
    lambda root, parts: root + "/".join(parts),
    st.sampled_from(["", "/", "../", "./"]),
    st.lists(st.sampled_from(["a", "b c", "..", "ü", "d.e", "train", "class=x.csv"]), min_size=1, max_size=4),
)
FORMS: dict[PathKind, list[tuple[str, str, str]]] = {
    "file": [("", "", "")],
    "data": [("", "", ""), ("", "", "#test"), ("imagefolder:", "", ""), ("cifar10:", "", "#train"), ("svhn:", "", "")],
    "forget": [("", "", ""), ("", "/f.csv", "")],
    "arch": [("", "/m.py", ":net")],
    "preprocess": [("", "/p.yaml", ""), ("", "/p.yml", "")],
}
forms = st.sampled_from([(kind, *form) for kind, all_forms in FORMS.items() for form in all_forms])


def test_home_is_the_same_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` of a YAML file in another folder, and into a record and back."""
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    for kind, value in (("data", "cifar10:~/data#test"), ("file", "~/data"), ("forget", "~/data/f.csv")):
        for found in (placed(value, kind, Path("conf")), placed(relative_to(value, kind, Path("r")), kind, Path("r"))):
            before, after = value.split("~/data")
            assert found == f"{before}home/data{after}"


@pytest.mark.parametrize("key", ["forget", "require", "gates", "arch_arg", "leave_out"])
def test_a_list_of_one_may_stand_as_it_is(tmp_path: Path, key: str) -> None:
    """``leave_out: ema_model`` is a list of one."""
    (tmp_path / "imu.yaml").write_text(f"{key}: class=x\n")
    assert read_yaml(tmp_path / "imu.yaml") == {key: ["class=x"]}


@given(forms, paths, paths)
def test_paths_go_into_a_record_and_come_back(form: tuple[PathKind, str, str, str], path: str, folder: str) -> None:
    """Written relative to a record's folder and read from there, a path names the file that it named before."""
    kind, before, file, after = form
    if kind == "forget" and path.startswith("class="):
        path = "./" + path  # otherwise it is a selector, by definition
    named = os.path.abspath(path + file)
    inside = relative_to(before + path + file + after, kind, Path(folder))
    back = placed(inside, kind, Path(folder))
    for text, start in ((inside, folder), (back, "")):
        assert text.startswith(before)
        assert text.endswith(after)
        assert kind != "forget" or not text.startswith("class=")
        found = text.removeprefix(before).removesuffix(after)
        assert os.path.abspath(os.path.join(start, found)) == named
        assert not os.path.isabs(found)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("move", [placed, relative_to], ids=lambda move: move.__name__)
def test_values_without_a_path_stay(kind: PathKind, move: Callable[[Any, PathKind, Path], Any]) -> None:
    """None, mappings, numbers and empty texts pass through; lists are treated item by item."""
    for value in (None, {"size": 3}, 3, ""):
        assert move(value, kind, Path("x")) == value
        assert move([value], kind, Path("x")) == [value]


def test_a_records_options_hold_no_absolute_paths() -> None:
    """Every option whose help speaks of a file, folder or data set says how its path is written."""
    for config in CONFIGS.values():
        for name, kind in path_kinds(config).items():
            metavar = option_of(config, name).metavar or ""
            if metavar in ("DATA", "FORGET", "ARCH", "MODEL", "PRESET|FILE") or (
                metavar == "FILE" and name != "output"
            ):
                assert kind is not None, name
