#!/usr/bin/env bash
# Replaces the replicas of the local cluster by new ones of the image that docker-compose.yml names now, without a failed
# request: as many new ones are started beside the old ones, and when all are healthy the old ones are stopped one after
# the other, each answering what it has accepted. Run: deploy/compose/roll.sh [SERVICE]       (api unless given)
set -euo pipefail
service=${1:-api}
read -ra old <<<"$(docker compose ps --quiet "$service" | tr '\n' ' ')"
if ((${#old[@]} == 0)); then
    echo "roll.sh: expected running containers of the service $service, got none" >&2
    exit 1
fi
docker compose up --detach --wait --no-deps --no-recreate --scale "$service=$((2 * ${#old[@]}))" "$service"
for container in "${old[@]}"; do
    docker stop "$container"
    docker rm "$container"
done
