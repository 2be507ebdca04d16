import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from keras_maml.episodes.array_pickle import read_arrays

CONTENT = {
    "image_data": np.arange(2 * 3 * 4 * 3, dtype="uint8").reshape(2, 3, 4, 3),
    "class_dict": {"n01": [0], "n02": np.array([1, 7], ">i4"), "n03": [np.int64(-5)]},
}


def write(path, content):
    path.write_bytes(content)
    return path


def assert_content(content):
    np.testing.assert_array_equal(content["image_data"], CONTENT["image_data"])
    assert content["image_data"].dtype == np.uint8
    rows = content["class_dict"]
    assert (list(rows["n01"]), list(rows["n02"]), list(rows["n03"])) == ([0], [1, 7], [-5])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"numpy._core", b"numpy.core"], ids=["new", "old"])
def test_every_protocol_and_numpy_can_be_read(tmp_path, protocol, core):
    content = pickle.dumps(CONTENT, protocol)
    if core == b"numpy.core" and protocol >= 4:  # their strings and frames have lengths
        pytest.skip("the names of older versions are covered by protocols 0 to 3")
    assert_content(read_arrays(write(tmp_path / "a.pkl", content.replace(b"numpy._core", core))))


def test_column_major_arrays_keep_their_order(tmp_path):
    array = np.asfortranarray(CONTENT["image_data"])
    for protocol in (2, 5):
        path = write(tmp_path / "a.pkl", pickle.dumps(array, protocol))
        np.testing.assert_array_equal(read_arrays(path), array)


def test_python_2_wrote_text_as_bytes(tmp_path):
    # {'image_data': array([[200, 7]], uint8), 'class_dict': {'n01': [0]}} by protocol 2 there.
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + text(b"b") + b"tR"
        b"(K\x01K\x01K\x02\x86cnumpy\ndtype\n("
        + text(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + text(b"|")
        + b"NNN"
        + b"J\xff\xff\xff\xff" * 2
        + b"K\x00tb\x89T"
        + struct.pack("<i", 2)
        + b"\xc8\x07tb"
    )
    pairs = text(b"image_data") + array + text(b"class_dict") + b"}" + text(b"n01") + b"]K\x00as"
    content = read_arrays(write(tmp_path / "a.pkl", b"\x80\x02}(" + pairs + b"u."))
    assert content["image_data"].tolist() == [[200, 7]]
    assert content["class_dict"] == {"n01": [0]}


class Payload:
    """Writes a file if it is unpickled as usual."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_payload_does_not_run(tmp_path, protocol):
    trap = tmp_path / "trap"
    content = pickle.dumps(CONTENT | {"more": Payload(trap)}, protocol)
    pickle.loads(content)  # It is a real one.
    trap.rmdir()
    with pytest.raises(ValueError, match=r"a.pkl .* refers to .*\.mkdir.*do not use this file"):
        read_arrays(write(tmp_path / "a.pkl", content))
    assert not trap.exists()


def attack(module, name, arguments=b"(t", then=b""):
    return b"\x80\x02c" + module + b"\n" + name + b"\n" + arguments + b"R" + then + b"."


@pytest.mark.parametrize(
    "content",
    [
        attack(b"builtins", b"eval", b"(U\x011t"),
        attack(b"numpy", b"load", b"(U\x01at"),
        attack(b"numpy", b"dtype.__class__", b"(U\x01at"),
        # Python objects in place of numbers: NumPy would take the bytes for their addresses.
        attack(b"numpy", b"dtype", b"(U\x01OK\x00K\x01t"),
        attack(b"numpy", b"dtype", b"(U\x02V8t"),
        # Attributes of what is named, instead of calls.
        b"\x80\x02c_codecs\nencode\nN}U\x08__init__K\x01s\x86b.",
        b"\x80\x02cnumpy\nndarray\n)\x81}U\x05arrayK\x01sb.",
        b"\x80\x02cnumpy\ndtype\n(U\x02u1tRN}U\x05dtypeK\x01s\x86b.",
        # An array that says it is larger than its bytes.
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01K\x09\x85cnumpy\ndtype\n(U\x02u1tR"
        b"\x89U\x01atb.",
        attack(b"_codecs", b"encode", b"(U\x01aU\x06rot_13t"),
        pickle.dumps(OrderedDict(a=1)),
        pickle.dumps({"a": np.array([1.5])}),
        pickle.dumps({"a": np.array(["text"])}),
        pickle.dumps({"a": np.array([None])}),
        pickle.dumps(CONTENT)[:-30],
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0f.",  # bytes that are longer than any memory
        b"",
        b"PK\x03\x04 not a pickle",
        b"\x80\x02" + b"]" * 3 + b"Pabc\n.",
    ],
)
def test_anything_else_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="a.pkl cannot be read as a pickle of arrays: ."):
        read_arrays(write(tmp_path / "a.pkl", content))
    # The stand-ins are what they were.
    assert_content(read_arrays(write(tmp_path / "b.pkl", pickle.dumps(CONTENT, 2))))
