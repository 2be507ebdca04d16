"""The agent learns to adapt, within its limits; trouble changes nothing and is counted."""

import keras
import numpy as np
import pytest
import rl_zoo
import tensorflow as tf
from rl_zoo import draw, equal, make_agent, make_sampler, values
from tf_agents.networks.actor_distribution_network import ActorDistributionNetwork

from keras_maml.algorithm.update_rules import (
    GradientDescent,
    MetaSGD,
    Momentum,
    PerLayerPerStep,
    UpdateRule,
)
from keras_maml.rl import (
    Proximal,
    TrustRegion,
    categorical,
    environments,
    evaluate,
    gaussian_policy,
    meta_iteration,
    tensor_specs,
)
from keras_maml.rl.advantages import complete
from keras_maml.rl.meta_policy_gradient import _settings_of

RATE, MAX_KL = 0.5, 0.05
DIRECTIONS = np.array([-1.0, 1.0])


@pytest.fixture(scope="module")
def environment():
    return rl_zoo.Line(40)


@pytest.fixture(scope="module")
def _trust_region(environment):
    # Well damped: what conjugate gradient makes of a singular matrix is a matter of rounding.
    outer = TrustRegion(max_kl=MAX_KL, damping=0.1)
    agent = make_agent(environment, inner_learning_rate=RATE, outer=outer)
    return agent, make_sampler(agent, environment), values(agent.saved_variables)


@pytest.fixture
def agent(_trust_region):
    """An agent with one inner step and a trust region, as new; traced once for all tests."""
    agent, _, start = _trust_region
    for variable, value in zip(agent.saved_variables, start, strict=True):
        variable.assign(value)
    agent.reset_adaptation()
    return agent


@pytest.fixture
def sampler(_trust_region):
    return _trust_region[1]


def test_it_learns_to_adapt_and_keeps_within_the_limit(agent, sampler):
    """Before adaptation nobody can know the direction; after it, most should walk there."""
    before, after = [], []
    for iteration in range(14):
        old = values(agent.model.variables)
        info, returns = meta_iteration(agent, sampler, DIRECTIONS, 7, iteration)
        before.append(returns[0].mean())
        after.append(returns[1].mean())
        extra = info.extra
        assert 0 <= extra.kl <= MAX_KL and extra.gradient_norm > 0
        if extra.accepted:
            assert extra.loss_after < extra.loss_before and extra.kl > 0
        else:
            assert extra.loss_after == extra.loss_before
        assert equal(old, agent.model.variables) != bool(extra.accepted)
        assert equal(agent.policy.fast_weights, [v[None] for v in agent.model.variables])
    assert agent.train_step_counter.numpy() == 14
    assert np.mean(after[-3:]) > max(2, after[0] + 0.7)
    assert abs(np.mean(before[-3:])) < 0.5


def test_the_divergence_is_that_between_adapted_policies(agent, sampler):
    experience = draw(agent, sampler)

    def adapted():
        agent.reset_adaptation()
        agent.adapt(experience[0])
        observations = tf.reshape(experience[1].observation, [2, -1, 2])
        kernel, bias, last_kernel, last_bias, log_std = values(agent.collect_policy.fast_weights)
        hidden = np.tanh(observations @ kernel + bias[:, None])
        return hidden @ last_kernel + last_bias[:, None], log_std[:, None]

    old_mean, old_log_std = adapted()
    info = agent.train(experience).extra
    mean, log_std = adapted()
    squares = np.exp(2 * old_log_std) + (old_mean - mean) ** 2
    kl = (log_std - old_log_std + 0.5 * squares / np.exp(2 * log_std) - 0.5)[..., 0]
    counted = complete(experience[1]).numpy().reshape(2, -1)
    expected = np.mean([np.mean(k[c]) for k, c in zip(kl, counted, strict=True)])
    np.testing.assert_allclose(info.kl, expected, rtol=1e-3)
    assert info.accepted and 0 < expected <= MAX_KL


@pytest.mark.parametrize(
    ("name", "value"),
    [("outer", TrustRegion(max_kl=1e-6)), ("first_order", True), ("inner_steps", 2), ("tasks", 1)],
)
def test_settings_do_not_change_under_programs_that_were_made_with_them(agent, name, value):
    before = getattr(agent, name)
    with pytest.raises(AttributeError, match=f"{name} of an agent does not change.*{name}=...."):
        setattr(agent, name, value)
    assert getattr(agent, name) is before


def test_rules_that_keep_something_take_no_steps_after_others(agent, sampler):
    """Of one kind they may differ, and kinds may where none keeps anything."""
    plain, momentum = GradientDescent(0.5), Momentum(0.5)
    for rules in ([plain, momentum], [momentum, plain]):
        with pytest.raises(ValueError, match=r"for rules of its own kind, got \['.*', '.*'\]"):
            evaluate(agent, sampler, DIRECTIONS, rules, seed=0)
    agent.check_update_rules([Momentum(0.5), Momentum(0.1)])
    agent.check_update_rules([plain, MetaSGD(0.1)])
    experience = draw(agent, sampler)
    fast = values(agent.collect_policy.fast_weights)
    with pytest.raises(ValueError, match=r"\['GradientDescent', 'Momentum'\]"):
        agent.adapt(experience[0], momentum)
    assert equal(fast, agent.collect_policy.fast_weights)


def test_rules_with_the_same_settings_share_a_program(agent, sampler):
    class Halving(GradientDescent):  # may do anything
        pass

    (trajectory, _) = draw(agent, sampler)
    before = len(agent._inner_steps)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.3, 2, 0.5)
    for make, programs in ((lambda: GradientDescent(0.125), 1), (lambda: Halving(0.125), 2)):
        for rule in (make(), make()):
            agent.reset_adaptation()
            agent.adapt(trajectory, rule)
        assert len(agent._inner_steps) == before + programs
        before += programs
    keys = [_settings_of(rule(0.125)) for rule in (GradientDescent, Momentum)]
    keys += [_settings_of(GradientDescent(rate)) for rate in (0.25, schedule, schedule)]
    keys += [_settings_of(GradientDescent(0.125, clip_norm=1.0))]
    assert len(set(keys)) == len(keys)


def test_compiled_by_xla_it_does_the_same(agent, sampler):
    compiled = make_agent(
        sampler.environment, inner_learning_rate=RATE, outer=agent.outer, jit_compile=True
    )
    experience = draw(agent, sampler)
    compiled.reset_adaptation()
    compiled.adapt(experience[0])
    for fast, other in zip(
        values(compiled.collect_policy.fast_weights),
        values(agent.collect_policy.fast_weights),
        strict=True,
    ):
        np.testing.assert_allclose(fast, other, rtol=1e-4, atol=1e-5)
    infos = [a.train(experience).extra for a in (agent, compiled)]
    np.testing.assert_allclose(values(infos[1]), values(infos[0]), rtol=1e-3, atol=1e-6)
    for new, other in zip(agent.model.variables, compiled.model.variables, strict=True):
        np.testing.assert_allclose(new, other, rtol=1e-3, atol=1e-4)


def test_a_training_step_that_finds_nothing_is_counted(agent, sampler):
    """Where all rewards are equal there is nothing to gain."""
    before = values(agent.model.variables)
    zero = [e.replace(reward=tf.zeros_like(e.reward)) for e in draw(agent, sampler)]
    info = agent.train(zero).extra
    assert not info.accepted and info.kl == 0 and info.gradient_norm == 0
    assert equal(before, agent.model.variables)
    assert agent.skipped_steps.numpy() == 1 and agent.train_step_counter.numpy() == 1


def spoiled(trajectory, field, environment, value=np.nan):
    array = getattr(trajectory, field).numpy()
    array[environment, 1] = value
    return trajectory.replace(**{field: tf.constant(array)})


def test_an_observation_that_is_not_a_number_is_not_learned_from(agent, sampler):
    experience = draw(agent, sampler)
    before = values(agent.model.variables)
    info = agent.train((experience[0], spoiled(experience[1], "observation", 30))).extra
    assert not info.accepted and np.isnan(info.gradient_norm)
    assert equal(before, agent.model.variables)
    assert agent.skipped_steps.numpy() == 1
    assert agent.train(experience).extra.accepted
    assert agent.skipped_steps.numpy() == 1


def test_adaptation_that_is_not_finite_names_the_task_and_changes_nothing(agent, sampler):
    experience = draw(agent, sampler)
    agent.reset_adaptation()
    before = values(agent.collect_policy.fast_weights)
    message = "not finite in 1 of 2 tasks, the first of them task 1"
    with pytest.raises(
        FloatingPointError, match=f"weights that are {message}.*look at the observations"
    ):
        agent.adapt(spoiled(experience[0], "observation", 30))
    with pytest.raises(FloatingPointError, match=f"Rewards are {message}"):
        agent.adapt(spoiled(experience[0], "reward", 20, np.inf))
    with pytest.raises(FloatingPointError, match="in 2 of 2 tasks, .* task 0. Lower inner_learn"):
        agent.adapt(experience[0], GradientDescent(1e39))
    assert equal(before, agent.collect_policy.fast_weights)


def test_experience_that_does_not_fit_is_refused(agent, sampler):
    experience = draw(agent, sampler)
    before = values(agent.saved_variables)
    cut = [tf.nest.map_structure(lambda x: x[:, :1], e) for e in experience]
    odd = [tf.nest.map_structure(lambda x: x[:39], e) for e in experience]
    for wrong, message in [
        (experience[:1], "needs 2 batches .* got 1"),
        ([*experience, experience[0]], "got 3"),
        (odd, r"multiple of 2 environments .* \(39, 5\)"),
        (cut, "complete episode, but 2 of 2 have none in 1 steps, the first of them task 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            agent.train(wrong)
    with pytest.raises(ValueError, match=r"\(39, 5\)"):
        agent.adapt(odd[0])
    with pytest.raises(FloatingPointError, match="Rewards .* first of them task 1"):
        agent.train((experience[0], spoiled(experience[1], "reward", 39)))
    with pytest.raises(ValueError, match="no weights"):
        agent.train(experience, weights=tf.ones([40]))
    with pytest.raises(NotImplementedError, match="use train"):
        agent.loss(experience)
    assert equal(before, agent.saved_variables)


def test_the_update_rule_knows_the_number_of_the_step(agent, sampler):
    (trajectory, _) = draw(agent, sampler)

    class Halving(UpdateRule):
        def step(self, weights, gradients, slots, step):
            rate = 0.2 / (1.0 + tf.cast(step, tf.float32))
            return [w - rate * g for w, g in zip(weights, gradients, strict=True)], slots

    results = []
    for rules in ([Halving()] * 3, [GradientDescent(0.2 / n) for n in (1, 2, 3)]):
        agent.reset_adaptation()
        for rule in rules:
            agent.adapt(trajectory, rule)
        results.append(values(agent.collect_policy.fast_weights))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert not equal(results[0][0][0], results[0][0][1])


@pytest.mark.parametrize("inner_steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_goes_on_from_what_it_saved_bit_for_bit(inner_steps, environment):
    """With Adam's state."""

    def as_in_a_new_process():
        # Layers have the names they have there: without XLA, TensorFlow orders sums by names, so
        # that dense_9 before dense_10 rounds unlike dense_7 before dense_8.
        keras.utils.clear_session(free_memory=False)
        return make_agent(environment, **settings)

    settings = {"inner_steps": inner_steps, "inner_loss": "likelihood_ratio"}
    settings["outer"] = Proximal(epochs=3)
    first, second = as_in_a_new_process(), as_in_a_new_process()
    samplers = [make_sampler(agent, environment) for agent in (first, second)]
    start = values(first.saved_variables)
    info, returns = meta_iteration(first, samplers[0], DIRECTIONS, 0, 0)
    assert len(returns) == inner_steps + 1
    assert info.extra.accepted and info.extra.loss_after < info.extra.loss_before
    assert not any(equal(a, b) for a, b in zip(start[:5], first.model.variables, strict=True))
    for variable, value in zip(second.saved_variables, values(first.saved_variables), strict=True):
        variable.assign(value)
    infos = [
        meta_iteration(a, s, DIRECTIONS, 0, 1)
        for a, s in zip((first, second), samplers, strict=True)
    ]
    assert equal(*infos)
    assert equal(first.saved_variables, second.saved_variables)

    experience = draw(first, samplers[0])
    before = values(first.saved_variables)
    experience[-1] = spoiled(experience[-1], "observation", 3)
    assert not first.train(experience).extra.accepted
    skipped = first.saved_variables
    assert equal(before[:-2], skipped[:-2])  # weights, Adam's moments and its step
    assert skipped[-1].numpy() == 1 and skipped[-2].numpy() == before[-2] + 1


@pytest.mark.slow  # two agents and an environment of their own
@pytest.mark.parametrize("rule", [MetaSGD, PerLayerPerStep])
def test_learned_rates_of_a_head_are_trained_on_navigation_and_saved(rule):
    settings = {"adapted_layers": "head", "outer": TrustRegion(max_kl=MAX_KL, damping=0.1)}
    vector = environments.TaskVectorEnv("Navigation2D-v0", 8, horizon=4)
    environment = environments.TaskPyEnvironment(vector)
    agents, samplers = [], []
    for _ in range(2):
        model = gaussian_policy(2, 2, (3,), activation="tanh", seed=0)
        agents.append(make_agent(environment, model, update_rule=rule(0.5), **settings))
        samplers.append(make_sampler(agents[-1], environment))
    first, second = agents
    goals = np.array([[0.4, 0.1], [-0.3, 0.2]])
    start = values(first.learned_variables)
    info, _ = meta_iteration(first, samplers[0], goals, 0, 0)
    assert info.extra.accepted and info.extra.loss_after < info.extra.loss_before
    assert len(first.collect_policy.fast_weights) == 3  # of the mean, and the deviations
    learned = first.learned_variables
    assert len(learned) == 5 + 3
    for before, variable in zip(start, learned, strict=True):
        assert not equal(before, variable), variable.path  # the body and the rates, too
    for variable, value in zip(second.saved_variables, values(first.saved_variables), strict=True):
        variable.assign(value)
    pairs = zip(agents, samplers, strict=True)
    infos = [meta_iteration(agent, sampler, goals, 0, 1) for agent, sampler in pairs]
    for ours, theirs in zip(values(infos[1]), values(infos[0]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_trust_region_optimisation_without_inner_steps():
    """Of discrete actions, with an observation in two parts. It adapts all the same."""
    environment = rl_zoo.Line(40, discrete=True, nested=True)
    inputs = {name: keras.Input([1], name=name) for name in ("clock", "place")}
    x = keras.layers.Concatenate()([inputs["place"], inputs["clock"]])
    x = keras.layers.Dense(3, "tanh")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    agent = make_agent(
        environment,
        model,
        inner_steps=0,
        inner_learning_rate=RATE,
        distribution=categorical,
        outer=TrustRegion(max_kl=MAX_KL),
    )
    sampler = make_sampler(agent, environment)
    rules = [GradientDescent(2.0)] * 2
    adapted = evaluate(agent, sampler, DIRECTIONS, rules, seed=1).values["adaptation"]["return"]
    assert (adapted[:, 2] > adapted[:, 0] + 0.8).all()
    history = []
    for iteration in range(12):
        # One direction for all: what needs no adaptation.
        info, (returns,) = meta_iteration(agent, sampler, np.ones(2), 0, iteration)
        assert info.extra.kl <= MAX_KL
        history.append(returns.mean())
    assert abs(history[0]) < 0.7 and np.mean(history[-3:]) > 2


@pytest.mark.slow  # several agents
def test_momentum_follows_an_average_of_gradients(environment):
    """Of two batches that differ in their rewards: their divergence has the same Hessian."""
    settings = {"max_kl": MAX_KL, "damping": 0.1, "iterations": 100}
    plain, agent = (
        make_agent(environment, inner_steps=0, outer=TrustRegion(**settings, momentum=m))
        for m in (0.0, 0.5)
    )
    (one,) = draw(plain, make_sampler(plain, environment))
    other = one.replace(reward=tf.random.stateless_normal(one.reward.shape, [1, 2]))
    start = values(plain.model.variables)

    def change(agent, experience):
        for variable, value in zip(agent.model.variables, start, strict=True):
            variable.assign(value)
        assert agent.train([experience]).extra.accepted
        changes = zip(values(agent.model.variables), start, strict=True)
        return np.concatenate([np.ravel(new - old) for new, old in changes])

    parts = np.stack([change(plain, one), change(plain, other)], axis=1)
    # The scale of a gradient does not matter: the first step is that without momentum.
    np.testing.assert_allclose(change(agent, one), parts[:, 0], rtol=1e-3, atol=1e-5)
    saved = values(agent.saved_variables)
    both = change(agent, other)
    shares, *_ = np.linalg.lstsq(parts, both)
    assert (shares > 0.1).all()
    np.testing.assert_allclose(parts @ shares, both, rtol=1e-2, atol=1e-4)

    for variable, value in zip(agent.saved_variables, saved, strict=True):
        variable.assign(value)
    assert np.array_equal(change(agent, other), both)
    for variable, value in zip(agent.saved_variables, saved, strict=True):
        variable.assign(value)
    assert not agent.train([spoiled(one, "observation", 3)]).extra.accepted
    assert np.array_equal(change(agent, other), both)  # the average has not taken it in


def test_proximal_optimisation_without_inner_steps():
    """There are no inner steps whose divergence could be penalised."""
    environment = rl_zoo.Line(20)
    agent = make_agent(environment, inner_steps=0, outer=Proximal(epochs=2))
    info = agent.train(draw(agent, make_sampler(agent, environment))).extra
    assert info.accepted and info.loss_after < info.loss_before


def test_a_model_that_does_not_fit_the_environment_is_refused(environment):
    for model, message in (
        (
            gaussian_policy(3, 1, (3,)),
            r"The model must take observations float32\[2\], .* they raised",
        ),
        (gaussian_policy(2, 4, (3,)), r"actions of shape \(1,\), but .* actions of shape \(4,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make_agent(environment, model)
    with pytest.raises(ValueError, match="model must be a keras.Model, got str"):
        make_agent(environment, "model")
    with pytest.raises(ValueError, match="and distribution its outputs"):
        make_agent(environment, distribution=lambda outputs: outputs["logits"])
    time_steps, actions = tensor_specs(environment)
    network = ActorDistributionNetwork(time_steps.observation, actions)
    with pytest.raises(
        ValueError, match="got ActorDistributionNetwork of tf_agents. .*Build the same"
    ):
        make_agent(environment, network)


def test_a_recurrent_layer_needs_more_than_one_step(environment):
    """A policy keeps no state: what is to be remembered must be observed."""

    def model(layers, batch_size=None):
        x = inputs = keras.Input((2,), batch_size=batch_size)
        for layer in layers:
            x = layer(x)
        outputs = {"mean": keras.layers.Dense(1)(x), "log_std": keras.layers.Dense(1)(x)}
        return keras.Model(inputs, outputs)

    layers = [keras.layers.Reshape((1, 2)), keras.layers.GRU(3, name="memory")]
    with pytest.raises(ValueError, match="Layer 'memory' is recurrent but sees one step at a time"):
        make_agent(environment, model(layers))
    make_agent(environment, model([keras.layers.Reshape((2, 1)), keras.layers.GRU(3)]))
    layers = [keras.layers.Reshape((2, 1)), keras.layers.GRU(3, stateful=True, name="keeper")]
    with pytest.raises(ValueError, match="Layer 'keeper' keeps a state from call to call"):
        make_agent(environment, model(layers, batch_size=1))


def test_a_plain_optimizer_takes_one_step_on_the_meta_gradient(environment):
    """As ProMP's with one epoch, whose clipping changes nothing where it begins."""
    optimizer = keras.optimizers.Adam(0.01)
    agents = [
        make_agent(environment, inner_steps=0, outer=outer)
        for outer in (optimizer, Proximal(learning_rate=0.01, epochs=1, inner_kl_penalty=0.0))
    ]
    start = values(agents[0].model.variables)
    experience = draw(agents[0], make_sampler(agents[0], environment))
    infos = [agent.train(experience).extra for agent in agents]
    ours, theirs = (values(agent.model.variables) for agent in agents)
    for one, other, before in zip(ours, theirs, start, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
        assert 0.005 < abs(one - before).max() < 0.0101  # Adam's first step
    assert infos[0].predicted_gain > 0 and not optimizer.built
    one, other = (len(agent.saved_variables) for agent in agents)
    assert one == other > 2 * len(start)


def test_the_gain_of_a_short_step_is_what_was_predicted(environment):
    outer = TrustRegion(max_kl=1e-5)
    agent = make_agent(environment, inner_steps=0, outer=outer)
    info = agent.train(draw(agent, make_sampler(agent, environment))).extra
    assert info.accepted and info.predicted_gain > 0
    assert 0.9 < info.gain_ratio < 1.1
    gain = info.loss_before - info.loss_after
    np.testing.assert_allclose(info.gain_ratio * info.predicted_gain, gain, rtol=1e-4)
    assert info.average_gradient_norm == info.gradient_norm  # without momentum
    # The policy's deviation is 1 for every observation.
    np.testing.assert_allclose(info.deviation, 1, rtol=1e-6)
    np.testing.assert_allclose(info.entropy, 0.5 * np.log(2 * np.pi * np.e), rtol=1e-5)
    assert info.deviation_after == info.deviation  # without inner steps


@pytest.mark.slow  # two agents; the estimator has a test of its own
def test_credit_for_exploration_changes_the_gradient(environment):
    plain, exploring = (make_agent(environment, exploration=e) for e in (False, True))
    experience = draw(plain, make_sampler(plain, environment))
    norms = [agent.train(experience).extra.gradient_norm for agent in (plain, exploring)]
    assert abs(norms[0] - norms[1]) > 1e-3 * norms[0]


@pytest.mark.slow  # several agents; the estimator has tests of its own
def test_inner_steps_may_look_less_far_ahead_than_the_outer_one(environment):
    def gradient_norm(rate, experience, **lambdas):
        outer = keras.optimizers.SGD(1e-3)
        agent = make_agent(environment, inner_learning_rate=rate, outer=outer, **lambdas)
        agent.adapt(experience[0])
        adapted = values(agent.collect_policy.fast_weights)
        return float(agent.train(experience).extra.gradient_norm), adapted

    agent = make_agent(environment)
    experience = draw(agent, make_sampler(agent, environment))
    far, near = {"gae_lambda": 1.0}, {"gae_lambda": 0.2}
    both = {"gae_lambda": 1.0, "inner_gae_lambda": 0.2}
    # The fast weights are those of the inner one's.
    (far_norm, far_fast), (near_norm, near_fast), (norm, fast) = [
        gradient_norm(RATE, experience, **lambdas) for lambdas in (far, near, both)
    ]
    assert equal(fast, near_fast) and not equal(fast, far_fast)
    assert len({far_norm, near_norm, norm}) == 3
    # Where adaptation changes nothing, the meta-gradient is that of the outer one's.
    far_norm, near_norm, norm = [
        gradient_norm(0.0, experience, **lambdas)[0] for lambdas in (far, near, both)
    ]
    assert norm == pytest.approx(far_norm, rel=1e-5)
    assert norm != pytest.approx(near_norm, rel=1e-3)
