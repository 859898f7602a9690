"""Instructions of a stored look-up in the release build, counted by callgrind, stay below a bound.

Time depends on the machine, the number of instructions hardly does. Three runs of the same program: a warm-up alone,
the warm-up and single hits, the warm-up and batches of 50. What a run counts more than the first, divided by its
requests, is what one request takes in refrain; the kernel's share is not in it.
"""

from support import *

SIZE = 3000
SINGLES = 2000
BATCHES = 200

# Today's count and a quarter. A change that goes past it is to be explained, or to be made cheaper; one that takes
# off a good part lowers the bound.
BOUNDS = {"a hit": 29_500, "a batch of 50": 107_500}


def task(task_id):
    body = {"id": task_id, "finished_at": 1767119785.25, "data": "x" * SIZE}
    return json.dumps(body, separators=(",", ":")).encode()


class SameSize(Upstream):
    """Tasks of 3 kB each."""

    def answer(self, head, body):
        asked = json.loads(body)
        ids = asked.get("ids") or [asked["id"]]
        if "ids" not in asked:
            return b"200 OK", task(ids[0])
        return b"200 OK", b'{"items":[%s],"count":%d}' % (b",".join(map(task, ids)), len(ids))


async def count(folder, name, singles=0, batches=0):
    """All instructions of a run from start to end."""
    folder = os.path.join(folder, name)
    os.mkdir(folder)
    output = os.path.join(folder, "callgrind.out")
    # Without valgrind's own debugger port, and one thread, as it runs one at a time anyhow.
    wrap = ("valgrind", "--tool=callgrind", "--vgdb=no", f"--callgrind-out-file={output}")
    ids = [f"00000000-0000-4000-8000-{number:012}" for number in range(50)]
    whole = b'{"items":[%s],"count":50}' % b",".join(map(task, ids))
    async with SameSize() as upstream, Proxy(folder, upstream, wrap, TOKIO_WORKER_THREADS="1") as proxy:
        client = proxy.client()
        for _ in range(3):
            check((await client.batch("token", ids)).body == whole, "not the batch")
            for task_id in ids:
                check((await client.retrieve("token", task_id)).body == task(task_id), "not the bytes of", task_id)
        for number in range(singles):
            reply = await client.retrieve("token", ids[number % 50])
            check(reply.cache == "HIT" and len(reply.body) == len(task(ids[0])), "no hit:", reply.status, reply.cache)
        for _ in range(batches):
            reply = await client.batch("token", ids)
            check(reply.cache == "HIT" and len(reply.body) == len(whole), "no hit:", reply.status, reply.cache)
        client.close()
        check(await proxy.stop() == 0, "a clean end")
    with open(output) as file:
        return int(re.search(r"^(?:summary|totals): (\d+)", file.read(), re.MULTILINE)[1])


async def part(folder):
    idle = await count(folder, "idle")
    found = {
        "a hit": (await count(folder, "singles", singles=SINGLES) - idle) // SINGLES,
        "a batch of 50": (await count(folder, "batches", batches=BATCHES) - idle) // BATCHES,
    }
    for what, instructions in found.items():
        print(f"{what}: {instructions:,} instructions, at most {BOUNDS[what]:,}")
    for what, instructions in found.items():
        check(instructions <= BOUNDS[what], what, "takes more instructions than its bound")


run(part)
