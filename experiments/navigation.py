"""2-D navigation: a point learns to find a goal it is not told (Finn et al. 2017, section 5.3).

python -m experiments.navigation
python -m experiments.navigation --methods maml first-order --iterations 100
"""

from experiments.shared.agent_settings import Problem, Settings
from experiments.shared.reinforcement_learning import main

PROBLEM = Problem(
    title="2-D navigation",
    environment="keras_maml/Navigation2D-v0",
    # The number of iterations is that of the authors' script; the returns stop rising before. The
    # paper halves the rate after the first gradient step; 0.4 of it did a little better on tasks
    # that are in no test, on which the rates of the baselines were chosen, too.
    settings=Settings(
        iterations=100,
        baseline_iterations=200,
        test_later_rate=0.4,
        test_pretrained_rate=0.05,
        test_random_rate=1.0,
    ),
    # Mean returns over 40 tasks, from the result files of the authors' code (maml_rl).
    published={
        "maml": (-40.41, -11.68, -3.33, -3.23, -3.35),
        "random": (-82.66, -57.96, -53.84, -46.81, -42.91),
        "oracle": (-2.29,),
    },
    plane=True,
)

if __name__ == "__main__":
    main("navigation", __doc__, {"navigation": PROBLEM})
