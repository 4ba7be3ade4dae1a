"""A run's folder: what has a checkpoint's name is whole, whatever happened while it was written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from retort.agents.record import manifest
from retort.algos.config import ConfigError, resolve
from retort.algos.runs import CheckpointError, Run, check, digest

CONFIG = resolve({"recipe": "grpo", "keep": 2})


def fill(content: str = "weights"):
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_text(content)
        (folder / "learner.pt").write_bytes(bytes(range(256)))

    return write


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", CONFIG)


def test_a_new_run_can_be_opened(run: Run) -> None:
    again = Run.open(run.folder)
    assert again == run
    told = json.loads((run.folder / "manifest.json").read_text())
    assert told == json.loads(json.dumps(manifest()))
    assert {"retort-rl", "torch", "transformers"} <= set(told["versions"])


def test_create_refuses_a_folder_that_holds_a_run(run: Run) -> None:
    run.save(1, fill())
    with pytest.raises(ConfigError, match=r"already holds a run: go on with it \(--resume .*\) or name another"):
        Run.create(run.folder, CONFIG)
    assert check(run.checkpoints()[-1]) == 1


def test_open_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a run folder with config.toml, found none"):
        Run.open(tmp_path)


def test_create_or_open_wants_the_same_configuration(run: Run, tmp_path: Path) -> None:
    assert Run.create_or_open(run.folder, CONFIG) == run
    other = CONFIG.model_copy(update={"seed": 1})
    with pytest.raises(ConfigError, match="another configuration"):
        Run.create_or_open(run.folder, other)
    assert Run.create_or_open(tmp_path / "new", other).config.seed == 1


def test_a_saved_checkpoint_is_whole(run: Run) -> None:
    place = run.save(3, fill())
    assert place.name == "step-000003"
    assert check(place) == 3
    assert json.loads((place / "progress.json").read_text())["files"] == {
        name: digest(place / name) for name in ("learner.pt", "model.safetensors")
    }


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_only_the_newest_stay(run: Run) -> None:
    for step in (1, 2, 9, 10):
        run.save(step, fill())
    assert [path.name for path in run.checkpoints()] == ["step-000009", "step-000010"]


def test_a_step_may_be_saved_again(run: Run) -> None:
    run.save(1, fill("first"))
    place = run.save(1, fill("second"))
    assert (place / "model.safetensors").read_text() == "second"
    assert check(place) == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_no_checkpoint(run: Run, error: type[BaseException]) -> None:
    def breaks(folder: Path) -> None:
        fill()(folder)
        raise error("halfway")

    run.save(1, fill())
    with pytest.raises(error):
        run.save(2, breaks)
    assert [path.name for path in run.checkpoints()] == ["step-000001"]
    assert check(run.checkpoints()[-1]) == 1
    assert check(run.save(2, fill())) == 2


def test_what_a_kill_left_behind_is_no_checkpoint(run: Run) -> None:
    run.save(1, fill())
    left = run.folder / "checkpoints" / ".step-000002.partial"
    left.mkdir()
    (left / "model.safetensors").write_text("ha")
    assert [path.name for path in run.checkpoints()] == ["step-000001"]
    assert check(run.save(2, fill())) == 2
    assert not left.exists()


def change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda place: change(place / "model.safetensors"), "model.safetensors has changed since it was written"),
        (lambda place: (place / "learner.pt").write_bytes(b""), "learner.pt has changed since it was written"),
        (lambda place: (place / "learner.pt").unlink(), "learner.pt is missing"),
        (lambda place: (place / "progress.json").unlink(), "progress.json cannot be read"),
        (lambda place: (place / "progress.json").write_text("{"), "progress.json cannot be read"),
        (lambda place: (place / "progress.json").write_bytes(b"\xff"), "progress.json cannot be read"),
        (lambda place: (place / "progress.json").write_text("[]"), "progress.json cannot be read"),
        (lambda place: (place / "progress.json").write_text('{"step": 2}'), "progress.json cannot be read"),
        (lambda place: (place / "progress.json").write_text('{"files": {}}'), "progress.json cannot be read"),
        (
            lambda place: (place / "progress.json").write_text('{"step": 2, "files": 3}'),
            "progress.json cannot be read",
        ),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_newest_whole_one(run: Run, damage, fault: str) -> None:
    first, second = run.save(1, fill()), run.save(2, fill())
    damage(second)
    with pytest.raises(CheckpointError) as error:
        check(second)
    assert f"checkpoint {second} is corrupted: {fault}" in str(error.value)
    assert f"the newest whole one is {first}" in str(error.value)
    assert check(first) == 1


def test_where_none_is_whole_the_error_says_so(run: Run) -> None:
    first, second = run.save(1, fill()), run.save(2, fill())
    change(first / "learner.pt")
    change(second / "learner.pt")
    with pytest.raises(CheckpointError, match="no other is whole"):
        check(second)


def test_the_newest_whole_one_is_the_newest(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", resolve({"recipe": "grpo", "keep": 4}))
    places = [run.save(step, fill()) for step in (1, 2, 3, 4)]
    change(places[3] / "learner.pt")
    change(places[2] / "learner.pt")
    with pytest.raises(CheckpointError, match=f"newest whole one is {places[1]}"):
        check(places[3])


def test_metrics_are_kept_and_a_cut_line_is_not_read(run: Run) -> None:
    assert run.metrics() == []
    for step in (1, 2, 3):
        run.log({"step": step, "loss": step / 7})
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert run.metrics() == [{"step": step, "loss": step / 7} for step in (1, 2, 3)]


@given(last=st.integers(0, 9), to=st.integers(0, 12), cut=st.booleans())
def test_rewind_forgets_later_steps(tmp_path_factory: pytest.TempPathFactory, last: int, to: int, cut: bool) -> None:
    run = Run(tmp_path_factory.mktemp("run"), CONFIG)
    for step in range(1, last + 1):
        run.log({"step": step})
    if cut:
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step"')
    run.rewind(to)
    assert [line["step"] for line in run.metrics()] == list(range(1, min(last, to) + 1))
    run.log({"step": to + 1})
    assert run.metrics()[-1] == {"step": to + 1}


# A second save in a process that may write no file beyond 64 KiB, as on a disk that has run out in the middle of one.
FULL = """
import resource, signal, sys
from pathlib import Path
from retort.algos.runs import Run

run = Run.open(Path(sys.argv[1]))
run.save(1, lambda folder: (folder / "model.safetensors").write_bytes(bytes(50_000)))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))
try:
    run.save(2, lambda folder: (folder / "model.safetensors").write_bytes(bytes(100_000)))
except OSError as error:
    print(error)
"""


def test_a_file_that_cannot_grow_leaves_the_last_checkpoint_whole(run: Run) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(run.folder)], capture_output=True, text=True, check=True, timeout=60
    )
    first = run.folder / "checkpoints" / "step-000001"
    assert "could not save step 2" in done.stdout
    assert "File too large" in done.stdout
    assert f"the last whole checkpoint is {first}" in done.stdout
    assert list((run.folder / "checkpoints").iterdir()) == [first]
    assert check(first) == 1


# The same on a real file system that is full. The mount is in a namespace of its own and goes with the process.
FULL_DISK = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from retort.algos.config import resolve
from retort.algos.runs import Run, check

run = Run.create(Path(sys.argv[1]) / "run", resolve({"recipe": "grpo"}))
for write in (
    lambda folder: (folder / "model.safetensors").write_bytes(bytes(3_000_000)),
    lambda folder: save_file({"weights": torch.zeros(750_000)}, folder / "model.safetensors"),
    lambda folder: torch.save(torch.zeros(750_000), folder / "learner.pt"),
):
    run.save(1, lambda folder: (folder / "model.safetensors").write_bytes(bytes(1_000_000)))
    try:
        run.save(2, write)
    except Exception as error:
        print(type(error).__name__, error)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-000001"]
    assert check(run.checkpoints()[-1]) == 1
print("whole")
"""


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=3m retort-test "{tmp_path}" && exec "$@"'
    inside = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no mount namespace")
    command = [*inside, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    *errors, last = done.stdout.splitlines()
    assert last == "whole"
    assert len(errors) == 3
    for error in errors:
        assert error.startswith("OSError")
        assert "could not save step 2" in error
        assert "the last whole checkpoint is" in error
        assert "step-000001" in error
    assert list(tmp_path.iterdir()) == []
