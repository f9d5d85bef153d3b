"""The command line's options, made from the config classes, and their merging: flags > environment > YAML > defaults."""

import functools
import inspect
import json
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer

from imu_cli.config.commands import EvaluateConfig, FeaturesConfig, InfluenceConfig, UnlearnConfig
from imu_cli.config.fields import Option
from imu_cli.errors import ImuError, nearest
from imu_cli.files.paths import PathKind, placed
from imu_cli.files.reading import shown

Config = TypeVar("Config")
Origins = dict[str, str]

CONFIGS = (InfluenceConfig, UnlearnConfig, EvaluateConfig, FeaturesConfig)
"""Whose options one imu.yaml holds."""
YAML_REMEDY = "write lines such as 'data: train'"
LARGEST = 2**63 - 1
"""Whole numbers beyond it are no count of anything, and torch and numpy cannot take them."""
CONFIG_FILE = "config"
"""Beside the origins of options: the YAML file that was given, for the line that says how to go on."""
STRENGTH = ("file", "environment", "flag")
INSTEAD = ("features", "data")
"""Options that stand in each other's place: two given at one place contradict each other."""

YamlFile = Annotated[
    str | None,
    typer.Option(
        "--config",
        envvar="IMU_CONFIG",
        metavar="FILE",
        help="YAML file with these options as keys.",
        rich_help_panel="Output",
    ),
]
_FORMAT = typer.Option("--format", envvar="IMU_FORMAT", help="What is printed on stdout.", rich_help_panel="Output")
OutputFormat = Annotated[Literal["table", "json", "csv"], _FORMAT]
TableOrJson = Annotated[Literal["table", "json"], _FORMAT]
ReportFormat = Annotated[Literal["table", "json", "csv", "markdown"], _FORMAT]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", envvar="IMU_QUIET", help="No progress and no notes on stderr.", rich_help_panel="Output"
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        envvar="IMU_COLUMNS",
        metavar="MEANING=COLUMN,...",
        help="What lists and data call their columns, such as text=utterance,label=category.",
    ),
]
ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A .safetensors file, its index, or a Hugging Face or timm folder.", show_default=False
    ),
]


def _option(annotation: Any) -> Option:
    return next(item for item in get_args(annotation)[1:] if isinstance(item, Option))


def _hints(config: type[Any]) -> dict[str, Any]:
    return get_type_hints(config, include_extras=True)


def _without_dict(kind: Any) -> Any:
    """The type that the command line shows: a mapping can only come from YAML."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    left = [part for part in get_args(kind) if get_origin(part) is not dict and part is not type(None)]
    return left[0]


def _default(field: "Field[Any]") -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _shown_default(option: Option, default: Any, kind: Any) -> str:
    if option.default:
        return f" [default: {option.default}]"
    if default in (None, []) or kind is bool:
        return ""
    return f" [default: {default}]"


def _parameter(field: "Field[Any]", annotation: Any) -> inspect.Parameter:
    option, kind = _option(annotation), _without_dict(get_args(annotation)[0])
    flag = "--" + field.name.replace("_", "-")
    default = _default(field)
    names = [f"{flag}/--no-{flag[2:]}"] if kind is bool and default is not False else [flag]
    names += [option.short] if option.short else []
    described = typer.Option(
        *names,
        envvar=f"IMU_{field.name.upper()}",
        metavar=option.metavar,
        help=option.help + _shown_default(option, default, kind),
        show_default=False,
        show_envvar=False,
        rich_help_panel=option.group,
    )
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, described]
    )


def path_kinds(config: type[Any]) -> dict[str, PathKind | None]:
    """How each option's paths resolve; None for options that hold no path."""
    return {name: _option(annotation).path for name, annotation in _hints(config).items()}


def _known_keys() -> dict[str, PathKind | None]:
    """Every key that imu.yaml may hold: one file serves all commands."""
    return {name: kind for config in CONFIGS for name, kind in path_kinds(config).items()}


def _yaml(value: Any) -> str:
    """A value of a YAML mapping as ``--arch-arg`` reads it: JSON is YAML."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _takes_text(annotation: Any) -> bool:
    kind = get_args(annotation)[0]
    return str in (kind, *get_args(kind))


def _text_keys() -> set[str]:
    """Keys whose value is text, where YAML reads ``label: 3`` and ``damping: 0.01`` as numbers."""
    return {name for config in CONFIGS for name, annotation in _hints(config).items() if _takes_text(annotation)}


def _list_keys() -> set[str]:
    """Keys whose value is a list, where one alone may stand as it is."""
    return {
        name
        for config in CONFIGS
        for name, annotation in _hints(config).items()
        if list in (get_origin(kind) for kind in (get_args(annotation)[0], *get_args(get_args(annotation)[0])))
    }


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a YAML file, keys as the flags without dashes; relative paths are taken from the file's folder.

    Raises:
        ImuError: missing, not a mapping, or an unknown key.
    """
    from imu_cli.files import yaml_reading

    values = yaml_reading.read_yaml(path, YAML_REMEDY, f"--config {path}")
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ImuError(f"{path}: not a mapping; {YAML_REMEDY}")
    known, texts, lists = _known_keys(), _text_keys(), _list_keys()
    made: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in made:
            raise ImuError(f"{path}: {key!r} stands twice, with - and with _; remove one")
        if name not in known:
            hint = nearest(name, known) or f"; known keys are {', '.join(sorted(known))}"
            raise ImuError(f"{path}: {shown(key)} is not an option{hint}")
        if name == "arch_arg" and isinstance(value, dict):
            value = [f"{argument}={_yaml(text)}" for argument, text in value.items()]
        if name in texts and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if name in lists and isinstance(value, str):
            value = [value]
        kind = known[name]
        made[name] = placed(value, kind, path.parent) if kind else value
    return made


def _where(name: str, origins: Mapping[str, str]) -> str:
    """An option as the user gave it."""
    given = {"environment": f"IMU_{name.upper()}", "file": f"--config: {name}"}
    return given.get(origins.get(name, ""), "--" + name.replace("_", "-"))


def build(config: type[Config], values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    """The config from merged values, checked against its types and ranges.

    Raises:
        ImuError: names the option, where it came from, and what is wrong with it.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        made = TypeAdapter(config).validate_python(dict(values))
    except ValidationError as error:
        problems: dict[str, dict[str, None]] = {}
        for item in error.errors():
            name = str(item["loc"][0]) if item["loc"] else "options"
            # An option of several types has a message for each, of one value.
            problems.setdefault(f"{_where(name, origins)} {shown(item['input'])}", {})[
                item["msg"].lower().removeprefix("value error, ")
            ] = None
        raise ImuError("\n".join(f"{where}: {' or '.join(said)}" for where, said in problems.items())) from error
    _refuse_numbers(made, values, origins)
    return made


def _refuse_numbers(config: Any, given: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """No number is infinite, not a number, or beyond 64 bits (ranges alone let NaN through), and none is a switch."""
    for field in fields(config):
        value = getattr(config, field.name)
        odd = not math.isfinite(value) if isinstance(value, float) else isinstance(value, int) and abs(value) > LARGEST
        if odd:
            what = "not a number that can be used; give a smaller one"
            raise ImuError(f"{_where(field.name, origins)} {shown(value)}: {what}")
        if isinstance(given.get(field.name), bool) and not isinstance(value, bool):
            raise ImuError(
                f"{_where(field.name, origins)} {given[field.name]}: a switch where a number is wanted; give one"
            )


def _drop_weaker(values: dict[str, Any], origins: Origins) -> None:
    """Of ``--features`` and ``--data``, the flag wins over the environment, and that over the file."""
    found = sorted((STRENGTH.index(origins[name]), name) for name in INSTEAD if name in values)
    if len(found) == len(INSTEAD) and found[0][0] < found[1][0]:
        weaker = found[0][1]
        del values[weaker], origins[weaker]


def merge(config: type[Config], given: Mapping[str, tuple[Any, str]], yaml_file: str | None) -> tuple[Config, Origins]:
    """One config from flags and environment (value, origin), then YAML; and where each option came from.

    Raises:
        ImuError: a bad YAML file, or a value that is empty or not of its option's type or range.
    """
    names = {field.name for field in fields(config)}  # type: ignore[arg-type]
    from_file = read_yaml(Path(yaml_file)) if yaml_file else {}
    values = {name: value for name, value in from_file.items() if name in names and value is not None}
    origins: Origins = dict.fromkeys(values, "file")
    for name, (value, origin) in given.items():
        if value is not None and value != []:
            values[name], origins[name] = value, origin
    _drop_weaker(values, origins)
    empty = next((name for name, value in values.items() if value == ""), None)
    if empty is not None:
        raise ImuError(f"{_where(empty, origins)}: is empty; leave it out, or give a value")
    return build(config, values, origins), {name: origins.get(name, "default") for name in sorted(names)}


def _given(context: typer.Context, values: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    found = {}
    for name, value in values.items():
        source = context.get_parameter_source(name)
        origin = "environment" if source is not None and source.name == "ENVIRONMENT" else "flag"
        found[name] = (value, origin)
    return found


def takes(config: type[Any], without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one flag for each of the config's fields; it is called with ``config`` and ``origins`` instead.

    The command's own parameters come before the flags. ``--config`` is read here. Fields that play no part in the command
    (``without``) get no flag.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command, eval_str=True).parameters.values()
            if parameter.name not in ("config", "origins")
        ]
        hints = _hints(config)
        flags = [
            _parameter(field, hints[field.name])
            for field in fields(config)
            if field.name not in without and not _option(hints[field.name]).file_only
        ]

        @functools.wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            mine = {parameter.name: values.pop(parameter.name) for parameter in own}
            yaml_file = values.pop("yaml_file", None)
            merged, origins = merge(config, _given(context, values), yaml_file)
            command(**mine, config=merged, origins=origins | ({CONFIG_FILE: yaml_file} if yaml_file else {}))

        parameters = [
            inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
            inspect.Parameter("yaml_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=YamlFile),
            *flags,
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del run.__wrapped__  # typer would look through it at the undecorated signature
        return run

    return decorate
