"""Members of a tar by the key of their sample, and those that lie apart from the rest of it.

`tar cf x.tar *.jpg *.json` puts every sidecar behind the last image, and tar takes a folder's files in the
order of its directory. By webdataset's rule an image would then be a sample without its sidecars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby, islice

from dali_aesthetic.shards.folder import padding, tar_header
from dali_aesthetic.shards.formats import HEAD_BYTES, IMAGE_RANK, KNOWN_SIDECARS, looks_like_image
from dali_aesthetic.shards.opened import LocalFile, View
from dali_aesthetic.shards.scan import (
    BLOCK,
    GLOBAL_HEADER,
    HARD_LINK,
    Member,
    TarDamage,
    link_target,
    next_header,
    scan_tar,
)

_HEAD_MEMBERS = 64
_TAIL_BYTES = 1 << 18
"""Looked at for signs of an untidy tar: members at its start, and bytes before its end."""
MOST_MEMBERS = 1 << 20
"""Members joined or linked in a shard, at most: each takes about 300 bytes of memory."""
_MOST_OF_SAMPLE = 1 << 16
"""Members of a sample, at most."""
_PART_BYTES = 4096
"""Read at a time where only headers are wanted."""


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: the path is cut at the first dot of its last part, as webdataset does.

    The key is empty where the member belongs to no sample (no dot, or nothing before it).
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    return (name[:dot], name[dot + 1 :].lower()) if dot > start else ("", "")


def begins_as_image(view: View, member: Member) -> bool:
    """Whether its first bytes are an image's. No more is read: a video may be larger than the memory."""
    start = member.data_offset
    return looks_like_image(view[start : start + min(member.size, HEAD_BYTES)])


def members_apart(path: str, view: View) -> dict[str, list[Member]]:
    """By key, the members that lie apart from the first ones of a key with one image, in the tar's order.

    Empty for a tidy tar, of which the headers at both ends are read and no more. `view` is the local tar at
    `path`. Empty too where they can't be joined: damage, a global header that holds from the middle on, or
    more than a million of them. A part that can't be read is for the reader to find.
    """
    with suppress(OSError), _headers(path, view) as headers:
        return _find(headers) if _looks_untidy(headers) else {}
    return {}


def linked_members(path: str, view: View) -> dict[int, Member]:
    """By the offset of a hard link's header, the file before it that it stands for.

    Of a damaged tar those before the damage; none where there are over a million links.
    """
    linked: dict[int, Member] = {}
    with suppress(OSError, TarDamage), _headers(path, view) as headers:
        links = (member for member in scan_tar(headers) if member.type == HARD_LINK)
        targets = {link.header_offset: link_target(headers, link) for link in islice(links, MOST_MEMBERS)}
        wanted, files = set(targets.values()), dict[str, Member]()
        for member in scan_tar(headers):
            file = member
            if member.type == HARD_LINK:
                target = files.get(targets.get(member.header_offset, ""))
                if target is None:
                    continue
                file = linked[member.header_offset] = target
            if file.is_file and member.name in wanted:
                files[member.name] = file
    return linked


@contextmanager
def _headers(path: str, view: View) -> Iterator[View]:
    """A view of the tar for its headers alone: the reader's own of a file goes forward."""
    if not isinstance(view, LocalFile):
        yield view
        return
    with closing(LocalFile(path)) as headers:
        headers.part_bytes = _PART_BYTES
        yield headers


def _looks_untidy(view: View) -> bool:
    """Whether a key near the start or the end of the tar has no image beside its other members."""
    if _lacks_image(view, 0, _HEAD_MEMBERS):
        return True
    tail = next_header(view, max(0, len(view) - _TAIL_BYTES) & -BLOCK)
    return tail >= 0 and _lacks_image(view, tail)


def _lacks_image(view: View, start: int, most: int | None = None) -> bool:
    members: list[Member] = []
    with suppress(TarDamage):
        members.extend(islice(scan_tar(view, start), most))
    runs = [has_image for _, _, has_image in _runs(view, members)]
    # The first and the last run may go on beyond those that were looked at.
    return not all(runs[1 if start else 0 : None if len(members) != most else -1])


def _find(view: View) -> dict[str, list[Member]]:
    first: dict[str, bool] = {}
    later: dict[str, list[tuple[bool, list[Member]]]] = {}
    count = 0
    try:
        for key, members, has_image in _runs(view, _without_late_globals(scan_tar(view))):
            if key not in first:
                first[key] = has_image
                continue
            later.setdefault(key, []).append((has_image, members))
            count += len(members)
            if count > MOST_MEMBERS:
                return {}
    except TarDamage:
        return {}
    return {
        key: [member for _, members in runs for member in members]
        for key, runs in later.items()
        if first[key] + sum(has_image for has_image, _ in runs) == 1
    }


def _without_late_globals(members: Iterable[Member]) -> Iterator[Member]:
    """Raises TarDamage at a global header behind a file: it doesn't hold for that file."""
    has_file = False
    for member in members:
        if has_file and member.type == GLOBAL_HEADER:
            raise TarDamage(member.header_offset, "a global header")
        has_file = has_file or member.is_file
        yield member


def _runs(view: View, members: Iterable[Member]) -> Iterator[tuple[str, list[Member], bool]]:
    """The key, the members and whether one is an image, of each run of files with one key."""
    files = ((split_name(m.name)[0], m) for m in members if m.is_file or m.type == HARD_LINK)
    for key, run in groupby((pair for pair in files if pair[0]), key=lambda pair: pair[0]):
        own = [member for _, member in run]
        yield key, own, any(_is_image(view, member) for member in own)


def _is_image(view: View, member: Member) -> bool:
    if member.sparse:
        return False
    suffix = split_name(member.name)[1]
    return suffix in IMAGE_RANK or (suffix not in KNOWN_SIDECARS and begins_as_image(view, member))


@dataclass(slots=True)
class Group:
    """The sample being gathered: its ranges of the tar and the members in them.

    `links` are hard links by the place of their range, which is that of their file's data.
    """

    key: str
    first: int
    ranges: list[tuple[int, int]] = field(default_factory=list)
    image: Member | None = None
    rank: int = len(IMAGE_RANK)
    sidecar: Member | None = None
    unknown: list[Member] | None = None
    suffixes: set[str] = field(default_factory=set)
    links: dict[int, Member] | None = None
    version: int = 0
    came_before: bool = False
    cut: str = ""
    unread: str = ""
    too_large: str = ""

    def add(self, suffix: str, member: Member) -> None:
        """Takes a member whose bytes are all there."""
        if member.type == HARD_LINK:
            self._bound()
            self.links = self.links or {}
            self.links[len(self.ranges)] = member
            self.ranges.append((member.data_offset, member.data_offset + member.size))
        else:
            self.add_range(member.header_offset, member.next_offset)
        self.suffixes.add(suffix)
        if member.sparse:
            self._bound()
            self.unread = f"{member.name} is a sparse entry, which isn't read: pack it without tar's -S"
            return
        rank = IMAGE_RANK.get(suffix)
        if rank is not None:
            if rank < self.rank:
                self.image, self.rank = member, rank
        elif suffix == "json":
            self.sidecar = self.sidecar or member
        elif suffix not in KNOWN_SIDECARS:
            self.unknown = self.unknown or []
            self.unknown.append(member)
            self._bound()

    def add_range(self, start: int, end: int) -> None:
        """Takes the bytes from `start` to `end`; adjacent ranges become one, but for those of `links`."""
        ranges = self.ranges
        if ranges and ranges[-1][1] == start and not (self.links and len(ranges) - 1 in self.links):
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
            if len(ranges) > _MOST_OF_SAMPLE:
                self._bound()

    def _bound(self) -> None:
        """Where the members are too many to be held, drops them. Called where the number may grow."""
        if max(len(self.ranges), len(self.suffixes), len(self.unknown or ())) > _MOST_OF_SAMPLE:
            self.too_large = f"it has over {_MOST_OF_SAMPLE:,} members"
            self.ranges.clear()
            self.suffixes.clear()
            self.unknown = self.links = None

    @property
    def num_bytes(self) -> int:
        """Of its members with their headers."""
        return sum(end - start for start, end in self.ranges)


def data_of(member: Member, group: Group, entries: tuple[memoryview, ...]) -> memoryview:
    """The member's bytes from its sample's entries: with a store, another slice may be another copy."""
    data = member.data_offset
    end = data + member.size
    index = 0
    if len(group.ranges) > 1:
        index = next(i for i, (start, stop) in enumerate(group.ranges) if start <= data and end <= stop)
    start = data - group.ranges[index][0]
    return entries[index][start : start + member.size]


def with_links(entries: tuple[memoryview, ...], links: dict[int, Member]) -> tuple[memoryview, ...]:
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
