"""One round of load by wrk, and the CPU time of the server."""

import json
import os
import re
import subprocess

from contestants import Failed
from tasks import TOKEN

SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "load.lua")
CONNECTIONS = 16


class Round:
    """Results of one round."""

    def __init__(self, result, cpu_seconds):
        self.requests, self.seconds = result["requests"], result["seconds"]
        self.p50_ms, self.p99_ms = result["p50_ms"], result["p99_ms"]
        self.cpu_us = cpu_seconds / max(self.requests, 1) * 1e6
        self.rate = self.requests / self.seconds


def run(server, load, seconds, size, seed=1, connections=CONNECTIONS, tokens=1):
    """Runs wrk with `load` as the arguments of `load.lua`. The mean response has to have `size` bytes plus headers."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", "--timeout", "60", "-s", SCRIPT,
               f"http://127.0.0.1:{server.port}", "--", *map(str, load)]
    environment = {**os.environ, "COMPARE_TOKEN": TOKEN, "COMPARE_TOKENS": str(tokens), "COMPARE_SEED": str(seed)}
    before = server.cpu_seconds()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    cpu = server.cpu_seconds() - before
    result = re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not result:
        raise Failed(f"wrk on {server.name}: {done.stdout}")
    result = json.loads(result[0])
    mean = result["bytes"] / max(result["requests"], 1)
    slack = connections / max(result["requests"], 1)
    if result["errors"] or result["refused"] or not size * (1 - slack) <= mean <= (size + 1000) * (1 + slack):
        raise Failed(f"{server.name}: {result}, {mean:.0f} bytes per response, expected {size}")
    return Round(result, cpu)
