"""BibTeX of the parts that a learner consists of."""

from typing import Any

from keras_maml.algorithm import meta_gradients, query_losses, update_rules
from keras_maml.layers import ContextParameters, PerStepBatchNormalization, SharedHead
from keras_maml.private_keras import flatten_layers

# Authors, title, venue, year, by key; a venue "arXiv:..." makes a miscellaneous entry.
PAPERS = {
    "finn2017maml": (
        "Finn, Chelsea and Abbeel, Pieter and Levine, Sergey",
        "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks",
        "International Conference on Machine Learning",
        2017,
    ),
    "li2017metasgd": (
        "Li, Zhenguo and Zhou, Fengwei and Chen, Fei and Li, Hang",
        "Meta-{SGD}: Learning to Learn Quickly for Few-Shot Learning",
        "arXiv:1707.09835",
        2017,
    ),
    "nichol2018reptile": (
        "Nichol, Alex and Achiam, Joshua and Schulman, John",
        "On First-Order Meta-Learning Algorithms",
        "arXiv:1803.02999",
        2018,
    ),
    "antoniou2019mamlpp": (
        "Antoniou, Antreas and Edwards, Harrison and Storkey, Amos",
        "How to Train Your {MAML}",
        "International Conference on Learning Representations",
        2019,
    ),
    "zintgraf2019cavia": (
        "Zintgraf, Luisa and Shiarlis, Kyriacos and Kurin, Vitaly and Hofmann, Katja and "
        "Whiteson, Shimon",
        "Fast Context Adaptation via Meta-Learning",
        "International Conference on Machine Learning",
        2019,
    ),
    "park2019metacurvature": (
        "Park, Eunbyung and Oliva, Junier B.",
        "Meta-Curvature",
        "Advances in Neural Information Processing Systems",
        2019,
    ),
    "rajeswaran2019imaml": (
        "Rajeswaran, Aravind and Finn, Chelsea and Kakade, Sham M. and Levine, Sergey",
        "Meta-Learning with Implicit Gradients",
        "Advances in Neural Information Processing Systems",
        2019,
    ),
    "raghu2020anil": (
        "Raghu, Aniruddh and Raghu, Maithra and Bengio, Samy and Vinyals, Oriol",
        "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of {MAML}",
        "International Conference on Learning Representations",
        2020,
    ),
    "oh2021boil": (
        "Oh, Jaehoon and Yoo, Hyungjun and Kim, ChangHwan and Yun, Se-Young",
        "{BOIL}: Towards Representation Change for Few-Shot Learning",
        "International Conference on Learning Representations",
        2021,
    ),
    "ye2022unicorn": (
        "Ye, Han-Jia and Chao, Wei-Lun",
        "How to Train Your {MAML} to Excel in Few-Shot Classification",
        "International Conference on Learning Representations",
        2022,
    ),
    "kingma2015adam": (
        "Kingma, Diederik P. and Ba, Jimmy",
        "Adam: A Method for Stochastic Optimization",
        "International Conference on Learning Representations",
        2015,
    ),
}
_OF_CLASS = {
    update_rules.Adam: "kingma2015adam",
    update_rules.MetaSGD: "li2017metasgd",
    update_rules.PerLayerPerStep: "antoniou2019mamlpp",
    update_rules.MetaCurvature: "park2019metacurvature",
    query_losses.MultiStep: "antoniou2019mamlpp",
    meta_gradients.Exact: "finn2017maml",
    meta_gradients.FirstOrder: "finn2017maml",
    meta_gradients.Reptile: "nichol2018reptile",
    meta_gradients.Implicit: "rajeswaran2019imaml",
    PerStepBatchNormalization: "antoniou2019mamlpp",
    ContextParameters: "zintgraf2019cavia",
    SharedHead: "ye2022unicorn",
}
_OF_ADAPTED_LAYERS = {"head": "raghu2020anil", "body": "oh2021boil"}


def entries(learner: Any) -> list[str]:
    """Returns the BibTeX entries of what a learner uses, in the order of the years.

    Args:
        learner: A `keras_maml.MAML`.

    Example:
        >>> import keras
        >>> import keras_maml
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> for entry in entries(keras_maml.MetaSGD(model)):
        ...     print(entry.splitlines()[0])
        @inproceedings{finn2017maml,
        @misc{li2017metasgd,
    """
    parts = [learner.meta_gradient, learner.update_rule, learner.query_loss]
    keys = {_OF_CLASS.get(type(part)) for part in (*parts, *flatten_layers(learner.model))}
    if isinstance(learner.adapted_layers, str):
        keys.add(_OF_ADAPTED_LAYERS.get(learner.adapted_layers))
    return [_entry(key) for key in sorted(keys - {None}, key=lambda key: (PAPERS[key][3], key))]


def _entry(key: str) -> str:
    authors, title, venue, year = PAPERS[key]
    preprint = venue.startswith("arXiv:")
    kind, place = ("misc", "howpublished") if preprint else ("inproceedings", "booktitle")
    fields = {"author": authors, "title": title, place: venue, "year": year}
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
