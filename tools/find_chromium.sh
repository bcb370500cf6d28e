#!/bin/sh
# Print the Chromium that the tests of the page use: what CDM_CHROMIUM names, or one of the usual names. Where there is
# none, the administrator gets Debian's package; anybody else is told what is missing.
set -eu
find_it() { command -v "${CDM_CHROMIUM:-chromium}" || command -v chromium-browser || command -v google-chrome; }

if [ -n "${CDM_CHROMIUM:-}" ]; then
  command -v "$CDM_CHROMIUM" && exit 0
  echo "CDM_CHROMIUM: $CDM_CHROMIUM is not a program" >&2
  exit 2
fi
find_it && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "Installing chromium (only this once)" >&2
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium; } >&2
  find_it && exit 0
fi
echo "The tests of the page need a Chromium; install one, or name it: make test-ui CDM_CHROMIUM=/path/to/chromium" >&2
exit 2
