"""The family's native decoder against its authors' code, from the directory that CHATGLM_REMOTE_CODE names.

The directory holds modeling_chatglm.py, configuration_chatglm.py and tokenization_chatglm.py of one generation, or has
one subdirectory for each of several. Weights are random, of a tiny and of a middle size (about 60 million).
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from model_api.backends.base import LoadedModel, Prompt
from model_api.backends.weights import open_tensors
from model_api.loading import load_model
from model_api.request import Request
from model_api.settings import from_environment
from tests.model.driving import GREEDY, driving
from tests.model.oracle.adapter import load_remote
from tests.model.published import read_config, write_published, write_tensors
from tests.model.sentences import mixed_sentences

ROOT = Path(os.environ["CHATGLM_REMOTE_CODE"])
CODE = [place for place in (ROOT, *sorted(ROOT.iterdir())) if (place / "modeling_chatglm.py").is_file()]
QUESTIONS = ("你好", "ping", "晚上睡不着应该怎么办", "a  b\n\tc", "Hello, how are you today?")
NEAR = 1e-4  # of any logit


def generation_of_code(code: Path) -> str:
    """Which ChatGLM the code files in a directory are of."""
    text = (code / "tokenization_chatglm.py").read_text(encoding="utf-8")
    return "v1" if "ice_text.model" in text else "v3" if "<|user|>" in text else "v2"


def write_with_code(directory: Path, code: Path, **options: Any) -> Path:
    """A directory as published: random weights, and the code files beside them."""
    write_published(directory, generation_of_code(code), **options)
    for file in code.glob("*.py"):
        shutil.copy(file, directory)
    return directory


def load(directory: Path, **env: str) -> LoadedModel:
    return load_model(from_environment({"MODEL_PATH": str(directory), **env}))


@pytest.fixture(scope="module", params=[(code, middle) for code in CODE for middle in (False, True)],
                ids=lambda param: f"{param[0].name}-{'60M' if param[1] else 'tiny'}")  # fmt: skip
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    code, middle = request.param
    return write_with_code(tmp_path_factory.mktemp("remote") / "model", code, middle=middle)


@pytest.fixture(scope="module")
def native(directory: Path) -> LoadedModel:
    return load(directory)


@pytest.fixture(scope="module")
def remote(directory: Path, native: LoadedModel) -> LoadedModel:
    return load_remote(directory, read_config(directory), native.codec)


def prompts(model: LoadedModel) -> list[list[int]]:
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    turns.append([*turns[0], {"role": "assistant", "content": "你好，很高兴"}, *turns[2]])
    return [model.codec.chat(messages) for messages in turns]


def test_there_is_code_to_try() -> None:
    assert CODE, f"no modeling_chatglm.py in {ROOT} or below"


def test_the_oracle_says_what_the_code_says_with_its_own_masks_and_positions(remote: LoadedModel) -> None:
    code = remote.decoder._model  # type: ignore[attr-defined]
    for ids in prompts(remote)[:3]:
        plain = list(ids)
        said: list[int] = []
        with torch.inference_mode():
            for _ in range(12):
                logits = code(input_ids=torch.tensor([plain]), use_cache=False, return_dict=True).logits
                plain.append(int(logits[0, -1].argmax()))
            step = remote.decoder.add([Prompt(ids)])
            for _ in range(12):
                said.append(int(step[0].argmax()))
                step = remote.decoder.step([said[-1]])
            remote.decoder.clear()
        assert said == plain[len(ids) :]


def test_every_logit_is_near_the_codes(
    native: LoadedModel, remote: LoadedModel, record_property: pytest.RecordProperty
) -> None:
    worst = 0.0
    with torch.inference_mode():
        for ids in prompts(native):
            theirs, ours = remote.decoder.add([Prompt(ids)]), native.decoder.add([Prompt(ids)])
            worst = max(worst, float((theirs - ours).abs().max()))
            for _ in range(40):
                token = [int(theirs[0].argmax())]
                theirs, ours = remote.decoder.step(token), native.decoder.step(token)
                worst = max(worst, float((theirs - ours).abs().max()))
            remote.decoder.clear()
            native.decoder.clear()
    record_property("largest difference of logits", worst)
    print(f"largest difference of logits: {worst:.2g} ({native.family}, {native.parameters / 1e6:.1f} M)")
    assert worst < NEAR


def test_fifty_mixed_requests_get_the_answers_of_the_code(native: LoadedModel, remote: LoadedModel) -> None:
    chance = random.Random(5)
    pool = prompts(native)
    requests = [Request(chance.choice(pool), chance.randint(1, 40), GREEDY) for _ in range(50)]
    with driving(remote, max_batch=4) as theirs:
        asked = [theirs.ask(request) for request in requests]
        expected = [(answer.end(), answer.tokens) for answer in asked]
    with driving(native, max_batch=8, kv_budget=320) as ours:  # so little that rows are evicted and taken up again
        answers = []
        for request in requests:
            answers.append(ours.ask(request))
            if chance.random() < 0.4:
                answers[-1].next()
        assert [(answer.end(), answer.tokens) for answer in answers] == expected


# --- words --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CODE, ids=lambda code: code.name)
def spoken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_with_code(tmp_path_factory.mktemp("words") / "model", request.param)


def published_words(directory: Path) -> tuple[Any, Any]:
    """(the code's tokenizer class, an SPTokenizer of it over the directory's file)."""
    file = next(file for name in ("ice_text.model", "tokenizer.model") if (file := directory / name).is_file())
    inner: Any = get_class_from_dynamic_module("tokenization_chatglm.SPTokenizer", str(directory))
    outer: Any = get_class_from_dynamic_module("tokenization_chatglm.ChatGLMTokenizer", str(directory))
    first = file.name == "ice_text.model"
    return outer, inner(str(file), num_image_tokens=0) if first else inner(str(file))


def test_two_thousand_sentences_become_the_ids_of_the_codes_tokenizer_and_come_back(spoken: Path) -> None:
    model = load(spoken)
    _, theirs = published_words(spoken)
    first = model.family == "chatglm-v1"
    for sentence in mixed_sentences(2000, seed=3):
        ours = model.codec.encode(sentence)
        plain = ours[:-2] if first else ours[2:]
        assert plain == theirs.encode(sentence), repr(sentence)
        assert model.codec.decode(ours) == theirs.decode(plain), repr(sentence)


def test_special_ids_are_those_of_the_code(spoken: Path) -> None:
    model = load(spoken)
    _, theirs = published_words(spoken)
    if model.family == "chatglm-v1":
        assert model.codec.encode("")[-2:] == [theirs["[gMASK]"], theirs["<sop>"]]
        assert model.ends == {theirs["<eop>"]}
        return
    special = theirs.special_tokens
    assert model.codec.encode("")[:2] == [special["[gMASK]"], special["sop"]]
    roles = () if model.family == "chatglm-v2" else ("<|user|>", "<|observation|>")
    assert model.ends == {theirs.eos_id, *(special[role] for role in roles)}


def test_dialogues_are_laid_out_as_the_code_lays_them_out(spoken: Path) -> None:
    model = load(spoken)
    outer, inner = published_words(spoken)
    turns = [("你好", "Hello!\n"), ("a  b", ""), ("问：x", "答：y")]
    messages = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    messages.append({"role": "user", "content": "今天天气怎么样？"})
    ours = model.codec.chat(messages)
    if model.family == "chatglm-v1":  # laid out by chat() of the model
        text = "".join(f"[Round {number}]\n问：{q}\n答：{a}\n" for number, (q, a) in enumerate(turns))
        assert ours[:-2] == inner.encode(f"{text}[Round 3]\n问：今天天气怎么样？\n答：")
    elif model.family == "chatglm-v2":
        assert ours[2:] == inner.encode(outer.build_prompt(None, "今天天气怎么样？", turns))
    else:
        command = inner.special_tokens.__getitem__
        self = SimpleNamespace(tokenizer=inner, get_command=command)
        said = [outer.build_single_message(self, each["role"], "", each["content"]) for each in messages]
        assert ours[2:] == [*(token for ids in said for token in ids), command("<|assistant|>")]


# --- P-Tuning v2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [False, True], ids=["plain", "projected"])
def test_a_tuned_prefix_gives_the_logits_of_the_code(spoken: Path, tmp_path: Path, projection: bool) -> None:
    parsed = AutoConfig.from_pretrained(spoken, trust_remote_code=True)
    parsed.pre_seq_len, parsed.prefix_projection, parsed.max_length = 8, projection, 512
    kind: Any = get_class_from_dynamic_module("modeling_chatglm.ChatGLMForConditionalGeneration", str(spoken))
    torch.manual_seed(7)
    remote = kind(parsed, empty_init=False).float().eval()
    native = load(spoken)
    weights = {name: tensor for name, tensor in remote.state_dict().items() if "prefix_encoder" in name}
    with torch.no_grad():
        weights["transformer.prefix_encoder.embedding.weight"].mul_(0.6)
    remote.load_state_dict({**open_tensors(spoken), **weights})
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    write_tensors(checkpoint, weights, "bin")
    tuned = load(spoken, PTUNING_PATH=str(checkpoint))
    moved = worst = 0.0
    with torch.inference_mode():
        for ids in prompts(native)[:3]:
            plain = list(ids)
            logits = tuned.decoder.add([Prompt(ids)])
            moved = max(moved, float((logits - native.decoder.add([Prompt(ids)])).abs().max()))
            native.decoder.clear()
            for _ in range(20):
                theirs = remote(input_ids=torch.tensor([plain]), use_cache=False, return_dict=True).logits[0, -1]
                worst = max(worst, float((theirs - logits[0]).abs().max()))
                plain.append(int(theirs.argmax()))
                logits = tuned.decoder.step(plain[-1:])
            tuned.decoder.clear()
    assert worst < NEAR
    assert moved > 100 * NEAR  # the prefix has an effect
