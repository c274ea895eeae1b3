"""JPEG headers: every branch of the marker walk, and cuts at every byte."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dali_aesthetic.config import Config, ModelConfig
from dali_aesthetic.decode import jpeg as jpeg_header
from dali_aesthetic.decode.decoder import _fed
from dali_aesthetic.decode.headers import Limits
from dali_aesthetic.decode.pillow import decode_reference, rescue
from dali_aesthetic.launch.run import run
from dali_aesthetic.types import ImageHeader, Route, Status
from tests.conftest import write_shard
from tests.decode.encoded import DEVICES, SIZE, decode_with, decoder, mean_error, photo, pixels_by_row, save


def encode(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def noise(width: int = 40, height: int = 24, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


PLAIN = encode(noise())


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def with_app1(content: bytes, jpeg: bytes = PLAIN) -> bytes:
    return jpeg[:2] + segment(0xE1, content) + jpeg[2:]


def frame_at(jpeg: bytes) -> int:
    """Where the SOF0 or SOF2 marker stands."""
    return max(jpeg.find(b"\xff\xc0\x00\x11"), jpeg.find(b"\xff\xc2\x00\x11"))


def edited(offset: int, content: bytes, jpeg: bytes = PLAIN) -> bytes:
    return jpeg[:offset] + content + jpeg[offset + len(content) :]


def scan_at(jpeg: bytes) -> int:
    return jpeg.index(b"\xff\xda")


def check(header: ImageHeader, status: Status, route: Route, size: tuple[int, int]) -> None:
    assert (header.status, header.route, (header.width, header.height)) == (status, route, size)
    assert header.format == "jpeg"
    assert bool(header.message) == (status is not Status.OK)


@pytest.mark.parametrize("num_exif_bytes", [0, 3900, 4090, 4096, 5000, 65000])
@pytest.mark.parametrize("num_segments", [1, 3])
def test_headers_are_found_behind_exif_of_any_size(num_exif_bytes: int, num_segments: int) -> None:
    """One window, the second, or the whole file (three segments of 65000)."""
    jpeg = PLAIN
    for _ in range(num_segments):
        jpeg = with_app1(b"Exif\0\0" + bytes(num_exif_bytes), jpeg)
    check(jpeg_header.read(jpeg), Status.OK, Route.DALI, (40, 24))
    check(jpeg_header.read(memoryview(jpeg)), Status.OK, Route.DALI, (40, 24))


def test_segments_that_straddle_a_window_are_read_whole() -> None:
    for padding in range(4096 - 300, 4096 + 20):
        header = jpeg_header.read(with_app1(bytes(padding)))
        check(header, Status.OK, Route.DALI, (40, 24))


def test_fill_bytes_and_standalone_markers_are_skipped() -> None:
    start = PLAIN[:2]
    check(jpeg_header.read(start + b"\xff\xff\xff" + PLAIN[2:]), Status.OK, Route.DALI, (40, 24))
    check(jpeg_header.read(start + b"\xff\x01\xff\xd0" + PLAIN[2:]), Status.OK, Route.DALI, (40, 24))


@pytest.mark.parametrize(
    ("image", "options", "route"),
    [
        (noise(), {"progressive": True}, Route.DALI),
        (noise(), {"subsampling": 0}, Route.DALI),
        (noise(mode="L"), {}, Route.DALI),
    ],
)
def test_what_dali_decodes_as_pillow_does(
    image: Image.Image, options: dict[str, object], route: Route
) -> None:
    check(jpeg_header.read(encode(image, **options)), Status.OK, route, (40, 24))


def test_rgb_that_is_not_coded_as_ycbcr_goes_to_pillow() -> None:
    """Adobe's marker says so, or the components' names do."""
    rgb = encode(noise(), keep_rgb=True)
    check(jpeg_header.read(rgb), Status.OK, Route.PILLOW, (40, 24))
    frame = rgb.index(b"\xff\xc0")
    names_only = edited(rgb.index(b"Adobe"), b"Other", rgb)
    assert names_only[frame + 10 : frame + 19 : 3] == b"RGB"
    check(jpeg_header.read(names_only), Status.OK, Route.PILLOW, (40, 24))
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + b"%c"
    for transform, route in ((0, Route.PILLOW), (1, Route.DALI)):
        marked = PLAIN[:2] + adobe % transform + PLAIN[2:]
        check(jpeg_header.read(marked), Status.OK, route, (40, 24))


def test_four_components_go_to_pillow_with_and_without_adobes_marker() -> None:
    cmyk = encode(noise(mode="CMYK"))
    check(jpeg_header.read(cmyk), Status.OK, Route.PILLOW, (40, 24))
    adobe = cmyk.index(b"\xff\xee")
    length = int.from_bytes(cmyk[adobe + 2 : adobe + 4], "big")
    without = cmyk[:adobe] + cmyk[adobe + 2 + length :]
    check(jpeg_header.read(without), Status.OK, Route.PILLOW, (40, 24))
    other_app14 = edited(adobe + 4, b"Other", cmyk)
    check(jpeg_header.read(other_app14), Status.OK, Route.PILLOW, (40, 24))


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_lossless_arithmetic_and_hierarchical_go_to_pillow(marker: int) -> None:
    jpeg = edited(frame_at(PLAIN), bytes([0xFF, marker]))
    check(jpeg_header.read(jpeg), Status.OK, Route.PILLOW, (40, 24))


@pytest.mark.parametrize("marker", [0xC4, 0xC8, 0xCC])
def test_tables_and_extensions_are_no_frames(marker: int) -> None:
    jpeg = edited(frame_at(PLAIN), bytes([0xFF, marker]))
    check(jpeg_header.read(jpeg), Status.UNDECODABLE, Route.NOBODY, (0, 0))


def test_two_components_go_to_pillow() -> None:
    jpeg = edited(frame_at(PLAIN) + 9, b"\x02")
    assert jpeg_header.read(jpeg).route is Route.PILLOW


@pytest.mark.parametrize("precision", [2, 12, 16])
def test_other_precisions_are_unsupported(precision: int) -> None:
    jpeg = edited(frame_at(PLAIN) + 4, bytes([precision]))
    check(jpeg_header.read(jpeg), Status.UNSUPPORTED, Route.NOBODY, (40, 24))


@pytest.mark.parametrize(("offset", "size"), [(5, (40, 0)), (7, (0, 24))])
def test_a_size_of_zero_is_undecodable(offset: int, size: tuple[int, int]) -> None:
    header = jpeg_header.read(edited(frame_at(PLAIN) + offset, b"\0\0"))
    check(header, Status.UNDECODABLE, Route.NOBODY, (0, 0))
    assert f"{size[0]}x{size[1]}" in header.message


@pytest.mark.parametrize("length", [0, 1])
def test_segments_shorter_than_their_length_field_are_for_pillow_to_judge(length: int) -> None:
    header = jpeg_header.read(edited(4, length.to_bytes(2, "big")))
    check(header, Status.OK, Route.PILLOW, (40, 24))


@pytest.mark.parametrize("factors", [0x00, 0x03, 0x30, 0x51, 0x15])
def test_impossible_sampling_factors_are_undecodable(factors: int) -> None:
    bad = edited(frame_at(PLAIN) + 14, bytes([factors]))
    header = jpeg_header.read(bad)
    check(header, Status.OK, Route.PILLOW, (40, 24))
    assert rescue(bad, header, 224, Limits()).header.status is Status.UNDECODABLE


def test_a_frame_header_too_short_for_its_fields_is_undecodable() -> None:
    short = PLAIN[:2] + segment(0xC0, b"\x08\x00") + PLAIN[scan_at(PLAIN) :][:4]
    assert jpeg_header.read(short).status is Status.UNDECODABLE


@pytest.mark.parametrize(
    "junk", [b"\0", b"\0\0\0", b"\xff\0", b"\xff\0\x12\xff\xff\0", bytes(5000), b"junk" * 9000]
)
def test_junk_between_segments_is_passed_over_as_pillow_does(junk: bytes) -> None:
    plain = encode(noise(80, 60))
    for place in (20, frame_at(plain), scan_at(plain)):
        image = plain[:place] + junk + plain[place:]
        check(jpeg_header.read(image), Status.OK, Route.PILLOW, (80, 60))
        reference = decode_reference(image, SIZE, Limits(), format="jpeg").pixels_SSC
        np.testing.assert_array_equal(reference, decode_reference(plain, SIZE, Limits()).pixels_SSC)


def test_more_junk_than_any_file_has_is_undecodable() -> None:
    header = jpeg_header.read(PLAIN[:2] + bytes(70_000) + PLAIN[2:])
    check(header, Status.UNDECODABLE, Route.NOBODY, (0, 0))
    assert "no marker at byte 2" in header.message


FACTORS = (0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x24, 0x31, 0x33, 0x41, 0x42, 0x44)
GREY: dict[str, dict[str, object]] = {
    "baseline": {},
    "restarts": {"restart_marker_rows": 1},
    "progressive": {"progressive": True},
}


def grey(factors: int, kind: str) -> bytes:
    """A JPEG of one component that states `factors`, which change nothing about its scan."""
    image = encode(photo("coffee", 321, 243).convert("L"), quality=90, **GREY[kind])
    return edited(
        max(image.find(b"\xff\xc0\0\x0b"), image.find(b"\xff\xc2\0\x0b")) + 11, bytes([factors]), image
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", GREY)
def test_one_component_is_decoded_alike_whatever_its_sampling_factors(kind: str, device: str) -> None:
    images = [grey(factors, kind) for factors in FACTORS]
    (batch,) = decode_with(decoder(16, device), images, 16)
    decoded = pixels_by_row(batch)
    for row, image in enumerate(images):
        assert batch.headers[row].route is Route.DALI
        reference = decode_reference(image, SIZE, Limits()).pixels_SSC
        assert mean_error(decoded[row], reference) < 0.3, hex(FACTORS[row])
        # Progressive ones go through another decoder of the GPU's where the factors are odd.
        assert mean_error(decoded[row], decoded[0]) < (0.05 if kind == "progressive" else 1e-9), hex(
            FACTORS[row]
        )


@pytest.mark.parametrize("factors", FACTORS)
def test_what_is_fed_states_factors_of_one_and_the_sample_keeps_its_bytes(factors: int) -> None:
    image = with_app1(bytes(5000), grey(factors, "baseline"))
    kept = bytes(image)
    fed = _fed(memoryview(image), jpeg_header.read(image))
    assert bytes(fed) == with_app1(bytes(5000), grey(0x11, "baseline"))
    assert image == kept
    assert isinstance(fed, memoryview) == (factors == 0x11)  # no copy of what needs none


def test_an_end_before_the_first_scan_is_undecodable() -> None:
    for broken in (b"\xff\xd8\xff\xd9\0\0", PLAIN[: scan_at(PLAIN)] + b"\xff\xd9\0\0"):
        check(jpeg_header.read(broken), Status.UNDECODABLE, Route.NOBODY, (0, 0))


def test_a_scan_without_a_frame_is_undecodable() -> None:
    jpeg = PLAIN[:2] + PLAIN[scan_at(PLAIN) :]
    check(jpeg_header.read(jpeg), Status.UNDECODABLE, Route.NOBODY, (0, 0))


def test_a_missing_end_marker_is_truncated() -> None:
    check(jpeg_header.read(PLAIN[:-2]), Status.TRUNCATED, Route.NOBODY, (40, 24))


def test_an_end_marker_inside_a_thumbnail_is_not_the_end() -> None:
    with_thumbnail = with_app1(b"Exif\0\0" + encode(noise(16, 16)))
    check(jpeg_header.read(with_thumbnail), Status.OK, Route.DALI, (40, 24))
    check(jpeg_header.read(with_thumbnail[:-2]), Status.TRUNCATED, Route.NOBODY, (40, 24))


@pytest.mark.parametrize("behind", [bytes(5), bytes(10_000), b"<html>" * 2000])
def test_what_follows_the_end_marker_is_harmless(behind: bytes) -> None:
    check(jpeg_header.read(PLAIN + behind), Status.OK, Route.DALI, (40, 24))


def test_a_cut_at_any_byte_is_told_and_never_raises() -> None:
    scan = scan_at(PLAIN)
    for end in range(2, len(PLAIN)):
        header = jpeg_header.read(PLAIN[:end])
        assert header.status is Status.TRUNCATED, end
        assert (header.width > 0) == (end >= scan + 4), end


def test_a_flip_of_any_byte_never_raises() -> None:
    for offset in range(2, len(PLAIN)):
        for flip in (0x01, 0x80, 0xFF):
            jpeg_header.read(edited(offset, bytes([PLAIN[offset] ^ flip])))


def exif(orientation: int, order: str = "<") -> bytes:
    image = Image.Exif()
    image.endian = order
    image[0x0112] = orientation
    return image.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_exifs(orientation: int) -> None:
    plain = encode(noise(), exif=exif(orientation))
    assert jpeg_header.read(plain).orientation == orientation
    big = with_app1(exif(orientation, ">"))
    assert b"MM\0*" in big
    assert jpeg_header.read(big).orientation == orientation


XMP = b'http://ns.adobe.com/xap/1.0/\0<rdf tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([], 1),
        ([b"anything"], 1),
        ([b"Exif\0\0"], 0),
        ([b"Exif\0\0II*\0\xff\xff\xff\x7f"], 0),
        ([b"Exif\0\0garbage-garbage"], 0),
        ([exif(9)], 0),
        ([exif(6), exif(3)], 0),
        ([XMP], 0),
        ([exif(3), XMP], 3),
    ],
)
def test_an_orientation_that_parsers_disagree_about_is_unclear(segments: list[bytes], expected: int) -> None:
    jpeg = PLAIN
    for content in reversed(segments):
        jpeg = with_app1(content, jpeg)
    header = jpeg_header.read(jpeg)
    assert (header.status, header.orientation) == (Status.OK, expected)


ORIENTATIONS = range(1, 9)
XMP_EXIF = b'<x tiff:Orientation="6"/>'


def tagged(orientation: int, format: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(photo("coffee", 500, 333), format, exif=exif, **options)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("apply_exif", [False, True])
def test_orientations_are_pillows_or_ignored(device: str, apply_exif: bool) -> None:
    images = [tagged(o) for o in ORIENTATIONS] + [tagged(o, progressive=True) for o in ORIENTATIONS]
    (batch,) = decode_with(decoder(16, device, apply_exif=apply_exif), images, 16)
    decoded = pixels_by_row(batch)
    for row, image in enumerate(images):
        reference = decode_reference(image, SIZE, Limits(), apply_exif=apply_exif).pixels_SSC
        assert mean_error(decoded[row], reference) < 0.3, row
        assert batch.headers[row].route is Route.DALI
        assert (batch.headers[row].width, batch.headers[row].height) == (500, 333)
    upright = decode_reference(images[0], SIZE, Limits()).pixels_SSC
    turned = [row for row in range(1, 8) if mean_error(decoded[row], upright) > 5]
    assert turned == (list(range(1, 8)) if apply_exif else [])


@pytest.mark.parametrize("apply_exif", [False, True])
def test_what_the_header_check_can_not_tell_is_pillows_when_it_matters(apply_exif: bool) -> None:
    images = [
        tagged(6, "PNG"),
        tagged(8, "WEBP"),
        save(photo("coffee", 500, 333), xmp=XMP_EXIF),
        save(photo("coffee", 500, 333), exif=b"Exif\0\0no directory"),
        tagged(3, "AVIF"),
    ]
    (batch,) = decode_with(decoder(8, apply_exif=apply_exif), images, 8)
    decoded = pixels_by_row(batch)
    for row, image in enumerate(images):
        reference = decode_reference(image, SIZE, Limits(), apply_exif=apply_exif).pixels_SSC
        if apply_exif:
            assert batch.headers[row].route is Route.PILLOW
            np.testing.assert_array_equal(decoded[row], reference)
        assert mean_error(decoded[row], reference) < 0.3


def test_a_run_records_whether_it_turned_images_and_refuses_to_mix(
    tmp_path: Path, tiny_model: ModelConfig
) -> None:
    shard = write_shard(tmp_path / "in.tar", {"0000": tagged(6), "0001": tagged(1)})
    values = {"input": str(shard), "output": str(tmp_path / "out"), "device": "cpu"}
    values |= {"model": tiny_model.model_dump(), "threshold": {"raw": -1e9}}
    run(Config.build({**values, "decode": {"apply_exif": True}}))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["identity"]["apply_exif"] is True
    with pytest.raises(ValueError, match="apply_exif: True there, False now"):
        run(Config.build(values))
