"""The README's promises that can be checked without a fresh machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_block_is_the_two_commands():
    assert BLOCKS[0] == ("bash", "pip install -e . && hamlet demo\npip install -e '.[test]' && pytest\n")


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_blocks_run(code):
    scope: dict = {}
    exec(compile(code, "README.md", "exec"), scope)
    # The last line that gives a name its value says in a comment of which shape.
    shapes = dict(re.findall(r"^ *(\w+) = .*# (\([\d, ]+\))", code, re.MULTILINE))
    assert shapes
    for name, shape in shapes.items():
        assert str(tuple(scope[name].shape)) == shape


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
