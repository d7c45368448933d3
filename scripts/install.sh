#!/bin/sh
# Makes .venv where there is none that runs, and installs the lab into it: install.sh [EXTRA].
# The stamp is written last, so an installation that was cut short is taken up again the next time.
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}
VENV=.venv

if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(sh scripts/find_python.sh)
    echo "making $VENV with $python"
    "$python" -m venv --clear "$VENV"
fi
echo "installing into $VENV: 3.5 GB the first time, a minute or a few"
quiet=--quiet
[ -t 1 ] && quiet=""  # on a terminal pip may show its bars; a log stays short
# "compat" puts this folder itself on the path, so that a package added later is found without installing again
"$VENV/bin/python" -m pip install --disable-pip-version-check $quiet --config-settings editable_mode=compat \
    -e ".${extra:+[$extra]}"
touch "$VENV/.installed" ${extra:+"$VENV/.installed-$extra"}
