"""ChatGLM-6B, 2, 3 and GLM-4 from directories in their published layouts, of random weights: right, and in rows."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model_api.backends.base import LoadedModel, LoadError, Prompt
from model_api.backends.chatglm1 import first_mask, first_positions
from model_api.backends.glm_family import generation_of
from model_api.backends.weights import open_tensors
from model_api.loading import load_model
from model_api.manifest import DamagedModel
from model_api.request import Request
from model_api.settings import from_environment
from tests.model.driving import GREEDY, driving, meddled
from tests.model.published import GENERATIONS, read_config, write_published, write_tensors
from tests.model.reference import first_logits, later_logits

QUESTIONS = ("你好", "ping", "晚上睡不着应该怎么办", "a  b\n\tc", "Hello, how are you today?")


def load(directory: Path, **env: str) -> LoadedModel:
    return load_model(from_environment({"MODEL_PATH": str(directory), **env}))


def logits_of(directory: Path, ids: Sequence[int], context: int, **rope: float) -> Tensor:
    """What the plain arithmetic says after `ids`."""
    tensors, config = open_tensors(directory), read_config(directory)
    if "inner_hidden_size" in config:
        return first_logits(tensors, config, ids, context)[-1]
    return later_logits(tensors, config, ids, **rope)[-1]


def furthest_apart(model: LoadedModel, directory: Path, question: str, **rope: float) -> float:
    """The largest difference of any logit over 12 tokens between the server's decoder and the plain arithmetic."""
    ids = model.codec.chat([{"role": "user", "content": question}])
    said: list[int] = []
    worst = 0.0
    with torch.inference_mode():
        logits = model.decoder.add([Prompt(ids)])
        for _ in range(12):
            plain = logits_of(directory, [*ids, *said], len(ids) - 1, **rope)
            worst = max(worst, float((logits[0] - plain).abs().max()))
            said.append(int(plain.argmax()))
            logits = model.decoder.step(said[-1:])
        model.decoder.clear()
    return worst


@pytest.fixture(scope="module", params=GENERATIONS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / "model", request.param)


@pytest.fixture(scope="module")
def model(directory: Path) -> LoadedModel:
    return load(directory)


def test_a_published_directory_says_what_its_arithmetic_says(model: LoadedModel, directory: Path) -> None:
    for question in QUESTIONS:
        assert furthest_apart(model, directory, question) < 1e-4


def test_fifty_requests_together_say_what_each_says_alone(model: LoadedModel) -> None:
    chance = random.Random(5)
    pool = [model.codec.chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    requests = [Request(chance.choice(pool), chance.randint(1, 40), GREEDY) for _ in range(50)]
    with driving(model, max_batch=1) as alone:
        singly = [alone.ask(request) for request in requests]
        expected = [(answer.end(), answer.tokens) for answer in singly]
    with driving(model, max_batch=8, kv_budget=320) as together:
        answers = []
        for request in requests:
            answers.append(together.ask(request))
            if chance.random() < 0.4:
                answers[-1].next()
        assert [(answer.end(), answer.tokens) for answer in answers] == expected
    assert len({tuple(tokens) for _, tokens in expected}) > 10


def test_rows_that_are_evicted_and_taken_up_again_go_on_where_they_were(model: LoadedModel) -> None:
    chat = model.codec.chat
    requests = [Request(chat([{"role": "user", "content": q}]), 60, GREEDY, ignore_end=True) for q in QUESTIONS]
    with driving(model) as roomy:
        expected = roomy.answers(requests)
    broken, meddler = meddled(model)
    chance = random.Random(8)

    def now_and_then(_: Sequence[int]) -> None:
        if meddler.rows > 2 and chance.random() < 0.1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    meddler.before_step = now_and_then
    with driving(broken, kv_budget=320) as tight:
        assert tight.answers(requests) == expected


@pytest.mark.parametrize(("kind", "shards"), [("safetensors", 3), ("bin", 1), ("bin", 3)])
@pytest.mark.parametrize("generation", ["v1", "v3"])
def test_weights_are_read_from_whatever_files_they_were_published_in(
    tmp_path: Path, generation: str, kind: str, shards: int
) -> None:
    written = write_published(tmp_path / "model", generation, kind=kind, shards=shards)
    assert furthest_apart(load(written), written, "你好") < 1e-4


def test_weights_stay_in_memory_when_their_files_are_gone(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v3", kind="bin")
    model = load(written)
    kept = tmp_path / "kept"
    shutil.copytree(written, kept)
    (written / "pytorch_model.bin").write_bytes(b"")
    assert furthest_apart(model, kept, "你好") < 1e-4


@pytest.mark.parametrize(
    ("generation", "code", "rope"),
    [
        ("v2", "", {"stretch": 4.0}),  # ChatGLM2-6B-32k: positions are interpolated
        ("v3", "", {"base": 40000.0}),  # ChatGLM3-6B-32k and -128k: the base grows
        ("glm4", "", {"base": 40000.0}),
        ("v2", "base = base * self.rope_ratio", {"base": 40000.0}),  # a revision of its own
        ("v3", "seq_idx = torch.arange(n) / self.rope_ratio", {"stretch": 4.0}),
    ],
)
def test_rope_ratio_means_what_it_meant_in_each_generation(
    tmp_path: Path, generation: str, code: str, rope: dict[str, float]
) -> None:
    written = write_published(tmp_path / "model", generation, rope_ratio=4)
    if code:
        (written / "modeling_chatglm.py").write_text(f"def forward_impl(self):\n    {code}\n")
    assert furthest_apart(load(written), written, QUESTIONS[-1], **rope) < 1e-4


def test_chatglm_6b_from_before_its_image_tokens_were_cut_off_is_read(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v1", slim=False)
    model = load(written)
    assert model.vocabulary > 20_000
    assert furthest_apart(model, written, "你好  a\tb") < 1e-4


def test_the_first_model_in_half_precision_rounds_its_angles_as_it_was_trained(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v1")
    model: Any = load(written, DTYPE="bf16").decoder
    rope = model._model.rope
    angle = torch.tensor(301.0).half() * torch.tensor(1 / 10000 ** (2 / 8)).half()
    assert rope.cos[301, 1] == angle.cos().bfloat16()


def test_no_code_of_a_directory_is_ever_run(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v3")
    for name in ("modeling_chatglm.py", "configuration_chatglm.py", "tokenization_chatglm.py", "quantization.py"):
        (written / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n# <|user|>\n")
    assert load(written).family == "chatglm-v3"
    assert not (tmp_path / "ran").exists()


class Trap:
    """What a pickle that would run code looks like."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_a_bin_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v3", kind="bin")
    torch.save({"transformer.output_layer.weight": Trap(tmp_path / "ran")}, written / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"pytorch_model\.bin holds more than tensors, or is damaged, and is not read"):
        load(written)
    assert not (tmp_path / "ran").exists()


# --- masks and positions ------------------------------------------------------------------------------------------


def test_the_context_is_seen_in_both_directions_and_the_answer_only_backwards() -> None:
    assert first_mask(torch.tensor([3, 1]), 5).int().tolist()[0][0] == [
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
    ]


def test_the_first_position_stays_at_the_gmask_and_the_second_counts_the_answer() -> None:
    assert first_positions(torch.tensor([4]), 7).tolist() == [[[0, 1, 2, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3]]]


# --- which generation, and what is missing ------------------------------------------------------------------------


def described(directory: Path, config: dict[str, Any], **files: str) -> dict[str, Any]:
    """A directory with a configuration and files of the given text."""
    (directory / "config.json").write_text(json.dumps({"model_type": "chatglm", **config}))
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text)
    return config


@pytest.mark.parametrize(
    ("config", "files", "family"),
    [
        ({"position_encoding_2d": True}, {"ice_text__model": ""}, "chatglm-v1"),
        ({}, {"tokenizer__model": "", "tokenization_chatglm__py": "def build_prompt"}, "chatglm-v2"),
        ({}, {"tokenizer__model": "", "tokenization_chatglm__py": 'roles = ["<|user|>"]'}, "chatglm-v3"),
        ({}, {"tokenizer__model": "", "tokenizer_config__json": '{"a": "<|user|>"}'}, "chatglm-v3"),
        ({"_name_or_path": "THUDM/chatglm2-6b-32k"}, {"tokenizer__model": ""}, "chatglm-v2"),
        ({"_name_or_path": "THUDM/codegeex2-6b"}, {"tokenizer__model": ""}, "chatglm-v2"),
        ({}, {"tokenizer__model": "", "tokenizer_config__json": '{"name_or_path": "x/ChatGLM3-6b"}'}, "chatglm-v3"),
        ({}, {"tokenizer__model": "IQ== 0\nIg== 1\n"}, "glm-4"),
    ],
)
def test_the_generation_is_read_from_the_directory(
    tmp_path: Path, config: dict[str, Any], files: dict[str, str], family: str
) -> None:
    assert generation_of(tmp_path, described(tmp_path, config, **files)).family == family


@pytest.mark.parametrize(
    ("config", "files", "told"),
    [
        ({"position_encoding_2d": True}, {}, r"ice_text\.model is missing"),
        ({"position_encoding_2d": False}, {"ice_text__model": ""}, "position_encoding_2d = false is not supported"),
        ({}, {}, r"tokenizer\.model is missing"),
        ({}, {"tokenizer__model": "version https://git-lfs.github.com/spec/v1\n"}, "run `git lfs pull` in"),
        ({}, {"tokenizer__model": ""}, 'give config.json "_name_or_path": "chatglm2-6b" or "chatglm3-6b"'),
        ({"vision_config": {}}, {"tokenizer__model": ""}, "a model of images"),
    ],
)
def test_a_directory_that_cannot_be_served_is_told_what_is_missing(
    tmp_path: Path, config: dict[str, Any], files: dict[str, str], told: str
) -> None:
    with pytest.raises(LoadError, match=told):
        generation_of(tmp_path, described(tmp_path, config, **files))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rmsnorm": False}, "rmsnorm = False is not supported, only True"),
        ({"add_bias_linear": True}, "add_bias_linear = True is not supported, only False"),
        ({"multi_query_attention": False}, "multi_query_attention = False is not supported"),
        ({"num_layers": None}, "num_layers must be a whole number above 0"),
        ({"num_layers": 4}, "missing tensors, which would be random numbers"),
        ({"num_layers": 2}, "tensors that the model has no place for"),
        ({"ffn_hidden_size": 64}, "tensors of another shape"),
        ({"pre_seq_len": 8}, "set PTUNING_PATH to the checkpoint that has it"),
        ({"quantization_bit": 3}, "quantization_bit = 3 is not supported, only 8 and 4"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_its_key(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    written = write_published(tmp_path / "model", "v3")
    file = written / "config.json"
    file.write_text(json.dumps({**read_config(written), **change}))
    with pytest.raises(LoadError, match=told):
        load(written)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_missing_shard_is_named(tmp_path: Path, kind: str) -> None:
    written = write_published(tmp_path / "model", "v1", kind=kind, shards=3)
    next(written.glob("*-00002-of-00003.*")).unlink()
    with pytest.raises(LoadError, match=r"-00002-of-00003\.\w+ is missing; copy the whole directory"):
        load(written)


def test_a_shard_that_is_cut_short_is_named(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v1", kind="bin", shards=3)
    shard = next(written.glob("*-00002-of-00003.bin"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises((LoadError, DamagedModel), match=r"-00002-of-00003\.bin"):
        load(written)


def test_a_pointer_in_place_of_the_weights_is_told_with_the_command_that_fetches_them(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v1", kind="bin")
    (written / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(LoadError, match=r"pytorch_model\.bin is only git's pointer to the file; run `git lfs pull`"):
        load(written)


def test_an_index_that_points_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v1", shards=2)
    index = written / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../other.safetensors"}}))
    with pytest.raises(LoadError, match="names no files of its own directory"):
        load(written)


def test_a_directory_without_weights_says_what_was_looked_for(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v2")
    (written / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"neither model\.safetensors nor pytorch_model\.bin is there"):
        load(written)


def test_other_files_than_weights_are_not_taken_for_such(tmp_path: Path) -> None:
    written = write_published(tmp_path / "model", "v2")
    write_tensors(written, {"something.else": torch.zeros(3)}, "bin")  # safetensors are preferred to it
    assert load(written).family == "chatglm-v2"
