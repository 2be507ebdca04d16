"""Which classes a data set must have, and which of them belong to a split."""

import random
from collections.abc import Mapping, Sequence

from keras_maml.validation import check_choice

SPLITS = ("train", "validation", "test")


def check_class_list(
    found: Mapping[str, int], expected: Sequence[str], *, each: int, where: str, advice: str
) -> None:
    """Checks that a source holds the right classes, by name, with the right number of images.

    Args:
        found: Number of images of each class, by name.
        expected: Names of the classes.
        each: Number of images that each must have.
        where: Names the source, for the error.
        advice: What to do, for the error.

    Raises:
        ValueError: If classes are missing, unexpected or of another size; all are listed, up to
            five of a kind.

    Example:
        >>> check_class_list({"a": 4, "c": 5}, ["a", "b"], each=5, where="x.zip", advice="Look.")
        Traceback (most recent call last):
        ...
        ValueError: x.zip must hold 2 classes with 5 images each, but 1 missing: b; 1 unexpected: \
c; 1 of another size: a (4). Look.
    """
    kinds = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of another size": [
            f"{name} ({found[name]})"
            for name in sorted(set(expected) & set(found))
            if found[name] != each
        ],
    }
    troubles = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names]
    if troubles:
        raise ValueError(
            f"{where} must hold {len(expected)} classes with {each} images each, but "
            f"{'; '.join(troubles)}. {advice}"
        )


def split_classes(
    names: Sequence[str],
    split: str | Sequence[str],
    *,
    fractions: Sequence[float] = (0.64, 0.16, 0.2),
    seed: int = 0,
) -> list[str]:
    """The classes of one split.

    The sorted names are shuffled with ``random.Random(seed)`` and cut by the fractions, rounded to
    whole classes; the test split takes the rest.

    Args:
        names: Names of all classes.
        split: "train", "validation" or "test"; or the classes themselves, by name; numbers stand
            for the names that they are as texts.
        fractions: Share of each of the three; their sum is 1.
        seed: Any integer; each has its own splits.

    Returns:
        The names of the classes.

    Raises:
        ValueError: If there is no such split, a named class is unknown or named twice, or the
            fractions are not three shares of 1.

    Example:
        >>> parts = [split_classes("abcdefghij", split) for split in SPLITS]
        >>> [len(part) for part in parts], sorted(sum(parts, [])) == list("abcdefghij")
        ([6, 2, 2], True)
    """
    if not isinstance(split, str):
        return _chosen(names, [str(name) for name in split])
    check_split(split, fractions)
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    first = round(fractions[0] * len(names))
    second = round((fractions[0] + fractions[1]) * len(names))
    cuts = [0, first, second, len(names)]
    i = SPLITS.index(split)
    return shuffled[cuts[i] : cuts[i + 1]]


def check_split(split: str | Sequence[str], fractions: Sequence[float]) -> None:
    """Checks what can be checked of `split_classes` before the classes are known.

    Raises:
        ValueError: If there is no such split, or the fractions are not three shares of 1.
    """
    if isinstance(split, str):
        check_choice("split", split, SPLITS)
    shares = tuple(fractions)
    if len(shares) != 3 or not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):
        raise ValueError(
            f"fractions must be three shares of train, validation and test that sum to 1, got "
            f"{shares}."
        )


def named_split(split: str | Sequence[str], fractions: Sequence[float]) -> str:
    """Names a split of `split_classes`, for errors.

    Example:
        >>> named_split("test", (0.5, 0.2, 0.3))
        "split='test' with fractions=(0.5, 0.2, 0.3)"
    """
    if isinstance(split, str):
        return f"split={split!r} with fractions={tuple(fractions)}"
    return f"split=[{_listed([repr(name) for name in split])}]"


def _chosen(names: Sequence[str], chosen: list[str]) -> list[str]:
    unknown = sorted(set(chosen) - set(names))
    if unknown or not chosen or len(set(chosen)) != len(chosen):
        trouble = "got no class" if not chosen else "got a class twice"
        trouble = f"does not know {_listed(unknown)}" if unknown else trouble
        raise ValueError(
            f"split must be one of {SPLITS} or a list of different classes of this data set, which "
            f"{trouble}. Its classes are {_listed(sorted(names))}."
        )
    return chosen


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
