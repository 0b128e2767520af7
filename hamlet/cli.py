"""The `hamlet` command: results on stdout, progress and warnings on stderr; exit codes 0 ok, 1 failure, 2 usage."""

from __future__ import annotations

import importlib.metadata
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from hamlet.files import printable

if TYPE_CHECKING:
    from hamlet.retrieval.search import Found


RESUMED = {"demo", "train", "index", "whiten"}


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

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint, or a model's name (random weights).")
]
Json = Annotated[bool, typer.Option("--json", help="Print nothing but JSON on stdout.")]
MultiScale = Annotated[
    bool, typer.Option("--multi-scale", help="Average the descriptors of three scales: 0.7071, 1 and 1.4142.")
]
Side = Annotated[int, typer.Option(min=32, help="Longest side in pixels to which images are shrunk.")]


def main() -> None:
    """The entry point of the `hamlet` command."""
    app(prog_name="hamlet")


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


@app.command(epilog="Example: [bold]hamlet demo --steps 100 --out quick-demo[/bold]")
def demo(
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps of each model; default: the recipe's.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of report.html, results.json and the models.")] = Path(
        "hamlet-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the weights, the views and their order.")] = 0,
) -> None:
    """Train a small HAMLET and a GeM baseline on scikit-image's photographs, and compare what they retrieve.

    Takes a few minutes on two CPU cores and downloads nothing. A run that was stopped goes on from its last checkpoint
    when the same command is given again.
    """
    from hamlet.demo import run_demo
    from hamlet.demo.report import COLUMNS, table_rows

    results = run_demo(out, steps=steps, seed=seed)
    print_table("Retrieval of things never seen", COLUMNS, table_rows(results))
    typer.echo(f"report: {out / 'report.html'}")


@app.command(
    epilog="Examples: [bold]hamlet train folder data.root=PHOTOS[/bold]  |  "
    "[bold]hamlet train mine.yaml optimizer.lr=0.001 --out runs/mine[/bold]"
)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see [bold]hamlet info[/bold]) or a YAML file.")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values in place of the recipe's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoints; default: runs/RECIPE.")] = None,
) -> None:
    """Train a model by a recipe. A run that was stopped goes on when the same command is given again."""
    from hamlet.training import load_recipe, train_recipe

    chosen = load_recipe(recipe, settings or ())
    folder = out or Path("runs") / Path(recipe).stem
    _, dataset = train_recipe(chosen, folder)
    for name, reason in dataset.skipped:
        warn_in_one_line(f"{name}: {reason}; left out")
    typer.echo(f"{folder / 'model.pt'}: {chosen.model.name} after {chosen.steps} steps")


@app.command(epilog="Example: [bold]hamlet index runs/folder/model.pt PHOTOS --out photos.index[/bold]")
def index(
    model: ModelArgument,
    folder: Annotated[Path, typer.Argument(help="A folder of images, or a text file that lists them.")],
    out: Annotated[Path, typer.Option(help="The index file to write.")],
    factory: Annotated[str, typer.Option(help="What faiss.index_factory takes: Flat, HNSW32, IVF256,PQ64...")] = "Flat",
    longest_side: Side = 1024,
) -> None:
    """Describe every image of a folder and build an index of them.

    A run that was stopped goes on where it was. Images that cannot be read are listed with the reason and left out.
    """
    from hamlet.retrieval.search import build_index

    made, failures = build_index(model, folder, out, factory=factory, longest_side=longest_side)
    typer.echo(f"{out}: {len(made)} images, {len(failures)} left out")


@app.command(
    epilog="Examples: [bold]hamlet search photos.index query.jpg --top 5[/bold]  |  "
    "[bold]hamlet search photos.index *.jpg --html report.html --json[/bold]"
)
def search(
    index: Annotated[Path, typer.Argument(help="An index made by [bold]hamlet index[/bold].")],
    queries: Annotated[list[Path], typer.Argument(metavar="QUERY...", help="Images to search with.")],
    top: Annotated[int, typer.Option(min=1, help="Results for each query.")] = 10,
    html: Annotated[Path | None, typer.Option(help="Also write the results as a self-contained page.")] = None,
    json_only: Json = False,
) -> None:
    """Find the images of an index that show what the query images show."""
    from hamlet.retrieval.search import search_index, write_search_report

    found, failures = search_index(index, queries, top, maps=html is not None)
    for query, reason in failures:
        warn_in_one_line(f"{query}: {reason}")
    if html is not None:
        write_search_report(html, found)
        typer.echo(f"hamlet: wrote {html}", err=True)
    if json_only:
        print_json({"index": str(index), "queries": [as_json(each) for each in found], "failures": failures})
        return
    for each in found:
        ranked = enumerate(zip(each.scores, each.ids, strict=True), start=1)
        print_table(
            str(each.query), ("rank", "score", "image"), [(str(r), f"{s:.4f}", name) for r, (s, name) in ranked]
        )


@app.command(epilog="Example: [bold]hamlet whiten runs/folder/model.pt PHOTOS --learned --out pw.safetensors[/bold]")
def whiten(
    model: ModelArgument,
    images: Annotated[Path, typer.Argument(help="A folder or list of images, other than those to be searched.")],
    out: Annotated[Path, typer.Option(help="The file to write, for hamlet evaluate --whiten.")],
    learned: Annotated[
        bool,
        typer.Option(
            "--learned",
            help="Learn from pairs that show the same thing, rather than by PCA: IMAGES is then a folder with a "
            "subfolder for each thing, or a CSV file with the columns image and label.",
        ),
    ] = False,
    dim: Annotated[int | None, typer.Option(min=1, help="Numbers a descriptor; default: all there are.")] = None,
    multi_scale: MultiScale = False,
    longest_side: Side = 1024,
) -> None:
    """Learn how to whiten a model's descriptors. A run that was stopped goes on where it was."""
    from hamlet.retrieval.extraction import SCALES
    from hamlet.retrieval.search import make_whitening

    made, failures = make_whitening(
        model,
        images,
        out,
        learned=learned,
        dim=dim,
        longest_side=longest_side,
        scales=SCALES if multi_scale else (1.0,),
    )
    kept, dims = made.projection.shape
    typer.echo(f"{out}: {dims} to {kept} numbers, {len(failures)} images left out")


@app.command(
    epilog="Example: [bold]hamlet evaluate roxford5k --data datasets --model runs/folder/model.pt --json[/bold]"
)
def evaluate(
    dataset: Annotated[str, typer.Argument(help="Which benchmark; see above.")],
    data: Annotated[Path, typer.Option(help="The benchmark's folder as downloaded, or the CSV file of csv.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="A checkpoint, or a model's name (random weights).")],
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps the descriptors, so that a stopped run goes on.")
    ] = None,
    crop: Annotated[bool, typer.Option(help="Cut the queries of Oxford and Paris to their boxes.")] = True,
    multi_scale: MultiScale = False,
    whiten: Annotated[Path | None, typer.Option(help="A file that [bold]hamlet whiten[/bold] wrote.")] = None,
    rerank: Annotated[
        str,
        typer.Option(
            metavar="STEPS",
            help="dba, alpha-qe and diffusion, comma-separated in the order wanted; settings after colons, "
            "as in alpha-qe:k=10:alpha=3,diffusion:k=50:query_k=10:alpha=0.99.",
        ),
    ] = "",
    html: Annotated[
        Path | None, typer.Option(help="Also write what the worst queries found as a self-contained page.")
    ] = None,
    longest_side: Side = 1024,
    json_only: Json = False,
) -> None:
    """Measure mAP, precision and cost of a model on a benchmark.

    [bold]oxford5k, paris6k[/bold]: the original protocol; images and text files of the ground truth.

    [bold]roxford5k, rparis6k[/bold]: revisited, easy, medium and hard; [bold]+1m[/bold] adds the distractors.

    [bold]gldv2-retrieval, gldv2-recognition[/bold]: Google Landmarks v2, by mAP@100 and (against train_clean) GAP.

    [bold]folder[/bold]: a subfolder for each class, every image searched among all others.

    [bold]csv[/bold]: a CSV file of image,label and maybe role (query or database), beside its images.
    """
    from hamlet.retrieval.evaluate import evaluate as measure
    from hamlet.retrieval.extraction import SCALES
    from hamlet.retrieval.search import open_model

    result = measure(
        open_model(model)[0],
        dataset,
        data,
        out=out,
        html=html,
        crop=crop,
        whiten=whiten,
        rerank=rerank,
        longest_side=longest_side,
        scales=SCALES if multi_scale else (1.0,),
    )
    if html is not None:
        typer.echo(f"hamlet: wrote {html}", err=True)
    if json_only:
        print_json(result)
        return
    measures = tuple(next(iter(result["metrics"].values())))
    rows = [
        (setup, *(f"{100 * values[measure]:.2f}" for measure in measures))
        for setup, values in result["metrics"].items()
    ]
    cropped = ", queries cropped" if result["queries_cropped"] else ""
    print_table(f"{dataset} (percent{cropped})", ("", *measures), rows)
    print_table("cost of one image", ("", ""), [(name, f"{value:,.6g}") for name, value in result["cost"].items()])


@app.command(epilog="Example: [bold]hamlet profile hamlet_resnet18 hamlet_mobilenetv3_large --size 1024[/bold]")
def profile(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Checkpoints, or models' names.")],
    size: Annotated[int, typer.Option(min=32, help="Height and width of the image, in pixels.")] = 1024,
    json_only: Json = False,
) -> None:
    """Measure what models cost on one image, as a whole and by parts of the architecture."""
    from dataclasses import asdict

    from hamlet.retrieval.cost import measure_cost
    from hamlet.retrieval.parts import measure_parts
    from hamlet.retrieval.search import open_model

    found: list[dict[str, Any]] = []
    for name in models:
        model, _ = open_model(name)
        parts = [asdict(part) for part in measure_parts(model, size)]
        found.append({"model": name, "size": size, "cost": asdict(measure_cost(model, size)), "parts": parts})
    if json_only:
        print_json(found)
        return
    columns = ("parameters", "GFLOPs", "latency ms", "p90 ms", "activations MiB", "peak MiB")
    for each in found:
        rows = [(part["name"], *cost_cells(part)) for part in each["parts"]]
        print_table(
            f"{each['model']} at {size} x {size}", ("", *columns), [*rows, ("whole", *cost_cells(each["cost"]))]
        )
        typer.echo(f"descriptor: {each['cost']['descriptor_bytes']} bytes\n")


@app.command(epilog="Example: [bold]hamlet info --json[/bold]")
def info(json_only: Json = False) -> None:
    """Show versions, devices, instruction sets, and which backends can serve each operator here."""
    from hamlet.environment import describe

    found = describe()
    if json_only:
        print_json(found)
        return
    for title in ("versions", "devices", "instruction_sets"):
        print_table(title.replace("_", " "), ("", ""), list(found[title].items()))
    rows = [
        (operator, device, backend, "; ".join(reasons) or "can serve")
        for operator, devices in found["operators"].items()
        for device, backends in devices.items()
        for backend, reasons in backends.items()
    ]
    print_table("operators", ("operator", "device", "backend", ""), rows)
    typer.echo(f"models: {', '.join(found['models'])}\nrecipes: {', '.join(found['recipes'])}")


def cost_cells(cost: dict[str, Any]) -> tuple[str, ...]:
    activations = cost.get("activation_bytes")
    return (
        f"{cost['parameters']:,}",
        f"{cost['flops'] / 1e9:.4g}",
        f"{cost['latency_ms']:.4g}",
        f"{cost['latency_p90_ms']:.4g}",
        "" if activations is None else f"{activations / 2**20:.4g}",
        f"{cost['peak_memory_bytes'] / 2**20:.4g}",
    )


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


def as_json(found: Found) -> dict[str, Any]:
    results = zip(found.ids, found.paths, found.scores, strict=True)
    return {
        "query": str(found.query),
        "results": [{"id": name, "path": str(path), "score": score} for name, path, score in results],
    }


def warn_in_one_line(message: Warning | str, *where: object, **how: object) -> None:
    typer.echo(f"hamlet: warning: {one_line(message)}", err=True)


def one_line(message: object) -> str:
    return " ".join(printable(str(message)).split())
