"""Models that are not what they should be: refused before anybody is served, in words, as the last line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model_api.backends.base import LoadError
from model_api.embedded import ensure_embedded
from model_api.loading import load_model
from model_api.manifest import DamagedModel, check_files, write_manifest
from model_api.settings import from_environment
from tests.model.conftest import StartServer
from tests.model.running import ModelServer

Damage = Callable[[Path], None]


@pytest.fixture
def directory(model_cache: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model, to be damaged; without a manifest."""
    copy = tmp_path / "model"
    shutil.copytree(ensure_embedded(model_cache), copy)
    (copy / "SHA256SUMS").unlink()
    return copy


def load(directory: Path, **env: str) -> None:
    load_model(from_environment({"MODEL_PATH": str(directory), **env}))


def rewrite(directory: Path, change: Callable[[dict[str, object]], None]) -> None:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def cut_short(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def cut_in_the_header(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])


def emptied(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"")


def without_a_tensor(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, file, {"format": "pt"})


def with_a_tensor_too_many(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.7.mlp.down_proj.weight"] = tensors["model.layers.1.mlp.down_proj.weight"].clone()
    save_file(tensors, file, {"format": "pt"})


def with_another_shape(directory: Path) -> None:
    rewrite(directory, lambda config: config.update(intermediate_size=64))


def without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def without_a_template(directory: Path) -> None:
    (directory / "chat_template.jinja").unlink()


def without_a_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def of_an_unknown_kind(directory: Path) -> None:
    rewrite(directory, lambda config: config.update(model_type="abacus"))


def of_a_kind_that_is_no_language_model(directory: Path) -> None:
    rewrite(directory, lambda config: config.update(model_type="vit"))


def with_broken_json(directory: Path) -> None:
    (directory / "config.json").write_text("{")


WORDS: list[tuple[Damage, str]] = [
    (cut_short, r"model\.safetensors has \d+ bytes where its header promises \d+; copy the file again"),
    (cut_in_the_header, r"model\.safetensors is cut short: 100 bytes do not hold its header"),
    (emptied, r"model\.safetensors is cut short: 0 bytes"),
    (without_a_tensor, r"missing tensors, which would be random numbers: model\.layers\.1\.mlp\.down_proj\.weight"),
    (with_a_tensor_too_many, r"tensors that the model has no place for: model\.layers\.7\.mlp\.down_proj\.weight"),
    (with_another_shape, r"another shape|size mismatch|mismatched"),
    (without_weights, r"cannot load .*model"),
    (without_a_template, r"the tokenizer has no chat template"),
    (without_a_tokenizer, r"cannot load .*model"),
    (of_an_unknown_kind, r"model_type 'abacus' is no causal model that transformers knows"),
    (of_a_kind_that_is_no_language_model, r"model_type 'vit' is no causal model"),
    (with_broken_json, r"cannot read .*config\.json"),
]


@pytest.mark.parametrize(("damage", "words"), WORDS, ids=[damage.__name__ for damage, _ in WORDS])
def test_a_damaged_directory_is_refused_and_the_damage_named(directory: Path, damage: Damage, words: str) -> None:
    damage(directory)
    with pytest.raises((LoadError, DamagedModel), match=words):
        load(directory)


def test_an_undamaged_copy_loads(directory: Path) -> None:
    load(directory)


def test_a_manifest_catches_what_no_prompt_would(directory: Path) -> None:
    write_manifest(directory)
    assert check_files(directory) > 3
    file = directory / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-20_000:-19_000] = bytes(1000)
    file.write_bytes(data)
    with pytest.raises(DamagedModel, match=r"model\.safetensors does not match its checksum in SHA256SUMS"):
        load(directory)


def test_a_manifest_as_sha256sum_writes_it_is_read_and_a_missing_file_named(directory: Path) -> None:
    write_manifest(directory)
    manifest = directory / "SHA256SUMS"
    manifest.write_text(manifest.read_text().replace("  ", " *"))
    (directory / "tokenizer.json").unlink()
    with pytest.raises(DamagedModel, match=r"tokenizer\.json is named in SHA256SUMS and is missing"):
        check_files(directory)


@pytest.mark.parametrize("bits", ["8", "4"])
def test_quantisation_without_a_gpu_is_refused_in_words(directory: Path, bits: str) -> None:
    with pytest.raises(LoadError, match=f"QUANTIZE={bits} needs a CUDA GPU and none is visible; unset QUANTIZE"):
        load(directory, QUANTIZE=bits)


def test_half_precision_is_served_where_it_is_asked_for(directory: Path) -> None:
    model = load_model(from_environment({"MODEL_PATH": str(directory), "DTYPE": "bf16"}))
    assert str(model.dtype) == "torch.bfloat16"


def test_layers_that_this_server_cannot_batch_are_refused(directory: Path) -> None:
    rewrite(directory, lambda config: config.update(layer_types=["full_attention", "chunked_attention"]))
    with pytest.raises(LoadError, match=r"chunked_attention|layer_types"):
        load(directory)


def test_a_damaged_embedded_model_is_built_again(model_cache: Path, start_server: StartServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(model_cache, cache)
    cut_short(ensure_embedded(cache))
    server = start_server(MODEL_CACHE=str(cache))
    assert server.ask().json()["response"].startswith("你好！")
    assert "building the embedded model again" in server.log


# --- as a process -------------------------------------------------------------------------------------------------


def fails_to_start(log: Path, **env: str) -> ModelServer:
    server = ModelServer(log, env)
    assert server.wait() == 1
    server.check_log()
    assert "serving" not in server.log.rpartition("cannot serve")[0]
    return server


@pytest.mark.parametrize("damage", [cut_short, without_a_tensor], ids=lambda damage: damage.__name__)
def test_a_server_that_cannot_load_exits_1_with_the_reason_as_its_last_line(
    directory: Path, tmp_path: Path, damage: Damage
) -> None:
    damage(directory)
    server = fails_to_start(tmp_path / "log", MODEL_PATH=str(directory))
    assert server.last_line.startswith(f"model_api: cannot serve: {directory}")


def test_a_cache_that_cannot_be_made_ends_the_server_with_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    server = fails_to_start(tmp_path / "log", MODEL_CACHE=str(cache))
    assert server.last_line == (
        f"model_api: cannot serve: cannot build the embedded model in {cache}: Not a directory; "
        "set MODEL_CACHE to a directory that can be written, or MODEL_PATH to a model"
    )


def test_a_disk_that_takes_no_more_ends_the_server_and_leaves_nothing_half_built(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from model_api.__main__ import _leave, main\n"
        "_leave(main([]))\n"
    )
    server = ModelServer(tmp_path / "log", {"MODEL_CACHE": str(cache)}, command=("-c", script))
    assert server.wait() == 1
    server.check_log()
    assert "cannot build the embedded model in" in server.last_line
    assert [file.name for file in cache.iterdir()] == [".build.lock"]
