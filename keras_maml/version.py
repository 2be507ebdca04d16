"""The version, in the one place that packaging, citations and ``keras_maml.__version__`` read."""

__version__ = "0.1.0"
