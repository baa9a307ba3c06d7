"""What a pickle holds is read where it is plain; nothing in it is ever carried out."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppll.data.plain_pickle import read_plain
from ppll.errors import DataError

from .conftest import random_images
from .official import pickled_batch


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_batch_is_read_as_pickle_reads_it() -> None:
    content = pickled_batch(random_images(1200), [i % 10 for i in range(1200)])
    found, expected = read_plain(content), pickle.loads(content, encoding="latin1")
    assert np.array_equal(found.pop("data"), expected.pop("data"))
    assert found == expected
    assert found["filenames"][1199] == "leopard_s_001199.png"


@pytest.mark.parametrize("value", [{}, {"a": [1, 256, 70_000, -1, None, "x", (), (1,), (1, 2)]}])
def test_plain_values_come_back(value: dict[str, Any]) -> None:
    value = {**value, "b": {"c": [[], {}, False, (1, 2, 3, 4)]}}
    content = pickle.dumps(value, 2).replace(b")", b"(t")  # an empty tuple, the long way
    assert read_plain(content) == value


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_is_called(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    with pytest.raises(DataError, match=r"would call 'posix mkdir'"):
        read_plain(pickle.dumps({"data": Trap(trap)}, 2))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap), 2))
    assert trap.exists()  # or the trap would be none


@pytest.mark.parametrize(
    "key",
    [
        b"N" + b"\x85" * 100_000,  # a tuple in a tuple in a tuple: too deep to hash
        b"N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(64)),  # each twice the work
        b")",
        b"N",
        b"]",
        b"cos\npath\n",
    ],
)
@pytest.mark.parametrize("form", [b"%sK\1s", b"(%sK\1u"])
def test_keys_are_texts_and_whole_numbers(key: bytes, form: bytes) -> None:
    with pytest.raises(DataError, match=r"has a key of a dict|holds more than"):
        read_plain(b"\x80\2}" + form % key + b".")


def test_whole_numbers_may_be_keys() -> None:
    assert read_plain(pickle.dumps({"a": {1: 2, "b": 3}}, 2)) == {"a": {1: 2, "b": 3}}


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a whole pickle"),
        (b"\x80\2}", "is not a whole pickle .*exhausted"),
        (b"\x80\2].", "is not a whole pickle of a dict"),
        (b"\x80\2\x85.", "too little on the stack"),
        (b"\x80\2}}.", "is not a whole pickle of a dict"),
        (b"\x80\2}(K\1u.", "is not a whole pickle"),
        (b"\x80\2}]K\1s.", "has a key of a dict"),
        (b"\x80\2}U\1ah\7s.", "is not a whole pickle .*KeyError"),
        (pickle.dumps({"a": 1.5}, 2), "holds more than .*: BINFLOAT"),
        (pickle.dumps({"a": 2**40}, 2), "holds more than .*: LONG1"),
        (pickle.dumps({"a": {1, 2}}, 4), "holds more than"),
        (pickle.dumps({"a": os.sep.join}, 4), "holds more than .*: FRAME"),
        (b"\x80\2}U\1acos\nsystem\nU\4true\x85Rs.", "would call 'os system'"),
        (b"\x80\2}U\1aibuiltins\neval\n.", "holds more than .*: INST"),
        (b"\x80\2}U\1acnumpy\ndtype\nU\2O8K\0K\1\x87Rs.", "would call 'numpy dtype'"),
        (b"\x80\2}U\1a" + ARRAY + b"cos\npath\nK\0\x85U\1b\x87Rs.", "would call 'numpy.core"),
        (b"\x80\2}U\1acnumpy\ndtype\nU\2u1K\0K\1\x87RK\1bs.", "sets the state of something else"),
        (b"\x80\2}U\1a]K\1bs.", "sets the state of something else"),
        (pickle.dumps({"a": np.zeros(2, np.uint8)}, 2), "would call '_codecs encode'"),
    ],
)
def test_anything_else_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_plain(content)


@pytest.mark.parametrize(
    ("old", "new"), [(b"\x89T", b"\x88T"), (b"u1", b"i1"), (b"(K\1K", b"(K\2K"), (b"NNN", b"NN]")]
)
def test_another_array_is_refused(old: bytes, new: bytes) -> None:
    content = pickled_batch(np.zeros((2, 3, 32, 32), np.uint8), [0, 1])
    assert content.count(old) == 1
    with pytest.raises(DataError):
        read_plain(content.replace(old, new))
