"""Reptile: towards the adapted weights."""

import keras

from keras_maml.algorithm.meta_gradient import MetaGradient


@keras.saving.register_keras_serializable("keras_maml")
class Reptile(MetaGradient):
    """The way back from the adapted weights: no derivative of the inner loop at all.

        g = theta - theta_S,    so that an SGD step with rate epsilon is the paper's
        theta <- theta + epsilon mean over tasks of (theta_S - theta).

    The query set is measured only: episodes may consist of support sets alone, ``((x, y),)``, and
    are then measured by these. All trained weights are to be adapted, and an update rule cannot
    learn.

    Source: Nichol, Achiam, Schulman, On First-Order Meta-Learning Algorithms, 2018, in
    its version with batches of tasks.
    The authors' code takes inner steps on minibatches of a support set of more examples than in
    tests, by Adam with ``beta_1=0``; here an inner step takes the whole support set, and every
    task begins with new moments.
    """

    needs_query = False

    def of_task(self, run, inner, make_task, parameters, state, step_weights):
        """Adapts to one task; see `MetaGradient`."""
        self._refuse(parameters, step_weights, shared=False)
        carry, outcome = inner.adapt_and_measure(make_task(), parameters, state, None)
        pairs = zip(parameters.initial, carry.fast, strict=True)
        return outcome, [initial - fast for initial, fast in pairs], carry.state
