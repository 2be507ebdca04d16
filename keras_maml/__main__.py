"""``python -m keras_maml``."""

import sys

from keras_maml.cli import main

if __name__ == "__main__":
    sys.exit(main())
