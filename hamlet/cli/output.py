"""What commands print."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import typer

from hamlet.files import printable


def print_json(result: Any) -> None:
    typer.echo(json.dumps(finite(result), indent=2, allow_nan=False))


def finite(result: Any) -> Any:
    """Plain data with null for numbers that JSON does not know, such as the mean over no queries."""
    if isinstance(result, dict):
        return {key: finite(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [finite(value) for value in result]
    return None if isinstance(result, float) and not math.isfinite(result) else result


def print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # As Text: what stands in brackets or between colons in a file's name is no markup.
    table = Table(title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold", min_width=max(map(len, column.split()), default=0))
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)


def warn_in_one_line(message: Warning | str, *where: object, **how: object) -> None:
    typer.echo(f"hamlet: warning: {one_line(message)}", err=True)


def one_line(message: object) -> str:
    return printable(" ".join(str(message).split()))
