"""The `hamlet` command: results on stdout, progress and warnings on stderr; exit codes 0 ok, 1 failure, 2 usage.

One file a command; `--help` lists them in the order of this list.
"""

from importlib import import_module

from hamlet.cli.commands import app, main

__all__ = ["app", "main"]

COMMANDS = (
    *("demo", "teach", "train", "ablate", "compare"),
    *("index", "search", "whiten", "evaluate", "profile", "info"),
)
for command in COMMANDS:
    import_module(f"hamlet.cli.{command}")
