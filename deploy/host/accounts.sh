#!/bin/sh
# The daemon's user and what belongs to it, as the installation leaves them; a second time it changes nothing.
# Run by `make install` and by the package, as root.
set -e

user=chatglm-ha
state=/var/lib/chatglm-ha

if getent passwd "$user" >/dev/null; then is_new=no; else is_new=yes; fi
systemd-sysusers chatglm-ha.conf

# Only for a new user: whoever takes it out of the group again, because no instance is a container, is not overruled.
if [ "$is_new" = yes ] && getent group docker >/dev/null; then
  usermod --append --groups docker "$user"
  echo "chatglm-ha: the user $user is in the group docker, which is as good as root (docs/security.md)"
fi

# Earlier versions ran as root. Their daemon is stopped first: nothing of root's is to come after the change.
if [ -d "$state" ] && [ "$(stat -c %U "$state")" = root ]; then
  echo "chatglm-ha: the daemon runs as the user $user from now on; what it has written as root is given to it"
  if [ -d /run/systemd/system ] && systemctl --quiet is-active chatglm-ha; then
    systemctl stop chatglm-ha
    touch /run/chatglm-ha.was-active
  fi
  chown -R --no-dereference "$user:$user" "$state"
  if [ -d /var/log/chatglm-ha ]; then chown -R --no-dereference "$user:$user" /var/log/chatglm-ha; fi
fi
systemd-tmpfiles --create chatglm-ha.conf
