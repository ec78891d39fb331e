#!/bin/sh
# Swift 6 on Debian or Ubuntu without a Swift compiler: a Debian trixie in a folder, with the package swiftlang.
#
#   sudo tools/swift_on_linux.sh setup                 installs it once (1.6 GB; needs debootstrap)
#   sudo tools/swift_on_linux.sh test                  swift test, in this checkout
#   sudo tools/swift_on_linux.sh test --package-path tests/swift/coreml_standin
#   sudo SWIFT=tools/swift_on_linux.sh make test-slow  the Swift tests of the test suite
#
# SWIFT_ROOT is the folder. Every argument except "setup" is passed to swift.
set -eu

root=${SWIFT_ROOT:-/var/lib/berxit-swift}
checkout=$(cd "$(dirname "$0")/.." && pwd)

if [ "${1:-}" = setup ]; then
    debootstrap --variant=minbase --include=ca-certificates trixie "$root" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
    # swiftlang does not depend on the headers of the C library, which every Swift program needs.
    chroot "$root" apt-get install -y --no-install-recommends swiftlang swiftlang-dev libc6-dev libstdc++-14-dev git
    # Through this script, because swift finds its libraries in /proc.
    SWIFT_ROOT=$root exec "$checkout/tools/swift_on_linux.sh" --version
fi

if [ ! -L "$root/usr/bin/swift" ]; then
    echo "swift is not installed in $root: run 'sudo $0 setup' first, or set SWIFT_ROOT" >&2
    exit 1
fi
mkdir -p "$root$checkout" "$root/tmp"
# The mounts exist only for this command: in its own mount namespace.
exec unshare --mount sh -euc '
    root=$1 checkout=$2 place=$3
    shift 3
    mount --bind "$checkout" "$root$checkout"
    mount --bind /tmp "$root/tmp"
    mountpoint -q "$root/proc" || mount --bind /proc "$root/proc"
    mountpoint -q "$root/dev" || mount --rbind /dev "$root/dev"
    exec chroot "$root" /usr/bin/env --chdir="$place" HOME=/root swift "$@"
' sh "$root" "$checkout" "$PWD" "$@"
