#!/bin/sh
# Runs in the virtual machine, started by systemd: every test of the list beside this file, two at once,
# each a process of its own with a time limit. What it prints is read by report.rs.
here=/mnt
. $here/environment

# One test: its number, its place, its directory, its executable and its name.
run_one() {
    number=$1 place=$2 dir=$3 executable=$4 name=$5
    case $place in
        root) echo 0 > /sys/fs/cgroup/cgroup.procs ;;
        # Where systemd's unit begins; the first test that makes a cgroup moves us to a leaf below.
        unit) export LONGSHORE_TEST_CGROUP="$UNIT" ;;
    esac
    cd "$dir" || exit 255
    output=$(mktemp)
    # Where a test says that this machine lacks what it needs.
    LONGSHORE_SKIPPED=$(mktemp)
    export LONGSHORE_SKIPPED
    began=$(cut -d ' ' -f 1 /proc/uptime)
    timeout --kill-after 5 "$TIME_LIMIT" "$executable" --exact "$name" --nocapture > "$output" 2>&1 < /dev/null
    status=$?
    ended=$(cut -d ' ' -f 1 /proc/uptime)
    # In one piece: the other worker prints too.
    {
        flock 9
        if [ $status -eq 0 ] && [ -s "$LONGSHORE_SKIPPED" ]; then
            echo "@skipped $number $(head -n 1 "$LONGSHORE_SKIPPED")"
        elif [ $status -eq 0 ]; then
            echo "@passed $number $began $ended"
        else
            echo "@failed $number $began $ended $status"
            tail -n 200 "$output" | sed 's/^/|/'
            echo "@end"
        fi
    } 9> /run/longshore-tests.lock
    rm -f "$output" "$LONGSHORE_SKIPPED"
}

if [ "$1" = one ]; then
    shift
    run_one "$@"
    exit 0
fi

# The executables have paths compiled in, so everything is seen where it was built.
for dir in $DIRECTORIES; do
    mkdir -p "$dir"
    mount --bind "$here/files$dir" "$dir"
done
echo "@booted $(cut -d ' ' -f 1 /proc/uptime) $(uname -r)"

if grep -q longshore.shell /proc/cmdline; then
    stty sane rows "$ROWS" cols "$COLUMNS" 2> /dev/null
    cd "$REPOSITORY" || exit
    echo "Tests: sh /mnt/guest.sh one 0 root \$PWD EXECUTABLE TEST; the executables:"
    cut -d ' ' -f 4 $here/tests | sort -u
    exec setsid --ctty --wait bash -i
fi
# The cgroup that systemd delegated to us.
UNIT=$(sed -n 's/^0:://p' /proc/self/cgroup)
export UNIT
xargs -P 2 -L 1 sh $here/guest.sh one < $here/tests
# On a line of its own, whatever was written last; stty returns when all of it has been sent.
printf '\n@done\n'
stty sane 2> /dev/null
