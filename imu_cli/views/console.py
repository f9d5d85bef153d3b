"""What a person sees while a command runs, and its result at the end: notes and bars on stderr, tables on stdout."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imu_cli import signals
from imu_cli.events import Advance
from imu_cli.files import reading, streams
from imu_cli.files.streams import tell

if TYPE_CHECKING:
    from rich.console import RenderableType


class Terminal:
    """Notes and progress bars on stderr; bars only where stderr is a terminal. Progress is where a signal ends the run."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def note(self, text: str) -> None:
        """One line on stderr."""
        if not self.quiet:
            tell(f"note: {text}")

    @contextmanager
    def track(self, label: str, total: int | None) -> Iterator[Advance]:
        """A progress bar while the context lasts."""
        signals.check()
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield lambda done: signals.check()
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=total)

            def advance(done: int) -> None:
                signals.check()
                progress.advance(task, done)

            yield advance


def show(renderable: "RenderableType") -> None:
    """A table on stdout, as wide as the terminal; plain text where there is none."""
    from rich.console import Console

    from imu_cli.views.terminal import PIPED_WIDTH, text_of

    if sys.stdout is not None and sys.stdout.isatty():
        Console(highlight=False).print(renderable)
    else:
        streams.to_stdout(streams.plainer(text_of(renderable, width=reading.columns(PIPED_WIDTH))))
