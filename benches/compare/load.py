"""One round of load by wrk, and what it cost the server."""

import json
import os
import re
import subprocess

from contestants import Failed
from tasks import TOKEN

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load.lua")
CONNECTIONS = 16


class Round:
    """What one round gave."""

    def __init__(self, told, cpu_seconds):
        self.requests, self.seconds = told["requests"], told["seconds"]
        self.p50_ms, self.p99_ms = told["p50_ms"], told["p99_ms"]
        self.cpu_us = cpu_seconds / max(self.requests, 1) * 1e6
        self.rate = self.requests / self.seconds


def run(server, load, seconds, size, seed=1, connections=CONNECTIONS, tokens=1):
    """`load` are the arguments of `load.lua`; every answer has to have `size` bytes and a header, on the average."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "--timeout", "60", "-s", SCRIPT,
               f"http://127.0.0.1:{server.port}", "--", *map(str, load)]
    environment = {**os.environ, "COMPARE_TOKEN": TOKEN, "COMPARE_TOKENS": str(tokens), "COMPARE_SEED": str(seed)}
    before = server.cpu_seconds()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    cpu = server.cpu_seconds() - before
    told = re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not told:
        raise Failed(f"wrk on {server.name}: {done.stdout}")
    told = json.loads(told[0])
    mean = told["bytes"] / max(told["requests"], 1)
    slack = connections / max(told["requests"], 1)
    if told["errors"] or told["refused"] or not size * (1 - slack) <= mean <= (size + 1000) * (1 + slack):
        raise Failed(f"{server.name}: {told}, {mean:.0f} bytes an answer where {size} are expected")
    return Round(told, cpu)
