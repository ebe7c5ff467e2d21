"""A real model server in a process of its own, and the waiting for what it does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

T = TypeVar("T")

PATIENCE = 60.0  # seconds; a busy machine of two cores imports torch in ten


def wait_for(look: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """The first true result of `look`; fails with `what` after `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        result = look()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {patience:g} s for {what}"
        time.sleep(0.01)


class ModelServer:
    """`python -m model_api` (or another entry point) on a free port."""

    def __init__(
        self,
        log: Path,
        env: dict[str, str],
        *,
        may_complain: bool = False,
        command: tuple[str, ...] = ("-m", "model_api"),
    ) -> None:
        self._log = log
        self._may_complain = may_complain
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MODEL_", "MAX_", "API_KEY", "DRILL"))
        }
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**clean, "HOST": "127.0.0.1", "PORT": "0", "GRACE": "20", **env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started = time.monotonic()
        self.client = httpx.Client(timeout=PATIENCE, limits=httpx.Limits(max_connections=None))
        self._port: int | None = None

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def last_line(self) -> str:
        """The last line of its log."""
        return self.log.rstrip().rpartition("\n")[2]

    @property
    def url(self) -> str:
        """Its address, waited for."""
        if self._port is None:
            found = wait_for(self._listening, "the server to say where it listens")
            self._port = int(found.group(1))
        return f"http://127.0.0.1:{self._port}"

    def _listening(self) -> re.Match[str] | None:
        assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
        return re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.log)

    def wait_ready(self) -> None:
        """Waits until it serves."""
        url = self.url

        def ready() -> bool:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            return self.client.get(f"{url}/health").status_code == 200

        wait_for(ready, "the server to serve")

    def health(self) -> dict[str, Any]:
        """The body of GET /health."""
        body: dict[str, Any] = self.client.get(f"{self.url}/health").json()
        return body

    def progress(self) -> dict[str, Any]:
        """The progress in GET /health."""
        progress: dict[str, Any] = self.health()["progress"]
        return progress

    def ask(self, prompt: str = "你好", **more: object) -> httpx.Response:
        """POST /."""
        return self.client.post(f"{self.url}/", json={"prompt": prompt, "history": [], **more})

    def chat(self, content: str = "你好", **more: object) -> httpx.Response:
        """POST /v1/chat/completions."""
        body = {"messages": [{"role": "user", "content": content}], **more}
        return self.client.post(f"{self.url}/v1/chat/completions", json=body)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.client.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{re.escape(name)}[ {{]", line))

    def computed(self) -> float:
        """Seconds that its threads have computed so far, not counting the time that they waited for a processor."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def look_takes(self, client: httpx.Client) -> float:
        """Seconds for one GET /health: as long as it took, but no longer than the server computed meanwhile.

        On a machine that is busy with other work the difference is that work; a server that holds a look up computes.
        """
        computed, began = self.computed(), time.monotonic()
        assert client.get(f"{self.url}/health", timeout=PATIENCE).status_code == 200
        return min(time.monotonic() - began, self.computed() - computed)

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit code."""
        return self.process.wait(patience)

    def stop(self) -> None:
        """Ends it, by force after its grace period."""
        self.client.close()
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def check_log(self) -> None:
        """Fails on what should never be in a log."""
        if not self._may_complain:
            assert "Traceback" not in self.log, self.log
            assert "BUG" not in self.log, self.log
