"""Writes config/config.toml and docs/configuration.md anew from the schema; a test holds them to it."""

from __future__ import annotations

from pathlib import Path

from hasupervisor.config.reference import commented_file, tables

ROOT = Path(__file__).resolve().parent.parent

INTRODUCTION = """\
# The configuration

<!-- Written by tools/configdoc.py from hasupervisor/config/schema.py: change it there, then `make docs`. -->

One TOML file, by default `/etc/chatglm-ha/config.toml`; `chatglm-had --config FILE` takes another. It has to exist;
`python -m hasupervisor.config` prints one with every key, its default and its meaning
([config.toml](../config/config.toml)).

A value comes from the first of these that gives it:

1. the command line,
2. the environment: `CHATGLM_HA_<SECTION>__<KEY>`, two underscores between them. `CHATGLM_HA_SERVICE__MAX=8`,
   `CHATGLM_HA_NGINX__LISTEN=127.0.0.1:8080`, `CHATGLM_HA_DOCKER__COMMAND='["--port", "8000"]'`: the value as in the
   file, but text needs no quotes. A variable that begins so and names no key is an error, like an unknown key in the
   file; only `CHATGLM_HA_SOCKET` and `CHATGLM_HA_DEBUG`, which chatglm-hactl reads, are no settings,
3. the file,
4. the default.

Times are seconds. Paths are absolute; one that begins with `./` is relative to where the daemon is started. Addresses
are `host:port`, the host an IPv4 address or a name; `nginx.listen` may also be a port alone (every IPv4 address) or
`[IPv6]:port`.

## Mistakes

`chatglm-had --config FILE --check` (or `chatglm-hactl config check FILE`) reads the file as the daemon would, prints
everything that is wrong with it, and exits 2, or 0 if there is nothing:

    config.toml:9: service.max: 1 is below service.min = 2
    config.toml:14: autoscale.up_conections: unknown key; did you mean up_connections?
    config.toml:15: autoscale.sample: expected a number, got "10s"; times are seconds: write 10
    environment CHATGLM_HA_LOG__LEVEL: log.level: "inof" is not one of debug, info, warning, error; did you mean "info"?

Of two keys that do not fit together, the one that you set is named; "(the default)" stands behind a value that nobody
set.

## Reload

`chatglm-hactl config reload`, or SIGHUP to the daemon, reads everything again. It is all or nothing: with one mistake,
or with a change of a key that only a restart can change, nothing is taken over, and the answer says why. The last
column of the tables says when a change takes effect:

- reload: at once;
- new instances: for instances that start from then on; those that run keep what they have
  (`chatglm-hactl restart --all` renews them one by one);
- first start: only where the daemon has no memory yet; afterwards `chatglm-hactl scale` says how many;
- restart: after `systemctl restart chatglm-ha`, which leaves instances and nginx serving.

## Rules between keys

- `service.min` ≤ `service.instances` ≤ `service.max`. `min` and `instances` may be 0, `max` is at least 1.
- `service.ports` holds at least `max` + 2 ports: one for each instance, one for a replacement that starts while the old
  instance still drains, one for an old instance that the engine cannot end and whose port stays taken.
- `nginx.listen`, `http.listen` and the instances' ports do not collide. A port on every address collides
  with the same port on any address.
- `nginx.listen` below 1024 with `nginx.mode = "own"` needs root, CAP_NET_BIND_SERVICE, or a lower
  `net.ipv4.ip_unprivileged_port_start`.
- `control.socket` has at most 107 bytes, and so has `access.sock` in `nginx.dir`.
- What is written into nginx's files cannot mean anything else there: `nginx.dir`, `nginx.server_name`, `nginx.paths`
  and `health.path` have the characters that these need, and no others.
- `health.hang_after` and `health.start_timeout` are not below `health.timeout`, or one slow answer would look like a
  hang. `timeout` may be longer than `interval`: the next question is then asked when the last has ended, so that an
  instance that does not answer leaves rotation after about `failures` × the longer of the two.
- The waits between `repair.attempts` failures (`backoff`, doubled each time, up to `backoff_max`) are together shorter
  than `repair.window`, or the first would always be forgotten before the last, and nothing would ever be parked.
- Each `autoscale.up_…` threshold is above its `down_…`; `evaluate` is not below `sample`.
- `docker.network` is not `host` (all instances would want one port) or `none`.
- `process.env` has no `HOST` or `PORT`, and neither environment has `CUDA_VISIBLE_DEVICES` or `NVIDIA_VISIBLE_DEVICES`
  unless `gpu.mode = "off"`: the daemon sets them for each instance.

"""


def page() -> str:
    return INTRODUCTION + tables()


def main() -> None:
    (ROOT / "config" / "config.toml").write_text(commented_file(), encoding="utf-8")
    (ROOT / "docs" / "configuration.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
