#!/usr/bin/env bash
# Look the pinned packages up among known vulnerabilities. 0: none is known, 1: some are, 2: nobody could be asked.
set -u
cd "$(dirname "$0")/.."
home=.venv-audit
said=$(mktemp)
trap 'rm -f "$said"' EXIT

if [ ! -x $home/bin/pip-audit ]; then
  { "${PYTHON:-python3}" -m venv $home && $home/bin/python -m pip install --quiet pip-audit; } >"$said" 2>&1 || {
    echo "audit: pip-audit cannot be installed here: $(grep -i error "$said" | tail -n 1)" >&2
    exit 2
  }
fi
# The lock holds every package with its version, so nothing has to be resolved or downloaded. Torch is not in it.
found=$($home/bin/pip-audit --disable-pip --no-deps --progress-spinner off --requirement requirements.lock 2>"$said")
status=$?
if [ $status -ne 0 ] && ! grep -q "known vulnerabilit" "$said"; then
  echo "audit: the advisory service cannot be asked from here: $(tail -n 1 "$said" | cut -c 1-200)" >&2
  exit 2
fi
cat "$said"
[ -z "$found" ] || echo "$found"
exit $status
