"""Settings of meta-reinforcement learning: the methods, their defaults, and what is known.

A command's task chooses the defaults of the rest.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.shared.runs import check_epochs
from keras_maml.rl.baseline import BASELINES
from keras_maml.validation import check_choice, check_count, check_number, check_positive

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
    final_max_kl: float | None = None  # if given, max_kl goes there linearly until the end
    min_gain_ratio: float = 0.0  # share of the promised gain that an outer step must bring
    fisher_stride: int = 1  # products with the Hessian take every so-many-th transition
    cg_iterations: int = 10  # of conjugate gradient, for its direction; promp has none
    momentum: float = 0.0  # of the gradients that outer steps follow; promp has none
    discount: float = 0.99  # per step
    gae_lambda: float = 1.0  # of advantage estimation
    inner_gae_lambda: float | None = None  # the same in inner steps; None: the same value
    baseline: str = "linear"  # of returns, or standardized or time; see keras_maml.rl.baseline
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
    # A folder of a run whose policies training begins with.
    initial_policy: str | None = None


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


def check(settings: Settings) -> None:
    """Raises ValueError where a setting is out of range, as far as nothing else checks it."""
    unknown = sorted({*settings.methods} - {*METHODS})
    if unknown or not settings.methods:
        raise ValueError(f"methods must be some of {METHODS}, got {settings.methods!r}.")
    for iterations in (settings.iterations, settings.baseline_iterations):
        check_epochs(iterations, settings.epoch_iterations)
    for name in ("tasks", "rollouts", "baseline_rollouts", "test_tasks", "test_rollouts"):
        check_count(name, getattr(settings, name), minimum=1)
    check_count("test_steps", settings.test_steps)
    check_choice("baseline", settings.baseline, BASELINES)
    check_count("seed", settings.seed)
    check_positive("max_kl", settings.max_kl)
    if settings.initial_policy == "":
        raise ValueError(
            "initial_policy must be the folder of a run, got an empty name. Leave it out to begin "
            "with random weights."
        )
    if settings.final_max_kl is not None:
        check_positive("final_max_kl", settings.final_max_kl)
    for name in ("later", "", "pretrained", "random"):
        name = f"test_{name}_rate".replace("__", "_")
        check_number(name, getattr(settings, name), lambda rate: rate >= 0, "at least 0")


def rates(settings: Settings, method: str) -> list[float]:
    """Returns the rate of every gradient step of the test (halved in the paper, appendix A.2)."""
    if method == "oracle":
        return []
    own = {"pretrained": settings.test_pretrained_rate, "random": settings.test_random_rate}
    first = own.get(method, settings.test_rate)
    later = settings.test_later_rate * first
    return [first if step == 0 else later for step in range(settings.test_steps)]
