"""The tensorflow_datasets builders of our image sets. Importing this module imports tfds."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import requests
import tensorflow_datasets as tfds

from keras_maml.episodes.class_builder import ImageClassesBuilder
from keras_maml.episodes.image_archives import ImageArchive
from keras_maml.episodes.image_files import read_classes, resize
from keras_maml.episodes.mini_imagenet_source import ADVICE, find_mini_imagenet
from keras_maml.episodes.omniglot_source import (
    DOWNLOAD_ADVICE,
    DOWNLOADS,
    OFFICIAL,
    Edition,
    OmniglotArchives,
    assemble,
    find_archives,
)
from keras_maml.episodes.plain_arrays import is_missing
from keras_maml.progress import progress

PART = 256
"""Images of a class that are put together before they are stored."""

Classes = Iterable[tuple[str, np.ndarray]]


class OmniglotBuilder(ImageClassesBuilder, skip_registration=True):
    """All characters of Omniglot, reduced to 28 x 28 pixels, with ink 255 on paper 0."""

    name = "omniglot_characters"
    url_infos = {
        url: tfds.core.download.checksums.UrlInfo(size, sha256, filename=None)
        for url, size, sha256 in DOWNLOADS.values()
    }

    def __init__(self, *, edition: Edition = OFFICIAL, **settings: Any) -> None:
        """See the base class; the edition is what must be there."""
        self._edition = edition
        super().__init__(**settings)

    def read_source(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Classes]:
        """Reads the archives in the user's folder if there is one, or else downloads them."""
        try:
            paths = find_archives(dl_manager.manual_dir, self._edition)
        except AssertionError:  # That is how tfds says that there is no such folder.
            paths = self._download(dl_manager)
        drawings = OmniglotArchives(paths, self._edition).drawings()
        names, images, self.info.metadata["sha256"] = assemble(drawings, self._edition)
        return {"pooled": zip(names, images[..., None], strict=True)}

    def _download(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Any]:
        urls = {name: url for name, (url, *_) in DOWNLOADS.items()}
        try:
            # Without network tfds would try for minutes.
            requests.head(next(iter(urls.values())), timeout=20)
            return dl_manager.download(urls)
        except Exception as error:  # No network fails in many ways; none of them says what to do.
            raise FileNotFoundError(
                f"Omniglot could not be downloaded ({type(error).__name__}: {error}). "
                f"{DOWNLOAD_ADVICE}"
            ) from error


class MiniImagenetBuilder(ImageClassesBuilder, skip_registration=True):
    """mini-ImageNet with the classes of Ravi and Larochelle, 84 x 84 pixels."""

    name = "mini_imagenet_classes"

    def read_source(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Classes]:
        """Reads whatever form of the data is in the user's folder."""
        try:
            folder = dl_manager.manual_dir
        except AssertionError as error:  # As above.
            raise FileNotFoundError(
                f"mini-ImageNet must be prepared again from its images: pass their folder. {ADVICE}"
            ) from error
        return find_mini_imagenet(folder).splits()


class ImageFolderBuilder(ImageClassesBuilder, skip_registration=True):
    """A folder, or a zip file, with a folder of images per class.

    Args:
        archive: The images.
        size: Height and width to which they are resized.
        channels: 1 for grey, 3 for colour.
    """

    name = "image_folder_classes"
    VERSION = tfds.core.Version("1.1.0")  # large images are reduced while they are decoded

    def __init__(
        self, *, archive: ImageArchive, size: tuple[int, int], channels: int, **settings: Any
    ) -> None:
        """See the class."""
        self._archive, self._size, self._channels = archive, size, channels
        super().__init__(**settings)

    def read_source(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Classes]:
        """Decodes and resizes the images."""
        files = self._archive.by_folder()
        return {
            "pooled": read_classes(self._archive, files, size=self._size, channels=self._channels)
        }


class TfdsClassesBuilder(ImageClassesBuilder, skip_registration=True):
    """A classification set of tensorflow_datasets, by class.

    Args:
        source: The builder of the set.
        splits: Which of its splits are pooled.
        keys: Names of its image and label features.
        size: Height and width to which images are resized; ``None``: they stay as they are.
    """

    name = "tfds_classes"

    def __init__(
        self,
        *,
        source: tfds.core.DatasetBuilder,
        splits: tuple[str, ...],
        keys: tuple[str, str],
        size: tuple[int, int] | None,
        **settings: Any,
    ) -> None:
        """See the class."""
        self._source, self._splits, self._keys, self._size = source, splits, keys, size
        super().__init__(**settings)

    def read_source(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, Classes]:
        """Decodes the images of the set, which has been prepared."""
        return {"pooled": self._parts()}

    def _parts(self) -> Iterator[tuple[str, np.ndarray]]:
        image_key, label_key = self._keys
        parts, shape = defaultdict(list), None
        contents: dict[str, set[bytes]] = {split: set() for split in self._splits}
        for split in self._splits:
            examples = self._source.as_dataset(split=split).as_numpy_iterator()
            count = self._source.info.splits[split].num_examples
            for example in progress(examples, count, f"Reading {self._source.name}, {split}"):
                image, name = example[image_key], self._class_name(example[label_key])
                content = b"\n".join([name.encode(), image.tobytes()])
                contents[split].add(hashlib.blake2b(content, digest_size=8).digest())
                image = image if self._size is None else resize(image, self._size)
                shape = shape or image.shape
                if image.shape[2] != shape[2]:
                    raise ValueError(
                        f"The images of {self._source.name} differ in channels, {shape[2]} and "
                        f"{image.shape[2]}. Write them to a folder: image_folder converts them."
                    )
                if image.shape != shape:
                    raise ValueError(
                        f"The images of {self._source.name} differ in size, {shape[:2]} and "
                        f"{image.shape[:2]} pixels. Give image_size."
                    )
                parts[name].append(image)
                if len(parts[name]) == PART:
                    yield name, np.stack(parts.pop(name))
            self._check_apart(contents, split)
        for name, images in sorted(parts.items()):
            yield name, np.stack(images)

    def _check_apart(self, contents: Mapping[str, set[bytes]], split: str) -> None:
        for other in self._splits:
            shared = len(contents[split] & contents[other])
            # Few images that are there twice are no more in two splits than within one.
            if split != other and 10 * shared > min(len(contents[split]), len(contents[other])):
                larger = max(other, split, key=lambda name: len(contents[name]))
                raise ValueError(
                    f"The splits to pool must hold different images, but {other} and {split} of "
                    f"{self._source.name} share {shared}: queries could be what the support has "
                    f"shown. Name splits that are apart, such as tfds_splits=[{larger!r}]."
                )

    def _class_name(self, label: np.number | bytes) -> str:
        feature = self._source.info.features[self._keys[1]]
        if isinstance(label, bytes):
            return label.decode()
        named = isinstance(feature, tfds.features.ClassLabel)
        if is_missing(label) or (named and not 0 <= label < feature.num_classes):
            raise ValueError(
                f"{self._source.name} holds an example without label ({label}). Pool other splits "
                f"than {self._splits}."
            )
        return feature.int2str(label) if named else str(label)
