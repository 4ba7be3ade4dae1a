"""Which links of an agent's lead to where tests keep things; that tests fall into none stands in test_harbor.py."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.envs.harbor_guard import trapped
from retort.sandboxes.base import FileState


def links(**targets: str) -> dict[str, FileState]:
    return {path: FileState("link", 0o777, target.encode()) for path, target in targets.items()}


@pytest.mark.parametrize(
    ("target", "is_one"),
    [
        ("/tests/x", True), ("../tests", True), ("/", False), ("own/../../tests/x", True), ("/proc/self/root", True),
        ("/dev/stdin", True), ("/dev/null", False), ("/usr/bin/python3", False), ("file", False), ("/testsuite", False),
        ("link", False), ("other", False), ("top/tests/x", True), ("top/app/top/tests", True), ("//tests//x", True),
        ("/app/top/../tests/x", True), ("top/usr", False), ("/logs/verifier", True), ("", False),
    ],
)  # fmt: skip
def test_where_links_lead(target: str, is_one: bool) -> None:
    tree = links(link=target, other="link", top="/")
    assert trapped("/app", tree) == (["/app/link", "/app/other"] if is_one else [])


def test_a_work_folder_in_a_place_of_tests() -> None:
    assert trapped("/tmp/app", links(a="b", b="/tmp/app/file", c="../other")) == ["/tmp/app/c"]


PARTS = st.sampled_from(["..", ".", "a", "b", "c", "tests", "app"])
TARGETS = st.builds(lambda top, parts: top + "/".join(parts), st.sampled_from(["", "/"]), st.lists(PARTS, max_size=5))


@given(st.fixed_dictionaries(dict.fromkeys("abc", TARGETS)))
def test_every_way_to_the_tests_is_seen(targets: dict[str, str]) -> None:
    """A walk of another kind, from link to link, finds no more."""

    def walk(path: str, hops: int) -> str:
        parts = path.split("/")
        for at in range(1, len(parts) + 1):
            here = posixpath.normpath("/".join(parts[:at]) or "/").replace("//", "/")
            name = here.removeprefix("/app/")
            if here.startswith("/app/") and name in targets and parts[at - 1] not in ("", ".", ".."):
                rest = "/".join(parts[at:])
                new = posixpath.join(posixpath.dirname(here), targets[name]) + "/" + rest
                return walk(new, hops - 1) if hops else ""
        return posixpath.normpath(path).replace("//", "/")

    found = [f"/app/{name}" for name in targets if (walk(f"/app/{name}", 40) + "/").startswith("/tests/")]
    assert trapped("/app", links(**targets)) == found
