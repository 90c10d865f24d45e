"""Progress bars for work that takes a while, where a person watches: on stderr, and none without a terminal there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn


def bars(*columns: ProgressColumn) -> Progress:
    """Any number of bars, to be used in a `with`; output stays usable beside it."""
    console = Console(stderr=True)
    title = TextColumn("{task.description}", markup=False)
    return Progress(title, BarColumn(), *columns, console=console, transient=True, disable=not console.is_terminal)


@contextlib.contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """One bar; what it yields is to be told how much is done, and of how much. Until then the bar only moves."""
    with bars(TaskProgressColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=max(1, total))
