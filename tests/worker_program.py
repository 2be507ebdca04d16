"""What every process of the tests of workers runs: `python worker_program.py results case ...`."""

import contextlib
import dataclasses
import functools
import os
import pathlib
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import zoo
from keras import layers

import keras_maml
from keras_maml import files
from keras_maml.execution import workers as workers_module
from keras_maml.learners import backup as backup_module

MODELS = {
    "dense": lambda: [
        keras.Input((1,)),
        layers.Dense(16, "tanh"),
        layers.BatchNormalization(),
        layers.Dropout(0.5, seed=4),
        layers.Dense(1),
    ],
    "convolution": lambda: [
        keras.Input((8, 8, 1)),
        layers.Conv2D(4, 3, padding="same", use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("softplus"),
        layers.Dropout(0.3, seed=2),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.Dense(3),
    ],
}


def adam(**settings: Any) -> keras.optimizers.Optimizer:
    """Returns the optimizer that most cases have."""
    return keras.optimizers.Adam(**{"learning_rate": 0.01, **settings})


@dataclasses.dataclass(frozen=True)
class Case:
    """What workers do together and one process does alone.

    Attributes:
        model: One of `MODELS`, or of the zoo.
        optimizer: Makes the optimizer.
        learner: Arguments of `MAML`.
        compile: Arguments of `compile`; most do without XLA, which takes longest.
        kind: The class of the learner.
        policy: The dtype policy. Rounding of float64 is so small that what is left of a difference
            is an error.
        endless: Whether the data to train with do not end.
        tasks: How many a meta-batch has, of all workers.
        last: How many tasks a last meta-batch has that is smaller than the others, if there is one.
    """

    model: str = "dense"
    optimizer: Callable[[], keras.optimizers.Optimizer] = adam
    learner: dict[str, Any] = dataclasses.field(default_factory=dict)
    compile: dict[str, Any] = dataclasses.field(default_factory=lambda: {"jit_compile": False})
    kind: Callable[..., keras_maml.MAML] = keras_maml.MAML
    policy: str = "float64"
    endless: bool = False
    tasks: int = 4
    last: int = 0


XLA = {"jit_compile": True}
CASES = {
    "dense": Case(
        optimizer=lambda: adam(use_ema=True, clipnorm=0.5), compile=XLA, policy="float32"
    ),
    "in turns": Case(
        "convolution", learner={"task_map": "sequential"}, compile=XLA, policy="float32"
    ),
    "at once": Case(
        "convolution",
        lambda: adam(clipnorm=0.05),
        {"task_map": "vectorized"},
        compile=XLA,
        policy="float32",
    ),
    "global_clipnorm": Case(optimizer=lambda: adam(global_clipnorm=0.1)),
    "ema": Case(
        optimizer=lambda: adam(use_ema=True, weight_decay=0.01), learner={"measure_before": False}
    ),
    # Larger inner rates make chaos of rounding in several steps.
    "several steps": Case(learner={"inner_steps": 3, "inner_learning_rate": 0.002}),
    "accumulation": Case(optimizer=lambda: adam(gradient_accumulation_steps=2)),
    "scaled": Case(
        optimizer=lambda: keras.optimizers.LossScaleOptimizer(adam()),
        learner={"first_order": True},
    ),
    "mixed": Case(policy="mixed_float16"),
    "schedule": Case(
        optimizer=lambda: adam(learning_rate=keras.optimizers.schedules.CosineDecay(0.02, 15))
    ),
    "chunks": Case("convolution", learner={"task_chunk": 1, "rematerialize": True}, compile=XLA),
    "without xla": Case("convolution"),
    "eager": Case(compile={"run_eagerly": True}),
    "two steps a call": Case(compile={"steps_per_execution": 2} | XLA),
    "endless": Case(endless=True),
    "MetaSGD": Case(kind=keras_maml.MetaSGD, learner={"inner_steps": 2}),
    "PerLayerPerStep": Case(
        kind=lambda model, inner_learning_rate: keras_maml.MAML(
            model,
            inner_steps=2,
            update_rule=keras_maml.update_rules.PerLayerPerStep(inner_learning_rate),
        ),
        learner={"inner_learning_rate": 0.002},
    ),
    "MAML++": Case(
        kind=keras_maml.MAMLPlusPlus,  # with the losses after all steps in the first epochs
        learner={"inner_steps": 2, "inner_learning_rate": 0.002, "annealing_epochs": 3},
    ),
    **{kind.__name__: Case(kind=kind) for kind in (keras_maml.MetaCurvature, keras_maml.BOIL)},
    "Reptile": Case(
        kind=keras_maml.Reptile, learner={"inner_steps": 2, "inner_learning_rate": 0.002}
    ),
    # Where regularization is so weak that the matrix is not positive definite, conjugate gradient
    # makes chaos of rounding; and so do large outer steps.
    "ImplicitMAML": Case(
        optimizer=lambda: adam(learning_rate=0.001),
        kind=keras_maml.ImplicitMAML,
        learner={"inner_steps": 2, "inner_learning_rate": 0.002, "regularization": 100.0},
    ),
    **{
        f"dense, {task_map}": Case(learner={"task_map": task_map, "task_chunk": chunk})
        for task_map, chunk in (("sequential", None), ("vectorized", 1))
    },
    "a smaller last meta-batch": Case(last=2),
    "six tasks": Case(tasks=6, learner={"task_map": "vectorized"}),
    **{name: Case(name) for name in ("lstm", "attention", "dropout", "normalization", "embedding")},
    **{name: Case(name) for name in ("regularized", "paper", "transposed_convolution")},
}


def run(name: str, workers: keras_maml.Workers | None, shard: tuple[int, int]) -> dict[str, Any]:
    """Trains, evaluates and predicts; returns weights, history and what was measured."""
    case = CASES[name]
    policy = keras.config.dtype_policy()
    try:
        keras.config.set_floatx("float64" if case.policy == "float64" else "float32")
        keras.config.set_dtype_policy(case.policy)
        return measure(case, workers, shard)
    finally:
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy(policy)


def measure(
    case: Case, workers: keras_maml.Workers | None, shard: tuple[int, int]
) -> dict[str, Any]:
    """Runs a case with the dtype policy that is set."""
    # Only worker 0 has the weights of one process to begin with.
    keras.utils.set_random_seed(7 + shard[0])
    own = case.model in MODELS
    model = keras.Sequential(MODELS[case.model]()) if own else zoo.CASES[case.model].build()
    learner = case.kind(model, **{"inner_learning_rate": 0.02, **case.learner})
    classifies = case.model == "convolution" if own else zoo.CASES[case.model].classifies
    learner.compile(
        case.optimizer(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=own)
        if classifies
        else "mean_squared_error",
        metrics=["accuracy"] if classifies else ["mean_absolute_error"],
        workers=workers,
        **case.compile,
    )
    episodes, tasks = episodes_of(case, shard), case.tasks
    history = learner.fit(
        episodes(None) if case.endless else episodes(10 * tasks),
        steps_per_epoch=10 if case.endless else None,
        epochs=2,
        validation_data=episodes(2 * tasks, seed=3),
        verbose=0,
    )
    batch = next(iter(episodes(tasks, seed=5)))
    return {
        "weights": learner.get_weights(),
        "history": history.history,
        "evaluate": learner.evaluate(episodes(3 * tasks, seed=1), verbose=0, return_dict=True),
        "predict": learner.predict(episodes(3 * tasks, seed=2), verbose=0),
        "train_on_batch": [learner.train_on_batch(batch), learner.train_on_batch(batch)],
        "test_on_batch": learner.test_on_batch(batch),
        "predict_on_batch": learner.predict_on_batch(batch),
        "weights afterwards": learner.get_weights(),
        "state of the optimizer": [v.numpy() for v in learner.optimizer.variables],
    }


def episodes_of(case: Case, shard: tuple[int, int]) -> Callable[..., tf.data.Dataset]:
    """Returns what makes a worker's share of so many tasks, in meta-batches."""
    how = {"meta_batch_size": case.tasks, "shard": shard}
    if case.model == "dense":

        def of_curves(tasks: int | None, seed: int = 0) -> tf.data.Dataset:
            whole = keras_maml.episodes.sinusoid(tasks=tasks, seed=seed, **how)
            if not case.last:
                return whole
            smaller = how | {"meta_batch_size": case.last}
            last = keras_maml.episodes.sinusoid(tasks=case.last, seed=seed + 100, **smaller)
            return whole.concatenate(last)

        return of_curves
    if case.model == "convolution":
        images = np.random.default_rng(0).normal(size=(60, 8, 8, 1)).astype("float32")
        how |= {"ways": 3, "shots": 1, "queries": 3}
        labels = np.repeat(np.arange(6), 10)
        return lambda tasks, seed=0: keras_maml.episodes.from_arrays(
            images, labels, tasks=tasks, seed=seed, **how
        )

    def of_the_zoo(tasks: int, seed: int = 0) -> tf.data.Dataset:
        def share(array: tf.Tensor) -> tf.Tensor:
            parts = tf.reshape(array, [tasks // 4, shard[1], 4 // shard[1], *array.shape[1:]])
            return parts[:, shard[0]]

        whole = zoo.episodes(zoo.CASES[case.model], tasks=tasks, seed=seed)
        return tf.data.Dataset.from_tensor_slices(keras.tree.map_structure(share, whole))

    return of_the_zoo


def wrong(workers: keras_maml.Workers) -> dict[str, Any]:
    """Gives workers data that do not fit together; prints what they are told."""
    learner = keras_maml.MAML(keras.Sequential(MODELS["dense"]()))
    learner.compile("sgd", loss="mean_squared_error", workers=workers, jit_compile=False)
    sinusoid, shard = keras_maml.episodes.sinusoid, workers.shard
    more, last = 1 + workers.index, workers.index == workers.count - 1
    arrays = next(iter(sinusoid(meta_batch_size=2 * workers.count, shard=shard)))
    longer = keras.tree.map_structure(lambda a: tf.concat([a, a[:more]], 0), arrays)
    uneven = tf.data.Dataset.from_tensor_slices(longer).batch(2)
    broken = keras.tree.map_structure(lambda a: a * (np.nan if last else 1.0), arrays)
    wide = keras.tree.map_structure(lambda a: tf.repeat(a, 1 + last, -1), arrays)
    late = tf.data.Dataset.from_tensor_slices(
        keras.tree.map_structure(lambda a, b: tf.stack([a, b]), arrays, broken)
    )
    learner.build_on(sinusoid(meta_batch_size=2 * workers.count, tasks=4, shard=shard))
    before = learner.get_weights()
    for train in (
        lambda: learner.fit(sinusoid(meta_batch_size=4, tasks=8)),
        lambda: learner.fit(sinusoid(meta_batch_size=2, tasks=4 + 2 * more, shard=shard)),
        lambda: learner.fit(sinusoid(meta_batch_size=2 * more, tasks=12 * more, shard=shard)),
        lambda: learner.fit(longer, batch_size=2, shuffle=False),
        lambda: learner.fit(arrays, batch_size=1),
        lambda: learner.fit(arrays, validation_split=0.5),
        lambda: learner.fit(broken),
        lambda: learner.evaluate(wide),
        lambda: learner.fit(arrays) if last else learner.evaluate(arrays),
        lambda: learner.predict(uneven, verbose=0),
    ):
        try:
            train()
            print("was not refused")
        except (ValueError, RuntimeError) as error:
            print(error)
    unchanged = all(map(np.array_equal, before, learner.get_weights()))
    print("Nothing was learned." if unchanged else "Something was learned.")

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 0:
                before[:] = self.model.get_weights()

    for data in (late, uneven):
        try:
            learner.fit(data, verbose=0, callbacks=[Keep()])
            print("was not refused")
        except (ValueError, FloatingPointError) as error:
            print(error)
            unchanged = all(map(np.array_equal, before, learner.get_weights()))
            print("Kept." if unchanged else "Not kept.")
    return {"weights": learner.get_weights()}


EPOCHS = 42


class At(keras.callbacks.Callback):
    """Does something at a moment of training: before or after a step, or at the end of an epoch."""

    def __init__(self, moment: int, action: Callable[[], None]) -> None:
        super().__init__()
        self._left, self._action = moment, action

    def pass_by(self, *_: Any, **logs: Any) -> None:
        """Counts a moment."""
        self._left -= 1
        if self._left == 0:
            self._action()

    on_train_batch_begin = on_train_batch_end = on_epoch_end = pass_by


def fail() -> None:
    """Fails as a callback of a user's may."""
    raise ZeroDivisionError("no more\npatience")


def stopping(workers: keras_maml.Workers, case: str) -> dict[str, Any]:
    """Lets worker 1 stop in the middle of an epoch; prints what the others are told."""
    learner = keras_maml.MAML(keras.Sequential(MODELS["dense"]()))
    learner.compile("sgd", loss="mean_squared_error", workers=workers, jit_compile=False)
    tasks = 2 * workers.count * 5
    shard = workers.shard
    data = keras_maml.episodes.sinusoid(meta_batch_size=tasks // 5, tasks=tasks, shard=shard)
    callbacks = []
    if case == "short":
        workers_module.LATENESS = 5  # seconds that worker 1 waits at its end
        data = data.enumerate().filter(lambda i, _: i < 5 - 2 * (workers.index == 1))
        data = data.map(lambda _, episodes: episodes)
    elif workers.index == 1:
        action = fail if case == "failing" else lambda: os.kill(os.getpid(), signal.SIGKILL)
        callbacks = [At(4, action)]
    try:
        learner.fit(data, verbose=0, callbacks=callbacks)
        print("was not stopped")
    except (ZeroDivisionError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}")
    return {}


def resumed(workers: keras_maml.Workers, folder: pathlib.Path, kill: str) -> dict[str, Any]:
    """Trains with a backup, from which it goes on; "worker,moment" says who is killed and when."""
    keras.utils.set_random_seed(7 + workers.index)
    learner = keras_maml.MAML(keras.Sequential(MODELS["dense"]()), 0.02)
    learner.compile(adam(), loss="mean_squared_error", workers=workers, jit_compile=False)
    backup = keras_maml.callbacks.BackupAndRestore(folder / "backup", delete=False)
    callbacks = [backup]
    if kill:
        worker, moment, writing = map(int, kill.split(","))
        if worker == workers.index:
            at = At(moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
            callbacks = [at, backup]
            if writing:  # when the file is written and not yet in its place
                backup_module.whole = lambda path: whole_or_killed(path, at.pass_by)
    tasks = 4 * 3
    episodes = keras_maml.episodes.sinusoid(meta_batch_size=4, tasks=tasks, shard=workers.shard)
    try:
        history = learner.fit(episodes, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    except RuntimeError as error:
        print(f"{type(error).__name__}: {error}")
        return {}
    print(f"Trained in epochs {history.epoch}.")
    optimizer = [v.numpy() for v in learner.optimizer.variables]
    return {"weights": learner.get_weights(), "state of the optimizer": optimizer}


def agents(workers: keras_maml.Workers) -> dict[str, Any]:
    """Trains agents of reinforcement learning on a share of four tasks."""
    from keras_maml import rl

    tasks, rollouts, horizon = 4, 3, 4
    results = {}
    for name, outer, compiled in (
        # Without damping, conjugate gradient makes of rounding what would hide an error.
        ("trust region", rl.TrustRegion(momentum=0.5, damping=0.1, iterations=5), True),
        ("proximal", rl.Proximal(), False),
    ):
        environment = rl.environments.TaskPyEnvironment(
            rl.environments.TaskVectorEnv(
                "Navigation2D-v0", tasks * rollouts // workers.count, horizon=horizon
            )
        )
        specs = rl.tensor_specs(environment)
        model = rl.gaussian_policy(2, 2, (8,), seed=7 + workers.index)
        agent = rl.MetaPolicyGradientAgent(
            *specs,
            model,
            tasks=tasks // workers.count,
            outer=outer,
            inner_loss="likelihood_ratio",
            jit_compile=compiled,
            workers=workers,
        )
        agent.initialize()
        sampler = rl.Sampler(environment, agent.collect_policy, steps=horizon)
        for iteration in range(3):
            chosen = environment.sample_tasks(tasks, (0, iteration))
            share = np.split(chosen, workers.count)[workers.index]
            info, returns = rl.meta_iteration(agent, sampler, share, 0, iteration)
            results[f"{name} {iteration}"] = (
                [float(value) for value in info.extra],
                returns,
                [np.asarray(variable) for variable in agent.saved_variables],
            )
    return results


def agents_in_a_folder(workers: keras_maml.Workers, folder: pathlib.Path) -> dict[str, Any]:
    """Goes on from a folder with an agent as new, and with one that has trained elsewhere."""
    from keras_maml import rl

    results = {}
    for name, iterations, elsewhere in (("begun", 1, 0), ("new", 2, 0), ("trained", 3, 1)):
        environment = rl.environments.TaskPyEnvironment(
            rl.environments.TaskVectorEnv("Navigation2D-v0", 12 // workers.count, horizon=4)
        )
        agent = rl.MetaPolicyGradientAgent(
            *rl.tensor_specs(environment),
            rl.gaussian_policy(2, 2, (8,), seed=7 + workers.index),
            tasks=4 // workers.count,
            outer=keras.optimizers.Adam(0.01),
            jit_compile=False,
            workers=workers,
        )
        sampler = rl.Sampler(environment, agent.collect_policy)
        given = {"verbose": False}
        if elsewhere:
            rl.train(agent, sampler, iterations=elsewhere, seed=5, **given)
        rl.train(agent, sampler, iterations=iterations, folder=folder / "run", **given)
        results[name] = [np.asarray(variable) for variable in agent.saved_variables]
    for seed in (workers.index, 1):
        try:
            rl.train(agent, sampler, iterations=4, seed=seed, folder=folder / "run", **given)
        except (ValueError, RuntimeError) as error:
            print(f"{type(error).__name__}: {error}")
    return results


def precise_agents(workers: keras_maml.Workers) -> dict[str, Any]:
    """Takes a step of the default trust region in float64, on what another agent draws.

    With so little damping, conjugate gradient amplifies what additions in another order make of the
    last digit. In float64 that is still so little that an error would be seen beside it.
    """
    from keras_maml import rl
    from keras_maml.rl import meta_policy_gradient, model_checks, sampling

    tasks, rollouts, horizon = 4, 3, 4
    environment = rl.environments.TaskPyEnvironment(
        rl.environments.TaskVectorEnv("Navigation2D-v0", tasks * rollouts, horizon=horizon)
    )
    specs = rl.tensor_specs(environment)
    drawer = rl.MetaPolicyGradientAgent(
        *specs, rl.gaussian_policy(2, 2, (8,), seed=7), tasks=tasks, jit_compile=False
    )
    sampler = rl.Sampler(environment, drawer.collect_policy, steps=horizon)
    share = lambda array: tf.split(array, workers.count)[workers.index]  # noqa: E731
    # All of it on every worker, bit for bit.
    sampling.begin_adaptation(drawer, sampler, environment.sample_tasks(tasks, (0, 0)))
    before = sampler.draw(0, 0, 0)
    drawer.adapt(before)
    experience = tf.nest.map_structure(share, (before, sampler.draw(0, 0, 1)))
    transitions = meta_policy_gradient.transitions
    check_precision = model_checks._check_precision

    def of_each(trajectory: Any, *, tasks: int, **how: Any) -> Any:
        # One by one: estimates in float32 are the same then, however many tasks there are.
        parts = zip(*(tf.split(array, tasks) for array in tf.nest.flatten(trajectory)), strict=True)
        pack = functools.partial(tf.nest.pack_sequence_as, trajectory)
        made = [transitions(pack(part), tasks=1, **how) for part in parts]
        return tf.nest.map_structure(lambda *arrays: precise(tf.concat(arrays, 0)), *made)

    def precise(array: tf.Tensor) -> tf.Tensor:
        return tf.cast(array, tf.float64) if array.dtype.is_floating else array

    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    meta_policy_gradient.transitions = of_each
    model_checks._check_precision = lambda *_: None  # as estimates are float64 here, too
    try:
        agent = rl.MetaPolicyGradientAgent(
            *specs,
            rl.gaussian_policy(2, 2, (8,), seed=8),
            tasks=tasks // workers.count,
            jit_compile=False,
            workers=workers,
        )
        agent.initialize()
        info = agent.train(experience).extra
    finally:
        meta_policy_gradient.transitions = transitions
        model_checks._check_precision = check_precision
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
    weights = [np.asarray(variable) for variable in agent.saved_variables]
    return {"trust region 0": ([*map(float, info)], weights)}


def scopes(case: str) -> None:
    """Does as users of Keras's strategies do; prints what they are told."""
    if case == "one device":
        strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    elif workers_module.count_workers() == 1:
        processor, *_ = tf.config.list_physical_devices("CPU")
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(processor, two)
        strategy = tf.distribute.MirroredStrategy()
    else:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def make() -> keras_maml.MAML:
        return keras_maml.MAML(keras.Sequential([keras.Input((1,)), layers.Dense(1)]))

    def compiled(learner: keras_maml.MAML) -> keras_maml.MAML:
        learner.compile("sgd", "mean_squared_error", run_eagerly=True)
        return learner

    def inside(call: Callable[[], Any]) -> Any:
        with strategy.scope():
            return call()

    x = np.ones([2, 3, 1], "float32")
    batch = (x, x), (x, x)
    learner = compiled(make())
    attempts = {
        name: lambda name=name: inside(lambda: getattr(learner, name)(batch))
        for name in ("build_on", "fit", "evaluate", "predict")
        + ("train_on_batch", "test_on_batch", "predict_on_batch")
    }
    attempts |= {
        "adapt": lambda: inside(lambda: learner.adapt(x[0], x[0])),
        "meta_gradients": lambda: inside(lambda: learner.meta_gradients(*batch)),
        "compile": lambda: inside(lambda: compiled(make())),
        "compile outside": lambda: compiled(inside(make)),
        "Workers": keras_maml.Workers,
    }
    for name, attempt in attempts.items():
        try:
            attempt()
            print(f"{name}: was not refused")
        except (NotImplementedError, RuntimeError) as error:
            print(f"{name}: {type(error).__name__}: {error}")


@contextlib.contextmanager
def whole_or_killed(path: pathlib.Path, moment: Callable[[], None]) -> Iterator[pathlib.Path]:
    """As `keras_maml.files.whole`, with a moment at which a process may be killed."""
    with files.whole(path) as temporary:
        yield temporary
        moment()


def main() -> None:
    """Runs the cases, and leaves what they return in the folder."""
    folder, *cases = sys.argv[1:]
    if cases[0].startswith("scopes:"):
        scopes(cases[0].partition(":")[2])
        return
    workers = keras_maml.Workers()
    folder = pathlib.Path(folder)
    results = {}
    for case in cases:
        name, _, rest = case.partition(":")
        if name == "wrong":
            results[case] = wrong(workers)
        elif name == "stopping":
            results[case] = stopping(workers, rest)
        elif name == "agents":
            results[case] = agents(workers)
        elif name == "agents in a folder":
            results[case] = agents_in_a_folder(workers, folder)
        elif name == "precise agents":
            results[case] = precise_agents(workers)
        elif name == "resumed":
            results[case] = resumed(workers, folder, rest)
        else:
            results[case] = run(case, workers, workers.shard)
    (folder / f"{workers.index}.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main()
