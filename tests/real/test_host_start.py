"""How the daemon starts, refuses to start, and takes another configuration over: whole, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.daemon import BIN, PATIENT, Daemon, as_processes, daemon, run

HAD = str(BIN / "chatglm-had")


@pytest.fixture(scope="module")
def running(standin_server: Path, port_range: Callable[[int], range]) -> Iterator[Daemon]:
    with daemon(port_range(20), PATIENT, as_processes(standin_server)) as host:
        host.start()
        yield host


@pytest.fixture
def host(running: Daemon) -> Iterator[Daemon]:
    """The module's daemon with two instances that serve, and with its own configuration."""
    running.put_right()
    yield running
    running.configure()
    assert running.hactl("config", "reload").code == 0
    running.assert_no_defects()


# --- wrong configurations ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mistake:
    """A line for the end of a good configuration, the key that is wrong there, and words of what was meant."""

    text: str
    key: str
    meant: str

    @property
    def broken_line(self) -> int:
        """Of the text, counted from 1: the last one."""
        return self.text.count("\n")


MISTAKES = {
    "an unknown key": Mistake("[drain]\ntimeot = 5.0\n", "drain.timeot", "unknown key; did you mean timeout?"),
    "a wrong type": Mistake("[drain]\ntimeout = true\n", "drain.timeout", "expected a number, got true"),
    "a value out of range": Mistake("[drain]\ntimeout = -1.0\n", "drain.timeout", "must be at least 0"),
    "what cannot work": Mistake(
        '[docker]\nnetwork = "none"\n', "docker.network", '"none" cannot work, nothing could reach an instance'
    ),
    "not TOML": Mistake("[drain]\ntimeout =\n", "drain.timeout", "not TOML: there is no value after ="),
}


@pytest.fixture(params=list(MISTAKES))
def mistake(request: pytest.FixtureRequest, host: Daemon) -> tuple[str, str]:
    """Puts a mistake into the daemon's file; the place and key that are to be named, and the words."""
    wrong = MISTAKES[request.param]
    good = host.config_file.read_text()
    host.config_file.write_text(good + wrong.text)
    line = good.count("\n") + wrong.broken_line
    return f"{host.config_file}:{line}: {wrong.key}: ", wrong.meant


def test_a_wrong_configuration_is_told_by_line_and_key_and_changes_nothing(
    host: Daemon, mistake: tuple[str, str]
) -> None:
    place, meant = mistake
    before, shown, pid = host.status(), host.hactl("config", "show", "--json").document, host.pid

    for told in (run([HAD, "--check", "--config", str(host.config_file)]), host.hactl("config", "reload")):
        assert told.code == 2
        assert place in told.err
        assert meant in told.err
    mark = len(host.log())
    host.hang_up()
    host.wait_for(lambda _: "nothing was changed" in host.log_since(mark), "says why not")
    assert place in host.log_since(mark)

    after = host.status()
    assert host.pid == pid
    assert host.hactl("config", "show", "--json").document == shown
    assert [(i["name"], i["pid"], i["restarts"]) for i in after["instances"]] == [
        (i["name"], i["pid"], i["restarts"]) for i in before["instances"]
    ]
    assert (after["desired"], after["mode"], after["health"]) == (before["desired"], before["mode"], before["health"])
    assert after["nginx"]["generation"] == before["nginx"]["generation"]


def test_every_mistake_is_told_at_once_and_a_daemon_does_not_start_on_it(host: Daemon, tmp_path: Path) -> None:
    wrong = tmp_path / "config.toml"
    wrong.write_text("[service]\nmin = 3\nmax = 1\n\n[helth]\ninterval = 1.0\n\n[repair]\nattempts = 0\n")
    for command in ([HAD, "--check", "--config", str(wrong)], [HAD, "--config", str(wrong)]):
        told = run(command)
        assert told.code == 2
        for line in (":3: service.max: ", ":5: helth: unknown section", ":9: repair.attempts: "):
            assert f"{wrong}{line}" in told.err
    missing = run([HAD, "--check", "--config", str(tmp_path / "none.toml")])
    assert missing.code == 2
    assert str(tmp_path / "none.toml") in missing.err


def test_what_only_a_restart_can_change_is_refused_by_name(host: Daemon) -> None:
    good = host.config_file.read_text()
    host.config_file.write_text(good.replace("[service]\n", '[service]\nname = "other"\n'))
    told = host.hactl("config", "reload")
    assert told.code == 2
    assert 'service.name: "other" cannot replace "chatglm" while the daemon runs' in told.err


def test_a_good_configuration_is_taken_over_by_command_and_by_signal(host: Daemon) -> None:
    host.config_file.write_text(host.config_file.read_text() + "[drain]\ntimeout = 7.0\n")
    told = host.hactl("config", "reload")
    assert (told.code, told.out.strip()) == (0, "drain.timeout: 300.0 -> 7.0")
    host.config_file.write_text(host.config_file.read_text().replace("timeout = 7.0", "timeout = 8.0"))
    host.hang_up()
    host.wait_for(lambda _: host.history()[-1]["sentence"] == "drain.timeout: 7.0 -> 8.0", "has taken it over")
    assert host.history()[-1]["by"] == "SIGHUP"
    assert host.hactl("config", "show", "--json").document["config"]["drain"]["timeout"] == 8.0


# --- one daemon alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["state.dir", "control.socket"])
def test_a_second_daemon_refuses_and_says_who_holds_it(host: Daemon, key: str, tmp_path: Path) -> None:
    section, name = key.split(".")
    other = Daemon(host.ports, host.config)
    try:
        for other_key in {"state.dir", "control.socket", "nginx.dir"} - {key}:
            other.config[other_key.split(".")[0]][other_key.split(".")[1]] = str(other.folder / other_key)
        other.config[section][name] = host.config[section][name]
        other.configure()
        refused = run([HAD, "--config", str(other.config_file)])
    finally:
        other.close()
    assert refused.code == 1
    assert f"pid {host.pid} " in refused.err
    assert str(host.config[section][name]) in refused.err
    assert "Traceback" not in refused.err
    assert host.status()["serving"] == 2


def test_the_socket_that_a_killed_daemon_left_is_replaced(host: Daemon) -> None:
    host.kill()
    left = host.socket.stat().st_ino
    assert host.hactl("status").code == 3
    host.start()
    assert host.socket.stat().st_ino != left
    assert host.socket.stat().st_mode & 0o777 == 0o660
    assert host.hactl("status").code == 0
