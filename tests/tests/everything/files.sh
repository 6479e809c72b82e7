# Everything that a MooseFS client and its tools can ask of a master, once: in the folder $HERE of the mount $MOUNT.
# $TAG tells the names of storage classes of one run from those of another.
set -e
cd "$HERE"
mkdir -p dir/sub setgid; chown 0:7 setgid; chmod 2775 setgid; mkdir setgid/inherit
mkfifo dir/fifo; mknod dir/char c 1 3; mknod dir/block b 7 0
perl -MSocket -e 'socket(my $s, PF_UNIX, SOCK_STREAM, 0); bind($s, sockaddr_un("dir/socket")) or die $!'
ln -s target dir/link; printf content > dir/file; ln dir/file dir/hard
printf x > 'dir/na,me (odd)%'; printf x > $'dir/\xff\x01|:'
mv dir/hard dir/sub/moved; printf a > dir/over; printf b > dir/onto; mv dir/over dir/onto
mkdir dir/empty dir/gone; rmdir dir/gone; mv dir/empty dir/renamed
cat dir/file > /dev/null; ls -l dir > /dev/null
chmod 600 dir/file; chown 5:6 dir/file; touch -d 2001-02-03 dir/file; touch -a dir/file
truncate -s 100000 dir/file; truncate -s 10 dir/file; printf more >> dir/file
truncate -s 200M dir/large; printf far | dd of=dir/large bs=1M seek=150 conv=notrunc status=none
printf near | dd of=dir/large conv=notrunc status=none
truncate -s 160000000 dir/large; truncate -s 10M dir/large

setfattr -n user.a -v value dir/file; setfattr -n user.b -v $'\x01,(%' dir/file; setfattr -n user.a -v other dir/file
setfattr -x user.b dir/file; setfattr -n trusted.c -v 1 dir
# An ACL as the kernel has it: version 2, then tag, permissions and id of each entry.
acl() {
    perl -e '$h = "02000000"; for (split / /, $ARGV[0]) { ($t, $p, $i) = split /:/;
        $h .= unpack "H*", pack "vvV", hex $t, $p, $i eq "" ? 0xffffffff : $i } print "0x$h"' "$1"
}
setfattr -n system.posix_acl_access -v $(acl '1:6 2:5:5 4:4 10:5 20:4') dir/onto; chmod 640 dir/onto
setfattr -n system.posix_acl_default -v $(acl '1:7 4:5 8:6:9 10:7 20:5') dir/sub
mkdir dir/sub/acl; printf x > dir/sub/inherits; setfattr -x system.posix_acl_default dir/sub/acl

mfssetgoal 3 dir/file; mfssetgoal -r 2+ dir; mfssetgoal -r 2- dir
mfsscadmin "$MOUNT" create -K '*,*' -C A,B -A '*' -d 1 -m strict one$TAG
mfsscadmin "$MOUNT" create '*,*,*' three$TAG; mfsscadmin "$MOUNT" copy one$TAG two$TAG
mfsscadmin "$MOUNT" rename two$TAG second$TAG; mfsscadmin "$MOUNT" modify -K '*,*,*' second$TAG
mfsscadmin "$MOUNT" modify -f -K '*,*' 5; mfsscadmin "$MOUNT" delete three$TAG
mfssetsclass -r one$TAG dir; mfsxchgsclass -r one$TAG second$TAG dir/sub; mfssetgoal -r 2 dir; mfssetgoal 2 setgid
mfssettrashtime 3600 dir/file; mfssettrashtime -r 7200+ dir; mfssettrashtime -r 7200- dir
mfsseteattr -f noattrcache dir; mfsseteattr -r -f noowner -f noentrycache dir; mfsdeleattr -r -f noentrycache dir
mkdir quota; mfssetquota -I 50 -l 1000 -p 1h quota; mfssetquota -i 1 -S 100Mi quota
mkdir other; mfscopyquota quota other; mfsdelquota -a other
printf '%2000d' 1 > quota/a; printf x > quota/b

mfsmakesnapshot dir copy; printf changed > dir/onto; printf new > dir/new; mfsmakesnapshot -o dir copy
mfsmakesnapshot -p dir hardlinks; mfsmakesnapshot -c dir/file copied; mfsmakesnapshot -o dir/onto copied
printf own >> copy/onto; mfsrmsnapshot copied; mfsrmsnapshot -f hardlinks
mfsappendchunks joined dir/file dir/onto; mfsappendchunks -s 0:0 joined dir/large
mfssetarchive dir/file dir/onto; mfsclrarchive dir/onto

flock dir/file -c true; flock -s dir/onto -c true
perl -e 'use Fcntl; open(F, "+<", "dir/file") or die;
    sub range { my $lock = pack("s s x4 q q i x4", @_); fcntl(F, F_SETLKW, $lock) or die $! }
    range(F_WRLCK, 0, 0, 5, 0); range(F_RDLCK, 0, 10, 0, 0); range(F_UNLCK, 0, 2, 1, 0)'
for i in 1 2 3 4 5 6 7 8; do printf $i > dir/t$i; done
mfssettrashtime 0 dir/t1 dir/t2; rm dir/t1 dir/t3 dir/t4 dir/t5 dir/t6 copy/file
