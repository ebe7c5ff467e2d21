"""Where values come from: command line, environment, file, defaults; and what a reload takes over or refuses."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from hasupervisor.config import Config, ConfigError, changed_keys, load, reload, restart_keys, unused_keys
from hasupervisor.config.privilege import lowest_port
from hasupervisor.config.values import toml
from hasupervisor.model import Address


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("", encoding="utf-8")
    return path


def refused(path: Path, env: dict[str, str], overrides: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, env, overrides)
    return str(caught.value).replace(f"{path}:", "").split("\n")


def test_an_empty_file_is_the_defaults_that_are_promised_to_users(file: Path) -> None:
    promised = tomllib.loads(Path(__file__).with_name("promised.toml").read_text(encoding="utf-8"))
    described = load(file, {}).describe()
    assert described["docker"].pop("reach") == "auto"  # this key and the next are beyond the promise
    assert described["autoscale"].pop("slots") == 0
    assert described["autoscale"].pop("up_turned_away") == 10
    assert described == promised


def test_a_file_with_every_default_written_out_is_the_defaults(file: Path) -> None:
    promised = Path(__file__).with_name("promised.toml").read_text(encoding="utf-8")
    file.write_text(promised, encoding="utf-8")
    assert load(file, {}) == Config()


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text("[service]\nmin = 1\nmax = 3\n[repair]\nattempts = 7\n", encoding="utf-8")
    env = {"CHATGLM_HA_SERVICE__MAX": "4", "CHATGLM_HA_REPAIR__ATTEMPTS": "6", "PATH": "/bin"}
    config = load(file, env, {"repair.attempts": 4})
    assert (config.service.min, config.service.max, config.repair.attempts) == (1, 4, 4)
    assert config.where("service.min") == f"{file}:2"
    assert config.where("service.max") == "environment CHATGLM_HA_SERVICE__MAX"
    assert config.where("repair.attempts") == "command line"
    assert config.where("repair.window") == "default"


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("CHATGLM_HA_SERVICE__MAX", "8", "service.max", 8),
        ("CHATGLM_HA_DRAIN__TIMEOUT", "12.5", "drain.timeout", 12.5),
        ("CHATGLM_HA_DRAIN__TIMEOUT", "12", "drain.timeout", 12.0),
        ("CHATGLM_HA_AUTOSCALE__ENABLED", "false", "autoscale.enabled", False),
        ("CHATGLM_HA_NGINX__LISTEN", "9000", "nginx.listen", Address("0.0.0.0", 9000)),
        ("CHATGLM_HA_NGINX__LISTEN", "127.0.0.1:9000", "nginx.listen", Address("127.0.0.1", 9000)),
        ("CHATGLM_HA_NGINX__LISTEN", "*:9000", "nginx.listen", Address("0.0.0.0", 9000)),
        ("CHATGLM_HA_NGINX__LISTEN", "[::]:9000", "nginx.listen", Address("[::]", 9000)),
        ("CHATGLM_HA_DOCKER__IMAGE", '"quoted:1"', "docker.image", "quoted:1"),
        ("CHATGLM_HA_DOCKER__IMAGE", "plain:1", "docker.image", "plain:1"),
        ("CHATGLM_HA_SERVICE__NAME", "true", "service.name", "true"),
        ("CHATGLM_HA_HEALTH__PROMPT", "说 'ja' = \"yes\" # now", "health.prompt", "说 'ja' = \"yes\" # now"),
        ("CHATGLM_HA_DOCKER__COMMAND", '["--port", "8000"]', "docker.command", ("--port", "8000")),
        ("CHATGLM_HA_PROCESS__ENV", '{ A = "1" }', "process.env", {"A": "1"}),
        ("CHATGLM_HA_GPU__EXCLUDE", '[0, "GPU-1"]', "gpu.exclude", ("0", "GPU-1")),
        ("CHATGLM_HA_HTTP__LISTEN", "", "http.listen", None),
        ("CHATGLM_HA_LOG__FILE", "/var/log/x.log", "log.file", Path("/var/log/x.log")),
    ],
)
def test_a_variable_is_read_as_the_file_would_read_it(
    file: Path, variable: str, text: str, key: str, value: object
) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load(file, {variable: text}), section), name) == value


@pytest.mark.parametrize(
    ("variable", "text", "line"),
    [
        (
            "CHATGLM_HA_SERVICE__MINN",
            "1",
            "environment CHATGLM_HA_SERVICE__MINN: service.minn: unknown key; did you mean CHATGLM_HA_SERVICE__MIN?",
        ),
        (
            "CHATGLM_HA_SERVICE_MIN",
            "1",
            "environment CHATGLM_HA_SERVICE_MIN: unknown variable; did you mean CHATGLM_HA_SERVICE__MIN?",
        ),
        ("CHATGLM_HA_X", "1", "environment CHATGLM_HA_X: unknown variable; a setting is CHATGLM_HA_<SECTION>__<KEY>"),
        (
            "CHATGLM_HA_SERVICE__MIN",
            "two",
            'environment CHATGLM_HA_SERVICE__MIN: service.min: expected a whole number, got "two"',
        ),
        (
            "CHATGLM_HA_SERVICE__MIN",
            "1\nmax = 9",
            'environment CHATGLM_HA_SERVICE__MIN: service.min: expected a whole number, got "1\\nmax = 9"',
        ),
        (
            "CHATGLM_HA_SERVICE__MIN",
            "7",
            "environment CHATGLM_HA_SERVICE__MIN: service.min: 7 is above service.max = 6 (the default)",
        ),
        (
            "DOCKER_HOST",
            "nonsense",
            'environment DOCKER_HOST: docker.host: "nonsense" is not an engine\'s address like '
            "unix:///var/run/docker.sock or tcp://host:2376",
        ),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(file: Path, variable: str, text: str, line: str) -> None:
    assert refused(file, {variable: text}) == [line]


def test_mistakes_of_all_sources_are_told_together_the_file_first(file: Path) -> None:
    file.write_text("[service]\nmax = 4\n[drain]\ntimout = 1\n", encoding="utf-8")
    lines = refused(
        file, {"CHATGLM_HA_SERVICE__MIN": "5"}, {"repair.attempts": 0, "nothing.here": 1, "log.lvel": "info"}
    )
    assert lines == [
        "2: service.max: 4 is below service.min = 5 (environment CHATGLM_HA_SERVICE__MIN)",
        "4: drain.timout: unknown key; did you mean timeout?",
        "command line: nothing.here: unknown section; there are service, docker, process, gpu, health, repair, drain, "
        "autoscale, nginx, control, http, state, log",
        "command line: log.lvel: unknown key; did you mean level?",
        "command line: repair.attempts: must be at least 1, got 0",
    ]


def test_a_broken_file_does_not_hide_mistakes_of_the_environment(file: Path) -> None:
    file.write_text("[service\n", encoding="utf-8")
    assert refused(file, {"CHATGLM_HA_LOG__LEVEL": "loud"}) == [
        "1: not TOML: expected ']' at the end of a table declaration (column 9)",
        'environment CHATGLM_HA_LOG__LEVEL: log.level: "loud" is not one of debug, info, warning, error',
    ]


def test_the_variables_of_the_operators_tool_are_no_settings(file: Path) -> None:
    assert load(file, {"CHATGLM_HA_SOCKET": "/run/x.sock", "CHATGLM_HA_DEBUG": "1"}) == Config()


def test_docker_host_counts_only_where_nobody_set_the_engine(file: Path) -> None:
    assert load(file, {}).docker_host == "unix:///var/run/docker.sock"
    assert load(file, {"DOCKER_HOST": "tcp://10.0.0.1:2376"}).docker_host == "tcp://10.0.0.1:2376"
    file.write_text('[docker]\nhost = "unix:///run/other.sock"\n', encoding="utf-8")
    assert load(file, {"DOCKER_HOST": "tcp://10.0.0.1:2376"}).docker_host == "unix:///run/other.sock"


def test_the_logs_of_processes_lie_in_the_state_directory_unless_told_otherwise(file: Path) -> None:
    file.write_text('[state]\ndir = "/srv/state"\n', encoding="utf-8")
    assert load(file, {}).log_dir == Path("/srv/state/logs")
    assert load(file, {"CHATGLM_HA_PROCESS__LOG_DIR": "/srv/logs"}).log_dir == Path("/srv/logs")


def test_a_path_with_a_dot_is_relative_to_where_the_daemon_is_started(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(file, {"CHATGLM_HA_STATE__DIR": "./.run"}).state.dir == tmp_path / ".run"


def test_a_port_for_root_only_is_fine_for_root(file: Path) -> None:
    file.write_text('[nginx]\nmode = "own"\n', encoding="utf-8")
    assert load(file, {}, lowest=1).nginx.mode == "own"


@pytest.mark.parametrize(
    ("capabilities", "unprivileged", "lowest"),
    [("0000000000000000", "1024", 1024), ("0000000000000400", "1024", 1), ("0000000000000000", "80", 80)],
    ids=["a user", "a user with CAP_NET_BIND_SERVICE", "a host that lets everybody"],
)
def test_the_lowest_port_is_the_kernels_answer(
    tmp_path: Path, capabilities: str, unprivileged: str, lowest: int
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").write_text(f"Name:\tx\nCapInh:\t{'f' * 16}\nCapEff:\t{capabilities}\n")
    (tmp_path / "sys/net/ipv4").mkdir(parents=True)
    (tmp_path / "sys/net/ipv4/ip_unprivileged_port_start").write_text(f"{unprivileged}\n")
    assert lowest_port(tmp_path) == lowest


def test_secrets_are_masked_and_everything_is_plain_json(file: Path) -> None:
    file.write_text(
        "[docker.env]\nAPI_KEY = 'abc'\nHF_TOKEN = 'def'\ndb_password = 'ghi'\nAPI_KEY_FILE = '/run/key'\n"
        "MAX_TOKENS = '100'\nEMPTY_SECRET = ''\n",
        encoding="utf-8",
    )
    config = load(file, {})
    assert config.describe()["docker"]["env"] == {
        "API_KEY": "***",
        "HF_TOKEN": "***",
        "db_password": "***",
        "API_KEY_FILE": "/run/key",
        "MAX_TOKENS": "100",
        "EMPTY_SECRET": "",
    }
    assert config.docker.env["API_KEY"] == "abc"
    assert json.loads(json.dumps(config.describe())) == config.describe()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["vllm", "--api-key", "abc", "--port", "80"], ["vllm", "--api-key", "***", "--port", "80"]),
        (
            ["--api-key=abc", "--model=/m", "--api-key-file=/run/key"],
            ["--api-key=***", "--model=/m", "--api-key-file=/run/key"],
        ),
        (["--api-key", "--verbose", "--max-tokens", "100"], ["--api-key", "--verbose", "--max-tokens", "100"]),
        (
            ["sh", "-c", "HF_TOKEN=abc exec serve --api-key 'a b' $PORT"],
            ["sh", "-c", "HF_TOKEN=*** exec serve --api-key *** $PORT"],
        ),
        (["print the token here"], ["print the token here"]),
        (["https://user:abc@host/model"], ["https://***@host/model"]),
        (["-H", "Authorization: Bearer abc"], ["-H", "Authorization: Bearer ***"]),
        (["sk-abcdefgh12345678", "hf_abcdefgh12345678", "task-force"], ["***", "***", "task-force"]),
    ],
)
def test_what_looks_like_a_secret_in_a_command_is_masked_for_people_alone(
    file: Path, words: list[str], shown: list[str]
) -> None:
    file.write_text(f"[process]\ncommand = {toml(words)}\n[docker]\ncommand = {toml(words)}\n", encoding="utf-8")
    config = load(file, {})
    assert config.describe()["process"]["command"] == shown
    assert config.describe()["docker"]["command"] == shown
    assert config.process.command == tuple(words)


def test_a_configuration_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.service.min = 3


# --- reload -----------------------------------------------------------------------------------------------------------


def test_a_reload_takes_over_what_can_change_and_says_which(file: Path) -> None:
    old = load(file, {})
    file.write_text("[health]\nfailures = 3\n[service]\nmax = 8\n[docker]\nimage = 'x:2'\n", encoding="utf-8")
    new = reload(old, file, {})
    assert changed_keys(old, new) == ["service.max", "docker.image", "health.failures"]
    assert restart_keys(old, new) == []


def test_a_reload_refuses_what_only_a_restart_can_change_by_line_and_key(file: Path) -> None:
    file.write_text("[state]\ndir = '/srv/a'\n", encoding="utf-8")
    old = load(file, {})
    file.write_text("[service]\nname = 'other'\nmax = 8\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        reload(old, file, {})
    assert str(caught.value).split("\n") == [
        f'{file}:2: service.name: "other" cannot replace "chatglm" while the daemon runs; restart it '
        '(systemctl restart chatglm-ha), or write "chatglm" again',
        f'{file}: state.dir: "/var/lib/chatglm-ha" cannot replace "/srv/a" while the daemon runs; restart it '
        '(systemctl restart chatglm-ha), or write "/srv/a" again',
    ]


def test_a_reload_of_a_bad_file_says_what_a_start_would_say(file: Path) -> None:
    old = load(file, {})
    file.write_text("[service]\nmin = 9\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        reload(old, file, {})
    assert str(caught.value) == f"{file}:2: service.min: 9 is above service.max = 6 (the default)"


def test_a_key_that_nothing_uses_yet_is_noticed_when_somebody_sets_it(file: Path) -> None:
    file.write_text('[health]\nfailures = 3\nprogress_metric = "vllm:generation_tokens_total"\n', encoding="utf-8")
    assert unused_keys(load(file, {})) == ["health.progress_metric"]
    assert unused_keys(Config()) == []
