"""The `hamlet` command: results on stdout, progress and warnings on stderr; exit codes 0 ok, 1 failure, 2 usage.

One file a command; `--help` lists them in the order of this list.
"""

from importlib import import_module

from hamlet.cli.commands import app, main

__all__ = ["app", "main"]

for command in ("demo", "teach", "train", "ablate", "index", "search", "whiten", "evaluate", "profile", "info"):
    import_module(f"hamlet.cli.{command}")
