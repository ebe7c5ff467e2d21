#!/usr/bin/env bash
# Sets a fresh Debian or Ubuntu machine up for `make run` or `make test`: system packages, then .venv.
# A second call finds everything there and takes milliseconds.
#   tools/bootstrap.sh run|test
set -euo pipefail
cd "$(dirname "$0")/.."

purpose=${1:?"usage: tools/bootstrap.sh run|test"}
case $purpose in
  run) extras=model ;;
  test) extras=model,dev ;;
  *) echo "bootstrap: '$purpose' is neither run nor test" >&2; exit 2 ;;
esac
# A user's PATH on Debian lacks the folders where nginx, dockerd and debootstrap lie.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

. tools/python.sh # usable, find_python

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'set-up: %s\n' "$@" >&2; exit 1; }

# --- system packages --------------------------------------------------------------------------------------------------

missing_packages() {
  local python
  python=$(find_python)
  if [ -z "$python" ]; then
    # Debian 12 and Ubuntu 24.04 have it as python3; Ubuntu 22.04 has it beside its 3.10.
    case $(python3 -c 'import sys; print(sys.version_info[1])' 2>/dev/null) in
      '') echo python3-venv ;;
      *) echo python3.11-venv ;;
    esac
  elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    case $python in
      */python3) echo python3-venv ;;
      *) echo "$(basename "$python")-venv" ;;
    esac
  fi
  command -v nginx >/dev/null || echo nginx
  [ "$purpose" = test ] || return 0
  command -v git >/dev/null || echo git
  command -v dockerd >/dev/null || echo docker.io
  # Debian 13 has the command-line client in a package of its own.
  command -v docker >/dev/null || { apt-cache show docker-cli >/dev/null 2>&1 && echo docker-cli || echo docker.io; }
  command -v debootstrap >/dev/null || echo debootstrap
  command -v ssh >/dev/null || echo openssh-client
  command -v rsync >/dev/null || echo rsync
  command -v gcc >/dev/null || echo gcc
  [ -e /usr/include/stdio.h ] || echo libc6-dev
  busybox_is_static || echo busybox-static
  command -v iptables >/dev/null || echo iptables
  command -v ip >/dev/null || echo iproute2
  command -v ps >/dev/null || echo procps
}

# The test images hold nothing but this one file, so it must not need a libc.
busybox_is_static() { command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1; }

# apt starts what it installs. Here nginx and dockerd are wanted as programs: the daemon and the tests run their own, on
# their own ports. What runs already is left alone.
with_no_service_started() {
  local policy=/usr/sbin/policy-rc.d
  if [ -e "$policy" ]; then "$@"; return; fi
  trap "rm -f $policy" EXIT
  printf '#!/bin/sh\n# set by tools/bootstrap.sh while it installs\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  "$@"
  rm -f "$policy"
  trap - EXIT
}

python_is_to_be_had() {
  [ -n "$(find_python)" ] || ! command -v python3 >/dev/null || apt-cache show python3.11-venv >/dev/null 2>&1
}

no_python() {
  fail "Python 3.11 or newer is needed; python3 here is $(python3 -V 2>&1 | cut -d' ' -f2)" \
    "Debian 12 and Ubuntu 22.04 are the first that have one; elsewhere put one on the PATH, then type 'make $purpose' again"
}

install_packages() {
  local packages
  packages=$(missing_packages | sort -u | tr '\n' ' ')
  packages=${packages% }
  [ -n "$packages" ] || return 0
  command -v apt-get >/dev/null ||
    fail "'make $purpose' needs these programs (Debian's package names): $packages" \
      "install them with this machine's package manager, then type 'make $purpose' again"
  [ "$(id -u)" = 0 ] || python_is_to_be_had || no_python
  [ "$(id -u)" = 0 ] ||
    fail "'make $purpose' needs system packages that are missing here; install them, then type it again:" \
      "    sudo apt-get update && sudo apt-get install --no-install-recommends $packages"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q >/dev/null || say "apt-get update failed; going on with the package lists that are here"
  python_is_to_be_had || no_python
  packages=$(missing_packages | sort -u | tr '\n' ' ') # the lists may have changed a name
  say "installing $packages"
  # shellcheck disable=SC2086 # one word for each package
  with_no_service_started apt-get install -q -y --no-install-recommends --no-upgrade $packages >/dev/null
  case " $packages" in
    *" nginx "*) say "nginx is installed but not started; systemd starts it at the next boot unless you disable it" ;;
  esac
}

# --- the virtual environment ------------------------------------------------------------------------------------------

install_venv() {
  local python key stamp=.venv/.ready-$purpose
  # A checkout that was moved has scripts that point to where it was: the place belongs to the key.
  key=$(cat setup.cfg setup.py constraints.txt <(pwd -P) | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && usable .venv/bin/python; then return; fi

  python=$(find_python)
  [ -n "$python" ] || no_python
  say "installing Python packages into .venv ($extras); the first time this takes minutes"
  if ! usable .venv/bin/python || ! head -n 1 .venv/bin/pip | grep -qF "$(pwd -P)/.venv/"; then
    "$python" -m venv --clear .venv
  fi
  rm -f .venv/.ready-*
  .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[$extras]" ||
    fail "pip could not install the packages (its words are above); mend that and type 'make $purpose' again"
  # What is installed for the tests serves for a run as well.
  echo "$key" >.venv/.ready-run
  echo "$key" >"$stamp"
}

install_packages
install_venv
