"""Instructions per stored lookup in the release build, counted by callgrind, and page faults per batch from SQLite.

Time depends on the machine, the number of instructions hardly does. The program runs with a warm-up only, and with the
warm-up and hits of one kind. The difference divided by the number of hits is the cost of one hit in refrain, without
the kernel. Each new page of memory counts as a page fault.
"""

from support import *

SIZE = 3000
SINGLES = 2000
# Enough that the variation between runs, some million instructions, does not matter.
BATCHES = 1000
BATCHES_ON_DISK = 200

# The measured count and a quarter. A change that exceeds a bound needs a reason or less work; a change that saves a
# good part lowers the bound.
BOUNDS = {"a hit": 29_500, "a batch of 50": 107_500, "a batch of 50 from SQLite": 1_775_000}
# Page faults of a batch of 50 from SQLite. Newly allocated memory for the records would cause about 80.
FAULTS = 8

NO_MEMORY = {"REFRAIN_STORE__MEMORY_BYTES": "0"}
IDS = [f"00000000-0000-4000-8000-{number:012}" for number in range(50)]


def task(task_id):
    body = {"id": task_id, "finished_at": 1767119785.25, "data": "x" * SIZE}
    return json.dumps(body, separators=(",", ":")).encode()


def batch(ids):
    return b'{"items":[%s],"count":%d}' % (b",".join(map(task, ids)), len(ids))


class SameSize(Upstream):
    """Tasks of 3 kB each."""

    def respond(self, head, body):
        requested = json.loads(body)
        ids = requested.get("ids") or [requested["id"]]
        if "ids" not in requested:
            return b"200 OK", task(ids[0])
        return b"200 OK", batch(ids)


WHOLE = batch(IDS)


async def store(client):
    """Stores all tasks and looks them up again."""
    for _ in range(3):
        check((await client.batch("token", IDS)).body == WHOLE, "not the batch")
        for task_id in IDS:
            check((await client.retrieve("token", task_id)).body == task(task_id), "not the bytes of", task_id)


async def hit(client, singles=0, batches=0):
    """Looks up stored tasks."""
    for number in range(singles):
        reply = await client.retrieve("token", IDS[number % 50])
        check(reply.cache == "HIT" and len(reply.body) == len(task(IDS[0])), "no hit:", reply.status, reply.cache)
    for _ in range(batches):
        reply = await client.batch("token", IDS)
        check(reply.cache == "HIT" and len(reply.body) == len(WHOLE), "no hit:", reply.status, reply.cache)


async def count(folder, name, singles=0, batches=0, **settings):
    """All instructions of a run from start to end."""
    folder = os.path.join(folder, name)
    os.mkdir(folder)
    output = os.path.join(folder, "callgrind.out")
    # No debugger port, and one thread, since valgrind runs one at a time.
    wrap = ("valgrind", "--tool=callgrind", "--vgdb=no", f"--callgrind-out-file={output}")
    settings["TOKIO_WORKER_THREADS"] = "1"
    async with SameSize() as upstream, Proxy(folder, upstream, wrap, **settings) as proxy:
        client = proxy.client()
        await store(client)
        await hit(client, singles, batches)
        client.close()
        check(await proxy.stop() == 0, "a clean end")
    with open(output) as file:
        return int(re.search(r"^(?:summary|totals): (\d+)", file.read(), re.MULTILINE)[1])


async def faults(folder):
    """Page faults per batch from SQLite."""
    folder = os.path.join(folder, "faults")
    os.mkdir(folder)
    async with SameSize() as upstream, Proxy(folder, upstream, **NO_MEMORY) as proxy:
        client = proxy.client()
        await store(client)
        await hit(client, batches=BATCHES_ON_DISK)
        before = minor_faults(proxy.pid)
        await hit(client, batches=BATCHES_ON_DISK)
        found = minor_faults(proxy.pid) - before
        client.close()
    return found / BATCHES_ON_DISK


def minor_faults(pid):
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[7])


async def part(folder):
    idle, idle_on_disk = await count(folder, "idle"), await count(folder, "idle-on-disk", **NO_MEMORY)
    on_disk = await count(folder, "batches-on-disk", batches=BATCHES_ON_DISK, **NO_MEMORY)
    found = {
        "a hit": (await count(folder, "singles", singles=SINGLES) - idle) // SINGLES,
        "a batch of 50": (await count(folder, "batches", batches=BATCHES) - idle) // BATCHES,
        "a batch of 50 from SQLite": (on_disk - idle_on_disk) // BATCHES_ON_DISK,
    }
    for what, instructions in found.items():
        print(f"{what}: {instructions:,} instructions, at most {BOUNDS[what]:,}")
    pages = await faults(folder)
    print(f"a batch of 50 from SQLite: {pages:.1f} page faults, at most {FAULTS}")
    for what, instructions in found.items():
        check(instructions <= BOUNDS[what], what, "exceeds its bound of instructions")
    check(pages <= FAULTS, "a batch from SQLite allocates new memory")


run(part)
