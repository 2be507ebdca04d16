"""A learner for many customers: each adapts it once, keeps a kilobyte, and is served from that."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np

from keras_maml import validation
from keras_maml.learners.maml import MAML
from keras_maml.serving.opened import Opened, open_learner
from keras_maml.serving.signatures import input_name, named
from keras_maml.serving.stores import MemoryStore, Store, check_name

_FORMATS = {b"h": np.dtype("<f2"), b"s": np.dtype("<f4"), b"d": np.dtype("<f8")}


class UnknownCustomerError(LookupError):
    """A customer has no weights."""


class OtherLearnerError(ValueError):
    """A customer's weights are of another learner, of before checksums changed, or damaged."""


class Personalizer:
    """Adapts a learner to customers, and predicts with what each of them adapted.

    The learner is taken as it is when the personalizer is made; after more training, make another.
    Weights that a store holds of another learner, or of this one before, are refused.

    Args:
        source: A compiled learner that has seen an episode, a SavedModel that `export` wrote, or
            what `open_learner` returns.
        store: One of `keras_maml.serving.stores`; by default in memory.
        half_precision: Whether to keep weights as float16: half the size, about three digits.
        batch_size: How many customers are adapted or predicted for at once.
        steps: The inner steps; see `open_learner`. What it returned has its own.
        batch_normalization: See `export`; pass ``"inductive"`` unless every request holds a whole
            query set. What `open_learner` returned has its own.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> learner = MAML(model, inner_learning_rate=0.1, evaluation_steps=50)
        >>> learner.compile(loss="mean_squared_error")
        >>> x = np.linspace(-1, 1, 10)[:, None]
        >>> _ = learner.adapt(x, x)
        >>> personalizer = Personalizer(learner)
        >>> personalizer.adapt("ada", x, 3 * x)
        >>> personalizer.predict("ada", [[2.0]]).round().tolist()
        [[6.0]]
        >>> personalizer.customers(), personalizer.forget("ada"), personalizer.customers()
        (['ada'], True, [])
    """

    def __init__(
        self,
        source: MAML | Opened | str | os.PathLike,
        store: Store | None = None,
        *,
        half_precision: bool = False,
        batch_size: int = 256,
        steps: int | None = None,
        batch_normalization: str | None = None,
    ) -> None:
        validation.check_flag("half_precision", half_precision)
        validation.check_count("batch_size", batch_size, minimum=1)
        if not isinstance(source, Opened):
            how = {"steps": steps, "batch_normalization": batch_normalization}
            source = open_learner(source, **how)
        elif steps is not None or batch_normalization is not None:
            raise ValueError(
                "The steps and the normalisation of what open_learner returned are those it has: "
                "pass them to open_learner."
            )
        lacking = {"adapt", "predict_with"} - set(source.signatures)
        if lacking:
            raise ValueError(f"The SavedModel lacks {sorted(lacking)}: export it with them.")
        self.opened = source
        self.store = MemoryStore() if store is None else store
        self._half_precision, self._batch_size = half_precision, batch_size
        self._version = bytes.fromhex(source.checksum)

    def adapt(self, customer: str, x: Any, y: Any) -> None:
        """Adapts to a customer's examples, from the meta-learned initialisation.

        Args:
            customer: A name of 1 to 80 bytes.
            x: The support inputs ``[examples, ...]``, or a nest of such.
            y: Their targets.

        Raises:
            ValueError: The examples do not fit the model, or adaptation does not stay finite.
        """
        x, y = self._nest("adapt", "x_support", x), self._nest("adapt", "y_support", y)
        self.adapt_many([customer], _with_axis(x), _with_axis(y))

    def adapt_many(self, customers: Sequence[str], x: Any, y: Any) -> None:
        """Adapts to many customers at once.

        Args:
            customers: Their names, each once.
            x: The support inputs ``[customers, examples, ...]``, or a nest of such.
            y: Their targets.

        Raises:
            ValueError: As `adapt`; then no customer of the batch is kept.
        """
        customers = _names(customers)
        for customer in customers:
            check_name(customer)
        repeated = sorted(name for name, times in Counter(customers).items() if times > 1)
        if repeated:
            raise ValueError(
                f"customers must name each once, got {repeated[:5]} more than once: join the "
                "examples of a customer, or adapt to the last of them."
            )
        nests = {"x_support": x, "y_support": y}
        inputs: dict[str, Any] = {}
        for name, nest in nests.items():
            inputs |= named(name, self._nest("adapt", name, nest))
        records = {}
        for names, vectors in self._batches(customers, inputs, "adapt"):
            vectors = vectors["weights"]
            dtype = np.dtype("<f2") if self._half_precision else vectors.dtype.newbyteorder("<")
            with np.errstate(over="ignore"):  # found below
                kept = vectors.astype(dtype)
            for name, whole, vector in zip(names, vectors, kept, strict=True):
                if not np.isfinite(whole).all():
                    raise ValueError(
                        f"Adapting to {name!r} gave weights that are not finite: check the scale "
                        "of the examples and the range of the targets."
                    )
                if not np.isfinite(vector).all():
                    raise ValueError(
                        f"Adapting to {name!r} gave numbers up to {np.abs(whole).max():.3g}, which "
                        "float16 does not hold: pass half_precision=False, or scale the examples."
                    )
                code = next(code for code, known in _FORMATS.items() if known == dtype)
                records[name] = self._version + code + vector.tobytes()
        self.store.put(records)

    def predict(self, customer: str, x: Any) -> Any:
        """Predicts with a customer's weights.

        Args:
            customer: The name.
            x: Inputs ``[queries, ...]``, or a nest of such.

        Returns:
            Predictions ``[queries, ...]``; a dictionary of such if the model has several outputs.

        Raises:
            UnknownCustomerError: The customer has no weights.
            OtherLearnerError: They were adapted from another learner, or are damaged.
            ValueError: The inputs do not fit the model.
        """
        x = self._nest("predict_with", "x", x)
        answers = self.predict_many([customer], _with_axis(x))
        if isinstance(answers, dict):
            return {name: answer[0] for name, answer in answers.items()}
        return answers[0]

    def predict_many(self, customers: Sequence[str], x: Any) -> Any:
        """Predicts for many customers at once, each with weights of their own.

        Args:
            customers: Their names; a name may come more than once.
            x: Inputs ``[customers, queries, ...]``, or a nest of such.

        Returns:
            Predictions ``[customers, queries, ...]``, or a dictionary of such.

        Raises:
            UnknownCustomerError: As `predict`.
            OtherLearnerError: As `predict`.
            ValueError: As `predict`.
        """
        customers = _names(customers)
        records = self.store.get(customers)
        pairs = zip(customers, records, strict=True)
        weights = np.stack([self._vector(name, record) for name, record in pairs])
        inputs = named("x", self._nest("predict_with", "x", x)) | {"weights": weights}
        parts = [part for _, part in self._batches(customers, inputs, "predict_with")]
        answers = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return answers["predictions"] if set(answers) == {"predictions"} else answers

    def forget(self, customer: str) -> bool:
        """Forgets a customer; returns whether there was anything to forget."""
        return self.store.delete(customer)

    def customers(self) -> list[str]:
        """Returns the names of all customers, sorted."""
        return self.store.names()

    def _nest(self, signature: str, name: str, value: Any) -> Any:
        """Returns a nest of arrays: a list is one where the signature says so, otherwise rows."""
        specs = self.opened.signatures[signature].structured_input_signature[1]
        if isinstance(value, dict):
            parts = value.items()
            return {k: self._nest(signature, input_name(name, k), part) for k, part in parts}
        if isinstance(value, tuple) or (isinstance(value, list) and input_name(name, 0) in specs):
            places = enumerate(value)
            return tuple(self._nest(signature, input_name(name, i), part) for i, part in places)
        return np.asarray(value)

    def _batches(self, customers: Sequence[str], inputs: dict[str, Any], signature: str) -> Any:
        """Calls a signature for a few customers at a time; yields their names and its answers."""
        if not len(customers):
            raise ValueError("There must be at least one customer.")
        for name, value in inputs.items():
            if np.ndim(value) == 0 or len(value) != len(customers):
                raise ValueError(
                    f"{name} must have an entry for each of {len(customers)} customers."
                )
        for start in range(0, len(customers), self._batch_size):
            part = slice(start, start + self._batch_size)
            batch = {name: value[part] for name, value in inputs.items()}
            yield customers[part], self.opened.call(signature, batch)

    def _vector(self, customer: str, record: bytes | None) -> np.ndarray:
        if record is None:
            raise UnknownCustomerError(f"There are no weights of {customer!r}: call adapt before.")
        length = len(self._version)
        if record[:length] != self._version:
            raise OtherLearnerError(
                f"The weights of {customer!r} were adapted from another learner: adapt again."
            )
        dtype, numbers = _FORMATS.get(record[length : length + 1]), record[length + 1 :]
        if dtype is None or len(numbers) != self.opened.size * dtype.itemsize:
            raise OtherLearnerError(
                f"The record of {customer!r} is damaged: it has {len(numbers)} bytes after its "
                f"head, for {self.opened.size} numbers. Adapt again."
            )
        return np.frombuffer(numbers, dtype)


def _names(customers: Any) -> list[str]:
    if isinstance(customers, (str, bytes, Set, Mapping)):
        raise ValueError(
            f"customers must be a list of names in the order of their examples, got {customers!r}."
        )
    return list(customers)


def _with_axis(nest: Any) -> Any:
    """Puts an axis of one customer before the examples."""
    return keras.tree.map_structure(lambda array: array[None], nest)
