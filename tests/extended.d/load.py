"""Mixed load for minutes (REFRAIN_LOAD_SECONDS, default 120): memory, descriptors and write-ahead log do not grow."""

import random

from support import *

SECONDS = float(os.environ.get("REFRAIN_LOAD_SECONDS", "120"))
CLIENTS = 24
TOKENS = 12


def measure(proxy):
    with open(f"/proc/{proxy.pid}/status") as status:
        text = status.read()
    resident = int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024
    threads = int(re.search(r"Threads:\s+(\d+)", text)[1])
    log = os.path.getsize(proxy.path + "-wal") / (1 << 20)
    return resident, len(os.listdir(f"/proc/{proxy.pid}/fd")), threads, log


async def work(proxy, number, end, counts):
    """One client: old and new tasks, batches, polls, bypassed requests, deletes, hang-ups."""
    dice, client, made = random.Random(number), proxy.client(), 0
    token = f"token-{number % TOKENS}"
    while time.monotonic() < end:
        kind = dice.random()
        known = [f"task-{number}-{dice.randrange(max(made, 1))}" for _ in range(dice.randrange(1, 60))]
        try:
            if kind < 0.2:
                requested, made = f"task-{number}-{made}", made + 1
                reply = await client.retrieve(token, requested)
                check(reply.body == record_of(token, requested), "not the bytes of", requested)
            elif kind < 0.5:
                reply = await client.retrieve(token, known[0])
                check(reply.body == record_of(token, known[0]), "not the bytes of", known[0])
            elif kind < 0.65:
                reply = await client.batch(token, known)
                items = b",".join(record_of(token, task_id) for task_id in known)
                check(reply.body == b'{"items":[%s],"count":%d}' % (items, len(known)), "not the batch")
            elif kind < 0.8:
                reply = await client.retrieve(token, f"pending-{dice.randrange(500)}")
            elif kind < 0.9:
                reply = await client.post(token, {"prompt": "x" * dice.randrange(5000)}, path="/producer/audios")
            elif kind < 0.93:
                reply = await client.post(token, {"action": "delete", "id": known[0]})
            else:
                async with asyncio.timeout(dice.random() * 0.01):
                    reply = await client.retrieve(token, f"cancelled-{dice.randrange(10**6)}")
            check(reply.status == 200, reply.status, reply.body[:200])
            counts["responses"] += 1
        except TimeoutError:
            check(kind >= 0.93, "no response within a minute")
            counts["cancelled"] += 1
    client.close()


async def part(folder):
    counts = {"responses": 0, "cancelled": 0}
    # Small limits for memory and disk, so that both are full before the warm-up ends.
    settings = {"REFRAIN_STORE__MEMORY_BYTES": "2MiB", "REFRAIN_STORE__MAX_BYTES": "8MiB"}
    async with Upstream() as upstream, Proxy(folder, upstream, **settings) as proxy:
        start = time.monotonic()
        end = start + SECONDS
        samples = []

        async def watch():
            while time.monotonic() < end:
                samples.append(measure(proxy))
                await asyncio.sleep(1)

        await asyncio.gather(watch(), *(work(proxy, number, end, counts) for number in range(CLIENTS)))
        check(proxy.process.returncode is None, "the program ended")
        settled = samples[len(samples) * 2 // 5:]
        third = len(settled) // 3
        early, late = settled[:third], settled[-third:]
        mean = lambda rows, column: sum(row[column] for row in rows) / len(rows)
        names = ("resident MiB", "descriptors", "threads", "log MiB")
        for column, name in enumerate(names):
            print(f"{name}: {mean(early, column):.1f} after warm-up, {mean(late, column):.1f} at the end, "
                  f"{max(row[column] for row in samples):.1f} at most")
        print(f"{counts['responses']} responses, {counts['cancelled']} cancelled, {len(upstream.calls)} upstream calls "
              f"in {SECONDS:.0f} s")
        check(mean(late, 0) < mean(early, 0) * 1.1 + 4, "memory grows")
        check(mean(late, 1) < mean(early, 1) + 8, "descriptors grow")
        check(mean(late, 2) < mean(early, 2) + 4, "threads grow")
        check(max(row[3] for row in samples) < 48, "the write-ahead log grows")
        errors = await proxy.store_errors()
        check(errors == 0, "store errors:", errors)
        check(await proxy.stop() == 0, "a clean end")
        sound(proxy.path)


run(part)
