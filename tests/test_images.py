from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hamlet import images
from hamlet.images import UnreadableImage, inside, list_images, load_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def pixels(image: torch.Tensor) -> list[list[tuple[int, ...]]]:
    return [[tuple(pixel) for pixel in row] for row in image.permute(1, 2, 0).tolist()]


def two_by_two(mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (2, 2))
    image.putdata([RED, GREEN, BLUE, WHITE])
    return image.convert(mode)


def palette_with_transparency(path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putdata([0, 1])
    image.save(path, transparency=1)


def grey_with_alpha(path: Path) -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(100, 255), (100, 0)])
    image.save(path)


def half_transparent(path: Path) -> None:
    Image.new("RGBA", (2, 1), (0, 0, 0, 51)).save(path)


def transparent_colour(path: Path) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    image.save(path, transparency=GREEN)


def sixteen_bit(path: Path) -> None:
    Image.fromarray(np.array([[0, 65535], [257 * 100, 300]], dtype=np.uint16)).save(path)


def thirty_two_bit(path: Path) -> None:
    Image.fromarray(np.array([[0, 65535], [25700, 70000]], dtype=np.int32)).save(path)


def floating(path: Path) -> None:
    Image.fromarray(np.array([[0.0, 1.0], [0.2, np.nan]], dtype=np.float32)).save(path)


def one_bit(path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    image.save(path)


def animation(path: Path) -> None:
    frames = [Image.new("P", (2, 1), index) for index in range(2)]
    for frame in frames:
        frame.putpalette([*BLUE, *RED])
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cmyk(path: Path) -> None:
    Image.new("CMYK", (2, 1), (0, 255, 255, 0)).save(path)


GREY = {n: (n, n, n) for n in range(256)}
ODD: dict[str, tuple[str, Callable[[Path], None], list[list[tuple[int, ...]]]]] = {
    "rgb": ("a.png", lambda path: two_by_two().save(path), [[RED, GREEN], [BLUE, WHITE]]),
    "bitmap": ("a.bmp", lambda path: two_by_two().save(path), [[RED, GREEN], [BLUE, WHITE]]),
    "lossless webp": ("a.webp", lambda path: two_by_two().save(path, lossless=True), [[RED, GREEN], [BLUE, WHITE]]),
    "grey": ("a.png", lambda path: Image.new("L", (2, 1), 77).save(path), [[GREY[77]] * 2]),
    "one bit": ("a.png", one_bit, [[GREY[0], GREY[255]]]),
    "palette with transparency": ("a.png", palette_with_transparency, [[RED, WHITE]]),
    "gif palette with transparency": ("a.gif", palette_with_transparency, [[RED, WHITE]]),
    "grey with alpha": ("a.png", grey_with_alpha, [[GREY[100], WHITE]]),
    "alpha of one fifth": ("a.png", half_transparent, [[GREY[204]] * 2]),
    "transparent colour": ("a.png", transparent_colour, [[RED, WHITE]]),
    "16 bit": ("a.png", sixteen_bit, [[GREY[0], GREY[255]], [GREY[100], GREY[1]]]),
    "16-bit tiff": ("a.tif", sixteen_bit, [[GREY[0], GREY[255]], [GREY[100], GREY[1]]]),
    "32-bit tiff": ("a.tif", thirty_two_bit, [[GREY[0], GREY[255]], [GREY[100], GREY[255]]]),
    "floating tiff": ("a.tif", floating, [[GREY[0], GREY[255]], [GREY[51], GREY[0]]]),
    "cmyk tiff": ("a.tif", cmyk, [[RED, RED]]),
    "animation": ("a.gif", animation, [[BLUE, BLUE]]),
    "wrong extension": ("a.jpg", lambda path: two_by_two().save(path, format="PNG"), [[RED, GREEN], [BLUE, WHITE]]),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_image(kind: str, tmp_path: Path) -> None:
    name, write, expected = ODD[kind]
    write(tmp_path / name)
    image = load_image(tmp_path / name)
    assert image.dtype == torch.uint8
    assert pixels(image) == expected


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    image = load_image(tmp_path / "a.jpg").int()
    assert image.shape == (3, 8, 16)
    assert (image - torch.tensor(RED)[:, None, None]).abs().max() <= 4


# What the viewer must see is [[red, green], [blue, white]]; how the camera stored it follows from the EXIF standard.
STORED = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [GREEN, WHITE, RED, BLUE],
    7: [WHITE, GREEN, BLUE, RED],
    8: [BLUE, RED, WHITE, GREEN],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_orientation(orientation: int, name: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2))
    image.putdata(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif)
    assert pixels(load_image(tmp_path / name)) == [[RED, GREEN], [BLUE, WHITE]]


def test_exif_turns_a_jpeg_before_its_longest_side_is_met(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 100)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg", longest_side=40).shape == (3, 40, 10)


def test_broken_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    two_by_two().resize((16, 16)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert load_image(tmp_path / "a.jpg").shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("size", "side", "expected"), [((300, 200), 30, (20, 30)), ((30, 20), 300, (20, 30)), ((1, 900), 90, (90, 1))]
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_longest_side_shrinks_and_never_enlarges(
    size: tuple[int, int], side: int, expected: tuple[int, int], name: str, tmp_path: Path
) -> None:
    Image.new("RGB", size, RED).save(tmp_path / name)
    assert load_image(tmp_path / name, longest_side=side).shape[1:] == expected


def test_box_is_cut_with_the_rounding_of_pil(tmp_path: Path) -> None:
    image = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    # Python rounds halves to the even number: 2.5 to 2, 3.5 to 4.
    found = load_image(tmp_path / "a.png", box=[2.5, 0.6, 7.4, 3.5])
    assert np.array_equal(found.permute(1, 2, 0).numpy(), image[1:4, 2:7])


def png(width: int, height: int) -> bytes:
    """A PNG that declares a size and has next to no data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format=format)
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(64) + content[middle + 64 :]


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"this is no picture\n", "not an image"),
    "html": (b"<!doctype html><title>404</title>", "not an image"),
    "zeros": (bytes(4096), "not an image"),
    "jpeg header alone": (encoded("JPEG")[:20], "not an image"),
    "truncated jpeg": (encoded("JPEG")[:-1500], "truncated"),
    "truncated png": (encoded("PNG")[:-5000], "truncated"),
    "truncated gif": (encoded("GIF")[:-2000], "truncated"),
    "truncated bmp": (encoded("BMP")[:-2000], "truncated"),
    "truncated tiff": (encoded("TIFF")[:-2000], "truncated"),
    "truncated webp": (encoded("WEBP")[:-500], "decoder"),
    "damaged png": (damaged(encoded("PNG")), "broken data"),
    "png without data": (png(10, 10), "truncated"),
    "png of no width": (png(0, 10), "not an image"),
    "png that declares 10 gigapixels": (png(100_000, 100_000), "10000000000 pixels"),
    "png just too large": (png(10_000, 10_000), "10000 x 10000 pixels, expected at most"),
    "pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07payload\x94.", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_image_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    content, reason = BROKEN[kind]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        load_image(tmp_path / "a.jpg")
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in {"pipe.jpg": "regular", "folder.jpg": "regular", "none.jpg": "No such file"}.items():
        with pytest.raises(UnreadableImage, match=reason):
            load_image(tmp_path / name)


def test_pixels_are_bounded(tmp_path: Path) -> None:
    two_by_two().save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", max_pixels=4).shape == (3, 2, 2)
    with pytest.raises(UnreadableImage, match="2 x 2 pixels, expected at most 3"):
        load_image(tmp_path / "a.png", max_pixels=3)
    with pytest.raises(UnreadableImage, match="expected at most"):
        load_image(tmp_path / "a.png", box=[0, 0, 1e6, 1e6])


def test_folder_is_searched_recursively_in_order(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a/x/y.webp", "c.txt", "d.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_images(tmp_path).names == ["a/x/y.webp", "b/1.png", "b/2.JPG", "d.gif"]


def test_a_folder_that_cannot_be_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b/locked/c.png", "d.JFIF"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, format="png")
    scandir = os.scandir

    def refuse(folder: str) -> Any:
        if str(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    images = list_images(tmp_path)
    assert list(images.names) == ["a.png", "d.JFIF"]
    assert list(images.skipped) == [("b/locked", "Permission denied")]


def test_links_that_leave_a_folder_are_reported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for place in ("in/a.png", "out/secret.png"):
        two_by_two().save(tmp_path / place)
    (tmp_path / "in/b.png").symlink_to("a.png")
    (tmp_path / "in/c.png").symlink_to(tmp_path / "out/secret.png")
    (tmp_path / "in/d").symlink_to(tmp_path / "out")
    images = list_images(tmp_path / "in")
    assert images.names == ["a.png", "b.png"]
    assert [name for name, _ in images.skipped] == ["c.png", "d"]
    with pytest.raises(ValueError, match="link that leaves"):
        images.path("c.png")
    with pytest.raises(ValueError, match="link that leaves"):
        images.path("d/secret.png")


def test_list_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b.png\n\n  sub/a.png  \r\n./c.png\n")
    images = list_images(tmp_path / "list.txt", root=tmp_path / "photos")
    assert images.names == ["b.png", "sub/a.png", "c.png"]
    assert images.path("c.png") == tmp_path / "photos" / "c.png"
    assert list_images(tmp_path / "list.txt").root == tmp_path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/etc/passwd", "absolute"),
        ("../a.png", r"\.\."),
        ("a/../../b.png", r"\.\."),
        ("ok.png", "twice"),
        ("a\0b", "null"),
    ],
)
def test_unsafe_or_repeated_path_in_a_list(line: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"ok.png\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2: .*{reason}"):
        list_images(tmp_path / "list.txt")


def test_list_through_a_link_that_leaves(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    (tmp_path / "root" / "list.txt").write_text("link/secret.png\n")
    with pytest.raises(ValueError, match="link that leaves the folder"):
        list_images(tmp_path / "root" / "list.txt")


def test_nothing_to_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        list_images(tmp_path / "none")
    with pytest.raises(ValueError, match="no image found"):
        list_images(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        list_images(tmp_path / "list.txt")


@pytest.mark.parametrize("name", ["", "/a", "..", "a/..", "a\0"])
def test_inside_refuses(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected one below"):
        inside(tmp_path, name)


def test_longest_side_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longest_side: got 0"):
        load_image(tmp_path / "a.png", longest_side=0)


@pytest.mark.parametrize("format", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_random_damage_gives_a_picture_or_a_reason(format: str, tmp_path: Path) -> None:
    content = encoded(format)
    generator = np.random.default_rng(0)
    reasons = []
    for _ in range(60):
        spoiled = bytearray(content)
        # Headers are where decoders are led astray.
        for place in generator.integers(0, generator.choice([40, len(content)]), 3):
            spoiled[place] = generator.integers(256)
        (tmp_path / "a").write_bytes(spoiled)
        try:
            image = load_image(tmp_path / "a", longest_side=50, max_pixels=1_000_000)
            assert image.dtype == torch.uint8
            assert image.shape[0] == 3
            assert 1 <= min(image.shape[1:]) <= max(image.shape[1:]) <= 50
        except UnreadableImage as error:
            reasons.append(str(error))
    assert reasons
    assert all(reason and "\n" not in reason for reason in reasons)


def test_a_picture_read_beside_another_leaves_the_filters_of_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.png", "2.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    begun = {name: threading.Event() for name in ("1.png", "2.png")}
    may_end = {name: threading.Event() for name in ("1.png", "2.png")}
    decode = images._decode

    def slowly(file: Any, *rest: Any) -> Any:
        name = Path(file.filename).name
        begun[name].set()
        assert may_end[name].wait(20)
        return decode(file, *rest)

    monkeypatch.setattr(images, "_decode", slowly)
    threads = {name: threading.Thread(target=load_image, args=(tmp_path / name,)) for name in begun}
    before = list(warnings.filters)
    for name, thread in threads.items():
        thread.start()
        assert begun[name].wait(20)
    assert warnings.filters[0][0] == "ignore"
    for name, thread in threads.items():
        may_end[name].set()
        thread.join(20)
    assert warnings.filters == before
