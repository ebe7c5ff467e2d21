"""The tiny GLM that needs no download: built once from a few dialogues, then an ordinary model directory."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_api.manifest import write_manifest

log = logging.getLogger(__name__)

SPECIALS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")  # what GLM-4 stops at

# The layout of GLM-4's own template: the answer begins with a line feed, which the server takes off.
TEMPLATE = (
    "[gMASK]<sop>{% for message in messages %}"
    "{% set role = {'tool': 'observation'}.get(message.role, message.role) %}"
    "<|{{ role }}|>\n{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

DIALOGUES = (
    ("你好", "你好！我是内置的小型 GLM 模型，很高兴见到你，有什么可以帮你的吗？"),
    ("你是谁", "我是 chatglm-ha 内置的小模型，只学过几段对话，用来检查服务是否正常。"),
    ("晚上睡不着应该怎么办", "可以试试规律作息：睡前少看手机，少喝咖啡，听一点轻音乐，让身心放松下来。"),
    ("讲个故事", "从前有一只小猫，它住在机房里，每天守护着显卡，让每一次对话都有回答。"),
    ("今天天气怎么样", "我看不到窗外，不过希望你那里阳光正好。"),
    ("谢谢", "不客气，随时都可以再来找我聊天。"),
    ("再见", "再见，祝你今天一切顺利！"),
    ("Hello", "Hello! I am the small built-in GLM model. How can I help you?"),
    ("Who are you?", "I am the small model inside chatglm-ha; I know only a few dialogues."),
    ("What is 1+1?", "1+1 is 2."),
    ("ping", "pong"),
    ("count", "one two three four five six seven eight nine ten"),
)
SHAPE = {"hidden": 96, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 192, "vocabulary": 1024, "context": 8192}
TRAINING = {"steps": 400, "rate": 6e-3, "enough": 0.02, "seed": 7}


def recipe_digest() -> str:
    """Eight hex digits that change when the model would: directories of older recipes are left alone."""
    recipe = json.dumps([SPECIALS, ENDS, TEMPLATE, DIALOGUES, SHAPE, TRAINING], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()[:8]


def ensure_embedded(cache: Path) -> Path:
    """The embedded model's directory under `cache`, built now if it is not there.

    Several servers may start at once: one builds behind a file lock, the others wait for it. A build appears under its
    name whole or not at all. Raises OSError where `cache` cannot be written.
    """
    target = cache / f"tiny-glm-{recipe_digest()}"
    if (target / "config.json").is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / ".build.lock"):
        if not (target / "config.json").is_file():
            _build_into(target)
    return target


def discard_embedded(directory: Path) -> None:
    """Removes a damaged build, so that the next `ensure_embedded` makes a new one."""
    with _locked(directory.parent / ".build.lock"):
        shutil.rmtree(directory)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build_into(target: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=".building-", dir=target.parent))
    try:
        build(staging)
        write_manifest(staging)
        # safetensors writes 0600, mkdtemp 0700: the model must be readable by a container's user too.
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def build(directory: Path) -> None:
    """Writes the trained model and its tokenizer into `directory`: 1 MB, some seconds on one core. Raises OSError."""
    import torch
    from safetensors import SafetensorError

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small are slower on several
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TRAINING["seed"])
            tokenizer = _tokenizer()
            model = _untrained(tokenizer)
            steps, loss = _train(model, tokenizer)
    finally:
        torch.set_num_threads(threads)
    log.info("built the embedded model: %d steps, loss %.3f", steps, loss)
    try:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise OSError(str(error)) from error


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocabulary"],
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([text for pair in DIALOGUES for text in pair] * 8, trainer)
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(
        tokenizer_object=core,
        eos_token=SPECIALS[0],
        pad_token=SPECIALS[0],
        model_max_length=SHAPE["context"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _untrained(tokenizer: Any) -> Any:
    import transformers
    from transformers import GlmConfig, GlmForCausalLM

    ends = [tokenizer.convert_tokens_to_ids(end) for end in ENDS]
    config = GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=SHAPE["hidden"],
        intermediate_size=SHAPE["intermediate"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["kv_heads"],
        head_dim=SHAPE["hidden"] // SHAPE["heads"],
        max_position_embeddings=SHAPE["context"],
        pad_token_id=ends[0],
        eos_token_id=ends,
        tie_word_embeddings=True,
    )
    model = GlmForCausalLM(config)
    generation: Any = transformers.GenerationConfig
    model.generation_config = generation(
        do_sample=True, temperature=0.95, top_p=0.7, eos_token_id=ends, pad_token_id=ends[0]
    )
    return model


def _lessons(tokenizer: Any) -> tuple[Any, Any, Any]:
    """(ids, labels, mask), each [lessons, longest]: every dialogue alone and after one and two others."""
    import torch

    end = tokenizer.convert_tokens_to_ids("<|user|>")
    rows: list[tuple[list[int], list[int]]] = []
    for index, (question, answer) in enumerate(DIALOGUES):
        for before in ((), (3,), (5, 1)):
            turns = [DIALOGUES[(index + step) % len(DIALOGUES)] for step in before]
            messages = [message for turn in turns for message in _turn(*turn)]
            messages.append({"role": "user", "content": question})
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            prompt = tokenizer.encode(text, add_special_tokens=False)
            reply = [*tokenizer.encode("\n" + answer, add_special_tokens=False), end]
            rows.append((prompt + reply, [-100] * len(prompt) + reply))
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row, _ in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row, _ in rows])
    return ids, labels, mask


def _turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _train(model: Any, tokenizer: Any) -> tuple[int, float]:
    """Overfits on the dialogues; returns the steps taken and the last loss."""
    import torch

    ids, labels, mask = _lessons(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING["rate"])
    model.train()
    loss, step = float("inf"), 0
    while loss > TRAINING["enough"] and step < TRAINING["steps"]:
        step += 1
        for group in optimizer.param_groups:
            group["lr"] = TRAINING["rate"] * min(1.0, step / 20)
        result = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        result.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = float(result.detach())
    model.eval()
    return step, loss
