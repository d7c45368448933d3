#!/bin/sh
# Installs the few system packages that some tests use, where that is possible without asking anybody anything:
# Chromium (pages), a Chinese font (plots and screenshots), Open MPI (starting ranks), ip (two hosts on one machine).
# Tests skip what is missing, so this never fails a run: it says in one line what it could not do and goes on.
LIMIT=${SYSTEM_PACKAGES_SECONDS:-300}  # for everything together
WANTED="chromium chromium-driver fonts-noto-cjk openmpi-bin iproute2"

say() { echo "system packages: $*"; }
installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }

command -v apt-get >/dev/null 2>&1 && command -v dpkg-query >/dev/null 2>&1 || {
    say "no apt-get here; tests that need a browser, a Chinese font or mpirun may skip"
    exit 0
}

missing=""
for package in $WANTED; do
    installed "$package" || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    root="sudo -n"
else
    say "not root, so not installing$missing; for every test: sudo apt-get install$missing"
    exit 0
fi

say "installing$missing (at most $LIMIT s)"
end=$(($(date +%s) + LIMIT))
# DEBIAN_FRONTEND goes through env because sudo drops it; output is shown only when something fails.
apt() {
    left=$((end - $(date +%s)))
    [ "$left" -gt 0 ] || return 124
    timeout "$left" $root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=60 "$@" </dev/null
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt update >"$log" 2>&1 || say "apt-get update failed: $(tail -n 1 "$log")"
# One by one: a package that this release does not have must not keep the others out.
for package in $missing; do
    apt install -y --no-install-recommends "$package" >"$log" 2>&1 || say "no $package: $(tail -n 1 "$log")"
done
exit 0
