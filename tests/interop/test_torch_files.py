"""Files of torch.save: what is read, and what no file gets this process to do."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
from helpers.torch_zip import Storage, Tensor, dump, save, save_parts

import tf_dlrm
from tf_dlrm.interop.torch_files import read_torch_file


def test_tensors_are_maps_of_the_file(tmp_path):
    path = tmp_path / "t.pt"
    array = np.arange(24, dtype="float32").reshape(4, 6)
    storage = Storage(array.reshape(-1))
    ints = np.arange(5)
    save(
        path,
        collections.OrderedDict(
            whole=Tensor(storage, 0, (4, 6), (6, 1)),
            transposed=Tensor(storage, 0, (6, 4), (1, 6)),
            window=Tensor(storage, 7, (2, 3), (6, 1)),
            scalar=Tensor(storage, 23, (), ()),
            ints=Tensor.of(ints),
            none=Tensor(Storage(np.zeros(0, "float32")), 0, (0, 6), (6, 1)),
            nested={"lr": 0.1, "names": ["a", ("b", None, True)]},
        ),
    )
    found = read_torch_file(path)
    np.testing.assert_array_equal(found["whole"], array)
    np.testing.assert_array_equal(found["transposed"], array.T)
    np.testing.assert_array_equal(found["window"], array[1:3, 1:4])
    assert found["scalar"] == 23 and found["none"].shape == (0, 6)
    np.testing.assert_array_equal(found["ints"], ints)
    assert found["nested"] == {"lr": 0.1, "names": ["a", ("b", None, True)]}
    base = found["whole"]
    while not isinstance(base, np.memmap):
        base = base.base
    with pytest.raises(ValueError, match="read-only"):
        found["whole"][0, 0] = 1


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "function, name",
    [(os.system, "system"), (eval, "eval"), (getattr, "getattr"), (open, "open")],
    ids=["system", "eval", "getattr", "open"],
)
def test_code_is_refused_by_name_and_not_run(function, name, protocol, tmp_path):
    path, mark = tmp_path / "hostile.pt", tmp_path / "ran"
    args = {
        "system": (f"touch {mark}",),
        "eval": (f"open({str(mark)!r}, 'w')",),
        "getattr": (mark, "touch"),
        "open": (str(mark), "w"),
    }[name]
    save_parts(path, pickle.dumps({"state_dict": Call(function, *args)}, protocol))
    with pytest.raises(ValueError, match=rf"contains \w+\.{name}, but only tensors"):
        read_torch_file(path)
    assert not mark.exists()


def raw(text, *arguments):
    """A pickle that pushes a global by name and calls it with no arguments."""
    return b"".join([b"\x80\x02c", text.encode(), b"\n", *arguments, b"."])


@pytest.mark.parametrize(
    "data",
    [
        raw("torch._utils\n_rebuild_tensor_v2", b"}b"),  # attributes of our function
        raw("torch._utils\n_rebuild_tensor_v2", b"N}X\x01\x00\x00\x00a)\x86s\x86b"),
        raw("torch\nFloatStorage", b")R"),  # a storage type is called
        raw("numpy\ndtype", b")}s"),  # items of what is skipped
        raw("collections\nOrderedDict", b")\x81K\x01Q"),  # a storage that is none
        b"\x80\x02K\x01K\x02",  # ends early
        b"\x80\x02\x8a\xff" + b"\xff" * 20,
        b"no pickle at all",
        b"",
    ],
)
def test_odd_pickles_end_in_an_error(data, tmp_path):
    path = tmp_path / "odd.pt"
    save_parts(path, data)
    with pytest.raises(ValueError, match="odd.pt (is damaged|cannot be imported)"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "offset, size, stride",
    [
        (0, (5, 6), (6, 1)),
        (1, (4, 6), (6, 1)),
        (0, (2,), (1 << 62,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (-2,), (1,)),
        (0, (2, 2), (1,)),
        (24, (), ()),
        ("0", (2,), (1,)),
    ],
)
def test_nothing_outside_of_a_storage_is_read(offset, size, stride, tmp_path):
    path = tmp_path / "t.pt"
    storage = Storage(np.zeros(24, "float32"))
    save(path, {"t": Tensor(storage, offset, size, stride)})
    with pytest.raises(ValueError, match="t.pt (is damaged|cannot be imported)"):
        read_torch_file(path)


def test_a_tensor_is_no_storage(tmp_path):
    """Its strides say nothing of what lies behind it in the file."""
    path = tmp_path / "t.pt"
    endless = Tensor(Storage(np.zeros(24, "float32")), 0, (24,), (0,))
    save(path, {"t": Tensor(endless, 0, (1 << 20,), (1,))})
    with pytest.raises(ValueError, match="a tensor without a storage"):
        read_torch_file(path)


def test_storages_that_are_shorter_than_said(tmp_path):
    path, values = tmp_path / "t.pt", np.zeros(24, "float32")
    data, _ = dump({"t": Tensor.of(values)})
    save_parts(path, data, [values[:20]])
    with pytest.raises(ValueError, match="24 values of float32, but has 80 bytes"):
        read_torch_file(path)
    save_parts(path, data, [])
    with pytest.raises(ValueError, match="damaged.*archive/data/0"):
        read_torch_file(path)


def test_files_of_other_forms(tmp_path):
    path, values = tmp_path / "t.pt", np.zeros(24, "float32")
    save(path, {"t": Tensor.of(values)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="data/0 is compressed"):
        read_torch_file(path)
    save(path, {"t": Tensor.of(values)}, byte_order="big")
    with pytest.raises(ValueError, match="another byte order"):
        read_torch_file(path)
    save(path, {"t": Tensor.of(values)})
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="truncated zip file"):
        read_torch_file(path)
    path.write_bytes(pickle.dumps({"legacy": 1}))
    with pytest.raises(ValueError, match="not in the zip format of torch.save"):
        read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "text")
    with pytest.raises(ValueError, match="without the data.pkl"):
        read_torch_file(path)


def doubled(*leaf):
    """Lists of lists, a line for each level: 2**60 of them, if all are shown."""
    value = list(leaf)
    for _ in range(60):
        value = [value, value]
    return value


def doubled_tuple():
    value = ()
    for _ in range(60):
        value = (value, value)
    return value


def deep_tuple():
    """A pickle of tuples, 200,000 deep, as the key of a dict: (((...))) -> None."""
    return b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"state_dict": doubled()}, 2),
        pickle.dumps({"state_dict": {"a": doubled()}}, 2),
        pickle.dumps([doubled()], 2),
        pickle.dumps({"state_dict": {"k" * 10_000_000: 1}}, 2),
        pickle.dumps(doubled_tuple(), 2)[:-1] + b"\x80\x02}q\x00h\x00Ns.",
        deep_tuple(),
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        raw("torch._utils\n_rebuild_tensor_v2", pickle.dumps(doubled(), 2)[2:-1], b"R"),
    ],
    ids=["list", "entry", "top", "long key", "tuple", "deep", "deep list", "call"],
)
def test_what_cannot_be_printed_is_an_error_that_can(data, tmp_path):
    path = tmp_path / "dlrm.pt"
    save_parts(path, data)
    with pytest.raises(ValueError) as error:
        tf_dlrm.interop.from_facebookresearch_dlrm(path)
    assert len(str(error.value)) < 1000


def test_sizes_that_are_structures(tmp_path):
    path = tmp_path / "t.pt"
    storage = Storage(np.zeros(24, "float32"))
    for size in ((doubled(1), doubled(2)), doubled(), (1 << 40,)):
        save(path, {"t": Tensor(storage, 0, size, (0,) * len(size))})
        with pytest.raises(
            ValueError, match="cannot be imported: .*a tensor (of|with) size"
        ) as e:
            read_torch_file(path)
        assert len(str(e.value)) < 1000
