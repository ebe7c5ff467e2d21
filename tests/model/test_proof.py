"""A model that this server would decode wrong is found out when it is loaded, not by its users."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    LlamaConfig,
    MptConfig,
    Phi3Config,
    PreTrainedConfig,
    RwkvConfig,
)

from model_api.backends.base import LoadedModel, LoadError, Prompt
from model_api.backends.native import RowDecoder, check_architecture
from model_api.backends.proof import STEPS, prove
from model_api.embedded import ensure_embedded
from model_api.loading import load_model
from model_api.settings import from_environment
from tests.model.driving import Meddler
from tests.model.test_native import SIZE, write

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"vocab_size": 1024, "hidden_size": 48, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": 0}
BLOOM = BloomConfig(**SMALL, n_layer=2, n_head=4)
FALCON = FalconConfig(**SMALL, num_hidden_layers=2, num_attention_heads=4, alibi=True, new_decoder_architecture=False)
MPT = MptConfig(vocab_size=1024, d_model=48, n_heads=4, n_layers=2)
NEO = GPTNeoConfig(**SMALL, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=4)
RWKV = RwkvConfig(**SMALL, num_hidden_layers=2, attention_hidden_size=48)
WRONG: list[PreTrainedConfig] = [BLOOM, FALCON, NEO, RWKV]
IDS = [config.model_type for config in WRONG]


def alive(model: Any) -> Any:
    """The model with weights that make its answers differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def model(embedded: LoadedModel) -> LoadedModel:
    return embedded


def test_a_right_model_passes_in_every_precision(model_cache: Path) -> None:
    for dtype in ("float32", "bf16", "fp16"):
        prove(load_model(from_environment({"MODEL_CACHE": str(model_cache), "DTYPE": dtype})))


def test_the_proof_is_a_few_short_passes(model: LoadedModel) -> None:
    passes: list[int] = []
    meddler = Meddler(model.decoder)
    meddler.before_add = lambda prompts: passes.append(sum(len(prompt) for prompt in prompts))
    meddler.before_step = lambda tokens: passes.append(len(tokens))
    prove(replace(model, decoder=meddler))
    assert len(passes) <= 8
    assert sum(passes) < 400


@pytest.mark.parametrize("config", WRONG, ids=IDS)
def test_a_family_known_to_be_decoded_wrong_is_refused_by_name(config: PreTrainedConfig, tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=rf"{config.model_type} has .*serve it with an engine that knows it"):
        check_architecture(config, tmp_path)


@pytest.mark.parametrize("config", WRONG, ids=IDS)
def test_the_proof_alone_finds_what_is_known_to_be_wrong(config: PreTrainedConfig, model: LoadedModel) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    wrong = alive(AutoModelForCausalLM.from_config(config))
    with pytest.raises(LoadError, match="cannot decode this architecture in rows of different lengths"):
        prove(replace(model, decoder=RowDecoder(wrong, CPU), vocabulary=1024))


def test_an_alibi_that_is_the_same_for_all_columns_is_right_and_passes(model: LoadedModel, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    check_architecture(MPT, tmp_path)
    prove(replace(model, decoder=RowDecoder(alive(AutoModelForCausalLM.from_config(MPT)), CPU), vocabulary=1024))


def test_a_directory_of_such_a_family_is_refused_whole(model_cache: Path, tmp_path: Path) -> None:
    directory = write(tmp_path / "model", ensure_embedded(model_cache), BLOOM, "eager")
    with pytest.raises(LoadError, match=r"model: bloom has alibi, with which this server would answer wrong"):
        load_model(from_environment({"MODEL_PATH": str(directory)}))


class DropsAToken(Meddler):
    """Its past lacks each prompt's first token."""

    def add(self, prompts: Sequence[Prompt]) -> Tensor:
        return super().add([Prompt(prompt.ids[1:] or prompt.ids, prompt.generated) for prompt in prompts])

    def step(self, tokens: Sequence[int]) -> Tensor:
        return self._decoder.step([*tokens[:-1], 5])


class MixesRows(Meddler):
    """Rows beside one another get each other's answers a little."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        logits = super().step(tokens)
        return 0.7 * logits + 0.3 * logits.flip(0)


class GivesNoNumbers(Meddler):
    """As weights do that overflow."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        return super().step(tokens) * float("nan")


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (DropsAToken, "answers differently together with another row and without a cache"),
        (MixesRows, "answers differently together with another row"),
        (GivesNoNumbers, r"no numbers \(NaN or infinity\).*set DTYPE=bfloat16 or float32"),
    ],
)
def test_a_decoder_that_is_a_little_wrong_is_found_out(model: LoadedModel, kind: type[Meddler], told: str) -> None:
    with pytest.raises(LoadError, match=told):
        prove(replace(model, decoder=kind(model.decoder)))


def test_a_tie_may_fall_either_way(model: LoadedModel) -> None:
    meddler = Meddler(model.decoder)
    chance = torch.Generator().manual_seed(1)
    meddler.after = lambda logits: logits.round() + 1e-3 * torch.randn(logits.shape, generator=chance)
    prove(replace(model, decoder=meddler))


def test_memory_that_runs_out_in_the_proof_is_no_fault_of_the_model(model: LoadedModel) -> None:
    def run_out(_: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    meddler = Meddler(model.decoder)
    meddler.before_step = run_out
    with pytest.raises(torch.OutOfMemoryError):
        prove(replace(model, decoder=meddler))
    assert STEPS > 0


# --- ropes that change with the longest row -----------------------------------------------------------------------


def test_a_rope_that_changes_with_the_longest_row_is_kept_to_its_first_range(
    model_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [4.0] * 6}
    config = Phi3Config(
        **{**SIZE, "max_position_embeddings": 2048},
        original_max_position_embeddings=256,
        rope_parameters={**rope, "rope_theta": 10000.0, "original_max_position_embeddings": 256},
    )
    directory = write(tmp_path / "model", ensure_embedded(model_cache), config, "sdpa")
    with caplog.at_level(logging.WARNING):
        assert load_model(from_environment({"MODEL_PATH": str(directory)})).context == 256
    assert "the context is limited to these (of 2048)" in caplog.text


def test_a_rope_that_does_not_change_keeps_the_whole_context(model_cache: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    directory = write(
        tmp_path / "model", ensure_embedded(model_cache), LlamaConfig(**SIZE, rope_parameters=rope), "sdpa"
    )
    assert load_model(from_environment({"MODEL_PATH": str(directory)})).context == 512
