# A container as the kubelet would make it: run on a node, in a fresh mount namespace.
#
# container.sh BINARIES "SOURCE=TARGET ..." CAPABILITIES COMMAND...
#
# The root file system is read-only but for the mounts given. CAPABILITIES is `all` for a
# privileged container; else a list as setpriv takes it, no others can ever be gained, and
# /proc/sys is read-only.
set -eu
binaries=$1 mounts=$2 capabilities=$3
shift 3

root=$(mktemp -d /run/container.XXXXXX)
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p app init dev proc sys run tmp usr var etc/alternatives
for directory in bin sbin lib lib64; do
    if [ -L "/$directory" ]; then
        cp -P "/$directory" .
    elif [ -d "/$directory" ]; then
        mkdir "$directory"
        mount --bind "/$directory" "$directory"
        mount -o remount,ro,bind "$directory"
    fi
done
mount --bind /usr usr
mount -o remount,ro,bind usr
mount --bind "$(readlink -f /etc/alternatives)" etc/alternatives
mount --rbind /dev dev
mount --rbind /proc proc
mount --rbind /sys sys
ln -s ../run var/run

# The image's files, by the names that existing pod specs execute.
cp "$binaries/ipamd" app/ipamd
for name in aws-vpc-cni aws-k8s-agent grpc-health-probe; do
    ln -s ipamd "app/$name"
done
cp "$binaries/aws-cni" init/aws-cni
ln -s /app/ipamd init/aws-vpc-cni-init
for plugin in /usr/lib/cni/loopback /usr/lib/cni/portmap; do
    [ ! -e "$plugin" ] || cp "$plugin" init/
done

for mount in $mounts; do
    source=${mount%%=*} target=.${mount#*=}
    if [ -d "$source" ]; then
        mkdir -p "$target"
    else
        mkdir -p "$(dirname "$target")"
        touch "$target"
    fi
    mount --bind "$source" "$target"
done
mount -o remount,ro,bind "$root"

if [ "$capabilities" = all ]; then
    exec chroot . "$@"
fi
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
exec chroot . setpriv --bounding-set "-all,$capabilities" --inh-caps=-all --ambient-caps=-all \
    --no-new-privs -- "$@"
