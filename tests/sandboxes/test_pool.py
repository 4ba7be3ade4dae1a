from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from retort.sandboxes.base import SandboxClosed
from retort.sandboxes.guest import Guest
from retort.sandboxes.pool import Pool


def test_sandboxes_are_made_when_needed_and_used_again(make: Callable[..., Guest]) -> None:
    made: list[Guest] = []

    def counted() -> Guest:
        made.append(make())
        return made[-1]

    with Pool(counted, 2) as pool:
        assert not made
        first = pool.take()
        first.write_file("left", "x")
        pool.give_back(first)
        again = pool.take()
        assert again is first
        assert again.tree() == {}
        second = pool.take()
        assert len(made) == 2
        with pytest.raises(TimeoutError):
            pool.take(timeout=0.05)
        pool.give_back(second)
        with pytest.raises(ValueError, match="not out on loan"):
            pool.give_back(second)
    for sandbox in made:
        with pytest.raises(SandboxClosed):
            sandbox.exec("true")
    with pytest.raises(SandboxClosed):
        pool.take()
    pool.close()


def test_a_broken_sandbox_is_replaced(make: Callable[..., Guest]) -> None:
    with Pool(make, 1) as pool:
        broken = pool.take()
        broken.close()
        pool.give_back(broken)
        with pool.lend() as fresh:
            assert fresh is not broken
            assert fresh.exec("echo fine").stdout == b"fine\n"


def test_a_failure_to_start_frees_its_slot(make: Callable[..., Guest]) -> None:
    fail = [True]

    def sometimes() -> Guest:
        if fail.pop():
            raise SandboxClosed("no luck")
        return make()

    with Pool(sometimes, 1) as pool:
        with pytest.raises(SandboxClosed, match="no luck"):
            pool.take()
        fail.append(False)
        assert pool.take(timeout=5).exec("true").exit_code == 0


def test_closing_wakes_who_waits(make: Callable[..., Guest]) -> None:
    pool = Pool(make, 1)
    pool.take()
    seen: list[BaseException] = []

    def wait() -> None:
        try:
            pool.take()
        except SandboxClosed as error:
            seen.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    pool.close()
    waiter.join(10)
    assert len(seen) == 1


def test_threads_share_a_small_pool(make: Callable[..., Guest]) -> None:
    failures: list[str] = []
    with Pool(make, 3) as pool:

        def episode(number: int) -> None:
            for turn in range(5):
                with pool.lend() as sandbox:
                    if sandbox.tree():
                        failures.append("leftovers")
                    sandbox.write_file("n", str(number))
                    shown = sandbox.open_terminal().run(f"cat n; echo {turn}").stdout
                    if shown != f"{number}{turn}\n".encode():
                        failures.append(repr(shown))

        threads = [threading.Thread(target=episode, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_pool_has_room() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Pool(lambda: pytest.fail("nothing is to be made"), 0)


@pytest.mark.slow
def test_a_short_soak(fence: Callable[..., Guest]) -> None:
    """Many at once, again and again: no failure, and no growth in descriptors or memory."""
    failures: list[str] = []
    rooms = [fence() for _ in range(8)]

    def play(place: int, times: int) -> None:
        for number in range(times):
            rooms[place].reset()
            rooms[place].write_file("n", f"{place} {number}")
            ran = rooms[place].exec("cat n").text
            shown = rooms[place].open_terminal().run("cat n; (sleep 100 &)").text
            if not ran == shown == f"{place} {number}":
                failures.append(f"{ran!r} {shown!r}")

    def everybody(times: int) -> tuple[int, int]:
        threads = [threading.Thread(target=play, args=(place, times)) for place in range(len(rooms))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") >> 20

    try:
        before = everybody(10)
        after = everybody(60)
    finally:
        for room in rooms:
            room.close()
    assert failures == []
    assert after[0] <= before[0]
    assert after[1] <= before[1] + 8
