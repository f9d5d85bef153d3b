"""The requirements of ``imu evaluate``: read before anything is opened, and the JUnit file that takes their verdicts."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from imu_cli.config.commands import EvaluateConfig
from imu_cli.errors import ImuError, nearest
from imu_cli.evaluation import gates
from imu_cli.files import outputs, writing
from imu_cli.models.head import Head
from imu_cli.records.metric_definitions import DEFINITIONS
from imu_cli.records.recall_metrics import RECALL
from imu_cli.records.retrieval_metrics import RETRIEVAL
from imu_cli.views import junit


def gates_of(config: EvaluateConfig, report: Path | None) -> list[gates.Gate]:
    """The requirements of the YAML file's ``gates:``, then those of ``--require``; one that stands twice counts once.

    Raises:
        ImuError: one that cannot be judged; the JUnit file says so too, lest an earlier one be taken for today's.
    """
    texts = [*((text, "gates:") for text in config.gates), *((text, "--require") for text in config.require)]
    found, problems = list[gates.Gate](), dict[str, str]()
    for text, option in texts:
        try:
            found.append(gates.parse(text, option))
        except ImuError as error:
            problems[text] = str(error)
    _refuse(problems, report)
    return list(dict.fromkeys(found))


def _refuse(problems: Mapping[str, str], report: Path | None) -> None:
    """End here if a requirement cannot be judged; the JUnit file says so too, lest an earlier one be taken for today's.

    Raises:
        ImuError: all of them.
    """
    if problems and report is not None:
        again = partial(outputs.refuse_foreign, mark=junit.MARK, option="--junit")
        with writing.together(report, replaced=again) as (file,):
            file.write_text(junit.refused(problems), encoding="utf-8")
    if problems:
        raise ImuError("\n".join(problems.values()))


def refuse_other_task(wanted: Sequence[gates.Gate], head: Head, report: Path | None) -> None:
    """Refuse requirements on metrics of other kinds of models.

    Raises:
        ImuError: all of them, in the JUnit file too.
    """
    kinds = {"embedding": (RETRIEVAL, "an embedding model"), "language": (RECALL, "a language model")}
    which = "embedding" if head.embeds else "language" if head.writes else ""
    known, kind = kinds.get(which, (DEFINITIONS, "a classifier"))
    foreign = [gate for gate in wanted if gate.metric not in known]
    every = f"; its metrics are {', '.join(known)}"

    def said(gate: gates.Gate) -> str:
        near = nearest(gate.metric, known, cutoff=0.5) or every
        return f"{gate.text!r}: {gate.metric} is no metric of {kind}, which this is{near}"

    _refuse({gate.text: said(gate) for gate in foreign}, report)


def junit_file(config: EvaluateConfig, output: Path) -> Path | None:
    """Where the JUnit file goes, beside the evaluation's ``output``.

    Raises:
        ImuError: it may not be written, or there is nothing to put into it: CI systems take an empty one for a failure,
            or for nothing at all.
    """
    if config.junit is None:
        return None
    if not config.gates and not config.require:
        raise ImuError(
            "--junit: holds verdicts, and there is no requirement; add --require, or gates: in the YAML file"
        )
    outputs.found(Path(config.junit), "--junit")
    if Path(config.junit).resolve() == output.resolve():
        raise ImuError(f"--junit {config.junit}: is the evaluation's own file; choose another")
    outputs.refuse_foreign(Path(config.junit), junit.MARK, "--junit")
    return Path(config.junit)
