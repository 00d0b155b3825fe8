# Runs in the machine after it was switched off and on again.
set -eux

mountpoint /mnt/db
systemctl is-active backstay-disk@db backstay-sidecar
[ "$(cat /mnt/db/one /mnt/db/two /mnt/db/three /mnt/db/four | tr '\n' ' ')" = 'one two three four ' ]
# The last shutdown was clean: what is dirty is known exactly.
backstay --json status db | grep -q '"found": "clean"'

# The package is not removed from under a disk in use.
! dpkg --remove backstay
mountpoint /mnt/db
systemctl is-active backstay-sidecar

systemctl stop backstay-disk@db
dpkg --remove backstay
[ -e /etc/backstay/backstay.toml ]
! systemctl is-active backstay-sidecar
# Points and what is known of the disk are nobody's to delete.
dpkg --purge backstay
[ ! -e /etc/backstay ]
[ -d /var/lib/backstay/vault ] && [ -d /var/lib/backstay/db ]
