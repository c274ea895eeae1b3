from __future__ import annotations

import io
import random
import struct
import tarfile
import time

import pytest

from dali_aesthetic.shards.scan import MAX_EXTENSION_BYTES, MAX_NAME, Member, TarDamage, checksum, scan_tar
from tests.shards.tar_factory import JPEG, pack, sample_members

NAMES = [
    "plain.jpg",
    "d/" * 40 + "just_over_one_hundred_bytes_with_a_prefix.jpg",
    "x" * 60 + "/" + "y" * 95 + ".jpg",
    "long/" * 55 + "more_than_255_bytes.jpg",
    "z" * 240 + ".jpg",
    "ünïcödé/日本語.jpg",
    "ü" * 120 + ".jpg",
]
FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}


def fits(name: str, format: int) -> bool:
    if format != tarfile.USTAR_FORMAT:
        return True
    try:
        tarfile.TarInfo(name).tobuf(format)
    except ValueError:
        return False
    return True


def scan(content: bytes) -> tuple[list[Member], TarDamage | None]:
    members = []
    try:
        for member in scan_tar(content):
            members.append(member)
    except TarDamage as damage:
        return members, damage
    return members, None


def with_header(block: bytes, **fields: tuple[int, bytes]) -> bytes:
    """A header with bytes replaced at offsets and its checksum mended."""
    changed = bytearray(block)
    for offset, value in fields.values():
        changed[offset : offset + len(value)] = value
    changed[148:156] = b"%06o\0 " % checksum(bytes(changed))
    return bytes(changed)


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_agrees_with_tarfile_on_names_offsets_and_sizes(format: int) -> None:
    names = [name for name in NAMES if fits(name, format)]
    assert len(names) >= 4
    content = pack([(name, name.encode() * 9) for name in names], format)
    members, damage = scan(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(info.name, info.offset, info.offset_data, info.size) for info in tar]
    assert damage is None
    assert [(m.name, m.header_offset, m.data_offset, m.size) for m in members] == expected
    assert [m.name for m in members] == names
    assert [m.next_offset for m in members[:-1]] == [m.header_offset for m in members[1:]]


def test_links_and_folders_have_no_data_and_are_no_files() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"entry{kind.decode()}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    members, damage = scan(file.getvalue())
    assert damage is None
    assert [(m.name, m.is_file) for m in members][-1] == ("a.jpg", True)
    assert not any(m.is_file for m in members[:-1])
    assert len(members) == 6


def test_base_256_size() -> None:
    content = pack([("a.jpg", JPEG), ("b.jpg", JPEG)])
    size = b"\x80" + len(JPEG).to_bytes(11, "big")
    changed = with_header(content[:512], size=(124, size)) + content[512:]
    members, damage = scan(changed)
    assert damage is None
    assert [(m.name, m.size) for m in members] == [("a.jpg", len(JPEG)), ("b.jpg", len(JPEG))]


def test_pax_size_wins_over_the_header() -> None:
    content = pack([("ü.jpg", JPEG), ("b.jpg", JPEG)], tarfile.PAX_FORMAT)
    records = b"20 path=xxxxxxx.jpg\n" + b"12 size=774\n"
    assert len(JPEG) == 774
    extension = with_header(content[:512], size=(124, b"%011o\0" % len(records)))
    header = with_header(content[1024:1536], size=(124, b"00000000001\0"))
    changed = extension + records + bytes(512 - len(records)) + header + content[1536:]
    members, damage = scan(changed)
    assert damage is None
    assert [(m.name, m.size) for m in members] == [("xxxxxxx.jpg", 774), ("b.jpg", 774)]


def test_signed_checksum_of_old_writers_is_accepted() -> None:
    header = bytearray(pack([("a.jpg", b"")])[:512])
    header[0:3] = b"\xff\xfe\xfd"
    signed = checksum(bytes(header)) - 3 * 256
    header[148:156] = b"%06o\0 " % signed
    members, damage = scan(bytes(header) + bytes(1024))
    assert damage is None
    assert len(members) == 1


def test_checksum_is_exact_beyond_the_modulus_of_adler32() -> None:
    block = bytearray(b"\xff" * 512)
    total = 504 * 255 + 256
    assert checksum(bytes(block)) == total > 65521
    block[124:136] = b"00000000000\0"
    block[148:156] = b"%06o\0 " % checksum(bytes(block))
    assert scan(bytes(block))[1] is None
    block[148:156] = b"%06o\0 " % (checksum(bytes(block)) - 65521)
    assert scan(bytes(block))[1] is not None


@pytest.mark.parametrize("position", [0, 50, 99, 124, 135, 150, 156, 257, 300, 400, 511])
def test_one_changed_header_byte_is_damage_there(position: int) -> None:
    content = bytearray(pack(sample_members(["a", "b", "c"])))
    members, _ = scan(bytes(content))
    start = members[4].header_offset
    content[start + position] ^= 0x41
    found, damage = scan(bytes(content))
    assert damage is not None
    assert damage.offset == start
    assert found == members[:4]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_a_tar_cut_anywhere_yields_all_members_before_the_cut(format: int) -> None:
    content = pack([("a.jpg", JPEG), ("ü" * 90 + ".jpg", JPEG), ("c.txt", b"text"), ("d.jpg", b"")], format)
    whole, _ = scan(content)
    end = whole[-1].next_offset
    rng = random.Random(0)
    cuts = {*range(0, end, 512), *(rng.randrange(end) for _ in range(400)), *range(500, 530)}
    for cut in sorted(cuts):
        members, damage = scan(content[:cut])
        complete = [m for m in whole if m.data_offset + m.size <= cut]
        assert members[: len(complete)] == complete
        assert len(members) - len(complete) <= 1
        if len(members) > len(complete):
            assert damage is not None
            assert members[-1].data_offset + members[-1].size > cut
        if damage is None:
            last = complete[-1] if complete else None
            assert cut <= (last.next_offset if last else 0)


def test_ends_at_two_zero_blocks_but_not_at_one() -> None:
    content = pack([("a.jpg", JPEG)])
    one = content[: 512 + 1024]
    assert [m.name for m in scan(one + bytes(512) + one + bytes(1024) + one)[0]] == ["a.jpg", "a.jpg"]


@pytest.mark.parametrize("content", [b"", bytes(512), bytes(1024), bytes(10240), bytes(100)])
def test_an_empty_tar_has_no_members(content: bytes) -> None:
    assert scan(content) == ([], None)


def test_random_bytes_never_raise_anything_else() -> None:
    rng = random.Random(1)
    good = pack(sample_members(["a", "ü" * 120, "c"]), tarfile.PAX_FORMAT)
    for _ in range(3000):
        changed = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            position = rng.randrange(len(good))
            changed[position] = rng.randrange(256)
            block = position // 512 * 512
            if rng.random() < 0.7:
                changed[block : block + 512] = with_header(bytes(changed[block : block + 512]))
        members, _ = scan(bytes(changed))
        assert len(members) <= len(good) // 512


def extension(kind: bytes, content: bytes, size: int | None = None) -> bytes:
    block = pack([("././@LongLink", b"")])[:512]
    stated = len(content) if size is None else size
    header = with_header(block, kind=(156, kind), size=(124, b"%011o\0" % stated))
    return header + content + bytes(-len(content) % 512)


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense",
        b"99 path=x\n",
        b"0 path=x\n",
        b"-5 path=x\n",
        b"10 path=xx",
        b"6 path\n",
        b"9" * 600 + b" a=b\n",
    ],
)
def test_malformed_pax_header_is_damage(content: bytes) -> None:
    members, damage = scan(extension(b"x", content) + pack([("a.jpg", JPEG)]))
    assert members == []
    assert damage is not None
    assert damage.offset == 0


@pytest.mark.parametrize("size", ["-1", "1e3", "9" * 30, "٣"])
def test_pax_size_that_is_no_number_is_damage(size: str) -> None:
    body = f" size={size}\n".encode()
    record = b"%d" % (len(body) + (1 if len(body) < 9 else 2)) + body
    _, damage = scan(extension(b"x", record) + pack([("a.jpg", JPEG)]))
    assert damage is not None
    assert "PAX size" in damage.reason


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_name_longer_than_any_path_is_damage(format: int) -> None:
    longest = "n" * (MAX_NAME - 4) + ".jpg"
    members, damage = scan(pack([(longest, JPEG)], format))
    assert ([member.name for member in members], damage) == ([longest], None)
    members, damage = scan(pack([("a.jpg", JPEG), ("n" + longest, JPEG)], format))
    assert [member.name for member in members] == ["a.jpg"]
    assert damage is not None
    assert "a name of 4,097 characters (at most 4,096): 'nnn" in damage.reason
    assert len(damage.reason) < 200


@pytest.mark.parametrize("kind", [b"L", b"x", b"g"])
def test_huge_extension_is_refused_unread(kind: bytes) -> None:
    size = MAX_EXTENSION_BYTES + 1
    _, damage = scan(extension(kind, b"", size) + bytes(size))
    assert damage is not None
    assert "extension header" in damage.reason


@pytest.mark.parametrize(
    "raw", [b"-0000000001\0", b"0o000000017\0", b"0000_000017\0", b"00000000008\0", b"\xff" * 12]
)
def test_size_that_is_no_octal_number_is_damage(raw: bytes) -> None:
    content = pack([("a.jpg", JPEG)])
    _, damage = scan(with_header(content[:512], size=(124, raw)) + content[512:])
    assert damage is not None
    assert "size" in damage.reason


def test_absurd_size_is_a_cut_member() -> None:
    content = pack([("a.jpg", JPEG), ("b.jpg", JPEG)])
    members, damage = scan(with_header(content[:512], size=(124, b"\x80" + b"\xff" * 11)) + content[512:])
    assert [m.name for m in members] == ["a.jpg"]
    assert members[0].size > 2**80
    assert damage is not None


def test_an_extension_header_at_the_end_is_damage() -> None:
    content = pack([("a.jpg", JPEG)])[: 512 + 1024]
    members, damage = scan(content + extension(b"L", b"long name\0") + bytes(1024))
    assert [m.name for m in members] == ["a.jpg"]
    assert damage is not None
    assert damage.offset == 1536


def test_old_gnu_sparse_maps_are_passed_over() -> None:
    header = pack([("a.jpg", b"")])[:512]
    sparse = with_header(header, kind=(156, b"S"), size=(124, b"00000001000\0"), more=(482, b"\1"))
    maps = bytearray(1024)
    maps[504] = 1
    content = sparse + bytes(maps) + b"d" * 512 + pack([("b.jpg", JPEG)])
    members, damage = scan(content)
    assert damage is None
    assert [(m.name, m.sparse) for m in members] == [("a.jpg", True), ("b.jpg", False)]
    assert members[0].next_offset == 512 + 1024 + 512


def test_many_extension_headers_take_constant_memory() -> None:
    content = extension(b"L", b"name\0") * 5000 + pack([("a.jpg", JPEG)])
    start = time.perf_counter()
    members, damage = scan(content)
    assert damage is None
    assert [m.name for m in members] == ["name"]
    assert time.perf_counter() - start < 5


def test_struct_layout_matches_the_format() -> None:
    # The scan's own struct skips what it doesn't need: a full layout must agree on where fields are.
    full = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
    block = pack([("p" * 50 + "/" + "n" * 90, b"12345")], tarfile.USTAR_FORMAT)[:512]
    values = full.unpack(block)
    member = next(iter(scan_tar(block + bytes(1024))))
    assert member.name == f"{values[15].rstrip(bytes(1)).decode()}/{values[0].rstrip(bytes(1)).decode()}"
    assert member.size == int(values[4][:11], 8)
