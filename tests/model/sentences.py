"""Sentences as users write them: Chinese, English, code, emoji, and white space of every kind."""

from __future__ import annotations

import random

TEXT = """
你好 今天 天气 怎么样 晚上睡不着应该怎么办 问：答： 模型 训练 中华人民共和国 龘 。 ， ！ ？ 「」 《史记》 ３．１４
Hello world don't we'll I'M quick brown fox it's naïve café Straße Ünïcödé www.example.com a@b.c
0 7 42 2023 3.14159 1,000,000 1e-5 0x1F １２３
def f(x): return x**2 # TODO <div class='a'> {} [] != -> => && || // \\n "quoted" `code` $x @y %d ~ ^
👋 👋🏽 👩‍👩‍👧 🇨🇳 ❤️ 🤖 ½ ﬁ é ℃ Ω я не שלום مرحبا ไทย 한국어 にほんご
[gMASK] <sop> <|user|> <|assistant|> [MASK] </s> <n> <|tab|> <|blank_3|> <0x41>
"""
WORDS = TEXT.split()
SPACES = (" ", " ", " ", "", "", "\n", "\n\n", "\t", "  ", "    ", " " * 90, "\r\n", "\u3000", "\u00a0", " \n ")


def mixed_sentences(number: int, seed: int) -> list[str]:
    """`number` sentences, the same ones for the same seed."""
    chance = random.Random(seed)
    return [
        "".join(chance.choice(WORDS) + chance.choice(SPACES) for _ in range(chance.randint(1, 14)))
        for _ in range(number)
    ]
