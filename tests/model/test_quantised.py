"""INT8 and INT4: the published directories' own format, and what this server makes of float weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model_api.backends.base import LoadError, Prompt
from model_api.backends.quantised import RowQuantised, count_parameters, dequantise, make_quantised, quantise
from model_api.backends.weights import fill, open_tensors
from model_api.loading import load_model
from model_api.settings import from_environment
from tests.model.published import read_config, write_published, write_tensors

LINEAR = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")


def packed(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A weight in the published format, number by number: with 4 bits the first of two is in the upper half."""
    most = 2 ** (bits - 1) - 1
    rows, scales = [], []
    for row in weight.tolist():
        scale = float(torch.tensor(max(map(abs, row)) / most).half())
        whole = [round(number / scale) for number in row]
        if bits == 4:
            whole = [(one & 15) << 4 | other & 15 for one, other in zip(whole[::2], whole[1::2], strict=True)]
            whole = [byte - 256 if byte > 127 else byte for byte in whole]
        rows.append(whole)
        scales.append(scale)
    return torch.tensor(rows, dtype=torch.int8), torch.tensor(scales).half()


def write_quantised(directory: Path, generation: str, bits: int) -> dict[str, Tensor]:
    """A published INT8 or INT4 directory; returns the weights that it stands for."""
    write_published(directory, generation)
    stored: dict[str, Tensor] = {}
    meant: dict[str, Tensor] = {}
    for name, tensor in open_tensors(directory).items():
        stored[name] = meant[name] = tensor.clone()
        if name.endswith(LINEAR) and ".layers." in name:
            stored[name], scale = packed(tensor, bits)
            stored[f"{name}_scale"] = scale
            meant[name] = dequantise(stored[name], scale, bits)
    (directory / "model.safetensors").unlink()
    write_tensors(directory, stored, "bin")
    (directory / "config.json").write_text(json.dumps({**read_config(directory), "quantization_bit": bits}))
    return meant


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("generation", ["v1", "v2"])
def test_a_published_quantised_directory_answers_as_the_weights_it_stands_for(
    tmp_path: Path, generation: str, bits: int
) -> None:
    meant = write_quantised(tmp_path / "model", generation, bits)
    plain = tmp_path / "plain"
    write_published(plain, generation)
    write_tensors(plain, meant)
    models = [load_model(from_environment({"MODEL_PATH": str(path)})) for path in (tmp_path / "model", plain)]
    with torch.inference_mode():
        ids = models[0].codec.encode("晚上睡不着应该怎么办")
        ours, theirs = (model.decoder.add([Prompt(ids)]) for model in models)
    assert float((ours - theirs).abs().max()) < 1e-4


def test_a_published_quantised_embedding_is_multiplied_out(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v1", quantization_bit=4)
    stored = {name: tensor.clone() for name, tensor in open_tensors(written).items()}
    name = "transformer.word_embeddings.weight"
    meant = stored[name]
    stored[name], stored[f"{name}_scale"] = packed(meant, 4)
    write_tensors(written, stored)
    decoder = load_model(from_environment({"MODEL_PATH": str(written)})).decoder
    held: Tensor = decoder._model.word_embeddings.weight  # type: ignore[attr-defined]
    assert held.shape == meant.shape
    assert float((held - meant).abs().max()) <= float(stored[f"{name}_scale"].max()) * 0.51


def test_scales_without_a_word_of_how_many_bits_are_refused(tmp_path: Path) -> None:
    write_quantised(tmp_path / "model", "v2", 8)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**read_config(tmp_path / "model"), "quantization_bit": 0}))
    with pytest.raises(LoadError, match=r"config\.json has no quantization_bit"):
        load_model(from_environment({"MODEL_PATH": str(tmp_path / "model")}))


@pytest.mark.parametrize(("bits", "near"), [(8, 0.01), (4, 0.15)])
def test_a_quantised_layer_computes_nearly_what_the_layer_did(bits: int, near: float) -> None:
    torch.manual_seed(2)
    linear = nn.Linear(64, 48)
    model = nn.Sequential(nn.Linear(64, 48, device="meta"))
    make_quantised(model, bits)
    tensors = [("0.weight", linear.weight.detach()), ("0.bias", linear.bias.detach())]
    fill(model, tensors, lambda name, tensor: ((name, tensor),), Path("x"), torch.float32, torch.device("cpu"))
    layer = model[0]
    assert isinstance(layer, RowQuantised)
    assert layer.weight.numel() == 64 * 48 * bits // 8
    assert count_parameters(model) == 64 * 48 + 48
    given = torch.randn(5, 64)
    with torch.inference_mode():
        wanted, got = linear(given), layer(given)
    assert float((wanted - got).norm() / wanted.norm()) < near


@pytest.mark.parametrize("bits", [8, 4])
def test_whole_numbers_are_those_of_the_published_format(bits: int) -> None:
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(3))
    weight[3] = 0  # a row of nothing has no scale
    whole, scale = quantise(weight, bits, torch.float16)
    others = [row for row in range(7) if row != 3]
    expected, scales = packed(weight[others], bits)
    assert torch.equal(whole[others], expected)
    assert torch.equal(scale[others], scales)
    assert float(dequantise(whole, scale, bits)[3].abs().max()) == 0


@pytest.mark.parametrize("bits", [8, 4])
def test_published_whole_numbers_may_stay_as_small_as_they_are(bits: int) -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(5))
    whole, scale = packed(weight, bits)
    model = nn.Sequential(nn.Linear(64, 48, device="meta"))
    make_quantised(model, bits)
    tensors = [("0.weight", whole), ("0.weight_scale", scale), ("0.bias", torch.ones(48))]
    fill(model, tensors, lambda name, tensor: ((name, tensor),), Path("x"), torch.float32, torch.device("cpu"))
    given = torch.randn(5, 64)
    with torch.inference_mode():
        expected = given @ dequantise(whole, scale, bits).T + 1
        assert torch.allclose(model(given), expected, atol=1e-4)
    assert model[0].weight.dtype == torch.int8
