"""Third-party servers, each on its own port of 127.0.0.1 until its context ends.

`nginx` is the server of most mirrors. `moto` is an S3 server with users, object versions and multipart objects. `hadro`
is an S3 server that is slow and fails on request.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import requests


def find_nginx() -> str | None:
    """Return the path of nginx, installed or unpacked for the tests; None if there is none."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:{sys.prefix}/nginx/usr/sbin")


class Keys(NamedTuple):
    """The access keys of an S3 user."""

    key: str
    secret: str

    def environment(self) -> dict[str, str]:
        """Return the variables that make AWS programs use these keys."""
        return {"AWS_ACCESS_KEY_ID": self.key, "AWS_SECRET_ACCESS_KEY": self.secret}


@contextmanager
def nginx(root: Path, state: Path, *, rate: str = "20m") -> Iterator[str]:
    """Serve the files below `root`; below `/limited/`, serve them with at most `rate` for each connection.

    Args:
        root: of the files.
        state: folder for what it needs; not below `root`.
        rate: bytes a second, as nginx writes it.

    Yields:
        The address.
    """
    program = find_nginx()
    assert program, "nginx is not installed"
    port = _free_port()
    user = "user root;" if os.geteuid() == 0 else ""
    (state / "nginx.conf").write_text(
        f"""
        {user} daemon off; pid {state}/pid; error_log {state}/error.log; worker_processes 1;
        events {{}}
        http {{
            access_log off; sendfile on; keepalive_requests 100000;
            client_body_temp_path {state}/body; proxy_temp_path {state}/proxy; fastcgi_temp_path {state}/fastcgi;
            uwsgi_temp_path {state}/uwsgi; scgi_temp_path {state}/scgi;
            server {{
                listen 127.0.0.1:{port};
                root {root};
                location /limited/ {{ alias {root}/; limit_rate {rate}; }}
            }}
        }}
        """
    )
    with _running([program, "-c", state / "nginx.conf", "-e", state / "error.log"], port, state / "nginx.log"):
        yield f"http://127.0.0.1:{port}"


class Moto:
    """An in-memory S3 server with users.

    Attributes:
        url: its address.
        admin: keys of a user with all permissions.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.admin = Keys("", "")
        self.s3 = self._client("s3")
        self._users = self._client("iam")
        self.admin = self.user("admin", "*")

    def user(self, name: str, allowed: str | list[str] | dict[str, Any]) -> Keys:
        """Create a user with these permissions (such as `s3:*`) on everything, or with a policy."""
        self._users.create_user(UserName=name)
        policy = allowed
        if not isinstance(policy, dict):
            statement = {"Effect": "Allow", "Action": allowed, "Resource": "*"}
            policy = {"Version": "2012-10-17", "Statement": [statement]}
        self._users.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=json.dumps(policy))
        made = self._users.create_access_key(UserName=name)["AccessKey"]
        return Keys(made["AccessKeyId"], made["SecretAccessKey"])

    def check(self, signatures: bool) -> None:
        """Turn checks of signatures and permissions on or off. Without them, only the ACLs of objects count."""
        answer = requests.post(f"{self.url}/moto-api/reset-auth", data=b"0" if signatures else b"inf", timeout=10)
        answer.raise_for_status()

    def _client(self, service: str) -> Any:
        import botocore.session

        return botocore.session.Session().create_client(
            service,
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id="anybody",
            aws_secret_access_key="whatever",
        )


@contextmanager
def moto(state: Path) -> Iterator[Moto]:
    """Start an empty server that does not check signatures yet."""
    port = _free_port()
    with _running([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port], port, state / "moto.log"):
        yield Moto(f"http://127.0.0.1:{port}")


@contextmanager
def hadro(root: Path, log: Path, *options: str, keys: Keys | None = None) -> Iterator[str]:
    """Serve the folders in `root` as buckets.

    Args:
        root: folder of them.
        log: file for what it says of each request.
        options: of its command line.
        keys: with which all requests must be signed.

    Yields:
        The address.
    """
    port = _free_port()
    command: list[str | Path | int] = [
        sys.executable,
        "-m",
        "hadro",
        root,
        "--port",
        port,
        "--log-level",
        "info",
        *options,
    ]
    if keys:
        command += ["--access-key", keys.key, "--secret-key", keys.secret]
    with _running(command, port, log):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _running(command: Sequence[str | Path | int], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as said:
        process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
