"""Meta-reinforcement learning: what the experiments on navigation and locomotion share.

A run trains MAML and the paper's baselines (Finn et al. 2017, section 5.3), adapts each to the same
test tasks by policy gradient steps, and writes into its folder, besides what `experiments.runs`
lists, for every method a folder with its checkpoints and ``history.csv``, and::

    results.txt            returns after every gradient step, beside the authors'
    returns.png            the same as a figure
    learning_curves.png    returns over meta-iterations
    *.gif                  with --film: the robot before and after adaptation
    policy/METHOD          the learned policy, saved by TF-Agents' PolicySaver
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tabulate
import tensorflow as tf

import keras_maml.rl
from experiments.agent_training import epoch_returns, train_agent
from experiments.command_line import run_command, with_defaults
from experiments.runs import Run, check_epochs
from keras_maml import evaluation, plots
from keras_maml.files import write_text
from keras_maml.rl import (
    MetaPolicyGradientAgent,
    Proximal,
    Sampler,
    TaskPolicy,
    TrustRegion,
    environments,
    gaussian_policy,
    tensor_specs,
)
from keras_maml.rl import plots as rl_plots
from keras_maml.rl.film import record, write_gif
from keras_maml.update_rules import GradientDescent
from keras_maml.validation import check_count, check_number

METHODS = ("maml", "first-order", "promp", "pretrained", "random", "oracle")
TITLES = {
    "maml": "MAML",
    "first-order": "first-order MAML",
    "promp": "ProMP",
    "pretrained": "pre-trained on all tasks",
    "random": "random initialisation",
    "oracle": "oracle (sees the task)",
}
ADAPTING = ("maml", "first-order", "promp")
# Seeds of tasks: training takes (seed, iteration), the test this one.
TEST = 1_000_000
PATHS = 8  # rollouts drawn in a plane
FILM_EVERY = 4  # steps from one picture of a film to the next


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run; see the experiment for what the paper did."""

    task: str = "navigation"  # what is learned; chooses the defaults of the rest
    # Some of maml first-order promp pretrained random oracle.
    methods: tuple[str, ...] = ("maml", "pretrained", "random", "oracle")
    tasks: int = 20  # in a meta-batch
    rollouts: int = 20  # per task and stage
    horizon: int = 100  # steps of an episode
    inner_learning_rate: float = 0.5  # alpha, of the policy gradient steps
    inner_steps: int = 1  # in training
    inner_loss: str = "log_likelihood"  # or likelihood_ratio, which promp always has
    max_kl: float = 0.01  # of an outer step; promp has none
    cg_iterations: int = 10  # of conjugate gradient, for its direction; promp has none
    momentum: float = 0.0  # of the gradients that outer steps follow; promp has none
    discount: float = 0.99  # per step
    gae_lambda: float = 1.0  # of advantage estimation
    units: tuple[int, ...] = (100, 100)  # of the policy's hidden layers
    activation: str = "relu"  # of the policy's hidden layers
    min_std: float = 1e-6  # of actions; smaller deviations count as this
    iterations: int = 500  # meta-iterations of MAML
    baseline_iterations: int = 1_000  # of the pre-trained policy and the oracle
    baseline_rollouts: int = 100  # in each of these, each with a task of its own
    epoch_iterations: int = 5  # between checkpoints
    test_tasks: int = 40  # in the end
    test_rollouts: int = 40  # per task and step
    test_steps: int = 4  # gradient steps in the test
    test_later_rate: float = 0.5  # of the later gradient steps, as a share of the first's rate
    test_rate: float = 0.5  # of the first gradient step of what was trained to adapt
    test_pretrained_rate: float = 0.5  # the same, of the pre-trained policy
    test_random_rate: float = 0.5  # the same, of the random initialisation
    physics: str = "paper"  # or gymnasium (robots only)
    seed: int = 0  # of weights, tasks, resets and actions


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str | None = None  # folder of the run; None: runs/TASK
    film: bool = False  # write films of a robot before and after adaptation


@dataclasses.dataclass(frozen=True)
class Problem:
    """An environment and what is known about it.

    Attributes:
        title: What to call it.
        environment: The registered name.
        settings: The paper's settings.
        published: The authors' mean returns after every gradient step, by method.
        plane: Whether observations begin with a position in a plane, whose path can be drawn.
    """

    title: str
    environment: str
    settings: Settings
    published: Mapping[str, Sequence[float]]
    plane: bool = False


def main(name: str, description: str, problems: Mapping[str, Problem]) -> None:
    """Runs an experiment as a command: the task chooses the defaults of the rest.

    Args:
        name: The module's name in `experiments`.
        description: What ``--help`` says.
        problems: By task.
    """
    parser = argparse.ArgumentParser(f"python -m experiments.{name}", add_help=False)
    parser.add_argument("--task", choices=problems, default=next(iter(problems)))
    task = parser.parse_known_args()[0].task
    run_command(
        name,
        description,
        functools.partial(run, problems[task]),
        with_defaults(problems[task].settings),
        Files,
    )


def run(problem: Problem, settings: Settings, files: Files) -> dict[str, Any]:
    """Trains, tests and reports; or continues, or shows what is there.

    Args:
        problem: What to learn.
        settings: All that the results depend on.
        files: Where the results go.

    Returns:
        The content of ``results.json``.

    Raises:
        FileExistsError: The folder holds another run, or something else.
        ValueError: A setting is out of range.
    """
    check(problem, settings, files)
    this = Run(files.output or f"runs/{settings.task}", settings)
    if this.results is None:
        learned = {method: train(this, problem, settings, method) for method in settings.methods}
        report(this, problem, settings, learned)
    if files.film:
        for method in settings.methods:
            film(this, problem, settings, method)
    print((this.folder / "results.txt").read_text())
    print(f"Results, learning curves and checkpoints: {this.folder}")
    return this.results


def check(problem: Problem, settings: Settings, files: Files) -> None:
    """Fails before anything is written, if a setting is out of range or nothing can be drawn."""
    unknown = sorted({*settings.methods} - {*METHODS})
    if unknown or not settings.methods:
        raise ValueError(f"methods must be some of {METHODS}, got {settings.methods!r}.")
    for iterations in (settings.iterations, settings.baseline_iterations):
        check_epochs(iterations, settings.epoch_iterations)
    for name in ("tasks", "rollouts", "baseline_rollouts", "test_tasks", "test_rollouts"):
        check_count(name, getattr(settings, name), minimum=1)
    check_count("test_steps", settings.test_steps)
    check_count("seed", settings.seed)
    for name in ("later", "", "pretrained", "random"):
        name = f"test_{name}_rate".replace("__", "_")
        check_number(name, getattr(settings, name), lambda rate: rate >= 0, "at least 0")
    options = {"render_mode": "rgb_array"} if files.film else {}
    for method in settings.methods:
        environment = make_environment(problem, settings, method, 1, **options)
        make_agent(settings, method, environment, 1)
        environment.reset()
        if files.film:
            try:
                environment.render()
            except RuntimeError as error:  # no OpenGL
                raise OSError(f"{error} Or leave --film out.") from error
        environment.close()


def make_environment(
    problem: Problem, settings: Settings, method: str, count: int, **options: Any
) -> environments.TaskPyEnvironment:
    """Returns a batch of environments for a method."""
    return environments.TaskPyEnvironment(
        environments.TaskVectorEnv(
            problem.environment,
            count,
            horizon=settings.horizon,
            physics=settings.physics,
            oracle=method == "oracle",
            **options,
        )
    )


def make_agent(
    settings: Settings,
    method: str,
    environment: environments.TaskPyEnvironment,
    tasks: int,
    model: Any = None,
) -> MetaPolicyGradientAgent:
    """Returns the agent of a method.

    The baselines are trained without inner steps, on one "task" whose environments each have a
    task of their own.
    """
    time_steps, actions = tensor_specs(environment)
    model = model or gaussian_policy(
        time_steps.observation.shape[0],
        actions.shape[0],
        settings.units,
        activation=settings.activation,
        min_std=settings.min_std,
        seed=settings.seed,
    )
    proximal = method == "promp"
    trust_region = TrustRegion(
        max_kl=settings.max_kl, iterations=settings.cg_iterations, momentum=settings.momentum
    )
    return MetaPolicyGradientAgent(
        time_steps,
        actions,
        model,
        tasks=tasks,
        inner_learning_rate=settings.inner_learning_rate,
        inner_steps=settings.inner_steps if method in ADAPTING else 0,
        outer=Proximal() if proximal else trust_region,
        first_order=method == "first-order",
        discount=settings.discount,
        gae_lambda=settings.gae_lambda,
        inner_loss="likelihood_ratio" if proximal else settings.inner_loss,
    )


def train(
    this: Run, problem: Problem, settings: Settings, method: str
) -> tuple[MetaPolicyGradientAgent, list[dict[str, float]]]:
    """Trains a method, or continues, or loads what was trained.

    Returns:
        The agent, with the weights of the epoch with the best return, and its history.
    """
    adapts = method in ADAPTING
    tasks, rollouts = (
        (settings.tasks, settings.rollouts) if adapts else (1, settings.baseline_rollouts)
    )
    environment = make_environment(problem, settings, method, tasks * rollouts)
    agent = make_agent(settings, method, environment, tasks)
    if method == "random":
        return agent, []
    sampler = Sampler(environment, agent.collect_policy, steps=settings.horizon)
    history = train_agent(
        this.folder / method,
        agent,
        sampler,
        tasks=tasks if adapts else rollouts,
        iterations=settings.iterations if adapts else settings.baseline_iterations,
        epoch_iterations=settings.epoch_iterations,
        seed=settings.seed,
        tensorboard=this.folder / "tensorboard" / method,
    )
    return agent, history


def evaluate(
    problem: Problem, settings: Settings, method: str, model: Any
) -> tuple[evaluation.Evaluation, MetaPolicyGradientAgent, Sampler]:
    """Adapts a method to the test tasks; returns the agent as it is after the last step, too."""
    environment = make_environment(
        problem, settings, method, settings.test_tasks * settings.test_rollouts
    )
    agent = make_agent(settings, method, environment, settings.test_tasks, model)
    sampler = Sampler(environment, agent.collect_policy, steps=settings.horizon)
    tasks = environment.sample_tasks(settings.test_tasks, TEST)
    rules = (
        [] if method == "oracle" else [GradientDescent(rate) for rate in rates(settings, method)]
    )
    result = keras_maml.rl.evaluate(agent, sampler, tasks, rules, seed=settings.seed)
    return result, agent, sampler


def rates(settings: Settings, method: str) -> list[float]:
    """Returns the rate of every gradient step of the test (halved in the paper, appendix A.2)."""
    if method == "oracle":
        return []
    own = {"pretrained": settings.test_pretrained_rate, "random": settings.test_random_rate}
    first = own.get(method, settings.test_rate)
    later = settings.test_later_rate * first
    return [first if step == 0 else later for step in range(settings.test_steps)]


def report(
    this: Run,
    problem: Problem,
    settings: Settings,
    learned: Mapping[str, tuple[MetaPolicyGradientAgent, list[dict[str, float]]]],
) -> None:
    """Tests every method and writes policies, table, figures and results."""
    rows, curves, training = [], {}, {}
    for method, (agent, history) in learned.items():
        result, tested, sampler = evaluate(problem, settings, method, agent.model)
        rows += [{"method": method} | row for row in result.rows()]
        curves[TITLES[method]] = (result.curve("return"), result.curve("return", "ci95"))
        agent.policy.save(this.folder / "policy" / method, overwrite=True)
        _summarise(this.folder / "tensorboard" / method, result)
        if problem.plane:
            draw_paths(settings, method, tested, sampler, this.folder)
        if history:
            epochs = epoch_returns(history, settings.epoch_iterations)
            training[method] = {
                "iterations": len(history),
                "hours": round(history[-1]["seconds"] / 3600, 2),
                "skipped": sum(row["accepted"] != 1 for row in history),
                "iterations_of_best_epoch": int(np.argmax(epochs) + 1) * settings.epoch_iterations,
            }
    write_text(this.folder / "results.txt", table(problem, settings, rows, training) + "\n")
    title = f"{problem.title}, {settings.test_tasks} test tasks"
    published = {TITLES[method]: values for method, values in problem.published.items()}
    plots.save(rl_plots.returns_over_steps(curves, published, title), this.folder / "returns.png")
    histories = {TITLES[method]: history for method, (_, history) in learned.items() if history}
    if histories:
        figure = rl_plots.learning_curves(histories, problem.title)
        plots.save(figure, this.folder / "learning_curves.png")
    this.finish(rows, data=f"{problem.environment}, test tasks of seed {TEST}", training=training)


def _summarise(folder: pathlib.Path, result: evaluation.Evaluation) -> None:
    """Shows the test in TensorBoard: the return after every gradient step."""
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for step, value in enumerate(result.curve("return")):
            tf.summary.scalar("test/return_over_gradient_steps", value, step=step)
    writer.close()


def table(
    problem: Problem,
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    training: Mapping[str, Mapping[str, Any]],
) -> str:
    """Writes the returns after every gradient step, ours above the authors'."""
    lines = []
    for method in settings.methods:
        ours = [row for row in rows if row["method"] == method]
        cells = [f"{row['mean']:.1f} ± {row['ci95']:.1f}" for row in ours]
        done = training.get(method)
        lines.append([TITLES[method], done["iterations"] if done else "", *cells])
        if method in problem.published:
            theirs = [f"{value:.1f}" for value in problem.published[method]]
            lines.append(["  the authors", "", *theirs])
    steps = range(settings.test_steps + 1)
    headers = ["method", "iterations", *[f"{step} step{'s' * (step != 1)}" for step in steps]]
    title = (
        f"{problem.title}: return before adaptation and after every gradient step, "
        f"{settings.test_tasks} test tasks, {settings.test_rollouts} rollouts each, mean and 95 % "
        f"interval over tasks; seed {settings.seed}.\n"
    )
    return title + tabulate.tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def draw_paths(
    settings: Settings,
    method: str,
    agent: MetaPolicyGradientAgent,
    sampler: Sampler,
    folder: pathlib.Path,
) -> None:
    """Draws the ways of the first test task, of a plane, before and after adaptation."""
    steps = len(rates(settings, method))
    label = f"after {steps} gradient steps" if steps else "without adaptation"
    ways = {label: sampler.draw(settings.seed, settings.test_steps + 1)}
    if steps:
        agent.reset_adaptation()
        before = sampler.draw(settings.seed, settings.test_steps + 2)
        ways = {"before adaptation": before} | ways
    paths = {}
    for name, trajectory in ways.items():
        first = slice(0, min(PATHS, settings.test_rollouts))  # environments of the first task
        # A trajectory's boundary observes where the episode has ended.
        ends = np.asarray(trajectory.is_boundary())[first]
        over = np.cumsum(ends, axis=1) - ends > 0
        positions = np.array(trajectory.observation)[first, :, :2]
        paths[name] = np.where(over[..., None], np.nan, positions)
    figure = rl_plots.navigation_paths(paths, sampler.environment.tasks[0], TITLES[method])
    plots.save(figure, folder / f"paths_{method}.png")


def film(this: Run, problem: Problem, settings: Settings, method: str) -> None:
    """Writes films of test tasks before and after adaptation: the first one, and the unlikest.

    Actions are the means of their distributions, without noise.
    """
    agent, _ = train(this, problem, settings, method)
    _, agent, sampler = evaluate(problem, settings, method, agent.model)
    rollouts = sampler.environment.batch_size // settings.test_tasks
    tasks = sampler.environment.tasks[::rollouts]
    distances = np.abs(tasks - tasks[0]).reshape(len(tasks), -1).sum(axis=1)
    steps = len(rates(settings, method))
    names = ["before", f"after {steps} steps"] if steps else [TITLES[method]]
    seen = make_environment(problem, settings, method, len(names), render_mode="rgb_array")
    policy = TaskPolicy(
        agent.time_step_spec, agent.action_spec, agent.model, tasks=len(names), greedy=True
    )
    initial = [tf.convert_to_tensor(value) for value in agent.model.trainable_variables]
    for number in (0, int(distances.argmax())):
        fast = [value[number] for value in agent.collect_policy.fast_weights]
        weights = zip(initial, fast, strict=True) if steps else zip(initial, strict=True)
        policy.assign([tf.stack(stages) for stages in weights])
        seen.set_tasks(np.stack([tasks[number]] * len(names)))
        pictures, returns = record(seen, policy, steps=settings.horizon, every=FILM_EVERY)
        label = " ".join(f"{value:.3g}" for value in np.ravel(tasks[number]))
        captions = [
            f"task {label}, {n}: return {r:.0f}" for n, r in zip(names, returns, strict=True)
        ]
        path = this.folder / f"{method}_task{number}.gif"
        write_gif(path, pictures, captions)
        print(f"Film: {path}")
    seen.close()
