"""The measurements, one function per part. Each starts and stops the servers that it needs."""

import contextlib
import json
import os
import random
import re
import sqlite3
import sys
import time

import load
from contestants import Bare, Failed, Nginx, Refrain, Varnish
from report import median, spread

MIB = 1 << 20
# Together with many tokens practically no limit.
UNLIMITED = {"REFRAIN_UPSTREAM__REQUESTS_PER_SECOND": "1000", "REFRAIN_UPSTREAM__BURST": "1000"}
TOKENS = 64
NO_MEMORY = {"REFRAIN_STORE__MEMORY_BYTES": "0"}
HOT = 1000
# First number of tasks that are not stored. No two parts share any.
FRESH = 100_000_000


class Bench:
    """Shared by all parts: programs, the upstream, tasks, and stores that are filled once."""

    def __init__(self, folder, refrain, floor, tasks, upstream, report, options):
        self.folder, self.refrain_binary, self.floor_binary = folder, refrain, floor
        self.tasks, self.upstream, self.report, self.options = tasks, upstream, report, options
        self.stores, self.used, self.fresh = {}, 0, FRESH

    def place(self):
        self.used += 1
        return os.path.join(self.folder, str(self.used))

    def refrain(self, count=None, name="refrain", **settings):
        """refrain with a store of `count` tasks, or with an empty one."""
        store = self.store(count)[0] if count else None
        return Refrain(self.place(), self.refrain_binary, self.upstream, store, name, **settings)

    def store(self, count):
        """A store of `count` tasks. Returns its path and the seconds of the import."""
        if count not in self.stores:
            log(f"filling a store of {count:,} tasks")
            folder = os.path.join(self.folder, f"store-{count}")
            refrain = Refrain(folder, self.refrain_binary, self.upstream)
            self.stores[count] = refrain.store, refrain.fill(self.tasks, count)
        return self.stores[count]

    def floor(self, response, name="floor"):
        """A floor that sends `response`: headers and body."""
        headers, body = response
        lines = "".join(f"{field}: {value}\n" for field, value in headers.items())
        floor = Bare(self.place(), self.floor_binary, "fixed", lines.encode() + b"\n" + body)
        floor.name = name
        return floor

    def others(self, long_keys=False):
        return Nginx(self.place(), self.upstream, long_keys), Varnish(self.place(), self.upstream)

    def new_ids(self, count):
        """Reserves `count` numbers of tasks that were never looked up. Returns the first."""
        first, self.fresh = self.fresh, self.fresh + count
        return first

    def interleave(self, entries, rounds=None, seconds=None):
        """Runs rounds of load; in each round, the servers one after the other. Returns the rounds by name."""
        rounds, seconds = rounds or self.options.rounds, seconds or self.options.seconds
        found = {entry.name: [] for entry in entries}
        for entry in entries:
            entry.run(1, 0)
        for number in range(1, rounds + 1):
            for entry in entries:
                found[entry.name].append(entry.run(seconds, number))
            log(f"round {number} of {rounds}: " + ", ".join(
                f"{name} {own[-1].cpu_us:.1f} µs" for name, own in found.items()))
        return found


class Entry:
    """A server with its load. `check` returns a request to send before each round, and the expected response."""

    def __init__(self, server, arguments, size, check, name=None, connections=load.CONNECTIONS, warm=None):
        self.server, self.arguments, self.size, self.check = server, arguments, size, check
        if isinstance(server, Bare):
            # Its fixed response was compared when it was created.
            self.check = None
        self.name, self.connections, self.warm = name or server.name, connections, warm

    def run(self, seconds, number):
        if self.check:
            self.server.expect(*self.check())
        if self.warm:
            self.warm()
        return load.run(self.server, self.arguments, seconds, self.size, number, self.connections)


def log(text):
    print(text, file=sys.stderr, flush=True)


def fill(server, lookups):
    """Sends each lookup once, so that its records are stored, and again to check that they are."""
    for request, expected in lookups:
        server.expect(request, expected)
        headers = server.expect(request, expected)
        if not ("HIT" in headers.get("x-cache", "") or " " in headers.get("x-varnish", "")):
            raise Failed(f"{server.name} does not cache: {dict(headers)}")


def hit(bench):
    """a hit on one record of 3 kB"""
    tasks, big = bench.tasks, bench.options.big
    single = lambda count: lambda: tasks.single(random.randrange(count))
    with contextlib.ExitStack() as servers:
        enter = servers.enter_context
        refrain, large = enter(bench.refrain(HOT)), enter(bench.refrain(big, name=f"refrain, {big:,} stored"))
        nginx, varnish = map(enter, bench.others())
        for server in (refrain, nginx, varnish):
            fill(server, map(tasks.single, range(HOT)))
        fill(large, map(tasks.single, range(50)))
        floor = enter(bench.floor((refrain.expect(*tasks.single(0)), tasks.body_of(0))))
        hot = ["single", HOT, "random"]
        # From the large store: always the same 1,000; then any, of which the memory cache has a part.
        warm = lambda: load.run(large, hot, 1, tasks.size)
        found = bench.interleave([
            *(Entry(server, hot, tasks.size, single(HOT)) for server in (floor, refrain, nginx, varnish)),
            Entry(large, hot, tasks.size, single(HOT), name=f"refrain, 1,000 of {big:,} stored", warm=warm),
            Entry(large, ["single", big, "random"], tasks.size, single(big), name=f"refrain, any of {big:,} stored",
                  warm=large.read_store),
        ])
    report = bench.report
    report.heading(f"A hit: one record of {tasks.size:,} bytes, 1,000 stored")
    report.servers(found, "floor", "nginx")
    report.target("a hit ÷ floor", median(report.ratios(found, "refrain", "floor")), 1.25, 1.15)
    report.target("a hit ÷ nginx", median(report.ratios(found, "refrain", "nginx")), 0.75)


def batch(bench):
    """fully stored batches of 50 and of 1,000"""
    tasks, report = bench.tasks, bench.report
    for size, many, connections in ((50, HOT // 50, load.CONNECTIONS), (1000, 1, 4)):
        nth = lambda n, size=size: tasks.batch(range(n * size, (n + 1) * size))
        check = lambda many=many, nth=nth: nth(random.randrange(many))
        with contextlib.ExitStack() as servers:
            enter = servers.enter_context
            refrain, (nginx, varnish) = enter(bench.refrain(HOT)), map(enter, bench.others(size > 50))
            for server in (refrain, nginx, varnish):
                fill(server, map(nth, range(many)))
            request, response = nth(0)
            floor = enter(bench.floor((refrain.expect(request, response), response)))
            found = bench.interleave([
                Entry(server, ["batch", HOT, size, many], len(response), check, connections=connections)
                for server in (floor, refrain, nginx, varnish)
            ])
        report.heading(f"A stored batch of {size:,}: a response of {len(response):,} bytes, {connections} connections")
        report.servers(found, "floor", "nginx")
        if size == 50:
            report.target("a stored batch of 50 ÷ floor", median(report.ratios(found, "refrain", "floor")), 1.6)


class SqliteAlone(Entry):
    """50 tasks from a server's store by Python's SQLite: one thread, no HTTP, no verification."""

    BY_ROW = "SELECT t.record FROM json_each(?1) j CROSS JOIN task t ON t.task_id = j.value"
    BY_ID = """SELECT t.record FROM json_each(?1) j
               CROSS JOIN task_grant g ON g.service = 'producer' AND g.id = CAST(j.value AS BLOB) AND g.reader_id = 1
               CROSS JOIN task t ON t.task_id = g.task_id"""

    def __init__(self, name, server, statement, keys, size):
        super().__init__(server, None, size, None, name, warm=server.read_store)
        self.statement, self.keys = statement, keys

    def run(self, seconds, number):
        chosen, waits = random.Random(number), []
        self.warm()
        with contextlib.closing(sqlite3.connect(f"file:{self.server.store}?mode=ro", uri=True)) as connection:
            parameters = [json.dumps(self.keys(chosen)) for _ in range(2000)]
            end, cpu = time.monotonic() + seconds, time.process_time()
            while not waits or time.monotonic() < end:
                began = time.monotonic()
                rows = connection.execute(self.statement, (parameters[len(waits) % len(parameters)],)).fetchall()
                waits.append(time.monotonic() - began)
                if sum(len(row[0]) for row in rows) != self.size:
                    raise Failed(f"{self.name}: {len(rows)} rows")
            cpu = time.process_time() - cpu
        waits.sort()
        result = {"requests": len(waits), "seconds": sum(waits), "p50_ms": 1e3 * waits[len(waits) // 2],
                "p99_ms": 1e3 * waits[len(waits) * 99 // 100]}
        return load.Round(result, cpu)


def cold(bench):
    """hits that are in SQLite but not in the memory cache"""
    tasks, big = bench.tasks, bench.options.big
    with contextlib.ExitStack() as servers:
        enter = servers.enter_context
        memory = enter(bench.refrain(HOT))
        disk = enter(bench.refrain(big, **NO_MEMORY))
        for server in (memory, disk):
            fill(server, map(tasks.single, range(HOT)))
        found = bench.interleave([
            Entry(memory, ["single", HOT, "random"], tasks.size, lambda: tasks.single(random.randrange(HOT)),
                  name="one from memory"),
            Entry(disk, ["single", big, "random"], tasks.size, lambda: tasks.single(random.randrange(big)),
                  name="one out of SQLite", warm=disk.read_store),
            Entry(disk, ["scatter", big, 50, 2000], tasks.size * 50,
                  lambda: tasks.batch(random.sample(range(big), 50)), name="50 out of SQLite", warm=disk.read_store),
            SqliteAlone("SQLite alone, 50 by id and reader", disk, SqliteAlone.BY_ID,
                  lambda chosen: [tasks.id_of(chosen.randrange(big)) for _ in range(50)], tasks.size * 50),
            SqliteAlone("SQLite alone, 50 by row id", disk, SqliteAlone.BY_ROW,
                  lambda chosen: [chosen.randrange(big) + 1 for _ in range(50)], tasks.size * 50),
        ])
    report = bench.report
    report.heading(f"Out of SQLite: any of {big:,} tasks, `store.memory_bytes = 0`")
    report.servers(found, "one from memory")
    ratio = lambda one, other: median(report.ratios(found, one, other))
    alone = "SQLite alone, 50 by id and reader"
    report.paragraph(f"SQLite alone is SQLite {sqlite3.sqlite_version}.")
    report.target("one out of SQLite ÷ one from memory", ratio("one out of SQLite", "one from memory"), 4, 2.5)
    report.target(f"50 out of SQLite ÷ {alone}", ratio("50 out of SQLite", alone), 1.7, 1.4)


class Misses(Entry):
    """Each round looks up a fixed number of ids for the first time."""

    def __init__(self, bench, server, count):
        super().__init__(server, None, bench.tasks.size, None)
        self.bench, self.count = bench, count

    def run(self, seconds, number):
        count = self.count if number else self.count // 10
        self.server.expect(*self.bench.tasks.single(self.bench.new_ids(1)))
        arguments = ["single", count, "each", self.bench.new_ids(count)]
        return load.run(self.server, arguments, 300, self.size, number, tokens=TOKENS)


def miss(bench):
    """misses with an upstream that responds at once"""
    tasks = bench.tasks
    with contextlib.ExitStack() as servers:
        enter = servers.enter_context
        refrain, (nginx, varnish) = enter(bench.refrain(**UNLIMITED)), map(enter, bench.others())
        fill(refrain, [tasks.single(0)])
        floor = enter(bench.floor((refrain.expect(*tasks.single(0)), tasks.body_of(0))))
        entries = [Misses(bench, server, bench.options.misses) for server in (refrain, nginx, varnish)]
        single = ["single", HOT, "random"]
        entries.insert(0, Entry(floor, single, tasks.size, None))
        found = bench.interleave(entries, seconds=2)
    bench.report.heading("A miss, upstream latency 0 ms")
    bench.report.servers(found, "floor", "nginx")


def passing(bench):
    """1 MiB passed through"""
    path, body = f"/bytes/{MIB}", b"x" * MIB
    with contextlib.ExitStack() as servers:
        enter = servers.enter_context
        refrain, (nginx, varnish) = enter(bench.refrain(**UNLIMITED)), map(enter, bench.others())
        for server in (refrain, nginx, varnish):
            status, headers, response = server.send("GET", path)
            if status != 200 or response != body:
                raise Failed(f"{server.name} relays {path} with status {status} or other bytes")
        floor = enter(bench.floor(({"content-type": "application/json"}, body)))
        found = bench.interleave([
            Entry(server, ["get", path], MIB, None, connections=4) for server in (floor, refrain, nginx, varnish)
        ])
    bench.report.heading("1 MiB passed through")
    bench.report.servers(found, "floor", "nginx")


def sizes(bench):
    """store size and lookup time by number of tasks"""
    tasks, report, rows = bench.tasks, bench.report, []
    for count in bench.options.sizes:
        path, seconds = bench.store(count)
        stored = sum(os.path.getsize(path + end) for end in ("", "-wal") if os.path.exists(path + end))
        rows.append([count, seconds, stored])
    with contextlib.ExitStack() as servers:
        entries = []
        for count in bench.options.sizes:
            server = servers.enter_context(bench.refrain(count, f"{count:,}", **NO_MEMORY))
            fill(server, map(tasks.single, range(50)))
            entries.append(Entry(server, ["single", count, "random"], tasks.size,
                                 lambda count=count: tasks.single(random.randrange(count)), warm=server.read_store))
        found = bench.interleave(entries)
    report.heading("By number of stored tasks: size, import, lookup out of SQLite")
    least = f"{bench.options.sizes[0]:,}"
    report.table(
        ["tasks", "MiB", "bytes per task", "record bytes", "import s", "tasks/s", "µs per lookup", f"÷ {least}",
         "p50 ms", "p99 ms"],
        [[f"{count:,}", f"{stored / MIB:,.0f}", f"{stored / count:,.0f}", tasks.size, f"{seconds:,.1f}",
          f"{count / seconds:,.0f}", spread((one.cpu_us for one in found[f"{count:,}"]), "%.1f"),
          "1" if f"{count:,}" == least else spread(report.ratios(found, f"{count:,}", least)),
          "%.2f" % median(one.p50_ms for one in found[f"{count:,}"]),
          "%.2f" % median(one.p99_ms for one in found[f"{count:,}"])] for count, seconds, stored in rows],
        left=0,
    )
    for count in bench.options.sizes[1:]:
        if count <= 10**6:
            ratio = median(report.ratios(found, f"{count:,}", least))
            report.target(f"lookup at {count:,} tasks ÷ at {least}", ratio, 1.3)


def start(bench):
    """time to start with an empty and with a large store"""
    big = bench.options.big
    taken, cpu = {0: [], big: []}, {0: [], big: []}
    empty = bench.refrain()
    bench.store(big)
    for number in range(bench.options.rounds + 1):
        for count in taken:
            server = bench.refrain(big) if count else empty
            began = time.monotonic()
            with server:
                seconds = time.monotonic() - began
                # The first start creates the empty store.
                if number:
                    taken[count].append(seconds * 1000)
                    cpu[count].append(server.cpu_seconds() * 1000)
    bench.report.heading("Start, until the store and both ports are open")
    bench.report.table(
        ["tasks", "ms", "CPU ms"],
        [[f"{count:,}", spread(taken[count], "%.0f"), spread(cpu[count], "%.0f")] for count in taken], left=0,
    )
    more = median(large - small for small, large in zip(taken[0], taken[big]))
    bench.report.target(f"start with {big:,} tasks, additional time", more, 100, unit=" ms")


def memory(bench):
    """resident memory"""
    big, tasks, rows = bench.options.big, bench.tasks, []
    with bench.refrain() as idle:
        time.sleep(1)
        rows.append(["idle, empty store", *idle.resident_mib()])
    with bench.refrain(big) as server:
        time.sleep(1)
        rows.append([f"idle, {big:,} stored", *server.resident_mib()])
        fill(server, map(tasks.single, range(HOT)))
        found = load.run(server, ["single", big, "each", 0], 3600, tasks.size)
        rows.append([f"after {big:,} different hits ({found.rate:,.0f}/s)", *server.resident_mib()])
        bench.report.target(f"memory after {big:,} hits", rows[-1][1], 64 + 48, unit=" MiB")
        load.run(server, ["scatter", big, 50, 2000], bench.options.seconds, tasks.size * 50)
        rows.append([f"after {bench.options.seconds} s of batches of 50 as well", *server.resident_mib()])
    bench.report.heading("Resident memory, default `store.memory_bytes = 64MiB`")
    bench.report.table(["when", "MiB", "without file pages"], [[what, f"{mib:.1f}", f"{own:.1f}"] for what, mib, own in rows])


def burst(bench):
    """commits: one by one, and a burst of new final records"""
    tasks, count, rows = bench.tasks, bench.options.burst, []
    with bench.refrain(**UNLIMITED) as server:
        fill(server, [tasks.single(0)])
        for what, kind, items, connections in (
            ("one by one, 1 connection", ["single", count // 10, "each"], 1, 1),
            ("single lookups, 16 connections", ["single", count // 2, "each"], 1, 16),
            ("in batches of 50, 16 connections", ["batch", count, 50, 0, "each"], 50, 16),
        ):
            number = int(kind[1])
            first = bench.new_ids(number + 1)
            arguments = [*kind, first // items + 1]
            bench.fresh += 2 * items * connections + items
            found = load.run(server, arguments, 600, tasks.size * items, connections=connections, tokens=TOKENS)
            rows.append([what, f"{number:,}", f"{found.seconds:.2f}", f"{number / found.seconds:,.0f}",
                         f"{found.cpu_us / items:.1f}", f"{found.p50_ms:.2f}", f"{found.p99_ms:.2f}"])
        errors = re.search(r'refrain_store_errors_total\{kind="write"\} (\d+)', metrics(server))
        if errors and int(errors[1]):
            raise Failed(f"{errors[1]} writes failed")
    bench.report.heading("New final records, each on disk before its response")
    bench.report.table(["how", "tasks", "s", "tasks/s", "CPU µs per task", "p50 ms", "p99 ms"], rows)


def metrics(refrain):
    client, refrain.port = refrain.port, refrain.admin
    try:
        return refrain.send("GET", "/metrics")[2].decode()
    finally:
        refrain.port = client


PARTS = {"hit": hit, "batch": batch, "cold": cold, "miss": miss, "pass": passing, "sizes": sizes, "start": start,
         "memory": memory, "burst": burst}
