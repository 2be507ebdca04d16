"""Returns of a policy before adaptation and after every gradient step, over many tasks."""

from collections.abc import Sequence

import numpy as np

from keras_maml.algorithm.update_rules import UpdateRule
from keras_maml.progress import progress
from keras_maml.reporting.evaluation import Evaluation
from keras_maml.rl.meta_policy_gradient import MetaPolicyGradientAgent
from keras_maml.rl.sampling import Sampler, begin_adaptation, episode_returns


def evaluate(
    agent: MetaPolicyGradientAgent,
    sampler: Sampler,
    tasks: np.ndarray,
    update_rules: Sequence[UpdateRule],
    *,
    seed: int,
) -> Evaluation:
    """Adapts to tasks step by step, with fresh rollouts for every step.

    Args:
        agent: Its collect policy acts and adapts.
        sampler: Draws with the agent's collect policy.
        tasks: ``[agent.tasks, ...]``.
        update_rules: One per step, so that the rate can differ between steps.
        seed: Of resets and actions.

    Returns:
        The metric ``"return"``: for every task and step the mean undiscounted return of its
        rollouts. The returns after the last step are of rollouts of their own.

    Raises:
        ValueError: The tasks cannot be divided, or the sampler draws with another policy.
        FloatingPointError: The adaptation of a task gave weights that are not finite.

    Source: Finn et al. 2017, section 5.3 and figure 5.
    """
    begin_adaptation(agent, sampler, tasks)
    columns = []
    count = len(update_rules) + 1
    for step in progress(range(count), count, "Drawing rollouts", "steps"):
        trajectory = sampler.draw(seed, step)
        columns.append(episode_returns(trajectory, agent.tasks))
        if step < len(update_rules):
            agent.adapt(trajectory, update_rules[step])
    return Evaluation({"adaptation": {"return": np.stack(columns, axis=1)}})
