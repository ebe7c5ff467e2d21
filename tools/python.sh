# Sourced: which Python this project can run with, 3.11 or newer; PYTHON=/path/to/python3 names one.

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if command -v "$name" >/dev/null && usable "$name"; then command -v "$name"; return; fi
  done
}
