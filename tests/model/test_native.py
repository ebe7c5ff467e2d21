"""Native models of several kinds, of random weights: batched by the engine they say what `generate` says."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Glm4Config,
    GlmConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from model_api.embedded import ensure_embedded
from model_api.loading import load_model
from model_api.request import Finished, Request
from model_api.settings import from_environment
from model_api.text import BROKEN
from tests.model.driving import GREEDY, driving

SIZE = {
    "vocab_size": 1024,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "bos_token_id": None,
    "tie_word_embeddings": False,
}
KINDS: list[tuple[PreTrainedConfig, str]] = [
    (GlmConfig(**SIZE), "sdpa"),
    (GlmConfig(**SIZE), "eager"),
    (Glm4Config(**SIZE), "sdpa"),
    (LlamaConfig(**SIZE), "sdpa"),
    (Qwen3Config(**SIZE), "sdpa"),
    (MistralConfig(**SIZE, sliding_window=128), "sdpa"),
]


def write(directory: Path, embedded: Path, config: PreTrainedConfig, attention: str) -> Path:
    """A model directory of random weights with the embedded model's words."""
    shutil.copytree(embedded, directory, ignore=shutil.ignore_patterns("*.safetensors", "SHA256SUMS", "*config.json"))
    shutil.copy(embedded / "tokenizer_config.json", directory)
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(directory)
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_attn_implementation": attention}))
    return directory


@pytest.mark.parametrize(("config", "attention"), KINDS, ids=[f"{config.model_type}-{how}" for config, how in KINDS])
def test_a_native_model_says_in_a_batch_what_generate_says(
    model_cache: Path, tmp_path: Path, config: PreTrainedConfig, attention: str
) -> None:
    directory = write(tmp_path / "model", ensure_embedded(model_cache), config, attention)
    model = load_model(from_environment({"MODEL_PATH": str(directory)}))
    assert model.family == config.model_type
    assert model.decoder._model.config._attn_implementation == attention  # type: ignore[attr-defined]
    plain: Any = AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention).eval()
    chance = random.Random(9)
    requests = [
        Request(
            [chance.randrange(10, 1024) for _ in range(chance.randint(1, 50))],
            chance.randint(1, 40),
            GREEDY,
            chat=False,
        )
        for _ in range(16)
    ]
    expected = []
    for request in requests:
        ids = torch.tensor([request.prompt])
        made = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=request.max_tokens, do_sample=False
        )
        said = [token for token in made[0, len(request.prompt) :].tolist() if token != 0]
        expected.append(said)
    with driving(model, max_batch=5) as driven:
        answers = [driven.ask(request) for request in requests]
        assert all(isinstance(answer.end(), Finished) for answer in answers)
    assert [answer.tokens for answer in answers] == expected
    # Half a character at the end of a prompt of random ids is made whole by the answer, or stays broken.
    wholes = [model.codec.decode([*request.prompt, *said]) for request, said in zip(requests, expected, strict=True)]
    assert all(whole.endswith(answer.text.lstrip(BROKEN)) for whole, answer in zip(wholes, answers, strict=True))
    assert any(answer.text == model.codec.decode(said) for answer, said in zip(answers, expected, strict=True))
    assert len(set(map(tuple, expected))) > 12


def test_a_sliding_window_limits_the_context_to_what_every_layer_sees(model_cache: Path, tmp_path: Path) -> None:
    config = MistralConfig(**SIZE, sliding_window=128)
    directory = write(tmp_path / "model", ensure_embedded(model_cache), config, "sdpa")
    assert load_model(from_environment({"MODEL_PATH": str(directory)})).context == 128
