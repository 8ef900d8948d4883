#!/bin/bash
# What a person with the bare tools would run, everything side by side that can be: the measure for attachd's speed.
#   bare_tools.sh attach|again|detach VOLUME MOUNT CINDER-HOST CINDER-PORT PROJECT INITIATOR ADDRESS
# MOUNT is - where the device is used as it is. With one portal there is no map. Prints the seconds that it took.
set -euo pipefail
what=$1 volume=$2 mount=$3 cinder=$4 port=$5 project=$6 initiator=$7 address=$8
state=/run/bare-tools.$volume
began=$EPOCHREALTIME

api() { # METHOD PATH [BODY]
  local body=${3:-} answer
  exec 3<> "/dev/tcp/$cinder/$port"
  printf '%s /v3/%s%s HTTP/1.1\r\nHost: %s:%s\r\nX-Auth-Token: admin:%s\r\nOpenStack-API-Version: volume 3.54\r\nContent-Type: application/json\r\nAccept: application/json\r\nConnection: close\r\nContent-Length: %s\r\n\r\n%s' \
    "$1" "$project" "$2" "$cinder" "$port" "$project" "${#body}" "$body" >&3
  answer=$(cat <&3)
  exec 3<&-
  [[ $answer == "HTTP/1.1 2"* ]] || { echo "$1 $2: $answer" >&2; return 1; }
  printf %s "$answer"
}

field() { # NAME: the text of a JSON field on standard input
  sed -n 's/.*"'"$1"'": "\([^"]*\)".*/\1/p'
}

log_in() { # IQN PORTAL USER PASSWORD
  local record=(iscsiadm -m node -T "$1" -p "$2")
  "${record[@]}" -o new > /dev/null
  "${record[@]}" -o update -n node.session.auth.authmethod -v CHAP -n node.session.auth.username -v "$3" \
    -n node.session.auth.password -v "$4" -n node.session.scan -v manual
  "${record[@]}" --login > /dev/null
}

lap() { # NAME: what came to its end, and when, for those who ask
  [ -z "${LAPS:-}" ] || echo "$1 $EPOCHREALTIME" >> "$LAPS"
}

devices() { # IQN LUN PORTAL…: sets disks and wwid
  local iqn=$1 lun=$2 hosts=() disk session
  shift 2
  for session in /sys/class/iscsi_session/session*; do
    [ "$(< "$session/targetname")" = "$iqn" ] || continue
    session=$(readlink -f "$session") session=${session#*/host}
    hosts+=("${session%%/*}")
  done
  for host in "${hosts[@]}"; do echo "0 0 $lun" > "/sys/class/scsi_host/host$host/scan" & done
  wait
  for host in "${hosts[@]}"; do
    until disk=$(echo "/sys/class/scsi_device/$host:0:0:$lun/device/block/"*) && [ -e "$disk" ]; do sleep 0.02; done
    disks+=("${disk##*/}")
  done
  lap "scan"
  for disk in "${disks[@]}"; do
    until [ -e "/run/udev/data/b$(< "/sys/block/$disk/dev")" ]; do sleep 0.02; done
  done
  wwid=$(/lib/udev/scsi_id -g -u -d "/dev/${disks[0]}")
  lap "udev"
  if [ $# -gt 1 ]; then
    multipath -a "$wwid" > /dev/null
    for disk in "${disks[@]}"; do multipathd add path "$disk" > /dev/null; done
    multipathd add map "$wwid" > /dev/null
    until [ -b "/dev/mapper/$wwid" ] && set -- "/sys/block/$(basename "$(readlink -f "/dev/mapper/$wwid")")/slaves/"* && [ $# = ${#disks[@]} ]; do sleep 0.02; done
    lap "map"
  fi
}

attach() {
  local attachment info iqn user password lun portals disks=() wwid
  lap "begin"
  api GET "/volumes/$volume" > /dev/null
  attachment=$(api POST /attachments '{"attachment": {"volume_uuid": "'"$volume"'", "mode": "rw"}}' | tail -1 | sed 's/.*"attachment": {"id": "\([^"]*\)".*/\1/')
  info=$(api PUT "/attachments/$attachment" '{"attachment": {"connector": {"host": "node1", "initiator": "'"$initiator"'", "ip": "'"$address"'", "platform": "x86_64", "os_type": "linux", "multipath": '"${MULTIPATH:-true}"', "mode": "rw"}}}')
  lap "Cinder"
  iqn=$(field target_iqn <<< "$info") user=$(field auth_username <<< "$info") password=$(field auth_password <<< "$info")
  lun=$(sed -n 's/.*"target_lun": \([0-9]*\).*/\1/p' <<< "$info")
  portals=$(sed -n 's/.*"target_portals": \[\([^]]*\)\].*/\1/p' <<< "$info" | tr -d '",')
  [ -n "$portals" ] || portals=$(field target_portal <<< "$info")
  for portal in $portals; do log_in "$iqn" "$portal" "$user" "$password" & done
  wait
  lap "login"
  # shellcheck disable=SC2086 # a portal each
  devices "$iqn" "$lun" $portals
  if [ "$mount" != - ]; then
    blkid -p "/dev/mapper/$wwid" > /dev/null && { echo "not blank" >&2; return 1; }
    mkfs.ext4 -q -m 0 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 "/dev/mapper/$wwid"
    mkdir -p "$mount"
    mount "/dev/mapper/$wwid" "$mount"
  fi
  api POST "/attachments/$attachment/action" '{"os-complete": {}}' > /dev/null
  lap "complete"
  printf '%s\n' "$attachment" "$iqn" "$portals" "$wwid" "${disks[*]}" "$lun" > "$state"
}

again() { # the sessions are there, the disks are not
  local attachment iqn portals lun disks=() wwid
  { read -r attachment; read -r iqn; read -r portals; read -r; read -r; read -r lun; } < "$state"
  # shellcheck disable=SC2086 # a portal each
  devices "$iqn" "$lun" $portals
  printf '%s\n' "$attachment" "$iqn" "$portals" "$wwid" "${disks[*]}" "$lun" > "$state"
}

detach() {
  local attachment iqn portals wwid disks
  { read -r attachment; read -r iqn; read -r portals; read -r wwid; read -r disks; } < "$state"
  if [ "$mount" != - ]; then
    umount "$mount"
    rmdir "$mount"
  fi
  if [ -e "/dev/mapper/$wwid" ]; then
    blockdev --flushbufs "/dev/mapper/$wwid"
    until multipathd del map "$wwid" > /dev/null && [ ! -e "/dev/mapper/$wwid" ]; do sleep 0.1; done
    multipath -w "$wwid" > /dev/null
  fi
  for disk in $disks; do { blockdev --flushbufs "/dev/$disk"; echo 1 > "/sys/block/$disk/device/delete"; } & done
  wait
  for portal in $portals; do
    { iscsiadm -m node -T "$iqn" -p "$portal" --logout > /dev/null; iscsiadm -m node -T "$iqn" -p "$portal" -o delete; } &
  done
  wait
  api DELETE "/attachments/$attachment" > /dev/null
  rm "$state"
}

"$what"
awk -v began="$began" -v ended="$EPOCHREALTIME" 'BEGIN { printf "%.2f\n", ended - began }'
