"""Locomotion: simulated robots learn a speed or a direction (Finn et al. 2017, section 5.3).

    python -m experiments.locomotion --task cheetah-direction
    python -m experiments.locomotion --task ant-velocity --methods maml --film

The task chooses the settings: those of the paper and of the authors' scripts, but for what makes
gradients less noisy (see ``ROBOTS`` and ``ANTS``). Every other option overrides one of them.
"""

from experiments.shared.agent_settings import Problem, Settings
from experiments.shared.reinforcement_learning import main

ROBOTS = {
    "tasks": 40,
    "horizon": 200,
    "inner_learning_rate": 0.1,
    "test_rollouts": 20,
    "test_steps": 3,
    "test_rate": 0.1,
    "test_pretrained_rate": 0.2,
    "test_random_rate": 1.0,
    # What the authors did not do. With their gae_lambda 1, log_likelihood, no momentum and max_kl
    # 0.02, HalfCheetah direction stays at 160 after one step: the gradient of 20 rollouts is too
    # noisy for it.
    "inner_loss": "likelihood_ratio",
    "gae_lambda": 0.95,
    "momentum": 0.5,
    "max_kl": 0.04,
    # An outer step in a third of the time (docs/speed.md); for batches of the sizes here.
    "fisher_stride": 4,
}

# An Ant's observation is large for the few rollouts of a task, so that inner steps had better not
# look far ahead. The outer step, which has all tasks, must, or the gait stays short-sighted
# (docs/results.md).
ANTS = ROBOTS | {"baseline": "standardized", "inner_gae_lambda": 0.8}

# Mean returns over 40 tasks, from the result files of the authors' code (maml_rl).
PROBLEMS = {
    "cheetah-direction": Problem(
        title="HalfCheetah, forward or backward",
        environment="keras_maml/HalfCheetahDirection-v0",
        settings=Settings(task="cheetah-direction", **ROBOTS | {"test_random_rate": 0.5}),
        published={
            "maml": (-50.69, 293.19, 313.48, 315.65),
            "pretrained": (-43.03, -24.75, -12.85, 19.57),
            "random": (-35.73, 21.83, 62.32, 86.18),
            "oracle": (442.69,),
        },
    ),
    "cheetah-velocity": Problem(
        title="HalfCheetah, goal velocity",
        environment="keras_maml/HalfCheetahVelocity-v0",
        settings=Settings(
            task="cheetah-velocity",
            # The authors' checkpoint was trained with 10 rollouts.
            rollouts=10,
            # Below it a gradient step of the same rate goes too far.
            min_std=0.25,
            **ROBOTS | {"test_pretrained_rate": 0.02, "test_random_rate": 0.1},
        ),
        published={
            "maml": (-129.53, -78.57, -66.62, -60.78),
            "pretrained": (-158.00, -135.39, -128.47, -133.61),
            "random": (-254.83, -254.33, -246.79, -230.83),
            "oracle": (-54.47,),
        },
    ),
    "ant-direction": Problem(
        title="Ant, forward or backward",
        environment="keras_maml/AntDirection-v0",
        settings=Settings(
            task="ant-direction",
            **ANTS | {"rollouts": 40, "test_rollouts": 40, "test_later_rate": 0.01},
        ),
        published={
            "maml": (8.66, 499.15, 500.68, 499.11),
            "pretrained": (3.16, 1.27, 6.51, 6.86),
            "random": (3.11, 9.25, 15.96, 26.11),
            "oracle": (524.80,),
        },
    ),
    "ant-velocity": Problem(
        title="Ant, goal velocity",
        environment="keras_maml/AntVelocity-v0",
        settings=Settings(task="ant-velocity", **ANTS),
        published={
            "maml": (30.58, 96.74, 100.06, 101.41),
            "pretrained": (-1.83, 6.11, 8.47, 9.47),
            "random": (-78.64, -62.81, -48.55, -35.56),
            "oracle": (107.89,),
        },
    ),
    "ant-position": Problem(
        title="Ant, goal position",
        environment="keras_maml/AntPosition-v0",
        settings=Settings(task="ant-position", **ANTS),
        published={},  # the authors' code has it, their result files and the paper have not
    ),
}

if __name__ == "__main__":
    main("locomotion", __doc__, PROBLEMS)
