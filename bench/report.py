"""``python -m bench.report``: a run's JSON as Markdown tables and plots, and the README's section."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench import plots, readme
from bench.comparison import STEADY
from bench.markdown import page
from bench.results import KEPT, RUN, Results, kept, read, write
from hamlet.files import replacing


def main(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE.json", help="What --benchmark-json wrote: a run, or all the parts of one."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; default: beside the first file.")] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help=f"Keep the run in bench/{KEPT.name}/ too, without its rounds.")
    ] = False,
    update_readme: Annotated[
        bool, typer.Option("--readme", help="Write the README's section from the kept runs.")
    ] = False,
) -> None:
    """Turn runs of `pytest bench/ --benchmark --benchmark-json=FILE.json` into Markdown tables and plots."""
    try:
        if not files and not update_readme:
            raise ValueError("FILE.json: expected at least one, or --readme")
        if files:
            results = read(*files)
            folders = [out or files[0].with_suffix("")] if out or not keep else []
            for folder in [*folders, *([KEPT / results.name] if keep else [])]:
                report(results, folder)
                typer.echo(folder / "tables.md")
            if keep:
                write(results, KEPT / results.name / RUN)
            _tell_noisy(results, files)
        if update_readme:
            _write_readme()
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


def report(results: Results, folder: Path) -> None:
    """Write tables.md and the plots that the run has data for."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(results, folder)
    with replacing(folder / "tables.md") as file:
        file.write(page(results, drawn).encode())


def _tell_noisy(results: Results, files: list[Path]) -> None:
    """Say on stderr which cases to time again, and how."""
    if results.noisy:
        again = files[-1].with_name("again.json")
        cases = shlex.join(results.noisy)
        typer.echo(
            f"noisy: {len(results.noisy)} cases, in which the machine's peak varied by more than {STEADY}. Again:\n"
            f"pytest --benchmark --benchmark-json={shlex.quote(str(again))} {cases}\n"
            f"python -m bench.report {shlex.join(map(str, [*files, again]))}",
            err=True,
        )


def _write_readme() -> None:
    runs = kept()
    readme.check_reasons(runs)
    text = readme.replaced(readme.README.read_text(encoding="utf-8"), runs)
    with replacing(readme.README) as file:
        file.write(text.encode())


if __name__ == "__main__":
    typer.run(main)
