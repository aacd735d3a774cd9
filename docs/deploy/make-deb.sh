#!/usr/bin/env bash
# Makes a Debian package of a binary: docs/deploy/make-deb.sh target/release/orchestratord [FOLDER]
# Prints the package's path. Needs dpkg-deb, gzip; with dpkg-shlibdeps (dpkg-dev) its dependencies are found, else they are the C library.
set -euo pipefail

binary=$(realpath "${1:?the binary}")
out=$(realpath "${2:-.}")
cd "$(dirname "$0")/../.."
version=$("$binary" --version | cut -d' ' -f2)
architecture=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root="$work/orchestratord"

install -Dm755 "$binary" "$root/usr/bin/orchestratord"
# Without names of lines: they are for whoever builds it.
if command -v strip >/dev/null; then strip --strip-unneeded "$root/usr/bin/orchestratord"; fi
install -Dm644 LICENSE-MIT "$root/usr/share/doc/orchestratord/copyright"
install -Dm644 README.md "$root/usr/share/doc/orchestratord/README.md"
install -Dm644 docs/operating.md "$root/usr/share/doc/orchestratord/operating.md"
install -d "$root/lib/systemd/system" "$root/usr/share/man/man1" "$root/etc/orchestratord" "$root/DEBIAN"
sed 's#/usr/local/bin/orchestratord#/usr/bin/orchestratord#; s#^\# orchestratord under systemd\..*#\# Settings: /etc/orchestratord/orchestratord.toml; keys: /etc/orchestratord/keys.#; /^\# \/etc\/orchestratord\/orchestratord.toml and keys/d' \
  docs/deploy/orchestratord.service >"$root/lib/systemd/system/orchestratord.service"
"$binary" man | gzip -9n >"$root/usr/share/man/man1/orchestratord.1.gz"
for shell in bash:bash-completion/completions/orchestratord zsh:zsh/vendor-completions/_orchestratord fish:fish/vendor_completions.d/orchestratord.fish; do
  install -d "$root/usr/share/$(dirname "${shell#*:}")"
  "$binary" completions "${shell%%:*}" >"$root/usr/share/${shell#*:}"
done
cat >"$root/etc/orchestratord/orchestratord.toml" <<'TOML'
# Settings; `orchestratord config check` lists them all. Keys (ORCH_API_KEYS=…) belong into /etc/orchestratord/keys.
# listen = "127.0.0.1:8080"
# gateway_listen = "127.0.0.1:8081"
# model = "/srv/models/NAME.gguf"
TOML
chmod 644 "$root/etc/orchestratord/orchestratord.toml"
echo /etc/orchestratord/orchestratord.toml >"$root/DEBIAN/conffiles"

depends=libc6
if command -v dpkg-shlibdeps >/dev/null; then
  mkdir -p "$work/debian" && printf 'Source: orchestratord\n' >"$work/debian/control"
  depends=$(cd "$work" && dpkg-shlibdeps -O -e"$root/usr/bin/orchestratord" 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
fi
cat >"$root/DEBIAN/control" <<CONTROL
Package: orchestratord
Version: $version
Architecture: $architecture
Maintainer: the orchestratord authors <orchestratord@localhost>
Depends: ${depends:-libc6}
Installed-Size: $(du -ks "$root" | cut -f1)
Section: net
Priority: optional
Description: LLM inference server that keeps its promises
 Tasks go into a bounded queue, tokens come back as server-sent events. Clients are
 told their place, their start and the chance of making their deadline; output is
 deterministic; overload is refused at once.
CONTROL
# Restarts belong to whoever runs the server: streams may be running.
cat >"$root/DEBIAN/postinst" <<'POST'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
POST
chmod 755 "$root/DEBIAN/postinst"
package="$out/orchestratord_${version}_${architecture}.deb"
dpkg-deb --root-owner-group -Z"${COMPRESSION:-xz}" --build "$root" "$package" >/dev/null
echo "$package"
