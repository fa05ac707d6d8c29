#!/bin/busybox sh
# shellcheck shell=dash
#
# The first process of the lab's outer machine; lab.sh packs it as /init.
#
# It makes the machine look like the one outside: the same files under the same
# paths, read over 9p, with a tmpfs on top that takes all writes. Then it runs
# the command that lab.sh left in the control directory and powers off.
#
# It talks to lab.sh through the control directory, a writable 9p share:
#   job.sh          in: a bash script that becomes the command
#   out-path        in: where LAB_OUT has to appear
#   stdout, stderr  out: the command's output, appended as it comes
#   pulse           out: written anew every few seconds, as long as time passes here
#   status          out: the command's exit status, written last and by rename;
#                   without it, lab.sh reports that the machine died
#
# Usage: none by hand. It takes no options, reads no environment, and never exits.

if [ "$$" -ne 1 ]; then
    echo "lab-init.sh is the first process of the machine that lab.sh starts; run lab.sh --help" >&2
    [ "${1:-}" = --help ] && exit 0
    exit 2
fi

# Every program here is an applet of the one busybox in the image.
bb() {
    /bin/busybox "$@"
}

# Ends the machine without a status, with the reason as the console's last line.
fail() {
    echo "lab-init: $*" >/dev/console
    bb poweroff -f
}

bb mkdir -p /proc /sys /dev /lower /rw /root
bb mount -t proc proc /proc
bb mount -t sysfs sysfs /sys
bb mount -t devtmpfs devtmpfs /dev 2>/dev/null # the kernel may have done so

# Waits until the kernel has measured the time-stamp counter a second time, about two seconds after
# its start. KVM keeps the frequency that it finds when it is loaded. If that is the first measure and
# is more than 250 ppm off, which it is on a busy host, KVM says "user requested TSC rate below
# hardware speed" (kvm_set_tsc_khz, Linux 6.1), and the timers of its guests do not fire.
await_tsc() {
    tries=0
    while [ "$(bb cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" = tsc-early ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 1000 ] || fail "the time-stamp counter was not calibrated in 20 s"
        bb usleep 20000
    done
}

while read -r module; do
    case $module in
        '' | '#'*) continue ;;
        */kvm.ko) await_tsc ;;
    esac
    bb insmod "$module" || fail "cannot load $module"
done </etc/guest-agent/modules

# cache=loose lets the guest keep what it has read. The share is read-only here
# and what lies outside is not expected to change while the command runs.
bb mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=512000 lab-root /lower ||
    fail "cannot mount the outer root"
bb mount -t tmpfs -o mode=0755 tmpfs /rw
bb mkdir /rw/upper /rw/work
bb mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /root ||
    fail "cannot put a writable layer over the outer root"

bb mount -t proc proc /root/proc
bb mount -t sysfs sysfs /root/sys
bb mount -t devtmpfs devtmpfs /root/dev
bb mkdir -p /root/dev/pts /root/dev/shm
bb mount -t devpts -o mode=0620,ptmxmode=0666 devpts /root/dev/pts
bb mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
[ -e /root/dev/fd ] || bb ln -s /proc/self/fd /root/dev/fd
[ -e /root/dev/stdin ] || bb ln -s /proc/self/fd/0 /root/dev/stdin
[ -e /root/dev/stdout ] || bb ln -s /proc/self/fd/1 /root/dev/stdout
[ -e /root/dev/stderr ] || bb ln -s /proc/self/fd/2 /root/dev/stderr
bb mount -t tmpfs -o mode=0755 tmpfs /root/run

# Sockets and guest memory go here: 9p can hold neither, and a tmpfs keeps the
# pages of a restored guest where its VMM can map them.
bb mkdir -p /root/run/lab-tmp /root/run/lab-control
bb mount -t tmpfs -o mode=0700,size=80% tmpfs /root/run/lab-tmp
bb mkdir -m 0700 /root/run/lab-tmp/xdg-runtime

# What is written to the control directory must be outside at once.
bb mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=512000 lab-control /root/run/lab-control ||
    fail "cannot mount the control directory"
control=/root/run/lab-control

out=/root$(bb cat "$control/out-path")
bb mkdir -p "$out"
bb mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=512000 lab-out "$out" ||
    fail "cannot mount LAB_OUT"

bb ip link set lo up
bb hostname lab
bb chmod 0666 /dev/kvm /dev/vhost-vsock 2>/dev/null || fail "no /dev/kvm or no /dev/vhost-vsock"

# The command gets pipes, not the files, so that reopening /dev/stdout works.
bb mkfifo /rw/stdout /rw/stderr
bb cat </rw/stdout >>"$control/stdout" &
relay_out=$!
bb cat </rw/stderr >>"$control/stderr" &
relay_err=$!

# lab.sh watches this file: when this machine's clock stops, nothing inside can notice.
while bb cut -d ' ' -f 1 /proc/uptime >"$control/pulse" && bb sleep 5; do :; done &

echo "lab-init: ready after $(bb cut -d ' ' -f 1 /proc/uptime) s" >/dev/console
# In a subshell, so that this shell's message about a death by signal goes to
# the console instead of the command's standard error.
(
    exec /bin/busybox setsid /bin/busybox chroot /root \
        /bin/bash --norc --noprofile /run/lab-control/job.sh
) </dev/null >/rw/stdout 2>/rw/stderr
status=$?

# Processes that the command left running hold the pipes open, and the relays
# would wait for them. A signal to a kernel thread has no effect.
for dir in /proc/[0-9]*; do
    pid=${dir#/proc/}
    case $pid in
        1 | "$relay_out" | "$relay_err") continue ;;
    esac
    kill -9 "$pid" 2>/dev/null
done
wait "$relay_out" "$relay_err"

echo "$status" >"$control/status.new"
bb mv "$control/status.new" "$control/status"
bb umount "$out"
bb poweroff -f
