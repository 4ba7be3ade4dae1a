"""Every key is known, every value fits, and what is wrong names what was meant."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from retort.algos import grpo
from retort.algos.config import ConfigError, TrainConfig, dump, load_recipe, preset, read, recipes, resolve
from retort.envs.base import UsageError


def test_full_keys_and_last_parts() -> None:
    config = resolve({"recipe": "srpo"}, ["learner.lr=0.5", "rate=0.25", "steps=7", "teacher.kind=trust_region"])
    assert (config.learner.lr, config.steps) == (0.5, 7)
    assert config.options.teacher.rate == 0.25  # type: ignore[attr-defined]
    assert config.options.teacher.kind == "trust_region"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("sdpo", ["teacher.kind=fixed", "rate=0.9"], "rate=0.9 needs kind=ema or trust_region, found kind=fixed"),
        ("rlsd", ["teacher.kind=current", "every=7"], "every=7 needs kind=ema, found kind=current"),
        ("grpo", ["length=7"], "length=7 needs aggregate=dr_grpo, found aggregate=token_mean"),
        ("grpo", ["correction.low=3"], "expected low below high, found 3 and 2"),
        ("openclaw", ["scale=none"], "unknown key 'scale'"),
        ("openclaw", ["options.eps=1"], "unknown key 'options.eps'"),
    ],
)
def test_a_setting_that_would_do_nothing_or_fail_later_is_refused(recipe: str, settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        resolve({"recipe": recipe}, settings)


def test_a_part_of_a_table_leaves_the_rest_as_the_recipe_has_it() -> None:
    """One rate makes no other teacher of it, and a bound no other hint."""
    teacher = resolve({"recipe": "sdpo"}, ["rate=0.25"]).options.teacher  # type: ignore[attr-defined]
    assert (teacher.kind, teacher.rate) == ("ema", 0.25)
    teacher = resolve({"recipe": "rlsd"}, ["every=3"]).options.teacher  # type: ignore[attr-defined]
    assert (teacher.kind, teacher.rate, teacher.every) == ("ema", 1.0, 3)
    plain = load_recipe("opsd").options().hint  # type: ignore[attr-defined]
    assert resolve({"recipe": "opsd"}, ["hint.max_tokens=9"]).options.hint.sources == plain.sources  # type: ignore[attr-defined]
    other = resolve({"recipe": "rlsd"}, ["teacher.kind=fixed"]).options.teacher  # type: ignore[attr-defined]
    assert (other.kind, other.rate, other.every) == ("fixed", 0.05, 1)


def test_later_settings_win_and_the_base_is_left_alone() -> None:
    base = {"recipe": "grpo", "learner": {"lr": 1.0}}
    assert resolve(base, ["lr=2", "lr=3", "learner.warmup=4"]).learner.lr == 3
    assert base == {"recipe": "grpo", "learner": {"lr": 1.0}}


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key 'stepz'; did you mean 'steps'"):
        resolve({"recipe": "grpo"}, ["stepz=1"])
    with pytest.raises(ConfigError, match=r"did you mean 'learner\.momentum'"):
        resolve({"recipe": "grpo"}, ["learner.momentun=1"])


def test_an_unknown_key_in_a_file_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'learner\.lrr'; did you mean 'learner\.lr'"):
        resolve({"recipe": "grpo", "learner": {"lrr": 1}})
    with pytest.raises(ConfigError, match="unknown key"):
        resolve({"recipe": "grpo", "options": {"nonsense": 1}})


CLASHING = """
from retort.algos import grpo
from retort.algos.base import Options, Recipe

class Clashing(Options):
    lr: float = 1.0

RECIPE = Recipe(options=Clashing, credit=grpo.credit, loss=grpo.loss)
"""


def test_an_ambiguous_key_names_all_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clashing_methods").mkdir()
    (tmp_path / "clashing_methods" / "one.py").write_text(CLASHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=r"'lr' is ambiguous; expected one of learner\.lr, options\.lr$"):
            resolve({"recipe": "clashing_methods.one"}, ["lr=2"])
        config = resolve({"recipe": "clashing_methods.one"}, ["learner.lr=2", "options.lr=3"])
        assert (config.learner.lr, config.options.lr) == (2, 3)  # type: ignore[attr-defined]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "clashing_methods"]:
            del sys.modules[name]


def test_a_full_key_wins_over_the_last_part_of_another() -> None:
    config = resolve({"recipe": "srpo"}, ["feedback=shuffled", "reprompt.feedback=false"])
    assert config.feedback == "shuffled"
    assert config.options.reprompt.feedback is False  # type: ignore[attr-defined]


def test_a_key_of_another_recipe_is_unknown() -> None:
    assert resolve({"recipe": "sdpo"}, ["alpha=0.25"]).options.alpha == 0.25  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="unknown key 'alpha'"):
        resolve({"recipe": "grpo"}, ["alpha=0.25"])


@pytest.mark.parametrize(
    ("setting", "where", "found"),
    [
        ("steps=0", "steps", "0"),
        ("steps=many", "steps", "'many'"),
        ("learner.lr=-1", "learner.lr", "-1"),
        ("feedback=shufled", "feedback", "'shufled'"),
        ("optimiser=sgd", "learner.optimiser", "'sgd'"),
        ("skill=1.5", "traces.skill", "1.5"),
        ("corrected=0.9", "traces", "1.05"),
        ("learner=3", "unknown key 'learner'", "learner.lr"),
    ],
)
def test_a_value_that_does_not_fit_is_named(setting: str, where: str, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve({"recipe": "grpo"}, [setting])
    assert where in str(error.value)
    assert found in str(error.value)


def test_all_faults_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        resolve({"recipe": "grpo"}, ["steps=0", "group_size=-2"])
    assert "steps" in str(error.value)
    assert "group_size" in str(error.value)


@pytest.mark.parametrize("steps", ["abc", "0", "-3", "1.5"])
def test_wrong_steps_are_the_only_fault(steps: str) -> None:
    """Although the schedule of the preset hangs on them."""
    assert preset("sft", "tiny")["learner"]["schedule"] == "linear"
    with pytest.raises(ConfigError) as error:
        resolve(preset("sft", "tiny"), [f"steps={steps}"])
    assert str(error.value).startswith("steps: ")
    assert "; " not in str(error.value)
    assert "decay" not in str(error.value)
    resolved = resolve(preset("sft", "tiny"), ['steps="7"'])
    assert (resolved.steps, resolved.learner.decay_steps, resolved.learner.schedule) == (7, 7, "linear")


def test_arguments_of_the_environment_pass_through() -> None:
    config = resolve({"recipe": "grpo"}, ['env_args.families=["delete"]', "env_args.max_turns=2"])
    assert config.env_args == {"families": ["delete"], "max_turns": 2}


def test_recipes_are_found_by_their_file() -> None:
    assert {"grpo", "sdpo", "sft", "srpo"} <= set(recipes())
    assert load_recipe("grpo") is grpo.RECIPE
    assert load_recipe("retort.algos.grpo") is grpo.RECIPE


def test_a_recipe_from_any_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods").mkdir()
    (tmp_path / "my_methods" / "__init__.py").touch()
    (tmp_path / "my_methods" / "mine.py").write_text("from retort.algos.grpo import RECIPE\n")
    (tmp_path / "my_methods" / "empty.py").touch()
    (tmp_path / "my_methods" / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        assert resolve({"recipe": "my_methods.mine"}).recipe == "my_methods.mine"
        for name in ("my_methods.empty", "my_methods.none", "no_such_package.x"):
            with pytest.raises(ConfigError, match="unknown recipe"):
                load_recipe(name)
        with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
            load_recipe("my_methods.broken")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_methods"]:
            del sys.modules[name]


@pytest.mark.parametrize("name", ["grop", "grpo2", "learner", "", "GRPO"])
def test_an_unknown_recipe_names_the_right_ones(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown recipe '{name}'.*valid: .*grpo, .*sdpo, sft, srpo"):
        resolve({"recipe": name})
    assert issubclass(ConfigError, UsageError)


def test_the_nearest_recipe() -> None:
    with pytest.raises(ConfigError, match="did you mean 'grpo'"):
        load_recipe("grop")


@pytest.mark.parametrize("recipe", ["grpo", "sdpo", "sft", "srpo"])
def test_toml_round_trip(recipe: str, tmp_path: Path) -> None:
    settings = ["seed=3", 'env_args.families=["delete", "move"]', "lr=1e-3", "threads=2"]
    config = resolve(preset(recipe, "tiny"), settings)
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(dump(config)))
    assert read(path) == config
    assert type(read(path).options) is type(config.options)
    assert dump(read(path)) == dump(config)


@given(
    steps=st.integers(1, 10**9),
    lr=st.floats(1e-12, 1e3),
    model=st.text(st.characters(exclude_categories=["Cs"])),
    rate=st.floats(0, 1),
    template=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}")),
)
def test_any_configuration_survives_toml(steps: int, lr: float, model: str, rate: float, template: str) -> None:
    base = {
        "recipe": "srpo",
        "steps": steps,
        "model": model,
        "learner": {"lr": lr},
        "options": {"teacher": {"rate": rate}, "reprompt": {"solution_template": template + "{prompt}{text}"}},
    }
    config = resolve(base)
    assert resolve(tomllib.loads(tomli_w.dumps(dump(config)))) == config


def test_what_is_no_toml_is_named(tmp_path: Path) -> None:
    for content in (b"steps = ", b"\xff\xfe"):
        (tmp_path / "config.toml").write_bytes(content)
        with pytest.raises(ConfigError, match=r"config\.toml: expected TOML, found"):
            read(tmp_path / "config.toml")


def test_presets_depend_on_the_models_size(tmp_path: Path) -> None:
    def of(recipe: str, model: str) -> TrainConfig:
        return resolve(preset(recipe, model))

    (tmp_path / "config.json").write_text('{"hidden_size": 128}')
    small, large = of("grpo", str(tmp_path)), of("grpo", "some/model")
    assert small.learner.optimiser == "muon"
    assert small.sampling.turn_tokens == 16
    assert large.learner.optimiser == "adamw"
    assert small.learner.lr > 100 * large.learner.lr
    assert of("sft", "tiny").learner.lr == 0.02
    assert of("sft", "some/model").learner.lr == 1e-5
    (tmp_path / "config.json").write_text('{"hidden_size": 4096}')
    assert of("grpo", str(tmp_path)).learner.optimiser == "adamw"
    with pytest.raises(ConfigError, match="unknown recipe"):
        preset("nothing", "tiny")


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve({"recipe": "grpo"}).steps = 1  # type: ignore[misc]


def test_shuffled_feedback_needs_another_task() -> None:
    with pytest.raises(ConfigError, match="prompts of at least 2, found 1"):
        resolve({"recipe": "sdpo"}, ["feedback=shuffled", "prompts=1"])


def test_a_schedule_ends_with_the_run_unless_told_otherwise() -> None:
    assert resolve({"recipe": "grpo"}, ["schedule=linear", "steps=7"]).learner.decay_steps == 7
    assert resolve({"recipe": "grpo"}, ["schedule=linear", "steps=7", "decay_steps=5"]).learner.decay_steps == 5
    assert resolve(preset("srpo", "tiny"), ["steps=9"]).learner.decay_steps == 9


@pytest.mark.parametrize("recipe", ["grpo", "sft"])
def test_feedback_is_not_steered_where_no_teacher_reads_it(recipe: str) -> None:
    with pytest.raises(ConfigError, match=f"recipes with a teacher; {recipe} has none"):
        resolve({"recipe": recipe}, ["feedback=none"])


VLLM = "teachers.v.model=vllm:http://a:1"
BIG = {"recipe": "opd", "teachers": {"big": {"model": "runs/x"}}}


def test_teachers_are_set_by_their_names() -> None:
    settings = ["teachers.big.model=runs/x", 'teachers.big.tasks=["move/*", "find/*"]', "teachers.two.model=http://a:1"]
    config = resolve({"recipe": "opd"}, [*settings, "teachers.two.timeout_s=3"])
    assert list(config.teachers) == ["big", "two"]
    assert config.teachers["big"].tasks == ("move/*", "find/*")
    assert config.teachers["two"].patience == {"timeout_s": 3, "retries": 2}
    assert resolve(tomllib.loads(tomli_w.dumps(dump(config)))) == config


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("opd", ["teachers.big.modle=x"], r"unknown key 'teachers\.big\.modle'; did you mean 'teachers\.big\.model'"),
        ("opd", ["teachers.big.tasks=[]"], r"teachers\.big\.tasks: .*at least 1 item"),
        ("opd", ["teachers.big.retries=-1"], r"teachers\.big\.retries"),
        ("opd", ["scorer=vllm:http://a:1"], "expected one of the two"),
        ("opd", ["feedback=none"], "the teacher of opd reads no feedback"),
        ("opd", ["teachers={'a b'={model='x'}}"], "letters, digits, - and _, found 'a b'"),
        ("grpo", [], r"teachers\.big: grpo needs no teacher at all"),
        ("sdar", [], r"teacher\.kind=fixed"),
        (
            "sdpo",
            ["teacher.kind=fixed", "teachers.v.model=vllm:http://a:1"],
            r"teachers\.v: recipe sdpo needs .*support",
        ),
        ("srpo", ["teacher.kind=fixed", "teachers.v.model=vllm:http://a:1"], "entropy, which vLLM cannot give; .*rlsd"),
        ("opd", ["teachers.v.model=vllm:http://a:1", "temperature=0.7"], "scores at temperature 1, found 0.7"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(recipe: str, settings: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve({**BIG, "recipe": recipe}, settings)


def test_a_recipe_without_privileged_context_needs_another_model() -> None:
    with pytest.raises(ConfigError, match=r"opd learns from another model .*teachers\.NAME\.model=FOLDER.*found none"):
        resolve({"recipe": "opd"})
    assert resolve({"recipe": "opd", "scorer": "vllm:http://a:1"}).scorer == "vllm:http://a:1"
    with pytest.raises(ConfigError, match="scorer=engine needs engine=vllm"):
        resolve({"recipe": "opd", "scorer": "engine"})
    with pytest.raises(ConfigError, match=r"teacher\.kind=current"):
        resolve({"recipe": "opd", "scorer": "engine", "engine": "vllm"})
    for recipe in ("rlsd", "sdpo", "srpo"):
        assert resolve({**BIG, "recipe": recipe}, ["teacher.kind=fixed"]).teachers
