# shellcheck shell=bash
# The machine's Docker engine: find one that answers, else install and start the distribution's; and whether it
# can give a GPU to a container. Sourced by scripts/run after lib.sh.

# ask_engine: fills the map ENGINE (scripts/engine_facts.py says with what), also for the images in IMAGES.
declare -gA ENGINE=()
IMAGES=()
ask_engine() {
    local line
    ENGINE=()
    while IFS= read -r line; do
        ENGINE[${line%%=*}]=${line#*=}
    done < <("$VENV/bin/python" "$ROOT/scripts/engine_facts.py" "${IMAGES[@]}" 2>>"$LOG")
    [[ -n ${ENGINE[state]:-} ]] || die "The Docker engine could not be asked for its state: see the end of $LOG."
}

wait_for_engine() {
    local deadline=$((SECONDS + $1))
    until ask_engine && [[ ${ENGINE[state]} != down ]]; do
        ((SECONDS < deadline)) || return
        sleep 0.5
    done
}

# use_engine ARGUMENT...: leaves with an engine that answers. The arguments are those of this script, to begin
# anew as a member of the group docker.
use_engine() {
    ask_engine
    if [[ ${ENGINE[state]} == down ]]; then
        [[ -z ${DOCKER_HOST:-} ]] || die \
            "No Docker engine answers at DOCKER_HOST=$DOCKER_HOST (${ENGINE[detail]})." \
            "Start that engine, or unset DOCKER_HOST to use the one of this machine."
        local installed=
        if ! have dockerd; then
            install_engine
            installed=yes
            wait_for_engine 5 || true # the package may have started it
        fi
        [[ ${ENGINE[state]} != down ]] || start_engine
    fi
    [[ ${ENGINE[state]} != denied ]] || join_docker_group "${installed:-}" "$@"
}

install_engine() {
    local packages=(docker.io iptables debootstrap)
    say "There is no Docker engine on this machine."
    [[ -z ${APT_FRESH:-} ]] && can_be_root && have apt-get && quietly "apt-get update" as_root apt-get update && APT_FRESH=1
    known_package docker-cli && packages+=(docker-cli) # part of docker.io until Debian 12 and Ubuntu 24.04
    apt_install "The Docker engine" "${packages[@]}" || exit 1
    hash -r
    have dockerd || die "The package docker.io is installed, and there is still no dockerd on PATH. Is it in $PATH ?"
}

# Two engines in one network namespace undo each other's bridge and firewall rules.
other_engine() {
    local process own
    own=$(readlink /proc/self/ns/net)
    for process in /proc/[0-9]*; do
        [[ $(cat "$process/comm" 2>/dev/null) == dockerd ]] || continue
        # Whose namespace can't be read is taken for the same: better one question too many.
        [[ $(as_root readlink "$process/ns/net" 2>/dev/null || echo "$own") == "$own" ]] || continue
        echo "${process#/proc/}"
        return
    done
    return 1
}

start_engine() {
    local pid
    can_be_root || die "The Docker engine is not running (${ENGINE[detail]}), and starting it needs root." \
        "Run: sudo systemctl start docker (or: sudo service docker start), then $0 again."
    if pid=$(other_engine); then
        wait_for_engine 20 && return # it may be starting just now
        die "A Docker engine runs here already (process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline")) and does not" \
            "answer at the default socket; a second one would break its network." \
            "Name its socket: DOCKER_HOST=unix:///path/to/docker.sock $0"
    fi
    say "Starting the Docker engine ..."
    if [[ -d /run/systemd/system ]]; then
        quietly "systemctl start docker" as_root systemctl start docker || true
        wait_for_engine 60 && return
        die "systemd did not bring the Docker engine up. Look at: sudo journalctl -u docker -n 50"
    fi
    if [[ -x /etc/init.d/docker ]] && quietly "service docker start" as_root service docker start; then
        wait_for_engine 30 && return
    fi
    other_engine >/dev/null || start_dockerd
    wait_for_engine 60 && return
    warn "The Docker engine did not start. The end of its log, $STATE/dockerd.log:"
    tail -n 15 "$STATE/dockerd.log" 2>/dev/null | sed 's/^/    /' >&2
    exit 1
}

# The last resort, in a container or a virtual machine without an init system.
start_dockerd() {
    local mtu
    mtu=$(cat "/sys/class/net/$(ip -4 route show default 2>/dev/null | sed -n 's/.* dev \([^ ]*\).*/\1/p' | head -n 1)/mtu" \
        2>/dev/null) || mtu=1500
    as_root true # sudo asks for the password here, not in the background
    # shellcheck disable=SC2024 # the log is the caller's, the engine is root's
    as_root setsid dockerd --mtu "$mtu" >"$STATE/dockerd.log" 2>&1 </dev/null &
    disown
}

join_docker_group() {
    local installed=$1 user command
    shift
    user=$(id -un)
    [[ -z ${DOCKER_HOST:-} ]] || die "The Docker engine at DOCKER_HOST=$DOCKER_HOST does not let $user in (${ENGINE[detail]})."
    if [[ -n $installed ]] && can_be_root; then
        say "Adding $user to the group docker (its members can do everything on this machine)."
        quietly "usermod" as_root usermod -aG docker "$user" || true
    fi
    if [[ " $(id -nG "$user") " == *" docker "* && " $(id -nG) " != *" docker "* ]] && have sg; then
        printf -v command '%q ' "$0" "$@"
        exec sg docker -c "$command" # a member since the last login
    fi
    die "The Docker engine runs, and $user may not use it." \
        "Run: sudo usermod -aG docker $user, log in again, then $0 (or: sudo $0)."
}

# ---- GPUs -------------------------------------------------------------------------------------------------

nvidia_driver() {
    [[ -e /proc/driver/nvidia/version ]] || { have nvidia-smi && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }
}

engine_gives_gpus() {
    [[ ${ENGINE[gpu]} == yes ]] || have nvidia-container-runtime-hook || have nvidia-ctk || have nvidia-cdi-hook
}

# choose_gpus SIMULATE: exports GPUSPAWNER_FAKE_GPUS, or leaves it unset where the real cards are used.
choose_gpus() {
    if [[ -n ${GPUSPAWNER_FAKE_GPUS:-} ]]; then
        say "GPUs are simulated: GPUSPAWNER_FAKE_GPUS=$GPUSPAWNER_FAKE_GPUS."
    elif [[ -n $1 ]]; then
        export GPUSPAWNER_FAKE_GPUS=2x24GiB
        say "GPUs are simulated, as asked: $GPUSPAWNER_FAKE_GPUS."
    elif ! nvidia_driver; then
        export GPUSPAWNER_FAKE_GPUS=2x24GiB
        say "There is no NVIDIA driver here: GPUs are simulated ($GPUSPAWNER_FAKE_GPUS), no device is attached."
    elif ! engine_gives_gpus; then
        die "This machine has an NVIDIA driver, and its Docker engine can't give a GPU to a container: the NVIDIA" \
            "container toolkit is missing. Install the package nvidia-container-toolkit (at least 1.19.1) from" \
            "NVIDIA's repository, https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/install-guide.html," \
            "then run: sudo systemctl restart docker. To try gpuspawner without it: $0 --simulate"
    else
        unset GPUSPAWNER_FAKE_GPUS
        say "There is an NVIDIA driver: the real GPUs are used."
    fi
}
