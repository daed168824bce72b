# Ends and removes what a cluster has left, once standard input ends: whoever held the other side of
# the pipe has finished or died. Reads "netns NAME", "link NAME", "umount DIR", "empty DIR" and
# "remove DIR" lines.
set -u
netns= links= mounts= dirs= removed=
while read -r kind name; do
    case $kind in
        netns) netns="$netns $name" ;;
        link) links="$links $name" ;;
        umount) mounts="$mounts $name" ;;
        empty) dirs="$dirs $name" ;;
        remove) dirs="$dirs $name" removed="$removed $name" ;;
    esac
done

# Every process of the cluster works in one of its directories; a shell that was left there is spared.
members() {
    for proc in /proc/[0-9]*; do
        read -r program <"$proc/comm" || continue
        case $program in postgres | pgherd-* | pg_* | pgbouncer | pgpool | haproxy | patroni | etcd) ;; *) continue ;; esac
        cwd=$(readlink "$proc/cwd") || continue
        for dir in $dirs; do
            case $cwd/ in "$dir"/*) echo "${proc#/proc/} $program" ;; esac
        done
    done 2>/dev/null
}

# On a frozen file system nobody dies.
for at in $mounts; do fsfreeze --unfreeze "$at"; done 2>/dev/null

# Agents and proxies first, so that nobody starts a server again. Then an immediate stop of the
# servers, in which a postmaster gives back its shared memory, and of pgpool, which does the same.
# Then whatever is left.
round=0
while found=$(members); [ -n "$found" ] && [ $round -lt 100 ]; do
    others=$(echo "$found" | sed -n '/ postgres$/d; / pgpool$/d; s/ .*//p')
    servers=$(echo "$found" | sed -n 's/ postgres$//p; s/ pgpool$//p')
    if [ -n "$others" ]; then kill -KILL $others
    elif [ $round -ge 60 ]; then kill -KILL $servers
    else kill -QUIT $servers; kill -CONT $servers
    fi
    round=$((round + 1))
    sleep 0.05
done 2>/dev/null

# A server that was killed before could not give back its System V segment.
for dir in $dirs; do
    for file in "$dir"/*/data/postmaster.pid; do
        [ -f "$file" ] && ipcrm -m "$(sed -n '7s/.* //p' "$file")"
    done
done 2>/dev/null

for link in $links; do ip link del "$link"; done 2>/dev/null
for name in $netns; do ip netns del "$name"; done 2>/dev/null
# Whoever still uses it was not ours; it goes with the last of them.
for at in $mounts; do umount "$at" || umount --lazy "$at"; done 2>/dev/null
for dir in $dirs; do find "$dir" -mindepth 1 -delete; done
for dir in $removed; do rmdir "$dir"; done
