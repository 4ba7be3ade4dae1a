"""Every command in a process of its own: exit codes, JSON, and errors that name what was meant."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from retort import doctor
from retort.cli import main
from retort.doctor import examine

Here = Callable[..., subprocess.CompletedProcess[str]]
TINY = ["traces.tasks=8", "per_task=2", "steps=2", "prompts=4", "group_size=1", "checkpoint_every=1", "threads=1"]


def retort(
    *arguments: str | Path, cwd: Path | None = None, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    if path is not None:
        environment["PATH"] = path
    command = [sys.executable, "-m", "retort", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """The command in this process, which has torch already: for errors, of which there are many."""

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["retort", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(sys.argv, ended.value.code, said.out, said.err)

    return run


def settings(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with two checkpoints, made by the command line."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = retort("train", "sft", "--out", folder, *settings(*TINY))
    assert done.returncode == 0, done.stderr
    assert f"checkpoint: {folder}/checkpoints/step-000002" in done.stdout
    evaluate = "retort eval --env retort/Shell-v0 --limit 200 --model"
    assert f"next: {evaluate} {folder}/checkpoints/step-000002\n" in done.stdout
    assert f"beside it: {evaluate} gold (or null, random); then: retort compare FIRST SECOND\n" in done.stdout
    assert f"retort preview sft --env retort/Shell-v0 --model {folder}/checkpoints/step-000002\n" in done.stdout
    assert "retort trace" not in done.stdout  # it stored no signals
    assert done.stderr.startswith("loading torch ...\n")
    assert "success" not in done.stdout
    return folder


def refused(done: subprocess.CompletedProcess[str], *said: str) -> None:
    """Wrong use: exit code 2, and an error without a traceback that says all of `said`."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for part in said:
        assert part in done.stderr


def test_help_and_no_command() -> None:
    done = retort("--help")
    assert done.returncode == 0
    for command in ("envs", "check-env", "train", "eval", "compare", "preview", "trace", "export", "doctor", "demo"):
        assert command in done.stdout
    assert retort().returncode == 2
    assert retort("evel").returncode == 2
    assert retort("--version").stdout == f"retort {version('retort-rl')}\n"


def test_envs() -> None:
    done = retort("envs", "--json")
    assert done.returncode == 0
    entries = {entry["id"]: entry for entry in json.loads(done.stdout)}
    assert "missing" not in entries["retort/Shell-v0"]
    assert set(entries["retort/Shell-v0"]["tasks"]) == {"train", "validation", "test"}
    assert all(count > 0 for count in entries["retort/Shell-v0"]["tasks"].values())
    assert entries["retort/Harbor-v0"] == {"id": "retort/Harbor-v0", "missing": "needs --env-arg folder=..."}
    shown = retort("envs").stdout
    assert "retort/Shell-v0" in shown
    assert "needs --env-arg folder=..." in shown


def test_envs_without_bubblewrap_says_what_is_missing(tmp_path: Path) -> None:
    done = retort("envs", "--json", path=str(tmp_path))
    assert done.returncode == 0
    (entry,) = (entry for entry in json.loads(done.stdout) if entry["id"] == "retort/Shell-v0")
    assert "bubblewrap" in entry["missing"] or "bwrap" in entry["missing"]
    assert "apt-get install bubblewrap" in entry["missing"]


def test_export_and_play_what_was_written(tmp_path: Path, here: Here) -> None:
    done = retort("export", "retort/Shell-v0", tmp_path / "out", "--split", "validation", "--limit", "3")
    assert done.returncode == 0, done.stderr
    assert f"3 tasks in {tmp_path}/out" in done.stdout
    assert f"retort eval --env retort/Harbor-v0 --split validation --env-arg folder={tmp_path}/out" in done.stdout
    given = ["--env-arg", f"folder={tmp_path}/out", "--json"]
    done = retort("eval", "--env", "retort/Harbor-v0", "--split", "validation", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["n"], report["success"]) == (3, 1.0)
    assert done.stderr.startswith("3 episodes: 3 tasks of the validation split; --limit N plays fewer tasks")
    refused(
        here("export", "retort/Shell-v0", tmp_path / "out", "--split", "validation", "--limit", "1"), "never written"
    )
    wanted = "retort/Harbor-v0 needs folder (a folder of tasks in Harbor's format): --env-arg folder=... (--set env_"
    refused(here("export", "retort/Harbor-v0", tmp_path / "again"), wanted)
    refused(here("train", "sft", "--env", "retort/Harbor-v0", "--out", tmp_path / "run"), wanted)
    refused(here("export", "retort/Shel-v0", tmp_path / "again"), "did you mean 'retort/Shell-v0'")
    refused(here("check-env", "retort/Harbor-v0"), wanted)


def test_doctor() -> None:
    done = retort("doctor", "--json")
    assert done.returncode == 0
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["bubblewrap"]["present"]
    assert {"python", "training", "gpu", "docker", "vllm", "git"} <= set(findings)
    assert findings["git"]["detail"].startswith("git version")
    assert "bubblewrap" in retort("doctor").stdout


def test_doctor_without_bubblewrap(tmp_path: Path) -> None:
    done = retort("doctor", "--json", path=str(tmp_path))
    assert done.returncode == 1
    (finding,) = (finding for finding in json.loads(done.stdout) if finding["name"] == "bubblewrap")
    assert not finding["present"]
    assert "apt-get install bubblewrap" in finding["advice"]
    assert "sandbox=unsafe" in finding["advice"]
    (git,) = (finding for finding in json.loads(done.stdout) if finding["name"] == "git")
    assert git["advice"] == "apt-get install git; retort/Repair-v0 needs it"


def test_doctor_says_in_a_sentence_that_no_engine_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    (docker,) = (finding for finding in examine() if finding.name == "docker")
    assert (docker.present, docker.detail) == (False, "no engine answers")
    assert docker.advice.startswith("apt-get install docker.io and start it, or set DOCKER_HOST")


def test_doctor_says_how_to_get_what_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bfcl_eval", None)
    monkeypatch.setattr(doctor, "_package", lambda name: None)
    found = {finding.name: finding for finding in examine()}
    pip = f"{sys.executable} -m pip install"
    assert found["vllm"].advice.startswith(f"with a GPU: {pip} vllm; without one: make vllm")
    bfcl, questions = found["retort/BFCL-v0"], found["retort/ReasoningGym-v0"]
    assert (bfcl.present, bfcl.detail) == (False, "without bfcl_eval")
    assert bfcl.advice == f"{pip} mpmath && {pip} --no-deps bfcl-eval==2026.3.23"
    assert (questions.present, questions.detail, questions.advice) == (True, "reasoning_gym", "")
    assert "retort/Shell-v0" not in found


def test_a_split_without_tasks_says_where_they_are(here: Here, tmp_path: Path) -> None:
    done = here("check-env", "retort/HumanEval-v0", "--env-arg", "split=train")
    assert done.returncode == 1
    assert "breaks the contract: 1 fault\n" in done.stdout
    assert "tasks() is empty in the train split; it has tasks in test" in done.stdout
    said = "expected tasks in the train split, found none; it has tasks in test"
    refused(here("eval", "--env", "retort/HumanEval-v0", "--split", "train"), said)
    refused(here("train", "sft", "--env", "retort/HumanEval-v0", "--out", tmp_path / "run"), said)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_check_env() -> None:
    done = retort("check-env", "retort/Shell-v0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "keeps the contract" in done.stdout


def test_check_env_of_what_breaks_the_contract(tmp_path: Path) -> None:
    (tmp_path / "broken_env.py").write_text(
        "import gymnasium\n"
        "from retort.envs.shell import ShellEnv\n"
        "class NoGold(ShellEnv):\n"
        "    def gold(self, observation): return 'done'\n"
        "gymnasium.register('tests/NoGold-v0', entry_point=NoGold, disable_env_checker=True,\n"
        "    kwargs={'families': ['delete']})\n"
    )
    done = retort("check-env", "broken_env:tests/NoGold-v0", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gold" in done.stdout
    assert "Traceback" not in done.stderr


BROKEN = {
    "lacks": "import numpyy\n",
    "odd": "x = (\n",
    "stops": "\nraise RuntimeError('at import')\n",
    "divides": """
import gymnasium
from retort.envs.single import single_turn
def verify(prompt, answer):
    return 1 / 0, None
gymnasium.register("me/Own-v0", single_turn(["a", "b", "c", "d"], verify, answers=str.upper))
def play(env):
    return 1 / 0
RECIPE = None
""",
}


def test_what_ones_own_module_raises_is_one_line(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in BROKEN.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    lacks = "ModuleNotFoundError: No module named 'numpyy' (lacks.py:1); RETORT_DEBUG=1"
    for arguments, said in (
        (["check-env", "lacks:me/Own-v0"], lacks),
        (["eval", "--model", "script:lacks:play"], lacks),
        (["train", "lacks.recipe"], lacks),
        (["eval", "--env", "odd:me/Own-v0"], "SyntaxError: '(' was never closed (odd.py:1)"),
        (["train", "sft", "--env", "stops:me/Own-v0"], "RuntimeError: at import (stops.py:2)"),
        (["eval", "--limit", "1", "--model", "script:divides:play"], "division by zero (divides.py:8)"),
        (["eval", "--limit", "1", "--model", "script:divides:pay"], "of that name in divides; did you mean 'play'"),
        (["eval", "--env", "divides:me/Own-v0"], "nothing counted: no episode could be played; the first of 1 failed"),
        (["eval", "--env", "divides:me/Own-v0"], "ZeroDivisionError: division by zero (divides.py:5)"),
    ):
        done = here(*arguments)
        refused(done, said)
        assert "success 0.00" not in done.stderr
    done = here("check-env", "divides:me/Own-v0")
    assert done.returncode == 1
    assert "raised ZeroDivisionError: division by zero (divides.py:5)" in done.stdout
    monkeypatch.setenv("RETORT_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["retort", "check-env", "lacks:me/Own-v0"])
    with pytest.raises(ModuleNotFoundError, match="numpyy"):
        main()


@pytest.mark.parametrize("model", ["gold", "null", "random"])
def test_eval_of_a_script(model: str, tmp_path: Path) -> None:
    done = retort("eval", "--model", model, "--limit", "18", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {"success", "stderr", "n"} <= set(report)
    assert report["n"] + report["held_out"]["n"] == 18
    assert report["success"] == (1 if model == "gold" else 0)
    assert report["infrastructure_failures"] == 0
    assert report["folder"] == f"runs/eval/Shell-v0-{model}-seed0"


def test_an_environment_of_the_working_folder(tmp_path: Path) -> None:
    """By the installed script too, which does not look there by itself."""
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "from retort.envs.single import single_turn\n"
        "def verify(prompt, answer): return float(answer == prompt.upper()), 'louder'\n"
        "gymnasium.register('me/Loud-v0', single_turn(['a', 'b', 'c', 'd'], verify, answers=str.upper))\n"
    )
    script = [Path(sys.executable).with_name("retort"), "eval", "--env", "mine:me/Loud-v0", "--model", "gold", "--json"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["success"] == 1
    assert done.stderr == "1 episode: 1 task of the test split\n"
    done = retort("eval", "--env", "mine:me/Load-v0", cwd=tmp_path)
    refused(done, "unknown environment 'mine:me/Load-v0'", "did you mean 'mine:me/Loud-v0'")


def test_eval_prints_a_table_and_takes_arguments_of_the_environment(tmp_path: Path) -> None:
    ask = ["eval", "--limit", "6", "-n", "2", "--k", "1,2", "--split", "train", "--env-arg", 'families=["move"]']
    done = retort(*ask, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "move" in done.stdout
    assert "delete" not in done.stdout
    assert "pass^2" in done.stdout
    assert "gold on retort/Shell-v0 (train)" in done.stdout
    assert done.stderr.startswith("12 episodes: 6 tasks of the train split, each 2 times\n")
    assert "episodes and report: runs/eval/Shell-v0-gold-seed0" in done.stdout


AGENT = """
def play(env):
    first = []
    def act(observation, turn, rng):
        first.append(observation)
        if len(first[0]) % 3 == 0:
            return env.get_wrapper_attr("gold")(observation)
        return "done" if len(first[0]) % 3 == 1 and turn else "nonsense"
    return act
"""


def test_an_agent_of_ones_own_is_evaluated_resumed_and_compared(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    mine = retort("eval", "--model", "script:agent:play", "--limit", "36", cwd=tmp_path)
    assert mine.returncode == 0, mine.stderr
    assert "wrong 1" in mine.stdout
    assert "out of turns 1" in mine.stdout
    folder, gold = (Path("runs/eval") / f"Shell-v0-{name}-seed0" for name in ("play", "gold"))
    told = json.loads((tmp_path / folder / "report.json").read_text())
    assert 0 < told["success"] < 1
    assert 0 < told["invalid"] < 1
    monkeypatch.chdir(tmp_path)
    assert here("eval", "--limit", "18").returncode == 0
    resumed = here("eval", "--resume", gold, "--concurrency", "2", "--json")
    assert (resumed.returncode, json.loads(resumed.stdout)["success"]) == (0, 1)
    refused(here("eval", "--resume", gold, "--seed", "0"), "--resume goes on with an evaluation as it was configured")
    refused(here("eval", "--out", gold), "already holds an evaluation")
    done = here("compare", folder, gold, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["only_first"], found["only_second"], found["overall"]["n"]) == (18, 0, 16)
    assert found["overall"]["difference"] > 0
    assert 0 < found["overall"]["p"] < 1
    shown = here("compare", folder, gold)
    assert shown.returncode == 0
    assert "Left out: 18 tasks of the first alone, 0 of the second" in " ".join(shown.stdout.split())


@pytest.mark.slow
def test_eval_of_a_checkpoint_repeats_itself(trained: Path, tmp_path: Path) -> None:
    model = trained / "checkpoints" / "step-000002"
    found = [
        retort("eval", "--model", model, "--limit", "9", "--turn-tokens", "8", "--json", "--seed", "3", cwd=tmp_path)
        for _ in range(2)
    ]
    assert [done.returncode for done in found] == [0, 0]
    first, second = (json.loads(done.stdout) for done in found)
    assert first["n"] == second["n"] > 0
    assert first["tokens"] > 0


@pytest.mark.slow
def test_train_again_resume_and_go_on(trained: Path, tmp_path: Path, here: Here) -> None:
    refused(here("train", "sft", "--out", trained, *settings(*TINY)), "already holds a run", "--resume")
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder)
    last = folder / "checkpoints" / "step-000002"
    wanted = (last / "model.safetensors").read_bytes()
    shutil.rmtree(last)
    done = retort("train", "--resume", folder)
    assert done.returncode == 0, done.stderr
    assert (last / "model.safetensors").read_bytes() == wanted
    refused(here("train", "grpo", "--resume", folder), "expected nothing else beside it")
    refused(here("train", "--resume", folder, "--seed", "1"), "expected nothing else beside it")
    refused(here("train", "grpo", "--set", "seed=1"), "expected --seed")
    refused(here("train", "--resume", tmp_path), "expected a run folder with config.toml, found none")
    refused(here("train"), "expected a recipe")


def test_a_recipe_on_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    model = trained / "checkpoints" / "step-000002"
    pairs = ["steps=1", "prompts=2", "group_size=2", "concurrency=4", "turn_tokens=4", "threads=1", "signals_every=1"]
    pairs += ['env_args.families=["move", "copy"]', "env_args.explain=true"]
    done = retort("train", "sdpo", "--model", model, "--seed", "2", *settings(*pairs), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    families = """'families=["move", "copy"]'"""
    assert f"retort eval --env retort/Shell-v0 --env-arg {families} --env-arg explain=true --limit 200 " in done.stdout
    assert "retort trace runs/sdpo-Shell-v0-seed2 --step 1\n" in done.stdout
    (read,) = (line.partition(": ")[2] for line in done.stdout.splitlines() if "retort preview" in line)
    seen = retort(*shlex.split(read)[1:], "--json", cwd=tmp_path)  # as it was printed
    assert seen.returncode == 0, seen.stderr
    assert json.loads(seen.stdout)["recipe"] == "sdpo"
    folder = tmp_path / "runs" / "sdpo-Shell-v0-seed2"
    assert {path.name for path in folder.iterdir()} >= {"config.toml", "manifest.json", "metrics.jsonl", "checkpoints"}
    assert (folder / "rollouts" / "step-000001.parquet").is_file()


@pytest.mark.slow
def test_a_corrupted_checkpoint(trained: Path, tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    first, last = (folder / "checkpoints" / f"step-00000{step}" for step in (1, 2))
    with (last / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)
        file.seek(5000)
        file.write(bytes([byte[0] ^ 1]))
    done = retort("train", "--resume", folder)
    refused(done, "model.safetensors has changed since it was written", f"the newest whole one is {first}")
    for path in (last / "model.safetensors", first / "model.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    refused(here("train", "--resume", folder), "no other is whole")
    refused(here("eval", "--model", last, "--limit", "1"), str(last), "cannot be loaded")


def test_a_model_folder_without_a_tokenizer(trained: Path, tmp_path: Path, here: Here) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained / "checkpoints" / "step-000002", folder)
    (folder / "tokenizer.json").unlink()
    for command in (["eval", "--limit", "1"], ["train", "grpo", "--out", tmp_path / "run"]):
        refused(here(*command, "--model", folder), str(folder), "no tokenizer beside the model", "tokenizer.json")


def test_a_run_folder_is_no_model(trained: Path, here: Here) -> None:
    for command in (["eval"], ["train", "grpo"]):
        refused(here(*command, "--model", trained), "did you mean", "step-000002")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["eval", "--env", "retort/Shel-v0"],
            ["unknown environment 'retort/Shel-v0'", "did you mean 'retort/Shell-v0'"],
        ),
        (["check-env", "retort/Shell"], ["unknown environment", "retort/Shell-v0"]),
        (["check-env", "no_module:me/Own-v0"], ["expected module:namespace/Name-v0", "No module named 'no_module'"]),
        (["train", "sft", "--env", "json:retort/Shel-v0"], ["did you mean 'json:retort/Shell-v0'"]),
        (["check-env", "CartPole-v1"], ["expected a retort.envs.base.TextEnv, found CartPoleEnv"]),
        (["train", "grop"], ["unknown recipe 'grop'", "did you mean 'grpo'"]),
        (["train", "sft", "--env", "retort/Shel-v0"], ["did you mean 'retort/Shell-v0'"]),
        (["train", "grpo", "--set", "stepz=3"], ["unknown key 'stepz'", "did you mean 'steps'"]),
        (["train", "grpo", "--set", "steps=none"], ["steps", "found 'none'"]),
        (["train", "grpo", "--set", "steps"], ["expected key=value, found 'steps'"]),
        (["train", "srpo", "--set", "feedback=shufled"], ["feedback", "'own', 'shuffled' or 'none'", "'shufled'"]),
        (["demo", "--set", "stepz=3"], ["unknown key 'stepz'", "did you mean 'steps'"]),
        (["eval", "--split", "tests"], ["unknown split 'tests'", "did you mean 'test'"]),
        (["eval", "--model", "golden"], ["unknown model 'golden'", "did you mean 'gold'"]),
        (
            ["eval", "--model", "/no/such/folder"],
            ["with config.json, found nothing at /no/such/folder; there is no model in / either"],
        ),
        (["eval", "--model", "tiny"], ["tiny is a model without training"]),
        (["train", "grpo", "--model", "./nope"], ["expected a checkpoint folder with config.json, found nothing at"]),
        (
            ["train", "grpo", "--model", "tinyy"],
            ["did you mean 'tiny'? expected tiny, a checkpoint folder or a Hugging"],
        ),
        (["eval", "--model", "gpt-foo"], ["no folder of this name is here", "behind an endpoint it is openai:URL#gpt"]),
        (["train", "grpo", "--model", "gold"], ["gold plays and cannot be trained: expected tiny"]),
        (["eval", "--k", "1,x"], ["expected whole numbers such as 1,4,8"]),
        (["eval", "--k", "4", "-n", "2"], ["expected 1 <= k <= n=2, found [4]"]),
        (["eval", "--env-arg", "sandbox=bwarp"], ["unknown sandbox 'bwarp'", "did you mean 'bwrap'"]),
        (
            ["eval", "--env-arg", "max_turn=3"],
            ["Shell-v0 takes no argument 'max_turn'; did you mean 'max_turns'? valid:"],
        ),
        (["eval", "--env-arg", "split=train"], ["--env-arg split=...: expected --split, which also picks the tasks"]),
        (["train", "sft", "--set", "env_args.split=test"], ["env_args.split: a run trains on the train split"]),
        (["eval", "--env-arg", 'families=["delte"]'], ["delte", "did you mean 'delete'"]),
        (["eval", "--limit", "0"], ["--limit", "expected at least 1, found 0"]),
        (["eval", "--model-arg", "device=cpu"], ["gold takes no argument 'device'"]),
        (["eval", "--model", "openai:http://host#x", "--model-arg", "retires=3"], ["did you mean 'retries'"]),
        (["eval", "--model", "openai:http://host#x", "--context-tokens", "9"], ["context_tokens", "not counted here"]),
        (["eval", "--model", "script:no_such_module:play"], ["expected script:MODULE:NAME", "no_such_module"]),
        (["eval", "--resume", "nowhere"], ["nowhere: expected the folder of an evaluation"]),
        (["compare", "here", "there"], ["here: expected the folder of an evaluation"]),
        (["train", "sft", "--seed", "-1"], ["--seed", "expected at least 0, found -1"]),
    ],
)
def test_bad_input_names_what_was_meant(
    arguments: list[str], said: list[str], tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(here(*arguments), *said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["eval", "--limit", "2"], ["train", "sft", "--out", "run", *settings(*TINY)]])
def test_bubblewrap_missing(command: list[str], tmp_path: Path) -> None:
    """An error, and not an evaluation or a training run of nothing."""
    (tmp_path / "empty").mkdir()
    done = retort(*command, cwd=tmp_path, path=str(tmp_path / "empty"))
    refused(done, "no episode could be played", "apt-get install bubblewrap", "UnsafeSandbox")


def test_a_folder_that_cannot_be_written(tmp_path: Path, here: Here) -> None:
    (tmp_path / "file").touch()
    refused(here("train", "sft", "--out", tmp_path / "file" / "run", *settings(*TINY)), "Not a directory", "file")


def test_a_run_that_learns_nothing_says_so_and_ends(trained: Path, tmp_path: Path, here: Here) -> None:
    """A model that never succeeds: a warning after five steps, and after six the end, with exit code 1."""
    asked = settings("steps=9", "dead_after=6", "prompts=2", "group_size=2", "turn_tokens=2", "threads=1")
    done = here("train", "grpo", "--model", trained / "checkpoints" / "step-000002", "--out", tmp_path / "run", *asked)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = " ".join(done.stderr.split())
    assert said.count("Warning: zero-variance groups: 100% of groups have equal rewards") == 1
    assert "retort: the term 'policy' has taught nothing for 6 steps, 1 to 6" in said
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6


def test_what_trace_and_preview_refuse(trained: Path, here: Here) -> None:
    refused(here("trace", trained, "--step", "1"), "has no signals: it was trained with signals_every=10")
    refused(here("trace", trained), "--step")
    refused(here("trace", "nowhere", "--step", "1"), "nowhere: expected a run folder")
    refused(here("preview", "sdop"), "unknown recipe 'sdop'", "did you mean 'sdpo'")
    refused(here("preview", "srpo", "--set", "feedbak=none"), "did you mean 'feedback'")
    refused(here("preview", "srpo", "--model", "golf"), "did you mean 'gold'")


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    long = settings(*TINY, "steps=100000")
    command = [sys.executable, "-m", "retort", "train", "sft", "--out", str(tmp_path / "run"), *long]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=restored) as running:
        while not list(tmp_path.glob("run/checkpoints/step-*")):
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert (
        f"Interrupted. What was trained up to the last checkpoint is kept: retort train --resume {tmp_path}/run" in said
    )


def restored() -> None:
    """A shell's background job ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
