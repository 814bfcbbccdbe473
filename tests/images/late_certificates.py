"""Runs in an image with the server's Python, `FOLDER school|debian`: what aiohttp trusts as the launcher imports it.

Prints the CAs it has read, what a server with a certificate of the school got, and the CAs it has read then.
"""

import asyncio
import os
import runpy
import ssl
import sys
from pathlib import Path

from certipy import Certipy

LAUNCHER = "/usr/local/sbin/jupyterhub-singleuser"


async def outcome(port):
    import aiohttp

    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"https://localhost:{port}/") as response:
                return await response.text()
        except aiohttp.ClientConnectorCertificateError:
            return "refused"


async def answer(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\ntrusted")
    await writer.drain()
    writer.close()


async def main(key, certificate):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    print(await outcome(server.sockets[0].getsockname()[1]))
    server.close()


folder = Path(sys.argv[1])
made = Certipy(store_dir=str(folder))
made.create_ca("school")
pair = made.create_signed_pair("localhost", "school", alt_names=["DNS:localhost"])["files"]
if sys.argv[2] == "school":
    os.environ["SSL_CERT_FILE"] = str(folder / "school" / "school.crt")
runpy.run_path(LAUNCHER)["import_main"]()
import aiohttp.connector  # noqa: E402 - the launcher has to import it first, in the environment set above

print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"])
asyncio.run(main(pair["key"], pair["cert"]))
print(aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509_ca"])
