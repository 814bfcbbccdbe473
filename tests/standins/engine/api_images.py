"""The calls about images: look, name, remove, import, build, and to and from registries.

Handlers only translate: the rules for names are in ``names``, the builder is in ``builds``. All registries of the
world are one dictionary; whatever is pushed can be pulled. Only at port 1 of 127.0.0.1 there is none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from aiohttp import web

from . import answers, builds, names, render, state
from .answers import ApiError, DropConnection
from .api import flag
from .lifecycle import Lifecycle
from .state import Image, Layer, new_id

Lines = list[dict[str, Any]]
_NOBODY = "127.0.0.1:1"
_CHANGES = ("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "ONBUILD", "USER", "VOLUME", "WORKDIR")


class Images:
    """Handlers of ``/images``, ``/distribution`` and ``/build``."""

    def __init__(self, life: Lifecycle, registry: dict[str, Image]) -> None:
        self._life = life
        self._store = life.store
        self._registry = registry
        self._builder = builds.Builder(self._here_or_pulled)

    def routes(self) -> list[tuple[str, str, str, Any]]:
        """Method, path, the operation's name for faults, handler."""
        return [
            ("GET", "/images/json", "list_images", self.list),
            ("POST", "/images/create", "pull", self.create),
            ("GET", "/images/{image:.+}/json", "inspect_image", self.inspect),
            ("GET", "/images/{image:.+}/history", "history", self.history),
            ("POST", "/images/{image:.+}/tag", "tag", self.tag),
            ("POST", "/images/{image:.+}/push", "push", self.push),
            ("DELETE", "/images/{image:.+}", "remove_image", self.remove),
            ("GET", "/distribution/{image:.+}/json", "distribution", self.distribution),
            ("POST", "/build", "build", self.build),
        ]

    # -- look ---------------------------------------------------------------------------------------------

    async def list(self, request: web.Request) -> web.StreamResponse:
        """List images, all or those of a reference or with labels; one without a name unless it is a parent."""
        filters = state.parse_filters(request.query.get("filters"))
        wanted = request.query.get("filter") or next(iter(filters.get("reference", ())), "")
        everything = {each.id: each for each in (*self._store.images.values(), *self._store.unnamed.values())}
        parents = {each.parent for each in everything.values()}
        found = []
        for image in everything.values():
            tags, digests = names.of(self._store, image.id), names.digests_of(self._store, image.id)
            if not tags and not digests and (wanted or image.id in parents):
                continue
            if wanted and not any(wanted in (tag, names.repository(tag)) for tag in tags):
                continue
            if state.labelled(image.labels, filters):
                found.append(render.image_summary(image, tags, digests))
        return web.json_response(found)

    async def inspect(self, request: web.Request) -> web.StreamResponse:
        """Inspect an image."""
        ref = request.match_info["image"]
        image = self._store.image(ref)
        if image is None:
            raise answers.no_such_image_to_inspect(ref)
        tags, digests = names.of(self._store, image.id), names.digests_of(self._store, image.id)
        return web.json_response(render.image(image, tags, digests, self._store.tagged.get(image.id) or None))

    def _named(self, request: web.Request) -> Image:
        image = self._store.image(request.match_info["image"])
        if image is None:
            raise answers.no_such_image(request.match_info["image"])
        return image

    async def history(self, request: web.Request) -> web.StreamResponse:
        """The layers of an image."""
        image = self._named(request)
        return web.json_response(render.history(image, names.of(self._store, image.id)))

    # -- name and remove ----------------------------------------------------------------------------------

    async def tag(self, request: web.Request) -> web.StreamResponse:
        """Give an image a name."""
        names.give(self._store, self._named(request), _reference(request.query["repo"], request.query.get("tag", "")))
        return web.Response(status=201)

    async def remove(self, request: web.Request) -> web.StreamResponse:
        """Take a name away, or an image."""
        done = names.remove(self._store, request.match_info["image"], force=flag(request, "force"))
        return web.json_response(done)

    # -- make ---------------------------------------------------------------------------------------------

    async def create(self, request: web.Request) -> web.StreamResponse:
        """Pull an image, or make one of a tar."""
        if "fromSrc" in request.query:
            return await self._import(request)
        name, tag = request.query.get("fromImage", ""), request.query.get("tag", "")
        ref = _reference(name, tag)
        image = self._offered(ref)
        known = self._store.images.get(ref)
        self._pulled(ref, image)
        kind = "Image is up to date" if known and known.id == image.id else "Downloaded newer image"
        lines: Lines = [
            {"status": f"Pulling from {name.partition('/')[2] if '.' in name.partition('/')[0] else name}", "id": tag},
            {"status": "Pull complete", "progressDetail": {}, "id": answers.short(image.layers[0].id)},
            {"status": f"Digest: {names.digest(image)}"},
            {"status": f"Status: {kind} for {ref}"},
        ]
        return await _streamed(request, lines)

    async def _import(self, request: web.Request) -> web.StreamResponse:
        files = builds.unpack(await request.read())
        size = sum(map(len, files.values()))
        layer = Layer(f"sha256:{new_id()}", "", size, comment="Imported from -")
        image = Image("", f"sha256:{new_id()}", layers=(layer,))
        for change in request.query.getall("changes", []):
            image = _changed(image, change)
        names.give(self._store, image, _reference(request.query["repo"], request.query.get("tag", "")))
        return web.json_response({"status": image.id})

    async def build(self, request: web.Request) -> web.StreamResponse:
        """Build an image; what is wrong after the first step is told in the stream."""
        query = request.query
        order = builds.Order(
            tag=query.get("t", ""),
            files=builds.unpack(await request.read()),
            arguments=json.loads(query.get("buildargs") or "{}"),
            labels=json.loads(query.get("labels") or "{}"),
            no_cache=flag(request, "nocache"),
            buildkit=query.get("version") == "2",
        )
        steps = builds.steps_of(order.files.get("Dockerfile"), buildkit=order.buildkit)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)

        async def say(**words: Any) -> None:
            await response.write(json.dumps(words).encode() + b"\r\n")

        def has_left() -> bool:
            return request.transport is None or request.transport.is_closing()

        try:
            network = query.get("networkmode") or "default"
            for line in self._builder.build(order, steps):
                if isinstance(line, str):
                    await say(stream=line)
                    continue
                await self._disturb(order.tag, has_left)
                if network not in ("default", *self._store.networks):
                    raise builds.BuildError(f"network {network} not found")
                if has_left():
                    # A build ends with its client.
                    raise DropConnection
                await say(aux={"ID": line.id})
                names.give(self._store, line, order.tag)
        except builds.BuildError as failed:
            code = {"code": failed.code} if failed.code is not None else {}
            await say(errorDetail={**code, "message": str(failed)}, error=str(failed))
        await response.write_eof()
        return response

    async def _disturb(self, tag: str, has_left: Any) -> None:
        for fault in self._life.faults.active:
            if message := await fault.building(tag, has_left):
                raise builds.BuildError(message)

    # -- registries ---------------------------------------------------------------------------------------

    def offer(self, ref: str, image: Image) -> None:
        """Put an image into the registry, under its tag and its digest."""
        self._registry[ref] = self._registry[f"{names.repository(ref)}@{names.digest(image)}"] = image

    def _offered(self, ref: str) -> Image:
        host = ref.partition("/")[0]
        if host == _NOBODY:
            raise answers.no_registry(host)
        image = self._registry.get(ref)
        if image is None and (":" in host or "." in host):
            raise answers.manifest_unknown(f"manifest for {ref} not found: ")
        if image is None:
            raise answers.pull_denied(ref)
        return image

    def _pulled(self, ref: str, image: Image) -> None:
        digest = f"{names.repository(ref)}@{names.digest(image)}"
        self._store.digests[digest] = image.id
        if "@" not in ref:
            names.give(self._store, image, ref, moment=self._store.tagged.get(image.id, 0.0))
        elif not names.of(self._store, image.id):
            self._store.unnamed[image.id] = image

    def _here_or_pulled(self, ref: str) -> Image:
        image = self._store.image(ref)
        if image is None:
            image = self._offered(answers.with_tag(ref))
            self._pulled(answers.with_tag(ref), image)
        return image

    async def distribution(self, request: web.Request) -> web.StreamResponse:
        """What a registry has under a name now."""
        ref = answers.with_tag(request.match_info["image"])
        if ref.partition("/")[0] == _NOBODY:
            raise answers.no_registry(_NOBODY)
        image = self._registry.get(ref)
        if image is None:
            raise answers.manifest_unknown()
        kind = "application/vnd.docker.distribution.manifest.v2+json"
        return web.json_response(
            {
                "Descriptor": {"mediaType": kind, "digest": names.digest(image), "size": 528},
                "Platforms": [{"architecture": "amd64", "os": "linux"}],
            }
        )

    async def push(self, request: web.Request) -> web.StreamResponse:
        """Copy an image to the registry."""
        name, tag = request.match_info["image"], request.query.get("tag", "")
        ref = _reference(name, tag)
        lines: Lines = [{"status": f"The push refers to repository [{name}]"}]
        image = self._store.images.get(ref)
        problem = ""
        if name.partition("/")[0] == _NOBODY:
            problem = answers.no_registry(_NOBODY).message
        elif image is None:
            problem = f"An image does not exist locally with the tag: {name}"
        if problem or image is None:
            lines.append({"errorDetail": {"message": problem}, "error": problem})
        else:
            self.offer(ref, image)
            digest = names.digest(image)
            self._store.digests[f"{name}@{digest}"] = image.id
            lines += [
                {"status": "Pushing", "progressDetail": {"current": 1, "total": 2}, "progress": "[>]", "id": "1"},
                {"status": "Pushed", "progressDetail": {}, "id": "1"},
                {"status": f"{tag}: digest: {digest} size: 528"},
                {"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": 528}},
            ]
        return await _streamed(request, lines)


async def _streamed(request: web.Request, lines: Lines) -> web.StreamResponse:
    """One JSON object a line, in chunks: docker-py takes any other answer for a single object."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    for line in lines:
        await response.write(json.dumps(line).encode() + b"\r\n")
    await response.write_eof()
    return response


def _reference(name: str, tag: str) -> str:
    return answers.with_tag(f"{name}@{tag}" if ":" in tag else f"{name}:{tag}" if tag else name)


def _changed(image: Image, change: str) -> Image:
    """An image after one line of an import's ``changes``. Raises ApiError 400."""
    word, _, rest = change.partition(" ")
    if word not in _CHANGES:
        raise ApiError(400, f"{word.lower()} is not a valid change command")
    if word == "LABEL":
        if "=" not in rest and " " not in rest:
            raise ApiError(400, "LABEL must have two arguments")
        return replace(image, labels={**image.labels, **builds.pairs_in(rest)})
    if word == "ENV":
        return replace(image, env=(*image.env, *(f"{key}={value}" for key, value in builds.pairs_in(rest).items())))
    return replace(image, cmd=builds.words_in(rest)) if word == "CMD" else image
