"""Reading images: every way in which a picture can be wrong, and every mode that must be right."""

import base64
import hashlib
import http.server
import io
import struct
import threading
import tracemalloc
import zlib

import numpy as np
import PIL.Image
import pytest

from cot_engine.errors import ImageError
from cot_engine.images import download
from cot_engine.images.load import Image, load_image

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def half_and_half(mode="RGB", size=(8, 4)):
    """Left half red, right half green."""
    picture = PIL.Image.new("RGB", size, RED)
    picture.paste(GREEN, (size[0] // 2, 0, *size))
    return picture.convert(mode)


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header_only(width, height):
    """A PNG that claims a size and holds no pixels: what a decompression bomb looks like."""

    def chunk(kind, body):
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def fails(source, *words, **options):
    """Loading fails with a message that holds the words, and with a next step."""
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    assert caught.value.exit_code == 2
    assert caught.value.hint.strip(), "no next step"
    for word in words:
        assert word in str(caught.value)
    return caught.value


# --- the value -----------------------------------------------------------------------------------


def test_an_image_is_its_pixels(tmp_path):
    path = tmp_path / "a.png"
    half_and_half().save(path)
    from_path = load_image(path)
    from_bytes = load_image(path.read_bytes())
    other = load_image(half_and_half().transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT))
    assert from_path == from_bytes and hash(from_path) == hash(from_bytes)
    assert from_path != other and len({from_path, from_bytes, other}) == 2
    assert (from_path.source, from_bytes.source) == (str(path), "bytes")
    assert from_path.size == (8, 4) and from_path.notes == ()
    assert len(from_path.digest) == 16 and int(from_path.digest, 16) >= 0
    assert load_image(from_path) is from_path


def test_the_shape_is_part_of_the_digest():
    zeros = np.zeros((4, 9, 3), np.uint8)
    assert load_image(zeros).digest != load_image(zeros.reshape(6, 6, 3)).digest


def test_digest_is_the_documented_one():
    said = b"RGB 8x4\n" + bytes((*RED * 4, *GREEN * 4)) * 4
    assert load_image(half_and_half()).digest == hashlib.sha256(said).hexdigest()[:16]


def test_png_base64_round_trip():
    image = load_image(half_and_half())
    again = load_image(base64.b64decode(image.to_png_base64()))
    assert again == image


def test_later_changes_to_the_source_do_not_reach_the_image():
    picture, array = half_and_half(), np.zeros((4, 4, 3), np.uint8)
    from_picture, from_array = load_image(picture), load_image(array)
    picture.putpixel((0, 0), (1, 2, 3))
    array[:] = 9
    assert from_picture.pixels.getpixel((0, 0)) == RED
    assert from_array.pixels.getpixel((0, 0)) == (0, 0, 0)


# --- what is rightly read ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_formats(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = load_image(encoded(half_and_half(), kind, **options))
    assert image.pixels.mode == "RGB"
    assert (image.pixels.getpixel((0, 0)), image.pixels.getpixel((7, 3))) == (RED, GREEN)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind):
    picture = half_and_half(size=(32, 16)).convert("CMYK")
    image = load_image(encoded(picture, kind))
    assert np.abs(np.subtract(image.pixels.getpixel((2, 8)), RED)).max() < 12
    assert np.abs(np.subtract(image.pixels.getpixel((29, 8)), GREEN)).max() < 12


def test_transparency_is_laid_on_white_and_said():
    picture = half_and_half("RGBA")
    picture.putpixel((0, 0), (255, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 128))
    image = load_image(encoded(picture))
    assert image.pixels.getpixel((0, 0)) == WHITE
    assert image.pixels.getpixel((1, 0)) == (127, 127, 127)
    assert image.pixels.getpixel((2, 0)) == RED
    assert any("white" in note for note in image.notes)
    assert load_image(encoded(half_and_half("RGBA"))).notes == ()


def test_palette_with_alpha():
    picture = PIL.Image.new("P", (4, 2), 0)
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putpixel((3, 1), 1)
    picture.putpixel((2, 1), 2)
    image = load_image(encoded(picture, transparency=bytes([255, 0, 128])))
    assert image.pixels.getpixel((0, 0)) == RED
    assert image.pixels.getpixel((3, 1)) == WHITE
    assert image.pixels.getpixel((2, 1)) == (127, 127, 255)


def test_sixteen_bit_grey_keeps_its_range():
    values = np.array([[0, 257, 32896], [65535, 32896, 257]], np.uint16)
    image = load_image(encoded(PIL.Image.fromarray(values)))
    assert np.asarray(image.pixels)[:, :, 0].tolist() == [[0, 1, 128], [255, 128, 1]]
    assert any("16-bit" in note for note in image.notes)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes(mode):
    picture = PIL.Image.new("L", (4, 4), 255).convert(mode)
    assert load_image(encoded(picture)).pixels.getpixel((0, 0)) == WHITE


def test_exif_orientation_turns_the_picture():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image = load_image(encoded(half_and_half(size=(32, 16)), "JPEG", exif=exif, quality=95))
    assert image.size == (16, 32)
    top, bottom = image.pixels.getpixel((8, 3)), image.pixels.getpixel((8, 28))
    assert np.abs(np.subtract(top, RED)).max() < 12
    assert np.abs(np.subtract(bottom, GREEN)).max() < 12
    assert any("EXIF" in note for note in image.notes)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_nonsense_exif_does_no_harm():
    data = encoded(half_and_half(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert load_image(data).size == (8, 4)


def test_animated_gif_gives_its_first_frame_and_says_so():
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, WHITE)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    image = load_image(data)
    assert image.pixels.getpixel((1, 1)) == RED
    assert image.notes == ("The image has 3 frames; only the first is used.",)


@pytest.mark.parametrize(
    "array",
    [
        np.full((4, 6), 128, np.uint8),
        np.full((4, 6, 1), 128, np.uint8),
        np.full((4, 6, 3), 128, np.uint8),
        np.full((4, 6, 3), 32896, np.uint16),
        np.full((4, 6), 32896, np.uint16),
        np.full((4, 6, 3), 128 / 255, np.float32),
        np.full((4, 6), 128 / 255, np.float64),
        np.full((6, 4, 3), 128, np.uint8).transpose(1, 0, 2),
    ],
    ids=lambda a: f"{a.dtype}-{a.shape}",
)
def test_arrays(array):
    image = load_image(array)
    assert image.size == (6, 4) and image.source == "numpy array"
    assert image.pixels.getcolors() == [(24, (128, 128, 128))]


def test_array_with_alpha():
    array = np.zeros((4, 4, 4), np.uint8)
    assert load_image(array).pixels.getpixel((0, 0)) == WHITE


def test_a_frame_chosen_by_the_caller_is_kept():
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    picture = PIL.Image.open(io.BytesIO(data))
    picture.seek(1)
    assert load_image(picture).pixels.getpixel((0, 0)) == GREEN


# --- what is not ---------------------------------------------------------------------------------


def test_missing_file_names_near_misses(tmp_path):
    half_and_half().save(tmp_path / "Street.png")
    (tmp_path / "unrelated.txt").write_text("x")
    error = fails(tmp_path / "stret.png", "does not exist", "Street.png")
    assert "unrelated" not in str(error)
    fails(tmp_path / "zzzzzzzz.bin", "does not exist", "similar")
    fails(tmp_path / "no" / "a.png", "does not exist", "no folder")


def test_folder(tmp_path):
    fails(tmp_path, "is a folder", "Name an image file")
    half_and_half().save(tmp_path / "in.png")
    fails(tmp_path, "is a folder", "in.png")


def test_empty_file(tmp_path):
    (tmp_path / "a.png").touch()
    fails(tmp_path / "a.png", "is empty", "0 bytes")
    fails(b"", "is empty")


def test_not_a_regular_file():
    fails("/dev/zero", "not a regular file")


def test_name_that_no_file_can_have():
    fails("a\0b.png", "a\\x00b.png")
    fails("x" * 5000 + ".png", "xxx")


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    half_and_half().save(path)

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    fails(path, "Permission denied")


def test_text_named_jpg(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_text("I am not a picture.\n")
    fails(path, "photo.jpg", "a text file")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "HEIC"),
        (b"%PDF-1.7\n\xff\xff", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a text file"),
        (bytes(range(128, 228)), "no known image format"),
        ("Überall Wörter, nirgends ein Bild. Wirklich nirgends! äöüäöüäöüäöü".encode(), "a text"),
    ],
    ids="heic pdf svg html eps binary utf8".split(),
)
def test_other_formats_are_named(data, word):
    fails(data, word, "PNG" if word != "HEIC" else "magick")


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7])
def test_truncated_jpeg(keep, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(PIL.Image.fromarray(noise), "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(len(data) * keep)])
    fails(path, "cut.jpg", "damaged or cut off")


def test_truncated_png():
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    data = encoded(PIL.Image.fromarray(noise))
    fails(data[: len(data) // 2], "damaged or cut off")


def test_decompression_bomb_allocates_nothing(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header_only(30_000, 30_000))
    before = PIL.Image.MAX_IMAGE_PIXELS
    tracemalloc.start()
    try:
        fails(path, "30000 x 30000", "900,000,000", "100,000,000")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000  # the pixels would be 2.7 GB
    assert before == PIL.Image.MAX_IMAGE_PIXELS


def test_the_limit_is_the_callers(recwarn):
    picture = half_and_half(size=(20, 10))
    assert load_image(picture, max_pixels=200).size == (20, 10)
    for source in (picture, encoded(picture), np.asarray(picture)):
        fails(source, "20 x 10", "200", "199", max_pixels=199)
    assert not recwarn.list


def test_one_pixel_and_strips():
    fails(PIL.Image.new("RGB", (1, 1)), "1 x 1", "2 x 2")
    fails(encoded(PIL.Image.new("RGB", (1, 1))), "1 x 1", "2 x 2")
    fails(PIL.Image.new("RGB", (402, 2)), "402 x 2", "200 times")
    assert load_image(PIL.Image.new("RGB", (400, 2))).size == (400, 2)
    assert load_image(PIL.Image.new("RGB", (2, 2))).size == (2, 2)


@pytest.mark.parametrize("size", [(2, 2), (3, 3), (2, 400), (400, 2), (3, 50)])
def test_the_smallest_accepted_pictures_survive_a_real_processor(size):
    """An RGB picture of three rows could be taken for three channels; it must not be."""
    clip = pytest.importorskip("transformers").CLIPImageProcessor()
    colour = (250, 120, 10)
    small = load_image(PIL.Image.new("RGB", size, colour)).pixels
    large = load_image(PIL.Image.new("RGB", (60, 60), colour)).pixels
    values = [clip(images=[p], return_tensors="np")["pixel_values"] for p in (small, large)]
    assert np.allclose(values[0], values[1], atol=0.02)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((3, 8, 9), np.uint8), "channels last"),
        (np.zeros(8, np.uint8), "shape (8,)"),
        (np.zeros((0, 8, 3), np.uint8), "empty"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.full((8, 8, 3), 255.0), "from 255 to 255"),
        (np.full((8, 8), -0.5), "0 to 1"),
        (np.full((8, 8), np.nan), "nan"),
    ],
)
def test_arrays_that_are_no_pictures(array, word):
    fails(array, "The numpy array", word)


@pytest.mark.parametrize("thing", [None, 7, ["a.png"], object()])
def test_other_objects(thing):
    fails(thing, type(thing).__name__)


# --- URLs ----------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; yields its address and what it was asked for."""
    for name in ("http_proxy", "all_proxy"):  # which is not used
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path[4:])
                self.end_headers()
            elif self.path == "/a.png":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(encoded(half_and_half()))
            elif self.path == "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    while not stop.is_set():
                        self.wfile.write(bytes(100))
                        stop.wait(0.01)
                except OSError:
                    pass
            else:
                self.send_error(404)

        def log_message(self, *_):
            pass

    stop = threading.Event()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    stop.set()
    httpd.shutdown()
    httpd.server_close()


def test_urls_are_off_by_default(server):
    address, asked = server
    fails(f"{address}/a.png", "off by default", "--allow-url", "allow_url=True")
    assert asked == []


def test_url(server):
    address, _ = server
    image = load_image(f"{address}/a.png", allow_url="inner")
    assert image == load_image(half_and_half()) and image.source == f"{address}/a.png"
    assert load_image(f"{address}/to//a.png", allow_url="inner") == image


def test_url_passwords_are_not_repeated(server):
    address, _ = server
    secret = address.replace("http://", "http://user:hunter2@")
    for allowed in (False, True, "inner"):
        error = fails(f"{secret}/a.png", allow_url=allowed)
        assert "hunter2" not in str(error)


def test_url_errors(server, monkeypatch):
    address, _ = server
    fails(f"{address}/none.png", "404", allow_url="inner")
    fails("http://127.0.0.1:1/a.png", "cannot be read", allow_url="inner")
    fails("http://", "cannot be read", allow_url="inner")
    monkeypatch.setattr(download, "URL_BYTES", 1000)
    fails(f"{address}/endless", "larger than 1,000 bytes", allow_url="inner")


def test_url_that_drips_is_given_up(server, monkeypatch):
    address, _ = server
    monkeypatch.setattr(download, "URL_SECONDS", 0.3)
    fails(f"{address}/endless", "within 0.3 seconds", allow_url="inner")


def test_only_http(server, tmp_path):
    address, asked = server
    path = tmp_path / "a.png"
    half_and_half().save(path)
    for url in (path.as_uri(), "ftp://example.org/a.png", "data:image/png;base64,AAAA"):
        fails(url, "Only http and https", allow_url="inner")
        if not url.startswith("data"):  # no address to be sent on to either
            fails(f"{address}/to/{url}", "leads to", "Only http and https", allow_url="inner")
    assert len(asked) == 2


def test_repr_is_short():
    assert repr(load_image(half_and_half())).startswith("Image('PIL image', 8 x 4, ")
    assert isinstance(load_image(half_and_half()), Image)
