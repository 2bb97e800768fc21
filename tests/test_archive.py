"""TorchScript archives: what torch.jit writes is read value for value, and what it would not write runs nothing."""

import enum
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from scratchformers.checkpoints import archive, files

# torch.jit is deprecated, and what the files are made with.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 5)
        self.norms = nn.ModuleList([nn.LayerNorm(5), nn.Identity(), nn.BatchNorm1d(5)])
        self.missing = nn.Linear(5, 5, bias=False)

    def forward(self, x):
        return self.missing(self.norms[2](self.norms[0](self.linear(x))))


class Whole(nn.Module):
    """Tensors that share storages, that are views of larger ones, that have no element or no axis."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Part(), Part()
        self.second.linear.weight = self.first.linear.weight
        self.again = self.first
        self.transposed = nn.Parameter(torch.randn(5, 7).t())
        whole = torch.randn(6, 11)
        for name, value in {
            "strided": whole[1::2, 3:9:3], "row": whole[2], "expanded": torch.randn(3, 1).expand(3, 4),
            "input_resolution": torch.tensor(224), "empty": torch.zeros(0, 3), "flags": torch.tensor([True, False]),
            "bytes": torch.arange(5, dtype=torch.uint8), "wide": torch.randn(3, dtype=torch.float64),
            "complex": torch.randn(3, dtype=torch.complex64), "brain": torch.randn(3).bfloat16(),
        }.items():  # fmt: skip
            self.register_buffer(name, value)
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_buffer("none", None)

    def forward(self, x):
        return self.again(self.second.linear(x) @ self.transposed.t() @ self.transposed @ self.transposed.t())


class Pair(NamedTuple):
    left: int
    right: torch.Tensor


class Color(enum.Enum):
    RED = 1


class Odd(nn.Module):
    """Attributes of every kind that scripts may have."""

    table: dict[str, int]
    pairs: list[tuple[int, float]]

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.table, self.pairs = {"a": 1}, [(1, 2.0)]
        self.ints, self.floats, self.bools, self.strings = [1, 2**40, -3], [1.0], [True], ["é"]
        self.tensors, self.number, self.place = [torch.ones(1)], 3 + 4j, torch.device("cpu")
        self.size, self.large, self.word, self.pair = 7, -(2**62), "x" * 300, Pair(1, torch.ones(2))
        self.color = Color.RED

    def forward(self, x):
        y = self.linear(x) + self.size + self.ints[0] + self.floats[0] + self.tensors[0] + self.pair[1]
        return y + len(self.table) + len(self.pairs) + self.large + len(self.word) + len(self.strings)


def scripted(module):
    return torch.jit.script(module)


def traced(module):
    return torch.jit.trace(module.eval(), torch.randn(2, 7, dtype=module.first.linear.weight.dtype))


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].stride() == value.stride(), name
        assert torch.equal(found[name], value), name
        assert not found[name].requires_grad


def read(path):
    assert archive.is_archive(path)
    return files.read_tensors(path)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("made", [scripted, traced])
def test_names_and_values_are_those_of_torchscript(tmp_path, monkeypatch, made, half, mapped):
    monkeypatch.setattr(files, "MAPPED", mapped)
    monkeypatch.setattr(archive, "MAPPED", 16)
    path = tmp_path / "model.pt"
    made(Whole().half() if half else Whole()).save(path)
    found, expected = read(path), torch.jit.load(path).state_dict()
    assert len(found) > 20
    equal(found, expected)
    assert found["input_resolution"].item() == 224
    assert half or found["strided"].stride() == (22, 3)


def test_tied_tensors_share_one_storage(tmp_path):
    scripted(Whole()).save(tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert found["first.linear.weight"].data_ptr() == found["second.linear.weight"].data_ptr()
    assert found["again.linear.weight"].data_ptr() == found["first.linear.weight"].data_ptr()
    assert found["row"].data_ptr() - found["strided"].data_ptr() == 4 * (22 - 14), "and so do views of one tensor"


def test_attributes_that_are_no_tensors_are_passed_over(tmp_path):
    scripted(Odd()).save(tmp_path / "model.pt")
    equal(read(tmp_path / "model.pt"), torch.jit.load(tmp_path / "model.pt").state_dict())


def test_large_tensors_are_mapped_and_the_file_is_not_changed_by_changing_them(tmp_path):
    path = tmp_path / "model.pt"
    scripted(nn.Linear(512, 512)).save(path)
    before, found = path.read_bytes(), read(path)
    if os.path.exists("/proc/self/maps"):  # Linux says so
        assert str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")
    expected = found["weight"].clone()
    found["weight"].zero_()
    assert path.read_bytes() == before
    assert torch.equal(read(path)["weight"], expected)
    del found
    if os.path.exists("/proc/self/maps"):
        assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_code_is_not_looked_at(tmp_path):
    path = tmp_path / "model.pt"
    scripted(Whole()).save(path)
    expected = read(path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "other.pt", "w") as new:
        for each in old.infolist():
            new.writestr(each.filename, b"import os; os.abort()" if "/code/" in each.filename else old.read(each))
    equal(read(tmp_path / "other.pt"), expected)


# --- archives by hand: as torch 1.7 wrote OpenAI's files on a GPU, and as nobody should


def word(text):
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value):
    if 0 <= value < 256:
        return b"K" + bytes([value])
    content = value.to_bytes(8, "little", signed=True)
    return b"J" + content[:4] if -(2**31) <= value < 2**31 else b"\x8a\x08" + content


def row(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def called(name, *arguments):
    """A call, as pickle writes it, of `module name`."""
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(arguments) + b"tR"


HOOKS = b"ccollections\nOrderedDict\n)R"
REBUILD = "torch._utils _rebuild_tensor_v2"


def stored(key, kind, length, device="cuda:0"):
    return b"(" + word("storage") + f"ctorch\n{kind}\n".encode() + word(key) + word(device) + number(length) + b"tQ"


def tensor(key, kind, length, offset, sizes, strides, rest=b"\x88" + HOOKS):
    return called(REBUILD, stored(key, kind, length), number(offset), row(*sizes), row(*strides), rest)


def module(name, **attributes):
    items = b"".join(word(key) + value for key, value in attributes.items())
    return b"c__torch__\n" + name.encode() + b"\n)\x81}(" + items + b"ub"


def pickled(content):
    return b"\x80\x02" + content + b"."


CODE = """class Multimodal(Module):
  __parameters__ = ["text_projection", "logit_scale", ]
  __buffers__ = ["input_resolution", ]
  training : bool
  text_projection : Tensor
  logit_scale : Tensor
  input_resolution : Tensor
  visual : __torch__.VisualTransformer
  def forward(self: __torch__.Multimodal, x: Tensor) -> Tensor:
    return x
class VisualTransformer(Module):
  __parameters__ = ["proj", ]
  __buffers__ = []
  training : bool
  proj : Tensor
"""
VALUES = {"0": torch.randn(6).half(), "1": torch.tensor(4.6052), "2": torch.tensor(224), "3": torch.randn(9).half()}
TEXT = tensor("0", "HalfStorage", 6, 0, (2, 3), (3, 1))
SCALE = tensor("1", "FloatStorage", 1, 0, (), ())
RESOLUTION = tensor("2", "LongStorage", 1, 0, (), (), b"\x89" + HOOKS)
PROJ = tensor("3", "HalfStorage", 9, 1, (2, 4), (1, 2))
VISUAL = module("VisualTransformer", training=b"\x89", proj=PROJ)


def whole(**attributes):
    usual = {"text_projection": TEXT, "logit_scale": SCALE, "input_resolution": RESOLUTION, "visual": VISUAL}
    return pickled(module("Multimodal", training=b"\x89", **usual | attributes))


def write(path, content=None, change=lambda entries: None, method=zipfile.ZIP_STORED):
    """An archive. `change` may add to its entries, or take away."""
    entries = {"data.pkl": whole() if content is None else content, "constants.pkl": b"\x80\x02)."}
    entries |= {"code/__torch__.py": CODE.encode(), "version": b"3\n"}
    entries |= {f"data/{key}": value.numpy().tobytes() for key, value in VALUES.items()}
    change(entries)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, each in entries.items():
            file.writestr(name if name.startswith(("/", "..", "outside")) else f"archive/{name}", each)
    return path


def test_the_form_of_openais_files(tmp_path):
    path = write(tmp_path / "ViT-B-32.pt")
    found = read(path)
    assert torch.equal(found["text_projection"], VALUES["0"].view(2, 3))
    assert torch.equal(found["visual.proj"], VALUES["3"][1:].view(4, 2).t())
    assert found["input_resolution"].item() == 224
    equal(found, torch.jit.load(path, map_location="cpu").state_dict())


def test_a_parameter_and_a_later_storage(tmp_path):
    """_rebuild_parameter, and the seventh argument that newer versions may write."""
    made = called("torch._utils _rebuild_parameter", TEXT, b"\x88", HOOKS)
    path = write(tmp_path / "x.pt", whole(text_projection=made, logit_scale=SCALE[:-2] + b"}tR"))
    assert torch.equal(read(path)["text_projection"], VALUES["0"].view(2, 3))


def refused(path, *said):
    with pytest.raises(ValueError) as caught:
        files.read_tensors(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.endswith((".", "fetch it again."))
    for part in said:
        assert part in message, message


class Evil:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["alone", "attribute"])
def test_a_pickle_that_calls_runs_nothing(tmp_path, protocol, place):
    mark = tmp_path / "mark"
    evil = pickle.dumps(Evil(os.mkdir, str(mark)), protocol)
    pickle.loads(evil)
    mark.rmdir()  # so it would run
    if place == "attribute" and protocol < 2:
        evil = whole(logit_scale=evil[:-1])
    said = f"of protocol {protocol}" if protocol > 2 else "mkdir" if protocol else ""
    refused(write(tmp_path / "x.pt", evil), said)
    assert not mark.exists()


CALLS = {
    "os system": (word("touch mark"),),
    "posix system": (word("touch mark"),),
    "builtins eval": (word("open('mark', 'w')"),),
    "builtins exec": (word("open('mark', 'w')"),),
    "builtins getattr": (b"cos\nsystem\n", word("__call__")),
    "builtins open": (word("mark"), word("w")),
    "torch load": (word("mark"),),
    "torch.jit load": (word("mark"),),
    "torch.hub load": (word("mark"), word("x")),
    "torch._utils _rebuild_tensor_v3": (word("x"),),
    "torch._utils _rebuild_tensor_v2.__globals__": (word("x"),),
    "torch.storage _load_from_bytes": (word("x"),),
    "torch.jit._pickle build_tensor_from_id": (b"K\0",),
    "torch.serialization load": (word("mark"),),
    "functools partial": (b"cos\nsystem\n", word("touch mark")),
    "__torch__evil Class": (),
    "collections OrderedDict.__class__": (),
    "numpy.core.multiarray scalar": (word("x"),),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_name_outside_the_list_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    said = name if " " in name else f"{name} "
    refused(
        write(tmp_path / "x.pt", whole(logit_scale=called(said, *CALLS[name]))), f"it names {said.replace(' ', '.')!r}"
    )
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "evil",
    {
        "an instance of a class": b"(ios\nsystem\n",
        "a function as a class": b"c__torch__\nX\n)R)\x81",
        "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}b",
        "attributes of a list": b"]}b",
        "a tensor as a function": SCALE + b")R",
        "a module as a function": VISUAL + b")R",
        "a string as a function": word("os.system") + b"(" + word("x") + b"tR",
        "a storage as a function": b"ctorch\nHalfStorage\n)R",
        "a copied top of the stack": b"]2",
        "an extension": b"\x82\x01",
        "a persistent id of text": b"P0\n",
        "a list that is a tuple": b")]a",
        "items of a list": b"]" + word("x") + b"]s",
        "items that are not pairs": b"}(" + word("x") + b"u",
        "nothing to take": b"R",
        "no mark": b"t",
        "an unknown place of the memo": b"h\x09",
        "a persistent id that is a word": word("0") + b"Q",
        "a persistent id too long": stored("0", "HalfStorage", 6)[:-2] + b"NtQ",
        "a storage without a kind": b"(" + word("storage") + word("HalfStorage") + word("0") + word("cpu") + b"K\1tQ",
        "a storage of another kind": stored("0", "HalfStorage", 6).replace(b"HalfStorage", b"QInt8Storage"),
        "a key that is a number": stored("0", "HalfStorage", 6).replace(word("0"), b"K\0"),
        "a negative length": stored("0", "HalfStorage", -1),
        "a length that is no number": stored("0", "HalfStorage", 6)[:-4] + b"\x88tQ",
        "not a storage": stored("0", "HalfStorage", 6).replace(b"storage", b"torrent"),
        "a tensor without a storage": called(REBUILD, b"K\0", b"K\0", row(1), row(1), b"\x88" + HOOKS),
        "a tensor of too few arguments": called(REBUILD, stored("0", "HalfStorage", 6), b"K\0"),
        "a tensor of too many": TEXT[:-2] + b"NNtR",
        "a conjugate": TEXT[:-2] + b"}" + word("conj") + b"\x88stR",
    }.values(),
)
def test_what_torchscript_does_not_write_is_refused(tmp_path, evil):
    refused(write(tmp_path / "x.pt", whole(logit_scale=evil)))


@pytest.mark.parametrize(
    ("evil", "said"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n)\x81", "makes an object of what is no class of a module"),
        (b"ccollections\nOrderedDict\n)R}b", "gives attributes to what is no module"),
        (b"(ios\nsystem\n", "uses INST, which TorchScript does not write"),
        (word("os.system") + b")R", "calls what cannot be called"),
    ],
)
def test_the_sentence_says_what_was_tried(tmp_path, evil, said):
    refused(write(tmp_path / "x.pt", whole(logit_scale=evil)), said)


@pytest.mark.parametrize(
    ("offset", "sizes", "strides"),
    [
        (0, (2, 4), (3, 1)), (1, (2, 3), (3, 1)), (6, (1,), (1,)), (7, (0,), (1,)), (2**61, (1,), (1,)),
        (0, (2,), (2**61,)), (0, (2**40, 2**40), (0, 0)), (2**62, (1,), (1,)), (2**63 - 1, (2,), (1,)),
        (-1, (2,), (1,)), (5, (2,), (-1,)), (0, (-2,), (1,)), (0, (-2, -3), (3, 1)), (0, (2, 3), (3,)), (0, (), (1,)),
        (0, (1,) * 65, (1,) * 65),
    ],
)  # fmt: skip
def test_a_tensor_never_leaves_its_storage(tmp_path, offset, sizes, strides):
    path = write(tmp_path / "x.pt", whole(text_projection=tensor("0", "HalfStorage", 6, offset, sizes, strides)))
    refused(path, "storage '0'")


@pytest.mark.parametrize("wrong", [b"\x88", b"N", b"G" + bytes(8), word("0"), b"]"])
@pytest.mark.parametrize("argument", ["offset", "sizes", "strides"])
def test_geometry_is_made_of_whole_numbers(tmp_path, argument, wrong):
    usual = {"offset": b"K\0", "sizes": row(1), "strides": row(1)}
    usual[argument] = wrong if argument == "offset" else b"(" + wrong + b"t"
    refused(
        write(
            tmp_path / "x.pt",
            whole(logit_scale=called(REBUILD, stored("1", "FloatStorage", 1), *usual.values(), b"\x88N")),
        )
    )


def test_a_storage_that_is_missing_or_shorter_than_it_says(tmp_path):
    refused(
        write(tmp_path / "x.pt", change=lambda entries: entries.pop("data/3")), "the storage '3', which is not in it"
    )
    refused(write(tmp_path / "y.pt", change=lambda entries: entries.update({"data/3": bytes(17)})), "17 of 18 bytes")
    outside = tensor("../code/__torch__.py", "ByteStorage", 9, 0, (9,), (1,))
    refused(write(tmp_path / "z.pt", whole(logit_scale=outside)), "which is not in it")


# --- bombs


def test_a_zip_that_unfolds_is_refused(tmp_path):
    def bomb(entries):
        entries["data/0"] = bytes(10**7)

    refused(write(tmp_path / "x.pt", change=bomb, method=zipfile.ZIP_DEFLATED), "compressed")


def test_entries_that_share_their_bytes_are_refused(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in ("data.pkl", "constants.pkl", "code/x", "data/0"):
            file.writestr(f"archive/{name}", bytes(1000))
        last = file.filelist[-1]
        for i in range(1, 100):
            other = zipfile.ZipInfo(f"archive/data/{i}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, name, getattr(last, name))
            file.filelist.append(other)
    (tmp_path / "x.pt").write_bytes(content.getvalue())
    refused(tmp_path / "x.pt", "more bytes than the file")


def test_a_tensor_that_grows_when_it_is_copied_is_refused(tmp_path):
    said = "more than a file of its size can hold"
    path = write(tmp_path / "x.pt", whole(logit_scale=tensor("1", "FloatStorage", 1, 0, (2**20,), (0,))))
    refused(path, said)
    many = {f"x{i}": tensor("0", "ByteStorage", 2**17, 0, (2**17,), (1,)) for i in range(20)}
    big = {"data/0": bytes(2**17)}
    refused(write(tmp_path / "y.pt", whole(**many, text_projection=b"N"), lambda entries: entries.update(big)), said)


def test_a_large_number_in_the_memo_costs_nothing(tmp_path):
    """For which Python's Unpickler would take 64 GB."""
    path = write(tmp_path / "x.pt", whole(logit_scale=SCALE + b"r\xff\xff\xff\xff"))
    assert torch.equal(read(path)["logit_scale"], VALUES["1"])


def test_depth_is_no_danger(tmp_path):
    deep = 50_000
    refused(write(tmp_path / "x.pt", whole(logit_scale=b"]" * deep + b"a" * (deep - 1))[:-1]))
    assert "logit_scale" not in read(write(tmp_path / "y.pt", whole(logit_scale=b"]" * deep + b"a" * (deep - 1))))
    tuples = b"N" + b"\x85" * deep
    assert "logit_scale" not in read(write(tmp_path / "z.pt", whole(logit_scale=b"}" + tuples + b"Ns")))
    nested = b"c__torch__\nX\n)\x81}" + word("a")
    refused(write(tmp_path / "w.pt", pickled(nested * deep + b"N" + b"sb" * deep)), "than a file of its size can hold")


def test_modules_that_contain_themselves_or_each_other_many_times_are_refused(tmp_path):
    said = "more than a file of its size can hold"
    itself = b"c__torch__\nX\n)\x81q\x00}" + word("a") + b"h\x00sb"
    refused(write(tmp_path / "x.pt", pickled(itself)), said)
    twice = module("X")
    for i in range(40):  # 2 ** 40 paths
        put = b"q" + bytes([i])
        twice = b"c__torch__\nX\n)\x81}" + word("a") + twice + put + b"s" + word("b") + b"h" + bytes([i]) + b"sb"
    refused(write(tmp_path / "y.pt", pickled(twice)), said)
    refused(write(tmp_path / "z.pt", whole(**{"x" * 1001: SCALE})), said)


def test_a_pickle_too_large_to_be_one_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "PICKLE", 100)
    refused(write(tmp_path / "x.pt"), "a data.pkl in it of at most 100 bytes")


def test_a_module_with_a_state_of_its_own_is_refused(tmp_path):
    packed = b"c__torch__\nX\n)\x81(" + TEXT + b"tb"
    refused(write(tmp_path / "x.pt", whole(visual=packed)), "its visual is no module with attributes")
    refused(write(tmp_path / "y.pt", pickled(TEXT)), "its data.pkl is no module")


# --- zips


@pytest.mark.parametrize(
    ("entry", "said"),
    [("../evil", "outside"), ("/evil", "outside"), ("outside/evil", "outside"), ("data/../../evil", "outside")],
)
def test_an_entry_outside_the_folder_is_refused(tmp_path, entry, said):
    refused(write(tmp_path / "x.pt", change=lambda entries: entries.update({entry: b"x"})), said)


def test_two_entries_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "x.pt")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/data/0", bytes(12))
    refused(path, "two of its entries have one name")


def test_numbers_of_another_byte_order_are_refused(tmp_path):
    refused(write(tmp_path / "x.pt", change=lambda entries: entries.update(byteorder=b"big")), "not little-endian")
    assert read(write(tmp_path / "y.pt", change=lambda entries: entries.update(byteorder=b"little")))


def test_an_archive_without_its_pickle_is_refused(tmp_path):
    refused(write(tmp_path / "x.pt", change=lambda entries: entries.pop("data.pkl")), "expected a data.pkl")


def test_a_truncated_archive_is_said_to_be(tmp_path):
    path = tmp_path / "x.pt"
    content = write(path).read_bytes()
    for end in range(5, len(content), 97):
        path.write_bytes(content[:end])
        refused(path, "is truncated")


def shapes(path):
    """Of each tensor what it is; or the sentence that says why not."""
    try:
        return {name: (value.shape, value.dtype) for name, value in files.read_tensors(path).items()}
    except ValueError as error:
        return str(error)


def flipped(content, step):
    """The content with one bit changed, at many places."""
    for place in range(0, len(content), step):
        yield content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :]


def test_a_damaged_archive_is_one_sentence_or_right(tmp_path):
    """A flipped bit is told by the pickle's checksum, or lies in the values, which have none."""
    path = write(tmp_path / "x.pt")
    expected, content, told = shapes(path), path.read_bytes(), 0
    for damaged in flipped(content, 5):
        path.write_bytes(damaged)
        found = shapes(path)
        told += isinstance(found, str)
        assert found == expected or (isinstance(found, str) and "\n" not in found)
    assert told > len(content) / 15


def test_a_changed_pickle_is_one_sentence_or_another_archive(tmp_path):
    """With a checksum that fits."""
    said = [shapes(write(tmp_path / "x.pt", pickle)) for pickle in flipped(whole(), 3)]
    sentences = [found for found in said if isinstance(found, str)]
    assert all("\n" not in found for found in sentences)
    assert len(said) / 2 < len(sentences) < len(said)


# --- which file is one


def test_a_zip_of_torch_save_is_read_as_before(tmp_path):
    for name in ("x.pt", "x.pth", "x.bin"):
        torch.save({"a": torch.ones(3)}, tmp_path / name)
        assert not archive.is_archive(tmp_path / name)
        assert torch.equal(files.read_tensors(tmp_path / name)["a"], torch.ones(3))


def test_a_zip_without_code_is_no_archive(tmp_path):
    path = write(tmp_path / "x.pt", change=lambda entries: entries.pop("code/__torch__.py"))
    assert not archive.is_archive(path)
    refused(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\3\4", pickled(b"]"), bytes(range(256)) * 9])
def test_what_is_neither_is_one_sentence(tmp_path, content):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    refused(path)


def test_a_zip_of_something_else_is_one_sentence(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("a/b.txt", b"x")
    refused(tmp_path / "x.pt")


def test_the_only_pt_of_a_folder_is_its_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"or one \.pt\."):
        files.find_weights(tmp_path)
    path = write(tmp_path / "ViT-B-32.pt")
    (tmp_path / "ViT-B-16.pt.part").write_bytes(b"x")
    assert files.find_weights(tmp_path) == path
    write(tmp_path / "ViT-B-16.pt")
    with pytest.raises(FileNotFoundError, match=r"or one \.pt\."):
        files.find_weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert files.find_weights(tmp_path).name == "model.safetensors"
