#!/bin/sh
# Prints the path of a Python this project runs on (3.10 to 3.12, able to make virtual environments), or says in one
# line that there is none. A candidate must really run: version managers leave commands behind that only fail.
# PYTHON=/path/to/python names one and ends the search.
CHECK='import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'

usable() { [ -x "$1" ] && "$1" -c "$CHECK" >/dev/null 2>&1; }

if [ -n "${PYTHON:-}" ]; then
    named=$(command -v "$PYTHON")
    usable "${named:-/nowhere}" && echo "$named" && exit 0
    echo "PYTHON=$PYTHON is not a working Python 3.10, 3.11 or 3.12 with venv: name another" >&2
    exit 1
fi

for name in python3.11 python3.12 python3.10 python3 python; do
    IFS=:
    for folder in $PATH; do
        usable "$folder/$name" && echo "$folder/$name" && exit 0
    done
    unset IFS
done
# Installed by pyenv but not the selected version: good enough to make a virtual environment from.
for name in 3.11 3.12 3.10; do
    for candidate in "${PYENV_ROOT:-$HOME/.pyenv}/versions/$name".*/bin/python; do
        usable "$candidate" && echo "$candidate" && exit 0
    done
done
echo "no Python 3.10, 3.11 or 3.12 with venv here: install one (on Debian and Ubuntu: apt-get install python3.11-venv)," \
    "or name one: make PYTHON=/path/to/python3.11" >&2
exit 1
