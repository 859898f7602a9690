"""Sets the wall clock of the running program back and forward: no stall, no burst, no negative age."""

import glob

from support import *

RATE = 5


async def part(folder):
    library = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    check(library, "libfaketime is not there")
    clock = os.path.join(folder, "clock")

    def set_clock(offset):
        with open(clock + ".new", "w") as file:
            file.write(offset + "\n")
        os.rename(clock + ".new", clock)

    set_clock("+0")
    settings = {
        "LD_PRELOAD": library[0],
        "FAKETIME_TIMESTAMP_FILE": clock,
        "FAKETIME_NO_CACHE": "1",
        # As on a real machine, where setting the wall clock does not change the monotonic clock.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "REFRAIN_UPSTREAM__REQUESTS_PER_SECOND": str(RATE),
        "REFRAIN_UPSTREAM__BURST": "1",
    }
    seen = []
    async with Upstream() as upstream:
        for restarted in (False, True):
            async with Proxy(folder, upstream, **settings) as proxy:
                client = proxy.client()
                for offset in ("+0", "-1d", "+0", "+400d", "-200d", "+1h", "-2s", "+0"):
                    set_clock(offset)
                    name = f"clock{len(seen)}-{restarted}"
                    upstream.calls.clear()
                    start = time.monotonic()
                    for n in range(8):
                        reply = await client.retrieve("t", f"{name}-{n}")
                        check(reply.status == 200 and reply.seconds < 2, offset, reply.status, reply.seconds)
                        seen.append(("t", f"{name}-{n}"))
                    for token, task_id in seen[-40:]:
                        reply = await client.retrieve(token, task_id)
                        check((reply.status, reply.cache) == (200, "HIT"), offset, task_id, reply.status, reply.cache)
                        check(0 <= int(reply.headers["age"]) < 4e8, offset, "age", reply.headers["age"])
                    waiting = await client.retrieve("t", f"pending-{name}", [("prefer", "wait=1")])
                    check(waiting.status == 200 and 0.8 < waiting.seconds < 4, offset, "wait=1:", waiting.seconds)
                    elapsed, calls = time.monotonic() - start, len(upstream.calls)
                    check(calls <= RATE * elapsed + 3, offset, "calls", calls, "in", elapsed)
                    check(await proxy.readiness() == 200, offset, "ready")
                client.close()
                check(await proxy.stop() == 0, "a clean end")
    with contextlib.closing(sqlite3.connect(proxy.path)) as file:
        days = file.execute("SELECT COUNT(DISTINCT stored_at / 86400) FROM task").fetchone()[0]
    check(days >= 4, "the program did not see the clock change; days:", days)
    sound(proxy.path)
    print(f"{len(seen)} tasks on {days} days of the wall clock")


run(part)
