"""Two hundred images of twenty kinds of trouble among good ones: each is described as it looks, or has its reason."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from hamlet.cli import app
from hamlet.images import list_images
from hamlet.retrieval.extraction import extract

EACH = 10
Draw = Callable[[int], Image.Image]


def drawn(number: int) -> Image.Image:
    """Coarse squares of full colours, that the number chooses."""
    coarse = np.random.default_rng(number).integers(0, 2, (3, 4, 3), dtype=np.uint8) * 255
    return Image.fromarray(coarse).resize((32, 24), Image.Resampling.NEAREST)


def encoded(number: int, format: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    drawn(number).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def cut(format: str) -> Callable[[Path, int], None]:
    """Truncated after a twelfth to ten twelfths."""

    def write(path: Path, number: int) -> None:
        content = encoded(number, format, **({"compression": "tiff_lzw"} if format == "TIFF" else {}))
        path.write_bytes(content[: len(content) * (number % EACH + 1) // (EACH + 2)])

    return write


def random_bytes(path: Path, number: int) -> None:
    path.write_bytes(np.random.default_rng(number).bytes(1 << number % EACH))


def other_documents(path: Path, number: int) -> None:
    kinds = (b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!doctype html>", b"PK\3\4", b"\x7fELF")
    path.write_bytes(kinds[number % 5] + b"\n" * number)


def bomb(path: Path, number: int) -> None:
    """A PNG that says it has up to 4,000,000,000,000 pixels, and a few bytes of them."""
    side = 10_000 + number % EACH * 200_000
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    framed = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def broken_exif(path: Path, number: int) -> None:
    path.write_bytes(encoded(number, "PNG", exif=b"Exif\0\0" + np.random.default_rng(number).bytes(40)))


def wrong_checksum(path: Path, number: int) -> None:
    content = bytearray(encoded(number, "PNG"))
    content[content.index(b"IDAT") + 8 + number % EACH] ^= 0xFF
    path.write_bytes(content)


def animated(path: Path, number: int) -> None:
    path.write_bytes(encoded(number, "WEBP", lossless=True, save_all=True, append_images=[drawn(number + 1)]))


def sixteen_bits(path: Path, number: int) -> None:
    grey = np.asarray(drawn(number).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(path)


def socket_file(path: Path, number: int) -> None:
    # A socket's path must be short: it is bound from inside its folder.
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def saved(format: str, mode: str = "RGB", **options: object) -> Callable[[Path, int], None]:
    return lambda path, number: path.write_bytes(encoded(number, format, mode, **options)) and None


def grey(number: int) -> Image.Image:
    return drawn(number).convert("L").convert("RGB")


# Name with {} for the number; how to write it; and how it must look, or the reason why it is left out.
KINDS: dict[str, tuple[str, Callable[[Path, int], object], Draw | str]] = {
    "empty": ("empty{}.jpg", lambda path, number: path.touch(), "the file is empty"),
    "cut JPEG": ("cut{}.jpg", cut("JPEG"), r"image file is truncated|not an image|broken|Truncated"),
    "cut PNG": ("cut{}.png", cut("PNG"), r"truncated|not an image|broken|Truncated"),
    "cut TIFF": ("cut{}.tif", cut("TIFF"), r".+"),
    "noise": ("noise{}.gif", random_bytes, "not an image of a known format"),
    "another document": ("paper{}.png", other_documents, "not an image of a known format"),
    "bomb": ("bomb{}.png", bomb, r"\d+ x \d+ pixels, expected at most|\d+ pixels\) exceeds limit"),
    "wrong checksum": ("sum{}.png", wrong_checksum, r"broken|checksum"),
    "folder": ("folder{}.jpg", lambda path, number: path.mkdir(), "a folder, in spite of its name"),
    "dead link": ("dead{}.jpg", lambda path, number: path.symlink_to(f"gone{number}.jpg"), "No such file or directory"),
    "link to itself": ("loop{}.jpg", lambda path, number: path.symlink_to(path.name), "Too many levels of symbolic"),
    "link outside": (
        "out{}.png",
        lambda path, number: path.symlink_to("/etc/hostname"),
        "a link that leaves the folder",
    ),
    "pipe": ("pipe{}.jpg", lambda path, number: os.mkfifo(path), "not a regular file"),
    "socket": ("socket{}.jpg", socket_file, "not a regular file"),
    "wrong extension": ("bitmap{}.jpg", saved("BMP"), drawn),
    "CMYK": ("cmyk{}.tif", saved("TIFF", "CMYK"), drawn),
    "16 bits": ("deep{}.png", sixteen_bits, grey),
    "broken EXIF": ("exif{}.png", broken_exif, drawn),
    "animation": ("film{}.webp", animated, drawn),
    "odd name": (os.fsdecode(b"caf\xe9 [bold]\n\x1b[31m{}.png"), saved("PNG", "RGBA"), drawn),
}


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("an image was waited for")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(20):
        drawn(number).save(folder / f"good{number}.png")
    for kind, (name, write, _) in enumerate(KINDS.values()):
        for number in range(kind * EACH, (kind + 1) * EACH):
            write(folder / name.format(number), number)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_every_one_is_described_as_it_looks_or_has_its_reason(
    model: nn.Module, folder: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    found = extract(model, list_images(folder), tmp_path / "out", workers=workers, batch_size=4)
    described = dict(zip(found.ids, found.descriptors, strict=True))
    reasons = dict(found.failures)
    assert len(described) + len(reasons) == len(found.ids) + len(found.failures) == 20 + len(KINDS) * EACH == 220
    expected: dict[str, Draw | str] = {}
    pictures = {f"good{number}.png": drawn(number) for number in range(20)}
    for kind, (name, _, verdict) in enumerate(KINDS.values()):
        for number in range(kind * EACH, (kind + 1) * EACH):
            expected[name.format(number)] = verdict
            if not isinstance(verdict, str):
                pictures[name.format(number)] = verdict(number)
    assert described.keys() == pictures.keys()
    for name, picture in pictures.items():
        with torch.no_grad():
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
            assert np.allclose(described[name], model([pixels])[0].numpy(), atol=1e-5), name
    for name, reason in reasons.items():
        verdict = expected[name]
        assert isinstance(verdict, str)
        assert re.search(verdict, reason), (name, reason)
        assert reason.isprintable()
    told = capfd.readouterr().err
    assert "140 images have no descriptor" in told
    assert all(f"  {name}: {reason}\n" in told for name, reason in reasons.items())


def test_the_command_indexes_the_rest_and_tells_of_each_in_a_line(folder: Path, tmp_path: Path) -> None:
    line = ("index", "gem_mobilenetv3_small", folder, "--out", tmp_path / "a.index", "--longest-side", 32)
    result = CliRunner().invoke(app, [str(word) for word in line])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'a.index'}: 80 images, 140 left out\n"
    assert result.stderr.count("\n  ") == 140
    found = CliRunner().invoke(app, ["search", str(tmp_path / "a.index"), str(folder / "good3.png"), "--top", "80"])
    assert found.exit_code == 0, found.output
    assert "caf\\udce9 [bold]\\n\\x1b[31m190.png" in re.sub(r"\s*\n\s*", "", found.stdout)
