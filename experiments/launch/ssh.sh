#!/bin/bash
# Trains on hosts that are reached by ssh, one process per host; the first host is process 0.
#
#     experiments/launch/ssh.sh "host0 host1 host2 host3" \
#         --config=experiments/scenes_base.py --workdir=/shared/runs/scenes
#
# Start it in the checkout. All hosts must see the checkout and the workdir under the same paths.
# UNICOM=.venv/bin/unicom names the command if it is not on the hosts' PATH; PORT sets another port.
# Ctrl-C or SIGTERM saves and stops all processes after the same step; run this again to resume.
set -u
read -ra hosts <<<"$1"
shift
port=${PORT:-8476} pids=()
pidfile=/tmp/unicom-$port.pid # on the first host; a signal to one process stops all

trap 'ssh "${hosts[0]}" "kill -TERM \$(cat $pidfile)"' INT TERM

for index in "${!hosts[@]}"; do
    meeting="--coordinator=${hosts[0]}:$port --processes=${#hosts[@]} --process=$index"
    start="cd $(printf %q "$PWD") && exec ${UNICOM:-unicom} train $meeting $(printf '%q ' "$@")"
    [ "$index" -eq 0 ] && start="echo \$\$ >$pidfile && $start"
    ssh "${hosts[index]}" "$start" &
    pids+=($!)
done

worst=0
for pid in "${pids[@]}"; do
    while wait "$pid"; status=$?; kill -0 "$pid" 2>/dev/null; do :; done # the trap ends a wait
    [ "$status" -gt "$worst" ] && worst=$status
done
exit "$worst"
