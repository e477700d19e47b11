#!/usr/bin/env bash
# A Slurm cluster on this machine, to try deploy/slurm.sh: each node is a network namespace with a host name
# and an address of its own, in which a slurmd runs. Needs root, Debian's slurm-wlm, munge and iproute2.
#
#     tools/slurm_cluster.sh up 2 [SHAPING]     # for example "rate 1gbit delay 5ms", what tc's netem takes
#     tools/slurm_cluster.sh run 2 COMMAND...   # in the second node
#     tools/slurm_cluster.sh down
#
# `up` prints the environment for sbatch, squeue and the others. Everything is in $WORK, /tmp/slurm by default.
set -euo pipefail
work=${WORK:-/tmp/slurm}
bridge=slurm0
subnet=10.77.0

# The namespaces of a node: host name, network, and /etc/hosts, from /etc/netns.
in_node() {
    local node=node$1
    shift
    # shellcheck disable=SC2016
    ip netns exec "$node" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$node" "$@"
}

write_configuration() {
    local number=$1 processors
    processors=$(nproc)
    mkdir -p "$work"/{state,logs}
    printf '127.0.0.1 localhost\n%s.254 controller\n' "$subnet" >"$work/hosts"
    for ((k = 1; k <= number; k++)); do
        echo "$subnet.$k node$k" >>"$work/hosts"
    done
    # proctrack and task plugins without cgroups, which may not be writable in a container.
    cat >"$work/slurm.conf" <<END
ClusterName=here
SlurmctldHost=$(hostname)($subnet.254)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
SlurmUser=root
StateSaveLocation=$work/state
SlurmctldLogFile=$work/logs/slurmctld
SlurmctldPidFile=$work/slurmctld.pid
SlurmdLogFile=$work/logs/%n
SlurmdPidFile=$work/%n.pid
SlurmdSpoolDir=$work/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
KillWait=5
MpiDefault=none
NodeName=node[1-$number] NodeAddr=$subnet.[1-$number] CPUs=$processors State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    echo "CgroupPlugin=cgroup/v1" >"$work/cgroup.conf"
}

start_network() {
    local number=$1 shaping=$2
    ip link add "$bridge" type bridge
    ip addr add "$subnet.254/24" dev "$bridge"
    ip link set "$bridge" up
    for ((k = 1; k <= number; k++)); do
        ip netns add "node$k"
        mkdir -p "/etc/netns/node$k"
        cp "$work/hosts" "/etc/netns/node$k/hosts"
        ip link add "veth$k" type veth peer name eth0 netns "node$k"
        ip link set "veth$k" master "$bridge" up
        ip -n "node$k" addr add "$subnet.$k/24" dev eth0
        ip -n "node$k" link set eth0 up
        ip -n "node$k" link set lo up
        if [ -n "$shaping" ]; then
            # shellcheck disable=SC2086
            ip netns exec "node$k" tc qdisc add dev eth0 root netem limit 100000 $shaping
        fi
    done
}

start_daemons() {
    local number=$1
    dd if=/dev/urandom of="$work/munge.key" bs=1024 count=1 status=none
    chmod 400 "$work/munge.key"
    munged --force --key-file="$work/munge.key" --socket="$work/munge.socket" \
        --pid-file="$work/munged.pid" --log-file="$work/logs/munged" --seed-file="$work/munge.seed"
    slurmctld -f "$work/slurm.conf"
    for ((k = 1; k <= number; k++)); do
        mkdir -p "$work/spool-node$k"
        in_node "$k" slurmd -f "$work/slurm.conf" -N "node$k"
    done
}

stop() {
    local file
    for file in "$work"/node*.pid "$work"/slurmctld.pid "$work"/munged.pid; do
        [ ! -s "$file" ] || kill "$(cat "$file")" 2>/dev/null || true
    done
    for node in $(ip netns list | sed -n 's/^\(node[0-9]*\).*/\1/p'); do
        ip netns pids "$node" | xargs -r kill -9 2>/dev/null || true
        ip netns del "$node"
        rm -rf "/etc/netns/$node"
    done
    ip link del "$bridge" 2>/dev/null || true
    rm -rf "$work"
}

case ${1:-} in
up)
    [ ! -e "$work" ] || { echo "slurm_cluster.sh: $work exists: run 'down' first" >&2; exit 2; }
    number=${2:?the number of nodes}
    write_configuration "$number"
    start_network "$number" "${3:-}"
    start_daemons "$number"
    echo "export SLURM_CONF=$work/slurm.conf"
    ;;
run)
    in_node "${@:2}"
    ;;
down)
    stop
    ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
