#!/usr/bin/env bash
# Tests the Debian package: builds it, installs it in a copy of this machine's root, runs the program, and purges it.
#
#   REFRAIN_BIN=target/debug/refrain tests/package.sh      or: tests/extended package
#
# The copy is an overlay that exists only for this process. Nothing is installed on the machine itself, except cargo-deb
# if it is missing. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

if [ "${1:-}" != --unshared ]; then
    command -v cargo-deb >/dev/null || cargo install --quiet --locked cargo-deb@3.8.0
    exec unshare --mount "$0" --unshared
fi

fail() {
    echo "FAILED: $*"
    exit 1
}

scratch=$(mktemp -d)
root=$scratch/overlay/root
changed=$scratch/overlay/changed
server=
clean_up() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    umount --lazy "$root/proc" "$root/dev" "$root" "$scratch/overlay" 2>/dev/null || true
    rm -rf --one-file-system "$scratch"
}
trap clean_up EXIT
trap 'exit 143' TERM HUP INT

# --- the package

# From the program that was built for the other parts, in the place where cargo-deb looks for a release build.
mkdir -p "$scratch/target/release"
strip -o "$scratch/target/release/refrain" "$REFRAIN_BIN"
package=$scratch/refrain.deb
CARGO_TARGET_DIR=$scratch/target cargo deb --no-build --fast --locked --quiet --output "$package" >"$scratch/cargo-deb"
echo "package: $(($(stat --format %s "$package") / 1000000)) MB, needs $(dpkg-deb --field "$package" Depends)"

# --- a root to install it in

mkdir "$scratch/overlay"
mount -t tmpfs tmpfs "$scratch/overlay"
mkdir "$root" "$changed" "$scratch/overlay/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$changed,workdir=$scratch/overlay/work" "$root"
mount --bind /dev "$root/dev"
mount -t proc proc "$root/proc"
environment=(env --ignore-environment PATH=/usr/sbin:/usr/bin:/sbin:/bin)
inside() { "${environment[@]}" chroot "$root" "$@"; }
dpkg_inside() { inside dpkg "$@" >"$scratch/dpkg" 2>&1 || fail "dpkg $*: $(cat "$scratch/dpkg")"; }

# --- install

mkdir -p "$root/root"
cp "$package" "$root/root/refrain.deb"
dpkg_inside --install /root/refrain.deb
rm "$root/root/refrain.deb"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
[ "$(inside /usr/bin/refrain --version)" = "refrain $version" ] || fail "the version: $(inside /usr/bin/refrain --version)"
inside refrain check --config /usr/share/doc/refrain/examples/refrain.toml >/dev/null || fail "the example configuration"
[ -L "$root/etc/systemd/system/multi-user.target.wants/refrain.service" ] || fail "the unit is not enabled"
[ ! -e "$root/usr/lib/systemd/system/refrain.socket" ] || fail "the socket is a unit of the package"
inside systemd-analyze verify refrain.service >"$scratch/verify" 2>&1 || fail "the unit: $(cat "$scratch/verify")"
! grep -q refrain "$scratch/verify" || fail "the unit: $(cat "$scratch/verify")"
echo "installed: the program runs, the unit is enabled and valid"

# --- run, with the folders that the unit has

store=$root/var/lib/private/refrain
mkdir -p "$store" "$root/etc/refrain"
echo 'server.listen = "127.0.0.1:0"' >"$root/etc/refrain/refrain.toml"
: >"$scratch/log"
"${environment[@]}" REFRAIN_ADMIN__LISTEN=off REFRAIN_STORE__URL=sqlite:///var/lib/private/refrain/refrain.db \
    chroot "$root" /usr/bin/refrain serve --config /etc/refrain/refrain.toml 2>"$scratch/log" &
server=$!
deadline=$((SECONDS + 30))
until grep -q 'client=http://127\.0\.0\.1:' "$scratch/log"; do
    [ "$SECONDS" -lt "$deadline" ] || fail "the program does not start: $(cat "$scratch/log")"
    sleep 0.1
done
kill "$server"
wait "$server" || fail "the program ended with $?: $(cat "$scratch/log")"
server=
[ -s "$store/refrain.db" ] || fail "there is no store"

# --- purge

dpkg_inside --remove refrain
[ ! -e "$root/usr/bin/refrain" ] || fail "remove leaves the program"
dpkg_inside --purge refrain
left=$(cd "$changed" && find . \( -type f -o -type l \) ! -path './var/lib/dpkg/*' ! -path './var/log/*' \
    ! -path './run/*' ! -path './var/cache/*' ! -path './var/lib/private/refrain/*' ! -path ./etc/refrain/refrain.toml)
[ -z "$left" ] || fail "purge leaves: $left"
[ -s "$store/refrain.db" ] || fail "purge removes the store"
[ -s "$root/etc/refrain/refrain.toml" ] || fail "purge removes the configuration of the operator"
echo "purged: only the store and the configuration that was written by hand are left"
