# Functions that the scripts share. Source it after `set -euo pipefail`:
#
#   . "$(dirname "$(readlink -f "$0")")/lib/common.sh"
#
# It sets ROOT (the checkout), PATH, CARGO_TARGET_DIR and BACKSTAY_CACHE.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
# Tools of a system administrator and of rustup are not on everyone's path.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
# One folder for everything that is built, so that nothing is built twice.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$ROOT/target}"

# What is fetched from registries and made of it: a checkout that is built again need not fetch it again.
export BACKSTAY_CACHE="${BACKSTAY_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/backstay}"

# scripts/setup lint puts it there.
export PATH="$PATH:$BACKSTAY_CACHE/cargo-deny/bin"

# Object stores that are installed from registries other than the system's.
export STORES_CACHE="${STORES_CACHE:-$BACKSTAY_CACHE/stores}"

say() {
    printf '%s\n' "$*"
}

step() {
    end_part
    PART=$* PART_BEGAN=$(date +%s%N)
    printf '\n== %s\n' "$*"
}

# How long each step took, for say_parts.
PARTS=() PART='' PART_BEGAN=''
end_part() {
    [ -z "$PART" ] || PARTS+=("$(printf '%8s s  %s' "$(seconds_since "$PART_BEGAN")" "$PART")")
    PART=''
}

say_parts() {
    end_part
    printf '%s\n' ${PARTS[@]+"${PARTS[@]}"}
}

warn() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    warn "$*"
    exit 1
}

need_root() {
    [ "$(id -u)" = 0 ] || die "this needs root: it mounts file systems and attaches loop devices"
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# Installs the packages of all "command:package" pairs whose command is not there.
install_missing() {
    local pair missing=()
    for pair in "$@"; do
        have "${pair%%:*}" || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

# Another package manager may be at work (a fresh machine upgrades itself): wait for it, ten minutes at most.
install_packages() {
    have apt-get || die "missing: $*; this system has no apt-get: install them by hand"
    [ "$(id -u)" = 0 ] || die "missing packages: $*; run scripts/setup as root"
    say "installing $*"
    apt_update_once
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -q --no-install-recommends "$@" >/dev/null ||
        die "could not install $*"
    hash -r
}

apt_update_once() {
    [ -z "${APT_UPDATED:-}" ] || return 0
    apt-get -o DPkg::Lock::Timeout=600 update -q >/dev/null || die "apt-get update failed"
    APT_UPDATED=1
}

# The oldest Rust that builds this, from Cargo.toml.
rust_needed() {
    sed -n 's/^rust-version *= *"\(.*\)"/\1/p' "$ROOT/Cargo.toml"
}

# Whether version $1 is at least version $2.
at_least() {
    [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

# Makes sure that cargo is there and new enough.
check_rust() {
    local needed found
    needed=$(rust_needed)
    if ! have cargo; then
        # Debian's own cargo is too old; its package rustup (from trixie on) fetches a current one.
        [ "$(id -u)" = 0 ] && have apt-get && apt_update_once
        if apt-cache show rustup >/dev/null 2>&1; then
            install_missing rustup:rustup
            rustup default stable || die "rustup could not fetch a toolchain"
            hash -r
        else
            die "Rust is missing: install rustup, then a toolchain of at least $needed"
        fi
    fi
    found=$(cd "$ROOT" && cargo --version | cut -d ' ' -f 2)
    at_least "${found%%-*}" "$needed" ||
        die "cargo is $found and at least $needed is needed: run 'rustup update stable'"
}

# Makes sure that the kernel has FUSE and loop devices.
check_kernel() {
    if ! [ -e /dev/fuse ]; then
        modprobe fuse 2>/dev/null || true
    fi
    if ! [ -e /dev/loop-control ]; then
        modprobe loop 2>/dev/null || true
    fi
    [ -e /dev/fuse ] || die "/dev/fuse is missing: the kernel has no FUSE, or this is a container"
    [ -e /dev/loop-control ] || die "/dev/loop-control is missing: no loop devices here"
}

# Free bytes of the file system that holds a folder.
free_bytes() {
    df --output=avail -B1 "$1" | tail -n 1 | tr -d ' '
}

need_free_gib() {
    local have_gib
    have_gib=$(($(free_bytes "$1") >> 30))
    [ "$have_gib" -ge "$2" ] || die "$1 has $have_gib GiB free, $2 GiB are needed"
}

seconds_since() {
    local now
    now=$(date +%s%N)
    printf '%d.%02d' $(((now - $1) / 1000000000)) $(((now - $1) / 10000000 % 100))
}
