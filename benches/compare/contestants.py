"""The servers: each on the loopback, with its own folder, started and stopped here."""

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import time

from tasks import TOKEN

TICK = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    pass


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def children(pid):
    """The process and all its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{thread}/children") as file:
                    found += map(int, file.read().split())
    return found


class Server:
    """A server process and its workers."""

    name = "?"

    def __init__(self, folder):
        self.folder, self.process, self.port = folder, None, None
        os.makedirs(folder, exist_ok=True)

    def spawn(self, *command, **options):
        self.log = open(os.path.join(self.folder, "log"), "w+")
        options.setdefault("stdout", self.log)
        self.process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stderr=self.log, **options)

    def await_port(self, within=30):
        """Waits until the server accepts connections."""
        deadline = time.monotonic() + within
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            self.expect_alive(deadline)
            time.sleep(0.01)

    def expect_alive(self, deadline):
        if self.process.poll() is not None or time.monotonic() > deadline:
            with open(os.path.join(self.folder, "log")) as log:
                raise Failed(f"{self.name} did not start: {log.read()[-2000:]}")

    def cpu_seconds(self):
        """User and system time of all its processes so far, from `/proc/PID/stat`."""
        ticks = 0
        for pid in children(self.process.pid):
            with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
                # Its own time, and that of children that have ended.
                ticks += sum(map(int, fields[11:15]))
        return ticks / TICK

    def resident_mib(self):
        """Resident memory of the main process in MiB, and the part without pages of files."""
        with open(f"/proc/{self.process.pid}/status") as file:
            text = file.read()
        return tuple(int(re.search(rf"{field}:\s+(\d+)", text)[1]) / 1024 for field in ("VmRSS", "RssAnon"))

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process:
            self.log.close()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def send(self, method, path, body=None):
        """Sends one request. Returns status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"} if body else {}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()

    def expect(self, request, expected):
        """Sends a lookup and compares the response byte for byte. Returns its headers."""
        status, headers, body = self.send("POST", "/producer/tasks", request)
        if (status, body) != (200, expected):
            raise Failed(f"{self.name} responded with status {status} or other bytes: {body[:200]!r}")
        return headers


class Bare(Server):
    """A bare hyper server, as floor or as upstream."""

    def __init__(self, folder, binary, mode, text):
        super().__init__(folder)
        self.binary, self.mode, self.name = binary, mode, "floor" if mode == "fixed" else "upstream"
        self.file = os.path.join(self.folder, "text")
        with open(self.file, "wb") as file:
            file.write(text)

    def start(self):
        self.spawn(self.binary, self.mode, self.file, stdout=subprocess.PIPE)
        line = self.process.stdout.readline().decode()
        self.expect_alive(time.monotonic() + 1)
        self.port = int(line.rpartition(":")[2])

    def stop(self):
        if self.process:
            self.process.stdout.close()
        super().stop()


class Refrain(Server):
    """The release build with its defaults, but the log of an installation, which has no line for a hit.

    `settings` are environment variables.
    """

    name = "refrain"

    def __init__(self, folder, binary, upstream, store=None, name="refrain", **settings):
        super().__init__(folder)
        self.binary, self.name = binary, name
        self.store = store or os.path.join(self.folder, "refrain.db")
        self.environment = {
            "PATH": os.environ["PATH"],
            "REFRAIN_SERVER__LISTEN": "127.0.0.1:0",
            "REFRAIN_ADMIN__LISTEN": "127.0.0.1:0",
            "REFRAIN_UPSTREAM__BASE_URL": f"http://127.0.0.1:{upstream.port}",
            "REFRAIN_STORE__URL": f"sqlite://{self.store}",
            "REFRAIN_LOG__FORMAT": "json",
            **settings,
        }

    def start(self):
        self.spawn(self.binary, "serve", env=self.environment)
        deadline = time.monotonic() + 60
        path = os.path.join(self.folder, "log")
        while True:
            with open(path) as log:
                text = log.read()
            client = re.search(r'"client":"http://[^"]*:(\d+)"', text)
            admin = re.search(r'"dashboard":"http://[^"]*:(\d+)"', text)
            if client and admin:
                self.port, self.admin = int(client[1]), int(admin[1])
                return
            self.expect_alive(deadline)
            time.sleep(0.002)

    def read_store(self):
        """Reads the file, so that it is in the page cache of the kernel."""
        with open(self.store, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass

    def fill(self, tasks, count):
        """Imports the first `count` tasks. Returns the seconds."""
        start = time.monotonic()
        importing = subprocess.Popen(
            [self.binary, "tasks", "import", "-", "--token-stdin"], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, env=self.environment, cwd=self.folder,
        )
        with importing.stdin as output:
            output.write(TOKEN.encode() + b"\n")
            tasks.export(output, 0, count)
        if importing.wait() != 0:
            raise Failed("the import failed")
        return time.monotonic() - start


NGINX = """
{user}
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log {folder}/access.log combined buffer=64k flush=1s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    client_max_body_size 1m;
    client_body_buffer_size 64k;
    client_body_in_single_buffer on;
    # The cache key has to fit into this buffer.
    proxy_buffer_size {buffer};
    proxy_buffers 8 {buffer};
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=tasks:256m max_size=20g inactive=1d use_temp_path=off;
    upstream api {{ server 127.0.0.1:{upstream}; keepalive 64; }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header connection "";
            proxy_buffering off;
        }}
        location /producer/tasks {{
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header connection "";
            proxy_cache tasks;
            proxy_cache_methods POST;
            proxy_cache_key "$request_uri|$http_authorization|$request_body";
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            add_header x-cache $upstream_cache_status;
        }}
    }}
}}
"""


class Nginx(Server):
    name = "nginx"

    def __init__(self, folder, upstream, long_keys=False):
        super().__init__(folder)
        self.upstream, self.long_keys = upstream, long_keys

    def start(self):
        self.port = free_port()
        path = os.path.join(self.folder, "nginx.conf")
        with open(path, "w") as file:
            file.write(NGINX.format(
                folder=self.folder, port=self.port, upstream=self.upstream.port,
                buffer="64k" if self.long_keys else "8k",
                user="user root;" if os.geteuid() == 0 else "",
            ))
        self.spawn("nginx", "-c", path, "-p", self.folder, "-g", "daemon off;")
        self.await_port()


VARNISH = """
vcl 4.1;
import std;
import bodyaccess;
backend api { .host = "127.0.0.1"; .port = "%d"; }
sub vcl_recv {
    unset req.http.cookie;
    if (req.method != "POST" || req.url != "/producer/tasks") { return (pass); }
    std.cache_req_body(1MB);
    return (hash);
}
sub vcl_hash {
    hash_data(req.url);
    hash_data(req.http.authorization);
    bodyaccess.hash_req_body();
    return (lookup);
}
sub vcl_backend_fetch {
    if (bereq.http.content-type) { set bereq.method = "POST"; }
}
sub vcl_backend_response {
    if (bereq.url == "/producer/tasks") { set beresp.ttl = 1d; return (deliver); }
}
"""


class Varnish(Server):
    name = "varnish"

    def __init__(self, folder, upstream):
        super().__init__(folder)
        self.upstream = upstream

    def start(self):
        self.port = free_port()
        path = os.path.join(self.folder, "compare.vcl")
        with open(path, "w") as file:
            file.write(VARNISH % self.upstream.port)
        self.spawn(
            "varnishd", "-F", "-j", "none", "-n", os.path.join(self.folder, "varnish"), "-f", path,
            "-a", f"127.0.0.1:{self.port}", "-T", "none", "-s", "malloc,1g",
        )
        self.await_port()


def versions(refrain):
    """Versions of all programs, in one line."""
    def version(pattern, *command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return re.search(pattern, done.stdout)[1]

    return ", ".join((
        "refrain " + version(r"refrain (\S+)", refrain, "--version"),
        "nginx " + version(r"nginx/(\S+)", "nginx", "-v"),
        "Varnish " + version(r"varnish-([\d.]+)", "varnishd", "-V"),
        "wrk " + version(r"wrk (?:debian/)?([\d.]+)", "wrk", "-v"),
        "Rust " + version(r"rustc (\S+)", "rustc", "--version"),
    ))
