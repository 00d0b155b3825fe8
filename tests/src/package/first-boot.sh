# Runs in a freshly started machine as root: a disk from nothing to the service, and what must hold then.
set -eux
now() { timeout 60 sh -c "until $1; do sleep 0.1; done"; }

# Without a disk nothing fails.
backstay doctor

truncate -s 64M /srv/db.img
device=$(backstay attach /srv/db.img --name db)
mkfs.ext4 -q "$device"
backstay detach db
mkdir /mnt/db /mnt/hand
echo 'db /mnt/db backstay fs=ext4,_netdev,x-systemd.requires=backstay-disk@db.service 0 0' >>/etc/fstab
cat >>/etc/backstay/backstay.toml <<'T'
interval = "1h"
consistency = "application"
[disk.db.hooks]
pre = ["runuser -u nobody -- true"]
freeze = ["/mnt/db"]
T
systemctl daemon-reload
systemctl enable backstay-disk@db backstay-sidecar

# The line of fstab has the driver started; everyone sees what it mounts.
systemctl start mnt-db.mount
systemctl is-active backstay-disk@db
mountpoint /mnt/db
[ -f /run/backstay/db/mnt/disk ]
echo one >/mnt/db/one

# A vault is made when somebody says so.
backstay vault init

# The confined sidecar makes an application-consistent point: it reads the backing, freezes, runs hooks.
systemctl start backstay-sidecar
now 'backstay --json points db | grep -q \"application'
backstay verify db
backstay doctor db

# An upgrade takes the new sidecar and leaves the driver alone; the doctor says so.
driver=$(systemctl show --property MainPID --value backstay-disk@db)
sidecar=$(systemctl show --property MainPID --value backstay-sidecar)
dpkg --force-unsafe-io --install /root/backstay.deb
[ "$(systemctl show --property MainPID --value backstay-disk@db)" = "$driver" ]
[ "$(systemctl show --property MainPID --value backstay-sidecar)" != "$sidecar" ]
systemctl is-active backstay-sidecar
cat /mnt/db/one
backstay doctor db | grep -q '^warning  db .*program that was replaced'

# Killed, it comes back, and nobody noticed.
systemctl kill --signal=KILL backstay-sidecar
echo two >/mnt/db/two
now 'systemctl is-active backstay-sidecar'

# To stop the driver unmounts first.
systemctl stop backstay-disk@db
! mountpoint /mnt/db
[ "$(systemctl show --property Result --value backstay-disk@db)" = success ]

# What was mounted by hand is unmounted as soon as nobody uses it; until then the disk is served.
systemctl start backstay-disk@db
mount "$(backstay attach --name db)" /mnt/hand
mkfifo /mnt/hand/user
(cd /mnt/hand && exec cat user) &
cat="$!"
systemctl stop --no-block backstay-disk@db
now 'systemctl show --property ActiveState --value backstay-disk@db | grep -q deactivating'
echo three >/mnt/hand/three
kill "$cat"
wait "$cat" || true
systemctl stop backstay-disk@db
! mountpoint /mnt/hand
[ "$(systemctl show --property Result --value backstay-disk@db)" = success ]
! losetup --list | grep -q /run/backstay

# The confined gateway stands before a vault; a disk ships through it with a certificate.
pki=/srv/pki
backstay pki init $pki --no-passphrase
backstay pki issue $pki gw --server --ip 127.0.0.1
backstay pki issue $pki here --role source --disk far
cat >>/etc/backstay/backstay.toml <<T
[gateway]
listen = "127.0.0.1:9443"
store = "file:///var/backups/behind"
cert = "$pki/issued/gw.pem"
client_ca = "$pki/ca.crt"
revoked = "$pki/revoked.crl"
T
cat >/srv/source.toml <<T
vault = "https://127.0.0.1:9443"
[store]
client_cert = "$pki/issued/here.pem"
ca_file = "$pki/ca.crt"
T
backstay vault init --vault file:///var/backups/behind
systemctl start backstay-gateway
truncate -s 16M /srv/far.img
device=$(backstay attach /srv/far.img --name far)
mkfs.ext4 -q "$device"
backstay --config /srv/source.toml cycle far
backstay detach far
systemctl stop backstay-gateway
[ "$(systemctl show --property Result --value backstay-gateway)" = success ]
backstay verify far --vault file:///var/backups/behind

# As it is when the machine is switched off.
systemctl start mnt-db.mount
echo four >/mnt/db/four
mount -t backstay db /mnt/hand
