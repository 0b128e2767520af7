"""The group that the commands belong to, and how it tells errors."""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hamlet.cli.output import one_line, warn_in_one_line
from hamlet.processes import LeftToFirst, end_group

RESUMED = {"demo", "teach", "train", "ablate", "compare", "index", "whiten"}


class Commands(TyperGroup):
    """The group of commands: what the user can mend is told in one line on stderr, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                # A user has no use for the line of code that a warning comes from.
                warnings.showwarning = warn_in_one_line
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except LeftToFirst:
            raise typer.Exit from None
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            typer.echo(f"hamlet: error: {one_line(error) or type(error).__name__}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            goes_on = "; the same command again goes on from here" if ctx.invoked_subcommand in RESUMED else ""
            typer.echo(f"hamlet: interrupted{goes_on}", err=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False
)


def main() -> None:
    """The entry point of the `hamlet` command."""
    try:
        app(prog_name="hamlet")
    except SystemExit as end:
        # After a failure a common work may be under way that nobody will finish: ending the group would wait for it.
        if not end.code:
            end_group()
        raise


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hamlet {importlib.metadata.version('hamlet')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Find pictures of the same thing: train, index, search and evaluate HAMLET descriptors."""
