#!/usr/bin/env bash
# Puts this checkout on the host (`make install`), or takes it away again (`make uninstall`; PURGE=1: with its state).
# DESTDIR=/some/root lays the files below that folder and touches nothing that runs.
#   tools/install.sh install|uninstall
set -euo pipefail
cd "$(dirname "$0")/.."

destination=${DESTDIR:-}
lib=$destination/usr/lib/chatglm-ha
units=$destination/usr/lib/systemd/system
config=$destination/etc/chatglm-ha/config.toml
include=$destination/etc/nginx/conf.d/chatglm-ha.conf

say() { printf 'install: %s\n' "$*"; }
fail() { printf 'install: %s\n' "$@" >&2; exit 1; }

# Whether this is about the running host, and whether systemd runs it.
live() { [ -z "$destination" ]; }
booted() { live && [ -d /run/systemd/system ]; }

check_rights() {
  live || return 0
  [ "$(id -u)" = 0 ] || fail "this writes to /usr and /etc and needs root: sudo make $1"
  ! dpkg-query -W -f '${Status}' chatglm-ha 2>/dev/null | grep -q ' installed$' ||
    fail "chatglm-ha is installed here as a package, which is dpkg's to change" \
      "apt-get remove chatglm-ha, then type it again; or install the next package"
}

# Leaves a file that is the same as it was: systemd asks for a daemon-reload by the time of its unit.
put() {
  local from=$1 to=$destination/${1#"$tree/"}
  if [ -L "$from" ] || ! cmp -s "$from" "$to"; then
    mkdir -p "$(dirname "$to")"
    cp -dT --remove-destination --preserve=mode,links "$from" "$to"
  fi
}

all_units() { (cd "$1" && sha256sum chatglm-ha*); }

install_all() {
  check_rights install
  local changed=new state
  # Beside its place: what is moved there takes no time, and /tmp may forbid to run or map what lies in it.
  mkdir -p "$destination/usr/lib"
  tree=$(mktemp -d "$destination/usr/lib/chatglm-ha.XXXXXX")
  trap 'rm -rf "$tree"' EXIT
  tools/tree.sh "$tree"
  if [ -e "$units/chatglm-ha.service" ]; then
    if [ "$(all_units "$tree/usr/lib/systemd/system")" = "$(all_units "$units")" ]; then changed=no; else changed=yes; fi
  fi
  # A running daemon imports and reads from its folder: it is exchanged whole, and the old one goes after the restart.
  if [ -e "$lib" ]; then mv -T "$lib" "$tree/old"; fi
  mv -T "$tree/usr/lib/chatglm-ha" "$lib"
  while IFS= read -r -d '' file; do put "$file"; done \
    < <(find "$tree" -path "$tree/old" -prune -o \( -type f -o -type l \) -print0)
  settle "$changed"
  next_steps
}

# User, folders, configuration; then what runs.
settle() {
  local changed=$1
  ! live || "$lib/accounts.sh"
  if [ -e "$config" ]; then
    say "kept $config; what this version has is in /usr/share/chatglm-ha/config.toml"
  else
    install -D -m 640 "$tree/usr/share/chatglm-ha/config.toml" "$config"
    ! live || chgrp chatglm-ha "$config"
  fi
  booted || return 0
  # A daemon-reload can take the GPUs from running containers, so there is one only when systemd has to read something.
  if [ "$changed" = yes ] || [ "$(systemctl show --property LoadState --value chatglm-ha)" != loaded ]; then
    say "the unit is $([ "$changed" = yes ] && echo changed || echo new): systemctl daemon-reload"
    systemctl daemon-reload
    systemctl try-restart chatglm-ha-nginx.socket
  fi
  if systemctl --quiet is-active chatglm-ha || [ -e /run/chatglm-ha.was-active ]; then
    say "restarting the daemon; instances and nginx go on serving"
    rm -f /run/chatglm-ha.was-active
    systemctl restart chatglm-ha
  fi
}

next_steps() {
  live || { say "laid below $destination"; return; }
  for stray in /usr/local/bin/chatglm-had /etc/systemd/system/chatglm-ha.service; do
    [ ! -e "$stray" ] || say "$stray is of an installation by hand and stands before this one: rm $stray"
  done
  say "installed $(/usr/bin/chatglm-had --version)"
  if booted && systemctl --quiet is-active chatglm-ha; then
    say "next: chatglm-hactl status"
  else
    say "next: edit $config, then: chatglm-hactl doctor; systemctl enable --now chatglm-ha"
  fi
}

uninstall_all() {
  check_rights uninstall
  local purge=${PURGE:-}
  if booted && [ "$(systemctl show --property LoadState --value chatglm-ha)" = loaded ]; then
    [ -z "$purge" ] || end_instances
    systemctl --quiet disable --now --no-reload chatglm-ha
    systemctl stop chatglm-ha-nginx.socket
  fi
  rm -f "$destination"/usr/bin/chatglm-{had,hactl} "$units"/chatglm-ha{.service,-nginx.socket,-nginx@.service}
  rm -f "$destination"/usr/lib/{sysusers.d,tmpfiles.d}/chatglm-ha.conf
  rm -f "$destination"/etc/logrotate.d/chatglm-ha "$destination"/usr/share/man/man1/chatglm-hactl.1.gz
  rm -f "$destination"/usr/share/man/man8/chatglm-had.8.gz
  rm -f "$destination/usr/share/bash-completion/completions/chatglm-hactl"
  rm -f "$destination/usr/share/zsh/vendor-completions/_chatglm-hactl"
  rm -f "$destination/usr/share/fish/vendor_completions.d/chatglm-hactl.fish"
  rm -rf "$lib" "$destination"/usr/share/{doc/,}chatglm-ha
  if [ -n "$purge" ]; then purge_all; else
    say "removed. Instances go on, and nginx goes on routing to them; nobody restarts them any more"
    say "kept: $config, $include, /var/lib/chatglm-ha, /var/log/chatglm-ha"
    say "make uninstall PURGE=1 removes these too, and ends the instances (while the daemon still runs)"
  fi
  # Not for tidiness alone: a unit that systemd remembers would be started again by name.
  ! booted || systemctl daemon-reload
}

# The daemon ends them as it should be done: it knows what is in flight, and has their records.
end_instances() {
  systemctl start chatglm-ha ||
    fail "the daemon does not start, and only it can end its instances: journalctl -u chatglm-ha"
  chatglm-hactl scale 0 --force || fail "not every instance has ended (see above); nothing was removed"
}

# The user, and what still runs as it: an nginx of the daemon's own, say.
remove_user() {
  local number process
  if number=$(id -u chatglm-ha 2>/dev/null); then
    for process in /proc/[0-9]*; do
      [ "$(stat -c %u "$process" 2>/dev/null)" != "$number" ] || kill -TERM "${process#/proc/}" 2>/dev/null || true
    done
    userdel --force chatglm-ha 2>/dev/null
  fi
  if getent group chatglm-ha >/dev/null; then groupdel chatglm-ha; fi
}

purge_all() {
  rm -rf "$destination"/etc/{chatglm-ha,systemd/system/chatglm-ha.service.d} "$destination"/var/{lib,log}/chatglm-ha
  rm -f "$include"
  if live; then
    remove_user
    if booted && systemctl --quiet is-active nginx; then systemctl reload nginx; fi
  fi
  say "removed, with configuration, state and logs"
}

case ${1:-} in
  install) install_all ;;
  uninstall) uninstall_all ;;
  *) fail "usage: tools/install.sh install|uninstall" ;;
esac
