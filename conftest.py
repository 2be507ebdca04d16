"""What pytest leaves out: modules whose packages are not installed."""

import importlib.util

collect_ignore = []
if importlib.util.find_spec("tensorflow_serving") is None:  # the extra grpc
    collect_ignore.append("keras_maml/serving/prediction_service.py")
