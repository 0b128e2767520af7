"""The command line in two processes that the real ``torchrun`` starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

# Interpreters take long to start: one start for several commands, each with the exit code that it must have.
COMMANDS = """
import json, sys
from hamlet.cli import app
from hamlet.processes import end_group
for code, line in json.loads(sys.argv[1]):
    try:
        app(line, prog_name="hamlet")
    except SystemExit as end:
        assert end.code == code, end.code
end_group()
"""


def torchrun(*commands: tuple[int, tuple[object, ...]]) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    line += [
        sys.executable,
        "-c",
        COMMANDS,
        json.dumps([(code, [str(word) for word in words]) for code, words in commands]),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, timeout=200, env=environment)
