"""Files without torch are the files of safetensors; digests see every bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from streams.weights import StoredTensor, WeightsError, read_file, state_digest, tensor_digest, write_file
from streams.weights.tensors import parts

TORCH = {
    "b.weight": torch.randn(3, 5).bfloat16(),
    "a.weight": torch.randn(7).bfloat16(),
    "c.scale": torch.randn(2, 2),
    "d.codes": torch.randn(5, 3).to(torch.float8_e4m3fn),
    "e.empty": torch.zeros(0, 4),
}


def test_a_file_is_byte_for_byte_what_safetensors_writes_and_reads_back(tmp_path: Path) -> None:
    save_file(TORCH, tmp_path / "theirs", metadata={"format": "pt"})
    read = read_file(tmp_path / "theirs")
    write_file(tmp_path / "ours", read)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    loaded = load_file(tmp_path / "ours")
    assert loaded.keys() == TORCH.keys()
    assert all(torch.equal(loaded[name].float(), tensor.float()) for name, tensor in TORCH.items())


@pytest.mark.parametrize("damage", ["cut", "no header", "giant header", "outside", "short", "dtype"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "f"
    save_file(TORCH, path)
    data = path.read_bytes()
    match damage:
        case "cut":
            data = data[:-1]
        case "no header":
            data = b""
        case "giant header":
            data = b"\xff" * 8 + data[8:]
        case "outside":
            data = data.replace(b'"data_offsets":[0,', b'"data_offsets":[-8,', 1)
        case "short":
            data = data.replace(b"[3,5]", b"[3,4]", 1)
        case "dtype":
            data = data.replace(b"BF16", b"I128", 1)
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        read_file(path)


def test_digests_differ_with_every_bit_name_shape_and_dtype() -> None:
    bits = np.arange(6, dtype=np.uint16)
    tensor = StoredTensor("BF16", (2, 3), bits)
    flipped = bits.copy()
    flipped[3] ^= 1
    others = [
        StoredTensor("BF16", (2, 3), flipped),
        StoredTensor("BF16", (3, 2), bits),
        StoredTensor("F16", (2, 3), bits),
    ]
    digests = [tensor_digest(each) for each in (tensor, *others)]
    assert len(set(digests)) == 4
    states = [state_digest({"a": digest}) for digest in digests] + [state_digest({"b": digests[0]}), state_digest({})]
    assert len(set(states)) == 6


def test_parts_keep_the_order_and_the_size() -> None:
    tensors = {name: StoredTensor("BF16", (10,), np.zeros(10, np.uint16)) for name in "dbca"}
    assert [list(part) for part in parts(tensors, 45)] == [["a", "b"], ["c", "d"]]
    assert [list(part) for part in parts(tensors, 1)] == [["a"], ["b"], ["c"], ["d"]]


def test_scales_stay_with_their_weight() -> None:
    tensors = {name: StoredTensor("BF16", (10,), np.zeros(10, np.uint16)) for name in ("a", "b", "b_scale_inv", "c")}
    assert [list(part) for part in parts(tensors, 25)] == [["a"], ["b", "b_scale_inv"], ["c"]]
