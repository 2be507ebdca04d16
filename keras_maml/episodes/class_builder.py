"""The tensorflow_datasets builder that all our image sets share. Importing it imports tfds."""

import abc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from keras_maml.episodes.image_classes import ImageClasses, aligned_empty

RECORD_BYTES = 4 * 2**20
"""A class is stored in records of about this size, so that reading needs no second copy."""


class ImageClassesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Stores decoded images class by class: preparing takes time once, reading back does not.

    A record holds images of one class, uint8, as they will be in memory. Every record has a
    checksum (that of TFRecord), and the metadata say how many images each class must have, so that
    reading finds any damage.
    """

    # Whatever changes the pixels makes a new version, so that they are prepared again.
    VERSION = tfds.core.Version("1.0.1")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Pass the folder that holds the images."

    @abc.abstractmethod
    def read_source(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Iterable[tuple[str, np.ndarray]]]:
        """Reads what is to be stored.

        Args:
            dl_manager: Downloads, and knows the user's folder (``manual_dir``).

        Returns:
            For each split, the name of each class with its images, uint8 ``[n, H, W, C]``; a
            class may come in several parts.
        """

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "name": tfds.features.Text(),
            "first": np.int64,
            "images": tfds.features.Tensor(shape=(None,) * 4, dtype=np.uint8, encoding="bytes"),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(classes={}),
        )

    def _log_download_bytes(self) -> None:
        """Says nothing: most sets are not downloaded; `PreparedImages` says what is done."""

    _log_download_done = _log_download_bytes

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Any]:
        splits = self.read_source(dl_manager)
        # Downloads have had their bars. The following ones count records, whose total is not known.
        tfds.display_progress_bar(False)
        return {split: self._generate_examples(split, classes) for split, classes in splits.items()}

    def _generate_examples(
        self, split: str, classes: Iterable[tuple[str, np.ndarray]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        sizes = self.info.metadata["classes"].setdefault(split, {})
        for name, images in classes:
            self.info.metadata["shape"] = list(images.shape[1:])
            step = max(1, RECORD_BYTES // images[0].nbytes)
            for chunk in range(0, len(images), step):
                part, first = images[chunk : chunk + step], sizes.get(name, 0)
                sizes[name] = first + len(part)
                yield f"{first} {name}", {"name": name, "first": first, "images": part}

    def class_sizes(self, split: str) -> dict[str, int]:
        """How many images each class of a prepared split has, sorted by name."""
        return dict(sorted(self.info.metadata["classes"][split].items()))

    def read_classes(self, split: str, names: Sequence[str]) -> ImageClasses:
        """Reads some classes of a prepared split, in the order of the names.

        Raises:
            ValueError: If images are missing.
            tf.errors.OpError: If a file is missing or damaged.
        """
        sizes = self.class_sizes(split)
        counts = [sizes[name] for name in names]
        starts = dict(zip(names, np.cumsum([0, *counts]), strict=False))
        images = aligned_empty([sum(counts), *self.info.metadata["shape"]])
        read = 0
        records = self.as_dataset(
            split=split,
            read_config=tfds.ReadConfig(interleave_cycle_length=2, try_autocache=False),
            decoders={"images": tfds.decode.SkipDecoding()},  # They are bytes already.
        )
        for record in records.as_numpy_iterator():
            name = record["name"].decode()
            if name in starts:
                content, shape = record["images"]["value"], record["images"]["shape"]
                first = starts[name] + record["first"]
                images[first : first + shape[0]] = np.frombuffer(content, "uint8").reshape(shape)
                read += shape[0]
        if read != len(images):
            raise ValueError(f"it holds {read} of {len(images)} images.")
        return ImageClasses(images, tuple(names), tuple(counts))
