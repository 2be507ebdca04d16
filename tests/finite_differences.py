"""A learner's meta-gradient beside central differences of its loss."""

import numpy as np


def flat(tensors):
    return np.concatenate([np.ravel(tensor) for tensor in tensors])


def derivative(learner, episodes, directions, width=1e-5):
    """The query loss's derivative along directions: a central difference of fourth order."""
    centres = [variable.numpy() for variable in learner.trainable_variables]
    losses = {}
    for offset in (-2, -1, 1, 2):
        for variable, centre, direction in zip(
            learner.trainable_variables, centres, directions, strict=True
        ):
            variable.assign(centre + offset * width * direction)
        losses[offset] = float(learner.meta_gradients(*episodes)[0])
    for variable, centre in zip(learner.trainable_variables, centres, strict=True):
        variable.assign(centre)
    near, far = losses[1] - losses[-1], losses[2] - losses[-2]
    return (8 * near - far) / (12 * width)


def assert_equals_finite_differences(learner, gradients, episodes):
    # Every variable moves at once, each as far as any other. Directions of the gradient's own
    # signs keep the contributions of different variables from cancelling.
    random = np.random.default_rng(1)
    directions = []
    for gradient in gradients:
        signs = np.where(gradient == 0, random.choice([-1, 1], gradient.shape), np.sign(gradient))
        direction = signs * random.uniform(0.5, 1.5, gradient.shape)
        directions.append(direction / np.linalg.norm(direction))
    exact = flat(gradients) @ flat(directions)
    np.testing.assert_allclose(derivative(learner, episodes, directions), exact, rtol=1e-6)
    if len(directions) <= 5:
        for i, direction in enumerate(directions):
            alone = [d * (i == j) for j, d in enumerate(directions)]
            np.testing.assert_allclose(
                derivative(learner, episodes, alone),
                np.sum(gradients[i] * direction),
                rtol=1e-5,
                atol=1e-6 * exact,
            )
