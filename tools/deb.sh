#!/usr/bin/env bash
# Packs this checkout as dist/chatglm-ha_VERSION_ARCHITECTURE.deb, for the Debian or Ubuntu release that this runs on:
# the package has its own virtual environment, which belongs to one minor version of Python.
#   tools/deb.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/python.sh

mkdir -p dist
work=$(mktemp -d dist/making.XXXXXX) # not in /tmp, which may forbid to run or map what lies in it
trap 'rm -rf "$work"' EXIT
tree=$PWD/$work/tree

fail() { printf 'deb: %s\n' "$@" >&2; exit 1; }

# The one that dpkg knows: only such a one can be depended on.
packaged_python() {
  local python
  python=$(find_python)
  [ -n "$python" ] || { tools/tree.sh "$tree"; exit 1; } # it says how to get one
  python=$(realpath "$python")
  dpkg-query -S "$python" >/dev/null 2>&1 ||
    fail "$python is of no package, so that none could depend on it: make deb PYTHON=/usr/bin/python3"
  echo "$python"
}

command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing: a package is built on Debian or Ubuntu"
umask 022
PYTHON=$(packaged_python)
export PYTHON
tools/tree.sh "$tree"
# systemd asks for a daemon-reload by the time of a unit; an unchanged one has the same in every package.
for unit in "$tree"/usr/lib/systemd/system/*; do
  if changed=$(git log -1 --format=%ct -- "systemd/$(basename "$unit")" 2>/dev/null) && [ -n "$changed" ]; then
    touch -d "@$changed" "$unit"
  fi
done

lay_papers() {
  local doc=$tree/usr/share/doc/chatglm-ha when
  when=$(git log -1 --format=%cd --date=rfc2822 2>/dev/null || true)
  install -m 644 deploy/debian/copyright "$doc/copyright"
  printf 'chatglm-ha (%s) unstable; urgency=medium\n\n  * See /usr/share/doc/chatglm-ha/CHANGELOG.md.gz.\n\n -- %s  %s\n' \
    "$version" "$(sed -n 's/^Maintainer: //p' deploy/debian/control)" "${when:-$(date -R)}" |
    gzip -9n >"$doc/changelog.gz"
  gzip -9nc CHANGELOG.md >"$doc/CHANGELOG.md.gz"
  install -D -m 644 deploy/debian/lintian-overrides "$tree/usr/share/lintian/overrides/chatglm-ha"
}

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' hasupervisor/__init__.py)
lay_papers
architecture=$(dpkg --print-architecture)
mkdir "$tree/DEBIAN"
sed -e "s/@VERSION@/$version/" -e "s/@ARCHITECTURE@/$architecture/" -e "s/@PYTHON@/$(basename "$PYTHON")/" \
  -e "s/@SIZE@/$(du -sk --exclude=DEBIAN "$tree" | cut -f1)/" deploy/debian/control >"$tree/DEBIAN/control"
install -m 755 deploy/debian/{preinst,postinst,prerm,postrm} "$tree/DEBIAN"
(cd "$tree" && find etc -type f -printf '/%p\n' | sort) >"$tree/DEBIAN/conffiles"
(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
dpkg-deb --root-owner-group -Zxz -z1 --build "$tree" "dist/chatglm-ha_${version}_${architecture}.deb"
