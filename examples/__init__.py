"""Short programs for one's own data and environments."""

import experiments  # noqa: F401 (imports TensorFlow without the lines its libraries print)
