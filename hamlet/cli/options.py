"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint, or a model's name (random weights).")
]
Json = Annotated[bool, typer.Option("--json", help="Print nothing but JSON on stdout.")]
MultiScale = Annotated[
    bool, typer.Option("--multi-scale", help="Average the descriptors of three scales: 0.7071, 1 and 1.4142.")
]
Side = Annotated[int, typer.Option(min=32, help="Longest side in pixels to which images are shrunk.")]
