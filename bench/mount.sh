#!/bin/bash
# Measures a mounted file system with public tools. usage: mount.sh MNT [SIZE] -> one "name value unit" line a figure
M=$1; S=${2:-512m}; D=$M/bench.$$; mkdir -p $D; T=${T:-10}
f() { # name, fio args
  n=$1; shift
  fio --name=$n --directory=$D --filename=f0 --size=$S --group_reporting --output-format=json "$@" 2>/dev/null | python3 -c '
import sys,json
n=sys.argv[1]; s=sys.stdin.read(); s=s[s.index("{"):]; j=json.loads(s)["jobs"][0]
for k in ("read","write"):
    if j[k]["io_bytes"]:
        x=j[k]; c=x["clat_ns"].get("percentile",{}); print("%s.%s %.1f MiB/s  iops %.0f  p50us %.0f p99us %.0f"%(n,k,x["bw_bytes"]/2**20,x["iops"],c.get("50.000000",0)/1000,c.get("99.000000",0)/1000))
' $n
}
f seqwrite --rw=write --bs=1m --ioengine=psync --end_fsync=1
sync; echo 3 > /proc/sys/vm/drop_caches
f seqread --rw=read --bs=1m --ioengine=psync
echo 3 > /proc/sys/vm/drop_caches
f randread4k --rw=randread --bs=4k --ioengine=psync --numjobs=8 --runtime=$T --time_based --direct=1
f randread64k --rw=randread --bs=64k --ioengine=psync --numjobs=8 --runtime=$T --time_based --direct=1
f randwrite4k --rw=randwrite --bs=4k --ioengine=psync --numjobs=8 --runtime=$T --time_based --direct=1
f fsyncwrite4k --rw=write --bs=4k --ioengine=psync --fsync=1 --runtime=$T --time_based
python3 - $D <<'P'
import os,sys,time,threading
D=sys.argv[1]
def t(n,f,c):
    a=time.perf_counter(); f(); b=time.perf_counter(); print(f"{n} {c/(b-a):.0f} ops/s")
N=2000
os.mkdir(D+"/m")
def cr():
    for i in range(N):
        os.close(os.open(f"{D}/m/f{i}",os.O_CREAT|os.O_WRONLY))
t("create",cr,N)
def st():
    for i in range(N): os.stat(f"{D}/m/f{i}")
t("stat",st,N)
def sm():
    for i in range(N//4):
        with open(f"{D}/m/s{i}","wb") as f: f.write(b"x"*4096)
t("smallfile4k_write",sm,N//4)
def rd():
    for i in range(N//4):
        with open(f"{D}/m/s{i}","rb") as f: f.read()
t("smallfile4k_read",rd,N//4)
t("readdir_entries",lambda: os.listdir(D+"/m"),N+N//4)
def rn():
    for i in range(N): os.rename(f"{D}/m/f{i}",f"{D}/m/g{i}")
t("rename",rn,N)
def un():
    for i in range(N): os.unlink(f"{D}/m/g{i}")
t("unlink",un,N)
P
rm -rf $D
