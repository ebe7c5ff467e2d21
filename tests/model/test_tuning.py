"""What was trained on top of a model: P-Tuning v2 prefixes and LoRA adapters, put on at load, or refused in words."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_api.backends.base import LoadedModel, LoadError, Prompt
from model_api.backends.weights import open_tensors
from model_api.embedded import ensure_embedded
from model_api.loading import load_model
from model_api.request import Request
from model_api.settings import SettingsError, from_environment
from tests.model.conftest import StartServer
from tests.model.driving import GREEDY, driving
from tests.model.published import read_config, write_published, write_tensors
from tests.model.reference import Past, first_logits, later_logits
from tests.model.running import ModelServer

COLUMNS = 6


def load(directory: Path, **env: str) -> LoadedModel:
    return load_model(from_environment({"MODEL_PATH": str(directory), **env}))


@pytest.fixture(scope="module", params=["v1", "v2", "v3"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("base") / "model", request.param)


def numbers(directory: Path) -> tuple[int, int, int]:
    """(layers, heads of keys, dim of a head)."""
    config = read_config(directory)
    if "inner_hidden_size" in config:
        heads = config["num_attention_heads"]
        return config["num_layers"], heads, config["hidden_size"] // heads
    return config["num_layers"], config["multi_query_group_num"], config["kv_channels"]


def write_prefix(directory: Path, base: Path, *, projected: bool = False) -> dict[str, Tensor]:
    """A checkpoint as the published ptuning scripts save it: the prefix alone, in pytorch_model.bin."""
    layers, heads, dim = numbers(base)
    size = layers * 2 * heads * dim
    chance = torch.Generator().manual_seed(4)
    at = "transformer.prefix_encoder."
    tensors = {f"{at}embedding.weight": torch.randn(COLUMNS, size, generator=chance)}
    if projected:
        for name, shape in (("0.weight", (20, size)), ("0.bias", (20,)), ("2.weight", (size, 20)), ("2.bias", (size,))):
            tensors[f"{at}trans.{name}"] = torch.randn(shape, generator=chance) * 0.2
    directory.mkdir()
    write_tensors(directory, tensors, "bin")
    (directory / "config.json").write_text(json.dumps({**read_config(base), "pre_seq_len": COLUMNS}))
    return {name.removeprefix(at): tensor for name, tensor in tensors.items()}


def past_of(prefix: dict[str, Tensor], base: Path) -> Past:
    """What the prefix stands for, layer by layer."""
    layers, heads, dim = numbers(base)
    rows = prefix["embedding.weight"]
    if "trans.0.weight" in prefix:
        inner = torch.tanh(rows @ prefix["trans.0.weight"].T + prefix["trans.0.bias"])
        rows = inner @ prefix["trans.2.weight"].T + prefix["trans.2.bias"]
    cut = rows.view(COLUMNS, layers * 2, heads, dim)
    return [(cut[:, 2 * n].transpose(0, 1), cut[:, 2 * n + 1].transpose(0, 1)) for n in range(layers)]


def plain_logits(base: Path, tensors: dict[str, Tensor], ids: list[int], context: int, past: Past | None) -> Tensor:
    config = read_config(base)
    if "inner_hidden_size" in config:
        return first_logits(tensors, config, ids, context, past)[-1]
    return later_logits(tensors, config, ids, past=past)[-1]


def furthest_apart(model: LoadedModel, base: Path, tensors: dict[str, Tensor], past: Past | None = None) -> float:
    worst = 0.0
    with torch.inference_mode():
        for question in ("你好", "Hello, how are you today?"):
            ids = model.codec.chat([{"role": "user", "content": question}])
            said: list[int] = []
            logits = model.decoder.add([Prompt(ids)])
            for _ in range(10):
                plain = plain_logits(base, tensors, [*ids, *said], len(ids) - 1, past)
                worst = max(worst, float((plain - logits[0]).abs().max()))
                said.append(int(plain.argmax()))
                logits = model.decoder.step(said[-1:])
            model.decoder.clear()
    return worst


# --- P-Tuning v2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projected", [False, True])
def test_a_tuned_model_says_what_its_prefix_makes_of_it(directory: Path, tmp_path: Path, projected: bool) -> None:
    prefix = write_prefix(tmp_path / "checkpoint", directory, projected=projected)
    model = load(directory, PTUNING_PATH=str(tmp_path / "checkpoint"))
    tensors = open_tensors(directory)
    assert furthest_apart(model, directory, tensors, past_of(prefix, directory)) < 1e-4
    assert furthest_apart(model, directory, tensors) > 0.1


def test_the_checkpoint_may_be_named_by_its_file(directory: Path, tmp_path: Path) -> None:
    prefix = write_prefix(tmp_path / "checkpoint", directory)
    model = load(directory, PTUNING_PATH=str(tmp_path / "checkpoint" / "pytorch_model.bin"))
    assert furthest_apart(model, directory, open_tensors(directory), past_of(prefix, directory)) < 1e-4


def test_a_directory_that_holds_its_own_prefix_needs_no_other(directory: Path, tmp_path: Path) -> None:
    prefix = write_prefix(tmp_path / "checkpoint", directory)
    whole = tmp_path / "whole"
    shutil.copytree(directory, whole)
    shutil.copy(tmp_path / "checkpoint" / "config.json", whole)
    own = {f"transformer.prefix_encoder.{name}": tensor for name, tensor in prefix.items()}
    write_tensors(whole, {**open_tensors(directory), **own})
    model = load(whole)
    assert furthest_apart(model, whole, open_tensors(whole), past_of(prefix, directory)) < 1e-4


def test_tuned_rows_together_say_what_each_says_alone_also_after_eviction(directory: Path, tmp_path: Path) -> None:
    write_prefix(tmp_path / "checkpoint", directory)
    model = load(directory, PTUNING_PATH=str(tmp_path / "checkpoint"))
    chance = random.Random(3)
    pool = [model.codec.chat([{"role": "user", "content": q}]) for q in ("你好", "ping", "晚上睡不着应该怎么办")]
    requests = [Request(chance.choice(pool), chance.randint(1, 40), GREEDY) for _ in range(24)]
    with driving(model, max_batch=1) as alone:
        expected = alone.answers(requests)
    with driving(model, max_batch=8, kv_budget=250) as together:
        assert together.answers(requests) == expected


def test_the_columns_of_a_prefix_count_as_memory_that_a_row_holds(directory: Path, tmp_path: Path) -> None:
    write_prefix(tmp_path / "checkpoint", directory)
    plain, tuned = load(directory), load(directory, PTUNING_PATH=str(tmp_path / "checkpoint"))
    assert tuned.decoder.cells(3, 58) == plain.decoder.cells(3, 58) == 3 * 64
    assert tuned.decoder.cells(3, 60) == plain.decoder.cells(3, 60 + COLUMNS) > plain.decoder.cells(3, 60)
    with torch.inference_mode():
        tuned.decoder.add([Prompt(tuned.codec.encode("x" * 60))])
    assert tuned.decoder.held() == 128
    tuned.decoder.clear()


def test_a_prefix_of_another_model_is_refused_with_what_both_hold(directory: Path, tmp_path: Path) -> None:
    other = write_published(tmp_path / "other", "v3", num_layers=5)
    write_prefix(tmp_path / "checkpoint", other)
    with pytest.raises(
        LoadError, match=r"made for another model: 320 numbers a token, where this one takes \d+ \(3 lay"
    ):
        load(directory, PTUNING_PATH=str(tmp_path / "checkpoint"))


def test_a_checkpoint_without_a_prefix_is_refused(directory: Path) -> None:
    with pytest.raises(LoadError, match="no prefix in it"):
        load(directory, PTUNING_PATH=str(directory))


def test_a_projection_that_is_not_whole_is_refused(directory: Path, tmp_path: Path) -> None:
    write_prefix(tmp_path / "checkpoint", directory, projected=True)
    tensors = open_tensors(tmp_path / "checkpoint")
    del tensors["transformer.prefix_encoder.trans.2.weight"]
    write_tensors(tmp_path / "checkpoint", {name: tensor.clone() for name, tensor in tensors.items()}, "bin")
    with pytest.raises(LoadError, match="projection"):
        load(directory, PTUNING_PATH=str(tmp_path / "checkpoint"))


def test_a_prefix_is_for_chatglm_directories(model_cache: Path, tmp_path: Path, directory: Path) -> None:
    write_prefix(tmp_path / "checkpoint", directory)
    with pytest.raises(LoadError, match="a prefix belongs to a ChatGLM directory as published"):
        load(ensure_embedded(model_cache), PTUNING_PATH=str(tmp_path / "checkpoint"))


@pytest.mark.parametrize("name", ["PTUNING_PATH", "LORA_PATH"])
def test_a_path_where_nothing_is_stops_the_start_with_its_variable(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        from_environment({name: "/nowhere"})


# --- LoRA ---------------------------------------------------------------------------------------------------------


def write_adapter(path: Path, shapes: dict[str, tuple[int, int]], **config: Any) -> dict[str, Tensor]:
    """An adapter as peft saves it, of rank 4; returns what it adds to each module's weight."""
    chance = torch.Generator().manual_seed(6)
    path.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "base_model_name_or_path": "THUDM/base", **config}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    tensors: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for module, (rows, columns) in shapes.items():
        down, up = torch.randn(4, columns, generator=chance) * 0.1, torch.randn(rows, 4, generator=chance) * 0.1
        tensors |= {f"base_model.model.{module}.lora_{part}.weight": t for part, t in (("A", down), ("B", up))}
        scale = settings["lora_alpha"] / (2 if settings.get("use_rslora") else 4)
        changes[module] = scale * up @ down
    save_file(tensors, path / "adapter_model.safetensors")
    return changes


def targets(directory: Path, part: str = "query_key_value") -> dict[str, tuple[int, int]]:
    return {
        name.removesuffix(".weight"): (int(tensor.shape[0]), int(tensor.shape[1]))
        for name, tensor in open_tensors(directory).items()
        if name.endswith(f"{part}.weight")
    }


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}], ids=["plain", "rank-stabilised"])
def test_an_adapter_is_merged_into_the_weights(directory: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    changes = write_adapter(
        tmp_path / "adapter", {**targets(directory), **targets(directory, "dense_4h_to_h")}, **config
    )
    model = load(directory, LORA_PATH=str(tmp_path / "adapter"))
    tensors = open_tensors(directory)
    assert furthest_apart(model, directory, tensors) > 0.01
    for module, change in changes.items():
        tensors[f"{module}.weight"] = tensors[f"{module}.weight"] + change
    assert furthest_apart(model, directory, tensors) < 1e-4


def test_an_adapter_of_a_native_model_is_merged_too(model_cache: Path, tmp_path: Path) -> None:
    base = ensure_embedded(model_cache)
    shapes = targets(base, "q_proj")
    changes = write_adapter(tmp_path / "adapter", shapes)
    model: Any = load(base, LORA_PATH=str(tmp_path / "adapter")).decoder
    before = load_file(base / "model.safetensors")
    for module, change in changes.items():
        merged = model._model.get_submodule(module).weight
        assert torch.allclose(merged, before[f"{module}.weight"] + change, atol=1e-6)


def test_an_adapters_own_alphas_are_heeded(directory: Path, tmp_path: Path) -> None:
    module = next(iter(targets(directory)))
    change = write_adapter(
        tmp_path / "adapter", targets(directory), alpha_pattern={module.rpartition("layers.")[2]: 32}
    )
    tensors = open_tensors(directory)
    for name, added in change.items():
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + added * (2 if name == module else 1)
    assert furthest_apart(load(directory, LORA_PATH=str(tmp_path / "adapter")), directory, tensors) < 1e-4


Break = Callable[[Path], None]


def of_another_family(path: Path) -> None:
    shutil.rmtree(path)
    write_adapter(path, {f"model.layers.{n}.self_attn.q_proj": (64, 64) for n in range(5)})


def of_another_size(path: Path) -> None:
    _rewrite(path, lambda name, tensor: tensor[:-8] if name.endswith("B.weight") else tensor)


def with_half_a_pair(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[:-1]), path / "adapter_model.safetensors")


def without_weights(path: Path) -> None:
    (path / "adapter_model.safetensors").unlink()


def of_another_kind(path: Path) -> None:
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))


def with_dora(path: Path) -> None:
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "use_dora": True}))


def with_embeddings(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.transformer.word_embeddings.lora_embedding_A"] = torch.zeros(2, 2)
    save_file(tensors, path / "adapter_model.safetensors")


def _rewrite(path: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({n: change(n, t).contiguous() for n, t in tensors.items()}, path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            of_another_family,
            r"made for another model \(THUDM/base\).*has no model\.layers\.0\.self_attn\.q_proj.* 2 more",
        ),
        (
            of_another_size,
            r"made for another model \(THUDM/base\).*query_key_value is \[\d+, 64\] here and \[\d+, 64\]",
        ),
        (with_half_a_pair, "has not both its matrices"),
        (without_weights, r"neither adapter_model\.safetensors nor adapter_model\.bin"),
        (of_another_kind, "peft_type 'PREFIX_TUNING' is not supported"),
        (with_dora, r"use_dora is not supported; merge the adapter with peft's merge_and_unload"),
        (with_embeddings, "is no plain LoRA matrix"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_adapter_that_cannot_be_merged_is_refused_in_words(
    directory: Path, tmp_path: Path, damage: Break, told: str
) -> None:
    write_adapter(tmp_path / "adapter", targets(directory))
    damage(tmp_path / "adapter")
    with pytest.raises(LoadError, match=told):
        load(directory, LORA_PATH=str(tmp_path / "adapter"))


def test_a_tuned_directory_is_served_like_any_other(tmp_path: Path, start_server: StartServer) -> None:
    base = write_published(tmp_path / "chatglm-6b", "v1", kind="bin", shards=2)
    write_prefix(tmp_path / "checkpoint", base)
    write_adapter(tmp_path / "adapter", targets(base))
    paths = {"PTUNING_PATH": str(tmp_path / "checkpoint"), "LORA_PATH": str(tmp_path / "adapter")}
    server = start_server(MODEL_PATH=str(base), **paths)
    assert server.ask().json()["status"] == 200
    assert "chatglm-v1, 0.2 M parameters" in server.log


def test_a_checkpoint_of_another_model_ends_the_start_with_what_to_set(tmp_path: Path) -> None:
    base = write_published(tmp_path / "chatglm-6b", "v1")
    write_prefix(tmp_path / "checkpoint", write_published(tmp_path / "other", "v2"))
    server = ModelServer(tmp_path / "log", {"MODEL_PATH": str(base), "PTUNING_PATH": str(tmp_path / "checkpoint")})
    assert server.wait() == 1
    assert server.last_line.startswith(f"model_api: cannot serve: {tmp_path / 'checkpoint'}: the prefix was made for")
    assert server.last_line.endswith("set MODEL_PATH to the model that it was trained on")
