"""The calls about containers and execs: HTTP in, ``Lifecycle`` and ``Store`` underneath, JSON out.

Handlers only translate. The rules are in ``lifecycle`` and the shapes in ``render``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from aiohttp import web

from . import answers, render, state
from .lifecycle import Lifecycle
from .state import Container, ExecAnswer, ExecRun, LogLine, new_id
from .streams import Spent, frame, take_over

_RAW = "application/vnd.docker.raw-stream"
_SIGNALS = {"SIGHUP": 1, "SIGINT": 2, "SIGKILL": 9, "SIGTERM": 15, "HUP": 1, "INT": 2, "KILL": 9, "TERM": 15}


def flag(request: web.Request, name: str, default: bool = False) -> bool:
    """A boolean of the query, as the engine reads it: docker-py sends 1, 0, True and False."""
    text = request.query.get(name, "").strip().lower()
    return default if not text else text not in ("0", "no", "false", "none")


async def json_body(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request, empty where there is none. Raises ApiError 400."""
    text = await request.text()
    if not text.strip():
        return {}
    try:
        body = json.loads(text)
    except ValueError as broken:
        raise answers.ApiError(400, f"invalid JSON: {broken}") from broken
    if not isinstance(body, dict):
        raise answers.ApiError(400, "invalid JSON: not an object")
    return body


class Containers:
    """Handlers of ``/containers`` and ``/exec``."""

    def __init__(self, life: Lifecycle) -> None:
        self._life = life
        self._store = life.store

    def routes(self) -> list[tuple[str, str, str, Any]]:
        """Method, path, the operation's name for faults, handler."""
        return [
            ("GET", "/containers/json", "list", self.list),
            ("POST", "/containers/create", "create", self.create),
            ("GET", "/containers/{id:/?[^/]+}/json", "inspect", self.inspect),
            ("POST", "/containers/{id:/?[^/]+}/start", "start", self.start),
            ("POST", "/containers/{id:/?[^/]+}/stop", "stop", self.stop),
            ("POST", "/containers/{id:/?[^/]+}/kill", "kill", self.kill),
            ("POST", "/containers/{id:/?[^/]+}/pause", "pause", self.pause),
            ("POST", "/containers/{id:/?[^/]+}/unpause", "unpause", self.unpause),
            ("POST", "/containers/{id:/?[^/]+}/wait", "wait", self.wait),
            ("DELETE", "/containers/{id:/?[^/]+}", "remove", self.remove),
            ("GET", "/containers/{id:/?[^/]+}/logs", "logs", self.logs),
            ("POST", "/containers/{id:/?[^/]+}/exec", "exec", self.exec_create),
            ("POST", "/exec/{exec}/start", "exec_start", self.exec_start),
            ("GET", "/exec/{exec}/json", "exec_inspect", self.exec_inspect),
        ]

    def _named(self, request: web.Request) -> Container:
        return self._store.container(request.match_info["id"])

    async def list(self, request: web.Request) -> web.StreamResponse:
        """List containers."""
        filters = state.parse_filters(request.query.get("filters"))
        found = state.select(self._store.containers.values(), filters, everything=flag(request, "all"))
        limit = int(request.query.get("limit") or -1)
        return web.json_response([render.summary(each) for each in (found[:limit] if limit > 0 else found)])

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Create a container."""
        body = await json_body(request)
        name = request.query.get("name") or f"standin_{secrets.token_hex(4)}"
        container = self._life.create(name.lstrip("/"), body)
        return web.json_response({"Id": container.id, "Warnings": []}, status=201)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        """Inspect a container."""
        return web.json_response(render.inspect(self._named(request)))

    async def start(self, request: web.Request) -> web.StreamResponse:
        """Start a container; 304 where it runs already."""
        container = self._named(request)
        if container.status == "running":
            return web.Response(status=304)
        await self._life.start(container)
        return web.Response(status=204)

    async def stop(self, request: web.Request) -> web.StreamResponse:
        """Stop a container; 304 where it does not run."""
        container = self._named(request)
        if not container.running:
            return web.Response(status=304)
        await self._life.stop(container, float(request.query.get("t") or 10))
        return web.Response(status=204)

    async def kill(self, request: web.Request) -> web.StreamResponse:
        """Send a signal to a container."""
        key = request.match_info["id"]
        container = self._store.find(key)
        if container is None:
            raise answers.ApiError(404, f"Cannot kill container: {key}: No such container: {key}")
        name = request.query.get("signal") or "SIGKILL"
        await self._life.kill(container, int(name) if name.isdigit() else _SIGNALS[name.upper()])
        return web.Response(status=204)

    async def pause(self, request: web.Request) -> web.StreamResponse:
        """Pause a container: it is still counted as running."""
        container = self._named(request)
        if container.status == "paused":
            raise answers.ApiError(409, f"Container {container.id} is already paused")
        if container.status != "running":
            raise answers.not_running(container.id)
        container.status = "paused"
        return web.Response(status=204)

    async def unpause(self, request: web.Request) -> web.StreamResponse:
        """Go on with a paused container."""
        container = self._named(request)
        if container.status != "paused":
            raise answers.ApiError(500, f"Container {container.id} is not paused")
        container.status = "running"
        return web.Response(status=204)

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """Wait until a container does not run, has exited once more, or is gone."""
        container = self._named(request)
        condition = request.query.get("condition") or "not-running"
        before = container.finished
        over = {
            "not-running": lambda: not container.running,
            "next-exit": lambda: container.finished != before or container.removed,
            "removed": lambda: container.removed,
        }.get(condition)
        if over is None:
            raise answers.ApiError(400, f'invalid condition: "{condition}"')
        await self._life.until(over)
        return web.json_response({"Error": None, "StatusCode": container.exit_code})

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """Remove a container."""
        await self._life.remove(self._named(request), volumes=flag(request, "v"), force=flag(request, "force"))
        return web.Response(status=204)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """A container's log as frames; ``follow`` goes on until it ends."""
        container = self._named(request)
        streams = {number for number, name in ((1, "stdout"), (2, "stderr")) if flag(request, name)}
        if not streams:
            raise answers.ApiError(400, "Bad parameters: you must choose at least one stream")
        stamps = flag(request, "timestamps")
        lines = [line for line in container.log if line.stream in streams]
        tail = request.query.get("tail", "all")
        if tail.isdigit():
            lines = lines[len(lines) - min(int(tail), len(lines)) :]
        response = web.StreamResponse(headers={"Content-Type": _RAW})
        await response.prepare(request)
        await response.write(b"".join(_framed(line, stamps) for line in lines))
        seen = len(container.log)
        while flag(request, "follow") and container.running:
            await asyncio.sleep(0.02)
            for line in container.log[seen:]:
                if line.stream in streams:
                    await response.write(_framed(line, stamps))
            seen = len(container.log)
        await response.write_eof()
        return response

    async def exec_create(self, request: web.Request) -> web.StreamResponse:
        """Prepare a command in a running container."""
        container = self._named(request)
        body = await json_body(request)
        if container.status == "paused":
            raise answers.ApiError(409, f"Container {container.name} is paused, unpause the container before exec")
        if not container.running:
            raise answers.not_running(container.id)
        words = [str(each) for each in body.get("Cmd") or ()]
        if not words:
            raise answers.ApiError(400, "No exec command specified")
        record = ExecRun(new_id(), container, words, tty=bool(body.get("Tty")))
        self._store.execs[record.id] = record
        return web.json_response({"Id": record.id}, status=201)

    def _exec(self, request: web.Request) -> ExecRun:
        key = request.match_info["exec"]
        record = self._store.execs.get(key)
        if record is None or record.container.removed:
            raise answers.no_such_exec(key)
        return record

    async def exec_start(self, request: web.Request) -> web.StreamResponse:
        """Run a prepared command over the taken-over connection, or apart from it with ``Detach``."""
        record = self._exec(request)
        body = await json_body(request)
        if not record.container.running:
            raise answers.not_running(record.container.id)
        if body.get("Detach"):
            self._life.spawn(self._life.execute(record))
            return web.Response(status=200)
        transport = await take_over(request)
        answer = await self._life.execute(record)
        transport.write(_exec_bytes(answer, tty=record.tty))
        transport.close()
        return Spent()

    async def exec_inspect(self, request: web.Request) -> web.StreamResponse:
        """Inspect a prepared or finished command."""
        return web.json_response(render.exec_run(self._exec(request)))


def _framed(line: LogLine, stamps: bool) -> bytes:
    prefix = f"{render.stamp(line.at)} ".encode() if stamps else b""
    return frame(line.stream, prefix + line.text)


def _exec_bytes(answer: ExecAnswer, *, tty: bool) -> bytes:
    if tty:
        return answer.stdout + answer.stderr
    return b"".join(frame(number, data) for number, data in ((1, answer.stdout), (2, answer.stderr)) if data)
