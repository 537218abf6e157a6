"""Reading pictures of every mode, depth and orientation, against formulas in float64 and Pillow's own conversions."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from components.errors import DataError
from components.evaluation.compbench.pictures import PromptPicture, open_picture
from components.persons.curation.candidates import InputPicture, Judge
from components.persons.curation.limits import Rules
from components.persons.pixels import decode_rgb, resized
from components.persons.published.readers import Listing
from components.persons.published.validation import validate_records
from components.persons.records import Record
from components.persons.shards import PersonDataset, write_records
from components.persons.streaming.corpus import open_corpus
from components.persons.streaming.sample_reader import SampleReader

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 4, 3), dtype=np.uint8)  # neither symmetric nor square
GREY = np.array([0, 1, 100, 128, 200, 255] * 4, dtype=np.uint8).reshape(6, 4)
ALPHA = RNG.integers(0, 256, (6, 4), dtype=np.uint8)
ALPHA[0] = (0, 1, 254, 255)


def saved(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def read(content):
    picture = decode_rgb(content)
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def png(rows, depth, colour_type, *, transparent=b"", palette=b""):
    """A PNG by hand: packed rows of an array of bytes; Pillow writes neither few bits nor 16 bits of colour."""
    width = {1: 8, 2: 4, 4: 2}.get(depth, 0) * rows.shape[1] or 4

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body)) if data else b""

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = chunk(b"IHDR", header) + chunk(b"PLTE", palette) + chunk(b"tRNS", transparent) + chunk(b"IDAT", data)
    return b"\x89PNG\r\n\x1a\n" + parts + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def tiff(values, photometric=1, sample_format=1):
    """A TIFF of grey, or of grey and premultiplied alpha, by hand, for forms that Pillow reads and does not write."""
    height, width = values.shape[:2]
    samples, data = values.size // (height * width), values.tobytes()
    bits = 8 * values.itemsize * (1 + (samples - 1) * 2**16)
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: samples,
        278: height,
        279: len(data),
    }
    tags |= {338: 1} if samples == 2 else {339: sample_format}
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag == 258 else 4, samples if tag == 258 else 1, value)
        for tag, value in tags.items()
    )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def grey(values):
    return np.repeat(np.asarray(values)[:, :, None], 3, axis=2)


def on_white(colour, alpha):
    """Colours (H, W, 3) of 0..255 behind alpha (H, W) of 0..1, in float64."""
    return alpha[:, :, None] * colour + (1 - alpha[:, :, None]) * 255


def test_pictures_of_8_bits_are_pillows_own_bytes():
    for picture in (Image.fromarray(COLOUR), Image.fromarray(GREY)):
        for kind in ("PNG", "JPEG", "WEBP", "BMP"):
            content = saved(picture, kind)
            assert decode_rgb(content).tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("P", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("RGBX", "TIFF")],
)
def test_modes_without_alpha_are_converted_as_pillow_does(mode, kind):
    content = saved(Image.fromarray(COLOUR).convert(mode), kind)
    opened = Image.open(io.BytesIO(content))
    assert (read(content) == np.asarray(opened.convert("RGB"))).all()
    if kind != "JPEG" and mode not in ("1", "P"):
        assert np.abs(read(content) - COLOUR).max() <= 4  # and that is the colour


def test_lab_is_the_colour_that_it_was_made_of():
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    flat = Image.new("RGB", (4, 6), (180, 60, 40))
    lab = ImageCms.profileToProfile(flat, *profiles, outputMode="LAB")
    assert np.abs(read(saved(lab, "TIFF")) - (180, 60, 40)).max() <= 3


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "bits"), [("PNG", 16), ("TIFF", 16), ("TIFF", 14), ("PNG", 12), ("PNG", 10), ("PNG", 8)]
)
def test_deep_grey_is_scaled_by_the_smallest_depth_that_holds_it(order, kind, bits):
    white = 2**bits - 1
    values = (GREY.astype(float) * white / 255).round().astype(f"{order}u2")
    mode = "I;16B" if order == ">" else "I;16"
    content = saved(Image.frombytes(mode, (4, 6), values.tobytes()), kind)
    assert np.abs(read(content) - grey(values / white * 255)).max() <= 0.5


def test_a_thermal_picture_keeps_its_differences():
    values = GREY.astype(np.uint16) * 100 + 3000
    assert np.abs(read(saved(Image.fromarray(values), "PNG")) - grey(values / 257)).max() <= 0.5


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (GREY.astype(np.float32), 0, 255),  # Pillow's own range
        (GREY.astype(np.float32) / 255, 0, 1),
        (GREY.astype(np.float32) * 1e6 - 5, -5, 255e6 - 5),
        (GREY.astype(np.int32) * 257, 0, 65535),
        (GREY.astype(np.int32) - 50, -50, 205),
    ],
)
def test_values_without_a_stated_range_are_scaled(values, low, high):
    expected = (values.astype(np.float64) - low) / (high - low) * 255
    assert np.abs(read(saved(Image.fromarray(values), "TIFF")) - grey(expected)).max() <= 0.5


def test_values_that_are_not_finite_are_black_or_white_and_a_picture_of_one_value_stays_flat():
    values = np.full((6, 4), 0.5, dtype=np.float32)
    values[0] = (np.nan, np.inf, -np.inf, 1)
    assert read(saved(Image.fromarray(values), "TIFF"))[:2, :, 0].tolist() == [[0, 255, 0, 255], [128] * 4]
    assert read(saved(Image.fromarray(np.full((6, 4), np.nan, dtype=np.float32)), "TIFF")).max() == 0
    assert len(np.unique(read(saved(Image.fromarray(np.full((6, 4), -7, dtype=np.int32)), "TIFF")))) == 1


def test_tiff_of_32_unsigned_bits_and_with_0_for_white():
    values = GREY.astype("<u4") * 16843009  # 255 becomes 2^32 - 1
    assert np.abs(read(tiff(values)) - grey(GREY)).max() <= 0.5
    assert np.abs(read(tiff(GREY.astype("<u2") * 257, photometric=0)) - grey(255 - GREY.astype(int))).max() <= 0.5
    unit = GREY.astype("<f4") / 255
    assert np.abs(read(tiff(unit, photometric=0, sample_format=3)) - grey(255 - 255 * unit)).max() <= 0.5


def test_16_bits_of_colour_keep_the_colour():
    deep = COLOUR.astype(">u2") * 257
    assert (read(png(deep, 16, 2)) == COLOUR).all()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("LA", "PNG"), ("LA", "TIFF"), ("PA", "TIFF")],
)
def test_alpha_shows_white_and_never_the_hidden_colour(mode, kind):
    picture = Image.fromarray(COLOUR if mode == "RGBA" else grey(GREY)).convert("LA" if mode == "LA" else "RGBA")
    picture.putalpha(Image.fromarray(ALPHA))
    colour = np.asarray(picture.convert("RGB")).astype(float)
    visible = read(saved(picture.convert(mode), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert np.abs(visible - on_white(colour, ALPHA / 255)).max() <= 1
    assert (visible[ALPHA == 0] == 255).all()
    assert (visible[ALPHA == 255] == colour[ALPHA == 255]).all()


def test_premultiplied_alpha_shows_white():
    stored = np.stack([(GREY * (ALPHA / 255)).round(), ALPHA], axis=2).astype(np.uint8)
    content = tiff(stored)
    assert Image.open(io.BytesIO(content)).mode == "La"
    assert np.abs(read(content) - on_white(grey(GREY), ALPHA / 255)).max() <= 2


def test_a_transparent_colour_or_palette_entry_shows_white():
    """tRNS, which counts in the samples of the file: of 2, 4, 8 or 16 bits, or one alpha for each entry of a palette."""
    two, four = np.full((6, 1), 0b00011011, dtype=np.uint8), np.full((6, 2), (0x0F, 0x78), dtype=np.uint8)
    assert read(png(two, 2, 0, transparent=struct.pack(">H", 2)))[0, :, 0].tolist() == [0, 85, 255, 255]
    assert read(png(two, 2, 0, transparent=struct.pack(">H", 0)))[0, :, 0].tolist() == [255, 85, 170, 255]
    assert read(png(four, 4, 0, transparent=struct.pack(">H", 7)))[0, :, 0].tolist() == [0, 255, 255, 136]
    one = np.full((6, 1), 0b01010000, dtype=np.uint8)
    assert read(png(one, 1, 0, transparent=struct.pack(">H", 0))).min() == 255
    assert read(png(GREY, 8, 0, transparent=struct.pack(">H", 100)))[0, :, 0].tolist() == [0, 1, 255, 128]
    deep = GREY.astype(">u2") * 257
    assert read(png(deep, 16, 0, transparent=struct.pack(">H", 25700)))[0, :, 0].tolist() == [0, 1, 255, 128]
    for colours, depth in ((COLOUR.astype(">u2"), 8), (COLOUR.astype(">u2") * 257, 16)):
        rows = colours if depth == 16 else COLOUR
        expected = COLOUR.copy()
        expected[2, 1] = 255
        assert (read(png(rows, depth, 2, transparent=colours[2, 1].tobytes())) == expected).all()
    entries = np.tile(np.arange(4, dtype=np.uint8), (6, 1))
    shown = read(png(entries, 8, 3, transparent=bytes([0, 51, 255]), palette=bytes([10, 20, 30] * 4)))
    assert shown[0].tolist() == [[255] * 3, [206, 208, 210], [10, 20, 30], [10, 20, 30]]
    keyed = Image.fromarray(entries).convert("P")
    assert (read(saved(keyed, "GIF", transparency=2))[:, 2] == 255).all()


ORIENTED = {
    1: lambda seen: seen,
    2: np.fliplr,
    3: lambda seen: np.rot90(seen, 2),
    4: np.flipud,
    5: lambda seen: seen.transpose(1, 0, 2),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: np.rot90(seen, 2).transpose(1, 0, 2),
    8: lambda seen: np.rot90(seen, -1),
}
"""What a camera stores of what it sees, by the EXIF orientation that it writes."""


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_pictures_are_turned_as_their_exif_says(orientation, mode, kind):
    if (mode == "I;16" and kind in ("WEBP", "JPEG")) or (mode == "LA" and kind == "JPEG"):
        return  # no such file
    seen = COLOUR if mode == "RGB" else grey(GREY)
    stored = np.ascontiguousarray(ORIENTED[orientation](np.kron(seen, np.ones((8, 8, 1), dtype=np.uint8))))
    picture = Image.fromarray(stored)
    if mode == "LA":
        picture = picture.convert("LA")
    elif mode == "I;16":
        picture = Image.fromarray(stored[:, :, 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    shown = decode_rgb(saved(picture, kind, exif=exif, **options))
    assert shown.size == (32, 48)
    assert not shown.info
    assert not shown.getexif()
    assert np.abs(np.asarray(shown)[4::8, 4::8].astype(int) - seen).max() <= (12 if kind == "JPEG" else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_metadata_that_cannot_be_read_turns_nothing_and_hides_nothing():
    for exif in (b"Exif\0\0II", b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"):
        content = saved(Image.fromarray(COLOUR), "PNG", exif=exif)
        assert (read(content) == COLOUR).all()


def test_of_several_frames_the_first_is_read():
    frames = [Image.new("RGB", (4, 6), colour) for colour in ("red", "lime")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (read(content) == (255, 0, 0)).all(), kind


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_files_are_one_line(monkeypatch):
    whole = saved(Image.fromarray(RNG.integers(0, 256, (64, 32, 3), dtype=np.uint8)), "PNG")
    broken = {
        "empty": b"",
        "no format": b"<html>404 not found</html>",
        "truncated": whole[:-900],
        "cut TIFF": tiff(GREY.astype("<u2"))[:40],
        "header alone": whole[:33],
    }
    for what, content in broken.items():
        with pytest.raises(DataError, match=r"^cannot be decoded: ") as error:
            decode_rgb(content)
        assert len(str(error.value).splitlines()) == 1, what
        assert "0x" not in str(error.value), what
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"cannot be decoded: DecompressionBombError: .*2048 pixels"):
        decode_rgb(whole)


def test_every_part_that_reads_pictures_of_people_sees_the_same(tmp_path):
    sideways = Image.Exif()
    sideways[274] = 6
    hidden = Image.fromarray(COLOUR).convert("RGBA")
    hidden.putalpha(Image.fromarray(ALPHA))
    contents = {
        "phone.jpg": saved(Image.fromarray(COLOUR), "JPEG", exif=sideways),
        "cut out.png": saved(hidden, "PNG"),
        "thermal.png": saved(Image.fromarray(GREY.astype(np.uint16) * 100 + 3000), "PNG"),
    }
    for number, (name, content) in enumerate(contents.items()):
        (tmp_path / name).write_bytes(content)
        record = Record(name, number, ("a man",), "train", "made")
        found, _ = validate_records(Listing("made", tmp_path, (record,)))
        write_records(found, tmp_path / str(number))
        expected = read(content)
        people = PersonDataset(tmp_path / str(number))
        assert (np.asarray(people.picture(0)) == expected).all()
        size = expected.shape[:2]
        streamed = SampleReader(
            open_corpus(tmp_path / str(number)), lambda texts: torch.zeros(1, 1), size=size, batch_size=1, seed=0
        )
        for pixels in (people.pixels([0], *size).numpy(), streamed.read(0)["pixels"]):
            assert (pixels[0].transpose(1, 2, 0) == expected).all()
        judge = Judge(tmp_path, Rules(short_side=0, aspect=None))
        ((judged,),) = judge.judge([InputPicture(name)], 0)
        assert (judged.height, judged.width) == size
        assert (np.asarray(judge.pixels(judged)) == expected).all()
        assert (np.asarray(open_picture(PromptPicture("a man", number, tmp_path / name))) == expected).all()


def test_pictures_are_opened_nowhere_else():
    opened = [
        file.relative_to(ROOT).as_posix()
        for room in ("components", "pipelines")
        for file in sorted((ROOT / room).rglob("*.py"))
        if "Image.open(" in file.read_text(encoding="utf-8")
    ]
    headers_only = "pipelines/serving/uploads.py"  # size and format of what clients send, before anything is decoded
    assert opened == ["components/persons/pixels.py", headers_only]


def test_a_crop_keeps_the_shape_of_what_it_shows_and_squashing_all_of_it():
    across, down = np.meshgrid(np.arange(96), np.arange(64))
    circle = ((across - 48) ** 2 + (down - 32) ** 2 < 24**2).astype(np.uint8) * 255
    picture = Image.fromarray(circle).convert("RGB")
    for fit, width in (("crop", 24), ("squash", 16)):
        seen = resized(picture, 32, 32, fit)[..., 0] > 127
        assert seen.any(0).sum() == width
        assert seen.any(1).sum() == 24
    same = picture.crop((0, 0, 96, 48))
    assert np.array_equal(resized(same, 24, 48, "crop"), resized(same, 24, 48))
