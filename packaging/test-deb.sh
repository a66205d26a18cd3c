#!/usr/bin/env bash
# Installs, starts, upgrades, downgrades, removes and purges the package in a fresh Debian in a chroot. Needs root, debootstrap and a
# Debian mirror; .ci/run calls it. Usage: packaging/test-deb.sh PACKAGE.deb [CHROOT that debootstrap made]
set -euo pipefail
package=$(realpath "${1:?usage: test-deb.sh PACKAGE.deb [CHROOT]}")
work=$(mktemp -d)
root=${2:-$work/root}
finish() {
    for at in dev/null dev/urandom proc; do umount "$root/$at" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
say() { printf '\n== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
there() { for path; do [ -e "$root$path" ] || fail "$path is missing"; done; }
gone() { for path; do [ ! -e "$root$path" ] || fail "$path is still there"; done; }
owned() { [ "$(inside stat -c '%U:%G:%a' "$1")" = "$2" ] || fail "$1 is $(inside stat -c '%U:%G:%a' "$1"), not $2"; }
installed() { inside dpkg-query -W -f '${Version}' mlsecd; }

if [ ! -d "$root/usr" ]; then
    say "a fresh Debian"
    debootstrap --variant=minbase --include=python3,systemd-standalone-sysusers,systemd-standalone-tmpfiles \
        bookworm "$root" >"$work/debootstrap.log" 2>&1 || { tail -20 "$work/debootstrap.log"; exit 1; }
fi
mount -t proc proc "$root/proc"
for node in null urandom; do
    [ -e "$root/dev/$node" ] || touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done

say "an older and a newer revision of the package"
dpkg-deb --raw-extract "$package" "$work/tree"
old=$(sed -n 's/^Version: //p' "$work/tree/DEBIAN/control")
sed -i "s/^Version: .*/Version: $old+next/" "$work/tree/DEBIAN/control"
echo "# the newer package's" >>"$work/tree/etc/mlsecd/mlsecd.toml"
dpkg-deb --root-owner-group -Zzstd -z1 --build "$work/tree" "$root/new.deb" >/dev/null
rm -rf "$work/tree"
cp "$package" "$root/old.deb"

say "install"
inside dpkg -i /old.deb
[ "$(installed)" = "$old" ] || fail "$(installed) is installed"
there /opt/mlsecd/venv/bin/mlsecd /usr/lib/systemd/system/mlsecd.service /usr/share/man/man8/mlsecd.8.gz \
    /usr/share/bash-completion/completions/mlsecd /usr/share/doc/mlsecd/copyright
inside id mlsecd >/dev/null || fail "there is no user mlsecd"
owned /var/lib/mlsecd mlsecd:mlsecd:700
owned /var/log/mlsecd mlsecd:mlsecd:750
inside mlsecd --version | grep -q '^mlsecd ' || fail "mlsecd --version"
inside mlsecd check-config | grep -q ': fine:' || fail "mlsecd check-config"
if grep -rIl "$(dirname "$package")\|/tmp/tmp" "$root/opt/mlsecd/venv/bin" | grep .; then fail "a script names the place of the build"; fi

say "start it by hand, as the unit's user, and stop it"
run() { inside setpriv --reuid mlsecd --regid mlsecd --init-groups --no-new-privs "$@"; }
run env NUMBA_CACHE_DIR=/var/lib/mlsecd/numba mlsecd run --set web.listen=127.0.0.1:19847 --log-format json 2>"$work/daemon.log" &
for _ in $(seq 120); do grep -q '"event":"ready"\|"event": "ready"' "$work/daemon.log" && break; sleep 0.5; done
grep -q '"ready"' "$work/daemon.log" || { cat "$work/daemon.log"; fail "it does not start"; }
inside python3 -c 'import urllib.request as u; assert b"mlsecd_build_info" in u.urlopen("http://127.0.0.1:19847/metrics").read()'
kill -TERM "$(pgrep -n -P $! -f 'mlsecd run' || echo $!)"
wait $! || fail "it did not end well: $(tail -3 "$work/daemon.log")"
run mlsecd log verify >/dev/null || fail "the log does not verify"
there /var/lib/mlsecd/state.snapshot

say "a wrong configuration is one line and exit code 2"
code=0
told=$(run mlsecd check-config --set web.lissen=1 2>&1) || code=$?
[ "$code" = 2 ] && [ "$(wc -l <<<"$told")" = 1 ] || fail "exit code $code: $told"

say "upgrade: what the operator wrote and what was found stays"
echo "# mine" >>"$root/etc/mlsecd/mlsecd.toml"
inside dpkg --force-confold -i /new.deb
[ "$(installed)" = "$old+next" ] || fail "$(installed) is installed"
grep -q '^# mine$' "$root/etc/mlsecd/mlsecd.toml" || fail "the configuration was replaced"
there /var/lib/mlsecd/state.snapshot

say "downgrade: the same"
inside dpkg --force-confold -i /old.deb
[ "$(installed)" = "$old" ] || fail "$(installed) is installed"
grep -q '^# mine$' "$root/etc/mlsecd/mlsecd.toml" || fail "the configuration was replaced"
run mlsecd check-config >/dev/null || fail "mlsecd check-config"
there /var/lib/mlsecd/state.snapshot

say "remove: the program goes, configuration, state and log stay"
run sh -c 'echo "{}" >/var/log/mlsecd/kept.jsonl'
inside dpkg -r mlsecd
gone /opt/mlsecd /usr/bin/mlsecd /usr/lib/systemd/system/mlsecd.service
there /etc/mlsecd/mlsecd.toml /var/lib/mlsecd/state.snapshot /var/log/mlsecd/kept.jsonl

say "purge: all goes but the evidence"
inside dpkg -P mlsecd
gone /etc/mlsecd /var/lib/mlsecd /var/cache/mlsecd
there /var/log/mlsecd/kept.jsonl
inside dpkg -s mlsecd >/dev/null 2>&1 && fail "dpkg still knows it"
echo
echo "the package installs, runs, upgrades, downgrades, goes and is purged"
