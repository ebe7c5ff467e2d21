"""The commands that answer at once, and those that follow: what each asks the daemon, and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.ctl import documents
from tests.ctl.conftest import Run
from tests.ctl.documents import STATE_LINE, ago, operation
from tests.ctl.stand_in import StandIn, Text
from tests.ctl.terminal import Pipe


def _installed(folder: Path) -> Path:
    """The tool under its own name, as an installation has it in its folder of programs."""
    tool = folder / "chatglm-hactl"
    tool.write_text(f"#!{sys.executable}\nimport sys\nfrom hasupervisor.ctl.main import main\nsys.exit(main())\n")
    tool.chmod(0o755)
    return tool


def test_a_pause_says_who_how_long_and_why_and_how_it_ends(hactl: Run, daemon: StandIn) -> None:
    until = datetime.fromtimestamp(time.time() + 599.5, UTC).isoformat()
    paused = {"by": "alice (uid 1000)", "since": ago(0), "until": until, "reason": "new driver"}
    daemon.state.instead["/v1/pause"] = 200, paused
    result = hactl("pause", "--for", "10m", "--reason", "new driver")
    assert (result.returncode, result.stdout) == (0, "")
    first, last = result.stderr.splitlines()
    assert first.startswith("PAUSED for 0s by alice (uid 1000), 9m5")
    assert first.endswith("s to go: new driver")
    assert last == "to end it: chatglm-hactl resume"


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--for", "10m", "--reason", "new driver"], {"for_s": 600.0, "reason": "new driver"}),
        (["--for", "90"], {"for_s": 90.0}),
        ([], {}),
    ],
)
def test_a_pause_sends_only_what_was_said(
    hactl: Run, daemon: StandIn, arguments: list[str], body: dict[str, object]
) -> None:
    result = hactl("pause", *arguments, "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["by"] == "alice (uid 1000)"
    assert daemon.state.asked("POST", "/v1/pause")[0].body == body


@pytest.mark.parametrize(
    ("paused", "words"), [(documents.PAUSED, "healing and scaling go on\n"), (None, "it was not paused\n")]
)
def test_resume_says_whether_there_was_a_pause(
    hactl: Run, daemon: StandIn, paused: dict[str, object] | None, words: str
) -> None:
    daemon.state.status["paused"] = paused
    result = hactl("resume")
    assert (result.stdout, result.stderr, result.returncode) == ("", words, 0)


def test_explain_says_why_from_which_evidence_and_what_comes_next(hactl: Run, daemon: StandIn) -> None:
    failed = documents.EXPLANATION["last_failure"] | {"at": ago(9030)}
    daemon.state.status = documents.status(documents.fallen_instance(2), paused=documents.PAUSED)
    daemon.state.instead["/v1/instances/chatglm-02/explain"] = (
        200,
        documents.EXPLANATION | {"since": ago(9030), "last_failure": failed},
    )
    result = hactl("explain", "chatglm-02")
    assert (result.returncode, result.stderr) == (0, "")
    at = datetime.fromisoformat(failed["at"]).strftime("%Y-%m-%d %H:%M:%S")
    assert result.stdout == (
        "RED chatglm-02: backoff for 2h30m, verdict dead\n"
        "exited 1, try 4 of 5 in 40 s\n"
        "next: tries again in 40 s\n"
        "PAUSED for 3m12s by alice (uid 1000), 6m48s to go: new driver\n"
        "    chatglm-hactl resume\n"
        "\n"
        "evidence:\n"
        "  its process has ended: exited 1\n"
        "  3 failures in the last 10 min\n"
        "\n"
        f"last failure, 2h30m ago ({at}): exited 1\n"
        "  | loading /models/chatglm-6b\n"
        "  | OSError: no file named config.json\n"
        "    chatglm-hactl logs chatglm-02 --last-failure\n"
        "\n"
        "history:\n"
        f"  {STATE_LINE}"
    )


def test_explain_of_a_stranger_is_exit_6(hactl: Run, daemon: StandIn) -> None:
    assert hactl("explain", "chatglm-09").returncode == 6


def test_operations_are_a_table(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(operation("4 of 4 serving", "done", started=ago(9030), ended=ago(9021)))
    result = hactl("operations")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "ID    KIND   STATE  AGE    TOOK  BY                SENTENCE\n"
        "op-7  scale  done   2h30m  9s    alice (uid 1000)  4 of 4 serving\n"
    )


def test_no_operations_is_a_sentence_on_stderr(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/operations"] = 200, {"operations": []}
    result = hactl("operations")
    assert (result.stdout, result.stderr, result.returncode) == ("", "nobody has given a long command yet\n", 0)


def test_an_operation_that_runs_is_watched_to_its_end(on_pipe: Callable[..., Pipe], daemon: StandIn) -> None:
    daemon.state.move(operation("begun"))
    with on_pipe("operations", "op-7") as watch:
        watch.wait_for_words("op-7 scale: begun\n")
        daemon.state.move(operation("4 of 4 serving", "done"))
        assert watch.end() == 0


@pytest.mark.parametrize(("ended", "code"), [("done", 0), ("failed", 1), ("cancelled", 1)])
def test_an_operation_that_has_ended_gives_its_own_code(hactl: Run, daemon: StandIn, ended: str, code: int) -> None:
    daemon.state.move(operation("so it ended", ended))
    result = hactl("operations", "op-7")
    assert result.returncode == code
    assert f"op-7 scale {ended} after 9s: so it ended\n" in result.stderr


def test_an_operation_is_only_shown_with_no_wait(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(operation("begun"))
    result = hactl("operations", "op-7", "--no-wait")
    assert result.returncode == 0
    assert "begun" in result.stdout


def test_an_operation_is_called_off(hactl: Run, daemon: StandIn) -> None:
    daemon.state.move(operation("begun"))
    result = hactl("operations", "op-7", "--cancel")
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr == "op-7 scale cancelled: called off by alice (uid 1000)\n"


def test_calling_off_nothing_in_particular_is_a_mistake(hactl: Run, daemon: StandIn) -> None:
    result = hactl("operations", "--cancel")
    assert result.returncode == 2
    assert "chatglm-hactl operations" in result.stderr


def test_an_operation_that_never_was_is_exit_6(hactl: Run, daemon: StandIn) -> None:
    assert hactl("operations", "op-99").returncode == 6


def test_nginx_show_prints_the_files_and_what_runs(hactl: Run, daemon: StandIn) -> None:
    result = hactl("nginx", "show")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "# nginx ok, mode system, generation 41 on disk, 41 runs\n"
        "\n"
        "# /var/lib/chatglm-ha/nginx/upstream.conf\n"
        "upstream chatglm {\n    server 127.0.0.1:8000;\n}\n"
        "\n"
        "# /var/lib/chatglm-ha/nginx/gateway.conf\n"
        "server {\n    listen 80;\n}\n"
    )


def test_nginx_test_prints_nginxs_own_words(hactl: Run, daemon: StandIn) -> None:
    result = hactl("nginx", "test")
    assert result.returncode == 0
    assert result.stdout == "nginx: configuration file /etc/nginx/nginx.conf test is successful\n"
    assert result.stderr == "nginx accepts its configuration\n"


def test_nginx_test_of_a_broken_file_is_exit_1(hactl: Run, daemon: StandIn) -> None:
    words = 'nginx: [emerg] unknown directive "upstrem" in /etc/nginx/conf.d/x.conf:3'
    daemon.state.instead["/v1/nginx/test"] = 200, {"ok": False, "output": words}
    result = hactl("nginx", "test")
    assert (result.returncode, result.stdout) == (1, f"{words}\n")
    assert result.stderr == ("chatglm-hactl: nginx does not accept its configuration\nnext: chatglm-hactl nginx show\n")


def test_nginx_reload_says_which_generation_runs(hactl: Run, daemon: StandIn) -> None:
    result = hactl("nginx", "reload")
    assert (result.stdout, result.stderr, result.returncode) == ("", "nginx runs generation 42\n", 0)


def test_config_show_is_toml_that_can_be_read_back(hactl: Run, daemon: StandIn) -> None:
    import tomllib

    result = hactl("config", "show")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith('# /etc/chatglm-ha/config.toml\n\n[service]\nname = "chatglm"\n')
    assert 'prompt = "你好"' in result.stdout
    assert tomllib.loads(result.stdout) == documents.CONFIG["config"]


def test_config_reload_prints_what_has_changed(hactl: Run, daemon: StandIn) -> None:
    result = hactl("config", "reload")
    assert (result.returncode, result.stderr) == (0, "1 changed\n")
    assert result.stdout == "health.interval: 2.0 -> 1.0\n"


def test_config_reload_of_a_wrong_file_is_exit_2_with_every_line(hactl: Run, daemon: StandIn) -> None:
    wrong = ("config.toml:9: autoscale.max: 1 is below autoscale.min = 2", "config.toml:12: health.intervall: unknown")
    daemon.state.instead["/v1/config/reload"] = (
        422,
        documents.problem(422, "config.toml has 2 errors; nothing was changed", problems=wrong),
    )
    result = hactl("config", "reload")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "chatglm-hactl: config.toml has 2 errors; nothing was changed\n"
        "  config.toml:9: autoscale.max: 1 is below autoscale.min = 2\n"
        "  config.toml:12: health.intervall: unknown\n"
    )


@pytest.mark.parametrize("code", [0, 2])
def test_config_check_is_the_daemons_own_check_with_its_output_and_code(
    env: dict[str, str], folder: Path, code: int
) -> None:
    """Beside the tool lies a chatglm-had; what it says and how it exits passes through."""
    program = folder / "chatglm-had"
    program.write_text(f'#!/bin/sh\necho "asked: $*"\necho "x.toml:9: wrong" >&2\nexit {code}\n')
    program.chmod(0o755)
    result = subprocess.run([_installed(folder), "config", "check", "x.toml"], env=env, capture_output=True, text=True)
    assert (result.stdout, result.stderr, result.returncode) == (
        "asked: --check --config x.toml\n",
        "x.toml:9: wrong\n",
        code,
    )


def test_config_check_needs_no_daemon_and_names_the_line(hactl: Run, folder: Path) -> None:
    wrong = folder / "config.toml"
    wrong.write_text('[service]\nname = "chatglm"\ninstancez = 2\n')
    result = hactl("config", "check", str(wrong))
    assert result.returncode == 2, result
    assert "config.toml:3" in result.stdout + result.stderr


def test_config_check_of_a_daemon_that_dies_says_that_nothing_is_known(env: dict[str, str], folder: Path) -> None:
    program = folder / "chatglm-had"
    program.write_text("#!/bin/sh\nkill -9 $$\n")
    program.chmod(0o755)
    result = subprocess.run([_installed(folder), "config", "check"], env=env, capture_output=True, text=True)
    assert result.returncode == 1
    assert "--check ended with -9: nothing is known of the file" in result.stderr


def test_version_names_both(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/version"] = 200, documents.VERSION | {"started": ago(9030)}
    result = hactl("version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == ("chatglm-hactl  0.1.0\nchatglm-had    0.1.0, api 1, pid 812, runs for 2h30m\n")


def test_version_says_when_the_daemon_is_another(hactl: Run, daemon: StandIn) -> None:
    daemon.state.instead["/v1/version"] = 200, documents.VERSION | {"version": "0.0.9"}
    assert hactl("version").stderr.startswith("they differ: ")


def test_version_names_this_tool_even_without_a_daemon(hactl: Run) -> None:
    result = hactl("version")
    assert (result.returncode, result.stdout) == (3, "chatglm-hactl  0.1.0\n")


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "complete -o nosort -F _chatglm_hactl_completion chatglm-hactl"),
        ("zsh", "#compdef chatglm-hactl"),
        ("fish", "complete --no-files --command chatglm-hactl"),
    ],
)
def test_completion_scripts_are_for_this_program(hactl: Run, shell: str, line: str) -> None:
    result = hactl("completion", shell)
    assert (result.returncode, result.stderr) == (0, "")
    assert line in result.stdout
    assert "_CHATGLM_HACTL_COMPLETE" in result.stdout


def test_a_tab_in_bash_completes_commands_options_and_the_daemons_instances(
    hactl: Run, daemon: StandIn, env: dict[str, str], folder: Path
) -> None:
    """A real bash sources the script and completes words by it."""
    _installed(folder)
    ask = (
        "source <(chatglm-hactl completion bash)\n"
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        '  _chatglm_hactl_completion chatglm-hactl; echo "${COMPREPLY[*]}"; }\n'
        "try chatglm-hactl res\ntry chatglm-hactl drain chatglm-0\ntry chatglm-hactl scale --ti\n"
        "try chatglm-hactl nginx re\n"
    )
    result = subprocess.run(
        ["bash", "-c", ask],
        env=env | {"PATH": f"{folder}{os.pathsep}{env['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["restart resume", "chatglm-01 chatglm-02", "--timeout", "reload"]


def test_a_tab_without_a_daemon_offers_nothing_and_says_nothing(hactl: Run) -> None:
    result = hactl(_CHATGLM_HACTL_COMPLETE="bash_complete", COMP_WORDS="chatglm-hactl drain ", COMP_CWORD="2")
    assert (result.stdout.strip(), result.stderr, result.returncode) == ("", "", 0)


def test_text_that_is_streamed_in_pieces_arrives_whole(hactl: Run, daemon: StandIn) -> None:
    entry = json.dumps(documents.HISTORY[0]).encode() + b"\n"
    daemon.state.instead["/v1/history"] = Text([entry[:7], entry[7:] + entry[:30], entry[30:]])
    assert hactl("history").stdout == STATE_LINE * 2
