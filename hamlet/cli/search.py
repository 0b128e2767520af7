"""`hamlet search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import Json, Nprobe
from hamlet.cli.output import print_json, print_table, warn_in_one_line

if TYPE_CHECKING:
    from hamlet.retrieval.search import Found


@app.command(
    epilog="Examples: [bold]hamlet search photos.index query.jpg --top 5[/bold]  |  "
    "[bold]hamlet search photos.index *.jpg --html report.html --json[/bold]"
)
def search(
    index: Annotated[
        str,
        typer.Argument(
            metavar="INDEX",
            help="An index made by [bold]hamlet index[/bold]: its file, or milvus://... as given there.",
        ),
    ],
    queries: Annotated[list[Path], typer.Argument(metavar="QUERY", help="Images to search with.")],
    top: Annotated[int, typer.Option(min=1, help="Results for each query.")] = 10,
    html: Annotated[Path | None, typer.Option(help="Also write the results as a self-contained page.")] = None,
    mmap: Annotated[
        bool,
        typer.Option(
            "--mmap", help="Leave the index in its file, for one larger than memory; checks all but its codes."
        ),
    ] = False,
    nprobe: Nprobe = None,
    json_only: Json = False,
) -> None:
    """Find the images of an index that show what the query images show."""
    from hamlet.files import check_writable
    from hamlet.retrieval.search import search_index, write_search_report

    if html is not None:
        check_writable(html)
    found, failures = search_index(index, queries, top, maps=html is not None, memory_map=mmap, nprobe=nprobe)
    for query, reason in failures:
        warn_in_one_line(f"{query}: {reason}")
    if html is not None:
        write_search_report(html, found)
        typer.echo(f"hamlet: wrote {html}", err=True)
    if json_only:
        print_json({"index": index, "queries": [as_json(each) for each in found], "failures": failures})
        return
    for each in found:
        ranked = enumerate(zip(each.scores, each.ids, strict=True), start=1)
        print_table(
            str(each.query), ("rank", "score", "image"), [(str(r), f"{s:.4f}", name) for r, (s, name) in ranked]
        )


def as_json(found: Found) -> dict[str, Any]:
    results = zip(found.ids, found.paths, found.scores, strict=True)
    return {
        "query": str(found.query),
        "results": [{"id": name, "path": str(path), "score": score} for name, path, score in results],
    }
