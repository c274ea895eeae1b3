"""The owner of a temporary file: alive, dead, or a zombie."""

from __future__ import annotations

import subprocess
import sys
import time

from dali_aesthetic.write.files import Owner, _started


def test_a_zombie_process_is_dead() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        owner = Owner(Owner.current().host, child.pid, _started(child.pid))
        assert owner.started
        assert owner.is_alive
        child.kill()
        deadline = time.monotonic() + 10
        while owner.is_alive:  # a zombie now: nobody has waited for it
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_this_process_is_alive_and_its_text_parses_back() -> None:
    owner = Owner.current()
    assert owner.is_alive
    assert owner.is_here
    assert Owner.parse(str(owner)) == owner
