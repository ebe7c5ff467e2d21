"""`python -m model_api verify` and `bench`, as an operator types them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from model_api.embedded import ensure_embedded


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "model_api", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_verify_says_what_a_model_is_what_it_answers_and_how_fast(model_cache: Path) -> None:
    done = run("verify", str(ensure_embedded(model_cache)))
    assert done.returncode == 0, done.stderr
    assert "glm, 0.2 M parameters, float32 on cpu" in done.stdout
    assert "你好 -> 你好！我是" in done.stdout
    assert re.search(r"1 at once: +[\d.]+ tokens/s, first token +\d+ ms median", done.stdout)
    assert "GB resident at most" in done.stdout
    assert done.stdout.endswith("can be served\n")


def test_verify_fails_in_words_on_what_cannot_be_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "chatglm", "position_encoding_2d": true}')
    done = run("verify", str(tmp_path))
    assert done.returncode == 1
    assert "ice_text.model is missing, without which there are no words" in done.stderr
    assert run("verify", str(tmp_path / "nowhere")).returncode == 2


def test_bench_measures_1_4_8_and_16_at_once(model_cache: Path) -> None:
    done = run("bench", MODEL_CACHE=str(model_cache))
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^ *(\d+) at once: +([\d.]+) tokens/s", done.stdout, re.MULTILINE)
    assert [int(at_once) for at_once, _ in rows] == [1, 4, 8, 16]
    assert all(float(rate) > 0 for _, rate in rows)


def test_an_unknown_command_prints_the_usage_and_exits_2() -> None:
    done = run("dance")
    assert done.returncode == 2
    assert "usage: python -m model_api" in done.stderr
    assert run("--help").returncode == 0
