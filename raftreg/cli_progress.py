"""A progress bar for work that takes a while, where a person watches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from raftreg import backup_file


@contextlib.contextmanager
def bar(title: str) -> Iterator[backup_file.Progress]:
    """What is to be told of progress. On stderr, so that output stays usable; nothing is shown without a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield backup_file.no_progress
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
