"""Copies of a store whose write-ahead log is cut or has a flipped bit: a prefix is served, the rest is fetched again."""

import random
import shutil

from support import *

TASKS = 100


async def opened(folder, upstream, keys, log, database):
    """Opens a copy. Returns the number of hits, which have to be the first tasks."""
    place = tempfile.mkdtemp(dir=folder)
    for suffix, content in (("", database), ("-wal", log)):
        with open(os.path.join(place, "refrain.db" + suffix), "wb") as file:
            file.write(content)
    async with Proxy(place, upstream) as proxy:
        client, hits = proxy.client(), []
        for token, task_id, *_ in keys:
            reply = await client.retrieve(token, task_id)
            check(reply.status == 200 and reply.body == record_of(token, task_id), "not the bytes of", task_id)
            hits.append(reply.cache == "HIT")
        client.close()
        await all_hits(proxy, keys)
        await proxy.stop()
    sound(proxy.path)
    shutil.rmtree(place)
    check(sorted(hits, reverse=True) == hits, "the hits are not a prefix:", "".join("01"[hit] for hit in hits))
    return sum(hits)


async def part(folder):
    random.seed(8)
    async with Upstream() as upstream:
        keys = []
        async with Proxy(folder, upstream) as proxy:
            await load(proxy, "log", 1, keys, lambda: len(keys) >= TASKS)
            proxy.signal(signal.SIGSTOP)
            with open(proxy.path, "rb") as file, open(proxy.path + "-wal", "rb") as log_file:
                database, log = file.read(), log_file.read()
        check(await opened(folder, upstream, keys, log, database) == TASKS, "the whole log holds everything")
        cut = [await opened(folder, upstream, keys, log[: random.randrange(len(log))], database) for _ in range(12)]
        flipped = []
        for _ in range(12):
            changed = bytearray(log)
            changed[random.randrange(len(log))] ^= 1 << random.randrange(8)
            flipped.append(await opened(folder, upstream, keys, bytes(changed), database))
        check(await opened(folder, upstream, keys, b"", database) < TASKS, "without the log something is missing")
    print(f"log of {len(log)} bytes; hits of {TASKS} with it cut: {sorted(cut)}, with a bit flipped: {sorted(flipped)}")


run(part)
