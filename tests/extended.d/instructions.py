"""Instructions of a stored look-up in the release build, counted by callgrind, stay below a bound; and a batch out of
SQLite hardly asks the system for memory.

Time depends on the machine, the number of instructions hardly does. Runs of the same program: a warm-up alone, and
the warm-up and hits of one kind. What a run counts more than the first, divided by its requests, is what one request
takes in refrain; the kernel's share is not in it. Each page of memory that the kernel has to give counts as a fault.
"""

from support import *

SIZE = 3000
SINGLES = 2000
# So many that what a run counts besides, some million instructions more or less, does not show.
BATCHES = 1000
BATCHES_ON_DISK = 200

# Today's count and a quarter. A change that goes past it is to be explained, or to be made cheaper; one that takes
# off a good part lowers the bound.
BOUNDS = {"a hit": 29_500, "a batch of 50": 107_500, "a batch of 50 out of SQLite": 1_775_000}
# Of a batch of 50 out of SQLite. Fresh memory for what is found takes some 80.
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

    def answer(self, head, body):
        asked = json.loads(body)
        ids = asked.get("ids") or [asked["id"]]
        if "ids" not in asked:
            return b"200 OK", task(ids[0])
        return b"200 OK", batch(ids)


WHOLE = batch(IDS)


async def store(client):
    """Has all tasks stored, and asks for them again."""
    for _ in range(3):
        check((await client.batch("token", IDS)).body == WHOLE, "not the batch")
        for task_id in IDS:
            check((await client.retrieve("token", task_id)).body == task(task_id), "not the bytes of", task_id)


async def hit(client, singles=0, batches=0):
    """Asks for what is stored."""
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
    # Without valgrind's own debugger port, and one thread, as it runs one at a time anyhow.
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
    """Pages that the kernel gave for a batch out of SQLite."""
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
        "a batch of 50 out of SQLite": (on_disk - idle_on_disk) // BATCHES_ON_DISK,
    }
    for what, instructions in found.items():
        print(f"{what}: {instructions:,} instructions, at most {BOUNDS[what]:,}")
    pages = await faults(folder)
    print(f"a batch of 50 out of SQLite: {pages:.1f} page faults, at most {FAULTS}")
    for what, instructions in found.items():
        check(instructions <= BOUNDS[what], what, "takes more instructions than its bound")
    check(pages <= FAULTS, "a batch out of SQLite takes fresh memory")


run(part)
