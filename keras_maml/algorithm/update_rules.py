"""Update rules: how one inner step turns gradients into new fast weights.

A rule is a Keras layer, so that whatever it learns (rates, preconditioners) is built, trained by
the outer optimizer, saved and restored with the learner. A rule of one's own defines `step`, and
`build` if it learns anything::

    @keras.saving.register_keras_serializable("my")
    class ScaledDescent(keras_maml.update_rules.UpdateRule):
        def build(self, shapes):
            self.scales = [self.add_weight(shape=(), initializer="ones") for _ in shapes]

        def step(self, weights, gradients, slots, step):
            pairs = zip(weights, gradients, self.scales, strict=True)
            return [w - 0.1 * s * g for w, g, s in pairs], slots
"""

from keras_maml.algorithm.fixed_rules import Adam, GradientDescent, Momentum
from keras_maml.algorithm.learned_rules import MetaCurvature, MetaSGD, PerLayerPerStep
from keras_maml.algorithm.update_rule import UpdateRule, checked_rate

__all__ = [
    "Adam",
    "GradientDescent",
    "MetaCurvature",
    "MetaSGD",
    "Momentum",
    "PerLayerPerStep",
    "UpdateRule",
    "checked_rate",
]
