#!/bin/sh
# Stands for `lvm` in tests: keeps volume groups as directories below $0's own, prints what LVM prints, and dies or hangs
# before or after the change that the file `trouble` names: "N before", "N after", "N hang".
#   vg/NAME/{tags,disks} · vg/NAME/lv/NAME/{tags,size,segment,pool,full} · pv/DISK (in LVM's hands, in no group)
set -eu
state=$(dirname "$0")
command=$1; shift
echo "$command $*" >> "$state/log"
names=""; tags=""; off=""; select=""; group_name=""; full=""; size=0; pool=""; kind=linear
while [ $# -gt 0 ]; do
  case $1 in
    --yes|--all|--refresh|--nosuffix) ;;
    --config|--reportformat|--units|-o|--activate|--wipesignatures|--extents|--chunksize|--zero|--discards) shift ;;
    --poolmetadatasize) shift ;;
    --select) select=${2#vg_name=}; shift ;;
    --addtag) tags="$tags $2"; shift ;;
    --deltag) off="$off $2"; shift ;;
    --errorwhenfull) full=error; shift ;;
    --virtualsize) size=${2%b}; shift ;;
    --thinpool) pool=$2; shift ;;
    --type) kind=$2; shift ;;
    --name) group_name=$2; shift ;;
    *) names="$names $1" ;;
  esac
  shift
done
list() { # the words of a file, by commas
  tr -s ' \n' ',,' < "$1" | sed 's/^,//; s/,$//'
}
retag() { # a file of tags
  touch "$1"
  for tag in $tags; do grep -qx "$tag" "$1" || echo "$tag" >> "$1"; done
  for tag in $off; do grep -vx "$tag" "$1" > "$1.new" || true; mv "$1.new" "$1"; done
}
report() { # kind, rows
  printf '{"report":[{"%s":[%s]}]}\n' "$1" "$(printf '%s' "$2" | sed 's/,$//')"
}
rows=""
case $command in
  vgs)
    if [ -d "$state/vg/$select" ]; then
      rows="{\"vg_name\":\"$select\",\"vg_uuid\":\"u\",\"vg_tags\":\"$(list "$state/vg/$select/tags")\",\"vg_missing_pv_count\":\"0\"}"
    fi
    report vg "$rows"; exit 0 ;;
  lvs)
    for lv in "$state/vg/$select/lv/"*/; do
      [ -d "$lv" ] || continue
      when=$(cat "$lv/full" 2>/dev/null || echo queue)
      rows="$rows{\"vg_name\":\"$select\",\"vg_tags\":\"$(list "$state/vg/$select/tags")\",\"vg_missing_pv_count\":\"0\",\"lv_name\":\"$(basename "$lv")\",\
\"lv_tags\":\"$(list "$lv/tags")\",\"lv_size\":\"$(cat "$lv/size")\",\"segtype\":\"$(cat "$lv/segment")\",\"pool_lv\":\"$(cat "$lv/pool")\",\
\"lv_active\":\"active\",\"zero\":\"zero\",\"lv_when_full\":\"$when\",\"lv_metadata_size\":\"4096000\",\"lv_kernel_major\":\"253\",\"lv_kernel_minor\":\"7\"},"
    done
    report lv "$rows"; exit 0 ;;
  pvs)
    for disk in "$state/pv/"*; do
      [ -e "$disk" ] && rows="$rows{\"pv_name\":\"/dev/$(basename "$disk")\",\"vg_name\":\"\"},"
    done
    for group in "$state/vg/"*/; do
      [ -d "$group" ] || continue
      for disk in $(cat "$group/disks"); do rows="$rows{\"pv_name\":\"$disk\",\"vg_name\":\"$(basename "$group")\"},"; done
    done
    report pv "$rows"; exit 0 ;;
esac
# A change.
nth=$(($(cat "$state/changes" 2>/dev/null || echo 0) + 1)); echo $nth > "$state/changes"
when=""
read -r at when < "$state/trouble" 2>/dev/null && [ "$at" = "$nth" ] || when=""
[ "$when" = before ] && { echo "killed before" >&2; exit 9; }
[ "$when" = hang ] && sleep 1000
set -- $names
case $command in
  vgcreate)
    name=$1; shift
    [ ! -d "$state/vg/$name" ] || { echo "exists" >&2; exit 5; }
    mkdir -p "$state/pv"; for disk in "$@"; do touch "$state/pv/$(basename "$disk")"; done
    [ "$when" = half ] && { echo "killed half way" >&2; exit 9; }
    mkdir -p "$state/vg/$name/lv"; echo "$@" > "$state/vg/$name/disks"; retag "$state/vg/$name/tags"
    for disk in "$@"; do rm "$state/pv/$(basename "$disk")"; done ;;
  vgchange) retag "$state/vg/$1/tags" ;;
  vgremove)
    [ -z "$(ls "$state/vg/$1/lv")" ] || { echo "has volumes" >&2; exit 5; }
    for disk in $(cat "$state/vg/$1/disks"); do touch "$state/pv/$(basename "$disk")"; done
    rm -r "$state/vg/$1" ;;
  pvremove) for disk in "$@"; do rm "$state/pv/$(basename "$disk")"; done ;;
  lvcreate)
    lv="$state/vg/$1/lv/$group_name"
    [ ! -d "$lv" ] || { echo "exists" >&2; exit 5; }
    if [ "$when" = half ] && [ "$kind" = thin-pool ]; then
      # What lvcreate leaves of a thin pool that it has not put together yet.
      lv="$state/vg/$1/lv/lvol0"; mkdir -p "$lv"; retag "$lv/tags"; echo 1 > "$lv/size"; echo linear > "$lv/segment"; echo > "$lv/pool"
      echo "killed half way" >&2; exit 9
    fi
    mkdir -p "$lv"; retag "$lv/tags"; echo "$size" > "$lv/size"; echo "$kind" > "$lv/segment"; echo "$pool" > "$lv/pool" ;;
  lvchange)
    for name in "$@"; do
      lv="$state/vg/${name%/*}/lv/${name#*/}"
      [ -d "$lv" ] || { echo "no such volume" >&2; exit 5; }
      retag "$lv/tags"; [ -z "$full" ] || echo "$full" > "$lv/full"
    done ;;
  lvremove)
    for name in "$@"; do
      lv="$state/vg/${name%/*}/lv/${name#*/}"
      [ -d "$lv" ] || { echo "no such volume" >&2; exit 5; }
      rm -r "$lv"
    done ;;
  vgmknodes) ;;
  *) echo "what is $command?" >&2; exit 3 ;;
esac
[ "$when" = after ] && { echo "killed after" >&2; exit 9; }
exit 0
