"""Photos in and out, on real pixels: every format and mode, every way a file can be broken."""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
from PIL import Image, ImageCms

from facepipe import images
from facepipe.errors import OutputError, PhotoError, UsageError
from facepipe.faces import UInt8Array
from facepipe.images import find_photos, photo_sha256, read_image, write_image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIC")
Recipe = Callable[[Image.Image], tuple[Image.Image, str]]


def encode(picture: Image.Image, image_format: str, **options: object) -> bytes:
    stream = BytesIO()
    if image_format == "HEIC":
        pillow_heif.from_pillow(picture).save(stream, quality=90, **options)
    else:
        picture.save(stream, image_format, **options)
    return stream.getvalue()


def difference(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.fixture(scope="module")
def picture(astronaut: UInt8Array) -> Image.Image:
    return Image.fromarray(astronaut)


@pytest.fixture(scope="module")
def encoded(picture: Image.Image) -> dict[str, bytes]:
    return {name: encode(picture, name) for name in FORMATS}


# Formats and modes


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_upright_rgb(
    encoded: dict[str, bytes], astronaut: UInt8Array, name: str
) -> None:
    rgb = read_image(encoded[name])
    assert rgb.dtype == np.uint8
    assert rgb.flags.c_contiguous
    assert rgb.flags.writeable
    assert difference(rgb, astronaut) < 4


def profiled_lab(picture: Image.Image) -> Image.Image:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
    assert converted is not None
    return converted


COLOUR_MODES: dict[str, tuple[Callable[[Image.Image], Image.Image], str, float]] = {
    "RGBA opaque": (lambda p: p.convert("RGBA"), "PNG", 0),
    "RGBA WebP": (lambda p: p.convert("RGBA"), "WEBP", 4),
    "palette": (lambda p: p.quantize(256), "PNG", 8),
    "palette BMP": (lambda p: p.quantize(256), "BMP", 8),
    "palette with alpha TIFF": (lambda p: p.quantize(256).convert("PA"), "TIFF", 8),
    "CMYK JPEG (Adobe, inverted)": (lambda p: p.convert("CMYK"), "JPEG", 4),
    "CMYK TIFF": (lambda p: p.convert("CMYK"), "TIFF", 0),
    "YCbCr TIFF": (lambda p: p.convert("YCbCr"), "TIFF", 2),
}


@pytest.mark.parametrize("name", COLOUR_MODES)
def test_colour_modes(picture: Image.Image, astronaut: UInt8Array, name: str) -> None:
    convert, image_format, tolerance = COLOUR_MODES[name]
    assert difference(read_image(encode(convert(picture), image_format)), astronaut) <= tolerance


def test_a_mode_this_pillow_cannot_convert_is_a_photo_error_or_right(
    picture: Image.Image, astronaut: UInt8Array
) -> None:
    file = encode(profiled_lab(picture), "TIFF")
    try:
        rgb = read_image(file)
    except PhotoError as error:
        assert "export it again" in str(error)  # noqa: PT017
    else:
        assert difference(rgb, astronaut) < 2


def gray_16(gray: UInt8Array) -> npt.NDArray[np.uint16]:
    return gray.astype(np.uint16) * 257


GRAY_MODES: dict[str, tuple[Callable[[UInt8Array], Image.Image], str]] = {
    "L": (Image.fromarray, "PNG"),
    "L GIF": (Image.fromarray, "GIF"),
    "LA": (lambda g: Image.fromarray(g).convert("LA"), "PNG"),
    "16 bit": (lambda g: Image.fromarray(gray_16(g)), "PNG"),
    "16 bit TIFF": (lambda g: Image.fromarray(gray_16(g)), "TIFF"),
    "16 bit big-endian TIFF": (lambda g: Image.fromarray(gray_16(g)).convert("I").convert("I;16B"), "TIFF"),
    "32-bit integers up to 65535": (lambda g: Image.fromarray(gray_16(g).astype(np.int32)), "TIFF"),
    "32-bit integers up to 255": (lambda g: Image.fromarray(g.astype(np.int32)), "TIFF"),
    "floats up to 1": (lambda g: Image.fromarray(g.astype(np.float32) / 255), "TIFF"),
    "floats up to 255": (lambda g: Image.fromarray(g.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("name", GRAY_MODES)
def test_gray_modes_become_three_equal_channels(picture: Image.Image, name: str) -> None:
    gray = np.array(picture.convert("L"))
    make, image_format = GRAY_MODES[name]
    rgb = read_image(encode(make(gray), image_format))
    for channel in range(3):
        assert np.array_equal(rgb[..., channel], gray)


def test_16_bit_is_rounded_over_the_full_range() -> None:
    values = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16)
    rgb = read_image(encode(Image.fromarray(values), "PNG"))
    assert rgb[0, :, 0].tolist() == [0, 0, 1, 1, 1, 2, 254, 255, 255]


def test_not_finite_and_negative_floats_are_black() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -3, 0.5, 1]], np.float32)
    rgb = read_image(encode(Image.fromarray(values), "TIFF"))
    assert rgb[0, :, 0].tolist() == [0, 0, 0, 0, 128, 255]


def test_one_bit_is_black_and_white(picture: Image.Image) -> None:
    bits = picture.convert("1")
    rgb = read_image(encode(bits, "PNG"))
    assert np.array_equal(rgb[..., 0] == 255, np.array(bits))
    assert set(np.unique(rgb)) == {0, 255}


def half_transparent(picture: Image.Image) -> tuple[Image.Image, str]:
    layer = picture.convert("RGBA")
    layer.paste((10, 20, 30, 0), (0, 0, 512, 256))
    return layer, "PNG"


def gray_with_alpha(picture: Image.Image) -> tuple[Image.Image, str]:
    return half_transparent(picture)[0].convert("LA"), "PNG"


def transparent_palette(picture: Image.Image) -> tuple[Image.Image, str]:
    palette = Image.new("P", (512, 512), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(0, (0, 0, 512, 256))
    palette.info["transparency"] = bytes([0, 255])
    return palette, "PNG"


def transparent_gif(picture: Image.Image) -> tuple[Image.Image, str]:
    palette, _ = transparent_palette(picture)
    palette.info["transparency"] = 0
    return palette, "GIF"


def transparent_colour(picture: Image.Image) -> tuple[Image.Image, str]:
    opaque = picture.copy()
    opaque.paste((1, 2, 3), (0, 0, 512, 256))
    opaque.info["transparency"] = (1, 2, 3)
    return opaque, "PNG"


@pytest.mark.parametrize(
    "recipe",
    [half_transparent, gray_with_alpha, transparent_palette, transparent_gif, transparent_colour],
    ids=lambda recipe: recipe.__name__,
)
def test_transparent_parts_lie_over_white(picture: Image.Image, recipe: Recipe) -> None:
    layer, image_format = recipe(picture)
    options = {"transparency": layer.info["transparency"]} if "transparency" in layer.info else {}
    rgb = read_image(encode(layer, image_format, **options))
    assert (rgb[:256] == 255).all()
    assert (rgb[256:] != 255).mean() > 0.9


def test_half_transparency_is_blended() -> None:
    rgb = read_image(encode(Image.new("RGBA", (2, 2), (0, 100, 200, 51)), "PNG"))
    assert np.abs(rgb.astype(int) - (204, 224, 244)).max() <= 1


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_the_first_of_several_frames_is_read(picture: Image.Image, image_format: str) -> None:
    first, second = Image.new("RGB", (64, 48), (200, 30, 30)), Image.new("RGB", (64, 48), (30, 200, 30))
    rgb = read_image(encode(first, image_format, save_all=True, append_images=[second]))
    assert rgb.shape == (48, 64, 3)
    assert np.abs(rgb.astype(int) - (200, 30, 30)).mean() < 6


def test_one_pixel() -> None:
    assert read_image(encode(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).tolist() == [[[9, 8, 7]]]


def test_photos_wider_and_taller_than_a_strip_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_STRIP_PIXELS", 100)
    pixels = np.random.default_rng(0).integers(0, 256, (37, 150, 3), np.uint8)
    assert np.array_equal(read_image(encode(Image.fromarray(pixels), "PNG")), pixels)
    assert np.array_equal(read_image(encode(Image.fromarray(pixels[:, :7]), "PNG")), pixels[:, :7])


# Orientation

TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied(picture: Image.Image, image_format: str, orientation: int) -> None:
    upright = picture.crop((100, 0, 400, 200))
    turn = TURNED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(upright if turn is None else upright.transpose(turn), image_format, exif=exif.tobytes())
    assert difference(read_image(file), np.array(upright)) < 4


def test_heic_rotation_is_applied_once(picture: Image.Image) -> None:
    upright = picture.crop((100, 0, 400, 200))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encode(upright.transpose(Image.Transpose.ROTATE_90), "HEIC", exif=exif.tobytes())
    assert difference(read_image(file), np.array(upright)) < 4


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"Exif\0\0"])
def test_damaged_exif_does_not_cost_the_photo_nor_warn(
    picture: Image.Image, astronaut: UInt8Array, exif: bytes
) -> None:
    file = encode(picture, "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(read_image(file), astronaut) < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_meaningless_orientations_are_ignored(picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture.crop((0, 0, 300, 200))
    assert read_image(encode(upright, "PNG", exif=exif.tobytes())).shape == (200, 300, 3)


# Broken files


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_header(file: bytes, width: int, height: int) -> bytes:
    start = file.index(b"\xff\xc0") + 5
    return file[:start] + struct.pack(">HH", height, width) + file[start + 4 :]


@pytest.mark.parametrize("share", [0.03, 0.5, 0.95])
@pytest.mark.parametrize("name", FORMATS)
def test_a_photo_cut_off_is_an_error_and_never_half_a_picture(
    encoded: dict[str, bytes], tmp_path: Path, name: str, share: float
) -> None:
    path = tmp_path / f"cut.{name.lower()}"
    path.write_bytes(encoded[name][: int(len(encoded[name]) * share)])
    with pytest.raises(PhotoError, match="damaged") as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty"),
    "text.jpg": (b"Dear diary, " * 50, "not a photo in a known format"),
    "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", "not a photo in a known format"),
    "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a photo in a known format"),
    "signature_only.png": (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "damaged"),
    "huge.png": (png_header(30_000, 30_000), "more than 200,000,000 pixels"),
    "wide.png": (png_header(1 << 30, 1), "more than 200,000,000 pixels"),
    "no_width.png": (png_header(0, 10), "damaged"),
    "sound.heic": (b"\0\0\0\x18ftypheic" + b"\0" * 40, "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_the_cure(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=reason) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes_give_a_photo_or_a_photo_error(encoded: dict[str, bytes], name: str) -> None:
    random = np.random.default_rng(len(encoded[name]))
    for _ in range(10):
        noisy = np.frombuffer(encoded[name], np.uint8).copy()
        noisy[random.integers(12, len(noisy), 20)] = random.integers(0, 256, 20)
        try:
            assert read_image(noisy.tobytes(), max_pixels=10_000_000).ndim == 3
        except PhotoError as error:
            assert str(error).startswith("photo from memory: ")  # noqa: PT017


def test_missing_files_and_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"nowhere\.jpg: no such file"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(PhotoError, match="this is a folder"):
        read_image(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(PhotoError, match="not an ordinary file"):
            read_image(tmp_path / "pipe.jpg")


def test_no_permission(tmp_path: Path, encoded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.jpg"
    path.write_bytes(encoded["JPEG"])
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(PhotoError, match=r"locked\.jpg: no permission to read it"):
        read_image(path)


@pytest.mark.parametrize(
    "name", ["Zoë Łukasz.jpg", "王小明.jpg", "שלום 😀.jpg", "no suffix", "a b'\"[1].jpg"]
)
def test_any_file_name_is_read(tmp_path: Path, encoded: dict[str, bytes], name: str) -> None:
    (tmp_path / name).write_bytes(encoded["JPEG"])
    assert read_image(str(tmp_path / name)).shape == (512, 512, 3)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(PhotoError) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no file names that are not Unicode")
def test_file_names_that_are_not_unicode(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as stream:
        stream.write(encoded["JPEG"])
    assert read_image(os.fsdecode(path)).shape == (512, 512, 3)
    with pytest.raises(PhotoError) as caught:
        read_image(os.fsdecode(path) + "x")
    str(caught.value).encode()


def test_heic_without_its_extra_says_what_to_install(
    encoded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(PhotoError, match=r"pip install 'facepipe\[heic\]'"):
        read_image(encoded["HEIC"])


# The size limit


@pytest.mark.parametrize("name", FORMATS)
def test_the_limit_is_exact_and_configurable(encoded: dict[str, bytes], name: str) -> None:
    assert read_image(encoded[name], max_pixels=512 * 512).shape == (512, 512, 3)
    for limit in (512 * 512 - 1, 512 * 512 - 2, 1000):
        with pytest.raises(PhotoError, match=f"more than {limit:,} pixels"):
            read_image(encoded[name], max_pixels=limit)


def test_a_large_header_is_refused_before_anything_is_decoded(encoded: dict[str, bytes]) -> None:
    with pytest.raises(PhotoError, match="more than 200,000,000 pixels"):
        read_image(jpeg_header(encoded["JPEG"], 65_000, 65_000))


@pytest.mark.parametrize("name", FORMATS)
def test_pillows_own_limit_is_neither_obeyed_nor_changed(
    encoded: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(encoded[name]).shape == (512, 512, 3)
    with pytest.raises(PhotoError):
        read_image(encoded[name][:300])
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_reading_in_threads_leaves_the_process_as_it_was(
    encoded: dict[str, bytes], astronaut: UInt8Array
) -> None:
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read_image, [encoded[name] for name in ("JPEG", "TIFF", "WEBP")] * 8))
    assert all(difference(rgb, astronaut) < 4 for rgb in results)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


# Real photos


def test_real_photos_are_read_as_an_independent_decoder_reads_them(shared_data: Path) -> None:
    import cv2

    paths = find_photos([shared_data / "photos" / "people" / "enroll"])
    assert len(paths) == 80
    for path in paths[::8]:
        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        expected = decoded[..., ::-1].astype(np.uint8)
        assert difference(read_image(path), expected) < 2


def test_the_same_photo_has_the_same_sha256(tmp_path: Path, encoded: dict[str, bytes]) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded["JPEG"])
    (tmp_path / "b.jpg").write_bytes(encoded["JPEG"])
    (tmp_path / "c.jpg").write_bytes(encoded["PNG"])
    a, b, c = (photo_sha256(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg"))
    assert a == b != c
    assert len(a) == 64
    with pytest.raises(PhotoError, match=r"d\.jpg: no such file"):
        photo_sha256(tmp_path / "d.jpg")


# Finding


@pytest.fixture
def album(tmp_path: Path) -> Path:
    names = [
        "img10.jpg",
        "img2.JPG",
        "Img1.heic",
        "notes.txt",
        ".hidden.jpg",
        "sub/b.png",
        "sub/deep/a.webp",
        ".secret/c.jpg",
        "empty/readme.md",
        "[odd] name.jpg",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


ALL = ["[odd] name.jpg", "Img1.heic", "img2.JPG", "img10.jpg", "sub/b.png", "sub/deep/a.webp"]
FOUND: dict[str, tuple[list[str], list[str]]] = {
    "a folder, files first, natural order": (["."], ALL),
    "an odd suffix as given": (["notes.txt"], ["notes.txt"]),
    "a missing file as given": (["gone.jpg", "img2.JPG"], ["gone.jpg", "img2.JPG"]),
    "order as given, duplicates once": (
        ["sub", "img10.jpg", "sub/b.png", "./img10.jpg", "sub/../img10.jpg"],
        ["sub/b.png", "sub/deep/a.webp", "img10.jpg"],
    ),
    "a glob": (["img*.jpg"], ["img10.jpg"]),
    "a glob takes photos and folders only": (["*"], ALL),
    "a recursive glob": (["**/*.webp"], ["sub/deep/a.webp"]),
    "a file whose name looks like a glob": (["[odd] name.jpg"], ["[odd] name.jpg"]),
    "a hidden file or folder by name": ([".hidden.jpg", ".secret"], [".hidden.jpg", ".secret/c.jpg"]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("case", FOUND)
def test_find_photos(album: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(album)
    paths, expected = FOUND[case]
    assert [path.as_posix() for path in find_photos(paths)] == expected
    assert find_photos(map(Path, paths)) == find_photos(paths)


@pytest.mark.parametrize("path", ["empty", "*.tiff", "sub/*.jpg"])
def test_a_folder_or_glob_without_photos_is_named(
    album: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(album)
    with pytest.raises(UsageError) as caught:
        find_photos([path])
    assert str(caught.value).startswith(f"{path}: no photos")


def test_links_are_followed_and_loops_end(album: Path) -> None:
    try:
        (album / "sub" / "loop").symlink_to(album)
        (album / "link.jpg").symlink_to(album / "img10.jpg")
        (album / "broken.jpg").symlink_to(album / "gone.jpg")
    except OSError:
        pytest.skip("this system makes no links here")
    names = [path.relative_to(album).as_posix() for path in find_photos([album])]
    assert len(names) == len(ALL) + 1
    assert "broken.jpg" in names


# Writing


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".jpg", 2), (".JPEG", 2), (".png", 0), (".webp", 3), (".bmp", 0), (".tif", 0)]
)
def test_written_images_are_read_back(
    tmp_path: Path, astronaut: UInt8Array, suffix: str, tolerance: float
) -> None:
    path = tmp_path / f"Zoë{suffix}"
    write_image(path, astronaut)
    assert difference(read_image(path), astronaut) <= tolerance
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_unwritable_places_are_named(tmp_path: Path, astronaut: UInt8Array) -> None:
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "nowhere" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(OutputError) as caught:
            write_image(path, astronaut)
        assert str(caught.value).startswith(f"{path}: can't be written")
    with pytest.raises(UsageError, match=r"a\.docx: .* use one of \.jpg"):
        write_image(tmp_path / "a.docx", astronaut)
    with pytest.raises(OutputError, match="can't be written"):
        write_image(tmp_path / "too wide for this format.webp", np.zeros((1, 70_000, 3), np.uint8))


def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, astronaut: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_image(path, astronaut)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_image(path, astronaut[:9])
    assert np.array_equal(read_image(path), astronaut)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
