"""Lists the packages: those that are found, and the folder of pretrained learners."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["keras_maml*"]), "keras_maml.saved_models"])
