"""Samples of a tar shard, by webdataset's rule: adjacent members with one key are one sample."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from functools import lru_cache

from dali_aesthetic.shards.formats import IMAGE_RANK
from dali_aesthetic.shards.members import (
    MOST_MEMBERS,
    Group,
    begins_as_image,
    data_of,
    linked_members,
    members_apart,
    split_name,
    with_links,
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
    odd_start,
    parse_pax,
    scan_tar,
)
from dali_aesthetic.stores.read_ahead import RemoteFile
from dali_aesthetic.stores.store import told
from dali_aesthetic.types import Sample, Shard, ShardEnd, Status

_MAX_GLOBAL_BYTES = 1 << 16
_HEADER_BYTES = 1 << 20
"""What the headers of a sample may have above its limit, so that the limit is that of a single member too."""
_MOST_SAMPLES = 1 << 23
"""Of a shard: each takes about 70 bytes of the reader's memory."""
_DAMAGES_SHOWN = 3
_OK = Status.OK
_DIRECTORY, _LINKS = b"5", (b"1", b"2")


class _Unfit(ValueError):
    """A tar can't be read as samples: an image and its sidecars lie apart, or there are too many of them."""


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
    except _Unfit as error:
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


class _TarReader:
    def __init__(self, shard: Shard, view: View, limits: ReadLimits, apart: dict[str, list[Member]]) -> None:
        self.shard, self.view, self.limits = shard, view, limits
        self.apart = apart
        self.moved = {member.header_offset for members in apart.values() for member in members}
        self.total = len(self.view)
        self.group: Group | None = None
        # Hashes: a shard's keys may be long.
        self.seen: set[int] = set()
        self.without_image: set[int] = set()
        self.linked_images: dict[str, str] = {}
        # For hard links: of a store, the files so far by name; else their files by offset, once there is one.
        self.files: dict[str, Member] | None = {} if isinstance(view, RemoteFile) else None
        self.linked: dict[int, Member] | None = None
        self.oddities = Oddities()
        self.damages: list[str] = []
        self.num_damages = 0
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
            yield ShardEnd(
                shard=self.shard, error=f"{self.shard.source} is not a tar: {odd_start(self.view)}"
            )
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
            members = scan_tar(self.view, start, self.records)
            for member in members if self.files is None else self._remembered(members, self.files):
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

    def _remembered(self, members: Iterator[Member], files: dict[str, Member]) -> Iterator[Member]:
        for member in members:
            file = member if member.is_file else self._followed(member)
            if file is not None and len(files) < MOST_MEMBERS:
                files[member.name] = file
            yield member

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
        end = member.next_offset + file.size
        return member._replace(data_offset=file.data_offset, size=file.size, next_offset=end)

    def _resume(self, found: TarDamage) -> int:
        """Notes the damage; returns the offset where reading continues, or -1."""
        if self.group is not None:
            # Its remaining members are unknown, and a sample without its caption is not kept.
            self.group.cut = self.group.cut or f"the tar is damaged right after it ({found})"
        start = -1 if found.is_end else next_header(self.view, found.offset + BLOCK)
        self.num_damages += 1
        if self.num_damages <= _DAMAGES_SHOWN:
            self.damages.append(f"{found}; went on at byte {start}" if start >= 0 else str(found))
        self.resumed = start >= 0
        return start

    def _end(self) -> ShardEnd:
        if has_changed(self.shard.source, self.total):
            error = f"{self.shard.source} changed its size while it was read: run again when it is finished"
            return ShardEnd(shard=self.shard, error=error)
        more = self.num_damages - _DAMAGES_SHOWN
        shown = self.damages + ([f"and {more} more"] if more > 0 else [])
        return ShardEnd(shard=self.shard, damage=" | ".join(shown), warnings=self.oddities.warnings())

    def _take(self, member: Member) -> Group | None:
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
            if self.files is not None and isinstance(self.view, RemoteFile):
                self.view.release(done.first if done is not None else member.header_offset)
        if self.resumed:
            self.resumed = may_be_renamed(member)
            group.cut = group.cut or "the tar is damaged right before it"
        self._add(group, suffix, member)
        return done

    def _add(self, group: Group, suffix: str, member: Member) -> None:
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

    def _join(self, group: Group) -> None:
        """Adds the members of its key that lie elsewhere."""
        if members := self.apart.pop(group.key, None):
            self.oddities.add("keys whose files lie apart in the tar, joined", group.key)
            for member in members:
                if (file := member if member.is_file else self._followed(member)) is not None:
                    self._add(group, split_name(member.name)[1], file)

    def _check_whole(self, group: Group, has_image: bool) -> None:
        """Raises `_Unfit` where this and an earlier group are an image and its sidecars."""
        if group.came_before and has_image is (hash(group.key) in self.without_image):
            raise _Unfit(
                f"files of {group.key!r} lie apart, so an image would lose its sidecars; pack it sorted: "
                "mkdir DIR && tar xf IN.tar -C DIR && tar cf OUT.tar --sort=name -C DIR ."
            )
        if not has_image:
            self.without_image.add(hash(group.key))

    def _open(self, key: str, member: Member) -> Group:
        mark = hash(key)
        came_before = mark in self.seen
        if came_before:
            self.oddities.add("keys that came again (both kept as samples of their own)", key)
        elif len(self.seen) == _MOST_SAMPLES:
            raise _Unfit(f"it has over {_MOST_SAMPLES:,} samples; split it into smaller tars")
        self.seen.add(mark)
        if key.startswith("/") or ".." in key or not key.isprintable():
            self.oddities.add("unsafe names (absolute, with .. or unprintable)", key)
        self.group = Group(key, member.header_offset, came_before=came_before)
        return self.group

    def _skip(self, member: Member) -> None:
        """Counts an entry that is not a file; remembers a global header."""
        if member.type == _DIRECTORY:
            return
        if member.type in _LINKS:
            key, suffix = split_name(member.name)
            if suffix in IMAGE_RANK and len(self.linked_images) < MOST_MEMBERS:
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

    def _sample(self, group: Group) -> Sample:
        if self.apart:
            self._join(group)
        image = group.image
        if image is None and group.unknown and not group.too_large:
            images = (member for member in group.unknown if begins_as_image(self.view, member))
            image = next(images, None)
            if next(images, None) is not None:
                self.oddities.add("keys (up to a name's first dot) of several images, one scored", group.key)
        if not (group.cut or group.too_large) and (image is None or group.came_before):
            self._check_whole(group, image is not None)
        limit = self.limits.max_member_bytes
        may_be_large = len(group.ranges) > 1 or self.end - group.first > limit
        if may_be_large and not group.too_large and group.num_bytes > limit + _HEADER_BYTES:
            group.too_large = f"its members together have more than {limit:,} bytes, the limit of a sample"
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
        found = None if image is None or status is not _OK else data_of(image, group, entries)
        json = None if sidecar is None else data_of(sidecar, group, entries)
        if group.links:
            entries = with_links(entries, group.links)
        source, offset = self.shard.source, group.first
        fields = (self.shard, group.key, found, entries, source, offset, json, status, message)
        return tuple.__new__(Sample, fields)  # a third of the time of Sample(...)

    def _entries(self, group: Group) -> tuple[memoryview, ...]:
        ranges = group.ranges
        if len(ranges) == 1 and ranges[0][1] <= self.total:
            return (self.view[ranges[0][0] : ranges[0][1]],)
        entries = [self.view[start:end] for start, end in ranges]
        if ranges and ranges[-1][1] > self.total:
            # The file ends inside the padding of its last member, whose data is complete.
            entries.append(memoryview(bytes(ranges[-1][1] - self.total)))
        return tuple(entries)

    def _why_no_image(self, group: Group) -> str:
        members = ", ".join(f".{suffix}" for suffix in sorted(group.suffixes)[:8]) or "none"
        why = group.unread
        if link := self.linked_images.get(group.key):
            why = f"{link} is a link to no file before it in the tar: pack it with tar -h --hard-dereference"
        return f"no image among its members ({members})" + (f"; {why}" if why else "")

    def _check_end(self, end: int) -> None:
        if odd := odd_end(self.view, end):
            self.oddities.add(odd, f"byte {end}")
