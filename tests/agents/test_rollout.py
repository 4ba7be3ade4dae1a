"""Rollouts keep what was sampled, say what was truncated, and let nothing that breaks spoil a batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from renderers.base import create_renderer
from renderers.configs import DefaultRendererConfig
from retort.agents import scripted
from retort.agents.base import Completion, Finish, Origin, Prompt, Sampling, Trajectory
from retort.agents.chat import Chat
from retort.agents.episode import Budget, EpisodeRequest, turn_seed
from retort.agents.rollout import Runner
from retort.agents.scripted import ByteTokenizer, ScriptedPolicy
from retort.envs.base import Failure, Source, TextSpace

BYTES = Chat(ByteTokenizer())


def play(make_env: Any, policy: Any, chat: Chat = BYTES, tasks: Any = range(8), **options: Any) -> list[Trajectory]:
    asked = [EpisodeRequest(f"echo-{task}", 7 * n, n, f"{n:03d}") for n, task in enumerate(tasks)]
    with closing(Runner(make_env, policy, chat, env_id="echo", **options)) as runner:
        return runner.run(asked)


class Recorder(ScriptedPolicy):
    """Plays the gold solution and keeps every completion and the limit that it was given."""

    def __init__(self) -> None:
        super().__init__(lambda env: lambda text, turn, rng: env.gold(text), BYTES, name="recorder")
        self.version = 3
        self.said: dict[str, list[Completion]] = {}
        self.room: list[int] = []

    async def generate(self, prompt: Prompt, sampling: Sampling, *, episode: str, seed: int) -> Completion:
        completion = await super().generate(prompt, sampling, episode=episode, seed=seed)
        marked = Completion(
            completion.token_ids,
            tuple(-0.25 - place for place, _ in enumerate(completion.token_ids)),
            completion.finish_reason,
            completion.versions,
        )
        self.said.setdefault(episode, []).append(marked)
        self.room.append(sampling.max_new_tokens)
        return marked


def test_rows_hold_exactly_what_was_sampled(echo: Any) -> None:
    policy = Recorder()
    for number, item in enumerate(play(echo, policy)):
        (row,) = item.rows
        said = policy.said[item.episode]
        assert len(item.turns) == len(said) == 1 + number % 4
        assert row.token_ids[row.mask].tolist() == [i for done in said for i in done.token_ids]
        np.testing.assert_array_equal(row.behaviour_logp[row.mask], [p for done in said for p in done.logp])
        assert np.isnan(row.behaviour_logp[~row.mask]).all()
        assert set(row.version[row.mask]) == {3}
        assert set(row.version[~row.mask]) == {-1}
        for place, (turn, done) in enumerate(zip(item.turns, said, strict=True)):
            assert tuple(row.token_ids[turn.start : turn.stop]) == done.token_ids
            assert set(row.turn[turn.start : turn.stop]) == {place}
            assert BYTES.text(done.token_ids) == turn.action
        assert set(row.turn[~row.mask]) == {-1}
        whole = BYTES.prompt(item.messages)
        assert row.token_ids.tolist() == whole[: len(row.token_ids)]
        first = int(np.argmax(row.mask))
        assert set(row.origin[:first]) == {Origin.PROMPT}
        assert set(row.origin[first:]) <= {Origin.SAMPLED, Origin.OBSERVATION}


def test_an_episode_is_written_down_whole(echo: Any) -> None:
    item = play(echo, Recorder(), sampling=Sampling(0.5, max_new_tokens=40))[3]
    assert [turn.observation for turn in item.turns] == [
        "say 3 and then done",
        "you said say",
        "you said say",
        "you said say",
    ]
    assert [turn.reward for turn in item.turns] == [0, 0, 0, 1]
    assert (item.reward, item.success, item.failure, item.terminated, item.truncated) == (1.0, True, None, True, False)
    assert item.final_observation == "you said done"
    assert dict(item.reward_components) == {"done": 1.0}
    for place, turn in enumerate(item.turns):
        assert [(lesson.text, lesson.source, lesson.turn) for lesson in turn.feedback] == [
            (f"lesson of {place}", Source.VERIFIER, place)
        ]
    assert not any("lesson" in message["content"] for message in item.messages)
    told = item.provenance
    assert (told.env_id, told.policy, told.policy_version, told.seed) == ("echo", "recorder", 3, 21)
    assert (told.tokenizer_digest, told.template_digest) == (BYTES.tokenizer_digest, BYTES.template_digest)
    assert (told.backend, told.verifier_version, told.sampling.temperature) == ("none", "1", 0.5)
    assert item.task.digest == f"{3:016d}"


def test_trajectories_come_in_the_order_of_requests(echo: Any) -> None:
    order = [7, 3, 0, 2, 5, 1, 6, 4, 0, 0, 3]
    heard: list[str] = []
    asked = [EpisodeRequest(f"echo-{task}", n, n, f"{n:03d}") for n, task in enumerate(order)]
    with closing(Runner(echo, scripted.gold(BYTES), BYTES, env_id="echo", concurrency=3)) as runner:
        played = runner.run(asked, on_done=lambda item: heard.append(item.episode))
        assert [item.task.key for item in played] == [f"echo-{task}" for task in order]
        assert sorted(heard) == [request.episode for request in asked]
        assert echo.made == 3
        runner.run(asked)
        assert echo.made == 3
    assert echo.closed == 3
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(asked)


def test_concurrency_is_capped(echo: Any) -> None:
    lock, now, most = threading.Lock(), 0, 0
    real = echo.step

    def step(self: Any, action: str) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        answer = real(self, action)
        with lock:
            now -= 1
        return answer

    echo.step = step
    assert all(item.success for item in play(echo, scripted.gold(BYTES), tasks=[3] * 40, concurrency=4))
    assert 1 <= most <= 4


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_breaking_environment_costs_its_own_episode_alone(echo: Any, at: int) -> None:
    played = play(lambda: echo(breaks=[("echo-3", at)]), scripted.gold(BYTES), concurrency=2)
    for number, item in enumerate(played):
        assert item.usable == (number != 3)
        assert item.usable == bool(item.success)
    broken = played[3]
    assert broken.failure is Failure.INFRASTRUCTURE
    assert broken.success is None
    assert not broken.terminated
    assert not broken.truncated
    said = f"{'step' if at else 'reset'}: OSError: the host of echo-3 went away (tests/agents/conftest.py:"
    assert (broken.error or "").startswith(said)
    assert len(broken.turns) == at
    assert broken.task.key == "echo-3"
    assert echo.made == 3  # the slot got another
    assert echo.closed == 3


def test_an_environment_that_does_not_even_close_is_survived(echo: Any) -> None:
    played = play(lambda: echo(breaks=[("echo-0", 0)], unclean=True), scripted.gold(BYTES), concurrency=1)
    assert [item.usable for item in played] == [False] + [True] * 7


def test_an_environment_that_cannot_be_made_is_the_callers(echo: Any) -> None:
    def make() -> Any:
        raise RuntimeError("no bubblewrap")

    with pytest.raises(RuntimeError, match="no bubblewrap"):
        play(make, scripted.gold(BYTES))


def test_an_environment_that_cannot_be_made_again_is_infrastructure(echo: Any) -> None:
    made = 0

    def make() -> Any:
        nonlocal made
        made += 1
        if made == 2:
            raise RuntimeError("no more of them")
        return echo(breaks=[("echo-2", 1)])

    played = play(make, scripted.gold(BYTES), concurrency=1)
    assert [item.usable for item in played] == [True, True, False, False, True, True, True, True]
    assert played[3].error == "make: RuntimeError: no more of them"


def test_a_faulty_contract_is_an_infrastructure_failure(echo: Any) -> None:
    faults: dict[str, Callable[[Any], Any]] = {
        "finite reward": lambda answer: (answer[0], float("nan"), *answer[2:]),
        "UnicodeEncodeError": lambda answer: ("\ud800", *answer[1:]),
        "feedback names turn 9": lambda answer: (
            *answer[:4],
            {**answer[4], "feedback": tuple(type(f)(f.text, f.source, 9, f.visible) for f in answer[4]["feedback"])},
        ),
    }
    real = echo.step
    for message, fault in faults.items():
        echo.step = lambda self, action, fault=fault: fault(real(self, action))
        (item,) = play(echo, scripted.gold(BYTES), tasks=[3])
        assert item.failure is Failure.INFRASTRUCTURE
        assert message in (item.error or "")


def test_a_gold_that_fails_is_the_environments_fault(echo: Any) -> None:
    echo.gold = lambda self, observation: 1 / 0
    played = play(echo, scripted.gold(BYTES))
    assert all(item.failure is Failure.INFRASTRUCTURE for item in played)
    assert (played[0].error or "").startswith(
        "gold: ZeroDivisionError: division by zero (tests/agents/test_rollout.py:"
    )


class Talker(ScriptedPolicy):
    """Says as much as it may."""

    def __init__(self) -> None:
        super().__init__(lambda env: lambda text, turn, rng: "x" * 1000, BYTES, name="talker")


def test_a_turn_over_budget_ends_the_episode_and_is_not_played(echo: Any) -> None:
    (item,) = play(echo, Talker(), tasks=[3], budget=Budget(turn_tokens=9))
    assert (item.truncated, item.truncated_by, item.terminated) == (True, "turn_tokens", False)
    assert (item.success, item.failure, item.reward) == (None, None, 0.0)
    assert [turn.finish_reason for turn in item.turns] == [Finish.LENGTH]
    assert item.sampled_tokens == 9
    assert item.final_observation == "say 3 and then done"


def test_a_cut_action_may_be_played_all_the_same(echo: Any) -> None:
    (item,) = play(echo, Talker(), tasks=[3], budget=Budget(turn_tokens=9, act_on_cut=True))
    assert not item.truncated
    assert [turn.action for turn in item.turns] == ["x" * 9] * 4
    assert item.rows[0].token_ids.tolist() == BYTES.prompt(item.messages)[: len(item.rows[0].token_ids)]


def test_the_trajectory_budget_covers_all_turns(echo: Any) -> None:
    policy = Recorder()
    (item,) = play(echo, policy, tasks=[3], budget=Budget(trajectory_tokens=10))
    assert policy.room == [10, 6, 2]  # "say" and its stop token are four
    assert (item.truncated_by, item.sampled_tokens) == ("trajectory_tokens", 10)


def test_the_context_budget_covers_the_row(echo: Any) -> None:
    start = len(BYTES.prompt([{"role": "user", "content": "say 3 and then done"}]))
    (item,) = play(echo, Recorder(), tasks=[3], budget=Budget(context_tokens=start + 5))
    assert item.truncated_by == "context"
    assert [turn.action for turn in item.turns] == ["say"]
    assert item.sampled_tokens == 4


def test_an_episode_without_a_model_token_is_data(echo: Any) -> None:
    (item,) = play(echo, Recorder(), tasks=[3], budget=Budget(context_tokens=3))
    assert (item.truncated_by, item.turns, item.sampled_tokens) == ("context", (), 0)
    assert item.usable
    assert len(item.rows) == 1
    assert not item.rows[0].mask.any()


def test_the_environments_own_limit_is_told_apart(echo: Any) -> None:
    real = echo.step
    echo.step = lambda self, action: (*real(self, action)[:2], False, True, {"success": False})
    (item,) = play(echo, scripted.gold(BYTES), tasks=[3])
    assert (item.truncated, item.truncated_by, item.success) == (True, "env", False)


def test_a_broken_prefix_starts_a_row_and_is_counted(echo: Any, chat: Chat) -> None:
    opaque = Chat(chat.tokenizer, create_renderer(chat.tokenizer, DefaultRendererConfig()))
    (item,) = play(echo, scripted.gold(opaque), opaque, tasks=[3])
    assert item.success
    assert len(item.rows) == 4
    for number, (row, turn) in enumerate(zip(item.rows, item.turns, strict=True)):
        assert turn.row == number
        assert row.token_ids[row.mask].tolist() == opaque.action_ids(turn.action)
        assert set(row.turn[row.mask]) == {number}
        first = int(np.argmax(row.mask))
        assert row.token_ids[:first].tolist() == opaque.prompt(item.messages[: 2 * number + 1])
        assert set(row.origin[:first]) == {Origin.PROMPT}


def test_tools_reach_the_prompt(echo: Any) -> None:
    real = echo.reset
    tools = [{"name": "run"}]

    def reset(self: Any, **options: Any) -> Any:
        observation, info = real(self, **options)
        return observation, {**info, "tools": tools}

    echo.reset = reset
    (item,) = play(echo, scripted.gold(BYTES), tasks=[2])
    assert '{"name": "run"}' in BYTES.tokenizer.decode(item.rows[0].token_ids)


class Straggler:
    """Something that waits until every other episode has ended; it fails where they wait for it."""

    def __init__(self, others: int) -> None:
        self.others, self.ended = others, threading.Event()

    def heard(self, _: Trajectory) -> None:
        self.others -= 1
        if self.others == 0:
            self.ended.set()

    def wait(self) -> None:
        if not self.ended.wait(60):
            raise TimeoutError("the others wait for the slow one")


def play_beside(straggler: Straggler, make_env: Any, policy: Any, chat: Chat = BYTES, **options: Any) -> None:
    """Task 0 is the slow one; of the others there are more than places."""
    asked = [EpisodeRequest(f"echo-{n % 8}", n, n, f"{n:03d}") for n in range(straggler.others + 1)]
    with closing(Runner(make_env, policy, chat, env_id="echo", concurrency=3, **options)) as runner:
        played = runner.run(asked, on_done=straggler.heard)
    assert [item.error for item in played] == [None] * len(asked)


@pytest.mark.parametrize("method", ["reset", "step"])
@pytest.mark.parametrize("player", ["script", "model"])
def test_nobody_waits_for_a_slow_environment(
    echo: Any, policy_of: Callable[..., Any], chat: Chat, method: str, player: str
) -> None:
    straggler, real = Straggler(7), getattr(echo, method)

    def slow(self: Any, *args: Any, **options: Any) -> Any:
        answer = real(self, *args, **options)
        if self.task.key == "echo-0":
            straggler.wait()
        return answer

    setattr(echo, method, slow)
    if player == "model":
        limits = {"sampling": Sampling(max_new_tokens=5), "budget": Budget(act_on_cut=True)}
        play_beside(straggler, echo, policy_of(barrier=False), chat, **limits)
    else:
        play_beside(straggler, echo, scripted.gold(BYTES))


def test_nobody_waits_for_a_slow_script(echo: Any) -> None:
    straggler = Straggler(7)

    def script(env: Any) -> Any:
        def act(observation: str, turn: int, rng: Any) -> str:
            if env.get_wrapper_attr("task").key == "echo-0":
                straggler.wait()
            return "done"

        return act

    play_beside(straggler, echo, ScriptedPolicy(script, BYTES, name="slow", threads=3))


def test_nobody_waits_for_an_environment_that_is_slowly_made(echo: Any) -> None:
    """The first one shows whether any can be made; of the rest each is waited for by its own episode alone."""
    straggler, lock, made = Straggler(5), threading.Lock(), [0]

    def make() -> Any:
        with lock:
            made[0] += 1
            second = made[0] == 2
        if second:
            straggler.wait()
        return echo()

    play_beside(straggler, make, scripted.gold(BYTES))
    assert made[0] == 3


def test_nobody_waits_for_a_long_answer(
    policy_of: Callable[..., Any], chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One episode may write 400 tokens and 9 others 4 each: they end first, in the order of events and not of time."""
    policy, ended = policy_of(barrier=False), []

    async def answer(name: str, tokens: int) -> None:
        await policy.begin(name, None)
        ids = tuple(chat.prompt([{"role": "user", "content": name}]))
        await policy.generate(Prompt(ids, ()), Sampling(max_new_tokens=tokens), episode=name, seed=3)
        await policy.end(name)
        ended.append(name)

    async def all_of_them() -> None:
        long = asyncio.create_task(answer("long", 400))
        for n in range(9):
            await answer(f"short {n}", 4)
        await long

    monkeypatch.setattr(policy.chat, "stop_ids", frozenset())  # every answer is as long as it may be
    asyncio.run(all_of_them())
    assert ended == [f"short {n}" for n in range(9)] + ["long"]


def test_two_episodes_of_one_name_are_refused(echo: Any) -> None:
    asked = [EpisodeRequest(None, 0, 0, "a")] * 2
    with (
        closing(Runner(echo, scripted.gold(BYTES), BYTES, env_id="echo")) as runner,
        pytest.raises(ValueError, match="same episode name"),
    ):
        runner.run(asked)


def test_without_a_task_the_seed_draws_one(echo: Any) -> None:
    asked = [EpisodeRequest(None, seed, 0, str(seed)) for seed in range(30)]
    with closing(Runner(echo, scripted.gold(BYTES), BYTES, env_id="echo")) as runner:
        first, again = runner.run(asked), runner.run(asked)
    assert [item.task for item in first] == [item.task for item in again]
    assert len({item.task for item in first}) > 4


def test_an_event_loop_that_runs_already_is_no_obstacle(echo: Any) -> None:
    async def notebook() -> list[Trajectory]:
        return play(echo, scripted.gold(BYTES))

    assert all(item.success for item in asyncio.run(notebook()))


def test_an_interrupted_run_closes_its_episodes(echo: Any) -> None:
    policy = scripted.gold(BYTES)

    def stop(_: Trajectory) -> None:
        raise KeyError("enough")

    with closing(Runner(echo, policy, BYTES, env_id="echo", concurrency=2)) as runner:
        with pytest.raises(KeyError, match="enough"):
            runner.run([EpisodeRequest("echo-3", n, 0, str(n)) for n in range(6)], on_done=stop)
        assert all(item.success for item in runner.run([EpisodeRequest("echo-3", 1, 0, "x")]))
    assert policy._episodes == {}


def test_turn_seeds_differ() -> None:
    assert len({turn_seed(seed, turn) for seed in range(40) for turn in range(40)}) == 1600
    assert turn_seed(3, 1) == turn_seed(3, 1)


def test_budgets_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="turn_tokens: expected at least 1 or None, found 0"):
        Budget(turn_tokens=0)


def test_text_spaces_bound_random_play(echo: Any) -> None:
    echo.action_space = TextSpace(max_length=4)
    played, again = (play(echo, scripted.random(BYTES)) for _ in range(2))
    said = [turn.action for item in played for turn in item.turns]
    assert said == [turn.action for item in again for turn in item.turns]
    assert all(len(action) <= 4 for action in said)
    assert len(set(said)) > 5


@pytest.mark.parametrize("blocking", [True, False])
def test_only_what_blocks_gets_a_thread(echo: Any, blocking: bool) -> None:
    seen: set[int] = set()

    class Watched(echo):  # type: ignore[misc]
        def step(self, action: str) -> Any:
            seen.add(threading.get_ident())
            return super().step(action)

    Watched.blocking = blocking
    done = play(Watched, scripted.gold(BYTES))
    assert [item.success for item in done] == [True] * 8
    assert (seen == {threading.get_ident()}) is not blocking
    broken = play(lambda: Watched([("echo-1", 1)]), scripted.gold(BYTES))
    assert [item.usable for item in broken] == [True, False] + [True] * 6
