"""One run at a time at a URL: an object that its owner renews, and that is anybody's when he no longer does.

What it can promise: where the store knows conditional writes (S3, and what speaks its protocol), two runs
never both begin, and a run that died is replaced after `STALE_SECONDS`, on its own host at once. Elsewhere
two runs that begin in the same second may both go on. Neither can harm: every object is the same bytes
whoever writes it and is there whole or not at all, so two runs at one output do the same work twice, no more.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from dali_aesthetic.overlap import every
from dali_aesthetic.stores.access import read_bytes
from dali_aesthetic.stores.location import join
from dali_aesthetic.stores.open import store_of
from dali_aesthetic.stores.retry import retried
from dali_aesthetic.stores.store import LASTING, NoConditions, ObjectChanged, Store, StoreError
from dali_aesthetic.write.files import Owner

RENEW_SECONDS = 15.0
STALE_SECONDS = 60.0
_LOOK_SECONDS = 2.0


@dataclass(slots=True)
class RemoteLock:
    """The lock object of one output. `holder` is who had it when it was looked at, for messages."""

    url: str
    holder: Owner | None = None
    is_held: bool = False
    _run: str = field(default_factory=lambda: secrets.token_hex(8))
    _count: int = 0
    _tag: str = ""

    def acquire(self) -> bool:
        """Whether it is ours now. Watches a lock of another host for up to `STALE_SECONDS`."""
        while not self._create():
            found = self._look()
            if found is None:
                continue  # released meanwhile
            text, tag = found
            if self._is_ours(text):
                self._tag = tag
                return True
            self.holder = Owner.parse(str(_parsed(text).get("owner")))
            if not self._is_dead(text):
                return False
            if self._replace(tag):
                return True
        return True

    def renew(self) -> None:
        """Shows that we are still there. A failure is no reason to stop: another may take over, see above."""
        with suppress(StoreError, *LASTING):
            self._replace(self._tag)

    def release(self) -> None:
        """Removes it, if it still is ours."""
        with suppress(StoreError, *LASTING):
            if (found := self._look()) is not None and self._is_ours(found[0]):
                store, key = self._place()
                retried(lambda: store.delete(key), f"removing {self.url}")

    def _is_dead(self, text: str) -> bool:
        owner = self.holder
        if owner is not None and owner.is_here:
            return not owner.is_alive
        end = time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            if (found := self._look()) is None or found[0] != text:
                return found is None
        return True

    def _create(self) -> bool:
        store, key = self._place()
        content = self._content()
        try:
            retried(lambda: store.create(key, content), f"writing {self.url}")
        except FileExistsError:
            return False
        except NoConditions:
            if self._look() is not None:
                return False
            retried(lambda: store.put(key, content), f"writing {self.url}")
        found = self._look()
        self._tag = found[1] if found is not None else ""
        return found is not None and self._is_ours(found[0])

    def _replace(self, tag: str) -> bool:
        """Puts our name in place of what `tag` is; False where that has changed."""
        store, key = self._place()
        content = self._content()
        try:
            retried(lambda: store.replace(key, content, tag), f"writing {self.url}")
        except (ObjectChanged, FileNotFoundError):
            return False
        except NoConditions:
            retried(lambda: store.put(key, content), f"writing {self.url}")
        self._tag = retried(lambda: store.info(key), self.url).tag
        return True

    def _look(self) -> tuple[str, str] | None:
        store, key = self._place()
        while True:
            try:
                tag = retried(lambda: store.info(key), self.url).tag
                return read_bytes(self.url).decode("utf-8", "replace"), tag
            except FileNotFoundError:
                return None
            except ObjectChanged:
                continue  # its owner renewed it while we looked

    def _place(self) -> tuple[Store, str]:
        return store_of(self.url)

    def _content(self) -> bytes:
        self._count += 1
        facts = {"owner": str(Owner.current()), "run": self._run, "renewed": self._count}
        return json.dumps(facts).encode()

    def _is_ours(self, text: str) -> bool:
        return _parsed(text).get("run") == self._run


@contextmanager
def claim_url(output: str, name: str) -> Iterator[RemoteLock]:
    """A lock object NAME below the URL `output`, renewed for as long as the block runs.

    Where it isn't `is_held`, another run has it and the block must not go on.
    """
    lock = RemoteLock(join(output, name))
    lock.is_held = lock.acquire()
    if not lock.is_held:
        yield lock
        return
    try:
        with every(RENEW_SECONDS, lock.renew, "lock"):
            yield lock
    finally:
        lock.release()


def _parsed(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
