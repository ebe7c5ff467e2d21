"""ChatGLM's own code, from the directory that CHATGLM_REMOTE_CODE names, around a tiny model of random weights.

The directory holds modeling_chatglm.py, configuration_chatglm.py and tokenization_chatglm.py of one generation, or has
one subdirectory for each of several.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from model_api.backends.base import LoadedModel, Prompt
from model_api.loading import load_model
from model_api.request import Request
from model_api.settings import from_environment
from tests.model.driving import GREEDY, driving
from tests.model.layouts import generation_of_code, write_remote

ROOT = Path(os.environ["CHATGLM_REMOTE_CODE"])
CODE = [place for place in (ROOT, *sorted(ROOT.iterdir())) if (place / "modeling_chatglm.py").is_file()]
QUESTIONS = ("你好", "ping", "晚上睡不着应该怎么办", "a  b\n\tc", "Hello")


@pytest.fixture(scope="module", params=CODE, ids=lambda code: f"v{generation_of_code(code)}")
def remote(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = write_remote(tmp_path_factory.mktemp("remote") / "model", request.param)
    model = load_model(from_environment({"MODEL_PATH": str(directory)}))
    assert model.family == f"chatglm-v{generation_of_code(request.param)}"
    return model


def prompts(model: LoadedModel) -> list[list[int]]:
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    turns.append([*turns[0], {"role": "assistant", "content": "你好，很高兴"}, *turns[2]])
    return [model.codec.chat(messages) for messages in turns]


def test_there_is_code_to_try() -> None:
    assert CODE, f"no modeling_chatglm.py in {ROOT} or below"


def test_the_adapter_says_what_the_code_says_with_its_own_masks_and_positions(remote: LoadedModel) -> None:
    code = remote.decoder._model  # type: ignore[attr-defined]
    for ids in prompts(remote):
        plain = list(ids)
        said: list[int] = []
        with torch.inference_mode():
            for _ in range(16):
                logits = code(input_ids=torch.tensor([plain]), use_cache=False, return_dict=True).logits
                plain.append(int(logits[0, -1].argmax()))
            step = remote.decoder.add([Prompt(ids)])
            for _ in range(16):
                said.append(int(step[0].argmax()))
                step = remote.decoder.step([said[-1]])
            remote.decoder.clear()
        assert said == plain[len(ids) :]


def test_fifty_requests_together_say_what_each_says_alone(remote: LoadedModel) -> None:
    chance = random.Random(5)
    pool = prompts(remote)
    requests = [Request(chance.choice(pool), chance.randint(1, 40), GREEDY) for _ in range(50)]
    with driving(remote, max_batch=1) as alone:
        singly = [alone.ask(request) for request in requests]
        expected = [(answer.end(), answer.tokens) for answer in singly]
    with driving(remote, max_batch=8, kv_budget=600) as together:
        answers = []
        for request in requests:
            answers.append(together.ask(request))
            if chance.random() < 0.4:
                answers[-1].next()
        assert [(answer.end(), answer.tokens) for answer in answers] == expected


def test_text_becomes_the_ids_that_the_codes_own_tokenizer_makes(
    remote: LoadedModel, request: pytest.FixtureRequest
) -> None:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    directory = remote.decoder._model.config.name_or_path  # type: ignore[attr-defined]
    first = remote.family == "chatglm-v1"
    file = Path(directory) / ("ice_text.model" if first else "tokenizer.model")
    kind = get_class_from_dynamic_module("tokenization_chatglm.SPTokenizer", directory)
    theirs = kind(str(file), num_image_tokens=0) if first else kind(str(file))
    for text in (*QUESTIONS, "问：你好\n\n答：", "    x\t\n" * 3, "👋🏽é"):
        ours = remote.codec.encode(text)
        assert (ours[:-2] if first else ours[2:]) == theirs.encode(text)
        assert remote.codec.decode(ours) == theirs.decode(theirs.encode(text))
