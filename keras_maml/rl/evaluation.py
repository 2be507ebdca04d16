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
        tasks: ``[n * agent.tasks, ...]``: as many after each other as the agent has.
        update_rules: One per step, so that the rate can differ between steps.
        seed: Of resets and actions.

    Returns:
        The metric ``"return"``: for every task and step the mean undiscounted return of its
        rollouts. The returns after the last step are of rollouts of their own.

    Raises:
        ValueError: The tasks are no multiple of the agent's, or the sampler draws with another
            policy, or update rules of several kinds keep something from step to step.
        FloatingPointError: The adaptation of a task gave weights that are not finite.

    Source: Finn et al. 2017, section 5.3 and figure 5.
    """
    agent.check_tasks(tasks, multiple=True)
    agent.check_update_rules(update_rules)
    count, returns = len(update_rules) + 1, []
    draws = range(len(tasks) // agent.tasks * count)
    for draw in progress(draws, len(draws), "Drawing rollouts", "steps"):
        batch, step = divmod(draw, count)
        if step == 0:
            own = tasks[batch * agent.tasks : (batch + 1) * agent.tasks]
            begin_adaptation(agent, sampler, own)
        trajectory = sampler.draw(seed, draw)
        returns.append(episode_returns(trajectory, agent.tasks))
        if step < len(update_rules):
            agent.adapt(trajectory, update_rules[step])
    by_task = np.reshape(returns, [-1, count, agent.tasks]).swapaxes(1, 2).reshape(-1, count)
    return Evaluation({"adaptation": {"return": by_task}})
