"""Where the commands print for people: results on standard output, progress and complaints on standard error."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose long words are folded on a terminal and left whole in a file or a pipe."""
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=10_000)
    console.print(table)


def complaints() -> Console:
    """Standard error; a message stays on one line whatever the width of the terminal."""
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
