#!/usr/bin/env bash
# Tests the container: the real Dockerfile and docker-compose.yml on a Docker engine, with the simulated upstream and
# the example app beside the proxy.
#
#   tests/container.sh          or, with its tools installed first: tests/extended container
#
#   REFRAIN_BASE_IMAGES   program that builds the base images of a given Dockerfile, for machines without a registry;
#                         default: missing images are pulled
#   REFRAIN_COMPOSE       "docker compose" or "docker-compose"; default: the installed one
#
# Containers, network, volume and images have unique names and are removed at the end, also after a failure. The build
# cache stays. Takes some minutes, most of them for compiling.
set -euo pipefail
cd "$(dirname "$0")/.."

# Only the files of this directory count, not the variables of the calling shell.
unset COMPOSE_FILE COMPOSE_PROFILES COMPOSE_PROJECT_NAME
project=refrain-test-$$-$RANDOM
scratch=$(mktemp -d)
# The published ports are on loopback; 0 selects a free one.
export REFRAIN_PORT=0 REFRAIN_ADMIN_PORT=0 REFRAIN_ADMIN_TOKEN=admin-token UPSTREAM=http://simulator:9000 START_TASK=yes TASK_IDS='' ACEDATACLOUD_API_TOKEN=app-token
export BUILDKIT_PROGRESS=plain

fail() {
    failure="FAILED: $*"
    exit 1
}

if [ -z "${REFRAIN_COMPOSE:-}" ]; then
    if docker compose version >/dev/null 2>&1; then REFRAIN_COMPOSE='docker compose'; else REFRAIN_COMPOSE=docker-compose; fi
fi
# Runs a command with a time limit. In the background, since bash handles signals only while it waits.
bounded() { # SECONDS COMMAND…
    timeout --foreground "$@" </dev/null &
    child=$!
    wait "$child"
}
compose() {
    # shellcheck disable=SC2086 # may be two words
    bounded "${limit:-120}" $REFRAIN_COMPOSE --file docker-compose.yml --project-name "$project" --profile simulated "$@"
}

# For messages while the output of a command is redirected.
exec 9>&1
clean_up() {
    local code=$?
    exec >&9
    trap - EXIT INT TERM HUP
    if kill "${child:-}" 2>/dev/null; then wait "$child" || true; fi
    if [ "$code" -ne 0 ]; then
        compose logs --no-color --tail 8 2>/dev/null || true
        echo "${failure:-FAILED with exit code $code}"
    fi
    compose down --volumes --remove-orphans --rmi local --timeout 5 >/dev/null 2>&1 || true
    docker image rm "$project-rebuilt" >/dev/null 2>&1 || true
    # The compile stage of the second build, left by the classic builder.
    [ -z "${rebuilt_stage:-}" ] || docker image rm "$rebuilt_stage" >/dev/null 2>&1 || true
    rm -rf "$scratch"
    exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

command -v docker >/dev/null || fail "there is no docker command"
docker info >"$scratch/info" 2>&1 || fail "no Docker engine answers: $(tail -1 "$scratch/info")"
compose version >/dev/null 2>&1 || fail "there is neither docker compose nor docker-compose"

# Waits for a condition.
within() { # SECONDS WHAT COMMAND…
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "timeout: $what"
        sleep 0.5
    done
}

container_of() { docker ps --all --quiet --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$1"; }
inspect() { docker inspect --format "$2" "$1"; }
equal() { # WHAT EXPECTED FOUND
    [ "$2" = "$3" ] || fail "$1 is \"$3\", not \"$2\""
}

# Sends a request from the app's container to the proxy by its service name. Prints head and body.
send() { # TOKEN PATH BODY [curl's options…]
    compose exec -T app curl -sS --include --max-time 90 "http://refrain:8080$2" -H "authorization: Bearer $1" \
        -H 'content-type: application/json' -d "$3" "${@:4}"
}
x_cache() { tr -d '\r' | sed -n 's/^x-cache: //p'; }

# --- the token of the admin port has to be set

REFRAIN_ADMIN_TOKEN='' compose config >"$scratch/config" 2>&1 && fail "Compose accepts an empty REFRAIN_ADMIN_TOKEN"
grep -q 'copy .env.example to .env and set REFRAIN_ADMIN_TOKEN' "$scratch/config" ||
    fail "the message about a missing token: $(cat "$scratch/config")"
compose --profile monitoring config --quiet >"$scratch/config" 2>&1 || fail "the file is invalid: $(cat "$scratch/config")"
echo "Compose asks for REFRAIN_ADMIN_TOKEN"

# --- base images

for file in Dockerfile config/example-app/Dockerfile; do
    if [ -n "${REFRAIN_BASE_IMAGES:-}" ]; then
        "$REFRAIN_BASE_IMAGES" "$file" || fail "REFRAIN_BASE_IMAGES built no base images for $file"
        continue
    fi
    for image in $(awk 'toupper($1) == "FROM" { print $2 }' "$file" | sort -u); do
        docker image inspect "$image" >/dev/null 2>&1 || timeout 300 docker pull --quiet "$image" ||
            fail "base image $image cannot be pulled; REFRAIN_BASE_IMAGES names a program that builds it"
    done
done

# --- the services start, and the app receives a miss and then a hit

start=$SECONDS
limit=1800 compose build >"$scratch/build.log" 2>&1 || { tail -20 "$scratch/build.log"; fail "the build failed"; }
echo "built in $((SECONDS - start)) s"
compose up --detach --no-build >"$scratch/up.log" 2>&1 || { cat "$scratch/up.log"; fail "compose up"; }
refrain=$(container_of refrain)
[ -n "$refrain" ] || fail "no refrain container"
healthy() { [ "$(inspect "$refrain" '{{.State.Health.Status}}')" = healthy ]; }
within 60 "the health check turns healthy" healthy
echo "healthy"

# The app runs unchanged against http://refrain:8080. Its task takes 40 s on the simulated upstream.
app_saw() { compose logs --no-color app 2>/dev/null | grep -q "200 x-cache: $1 "; }
within 60 "a poll of the app is a miss" app_saw MISS
within 90 "a poll of the finished task is a hit" app_saw HIT
id=$(compose logs --no-color app | sed -n 's/.* \([0-9a-zA-Z-]*\): 200 x-cache: HIT .*/\1/p' | head -1)
[ -n "$id" ] || fail "the app's log names no task"
echo "the app received a miss, then hits"

# --- confinement, as reported by the engine and as seen from inside

equal "the user" 10001:10001 "$(inspect "$refrain" '{{.Config.User}}')"
equal "a read-only root" true "$(inspect "$refrain" '{{.HostConfig.ReadonlyRootfs}}')"
equal "the dropped capabilities" '[ALL]' "$(inspect "$refrain" '{{.HostConfig.CapDrop}}')"
equal "privileged" false "$(inspect "$refrain" '{{.HostConfig.Privileged}}')"
inspect "$refrain" '{{.HostConfig.SecurityOpt}}' | grep -q no-new-privileges || fail "new privileges are possible"
compose exec -T refrain cat /proc/1/status >"$scratch/status"
status_of() { awk -v name="$1:" '$1 == name { $1 = ""; print substr($0, 2) }' "$scratch/status"; }
equal "the process" refrain "$(status_of Name)"
equal "its user ids" "10001 10001 10001 10001" "$(status_of Uid)"
equal "its group ids" "10001 10001 10001 10001" "$(status_of Gid)"
for set in CapInh CapPrm CapEff CapBnd CapAmb; do
    equal "$set" 0000000000000000 "$(status_of $set)"
done
equal "NoNewPrivs" 1 "$(status_of NoNewPrivs)"
for folder in / /etc/refrain /usr/local/bin; do
    compose exec -T refrain touch "$folder/x" >"$scratch/touch" 2>&1 && fail "$folder is writable"
    grep -q 'Read-only file system' "$scratch/touch" || fail "a write to $folder fails for another reason: $(cat "$scratch/touch")"
done
echo "runs as 10001, without capabilities, on a read-only root, according to the engine and the process"

for binding in $(inspect "$refrain" '{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}} {{end}}{{end}}'); do
    equal "the published address" 127.0.0.1 "$binding"
done
# Sends a GET from this machine to a published port. Prints head and body.
get() { # PORT PATH [TOKEN]
    local address
    address=$(docker port "$refrain" "$1/tcp" | head -1)
    exec 3<>"/dev/tcp/127.0.0.1/${address##*:}" || fail "nothing listens on the published port $1"
    printf 'GET %s HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n%s\r\n' "$2" "$address" \
        "${3:+authorization: Bearer $3$'\r\n'}" >&3
    timeout 20 cat <&3
    exec 3>&-
}
status() { sed -n '1s/^HTTP[^ ]* \([0-9]*\).*/\1/p'; }
reaches() { compose exec -T app curl -sS --max-time 5 --output /dev/null --write-out '%{http_code}' "http://refrain:$1$2"; }
[ -n "$(get 8080 /healthz | status)" ] || fail "no response on the published client port"
[ "$(reaches 8080 /healthz)" != 000 ] || fail "the app cannot reach the client port"
echo "published on loopback only"

# --- the dashboard needs the token, from this machine and from the app's container

get 8081 / >"$scratch/page"
equal "the status of the dashboard" 200 "$(status <"$scratch/page")"
grep -q '<title>refrain</title>' "$scratch/page" || fail "the dashboard's page is another: $(cat "$scratch/page")"
for path in /api/stats /metrics; do
    equal "$path without a token" 401 "$(get 8081 "$path" | status)"
    equal "$path with a wrong token" 401 "$(get 8081 "$path" another-token | status)"
    equal "$path from the app, without a token" 401 "$(reaches 8081 "$path")"
    get 8081 "$path" admin-token >"$scratch/page"
    equal "$path with the token" 200 "$(status <"$scratch/page")"
done
grep -q '^refrain_build_info{' "$scratch/page" || fail "/metrics lacks refrain_build_info"
echo "the dashboard is published on loopback, and its data needs the token"

# --- a restart keeps the tasks

compose stop simulator >/dev/null 2>&1
started=$(inspect "$refrain" '{{.State.StartedAt}}')
compose restart refrain >/dev/null 2>&1 || fail "compose restart"
[ "$(inspect "$refrain" '{{.State.StartedAt}}')" != "$started" ] || fail "the container was not restarted"
within 60 "healthy after the restart" healthy
look_up="{\"action\":\"retrieve\",\"id\":\"$id\"}"
equal "x-cache after a restart, with the upstream stopped" HIT "$(send app-token /producer/tasks "$look_up" | x_cache)"
compose exec -T refrain refrain tasks backup /data/copy.db >/dev/null || fail "the backup inside the container failed"
compose exec -T refrain cat /data/copy.db >"$scratch/copy.db"
compose exec -T refrain rm /data/copy.db
[ "$(head -c 15 "$scratch/copy.db" | tr -d '\0')" = "SQLite format 3" ] || fail "the backup is not a database"
compose start simulator >/dev/null 2>&1
echo "a hit after a restart with the upstream stopped; a backup can be copied out"

# --- a stop finishes running requests

# A request that takes 40 s on the simulated upstream, and a lookup that waits for another task.
send paid-token /producer/audios '{"action":"generate","prompt":"a running request"}' >"$scratch/paid" 2>"$scratch/paid.err" &
paid=$!
paid_since=$SECONDS
start_one() {
    waiting=$(send wait-token /producer/audios '{"action":"generate","async":true}' | sed -n 's/.*"task_id": *"\([^"]*\)".*/\1/p')
    [ -n "$waiting" ]
}
within 20 "a task is started" start_one
send wait-token /producer/tasks "{\"action\":\"retrieve\",\"id\":\"$waiting\"}" -H 'prefer: wait=60' >"$scratch/waits" 2>"$scratch/waits.err" &
waits=$!
# About 15 s of the request are left, and server.shutdown_timeout is 25 s.
while [ $((SECONDS - paid_since)) -lt 25 ]; do sleep 0.5; done
kill -0 "$paid" 2>/dev/null || fail "the request ended before the stop: $(cat "$scratch/paid")"
kill -0 "$waits" 2>/dev/null || fail "the lookup did not wait: $(cat "$scratch/waits")"
start=$SECONDS
compose stop refrain >/dev/null 2>&1 || fail "compose stop"
took=$((SECONDS - start))
equal "the exit code" 0 "$(inspect "$refrain" '{{.State.ExitCode}}')"
equal "killed for lack of memory" false "$(inspect "$refrain" '{{.State.OOMKilled}}')"
wait "$paid" || fail "the running request was cut: $(cat "$scratch/paid" "$scratch/paid.err")"
wait "$waits" || fail "the waiting lookup was cut: $(cat "$scratch/waits" "$scratch/waits.err")"
for name in paid waits; do
    head -1 "$scratch/$name" | grep -q '^HTTP/1.1 200' || fail "$name: $(head -1 "$scratch/$name")"
done
grep -q '"success": *true' "$scratch/paid" || fail "the response is incomplete: $(tail -1 "$scratch/paid")"
grep -q "\"id\": *\"$waiting\"" "$scratch/waits" || fail "the waiting lookup received another response: $(tail -1 "$scratch/waits")"
echo "stop: running requests finished, exit code 0 after $took s of 30"

# --- the size of the image, and a build after a change of one source file

image=$(inspect "$refrain" '{{.Image}}')
bytes=$(docker image inspect --format '{{.Size}}' "$image")
base=$(docker image inspect --format '{{.Size}}' "$(awk 'toupper($1) == "FROM" { last = $2 } END { print last }' Dockerfile)")
echo "image: $((bytes / 1000000)) MB, $(((bytes - base) / 1000000)) MB of it over its base"
# About twice the expected size. More means that the image has files it does not need.
[ $((bytes - base)) -lt 30000000 ] || fail "the image is too large"

copy=$scratch/copy
mkdir "$copy"
tar --exclude=./target --exclude=./.git --create . | tar --extract --directory "$copy"
echo '// changed' >>"$copy/src/main.rs"
start=$SECONDS
bounded 1800 docker build --tag "$project-rebuilt" "$copy" >"$scratch/rebuild.raw" 2>&1 || {
    tail -20 "$scratch/rebuild.raw"
    fail "the second build failed"
}
sed 's/\x1b\[[0-9;]*m//g' "$scratch/rebuild.raw" >"$scratch/rebuild.log"
rebuilt_stage=$(awk '/^Step [0-9]+\/[0-9]+ : FROM / && seen++ { print last; exit } /^ ---> [0-9a-f]+$/ { last = $2 }' "$scratch/rebuild.log")
compiled=$(sed -n 's/.*Compiling \([^ ]* v[^ ]*\).*/\1/p' "$scratch/rebuild.log" | sort -u)
# The simulator is a package of this repository too; it is small and not part of the layer with the dependencies.
[[ $compiled == *"refrain v"* ]] && ! grep -qvE '^refrain(-simulator)? v' <<<"$compiled" ||
    fail "compiled after a change of one file: ${compiled:-nothing}"
# The classic builder prints `Using cache` below the step, BuildKit `CACHED` with the step's number.
awk '
    /^Step [0-9]+\/[0-9]+ : / { dependencies = /cargo clean/ || /RUN awk/ }
    dependencies && /Using cache/ { found = 1 }
    /^#[0-9]+ / { if (/RUN awk/) step = $1; if ($1 == step && /CACHED/) found = 1 }
    END { exit !found }' "$scratch/rebuild.log" || fail "the layer with the dependencies was not cached"
echo "a change of one source file compiles no dependency, $((SECONDS - start)) s"
