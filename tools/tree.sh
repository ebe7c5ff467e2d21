#!/usr/bin/env bash
# Lays all that an installation consists of below a folder, each file where a host has it. `make install` puts the tree
# on this host, `make deb` packs it. Python packages come from where pip is configured to look.
#   tools/tree.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/python.sh

root=$(realpath -m "${1:?"usage: tools/tree.sh FOLDER"}")
lib=/usr/lib/chatglm-ha

say() { printf 'install: %s\n' "$*" >&2; }
fail() { printf 'install: %s\n' "$@" >&2; exit 1; }

no_python() {
  fail "Python 3.11 or newer is needed; ${PYTHON:-python3} here is $(${PYTHON:-python3} -V 2>&1 | cut -d' ' -f2)" \
    "Debian 12 and Ubuntu 24.04 have it as python3; on Ubuntu 22.04:" \
    "    apt-get install python3.11 python3.11-venv" \
    "elsewhere put one beside the system's (from your distribution, or built by hand), and name it:" \
    "    make install PYTHON=/opt/python3.11/bin/python3.11"
}

# The name that will still mean this version after an upgrade of the distribution: python3.11, not python3.
versioned() {
  local exact
  exact=$(dirname "$1")/$("$1" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
  if [ -x "$exact" ]; then echo "$exact"; else echo "$1"; fi
}

# A virtual environment knows its own path in a few places: it is made in the tree, then told the path that it will have.
lay_environment() {
  local python=$1 made=$root$lib
  # A copy: pip builds inside the sources, and root's files in somebody's checkout would be in their way.
  cp -a hasupervisor model_api nginx setup.cfg setup.py pyproject.toml README.md LICENSE "$work"
  find "$work" -name __pycache__ -prune -exec rm -rf {} +
  "$python" -m venv "$made" ||
    fail "$python cannot make virtual environments: apt-get install $(basename "$python")-venv (or python3-venv)"
  "$made/bin/python" -m pip install -q --disable-pip-version-check --no-cache-dir --root-user-action=ignore \
    -c constraints.txt "$work" ||
    fail "pip could not install the packages (its words are above)"
  "$made/bin/python" tools/manpages.py "$root/usr/share/man"
  lay_completions "$made/bin/python"
  # Nothing is installed into it later: the next version is another environment.
  "$made/bin/python" -m pip uninstall -q -y --root-user-action=ignore setuptools pip
  rm -f "$made"/.gitignore "$made"/bin/{activate*,Activate*,pip*} "$made"/lib/*/site-packages/chatglm_ha-*.dist-info/direct_url.json
  grep -rlI -e "$made" "$made/bin" "$made/pyvenv.cfg" 2>/dev/null | xargs -r sed -i "s|$made|$lib|g"
}

lay_completions() {
  local hactl="$1 -m hasupervisor.ctl.main" share=$root/usr/share
  mkdir -p "$share"/{bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}
  $hactl completion bash >"$share/bash-completion/completions/chatglm-hactl"
  $hactl completion zsh >"$share/zsh/vendor-completions/_chatglm-hactl"
  $hactl completion fish >"$share/fish/vendor_completions.d/chatglm-hactl.fish"
}

# The group that the distribution's nginx has for its workers (assembly.py knows the same names).
group_of_workers() {
  local name
  for name in www-data nginx; do
    if getent group "$name" >/dev/null; then echo "$name"; return; fi
  done
  echo chatglm-ha
}

lay_files() {
  mkdir -p "$root/usr/bin"
  ln -sf ../lib/chatglm-ha/bin/chatglm-had ../lib/chatglm-ha/bin/chatglm-hactl "$root/usr/bin"
  install -D -m 644 deploy/host/sysusers.conf "$root/usr/lib/sysusers.d/chatglm-ha.conf"
  install -D -m 644 deploy/host/tmpfiles.conf "$root/usr/lib/tmpfiles.d/chatglm-ha.conf"
  sed -i "s/@WORKERS@/$(group_of_workers)/" "$root/usr/lib/tmpfiles.d/chatglm-ha.conf"
  install -D -m 755 deploy/host/accounts.sh "$root$lib/accounts.sh"
  install -D -m 644 deploy/host/logrotate.conf "$root/etc/logrotate.d/chatglm-ha"
  install -D -m 644 deploy/host/nginx.conf "$root/etc/nginx/conf.d/chatglm-ha.conf"
  install -D -m 644 config/config.toml "$root/usr/share/chatglm-ha/config.toml"
  install -D -m 644 LICENSE "$root/usr/share/doc/chatglm-ha/copyright"
  install -D -m 644 -t "$root/usr/lib/systemd/system" systemd/chatglm-ha{.service,-nginx.socket,-nginx@.service}
  install -D -m 644 -t "$root/usr/share/chatglm-ha" systemd/{kernel-log,process-runtime}.conf
  # The commands of this installation, whatever else is on systemd's path.
  sed -i '/^Exec/s|=chatglm-ha|=/usr/bin/chatglm-ha|' "$root/usr/lib/systemd/system/chatglm-ha.service"
}

umask 022
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(find_python)
[ -n "$python" ] || no_python
python=$(versioned "$python")
say "making the virtual environment with $python ($("$python" -V | cut -d' ' -f2)); this takes a minute"
mkdir -p "$root"
lay_environment "$python"
lay_files
