#!/usr/bin/env bash
# Polls each of TASK_IDS every three seconds, like the vendor's SDK, and prints the `x-cache` header of each response.
# With START_TASK=yes it first starts one task, which costs money on the real upstream.
set -euo pipefail

base=${ACEDATACLOUD_API_BASE_URL:?}
read -ra ids <<<"${TASK_IDS:-}"

post() { # PATH BODY
    curl -sS --max-time 90 "$base$1" -H "authorization: Bearer ${ACEDATACLOUD_API_TOKEN:?}" \
        -H 'content-type: application/json' -d "$2" "${@:3}"
}

if [ "${START_TASK:-no}" = yes ]; then
    response=$(post /producer/audios '{"action":"generate","prompt":"a song about patience","async":true}')
    echo "started: $response"
    if [[ $response =~ \"task_id\":\ *\"([^\"]+)\" ]]; then
        ids+=("${BASH_REMATCH[1]}")
    fi
fi
if [ ${#ids[@]} -eq 0 ]; then
    echo "nothing to poll: set TASK_IDS, or START_TASK=yes with the simulated upstream"
    exec sleep infinity
fi

while true; do
    for id in "${ids[@]}"; do
        # A failure is printed and does not end the loop.
        post /producer/tasks "{\"action\":\"retrieve\",\"id\":\"$id\"}" -o /dev/null \
            -w "$id: %{http_code} x-cache: %header{x-cache} in %{time_total} s\n" || true
    done
    sleep 3
done
