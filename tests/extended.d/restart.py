"""Restarts under load with a socket of the service manager: no request fails.

The part holds the listening socket as systemd does, and passes it to each process.
"""

import socket

from support import *

RESTARTS = 20
# Clients that keep their connection, and clients that open one for each request.
KEEPING, OPENING = 6, 6
PASS_SOCKET = 'exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve'


async def work(port, number, keeps, ends, counts):
    """One client: looks up new and old tasks until the end."""
    client, n = Client(port), 0
    while not ends.is_set():
        token, task_id = f"token-{number}", f"task-{number}-{n // 2}"
        n += 1
        try:
            reply = await client.retrieve(token, task_id)
            check(reply.status == 200, reply.status, reply.body[:200])
            check(reply.body == record_of(token, task_id), "not the bytes of", task_id)
            counts["responses"] += 1
            counts["longest"] = max(counts["longest"], reply.seconds)
        except (OSError, asyncio.IncompleteReadError, AssertionError) as error:
            counts["failed"].append(repr(error))
        if not keeps:
            client.close()
        await asyncio.sleep(0.005)
    client.close()


async def part(folder):
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    counts, ends = {"responses": 0, "longest": 0, "failed": []}, asyncio.Event()
    async with Upstream() as upstream:
        environment = {
            "PATH": os.environ["PATH"],
            "REFRAIN_ADMIN__LISTEN": "off",
            "REFRAIN_UPSTREAM__BASE_URL": upstream.url,
            "REFRAIN_UPSTREAM__REQUESTS_PER_SECOND": "1000",
            "REFRAIN_UPSTREAM__BURST": "100",
            "REFRAIN_LOG__FILTER": "warn",
        }

        async def start():
            return await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", PASS_SOCKET, BINARY, cwd=folder, env=environment, stdin=listener.fileno()
            )

        process = await start()
        clients = [asyncio.create_task(work(port, number, number < KEEPING, ends, counts))
                   for number in range(KEEPING + OPENING)]
        for _ in range(RESTARTS):
            seen = counts["responses"]

            async def served():
                return counts["responses"] >= seen + 100

            await eventually("100 responses between two restarts", served)
            process.terminate()
            code = await asyncio.wait_for(process.wait(), 30)
            check(code == 0, "exit code", code)
            process = await start()
        seen = counts["responses"]
        await eventually("responses after the last restart", served)
        ends.set()
        await asyncio.gather(*clients)
        process.terminate()
        await process.wait()
    listener.close()
    print(f"{RESTARTS} restarts, {counts['responses']} responses, {len(counts['failed'])} failed, "
          f"longest {counts['longest']:.1f} s")
    check(not counts["failed"], "failed:", counts["failed"][:5])


run(part)
