#!/bin/sh
# Run a command as the owner of the working folder, so that what it writes there belongs to who started the container.
#
# A folder of root's (and every folder under rootless Docker or Podman, where root is the calling user) stays with root.
set -e
if [ "$(id -u)" = 0 ]; then
    owner=$(stat -c %u .) group=$(stat -c %g .)
    [ "$owner" = 0 ] || exec setpriv --reuid "$owner" --regid "$group" --clear-groups -- "$0" "$@"
fi
mkdir -p "$HOME"
exec "$@"
