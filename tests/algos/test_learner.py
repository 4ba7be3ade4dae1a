import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from retort.algos import grpo, sdpo, sft, srpo
from retort.algos.base import Student, Term, TokenBatch
from retort.algos.config import load_recipe, recipes
from retort.algos.learner import Learner, LearnerOptions

RECIPES = [sft, grpo, sdpo, srpo]


def options_of(recipe):
    return recipe.RECIPE.options(k=6) if recipe in (sdpo, srpo) else recipe.RECIPE.options()


def gradients(model, batch, recipe, *, micro_tokens=4096, options=None, **more):
    """The gradient and the statistics of one update, read from a model that does not move."""
    learner = Learner(
        copy.deepcopy(model), LearnerOptions(device="cpu", micro_tokens=micro_tokens, **{"grad_clip": 1e9, **more})
    )
    found = {}

    def keep():
        found.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})

    learner._step = keep  # the step itself is tested below
    options = options or options_of(recipe)
    return found, learner.update(batch, recipe.credit(batch, options), recipe.loss, options)


def close(a, b, tolerance=2e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_gradient_is_that_of_the_plain_loss(make_model, make_batch, recipe):
    """Against the whole batch at once through the model's own logits."""
    model, teacher = make_model(), make_model(1)
    batch, options = make_batch(model, teacher), options_of(recipe)
    found, stats = gradients(model, batch, recipe)
    logp = (model(batch.tokens).logits[:, :-1] / batch.temperature[:, None, None]).log_softmax(-1)
    logp = torch.cat([torch.zeros_like(logp[:, :1]), logp], 1)
    inside = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, batch.support_ids, True)
    student = Student(
        logp=logp.gather(-1, batch.tokens[..., None])[..., 0],
        support_logp=logp.gather(-1, batch.support_ids),
        rest_logp=logp.masked_fill(inside, -torch.inf).logsumexp(-1),
    )
    terms = recipe.loss(batch, recipe.credit(batch, options), student, options)
    value = sum(term.weight * term.aggregate(term.value, term.mask) for term in terms)
    value.backward()
    assert stats.loss == pytest.approx(value.item(), abs=1e-6)
    close(found, {n: p.grad for n, p in model.named_parameters()})
    assert max(g.abs().max() for g in found.values()) > 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
def test_micro_batches_padding_and_row_order_change_nothing(make_model, make_batch, recipe):
    model = make_model()
    batch = make_batch(model, make_model(1))
    base, stats = gradients(model, batch, recipe)
    rows = len(batch.tokens)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(3))

    def changed(change):
        fields = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
        return TokenBatch(**{name: change(name, value) for name, value in fields.items()})

    def shuffle(name, value):
        return value[:, order] if name.startswith("teacher_") else value[order]

    def pad(name, value):
        at = 2 if name.startswith("teacher_") else 1
        if value.ndim <= at:
            return value
        more = value.new_ones(*value.shape[:at], 5, *value.shape[at + 1 :])
        return torch.cat([value, torch.zeros_like(more) if "mask" in name else more], at)

    for other, budget in ((batch, 20), (batch, 1), (changed(shuffle), 4096), (changed(pad), 64)):
        found, theirs = gradients(model, other, recipe, micro_tokens=budget)
        close(base, found)
        assert theirs.loss == pytest.approx(stats.loss, abs=1e-6)
        assert (theirs.tokens, theirs.scored) == (stats.tokens, stats.scored)
    assert gradients(model, batch, recipe, micro_tokens=1)[1].micro_batches > stats.micro_batches


AGGREGATES = ("token_mean", "sequence_mean", "sequence_sum", "dr_grpo")


def every_recipe():
    for name in recipes():
        known = load_recipe(name).options.model_fields
        for aggregate in AGGREGATES if "aggregate" in known else ("",):
            yield pytest.param(name, aggregate, id=f"{name}-{aggregate}".rstrip("-"))


@pytest.mark.parametrize(("name", "aggregate"), every_recipe())
def test_tokens_without_credit_at_the_end_of_a_row_count_in_its_mean(make_model, make_batch, name, aggregate):
    """Whatever is not computed, and however it is split: the loss is the plain one of the whole batch."""
    model, recipe = make_model(), load_recipe(name)
    batch = make_batch(model, make_model(1))
    late = batch.mask & (torch.arange(batch.mask.shape[1]) >= 8)
    spoke = torch.cat([batch.teacher_mask] * max(1, recipe.channels)) & ~late
    batch = replace(
        batch,
        turn=torch.where(batch.mask, late.long(), -1),
        turn_reward=(batch.mask & ~late) * batch.reward[:, None],
        vocabulary=64,
        teacher_mask=spoke,
        teacher_logp=torch.cat([batch.teacher_logp - 0.2 * n for n in range(len(spoke))]).masked_fill(~spoke, 0),
    )
    asked = {"k": 6, "kl_coef": 0.0, "length": 16.0, "aggregate": aggregate}
    dr = aggregate == "dr_grpo"
    fields = {key for key in recipe.options.model_fields if key != "length" or dr}
    options = recipe.options(**{key: value for key, value in asked.items() if key in fields})

    def by_turn(batch, options):
        found = recipe.credit(batch, options)
        return replace(found, advantage=found.advantage.masked_fill(late, 0))

    def eager(*arguments):
        return tuple(replace(term, active=None) for term in recipe.loss(*arguments))

    plain = gradients(model, batch, SimpleNamespace(credit=by_turn, loss=eager), options=options)
    for budget in (4096, 40, 1):
        told = SimpleNamespace(credit=by_turn, loss=recipe.loss)
        found, stats = gradients(model, batch, told, options=options, micro_tokens=budget)
        assert stats.loss == pytest.approx(plain[1].loss, abs=1e-6)
        close(plain[0], found)
    assert plain[1].grad_norm > 0


@pytest.mark.parametrize("recipe", [sdpo, srpo])
def test_the_student_as_its_own_teacher_moves_nothing(make_model, make_batch, recipe):
    model = make_model()
    batch = make_batch(model, model)
    batch = replace(batch, reward=torch.ones(8))
    for alpha in (0.0, 0.5, 1.0):
        found, stats = gradients(model, batch, recipe, options=recipe.RECIPE.options(k=6, alpha=alpha))
        assert stats.scored > 0
        assert stats.loss == pytest.approx(0, abs=1e-6)
        assert max(g.abs().max() for g in found.values()) < 1e-5


def test_the_gradient_is_clipped(make_model, make_batch):
    model = make_model()
    batch = make_batch(model)
    whole, stats = gradients(model, batch, sft)
    clipped, same = gradients(model, batch, sft, grad_clip=stats.grad_norm / 4)
    assert (
        same.grad_norm
        == stats.grad_norm
        == pytest.approx(torch.stack([g.norm() for g in whole.values()]).norm().item(), rel=1e-5)
    )
    close({name: g / 4 for name, g in whole.items()}, clipped)


@pytest.mark.parametrize("aggregate", ["sequence_mean", "sequence_sum", "dr_grpo"])
def test_other_aggregates_in_micro_batches(make_model, make_batch, aggregate):
    model = make_model()
    length = {"length": 16} if aggregate == "dr_grpo" else {}
    batch, options = make_batch(model), grpo.GRPOOptions(aggregate=aggregate, **length)
    whole, _ = gradients(model, batch, grpo, options=options)
    split, stats = gradients(model, batch, grpo, options=options, micro_tokens=1)
    close(whole, split)
    assert stats.micro_batches == 8


def test_rows_without_advantage_are_not_computed(make_model, make_batch):
    model = make_model()
    batch = make_batch(model)
    half = replace(batch, reward=torch.where(batch.group == 0, torch.ones(8), batch.reward))
    found, stats = gradients(model, half, grpo)
    assert stats.scored == int(batch.mask[4:].sum())
    # The same as computing all of them, with the same denominator.
    options = grpo.GRPOOptions()

    def eager(*arguments):
        return tuple(replace(term, active=None) for term in grpo.loss(*arguments))

    learner = Learner(copy.deepcopy(model), LearnerOptions(device="cpu", grad_clip=1e9))
    kept = {}
    learner._step = lambda: kept.update({n: p.grad.clone() for n, p in learner.model.named_parameters()})
    assert learner.update(half, grpo.credit(half, options), eager, options).scored == int(batch.mask.sum())
    close(found, kept)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("more", [{"checkpointing": True}, {"lora_rank": 2}, {"lora_rank": 2, "checkpointing": True}])
def test_checkpointing_and_lora(make_model, make_batch, more):
    model = make_model()
    batch = make_batch(model)
    learner = Learner(model, LearnerOptions(device="cpu", lr=1e-2, optimiser="muon", **more))
    before = {n: p.clone() for n, p in learner.model.named_parameters()}
    options = grpo.GRPOOptions()
    stats = learner.update(batch, grpo.credit(batch, options), grpo.loss, options)
    assert not stats.skipped
    assert stats.grad_norm > 0
    moved = {n for n, p in learner.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert all(("lora" in name) == ("lora_rank" in more) for name in moved)
    assert not learner.model.training


def test_checkpointing_gives_the_same_gradient(make_model, make_batch):
    model = make_model()
    batch = make_batch(model)
    close(gradients(model, batch, grpo)[0], gradients(model, batch, grpo, checkpointing=True)[0])


@pytest.mark.filterwarnings("ignore:bfloat16 on a CPU")
def test_bfloat16_is_near_and_keeps_float32_weights(make_model, make_batch):
    model = make_model()
    batch = make_batch(model)
    exact, _ = gradients(model, batch, sft)
    rough, _ = gradients(model, batch, sft, dtype="bfloat16")
    for name in exact:
        assert rough[name].dtype == torch.float32
        assert torch.cosine_similarity(exact[name].flatten(), rough[name].flatten(), 0) > 0.98


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_resumes_bit_for_bit(make_model, make_batch, optimiser, tmp_path):
    settings = LearnerOptions(
        device="cpu", optimiser=optimiser, lr=1e-2, weight_decay=0.1, warmup=2, schedule="cosine", decay_steps=9
    )
    straight = Learner(make_model(), settings)
    stopped = Learner(make_model(), settings)
    batch, options = make_batch(make_model()), grpo.GRPOOptions()
    credit = grpo.credit(batch, options)

    def run(learner, steps):
        return [learner.update(batch, credit, grpo.loss, options) for _ in range(steps)]

    run(straight, 3)
    run(stopped, 3)
    torch.save({"model": stopped.model.state_dict(), "learner": stopped.state_dict()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    resumed = Learner(make_model(5), settings)
    resumed.model.load_state_dict(state["model"])
    resumed.load_state_dict(state["learner"])
    assert run(straight, 3) == run(resumed, 3)
    for a, b in zip(straight.parameters, resumed.parameters, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="optimisers, found 0"):
        resumed.load_state_dict({"optimisers": [], "steps": 0})


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_step_that_is_not_finite_is_skipped(make_model, make_batch, optimiser):
    learner = Learner(make_model(), LearnerOptions(device="cpu", optimiser=optimiser, lr=1e-2))
    batch, options = make_batch(make_model()), sft.SFTOptions()
    credit = sft.credit(batch, options)
    learner.update(batch, credit, sft.loss, options)
    weights, state = [p.clone() for p in learner.parameters], copy.deepcopy(learner.state_dict())
    poisoned = replace(credit, advantage=credit.advantage * torch.inf)
    stats = learner.update(batch, poisoned, sft.loss, options)
    assert stats.skipped == "the gradient is not finite"
    assert all(torch.equal(a, b) for a, b in zip(weights, learner.parameters, strict=True))
    assert str(state) == str(learner.state_dict())
    assert not learner.update(batch, credit, sft.loss, options).skipped


def test_nothing_to_learn_is_no_step(make_model, make_batch):
    learner = Learner(make_model(), LearnerOptions(device="cpu"))
    batch = replace(make_batch(learner.model), reward=torch.ones(8))
    options = grpo.GRPOOptions()
    stats = learner.update(batch, grpo.credit(batch, options), grpo.loss, options)
    assert stats.skipped == "no token to learn from"
    assert (learner.steps, stats.scored, stats.grad_norm) == (0, 0, 0.0)


@pytest.mark.parametrize("settings", [{"lr": 1e-2}, {"optimiser": "muon", "lr": 2e-2, "adam_lr": 1e-2}])
def test_overfits_four_sequences(make_model, make_batch, settings):
    learner = Learner(make_model(), LearnerOptions(device="cpu", **settings))
    batch, options = make_batch(learner.model, rows=4), sft.SFTOptions()
    credit = sft.credit(batch, options)
    losses = [learner.update(batch, credit, sft.loss, options).loss for _ in range(40)]
    assert losses[0] > 4
    assert losses[-1] < 0.1


def test_scores_before_the_update_are_those_of_the_update(make_model, make_batch):
    """The ratio is 1 and the value of SDPO the same, whichever micro-batches scored."""
    model = make_model()
    batch, options = make_batch(model), grpo.GRPOOptions()
    learner = Learner(model, LearnerOptions(device="cpu", micro_tokens=30))
    wheres = [batch.mask[row].nonzero()[:, 0] for row in range(8)]
    scored = learner.score(list(batch.tokens), wheres, k=10_000, temperature=batch.temperature.tolist())
    torch.testing.assert_close(torch.cat([s.logp for s in scored]), batch.proximal_logp[batch.mask])
    assert scored[0].ids.shape[-1] == 64
    assert torch.isneginf(scored[0].rest_logp).all()
    stats = learner.update(batch, grpo.credit(batch, options), grpo.loss, options)
    credit = grpo.credit(batch, options)
    weighted = -(credit.advantage * credit.weight["behaviour"])[batch.mask].mean()
    assert stats.loss == pytest.approx(weighted.item(), abs=1e-6)


def test_learning_rate_schedules():
    flat = LearnerOptions(warmup=4)
    assert [flat.factor(step) for step in (0, 3, 4, 999)] == [0.25, 1, 1, 1]
    cosine = LearnerOptions(warmup=2, schedule="cosine", decay_steps=10)
    assert [cosine.factor(step) for step in (2, 6, 10, 20)] == pytest.approx([1, 0.5, 0, 0])
    linear = LearnerOptions(schedule="linear", decay_steps=10)
    assert [linear.factor(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    with pytest.raises(ValueError, match="decay_steps above warmup"):
        LearnerOptions(schedule="linear")
    with pytest.raises(ValueError, match="extra"):
        LearnerOptions(learning_rate=1)


def test_a_term_at_position_zero_is_refused(make_model, make_batch):
    learner = Learner(make_model(), LearnerOptions(device="cpu"))
    batch, options = make_batch(learner.model), sft.SFTOptions()

    def loss(batch, credit, student, options):
        (term,) = sft.loss(batch, credit, student, options)
        return (Term("nll", term.value, torch.ones_like(term.mask), 1.0, term.aggregate),)

    with pytest.raises(ValueError, match="position 0"):
        learner.update(batch, sft.credit(batch, options), loss, options)


def test_two_terms_of_one_name_are_refused(make_model, make_batch):
    learner, options = Learner(make_model(), LearnerOptions(device="cpu")), sft.SFTOptions()
    batch = make_batch(learner.model)
    with pytest.raises(ValueError, match="a name each, found nll, nll"):
        learner.update(batch, sft.credit(batch, options), lambda *of: sft.loss(*of) * 2, options)


def test_the_gap_is_the_farthest_scored_token(make_model, make_batch):
    model = make_model()
    batch = make_batch(model, make_model(1))
    with torch.no_grad():
        now = model(batch.tokens).logits[:, :-1] / batch.temperature[:, None, None]
    now = now.log_softmax(-1).gather(-1, batch.tokens[:, 1:, None])[..., 0]
    moved = torch.where(batch.mask[:, 1:], now, 0.0)
    row, column = batch.mask[:, 1:].nonzero()[0].tolist()
    for shift in (0.0, 0.25):
        moved[row, column] += shift
        proximal = torch.cat([torch.zeros_like(moved[:, :1]), moved], 1)
        _, stats = gradients(model, replace(batch, proximal_logp=proximal), sft)
        assert stats.gap == pytest.approx(shift, abs=1e-5)
