# Installs missing Debian and Python packages, for tests/run and benches/run (bash). The script that sources this sets
#   PACKAGES      the Debian packages
#   VENV          the virtual environment for Python
#   REQUIREMENTS  the file of its packages

LOG=$(mktemp)
readonly LOG
trap 'rm -f "$LOG"' EXIT

step() { printf '== %s\n' "$*"; }

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

# Runs a command and prints its output only if it fails.
quietly() {
    "$@" >"$LOG" 2>&1 </dev/null || {
        tail -n 40 "$LOG" >&2
        fail "failed: $*"
    }
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    else
        command -v sudo >/dev/null || fail "needs root for: $*; run it as root, or install sudo"
        sudo "$@"
    fi
}

is_installed() { [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]; }

# Keeps Debian's packages from starting their services, since the tests start their own.
without_services() {
    local policy=/usr/sbin/policy-rc.d
    if [[ -e $policy ]]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
    local status=0
    "$@" || status=$?
    as_root rm -f "$policy"
    return "$status"
}

install_packages() {
    local package missing=()
    for package in "${PACKAGES[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        step "Debian packages: all there"
        return
    fi
    step "Debian packages: installing ${missing[*]}"
    command -v apt-get >/dev/null || fail "apt-get is needed to install: ${missing[*]}"
    quietly as_root apt-get update
    without_services quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "${missing[@]}"
}

install_python() {
    local stamp=$VENV/requirements.txt
    if [[ -x $VENV/bin/python ]] && cmp --silent "$REQUIREMENTS" "$stamp"; then
        step "Python packages: all there"
        return
    fi
    step "Python packages: installing into $VENV"
    local python=python3
    "$python" -c 'import ensurepip, venv' 2>/dev/null || python=/usr/bin/python3
    quietly "$python" -m venv --clear "$VENV"
    quietly "$VENV/bin/pip" install --requirement "$REQUIREMENTS"
    cp "$REQUIREMENTS" "$stamp"
}

# Packages for the other Pythons of this machine, from the requirements $1: into $VENV/pythons/VERSION. The pip of $VENV
# installs them, because a Python may have none.
install_other_pythons() {
    local version python folder
    while read -r version python; do
        folder=$VENV/pythons/$version
        if cmp --silent "$1" "$folder/requirements.txt"; then
            step "Python $version: all there"
            continue
        fi
        step "Python $version: installing into $folder"
        rm -rf "$folder"
        quietly "$VENV/bin/pip" --python "$python" install --target "$folder" --requirement "$1"
        cp "$1" "$folder/requirements.txt"
    done < <(other_pythons "$("$VENV/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')")
}
