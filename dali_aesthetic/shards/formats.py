"""File kinds: by extension for listing and choosing, by magic bytes where no extension helps."""

from __future__ import annotations

from typing import Literal

from dali_aesthetic.types import Buffer

Kind = Literal["tar", "folder", "parquet", "embeddings"]
"""The kind of an input; `folder` is image files, each of which is a sample."""

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp"),
    *("gif", "bmp", "tif", "tiff", "avif", "jp2", "j2k", "jpe", "jfif", "heic", "heif", "jxl"),
    *("ico", "tga", "ppm", "pgm", "pbm", "pnm", "j2c", "avifs"),
)
"""In order of preference where a sample has several; the first four are open_clip's."""

IMAGE_RANK = {extension: rank for rank, extension in enumerate(IMAGE_EXTENSIONS)}
KINDS: dict[str, Kind] = {
    "tar": "tar",
    "parquet": "parquet",
    "npy": "embeddings",
    **dict.fromkeys(IMAGE_EXTENSIONS, "folder"),
}
"""The kind of input that a file of each extension is."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
KNOWN_SIDECARS = frozenset(
    ("json", "txt", "caption", "cls", "cls2", "npy", "npz", "pyd", "pkl", "pth", "pt", "xml", "html", "csv")
)

HEAD_BYTES = 12
"""The number of bytes that `looks_like_image` reads."""

_MAGIC = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL "),
    # Known and not decoded: the row says so, instead of "no image".
    *(b"8BPS\0\1", b"DDS |\0\0\0", b"qoif", b"icns", b"\x76\x2f\x31\x01", b"\x0a\5\1"),
)
_BRANDS = frozenset((b"avif", b"avis", b"heic", b"heix", b"mif1"))


def extension(name: str) -> str:
    """The lower-case extension of a file name, without the dot; empty where there is none."""
    stem, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot and stem and "/" not in suffix else ""


def looks_like_image(data: Buffer) -> bool:
    """Whether `data` starts as an image file does."""
    head = bytes(data[:HEAD_BYTES])
    if head.startswith(_MAGIC):
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] in _BRANDS
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"
