"""Samples of a tar shard, by webdataset's rule: adjacent members with one key are one sample."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from dali_aesthetic.shards.folder import padding, tar_header
from dali_aesthetic.shards.formats import IMAGE_RANK, KNOWN_SIDECARS
from dali_aesthetic.shards.members import (
    MOST_MEMBERS,
    begins_as_image,
    linked_members,
    members_apart,
    split_name,
)
from dali_aesthetic.shards.oddities import Oddities
from dali_aesthetic.shards.opened import (
    DEFAULT_LIMITS,
    READ_ERRORS,
    LocalFile,
    ReadLimits,
    View,
    check_remote,
    has_changed,
    open_local,
)
from dali_aesthetic.shards.scan import (
    BLOCK,
    FILES,
    GLOBAL_HEADER,
    HARD_LINK,
    Member,
    TarDamage,
    link_target,
    may_be_renamed,
    next_header,
    odd_end,
    parse_pax,
    scan_tar,
)
from dali_aesthetic.stores.read_ahead import RemoteFile
from dali_aesthetic.stores.store import told
from dali_aesthetic.types import Sample, Shard, ShardEnd, Status

_MAX_GLOBAL_BYTES = 1 << 16
_DAMAGES_SHOWN = 3
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gzip -dc"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\xfd7zXZ\0", "xz", "xz -dc"),
    (b"BZh", "bzip2", "bzip2 -dc"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
)
"""Magic bytes of compressed files, and commands that read them whatever the file's name is."""
_OK = Status.OK
_DIRECTORY, _LINKS = b"5", (b"1", b"2")


class _FilesApart(ValueError):
    """An image and its sidecars lie apart in a tar, and can't be joined."""


def read_tar(
    shard: Shard, limits: ReadLimits = DEFAULT_LIMITS, opener: Callable[[], RemoteFile] | None = None
) -> Iterator[Sample | ShardEnd]:
    """Yields the samples of a tar in its order, then its one ShardEnd. Raises nothing for bad data.

    Sidecars that lie apart from their image in a local tar are joined to it, where the key's first member is.
    Where that can't be done the shard fails, since its images would be kept without their sidecars.

    After damage reading continues at the next header. The samples on both sides are `truncated`, because it
    can't be known which of their members are lost. `opener` streams the tar from a store.
    """
    try:
        view = _open(shard, limits, opener)
    except Exception as error:  # fsspec's file systems raise what their clients raise
        yield ShardEnd(shard=shard, error=f"{shard.source} can't be read: {told(error, shard.source)}")
        return
    if len(view) == 0:
        yield ShardEnd(shard=shard, error=f"{shard.source} is empty (0 bytes), not even an empty tar")
        return
    try:
        apart = {} if isinstance(view, RemoteFile) else members_apart(shard.source, view)
        yield from _TarReader(shard, view, limits, apart).read()
    except _FilesApart as error:
        yield ShardEnd(shard=shard, error=f"{shard.source}: {error}")
    except READ_ERRORS as error:
        yield ShardEnd(
            shard=shard, error=f"{shard.source} can't be read to its end: {told(error, shard.source)}"
        )
    finally:
        if isinstance(view, LocalFile):
            view.close()


def first_sample(part: memoryview, source: str) -> Sample | None:
    """The first sample of a part of the tar `source`, which begins at its header; None without one."""
    return _first(part, source, 0, {})


def sample_at(source: str, offset: int) -> Sample | None:
    """The sample whose first header is at byte `offset` of a local tar, with members that lie apart.

    None without one. Raises OSError.
    """
    view = open_local(source, DEFAULT_LIMITS.max_tar_bytes)
    try:
        return _first(view, source, offset, dict(_apart(source, len(view))))
    finally:
        if isinstance(view, LocalFile):
            view.close()


@lru_cache(maxsize=1)
def _apart(source: str, size: int) -> dict[str, list[Member]]:
    view = open_local(source, size)
    try:
        return members_apart(source, view)
    finally:
        if isinstance(view, LocalFile):
            view.close()


def _first(view: View, source: str, offset: int, apart: dict[str, list[Member]]) -> Sample | None:
    shard = Shard(index=0, name="", kind="tar", source=source)
    items = _TarReader(shard, view, DEFAULT_LIMITS, apart).read(offset)
    return next((item for item in items if isinstance(item, Sample)), None)


def _open(shard: Shard, limits: ReadLimits, opener: Callable[[], RemoteFile] | None) -> View:
    if opener is None:
        return open_local(shard.source, limits.max_tar_bytes)
    file = opener()
    check_remote(file, limits)
    return file


@dataclass(slots=True)
class _Group:
    """The sample being gathered: its ranges of the tar and the members in them.

    `links` are hard links by the place of their range, which is that of their file's data.
    """

    key: str
    first: int
    ranges: list[tuple[int, int]] = field(default_factory=list)
    image: Member | None = None
    rank: int = len(IMAGE_RANK)
    sidecar: Member | None = None
    unknown: list[Member] = field(default_factory=list)
    suffixes: set[str] = field(default_factory=set)
    links: dict[int, Member] = field(default_factory=dict)
    version: int = 0
    came_before: bool = False
    cut: str = ""
    unread: str = ""
    too_large: str = ""

    def add(self, suffix: str, member: Member) -> None:
        """Takes a member whose bytes are all there."""
        if member.type == HARD_LINK:
            self.links[len(self.ranges)] = member
            self.ranges.append((member.data_offset, member.data_offset + member.size))
        else:
            self.add_range(member.header_offset, member.next_offset)
        self.suffixes.add(suffix)
        if member.sparse:
            self.unread = f"{member.name} is a sparse entry, which isn't read: pack it without tar's -S"
            return
        rank = IMAGE_RANK.get(suffix)
        if rank is not None:
            if rank < self.rank:
                self.image, self.rank = member, rank
        elif suffix == "json":
            self.sidecar = self.sidecar or member
        elif suffix not in KNOWN_SIDECARS:
            self.unknown.append(member)

    def add_range(self, start: int, end: int) -> None:
        """Takes the bytes from `start` to `end`; adjacent ranges become one, but for those of `links`."""
        ranges = self.ranges
        if ranges and ranges[-1][1] == start and len(ranges) - 1 not in self.links:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))


def _data(member: Member, group: _Group, entries: tuple[memoryview, ...]) -> memoryview:
    """The member's bytes from its sample's entries: with a store, another slice may be another copy."""
    data = member.data_offset
    end = data + member.size
    index = next(i for i, (start, stop) in enumerate(group.ranges) if start <= data and end <= stop)
    start = data - group.ranges[index][0]
    return entries[index][start : start + member.size]


def _with_links(entries: tuple[memoryview, ...], links: dict[int, Member]) -> tuple[memoryview, ...]:
    """The entries of a sample, hard links as files of their own: the tar that is written may lack theirs."""
    made: list[memoryview] = []
    for place, entry in enumerate(entries):
        link = links.get(place)
        if link is None:
            made.append(entry)
        else:
            parts = (memoryview(tar_header(link.name, link.size)), entry, memoryview(padding(link.size)))
            made += filter(None, parts)
    return tuple(made)


class _TarReader:
    def __init__(self, shard: Shard, view: View, limits: ReadLimits, apart: dict[str, list[Member]]) -> None:
        self.shard, self.view, self.limits = shard, view, limits
        self.apart = apart
        self.moved = {member.header_offset for members in apart.values() for member in members}
        self.total = len(self.view)
        self.group: _Group | None = None
        self.seen: set[str] = set()
        self.without_image: set[str] = set()
        self.linked_images: dict[str, str] = {}
        # For hard links: of a store, the files so far by name; else their files by offset, once there is one.
        self.files: dict[str, Member] | None = {} if isinstance(view, RemoteFile) else None
        self.linked: dict[int, Member] | None = None
        self.oddities = Oddities()
        self.damages: list[str] = []
        self.resumed = False
        self.end = -1
        self.records: dict[str, str] = {}
        # PAX global headers in force, as (keys, start, end). Each kept sample carries them all,
        # because it may be the first of its output tar or follow any other sample.
        self.globals: list[tuple[frozenset[str], int, int]] = []
        self.globals_version = 0

    def read(self, start: int = 0) -> Iterator[Sample | ShardEnd]:
        while start >= 0:
            found = yield from self._read_from(start)
            start = self._resume(found) if found is not None else -1
        if self.end < 0 and self.damages:
            yield ShardEnd(shard=self.shard, error=f"{self.shard.source} is not a tar: {self._start()}")
            return
        if self.group is not None:
            yield self._sample(self.group)
        if found is None:
            self._check_end(max(self.end, 0))
        if isinstance(self.view, RemoteFile):
            self.view.finish()
        yield self._end()

    def _read_from(self, start: int) -> Generator[Sample, None, TarDamage | None]:
        """Yields the complete samples from `start` on; returns the damage at which it stopped, if any."""
        try:
            for member in scan_tar(self.view, start, self.records):
                self.end = member.next_offset
                if member.type not in FILES:  # is_file, without a call
                    if (file := self._followed(member)) is None:
                        self._skip(member)
                        continue
                    member = file
                if (done := self._take(member)) is not None:
                    yield self._sample(done)
        except TarDamage as found:
            return found
        return None

    def _followed(self, member: Member) -> Member | None:
        """A hard link as a member with the bytes of its file, which lies before it; None for all else."""
        if member.type != HARD_LINK:
            return None
        if self.files is not None:
            file = self.files.get(link_target(self.view, member))
        else:
            if self.linked is None:
                self.linked = linked_members(self.shard.source, self.view)
            file = self.linked.get(member.header_offset)
        if file is None or file.sparse:
            return None
        return member._replace(data_offset=file.data_offset, size=file.size)

    def _resume(self, found: TarDamage) -> int:
        """Notes the damage; returns the offset where reading continues, or -1."""
        if self.group is not None:
            # Its remaining members are unknown, and a sample without its caption is not kept.
            self.group.cut = self.group.cut or f"the tar is damaged right after it ({found})"
        start = -1 if found.is_end else next_header(self.view, found.offset + BLOCK)
        self.damages.append(f"{found}; went on at byte {start}" if start >= 0 else str(found))
        self.resumed = start >= 0
        return start

    def _end(self) -> ShardEnd:
        if has_changed(self.shard.source, self.total):
            error = f"{self.shard.source} changed its size while it was read: run again when it is finished"
            return ShardEnd(shard=self.shard, error=error)
        more = len(self.damages) - _DAMAGES_SHOWN
        shown = self.damages[:_DAMAGES_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        return ShardEnd(shard=self.shard, damage=" | ".join(shown), warnings=self.oddities.warnings())

    def _take(self, member: Member) -> _Group | None:
        """Adds a file to its sample; returns the previous sample if the file starts a new one."""
        if self.moved and member.header_offset in self.moved:
            return None  # joined to the first of its key
        key, suffix = split_name(member.name)
        if not key:
            self.oddities.add("files without a key (no name before the first dot) left out", member.name)
            return None
        done = None
        group = self.group
        if group is None or group.key != key:
            done, group = group, self._open(key, member)
            if isinstance(self.view, RemoteFile):
                self.view.release(done.first if done is not None else member.header_offset)
        if self.files is not None and len(self.files) < MOST_MEMBERS:
            self.files[member.name] = member
        if self.resumed:
            self.resumed = may_be_renamed(member)
            group.cut = group.cut or "the tar is damaged right before it"
        self._add(group, suffix, member)
        return done

    def _add(self, group: _Group, suffix: str, member: Member) -> None:
        if suffix in group.suffixes:
            self.oddities.add("members that came twice in one sample", member.name)
        if group.version != self.globals_version:
            group.version = self.globals_version
            for _, start, end in self.globals:
                group.add_range(start, end)
        if member.data_offset + member.size <= self.total:
            group.add(suffix, member)
            if member.size > self.limits.max_member_bytes:
                limit = self.limits.max_member_bytes
                group.too_large = f"{member.name} has {member.size:,} bytes, the limit is {limit:,}"
        else:
            group.cut = f"the tar ends inside {member.name}"

    def _join(self, group: _Group) -> None:
        """Adds the members of its key that lie elsewhere."""
        if members := self.apart.pop(group.key, None):
            self.oddities.add("keys whose files lie apart in the tar, joined", group.key)
            for member in members:
                if (file := member if member.is_file else self._followed(member)) is not None:
                    self._add(group, split_name(member.name)[1], file)

    def _check_whole(self, group: _Group, has_image: bool) -> None:
        """Raises `_FilesApart` where this and an earlier group are an image and its sidecars."""
        if group.came_before and has_image is (group.key in self.without_image):
            raise _FilesApart(
                f"files of {group.key!r} lie apart, so an image would lose its sidecars; pack it sorted: "
                "mkdir DIR && tar xf IN.tar -C DIR && tar cf OUT.tar --sort=name -C DIR ."
            )
        if not has_image:
            self.without_image.add(group.key)

    def _open(self, key: str, member: Member) -> _Group:
        came_before = key in self.seen
        if came_before:
            self.oddities.add("keys that came again (both kept as samples of their own)", key)
        self.seen.add(key)
        if key.startswith("/") or ".." in key or not key.isprintable():
            self.oddities.add("unsafe names (absolute, with .. or unprintable)", key)
        self.group = _Group(key, member.header_offset, came_before=came_before)
        return self.group

    def _skip(self, member: Member) -> None:
        """Counts an entry that is not a file; remembers a global header."""
        if member.type == _DIRECTORY:
            return
        if member.type in _LINKS:
            key, suffix = split_name(member.name)
            if suffix in IMAGE_RANK:
                self.linked_images[key] = member.name
            self.oddities.add("links left out (tar -h --hard-dereference packs their files)", member.name)
            return
        if member.type != GLOBAL_HEADER:
            self.oddities.add("entries that are no files left out", member.name)
            return
        content = bytes(self.view[member.data_offset : member.data_offset + member.size])
        keys = frozenset(parse_pax(content, member.header_offset))
        kept = [entry for entry in self.globals if not entry[0] <= keys]
        self.globals = [*kept, (keys, member.header_offset, member.next_offset)]
        self.globals_version += 1
        if sum(end - start for _, start, end in self.globals) > _MAX_GLOBAL_BYTES:
            raise TarDamage(member.header_offset, f"more than {_MAX_GLOBAL_BYTES} bytes of global headers")

    def _sample(self, group: _Group) -> Sample:
        if self.apart:
            self._join(group)
        image = group.image
        if image is None and group.unknown:
            images = (member for member in group.unknown if begins_as_image(self.view, member))
            image = next(images, None)
            if next(images, None) is not None:
                self.oddities.add("keys (up to a name's first dot) of several images, one scored", group.key)
        if not group.cut and (image is None or group.came_before):
            self._check_whole(group, image is not None)
        status, message = _OK, ""
        if group.cut:
            status, message = Status.TRUNCATED, group.cut
        elif group.too_large:
            status, message = Status.TOO_LARGE, group.too_large
        elif image is None:
            status, message = Status.MISSING_IMAGE, self._why_no_image(group)
        elif image.size == 0:
            status, message = Status.EMPTY, f"{image.name} has no bytes"
        entries = () if group.too_large else self._entries(group)
        sidecar = None if group.too_large else group.sidecar
        return Sample(
            shard=self.shard,
            key=group.key,
            image=None if image is None or status is not _OK else _data(image, group, entries),
            entries=_with_links(entries, group.links) if group.links else entries,
            source=self.shard.source,
            offset=group.first,
            sidecar=None if sidecar is None else _data(sidecar, group, entries),
            status=status,
            message=message,
        )

    def _entries(self, group: _Group) -> tuple[memoryview, ...]:
        ranges = group.ranges
        if len(ranges) == 1 and ranges[0][1] <= self.total:
            return (self.view[ranges[0][0] : ranges[0][1]],)
        entries = [self.view[start:end] for start, end in ranges]
        if ranges and ranges[-1][1] > self.total:
            # The file ends inside the padding of its last member, whose data is complete.
            entries.append(memoryview(bytes(ranges[-1][1] - self.total)))
        return tuple(entries)

    def _why_no_image(self, group: _Group) -> str:
        members = ", ".join(f".{suffix}" for suffix in sorted(group.suffixes)[:8]) or "none"
        why = group.unread
        if link := self.linked_images.get(group.key):
            why = f"{link} is a link to no file before it in the tar: pack it with tar -h --hard-dereference"
        return f"no image among its members ({members})" + (f"; {why}" if why else "")

    def _check_end(self, end: int) -> None:
        if odd := odd_end(self.view, end):
            self.oddities.add(odd, f"byte {end}")

    def _start(self) -> str:
        head = bytes(self.view[0:16])
        for magic, name, command in _COMPRESSED:
            if head.startswith(magic):
                return f"it is compressed with {name}; decompress it first ({command} < IN.tar > OUT.tar)"
        return f"its first header is damaged or it is something else (it starts with {head!r})"
