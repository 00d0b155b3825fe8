# What is installed besides the program: made of the program. For scripts/package and scripts/install.
# shellcheck shell=bash

# Fills folder $2 with program $1 and what it says of itself: man pages, completions, links.
stage() {
    local program=$1 dir=$2
    rm -rf "$dir"
    mkdir -p "$dir"/{bin,sbin,man1,man5,man8,completions}
    install -m 755 "$program" "$dir/bin/backstay"
    # Only smaller; a machine that just installs may not have it.
    ! have strip || strip --strip-debug "$dir/bin/backstay"
    ln -s ../bin/backstay "$dir/sbin/mount.backstay"
    ln -s ../bin/backstay "$dir/sbin/umount.backstay"
    "$program" man "$dir/man1"
    mv "$dir"/man1/*.5 "$dir/man5"
    cp "$ROOT/tools/packaging/man/mount.backstay.8" "$dir/man8"
    echo '.so man8/mount.backstay.8' >"$dir/man8/umount.backstay.8"
    gzip -9n "$dir"/man[158]/*
    "$program" completions bash >"$dir/completions/backstay"
    "$program" completions zsh >"$dir/completions/_backstay"
    "$program" completions fish >"$dir/completions/backstay.fish"
}
