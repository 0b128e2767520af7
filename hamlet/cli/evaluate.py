"""`hamlet evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hamlet.cli.commands import app
from hamlet.cli.options import DescriptorType, Json, MultiScale, Scales, Side, Whiten, chosen_scales
from hamlet.cli.output import print_json, print_table


@app.command(
    epilog="Example: [bold]hamlet evaluate roxford5k --data datasets --model runs/folder/model.pt --json[/bold]"
)
def evaluate(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Which benchmark; see above.")],
    data: Annotated[Path, typer.Option(help="The benchmark's folder as downloaded, or the CSV file of csv.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="A checkpoint, or a model's name (random weights).")],
    out: Annotated[
        Path | None, typer.Option(help="Folder that keeps the descriptors, so that a stopped run goes on.")
    ] = None,
    crop: Annotated[bool, typer.Option(help="Cut the queries of Oxford and Paris to their boxes.")] = True,
    seen: Annotated[
        Path | None,
        typer.Option(
            help="A text file that names the queries whose thing the training set shows, one a line: measure without "
            "them too."
        ),
    ] = None,
    multi_scale: MultiScale = False,
    scales: Scales = None,
    whiten: Whiten = None,
    rerank: Annotated[
        str,
        typer.Option(
            metavar="STEPS",
            help="dba, alpha-qe and diffusion, comma-separated in the order wanted; settings after colons, as in "
            "alpha-qe:k=5:alpha=2: k (10; of diffusion 50), alpha (3; 0.99) and query_k of diffusion (10).",
        ),
    ] = "",
    html: Annotated[
        Path | None, typer.Option(help="Also write what the worst queries found as a self-contained page.")
    ] = None,
    longest_side: Side = 1024,
    dtype: DescriptorType = "float32",
    json_only: Json = False,
) -> None:
    """Measure mAP, precision and cost of a model on a benchmark.

    [bold]oxford5k, paris6k[/bold]: the original protocol; images and text files of the ground truth.

    [bold]roxford5k, rparis6k[/bold]: revisited, easy, medium and hard; [bold]+1m[/bold] adds the distractors.

    [bold]gldv2-retrieval, gldv2-recognition[/bold]: Google Landmarks v2, by mAP@100 and (against train_clean) GAP.

    [bold]folder[/bold]: a subfolder for each class, every image searched among all others.

    [bold]csv[/bold]: a CSV file of image,label and maybe role (query or database), beside its images.

    Under [bold]torchrun[/bold] the processes share the images, and [bold]--out[/bold] must be a folder that all reach.
    """
    from hamlet.retrieval.evaluate import evaluate as measure
    from hamlet.retrieval.search import open_model

    result = measure(
        open_model(model)[0],
        dataset,
        data,
        out=out,
        html=html,
        crop=crop,
        seen=seen,
        whiten=whiten,
        rerank=rerank,
        longest_side=longest_side,
        dtype=dtype,
        scales=chosen_scales(multi_scale, scales),
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
    cropped = "cropped" if result["queries_cropped"] else "whole"
    print_table(f"{dataset} (percent, queries {cropped})", ("", *measures), rows)
    cost = [
        (name, f"{value:,}" if isinstance(value, int) else f"{value:.4g}") for name, value in result["cost"].items()
    ]
    print_table("cost of one image", ("", ""), cost)
