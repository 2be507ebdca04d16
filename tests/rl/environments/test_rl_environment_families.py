"""Environments of the user's own: tasks arrive, steps are theirs, misuse is explained."""

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium import spaces
from tf_agents.environments import py_environment, suite_gym
from tf_agents.environments.batched_py_environment import BatchedPyEnvironment
from tf_agents.specs import array_spec
from tf_agents.trajectories import StepType
from tf_agents.trajectories import time_step as ts

from keras_maml import rl
from keras_maml.rl.environments import (
    Arguments,
    Attributes,
    Options,
    TaskPyEnvironment,
    Uniform,
    from_gymnasium,
    from_tf_agents,
)

TASKS = Uniform(0.0, 10.0)


class Counter(gymnasium.Env):
    """Shows and rewards its task; ends when it has counted as far."""

    def __init__(self, goal=3.0, observation=None, action=None, ends=True):
        self.goal, self.ends = goal, ends
        self.observation_space = observation or spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = action or spaces.Box(-2.0, 2.0, (1,), np.float32)

    def _observe(self):
        if isinstance(self.observation_space, spaces.Box) and self.observation_space.shape == (2,):
            return np.array([self.goal, self.clock])
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.goal, self.clock, self.taken = (options or {}).get("goal", self.goal), 0, []
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action  # NumPy, of the space's dtype
        self.clock += 1
        self.taken.append(action)
        return self._observe(), self.goal, self.ends and self.clock >= self.goal, False, {}


def set_goal(environment, task):
    environment.goal = task


def set_goals(vector, tasks):
    vector.set_attr("goal", list(tasks))


def set_gym_goal(environment, task):
    environment.gym.unwrapped.length = task


WAYS = {
    "attributes": (Counter, Attributes("goal"), {}),
    "arguments": (Counter, Arguments("goal"), {}),
    "options": (Counter, Options("goal"), {}),
    "function": (Counter, set_goal, {}),
    "wrapped": (lambda: gymnasium.wrappers.ClipAction(Counter()), set_goal, {}),
    "processes": (Counter, set_goal, {"processes": True}),
    "processes and arguments": (Counter, Arguments("goal"), {"processes": True}),
    "vector": (lambda: gymnasium.vector.SyncVectorEnv([Counter] * 4), Attributes("goal"), None),
    "vector and function": (lambda: gymnasium.vector.SyncVectorEnv([Counter] * 4), set_goals, None),
    "wrapped vector": (
        lambda: gymnasium.wrappers.vector.ClipAction(gymnasium.vector.SyncVectorEnv([Counter] * 4)),
        Attributes("goal"),
        None,
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_tasks_arrive_and_episodes_end(way):
    make, set_task, more = WAYS[way]
    if more is None:
        environment = from_gymnasium(make(), tasks=TASKS, set_task=set_task, horizon=6)
    else:
        environment = from_gymnasium(
            make, tasks=TASKS, set_task=set_task, count=4, horizon=6, **more
        )
    np.testing.assert_array_equal(environment.tasks, environment.sample_tasks(4, seed=0))
    own = more is not None
    goals = np.array([1.0, 2.0, 5.0, 9.0 if own else 6.0])
    environment.set_tasks(goals)
    steps = [environment.reset()]
    np.testing.assert_array_equal(steps[0].observation, np.stack([goals, np.zeros(4)], axis=1))
    steps += [environment.step(np.zeros((4, 1), np.float32)) for _ in range(6)]
    types = np.array([step.step_type for step in steps]).T
    # Goals 1, 2 and 5 are reached; 9 runs into the horizon of 6.
    expected = [[0, 2, 0, 2, 0, 2, 0], [0, 1, 2, 0, 1, 2, 0], [0, 1, 1, 1, 1, 2, 0]]
    np.testing.assert_array_equal(types, [*expected, [0, 1, 1, 1, 1, 1, 2]])
    rewards = np.array([step.reward for step in steps]).T
    np.testing.assert_array_equal(rewards, np.where(types == 0, 0.0, goals[:, None]))
    discounts = np.array([step.discount for step in steps]).T
    ended = types == StepType.LAST
    ended[3] &= not own  # truncated, not terminated
    np.testing.assert_array_equal(discounts, ~ended)
    if own:
        environment.restarts = False
        step = environment.step(np.zeros((4, 1), np.float32))
        np.testing.assert_array_equal(step.step_type, [2, 1, 1, 2])
        # The third has ended before and rests from now on, as the last one does.
        step = environment.step(np.zeros((4, 1), np.float32))
        np.testing.assert_array_equal(step.step_type, [2, 2, 1, 2])
        np.testing.assert_array_equal(step.reward, [0, 2, 5, 0])
        assert environment.reset().is_first().all()
    environment.close()


@pytest.mark.parametrize(
    ("space", "actions", "expected"),
    [
        (spaces.Box(-2.0, 2.0, (1,)), [[5.0], [1.0]], [[2.0], [1.0]]),
        (spaces.Discrete(3, start=4), [0, 2], [4, 6]),
        (spaces.MultiDiscrete([3, 2]), [[2, 1], [0, 0]], [[2, 1], [0, 0]]),
        (spaces.MultiBinary(2), [[1, 0], [0, 0]], [[1, 0], [0, 0]]),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_actions_of_every_kind_reach_the_environment(space, actions, expected, nested):
    space = spaces.Dict({"a": space, "b": spaces.Discrete(2)}) if nested else space
    made = []

    def make():
        made.append(Counter(action=space))
        return made[-1]

    environment = from_gymnasium(make, tasks=TASKS, set_task=set_goal, count=2, horizon=3)
    environment.reset()
    actions = np.array(actions)
    environment.step({"a": actions, "b": np.array([1, 0])} if nested else actions)
    for index, one in enumerate(made[-2:]):
        taken = one.taken[0]
        np.testing.assert_array_equal(taken["a"] if nested else taken, expected[index])
        assert not nested or taken["b"] == [1, 0][index]


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(0, 255, (4, 5, 3), np.uint8), np.uint8),
        (spaces.Box(-1.0, 1.0, (2, 2), np.float64), np.float32),
        (spaces.Discrete(5, start=2), np.int64),
        (spaces.MultiBinary(3), np.int8),
        (spaces.Dict({"map": spaces.Box(0, 255, (2, 2), np.uint8)}), np.uint8),
        (spaces.Tuple([spaces.MultiDiscrete([2, 3])]), np.int64),
    ],
)
def test_observations_are_what_the_spec_says(space, dtype):
    environment = from_gymnasium(
        lambda: Counter(observation=space), tasks=TASKS, set_task=set_goal, count=3, horizon=3
    )
    spec, seen = environment.observation_spec(), environment.reset().observation
    for _ in range(2):
        while isinstance(spec, dict | tuple):
            key = next(iter(spec)) if isinstance(spec, dict) else 0
            spec, seen = spec[key], seen[key]
        assert seen.dtype == spec.dtype == dtype and seen.shape == (3, *spec.shape)
        assert (seen >= spec.minimum).all() and (seen <= spec.maximum).all()
        spec = environment.observation_spec()
        seen = environment.step(np.zeros((3, 1), np.float32)).observation


def test_the_same_seed_gives_the_same_episodes_in_this_process_and_in_others():
    found = []
    for processes in (False, True):
        environment = from_gymnasium(
            "Pendulum-v1",
            tasks=Uniform(4.0, 16.0),
            set_task=Attributes("g"),
            count=2,
            processes=processes,
        )
        environment.seed(7)
        first = environment.reset().observation
        found += [first, environment.step(np.ones((2, 1), np.float32)).observation]
        environment.close()
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[3])
    single = gymnasium.make("Pendulum-v1")
    for index in range(2):
        np.testing.assert_array_equal(single.reset(seed=7 + index)[0], found[0][index])


def test_gymnasiums_own_vector_environments():
    vector = gymnasium.make_vec("CartPole-v1", 3, vectorization_mode="vector_entry_point")
    environment = from_gymnasium(
        vector, tasks=Uniform(0.3, 2.0), set_task=lambda v, tasks: None, horizon=500
    )
    environment.reset()
    types = [environment.step(np.zeros(3, np.int64)).step_type for _ in range(30)]
    assert {0, 1, 2} == set(np.ravel(types))


def test_tasks_may_be_anything():
    names = [("door", 1), ("window", 2)]
    environment = from_gymnasium(
        Counter,
        tasks=lambda generator, n: [names[i] for i in generator.integers(2, size=n)],
        set_task=lambda environment, task: set_goal(environment, task[1]),
        count=2,
        horizon=3,
    )
    environment.set_tasks(np.repeat(environment.sample_tasks(1, seed=3), 2, axis=0))
    assert environment.tasks[0] == environment.tasks[1] in names
    several = from_gymnasium(
        "CartPole-v1",
        tasks=Uniform(0.5, 2.0, (2,)),
        set_task=Attributes("length", "masscart"),
        count=2,
    )
    unwrapped = several._vector.envs[1].unwrapped
    assert [unwrapped.length, unwrapped.masscart] == several.tasks[1].tolist()


def test_environments_of_tf_agents():
    def make():
        return suite_gym.load("CartPole-v1")

    for batched in (False, True):
        if batched:
            batch = BatchedPyEnvironment([make() for _ in range(3)], multithreading=False)
            environment = from_tf_agents(
                batch,
                tasks=Uniform(0.3, 2.0),
                set_task=lambda batch, tasks: [
                    set_gym_goal(one, task) for one, task in zip(batch.envs, tasks, strict=True)
                ],
                horizon=500,
            )
        else:
            environment = from_tf_agents(
                make, tasks=Uniform(0.3, 2.0), set_task=set_gym_goal, horizon=500, count=3
            )
            batch = environment._environment
        lengths = [one.gym.unwrapped.length for one in batch.envs]
        assert lengths == environment.tasks.tolist()
        environment.seed(4)
        first = environment.reset().observation
        assert not np.array_equal(environment.reset().observation, first)
        environment.seed(4)
        np.testing.assert_array_equal(environment.reset().observation, first)
        assert environment.step(np.zeros(3, np.int64)).reward.tolist() == [1, 1, 1]


class Endless(py_environment.PyEnvironment):
    """Has actions of every kind, and no end."""

    def __init__(self, observation=1.0, reward=1.0):
        super().__init__()
        self.observation, self.reward = np.full(1, observation, np.float32), reward
        self.taken = []

    def action_spec(self):
        return {
            "real": array_spec.BoundedArraySpec((1,), np.float64, -1.0, 2.0),
            "choice": array_spec.BoundedArraySpec((2,), np.int8, [1, 5], [3, 6]),
        }

    def observation_spec(self):
        return array_spec.ArraySpec((1,), np.float32)

    def seed(self, seed):
        pass

    def _reset(self):
        return ts.restart(np.zeros(1, np.float32))

    def _step(self, action):
        self.taken.append(action)
        return ts.transition(self.observation, reward=self.reward)


def test_actions_and_horizons_of_tf_agents():
    made = []

    def make():
        made.append(Endless())
        return made[-1]

    given = {"tasks": TASKS, "set_task": set_goal, "horizon": 2}
    environment = from_tf_agents(make, count=2, **given)
    assert [one.goal for one in made] == environment.tasks.tolist()
    choice = environment.action_spec()["choice"]
    assert (choice.minimum == 0).all() and choice.maximum.tolist() == [2, 1]
    action = {"real": np.array([[0.5], [7.0]], np.float32), "choice": np.array([[0, 1], [2, 0]])}
    steps = [environment.reset()] + [environment.step(action) for _ in range(4)]
    assert [one.taken[0]["real"].tolist() for one in made] == [[0.5], [2.0]]
    assert [one.taken[0]["choice"].tolist() for one in made] == [[1, 6], [3, 5]]
    assert made[0].taken[0]["real"].dtype == np.float64
    # Truncated at the horizon: the episode ends, and the discount does not.
    assert [step.step_type.tolist() for step in steps] == [[t, t] for t in (0, 1, 2, 0, 1)]
    assert steps[2].discount.tolist() == [1, 1]
    batch = BatchedPyEnvironment([Endless(), Endless()], multithreading=False)
    environment = from_tf_agents(batch, **given | {"set_task": lambda batch, tasks: None})
    environment.reset()
    environment.step(action)
    with pytest.raises(ValueError, match="goes on after 2 steps, the horizon.*TimeLimit"):
        environment.step(action)


def test_what_environments_of_tf_agents_say_is_checked():
    given = {"tasks": TASKS, "set_task": set_goal, "horizon": 2, "count": 2}
    action = {"real": np.zeros((2, 1)), "choice": np.zeros((2, 2), np.int64)}
    for reward in (3, np.int64(3), np.float64(3)):
        environment = from_tf_agents(lambda reward=reward: Endless(reward=reward), **given)
        environment.reset()
        step = environment.step(action)
        assert step.reward.dtype == step.discount.dtype == np.float32
        assert step.reward.tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"0 to \[2, 1\], but environment 1 got \[0, 2\]"):
        environment.step(action | {"choice": np.array([[2, 1], [0, 2]])})
    environment = from_tf_agents(lambda: Endless(observation=np.nan), **given)
    environment.reset()
    with pytest.raises(FloatingPointError, match="observation of environment 0 is not finite"):
        environment.step(action)


def test_choices_that_gymnasium_does_not_have_are_refused():
    space = spaces.MultiDiscrete([3, 2], start=[1, 1])
    environment = from_gymnasium(lambda: Counter(action=space), **GIVEN)
    environment.reset()
    with pytest.raises(ValueError, match=r"0 to \[2, 1\], but environment 1 got \[-1, 0\]"):
        environment.step(np.array([[2, 1], [-1, 0]]))


def test_actions_of_any_dtype_are_drawn_and_learned_from():
    environment = from_tf_agents(Endless, tasks=TASKS, set_task=set_goal, horizon=2, count=2)
    inputs = keras.Input((1,))
    outputs = {
        "real": {name: keras.layers.Dense(1)(inputs) for name in ("mean", "log_std")},
        "choice": keras.layers.Dense(5)(inputs),
    }
    settings = dict(tasks=2, inner_steps=0, baseline=None, jit_compile=False)
    settings["outer"] = keras.optimizers.Adam(0.01)
    arguments = *rl.tensor_specs(environment), keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match=r"KeyError: 'mean' Actions are a nest: .*parts\("):
        rl.MetaPolicyGradientAgent(*arguments, **settings)
    both = {"real": rl.diagonal_gaussian, "choice": rl.multi_categorical([3, 2])}
    agent = rl.MetaPolicyGradientAgent(*arguments, distribution=rl.parts(both), **settings)
    sampler = rl.Sampler(environment, agent.collect_policy)
    drawn = sampler.draw(0).action
    assert drawn["real"].dtype == np.float64 and drawn["choice"].dtype == np.int8
    info, _ = rl.meta_iteration(agent, sampler, environment.tasks, 1)
    assert info.extra.accepted and info.extra.gradient_norm > 0


class Drifting(Counter):
    """Changes its task in place."""

    def _observe(self):
        return np.zeros(2)

    def step(self, action):
        self.goal += 1.0
        return self._observe(), self.goal[0], False, False, {}


@pytest.mark.parametrize("way", ["attributes", "function", "vector", "vector and function"])
def test_an_environment_that_changes_its_task_in_place_changes_no_other(way):
    _, set_task, more = WAYS[way]
    make = Drifting if more is not None else gymnasium.vector.SyncVectorEnv([Drifting] * 2)
    environment = from_gymnasium(
        make,
        tasks=lambda generator, n: generator.uniform(size=(n, 2)),
        set_task=set_task,
        count=2,
        horizon=3,
    )
    tasks = np.ones((2, 2))
    environment.set_tasks(tasks)
    environment.reset()
    assert environment.step(np.zeros((2, 1), np.float32)).reward.tolist() == [2.0, 2.0]
    assert (environment.tasks == 1).all() and (tasks == 1).all()
    if isinstance(set_task, Attributes):  # it is seen that the task is another one now
        with pytest.raises(ValueError, match="After a reset 'goal' of the environment is"):
            environment.reset()


def test_arrays_of_any_length_and_numbers_that_are_none_are_tasks_like_others():
    tasks = np.array([np.ones(1), np.array([1.0, np.nan])], dtype=object)
    for set_task in (set_goal, Attributes("goal")):
        environment = from_gymnasium(
            Drifting, tasks=lambda _, n: np.resize(tasks, n), set_task=set_task, count=4, horizon=3
        )
        environment.set_tasks(tasks[[0, 0, 1, 1]])
        environment.reset()
        assert environment.step(np.zeros((4, 1), np.float32)).reward.tolist() == [2.0] * 4
        assert environment.tasks[0].tolist() == [1.0]
    environment.set_tasks(np.array([[np.nan, 2.0]] * 4))
    assert environment.reset().is_first().all()


class Forgetful(Counter):
    """Draws its goal anew whenever an episode begins."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed, options=options)
        self.goal = self.np_random.uniform(0.0, 9.0)
        return self._observe(), {}


@pytest.mark.parametrize("vector", [False, True])
def test_a_task_that_a_reset_would_lose_is_refused(vector):
    make = gymnasium.vector.SyncVectorEnv([Forgetful] * 2) if vector else Forgetful
    more = {} if vector else {"count": 2}
    environment = from_gymnasium(make, tasks=TASKS, set_task=Attributes("goal"), horizon=3, **more)
    with pytest.raises(ValueError, match="After a reset 'goal' .* is .*Pass Options or Arguments"):
        environment.reset()


GIVEN = {"tasks": TASKS, "set_task": set_goal, "count": 2, "horizon": 3}
SAME_STEP = gymnasium.vector.AutoresetMode.SAME_STEP


@pytest.mark.parametrize(
    ("make", "changes", "error", "message"),
    [
        (Counter(), {}, TypeError, r"pass lambda: MyEnvironment\(\)"),
        (3, {}, TypeError, "registered name.*got int"),
        (
            lambda: gymnasium.vector.SyncVectorEnv([Counter]),
            {},
            TypeError,
            "must return a gymnasium.Env.*got SyncVectorEnv. Pass a vector environment itself",
        ),
        (Counter, {"count": None}, ValueError, "count must be .* got None"),
        (Counter, {"horizon": None}, ValueError, "names no time limit.*pass horizon="),
        (Counter, {"horizon": 0}, ValueError, "horizon must be .* got 0"),
        (Counter, {"set_task": "goal"}, ValueError, r"Attributes\('name'\).*got 'goal'"),
        (Counter, {"tasks": 3.0}, ValueError, "must be a family .*got 3.0"),
        (Counter, {"tasks": lambda g, n: [1.0]}, ValueError, r"return n of them, 2.*shape \(1,\)"),
        (
            Counter,
            {"set_task": Attributes("gaol")},
            AttributeError,
            "Counter has no attribute 'gaol'.*it has .*goal",
        ),
        (Counter, {"set_task": Attributes("a", "b")}, ValueError, "one entry for each of a, b"),
        (
            lambda: Counter(action=spaces.Text(3)),
            {},
            ValueError,
            "space of action must be Box, Discrete.*got Text.*wrapper",
        ),
        (
            lambda: Counter(observation=spaces.Box(0, 1, (3,), bool)),
            {},
            ValueError,
            r"space of observation must be .*truth values as MultiBinary, got Box\(.*bool\)",
        ),
        (
            gymnasium.vector.SyncVectorEnv([Counter] * 2, autoreset_mode=SAME_STEP),
            {},
            ValueError,
            "autoreset_mode=.*NEXT_STEP.*got AutoresetMode.SAME_STEP",
        ),
        (
            gymnasium.vector.SyncVectorEnv([Counter] * 2),
            {"count": 4},
            ValueError,
            "has 2 environments, but count is 4",
        ),
        (
            gymnasium.vector.SyncVectorEnv([Counter] * 2),
            {"set_task": Arguments("goal")},
            ValueError,
            "Arguments need a function",
        ),
        (
            gymnasium.vector.SyncVectorEnv([Counter] * 2),
            {"set_task": Options("goal")},
            ValueError,
            "SyncVectorEnv hands the same options to all.*with count=",
        ),
        (
            gymnasium.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point"),
            {"set_task": Attributes("length")},
            ValueError,
            "CartPoleVectorEnv cannot set attributes.*a function of it and all tasks",
        ),
        (
            lambda goal: Counter(observation=spaces.Discrete(2 + int(10 * goal))),
            {"set_task": Arguments("goal")},
            ValueError,
            "2 tasks do not fit together.*All tasks must share the spaces",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, changes, error, message):
    with pytest.raises(error, match=message):
        from_gymnasium(make, **GIVEN | changes)


def test_wrong_tasks_and_steps_are_refused():
    environment = from_gymnasium(Counter, **GIVEN)
    with pytest.raises(ValueError, match=r"shape \(2,\).*np.repeat"):
        environment.set_tasks([1.0])
    with pytest.raises(ValueError, match=r"numbers in \[0.0, 10.0\], got 11.0 for environment 1"):
        environment.set_tasks([1.0, 11.0])
    environment.reset()
    with pytest.raises(FloatingPointError, match="action of environment 1 is not finite"):
        environment.step(np.array([[0.0], [np.nan]]))
    environment = from_gymnasium(
        Counter, **GIVEN | {"tasks": lambda g, n: np.full(n, np.inf), "horizon": 3}
    )
    with pytest.raises(FloatingPointError, match="observation of environment 0 is not finite"):
        environment.reset()
    endless = gymnasium.vector.SyncVectorEnv([lambda: Counter(ends=False)] * 2)
    environment = from_gymnasium(endless, tasks=TASKS, set_task=set_goals, horizon=2)
    environment.reset()
    environment.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match="goes on after 2 steps, the horizon"):
        environment.step(np.zeros((2, 1)))


def test_other_environments_are_pointed_to_the_right_function():
    with pytest.raises(TypeError, match="got SyncVectorEnv. .*from_gymnasium"):
        TaskPyEnvironment(gymnasium.vector.SyncVectorEnv([Counter]))
    given = {"tasks": TASKS, "set_task": set_gym_goal, "horizon": 9}
    with pytest.raises(TypeError, match="is one environment.*pass a function"):
        from_tf_agents(suite_gym.load("CartPole-v1"), **given)
    with pytest.raises(TypeError, match="not a batch, got Counter.*from_gymnasium"):
        from_tf_agents(Counter, count=2, **given)
