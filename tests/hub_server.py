"""A small Hub on 127.0.0.1: the few endpoints that an upload needs, and what it was sent."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What the server knows. private: by repository. files: by repository and path, as committed."""

    address: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve until the block ends."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(state))
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def answer(self, value: Any, status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                whole = b""
                while size := int(self.rfile.readline(), 16):
                    whole += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return whole
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def known(self) -> bool:
            if self.headers.get("Authorization") == f"Bearer {TOKEN}":
                return True
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
            return False

        def do_HEAD(self) -> None:
            hub.asked.append(f"HEAD {self.path}")
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            hub.asked.append(f"GET {self.path}")
            if not self.known():
                return
            if self.path == "/api/whoami-v2":
                self.answer({"name": "tester", "type": "user", "orgs": [], "auth": {}})
            elif self.path.startswith("/api/models/") and (name := self.path[12:]) in hub.private:
                self.answer({"id": name, "modelId": name, "private": hub.private[name], "sha": "0" * 40})
            else:
                self.answer({"error": "Repository not found"}, 404)

        def do_PUT(self) -> None:
            content = self.body()
            digest = hashlib.sha256(content).hexdigest()
            assert self.path == f"/objects/{digest}"
            hub.objects[digest] = content
            self.answer({})

        def do_POST(self) -> None:
            hub.asked.append(f"POST {self.path}")
            body = self.body()
            if not self.known():
                return
            if self.path == "/api/repos/create":
                self.create(json.loads(body))
            elif self.path == "/api/validate-yaml":
                self.validate(json.loads(body)["content"])
            elif "/preupload/" in self.path:
                files = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self.answer({"files": files})
            elif self.path.endswith(".git/info/lfs/objects/batch"):
                objects = [
                    {
                        **wanted,
                        "actions": {"upload": {"href": f"{hub.address}/objects/{wanted['oid']}"}},
                    }
                    for wanted in json.loads(body)["objects"]
                ]
                self.answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                self.commit(body)
            else:
                self.answer({"error": "no such endpoint"}, 404)

        def create(self, wanted: dict[str, Any]) -> None:
            name = f"{wanted['organization'] or 'tester'}/{wanted['name']}"
            if name.split("/")[0] in hub.forbidden:
                self.answer({"error": "You don't have the rights to create a model there"}, 403)
            elif name in hub.private:
                self.answer({"error": "You already created this model repo", "url": self.url(name)}, 409)
            else:
                hub.private[name] = wanted.get("visibility") == "private"
                hub.files[name] = {}
                self.answer({"url": self.url(name), "name": name})

        def url(self, name: str) -> str:
            return f"{hub.address}/{name}"

        def validate(self, content: str) -> None:
            front = yaml.safe_load(content.split("---")[1])
            if front.get("license", "mit") in ("mit", "apache-2.0"):
                self.answer({"errors": [], "warnings": []})
            else:
                self.answer({"errors": [{"message": '"license" must be one of [...]'}]}, 400)

        def commit(self, body: bytes) -> None:
            name = "/".join(self.path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[name][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[name][value["path"]] = hub.objects[value["oid"]]
            self.answer({"commitUrl": f"{self.url(name)}/commit/1", "commitOid": "1" * 40})

    return Handler
