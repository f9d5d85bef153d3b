"""The console command: commands of a few lines, and the entry point that runs one.

Nothing here imports torch at its top: ``imu --help`` and ``imu report`` start at once.
"""

import errno
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imu_cli import __version__, signals
from imu_cli.config.commands import EvaluateConfig, FeaturesConfig, InfluenceConfig, UnlearnConfig
from imu_cli.config.shared import ModelConfig
from imu_cli.errors import ImuError, RefusedError, StoppedError
from imu_cli.events import libraries_unheard
from imu_cli.exit_codes import exit_code
from imu_cli.files import reading, streams, writing
from imu_cli.files.streams import tell
from imu_cli.flags import Columns, ModelPath, Origins, OutputFormat, Quiet, ReportFormat, TableOrJson, takes
from imu_cli.views import console

if TYPE_CHECKING:
    from imu_cli.records.record import Record
    from imu_cli.records.retrieval import Judged
    from imu_cli.views.tables import Table

HELP = """Make a trained classifier forget samples or classes, from its checkpoint and the forget set alone.

imu unlearn model.safetensors --forget forget.csv
"""

EPILOG = (
    "Exit codes: 0 done; 1 a bug; 2 wrong usage, input or environment, nothing written; 3 a target or requirement was not met; "
    "4 refused, this checkpoint cannot be handled; 5 inconclusive, too few samples; 130 interrupted, 143 terminated, 129 hung up."
)

app = typer.Typer(
    name="imu",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
cache_app = typer.Typer(
    help="The cached scores: list, show, remove, verify.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(cache_app, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"imu {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
@takes(InfluenceConfig)
def influence(
    model: ModelPath,
    config: InfluenceConfig,
    origins: Origins,
    form: OutputFormat = "table",
    quiet: Quiet = False,
) -> None:
    """Score every forget sample by its classifier-level influence, cache the scores, show them."""
    from imu_cli.commands import influence as influence_module
    from imu_cli.views import machine, terminal

    result = influence_module.run_influence(model, config, origins, console.Terminal(quiet))
    if form == "table":
        console.show(terminal.scored(result, config.show))
    else:
        streams.to_stdout(
            machine.as_json([result]) if form == "json" else machine.influence_csv(result, tokens=config.tokens)
        )
    if config.images and not quiet:
        tell(f"wrote {config.images}: it holds samples from the forget list, delete it when you have seen it")


@app.command()
@takes(UnlearnConfig)
def unlearn(
    model: ModelPath,
    config: UnlearnConfig,
    origins: Origins,
    form: OutputFormat = "table",
    quiet: Quiet = False,
) -> None:
    """Write an unlearned checkpoint and its record."""
    from imu_cli.commands import unlearn as unlearn_module
    from imu_cli.commands.processes import HelpedError
    from imu_cli.views import machine, terminal, words

    try:
        result = unlearn_module.run_unlearn(model, config, origins, console.Terminal(quiet))
    except HelpedError:
        raise typer.Exit from None
    if form == "table":
        console.show(terminal.record(words.from_here(result.record, result.record_path.parent), notes=False))
    else:
        streams.to_stdout(machine.as_json([result.record]) if form == "json" else machine.record_csv(result.record))
    if not quiet:
        tell(f"wrote {result.output} and {result.record_path}")
        tell(f"next: {shlex.join(unlearn_module.next_words(result, config, origins))}")
    raise typer.Exit(3 if result.record.reached is False else 0)


@app.command()
@takes(EvaluateConfig)
def evaluate(
    model: ModelPath,
    config: EvaluateConfig,
    origins: Origins,
    form: ReportFormat = "table",
    quiet: Quiet = False,
) -> None:
    """Measure a checkpoint before and after, and gate a pipeline on it."""
    from imu_cli.commands import evaluate as judging
    from imu_cli.evaluation import gates
    from imu_cli.views import terminal, words

    result = judging.run_evaluate(model, config, origins, console.Terminal(quiet))
    if form == "table":
        console.show(terminal.judged(words.from_here(result.evaluation, result.path.parent), notes=False))
    else:
        _print_results([result.evaluation], [str(model)], form)
    if not quiet:
        written = [str(path) for path in (result.path, config.junit) if path]
        tell(f"wrote {' and '.join(written)}")
    raise typer.Exit(gates.exit_code(result.evaluation.requirements))


def _samples(
    results: "Sequence[Record | Judged]", records: Sequence[Path], count: int | None, form: str
) -> "Mapping[str, Table]":
    from imu_cli.views.tables import NO_SAMPLES

    if count is None:
        return NO_SAMPLES
    from imu_cli.commands import report_samples  # it opens lists, and with them numpy

    if form not in ("table", "markdown"):
        raise ImuError(f"--samples: shows texts in tables and pages, and --format {form} is neither; leave one out")
    return report_samples.tables_of(results, [path.parent for path in records], count)


def _print_results(
    results: "Sequence[Record | Judged]",
    names: Sequence[str],
    form: str,
    samples: "Mapping[str, Table] | None" = None,
) -> None:
    from imu_cli.records.record import Record
    from imu_cli.views import machine, markdown, terminal

    evaluations = [(item, name) for item, name in zip(results, names, strict=True) if not isinstance(item, Record)]
    if form == "table":
        console.show(terminal.report(results, names, samples or {}))
    elif form == "markdown":
        streams.to_stdout(markdown.report(results, names, samples or {}))
    elif form == "json":
        streams.to_stdout(machine.as_json(results))
    elif evaluations:
        streams.to_stdout(machine.evaluation_csv([item for item, _ in evaluations], [name for _, name in evaluations]))
    else:
        records = (machine.record_csv(item) for item in results if isinstance(item, Record))
        streams.to_stdout(chain.from_iterable(records))


@app.command()
def report(
    records: Annotated[
        list[Path] | None, typer.Argument(metavar="RECORD...", help="Files that unlearn and evaluate wrote.")
    ] = None,
    form: ReportFormat = "table",
    to_markdown: Annotated[
        str | None,
        typer.Option("--markdown", help="Write the report as Markdown into a file (- for stdout).", metavar="FILE"),
    ] = None,
    to_html: Annotated[
        str | None,
        typer.Option(
            "--html",
            help="Write the report as one HTML page with pictures, which needs no other file (- for stdout).",
            metavar="FILE",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            help="Show the first N texts of the forget list too, read again from the files that the record names; of a language model, what "
            "it answers, as imu evaluate --samples wrote it.",
            metavar="N",
        ),
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of the files instead, and need none.")
    ] = False,
) -> None:
    """Render what earlier commands measured; several evaluations are also set side by side."""
    from imu_cli.commands import report as reporting
    from imu_cli.records import json_files
    from imu_cli.views import words

    if schema:
        streams.to_stdout(json.dumps(json_files.schema(), indent=1, ensure_ascii=False) + "\n")
        return
    if not records:
        raise ImuError("report: no RECORD; name a .record.json or .evaluation.json that unlearn or evaluate wrote")
    results = [json_files.read(path) for path in records]
    names = [path.name.removesuffix(".json") for path in records]
    texts = _samples(results, records, samples, form)
    pages = reporting.write(results, names, {"markdown": to_markdown, "html": to_html}, texts)
    if not pages:
        here = [words.from_here(item, path.parent) for item, path in zip(results, records, strict=True)]
        _print_results(here if form == "table" else results, names, form, texts)
    for file in pages:
        if file != reporting.STDOUT:
            tell(f"wrote {file}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the demo's files go.")] = Path("imu-demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo in DIR.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the training and of every other random choice.")] = 0,
    task: Annotated[
        Literal["image", "text", "embedding", "language"],
        typer.Option(
            "--task",
            help="image: scikit-learn's digits; text: sentences of documentation, which needs transformers; embedding: places in "
            "photographs that a model finds again; language: questions that a small language model knows the answers to.",
        ),
    ] = "image",
) -> None:
    """The four commands on a small real model that is trained in seconds: a convolutional network, a BERT, an embedding, or a Llama."""
    from imu_cli.commands import demo as job

    job.run(folder, force, seed, main, task)


@app.command()
def select(
    selectors: Annotated[
        list[str],
        typer.Argument(
            metavar="SELECTOR...", help="class=cat, index=0:500, id=4711, group=NAME, camera=1, coarse=NAME."
        ),
    ],
    data: Annotated[
        str, typer.Option("--data", help="The data set to select from.", metavar="DATA", envvar="IMU_DATA")
    ],
    columns: Columns = None,
    output: Annotated[str, typer.Option("--output", "-o", help="The manifest, - for stdout.", metavar="FILE")] = "-",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a forget.csv of the rows of a data set that a selector names."""
    from imu_cli.commands import select as select_module

    select_module.run(selectors, data, output, force, columns)


@app.command()
@takes(FeaturesConfig)
def features(
    model: ModelPath,
    config: FeaturesConfig,
    origins: Origins,
    form: TableOrJson = "table",
    quiet: Quiet = False,
) -> None:
    """Write the features of --data, or of what --forget lists, for influence, unlearn and evaluate; also under torchrun."""
    from imu_cli.commands import features as extracting
    from imu_cli.views import machine, terminal

    result = extracting.run_features(model, config, console.Terminal(quiet))
    if result is None:
        return
    if form == "table":
        console.show(terminal.extracted(result))
    else:
        streams.to_stdout(machine.as_json([result]))
    if not quiet:
        tell(f"wrote {result.output}: features of people's data are personal data, it is readable by you alone")


@app.command()
@takes(ModelConfig, without=("batch_size", "precision"))
def inspect(
    model: ModelPath,
    config: ModelConfig,
    origins: Origins,
    only_header: Annotated[
        bool, typer.Option("--header", help="Only what the files' headers say: instant, without building the model.")
    ] = False,
    show: Annotated[int, typer.Option("--show", min=0, help="Tensors shown in the table.", metavar="N")] = 10,
    form: OutputFormat = "table",
) -> None:
    """Show what is in a model's files, what imu learns from them and where, and which flag is missing; needs no data."""
    from imu_cli.models.headers import header
    from imu_cli.models.layout import resolve
    from imu_cli.views import machine, terminal

    if only_header or form == "csv":
        result = header(resolve(model))
    else:
        from imu_cli.commands import inspect as inspecting

        result = inspecting.run(model, config, origins)
    if form == "table":
        console.show(terminal.inspection(result, show))
    else:
        streams.to_stdout(machine.as_json([result]) if form == "json" else machine.inspection_csv(result))
    raise typer.Exit(
        RefusedError.exit_code if any(item.problem and item.flag is None for item in result.findings) else 0
    )


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN",
            help="A .pth, .pt, .bin or .ckpt file: a state_dict, or what holds one; an index of such shards, or a folder.",
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    key: Annotated[
        str | None,
        typer.Option("--key", help="Which entry of the file is the model, where several hold tensors.", metavar="KEY"),
    ] = None,
    strip_prefix: Annotated[
        str | None, typer.Option("--strip-prefix", help="Take this off the names that start with it.", metavar="PREFIX")
    ] = None,
    leave_out: Annotated[
        list[str] | None,
        typer.Option(
            "--leave-out",
            help="Tensors that are not written, by name, first words (ema_model) or pattern ('*.ema'); may be repeated.",
            metavar="NAME",
        ),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            help="Write this into the file's metadata: a registry's architecture, such as torchvision:resnet18, that fits.",
            metavar="ARCH",
        ),
    ] = None,
    arch_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--arch-arg",
            help="Argument of the architecture, for the metadata too; may be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            "--preprocess", help="Write this into the file's metadata: a preset or a YAML file.", metavar="PRESET|FILE"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output (never the input).")] = False,
    quiet: Quiet = False,
) -> None:
    """Write the tensors of a PyTorch pickle as safetensors, without running any code that is in it."""
    from imu_cli.commands import convert as converting

    made = converting.run(
        source,
        output,
        key=key,
        strip_prefix=strip_prefix,
        leave_out=leave_out or [],
        arch=arch,
        arch_arg=arch_arg or [],
        preprocessing=preprocess,
        force=force,
    )
    for note in made.notes:
        console.Terminal(quiet).note(note)
    if not quiet:
        tell(f"wrote {made.output}: {made.tensors} tensors, {made.bytes:,} bytes")


@cache_app.command("ls")
def cache_ls(form: OutputFormat = "table") -> None:
    """List the entries, oldest first."""
    from imu_cli.commands import cache as cache_module
    from imu_cli.features import cache
    from imu_cli.views import machine, terminal

    header, rows, broken = cache_module.listed()
    if form == "json":
        streams.to_stdout(json.dumps([dict(zip(header, row, strict=True)) for row in rows], indent=1) + "\n")
    elif form == "csv":
        streams.to_stdout(machine.rows_csv(header, rows))
    else:
        console.show(terminal.plain_table(f"{cache.folder()}: {len(rows)} entries", header, rows))
    for line in broken:
        tell(line)


@cache_app.command("show")
def cache_show(
    key: Annotated[str, typer.Argument(help="Key of an entry, or the start of it.")], form: OutputFormat = "table"
) -> None:
    """Show what one entry holds and what it depends on."""
    from imu_cli.commands import cache as cache_module
    from imu_cli.views import machine, terminal

    entry, rows = cache_module.rows_of(key)
    if form == "json":
        plain = {"kind": entry.kind, "key": entry.key, "fields": entry.fields, "rows": rows}
        streams.to_stdout(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    elif form == "csv":
        streams.to_stdout(machine.rows_csv(["path", "label", "score"], rows))
    else:
        console.show(terminal.cache_entry(entry.kind, entry.key, entry.fields, rows))


@cache_app.command("rm")
def cache_rm(
    keys: Annotated[list[str] | None, typer.Argument(help="Keys, or the start of them.")] = None,
    forget: Annotated[
        str | None,
        typer.Option("--forget", help="Remove every entry that holds a sample of this forget list.", metavar="FORGET"),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="The data set that the forget list points into.", metavar="DATA")
    ] = None,
    columns: Columns = None,
    broken: Annotated[bool, typer.Option("--broken", help="Remove torn or edited entries.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Remove every entry.")] = False,
) -> None:
    """Remove entries; what belongs to the people of a forget list goes with --forget."""
    from imu_cli.commands import cache as cache_module

    for line in cache_module.clear_cache(
        keys or [], forget, data, broken=broken, everything=everything, columns=columns
    ):
        tell(line)


@cache_app.command("verify")
def cache_verify() -> None:
    """Check every entry against its checksum; exit code 3 if one is torn or edited."""
    from imu_cli.commands import cache as cache_module
    from imu_cli.features import cache_entries

    count, bad = cache_module.verified()
    for path in bad:
        streams.to_stdout(f"{path}: {cache_entries.BROKEN}\n")
    tell(f"{count} entries, {len(bad)} {cache_entries.BROKEN}")
    raise typer.Exit(3 if bad else 0)


def _run(argv: Sequence[str] | None) -> int:
    signals.obey()
    try:
        Path.cwd()
    except OSError as error:  # torch's libraries end the process where there is none
        raise ImuError("the working directory is gone; change into one that is there") from error
    try:
        result = app(args=None if argv is None else list(argv), prog_name="imu", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # nobody reads it any more: imu --help | head
        streams.discard_stdout()
        result = 0
    except SystemExit as error:
        if not (isinstance(error.__context__, OSError) and error.__context__.errno == errno.EPIPE):
            raise ImuError(
                f"the model's own code ended the process (sys.exit({error.code!r})); it has to return, or raise an error"
            ) from error
        streams.discard_stdout()  # what typer makes of the same
        result = 0
    signals.obey()
    return result if isinstance(result, int) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; errors become one message on stderr."""
    reading.drop_wrong_sizes()
    before, received = len(writing.PLACED), len(StoppedError.received)
    streams.forgiving()
    try:
        with libraries_unheard():
            return _run(argv)
    except (Exception, StoppedError) as error:
        code = exit_code(error, writing.PLACED[before:], StoppedError.received[received:])
        if code is None:
            raise
        return code
