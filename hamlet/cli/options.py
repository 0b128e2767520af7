"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint, or a model's name (random weights).")
]
Json = Annotated[bool, typer.Option("--json", help="Print nothing but JSON on stdout.")]
MultiScale = Annotated[
    bool, typer.Option("--multi-scale", help="Average the descriptors of three scales: 0.7071, 1 and 1.4142.")
]
Scales = Annotated[
    str | None,
    typer.Option("--scales", metavar="FACTORS", help="Average those of other scales, such as 1,0.7071,0.5."),
]
Side = Annotated[int, typer.Option(min=32, help="Longest side in pixels to which images are shrunk.")]
Whiten = Annotated[Path | None, typer.Option(help="A file that [bold]hamlet whiten[/bold] wrote.")]
DescriptorType = Annotated[
    Literal["float32", "float16"],
    typer.Option("--dtype", help="Type of kept descriptors; float16 takes half the space."),
]
Nprobe = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Inverted lists that a search visits (IVF...): more find more, and take longer. Default: what "
        "[bold]hamlet index[/bold] was given, or the square root of how many there are.",
    ),
]


def chosen_scales(multi_scale: bool, scales: str | None) -> tuple[float, ...]:
    """The scales that an image is described at, by the options of these names."""
    from hamlet.retrieval.extraction import SCALES

    if scales is None:
        return SCALES if multi_scale else (1.0,)
    if multi_scale:
        raise typer.BadParameter("give one of --multi-scale and --scales", param_hint="--scales")
    try:
        return tuple(float(factor) for factor in scales.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"got {scales!r}, expected numbers such as 1,0.7071,0.5", param_hint="--scales"
        ) from None
