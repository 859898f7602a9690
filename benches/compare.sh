#!/usr/bin/env bash
# Compares the speed of refrain with a bare hyper server (the floor), nginx and Varnish on one machine.
#
#   benches/compare.sh [part…] [--quick] [--rounds N] [--seconds N] [--ten-million] [--folder PATH]
#
# Parts: hit batch cold miss pass sizes start memory burst. Without a name: all parts. Needs Debian or a relative; missing
# packages are installed, which needs root. Everything runs on the loopback. Tables go to stdout in Markdown, progress to
# stderr. The exit code is 1 if a target is missed. docs/benchmarks.md explains the numbers.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
for need in nginx:nginx varnishd:varnish wrk:wrk python3:python3; do
    command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}")
done
# A Varnish module has no command to look for.
compgen -G '/usr/lib/*/varnish/vmods/libvmod_bodyaccess.so' >/dev/null || missing+=(varnish-modules)
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}" >&2
    # The packages would start their servers, on ports that may be occupied.
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    [ -z "$(trap -p EXIT)" ] || rm -f /usr/sbin/policy-rc.d
fi

# Built separately, so that dev-dependencies enable no features in it.
cargo build --release --locked --bin refrain >&2
floor=$(cargo build --release --locked --bench floor --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("target", {}).get("name") == "floor" and message.get("executable"):
        print(message["executable"])')
python3 -B benches/compare/main.py --refrain "$PWD/target/release/refrain" --floor "$floor" "$@"
