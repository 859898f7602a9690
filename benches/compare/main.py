"""Compares refrain with other servers. `benches/compare.sh` runs it, `docs/benchmarks.md` explains it.

- `tasks`: ids, records, requests and responses
- `contestants`: the servers
- `load`: one round of wrk, and the CPU time of the server
- `parts`: the measurements
- `report`: tables and targets
"""

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time

import parts
from contestants import Bare, Failed, versions
from report import Report
from tasks import Tasks, template

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
GIB = 1 << 30


def options():
    parser = argparse.ArgumentParser(prog="benches/compare.sh", description="Compares refrain with the floor, nginx and Varnish")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(parts.PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="a few minutes: large stores have 100,000 tasks, 3 rounds")
    parser.add_argument("--ten-million", action="store_true", help="store sizes up to 10^7 tasks: 50 GB of disk, some hours")
    parser.add_argument("--rounds", type=int, help="rounds of each comparison; default 7, with --quick 3")
    parser.add_argument("--seconds", type=int, help="seconds per server and round; default 4, with --quick 2")
    parser.add_argument("--folder", default=os.path.join(REPOSITORY, "target"), help="folder for the stores, on a disk")
    parser.add_argument("--refrain", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--floor", required=True, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    for part in chosen.parts:
        if part not in parts.PARTS:
            parser.error(f"unknown part {part}; the parts are: {', '.join(parts.PARTS)}")
    quick = chosen.quick
    chosen.rounds = chosen.rounds or (3 if quick else 7)
    chosen.seconds = chosen.seconds or (2 if quick else 4)
    chosen.big = 10**5 if quick else 10**6
    chosen.misses = 2_000 if quick else 10_000
    chosen.burst = 5_000 if quick else 20_000
    chosen.sizes = [10**4, 10**5] + ([] if quick else [10**6]) + ([10**7] if chosen.ten_million else [])
    needed = max(chosen.sizes[-1], chosen.big) * 5000 + GIB
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        parser.error("this kernel does not list the children of a process (CONFIG_PROC_CHILDREN)")
    if shutil.disk_usage(chosen.folder).free < needed:
        parser.error(f"{chosen.folder} needs {needed / GIB:.0f} GiB of free space; --folder selects another")
    return chosen


def main():
    chosen, report = options(), Report()
    began = time.monotonic()
    tasks = Tasks(template(REPOSITORY))
    # An absolute path, since the servers run in folders of their own.
    with tempfile.TemporaryDirectory(prefix="compare-", dir=os.path.abspath(chosen.folder)) as folder:
        with Bare(os.path.join(folder, "upstream"), chosen.floor, "upstream", tasks.text.encode()) as upstream:
            bench = parts.Bench(folder, chosen.refrain, chosen.floor, tasks, upstream, report, chosen)
            for name, part in parts.PARTS.items():
                if chosen.parts and name not in chosen.parts:
                    continue
                parts.log(f"--- {name}: {part.__doc__}")
                try:
                    part(bench)
                except Failed as failure:
                    report.heading(name)
                    report.paragraph(f"**failed**: {failure}")
                    report.failed += 1
    cores = len(os.sched_getaffinity(0))
    print(f"{time.strftime('%-d %B %Y')}, {cores} cores ({platform.machine()}), "
          f"{chosen.rounds} rounds of {chosen.seconds} s, {(time.monotonic() - began) / 60:.0f} minutes; "
          f"{versions(chosen.refrain)}.\n")
    print(report.text(), end="")
    return 1 if report.missed or report.failed else 0


sys.exit(main())
