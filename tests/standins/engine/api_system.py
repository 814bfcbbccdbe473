"""The calls that are about neither containers nor images: networks, volumes, events and the engine itself.

Handlers only translate, as in ``api``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from . import answers, render, state
from .api import flag, json_body
from .lifecycle import Lifecycle
from .state import PREDEFINED, Network, Volume, new_id


class System:
    """Handlers of ``/networks``, ``/volumes``, ``/events``, ``/info``, ``/version``, ``/_ping``."""

    def __init__(self, life: Lifecycle, api_version: str) -> None:
        self._life = life
        self._store = life.store
        self._api_version = api_version
        self.cgroup_driver = "cgroupfs"

    def routes(self) -> list[tuple[str, str, str, Any]]:
        """Method, path, the operation's name for faults, handler."""
        return [
            ("GET", "/_ping", "ping", self.ping),
            ("GET", "/version", "version", self.version),
            ("GET", "/info", "info", self.info),
            ("GET", "/events", "events", self.events),
            ("GET", "/networks", "list_networks", self.networks),
            ("POST", "/networks/create", "create_network", self.create_network),
            ("GET", "/networks/{network}", "inspect_network", self.network),
            ("DELETE", "/networks/{network}", "remove_network", self.remove_network),
            ("GET", "/volumes", "list_volumes", self.volumes),
            ("POST", "/volumes/create", "create_volume", self.create_volume),
            ("GET", "/volumes/{volume}", "inspect_volume", self.volume),
            ("DELETE", "/volumes/{volume}", "remove_volume", self.remove_volume),
        ]

    async def ping(self, request: web.Request) -> web.StreamResponse:
        """Say that the engine lives."""
        return web.Response(text="OK")

    async def version(self, request: web.Request) -> web.StreamResponse:
        """The engine's version."""
        return web.json_response(render.version(self._life.host, self._api_version))

    async def info(self, request: web.Request) -> web.StreamResponse:
        """What the engine is and has."""
        life = self._life
        return web.json_response(render.info(life.store, life.host, life.runtimes, self.cgroup_driver))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The events from now on, one JSON object a line."""
        filters = state.parse_filters(request.query.get("filters"))
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._life.listeners.append(queue)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
            while True:
                event = await queue.get()
                if _wanted(event, filters):
                    await response.write(json.dumps(event).encode() + b"\n")
        except ConnectionError:
            # Whoever listened has gone, as every listener does one day.
            return response
        finally:
            self._life.listeners.remove(queue)

    async def networks(self, request: web.Request) -> web.StreamResponse:
        """List networks; a name filter is a part of the name."""
        filters = state.parse_filters(request.query.get("filters"))
        found = [each for each in self._store.networks.values() if _chosen(each.name, each.labels, filters)]
        return web.json_response([self._network_json(each) for each in found])

    def _network_json(self, network: Network) -> dict[str, Any]:
        return render.network(network, list(self._store.containers.values()))

    async def network(self, request: web.Request) -> web.StreamResponse:
        """Inspect a network."""
        return web.json_response(self._network_json(self._store.network(request.match_info["network"])))

    async def create_network(self, request: web.Request) -> web.StreamResponse:
        """Create a network; a second one of that name is refused only with CheckDuplicate."""
        body = await json_body(request)
        name = str(body.get("Name") or "")
        if name in self._store.networks:
            raise answers.ApiError(409, f"network with name {name} already exists")
        network = Network(
            name,
            new_id(),
            str(body.get("Driver") or "bridge"),
            internal=bool(body.get("Internal")),
            options=body.get("Options") or {},
            labels=body.get("Labels") or {},
        )
        self._store.networks[name] = network
        return web.json_response({"Id": network.id, "Warning": ""}, status=201)

    async def remove_network(self, request: web.Request) -> web.StreamResponse:
        """Remove a network that no running container is in."""
        network = self._store.network(request.match_info["network"])
        if network.name in PREDEFINED:
            raise answers.ApiError(403, f"{network.name} is a pre-defined network and cannot be removed")
        users = [each for each in self._store.containers.values() if network.name in each.endpoints]
        if any(each.running for each in users):
            raise answers.ApiError(
                403, f"error while removing network: network {network.name} id {network.id} has active endpoints"
            )
        del self._store.networks[network.name]
        return web.Response(status=204)

    async def volumes(self, request: web.Request) -> web.StreamResponse:
        """List volumes; a name filter is a part of the name."""
        filters = state.parse_filters(request.query.get("filters"))
        found = [each for each in self._store.volumes.values() if _chosen(each.name, each.labels or {}, filters)]
        return web.json_response({"Volumes": [render.volume(each) for each in found], "Warnings": None})

    async def create_volume(self, request: web.Request) -> web.StreamResponse:
        """Create a volume, or find the one of that name."""
        body = await json_body(request)
        name = str(body.get("Name") or new_id())
        made = Volume(name, str(body.get("Driver") or "local"), body.get("DriverOpts"), body.get("Labels"))
        return web.json_response(render.volume(self._store.volumes.setdefault(name, made)), status=201)

    def _volume(self, request: web.Request) -> Volume:
        name = request.match_info["volume"]
        if name not in self._store.volumes:
            raise answers.no_such_volume(name)
        return self._store.volumes[name]

    async def volume(self, request: web.Request) -> web.StreamResponse:
        """Inspect a volume."""
        return web.json_response(render.volume(self._volume(request)))

    async def remove_volume(self, request: web.Request) -> web.StreamResponse:
        """Remove a volume that no container mounts."""
        volume = self._volume(request)
        users = self._store.users_of(volume.name)
        if users and not flag(request, "force"):
            raise answers.ApiError(409, f"remove {volume.name}: volume is in use - [{', '.join(users)}]")
        del self._store.volumes[volume.name]
        return web.Response(status=204)


def _wanted(event: dict[str, Any], filters: dict[str, list[str]]) -> bool:
    attributes: dict[str, str] = event["Actor"]["Attributes"]
    kinds, actions = filters.get("type", []), filters.get("event", [])
    if (kinds and event["Type"] not in kinds) or (actions and event["Action"] not in actions):
        return False
    return state.labelled(attributes, filters)


def _chosen(name: str, labels: Mapping[str, str], filters: dict[str, list[str]]) -> bool:
    names = filters.get("name", [])
    return state.labelled(labels, filters) and (not names or any(each in name for each in names))
