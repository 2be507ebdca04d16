"""Meta-reinforcement learning: what the experiments on navigation and locomotion share.

A run trains MAML and the paper's baselines (Finn et al. 2017, section 5.3), adapts each to the same
test tasks by policy gradient steps, and writes into its folder, besides what
`experiments.shared.runs` lists, a folder per method with checkpoints and ``history.csv``, and::

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

import keras
import numpy as np
import tabulate
import tensorflow as tf

import keras_maml.rl
from experiments.shared.agent_settings import ADAPTING, TITLES, Problem, Settings, check, rates
from experiments.shared.agent_training import begin_with, epoch_returns, has_begun, train_agent
from experiments.shared.command_line import run_command, with_defaults
from experiments.shared.runs import Run
from keras_maml import Workers, evaluation, plots
from keras_maml.algorithm.update_rules import GradientDescent
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
from keras_maml.words import counted

# Seeds of tasks: training takes (seed, iteration), the test this one.
TEST = 1_000_000
PATHS = 8  # rollouts drawn in a plane
FILM_EVERY = 4  # steps from one picture of a film to the next


@dataclasses.dataclass(frozen=True)
class Files:
    """Where things are."""

    output: str | None = None  # folder of the run; None: runs/TASK
    film: bool = False  # write films of a robot before and after adaptation


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
        on_workers=True,
    )


def run(
    problem: Problem, settings: Settings, files: Files, workers: Workers | None = None
) -> dict[str, Any] | None:
    """Trains, tests and reports; or continues, or shows what is there.

    Args:
        problem: What to learn.
        settings: All that the results depend on.
        files: Where the results go.
        workers: The processes that train together, by default this one: each has a share of the
            tasks. Worker 0 does the rest, and trains baselines, which have no tasks, alone.

    Returns:
        The content of ``results.json``; None on other workers than the first.

    Raises:
        FileExistsError: The folder holds another run, or something else.
        ValueError: A setting is out of range.
    """
    workers = workers or Workers()
    check_start(problem, settings, files)
    if settings.tasks % workers.count:
        raise ValueError(
            f"tasks must be a multiple of the {workers.count} workers, got {settings.tasks}."
        )
    this = Run(folder_of(settings, files), settings, workers=workers)
    learned = {}
    if not this.has_finished():
        learned = {
            method: train(this, problem, settings, method, workers)
            for method in settings.methods
            if this.is_first or method in ADAPTING
        }
    if not this.is_first:
        return None
    if this.results is None:
        report(this, problem, settings, learned)
    if files.film:
        for method in settings.methods:
            film(this, problem, settings, method)
    print((this.folder / "results.txt").read_text())
    print(f"Results, learning curves and checkpoints: {this.folder}")
    return this.results


def folder_of(settings: Settings, files: Files) -> pathlib.Path:
    """Returns the folder of the run."""
    return pathlib.Path(files.output or f"runs/{settings.task}")


def check_start(problem: Problem, settings: Settings, files: Files) -> None:
    """Fails before anything is written, if a setting is out of range or nothing can be drawn."""
    check(settings)
    options = {"render_mode": "rgb_array"} if files.film else {}
    for method in settings.methods:
        environment = make_environment(problem, settings, method, 1, **options)
        agent = make_agent(settings, method, environment, 1)
        initial = initial_of(settings, method)
        if initial and not has_begun(folder_of(settings, files) / method):
            begin_with(agent, initial)
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
    workers: Workers | None = None,
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
    adapts, proximal = method in ADAPTING, method == "promp"
    return MetaPolicyGradientAgent(
        time_steps,
        actions,
        model,
        tasks=tasks,
        inner_learning_rate=settings.inner_learning_rate,
        inner_steps=settings.inner_steps if adapts else 0,
        outer=Proximal() if proximal else trust_region(settings, method),
        first_order=method == "first-order",
        discount=settings.discount,
        gae_lambda=settings.gae_lambda,
        inner_gae_lambda=settings.inner_gae_lambda,
        baseline=settings.baseline,
        inner_loss="likelihood_ratio" if proximal else settings.inner_loss,
        workers=workers,
    )


def trust_region(settings: Settings, method: str) -> TrustRegion:
    """Returns the outer step of a method."""
    max_kl, final = settings.max_kl, settings.final_max_kl
    if final is not None:
        steps = settings.iterations if method in ADAPTING else settings.baseline_iterations
        max_kl = keras.optimizers.schedules.PolynomialDecay(max_kl, steps, final)
    return TrustRegion(
        max_kl=max_kl,
        iterations=settings.cg_iterations,
        momentum=settings.momentum,
        min_gain_ratio=settings.min_gain_ratio,
        fisher_stride=settings.fisher_stride,
    )


def train(
    this: Run, problem: Problem, settings: Settings, method: str, workers: Workers | None = None
) -> tuple[MetaPolicyGradientAgent, list[dict[str, float]]]:
    """Trains a method, or continues, or loads what was trained.

    Args:
        this: The run.
        problem: What to learn.
        settings: Those of the run.
        method: One of them.
        workers: Those who train it together if it has tasks; by default this process alone.

    Returns:
        The agent, with the weights of the epoch with the best return, and its history.
    """
    adapts = method in ADAPTING
    tasks, rollouts = (
        (settings.tasks, settings.rollouts) if adapts else (1, settings.baseline_rollouts)
    )
    workers = workers if adapts else None
    share = tasks if workers is None else tasks // workers.count
    environment = make_environment(problem, settings, method, share * rollouts)
    agent = make_agent(settings, method, environment, share, workers=workers)
    if method == "random":
        return agent, []
    sampler = Sampler(environment, agent.collect_policy, steps=settings.horizon)
    history = train_agent(
        this.folder / method,
        agent,
        sampler,
        tasks=tasks_of_iteration(settings, method),
        iterations=settings.iterations if adapts else settings.baseline_iterations,
        epoch_iterations=settings.epoch_iterations,
        seed=settings.seed,
        tensorboard=this.folder / "tensorboard" / method,
        initial=initial_of(settings, method),
    )
    return agent, history


def initial_of(settings: Settings, method: str) -> pathlib.Path | None:
    """Returns whose weights the training of a method begins with; None for random ones."""
    named = settings.initial_policy is not None and method != "random"
    return pathlib.Path(settings.initial_policy, method) if named else None


def tasks_of_iteration(settings: Settings, method: str) -> int:
    """Returns how many tasks an iteration draws: of what does not adapt, one for each rollout."""
    return settings.tasks if method in ADAPTING else settings.baseline_rollouts


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
            tasks = tasks_of_iteration(settings, method)
            epochs = epoch_returns(history, settings.epoch_iterations, tasks)
            training[method] = {
                "iterations": len(history),
                "hours": round(history[-1]["seconds"] / 3600, 2),
                "skipped": sum(row["accepted"] != 1 for row in history),
                "iterations_of_best_epoch": int(np.argmax(epochs) + 1) * settings.epoch_iterations,
                "return_of_best_epoch": float(epochs.max()),
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
    headers = ["method", "iterations", *[counted(step, "step") for step in steps]]
    title = (
        f"{problem.title}: return before adaptation and after every gradient step, "
        f"{settings.test_tasks} test tasks, {settings.test_rollouts} rollouts each, mean and 95 % "
        f"interval over tasks; seed {settings.seed}.\n"
    )
    if settings.initial_policy is not None:
        title += (
            f"begun with the policies of {settings.initial_policy}, whose training comes on top\n"
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
    after = f"after {counted(steps, 'gradient step')}"
    label = after if steps else "without adaptation"
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
    after = f"after {counted(steps, 'step')}"
    names = ["before", after] if steps else [TITLES[method]]
    seen = make_environment(problem, settings, method, len(names), render_mode="rgb_array")
    policy = TaskPolicy(
        agent.time_step_spec, agent.action_spec, agent.model, tasks=len(names), greedy=True
    )
    initial = [tf.convert_to_tensor(value) for value in agent.model.trainable_variables]
    for number in dict.fromkeys((0, int(distances.argmax()))):
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
