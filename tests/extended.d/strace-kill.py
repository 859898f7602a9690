"""SIGKILL at the N-th write and at the N-th flush of the store: every record that a client received is stored."""

from support import *

WRITES = [*range(1, 16), 18, 21, 25, 30, 36, 43, 52, 63, 75, 90, 110, 140, 180, 240, 320]
FLUSHES = [1, 2, 3, 4, 6, 9, 14, 20, 40]


async def part(folder):
    seen, kills, idle = [], 0, 0
    async with Upstream() as upstream:
        for calls, number in [("pwrite64", n) for n in WRITES] + [("fsync,fdatasync", n) for n in FLUSHES]:
            inject = f"{calls}:signal=SIGKILL:when={number}"
            proxy = Proxy(folder, upstream, wrap=["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=" + calls,
                                                  "-e", "inject=" + inject])
            upstream.up, before = True, len(seen)
            if await proxy.start():
                deadline = time.monotonic() + 15
                await load(proxy, f"{calls[0:2]}{number}", 8, seen, lambda: time.monotonic() > deadline)
            if proxy.process.returncode is None:
                try:
                    await proxy.ended(within=2)
                except TimeoutError:
                    idle += 1
            kills += proxy.process.returncode == -signal.SIGKILL
            await proxy.kill()

            upstream.up = False
            start = time.monotonic()
            async with Proxy(folder, upstream) as proxy:
                ready = time.monotonic() - start
                check(ready < 5, "ready only after", ready)
                check(not any("corrupt" in name for name in os.listdir(folder)), os.listdir(folder))
                await all_hits(proxy, seen[before:])
                check(await proxy.stop() == 0, "a clean end")
            rows = sound(os.path.join(folder, "refrain.db"))
        async with Proxy(folder, upstream) as proxy:
            await all_hits(proxy, seen)
    print(f"{kills} kills, {len(seen)} tasks seen, all of {rows} rows sound; {idle} runs without a kill")
    check(kills >= 35, "too few kills:", kills)


run(part)
