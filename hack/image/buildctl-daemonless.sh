#!/bin/sh
# Runs buildctl against a buildkitd that lives only as long as it does: for CI
# jobs that have a container and no service. Use it like buildctl:
#
#   docker run --rm --privileged -v "$PWD:/src" --entrypoint buildctl-daemonless.sh IMAGE \
#     build --frontend dockerfile.v0 --local context=/src --local dockerfile=/src
#
# BUILDCTL, BUILDKITD           the two programs
# BUILDKITD_FLAGS               more flags for the daemon
# BUILDCTL_CONNECT_RETRIES_MAX  how many tenths of a second to wait for it
set -eu

: "${BUILDCTL=buildctl}" "${BUILDKITD=buildkitd}" "${BUILDKITD_FLAGS=}" "${BUILDCTL_CONNECT_RETRIES_MAX=100}"

dir=$(mktemp -d)
addr=unix://$dir/buildkitd.sock

# shellcheck disable=SC2086 # flags are words
$BUILDKITD $BUILDKITD_FLAGS --addr="$addr" >"$dir/log" 2>&1 &
pid=$!

stop() {
	kill "$pid" 2>/dev/null || true
	wait "$pid" || true
	rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

try=0
until $BUILDCTL --addr="$addr" debug workers >/dev/null 2>&1; do
	try=$((try + 1))
	if [ "$try" -gt "$BUILDCTL_CONNECT_RETRIES_MAX" ] || ! kill -0 "$pid" 2>/dev/null; then
		echo "buildctl-daemonless: buildkitd did not start:" >&2
		cat "$dir/log" >&2
		exit 1
	fi
	sleep 0.1
done

$BUILDCTL --addr="$addr" "$@"
