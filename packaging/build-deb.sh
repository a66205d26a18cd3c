#!/usr/bin/env bash
# Builds the Debian package: packaging/build-deb.sh OUTPUT_DIRECTORY [REVISION]
#
# The virtual environment is the distribution's own Python with mlsecd and its dependencies as wheels, and stands where it will be
# run, /opt/mlsecd/venv: the units name that path. It is made below a staging directory and its scripts are pointed at the
# final one, so that building needs no root and touches nothing of this machine.
set -euo pipefail
out=$(realpath "${1:?usage: build-deb.sh OUTPUT_DIRECTORY [REVISION]}")
revision=${2:-1}
here=$(cd "$(dirname "$0")/.." && pwd)
python=${DEB_PYTHON:-/usr/bin/python3}
pip=${PIP:-$here/.venv/bin/pip}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/pyproject.toml" | head -1)
minor=$("$python" -c 'import sys; print(sys.version_info.minor)')

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
chmod 0755 "$stage"
umask 022
venv=$stage/opt/mlsecd/venv
"$python" -m venv --without-pip "$venv"
PIP_DISABLE_PIP_VERSION_CHECK=1 "$pip" --python "$venv/bin/python" install --quiet --no-compile "$here[web]"
find "$venv" -name __pycache__ -type d -prune -exec rm -rf {} +
# scripts name the interpreter by the path that they were made under
grep -rlI --exclude-dir=lib "$stage" "$venv" | xargs -r sed -i "s#$stage##g"
rm -f "$venv"/bin/[aA]ctivate*

put() { install -D -m "$1" "$here/$2" "$stage/$3"; }
put 0644 systemd/mlsecd.service usr/lib/systemd/system/mlsecd.service
put 0644 systemd/mlsecd.socket usr/lib/systemd/system/mlsecd.socket
put 0644 systemd/mlsecd.sysusers usr/lib/sysusers.d/mlsecd.conf
put 0644 systemd/mlsecd.tmpfiles usr/lib/tmpfiles.d/mlsecd.conf
put 0644 config/mlsecd.toml etc/mlsecd/mlsecd.toml
put 0644 packaging/mlsecd.bash usr/share/bash-completion/completions/mlsecd
put 0644 packaging/_mlsecd usr/share/zsh/vendor-completions/_mlsecd
put 0644 packaging/mlsecd.8 usr/share/man/man8/mlsecd.8
put 0644 packaging/debian/copyright usr/share/doc/mlsecd/copyright
put 0644 CHANGELOG.md usr/share/doc/mlsecd/changelog
put 0644 systemd/README.md usr/share/doc/mlsecd/README.systemd.md
gzip -9n "$stage/usr/share/man/man8/mlsecd.8" "$stage/usr/share/doc/mlsecd/changelog"
examples=$stage/usr/share/doc/mlsecd/examples
install -d "$examples" "$stage/usr/bin"
cp -r "$here/config/prometheus" "$here/config/alertmanager" "$here/grafana" "$here/systemd/mlsecd.service.d" "$examples/"
cp "$here/config/web.yml" "$examples/"
chmod -R u=rwX,go=rX "$examples"
ln -s /opt/mlsecd/venv/bin/mlsecd "$stage/usr/bin/mlsecd"

install -d "$stage/DEBIAN"
install -m 0755 "$here"/packaging/debian/{postinst,prerm,postrm} "$stage/DEBIAN/"
echo /etc/mlsecd/mlsecd.toml >"$stage/DEBIAN/conffiles"
cat >"$stage/DEBIAN/control" <<END
Package: mlsecd
Version: $version-$revision
Architecture: $(dpkg --print-architecture)
Maintainer: The mlsecd authors <mlsecd@mlsecd.example>
Installed-Size: $(du -ks --exclude=DEBIAN "$stage" | cut -f1)
Depends: python3 (>= 3.$minor), python3 (<< 3.$((minor + 1))), systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles
Section: admin
Priority: optional
Description: security monitoring of machine-learning services while they run
 mlsecd watches a host that serves models on GPUs: GPU samples, processes and
 inference requests joined on one host, scored for model extraction, drift and
 abuse of the GPU. Findings go to Prometheus and to a tamper-evident log.
END
mkdir -p "$out"
dpkg-deb --root-owner-group -Zzstd -z3 --build "$stage" "$out" >&2
echo "$out/mlsecd_${version}-${revision}_$(dpkg --print-architecture).deb"
