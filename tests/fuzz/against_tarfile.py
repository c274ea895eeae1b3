"""Tars of every form, whole and damaged: the scan and the reader against Python's tarfile.

They must name the same members at the same places, or the scan must say where the damage is. Each sample that
the reader calls ok must hold the bytes that tarfile reads.
"""

from __future__ import annotations

import io
import random
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dali_aesthetic.shards import read_shards
from dali_aesthetic.shards.members import split_name
from dali_aesthetic.shards.scan import BLOCK, Member, TarDamage, checksum, scan_tar
from dali_aesthetic.types import Sample, Shard, ShardEnd, Status
from tests.fuzz.compare import Finding

_MOST_SECONDS = 2.0
_IMAGE = b"\xff\xd8\xff\xe0" + bytes(range(200)) + b"\xff\xd9"
_BEHIND_NUL = "meant: a number behind a NUL, which GNU tar reads too"
_SPARSE = "meant: behind a sparse member, whose map the scan doesn't read and tarfile may not understand"
_folder = tempfile.TemporaryDirectory(prefix="fuzz", ignore_cleanup_errors=True)
_PATH = Path(_folder.name) / "shard.tar"


@dataclass(frozen=True, slots=True)
class Listing:
    """What a reader found: (name, type, data offset, size, sparse) a member, and the damage it met."""

    members: list[tuple[str, bytes, int, int, bool]]
    damage: str = ""


def case(rng: random.Random) -> Iterator[Finding]:
    """One tar: what the product and tarfile disagree about."""
    data = _damaged(rng, _tar(rng))
    start = time.thread_time()
    try:
        ours = _ours(data)
        samples, end = _read(data)
    except Exception as error:  # whatever it is, it is a finding
        yield Finding(f"exception: {type(error).__name__}", data)
        return
    if time.thread_time() - start > _MOST_SECONDS:
        yield Finding("slow", data)
    theirs = _theirs(data)
    if kind := _disagreement(data, ours, theirs):
        yield Finding(kind, data, wrong=not kind.startswith("meant: "))
    elif ours.damage and not theirs.damage:
        yield Finding(f"refused, though tarfile reads on: {_reason(ours.damage)}", wrong=False)
    else:
        yield Finding("both refuse" if ours.damage else "agree", wrong=False)
    files = {(member[0], data[member[2] : member[2] + member[3]]) for member in theirs.members}
    files |= _linked(data)
    if not kind and (wrong := _wrong_sample(samples, end, ours, files)):
        yield Finding(wrong, data)


def _ours(data: bytes) -> Listing:
    found: list[Member] = []
    try:
        for member in scan_tar(data):
            found.append(member)
    except TarDamage as damage:
        return Listing([_fields(member) for member in found if member.type != b"g"], damage.reason)
    return Listing([_fields(member) for member in found if member.type != b"g"])


def _fields(member: Member) -> tuple[str, bytes, int, int, bool]:
    return member.name.rstrip("/"), _type(member.type), member.data_offset, member.size, member.sparse


def _type(kind: bytes) -> bytes:
    return b"0" if kind in (b"\0", b"7") else kind


def _theirs(data: bytes) -> Listing:
    """tarfile's listing, which goes on behind a zero block that stands alone.

    It ends without a word at a header it can't read; that counts as damage here.
    """
    found: list[tuple[str, bytes, int, int, bool]] = []
    start, headers = 0, dict[str, str]()
    while True:
        try:
            with tarfile.open(fileobj=io.BytesIO(data[start:]), mode="r:", pax_headers=headers) as tar:
                for info in tar:
                    name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                    place = start + info.offset_data, info.size, info.issparse()
                    found.append((name.rstrip("/"), _type(info.type), *place))
                end = start + tar.offset
        except Exception as error:  # tarfile raises many types for damaged headers
            return Listing(found, f"{type(error).__name__}: {error}")
        if data[end : end + BLOCK].strip(b"\0"):
            return Listing(found, "ends at a header")
        if not data[end + BLOCK : end + 2 * BLOCK].strip(b"\0"):
            return Listing(found)
        start, headers = end + BLOCK, tar.pax_headers


def _disagreement(data: bytes, ours: Listing, theirs: Listing) -> str:
    """The kind of a disagreement; one that is meant begins with "meant: " and says why."""
    for place, (mine, other) in enumerate(zip(ours.members, theirs.members, strict=False)):
        if mine[4]:
            continue  # the reader refuses to read it; tarfile has other signs of it, and gives its full size
        for field, a, b in zip(("name", "type", "offset", "size", "sparseness"), mine, other, strict=True):
            if a == b or (field == "size" and mine[1] in b"123456"):
                continue  # links state sizes that say nothing
            if any(earlier[4] for earlier in ours.members[:place]):
                return _SPARSE
            return _why_meant(data, mine[2]) or f"{field} differs"
    if ours.damage:
        return ""  # loud; what came before it agrees
    both = len(theirs.members)
    if len(ours.members) == both and (not theirs.damage or _ends_whole(data)):
        return ""
    if "end of file header" in theirs.damage:
        return "meant: a zero block behind a global header, which tarfile refuses"
    if any(member[4] for member in ours.members[: both + 1]):
        return _SPARSE
    if len(ours.members) < both:
        return "members lost without a word"
    if len(ours.members) > both:
        extra = ours.members[both][2]
        return _why_meant(data, extra) or f"members that tarfile doesn't have ({_reason(theirs.damage)})"
    return f"whole, though tarfile says: {_reason(theirs.damage)}"


def _why_meant(data: bytes, data_offset: int) -> str:
    """Why the two may differ about the member whose data begin at `data_offset`; empty where they may not."""
    with suppress(TarDamage):
        for member in scan_tar(data):
            if member.type == b"g" and data[member.header_offset + 124] == 0 and member.size:
                return _BEHIND_NUL
            if member.data_offset == data_offset:
                return _why_headers_differ(data, member.header_offset, data_offset)
    return ""


def _why_headers_differ(data: bytes, at: int, end: int) -> str:
    names = 0
    while at < end:
        header = data[at : at + BLOCK]
        kind, size = header[156:157], _size(header[124:136])
        content = data[at + BLOCK : at + BLOCK + size]
        names += kind in (b"L", b"x", b"X")
        if header[124] == 0 and header[125:136].strip(b"\0 "):
            return _BEHIND_NUL
        if kind not in b"LKxXg" and header[257:265] != b"ustar\x0000" and header[345]:
            return "meant: a prefix in a header that isn't POSIX's"
        if kind == b"L" and b"\0" not in content:
            return "meant: a long name that is longer than stated, which tarfile reads on"
        if kind in b"xX" and (b" path=\n" in content or b" size=\n" in content):
            return "meant: an empty PAX value, which stands for the header's (POSIX)"
        if kind == b"\0" and (names or header[345]):
            return "meant: a header of the oldest form, by whose whole name GNU tar tells files from folders"
        if kind not in b"LKxXg":
            break
        at += BLOCK + size + -size % BLOCK
    return "meant: several headers name one member, and POSIX has no order for them" if names > 1 else ""


def _size(raw: bytes) -> int:
    try:
        return int.from_bytes(raw[1:], "big") if raw[0] == 0x80 else int(raw.strip(b"\0 ") or b"0", 8)
    except ValueError:
        return 0


def _ends_whole(data: bytes) -> bool:
    """Whether only padding or the end marker is missing, which the reader warns of."""
    *_, last = [Member("", b"0", 0, 0, 0, 0), *scan_tar(data)]
    end = last.data_offset + (0 if last.type in b"123456" else last.size)
    return end <= len(data) and not data[end + -end % BLOCK :].strip(b"\0")


def _reason(damage: str) -> str:
    return "".join("#" if character.isdigit() else character for character in damage.partition("(")[0])[:50]


def _read(data: bytes) -> tuple[list[Sample], ShardEnd]:
    _PATH.write_bytes(data)
    *samples, end = read_shards([Shard(index=0, name="shard", kind="tar", source=str(_PATH))])
    assert isinstance(end, ShardEnd)
    return [sample for sample in samples if isinstance(sample, Sample)], end


def _wrong_sample(samples: list[Sample], end: ShardEnd, ours: Listing, files: set[tuple[str, bytes]]) -> str:
    """An ok sample must hold what tarfile reads; after damage, at least files of its own key."""
    if end.error:
        return ""
    if ours.damage and not end.damage:
        return "damage that the reader doesn't report"
    for sample in samples:
        if sample.status is not Status.OK:
            continue
        entries = b"".join(map(bytes, sample.entries)) + bytes(2 * BLOCK)
        if any(member.sparse or _why_meant(entries, member.data_offset) for member in scan_tar(entries)):
            continue
        packed = _contents(entries)
        if packed is None:
            return "a sample's entries are no tar"
        if sample.image is None or not packed:
            return "an ok sample without an image or files"
        if {split_name(name)[0] for name, _ in packed} != {sample.key}:
            return "a sample with files of another key"
        if bytes(sample.image) not in [content for _, content in packed]:
            return "an image that isn't a file of its sample"
        if not ours.damage and not set(packed) <= files:
            return "a sample whose files tarfile reads otherwise"
    return ""


def _contents(data: bytes) -> list[tuple[str, bytes]] | None:
    """Names and contents of the regular files, as tarfile reads them; None where it doesn't."""
    found = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                if info.isreg() and not info.issparse():
                    name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                    content = tar.extractfile(info)
                    assert content is not None
                    found.append((name, content.read()))
    except Exception:  # many types
        return None
    return found


def _linked(data: bytes) -> set[tuple[str, bytes]]:
    """Names of hard links, and what tarfile reads for them."""
    found = set()
    file = io.BytesIO(data)
    with suppress(Exception), tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:  # many types
        for info in tar:
            content = tar.extractfile(info) if info.islnk() else None
            if content is not None:
                name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                found.add((name, content.read()))
    return found


# --- making tars ---

_NAMES = (
    "a/{}.jpg",
    "{}.jpg",
    "{}.json",
    "{}.txt",
    "./{}.png",
    "{}",
    "ü{}.jpg",
    "d{}/",
    "x y{}.jpg",
    "..{}.jpg",
)


_MAGICS = (b"ustar\x0000", b"ustar\x0000", b"ustar\x0000", b"ustar  \0", bytes(8))


def _tar(rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return _by_tarfile(rng)
    pieces = [_entry(rng, number) for number in range(rng.randrange(1, 7))]
    for _ in range(rng.choice((0, 0, 0, 1, 2))):  # zero blocks in between
        pieces.insert(rng.randrange(len(pieces) + 1), bytes(BLOCK))
    tar = b"".join(pieces) + bytes(BLOCK * rng.choice((0, 1, 2, 2, 2, 20)))
    return tar + _tar(rng) if rng.random() < 0.05 else tar


def _by_tarfile(rng: random.Random) -> bytes:
    file = io.BytesIO()
    format = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    headers = {"comment": "x" * rng.randrange(600)} if rng.random() < 0.3 else None
    with tarfile.open(fileobj=file, mode="w", format=format, pax_headers=headers) as tar:
        for number in range(rng.randrange(1, 6)):
            info = tarfile.TarInfo(_name(rng, number, 90 if format == tarfile.USTAR_FORMAT else 300))
            content = _content(rng)
            info.type = rng.choice((b"0", b"0", b"0", b"0", b"7", b"1", b"2", b"5", b"6"))
            info.linkname = rng.choice(("0000.jpg", "no/such", "l" * 150)) if info.type in b"12" else ""
            info.size = len(content) if info.type in b"07" else 0
            info.mtime = rng.choice((0, 1.5, -1, 1 << 34)) if format == tarfile.PAX_FORMAT else 0
            try:
                tar.addfile(info, io.BytesIO(content))
            except ValueError:  # a name that ustar has no room for
                continue
    return file.getvalue()


def _name(rng: random.Random, number: int, longest: int = 300) -> str:
    name = rng.choice(_NAMES).format(f"{number // 2:04d}")
    length = rng.choice((0, 0, 0, 0, 95, 99, 100, 101, 155, 256, 300))
    return ("p" * 9 + "/") * (min(length, longest - 20) // 10) + name if length else name


def _content(rng: random.Random) -> bytes:
    return rng.choice((_IMAGE, b"{}", b"", b"x" * 511, b"x" * 512, b"y" * 513, _IMAGE * 9))


def _entry(rng: random.Random, number: int) -> bytes:
    """An entry with the headers that writers put before it, and some that none does."""
    name, content = _name(rng, number).encode(), _content(rng)
    if rng.random() < 0.05:
        name = name[:3] + rng.choice((b"\xff", b"\xc3", b"\0", b"\n")) + name[3:]
    kind = rng.choice(
        (b"0", b"0", b"0", b"0", b"0", b"\0", b"7", b"1", b"2", b"5", b"3", b"6", b"S", b"V", b"M", b"D")
    )
    stated, before = len(content), []
    if kind in b"123456":
        content, stated = b"", rng.choice((0, 0, 0, 5, 700))
    for kinds in rng.sample(("L", "K", "x", "g", "X"), rng.choice((0, 0, 0, 0, 1, 1, 2))):
        before.append(_extension(rng, kinds.encode(), name, len(content)))
    prefix, magic = b"", rng.choice(_MAGICS)
    if kind == b"\0" and (before or len(name) > 100):
        kind = b"0"  # the oldest form of tar has neither long names nor extensions
    if magic == _MAGICS[0] and len(name) > 100 and rng.random() < 0.7:
        cut = name.rfind(b"/", 0, 100)
        prefix, name = name[:cut], name[cut + 1 :]
    elif len(name) > 100 and not before:
        before.append(_padded_entry(rng, b"././@LongLink", b"L", name + b"\0"))
    header = _header(rng, name[:100], stated, kind, prefix[:155], magic)
    return b"".join(before) + header + content + bytes(-len(content) % BLOCK)


def _extension(rng: random.Random, kind: bytes, name: bytes, size: int) -> bytes:
    if kind in b"LK":
        long = rng.choice((name + b"\0", name, b"k/other.jpg\0tail", b"", b"z" * 700 + b".jpg\0"))
        return _padded_entry(rng, b"././@LongLink", kind, long)
    records = [(b"comment", b"c" * rng.randrange(1, 900)), (b"mtime", b"1.5"), (b"uid", b"70000")]
    if kind == b"g":
        return _padded_entry(rng, b"./g", kind, b"".join(_record(rng, *record) for record in records))
    records += [(b"path", rng.choice((name, b"other/p.jpg", b"", b"sl/", b"\xff.jpg", "ü.jpg".encode())))] * 2
    records += [
        (b"size", rng.choice((b"%d" % size, b"%d" % size, b"", b"7", b"0", b"-1", b"x", b"9" * 25)))
    ] * 2
    records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.name", b"s.jpg"), (b"hdrcharset", b"BINARY")]
    records += [(b"GNU.sparse.size", b"900"), (b"GNU.sparse.map", b"0,5,20,5"), (b"linkpath", b"l")]
    content = b"".join(_record(rng, *rng.choice(records)) for _ in range(rng.randrange(4)))
    return _padded_entry(rng, b"./PaxHeaders/x", kind, content)


def _record(rng: random.Random, key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while length != len(b"%d" % length) + len(key) + len(value) + 3:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    if rng.random() < 0.03:
        length += rng.choice((-1, 1, 1000, -length))
    return b"%d %b=%b\n" % (length, key, value)


def _padded_entry(rng: random.Random, name: bytes, kind: bytes, content: bytes) -> bytes:
    return _header(rng, name, len(content), kind) + content + bytes(-len(content) % BLOCK)


def _header(
    rng: random.Random, name: bytes, size: int, kind: bytes, prefix: bytes = b"", magic: bytes = b""
) -> bytes:
    magic = magic or rng.choice(_MAGICS)
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:124] = b"0000644\0" * 3
    block[124:136] = _size_field(rng, size)
    block[136:148] = b"%011o\0" % rng.choice((0, 1 << 30))
    block[156:157] = kind
    block[157:161] = b"link"
    block[257:265] = magic
    block[265:268] = b"me\xff" if rng.random() < 0.1 else b"me\0"
    if prefix:
        block[345 : 345 + len(prefix)] = prefix
    if kind == b"S":
        block[386:410] = b"%011o\0%011o\0" % (0, size)
        block[482] = rng.random() < 0.2
        block[483:495] = b"%011o\0" % (size + 1000)
    return bytes(_sealed(rng, block))


def _size_field(rng: random.Random, size: int) -> bytes:
    if rng.random() < 0.08:
        numbers = (
            bytes(12),
            b" " * 12,
            b"99999999999\0",
            b"-1",
            b"\xff" * 12,
            b"0x10",
            b"\x80" + b"\x7f" * 11,
        )
        return rng.choice(numbers).ljust(12, b"\0")
    forms = (b"%011o\0" % size, b"%011o\0" % size, b"%012o" % size, b"%10o \0" % size, b"%o" % size)
    base256 = b"\x80" + size.to_bytes(11, "big")
    return rng.choice((*forms, base256)).ljust(12, rng.choice((b"\0", b" ")))


def _sealed(rng: random.Random, block: bytearray) -> bytearray:
    stated = checksum(bytes(block))
    signed = stated - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    value = rng.choice((stated,) * 20 + (signed,) * 3 + (stated + 1,) * (rng.random() < 0.1))
    forms = (b"%06o\0 ", b"%06o \0", b"%07o\0", b"%6o\0 ")
    block[148:156] = rng.choice(forms) % max(value, 0)
    return block


_READ = (*range(100), *range(124, 136), *range(156, 329), *range(345, BLOCK))
"""A header's bytes but for mode, owner, time and device, which tarfile reads and the scan doesn't."""


def _damaged(rng: random.Random, tar: bytes) -> bytes:
    """`tar`, most often with one to three changes."""
    changed = bytearray(tar)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        if not changed:
            break
        at = rng.randrange(len(changed))
        block = at // BLOCK * BLOCK
        kind = rng.randrange(8)
        if kind == 0:
            del changed[at:]
        elif kind == 1:
            del changed[block : block + BLOCK]
        elif kind == 2:
            changed[block:block] = rng.choice(
                (bytes(BLOCK), bytes(2 * BLOCK), changed[block : block + BLOCK])
            )
        elif kind == 3:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 4:
            changed += rng.choice((b"\0" * 100, rng.randbytes(700), b"<html>" * 90))
        elif kind == 5:
            changed[block : block + BLOCK] = rng.randbytes(BLOCK)
        elif changed[block + 257 : block + 262] == b"ustar" and len(changed) >= block + BLOCK:
            header = changed[block : block + BLOCK]
            for _ in range(rng.randrange(1, 4)):
                place = rng.choice((0, 99, 124, 135, 156, 257, 263, 345, 482, rng.choice(_READ)))
                header[place] = rng.choice((0, 0x20, 0x2F, 0x30, 0x37, 0x78, 0x80, 0xFF, rng.randrange(256)))
            changed[block : block + BLOCK] = _sealed(rng, header)
    return bytes(changed)
