# Settings and small tools that the scripts here share. Everything of the cluster lies under $C; processes are ended only by
# the pids recorded in $C/run.
HERE=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
C=${CLUSTER_DIR:-/var/lib/posthouse-e2e}; export CLUSTER_DIR=$C
case $C in *[!A-Za-z0-9/._-]*|[!/]*) echo "e2e: CLUSTER_DIR '$C' must be an absolute path of letters, digits and . _ - only" >&2; exit 64 ;; esac
# Root trusts what lies there: programs, images, pids. Nobody else may have made or may change it.
mkdir -p -m 700 $C
[ "$(stat -c %u $C)" = "$(id -u)" ] && [ ! -L $C ] || { echo "e2e: $C belongs to somebody else; choose another CLUSTER_DIR" >&2; exit 1; }
chmod 700 $C
BIN=$C/bin; PKI=$C/pki; RUN=$C/run; LOG=$C/log
NODES=${NODES:-"1 2 3"}                    # node-1 node-2 node-3
NS=posthouse-e2e-; LINK=phe2e-              # network namespaces and links have names of our own
BR=phe2e0; NET=10.77.0; HOSTIP=$NET.1; PODNET=10.88; SVC=10.96.0.0/16; SVCIP=10.96.0.1
API=https://$HOSTIP:6443
export KUBECONFIG=$PKI/admin.conf
K=$BIN/kubectl
nodeip() { echo $NET.1$1; }                # 10.77.0.11, .12, .13
# When a process began, in ticks since the boot: a pid alone may be another's by now (after a reboot, say).
began() { sed 's/.*) //' /proc/$1/stat 2>/dev/null | cut -d ' ' -f 20; }
record() { echo "$2 $(began $2) $(cat /proc/sys/kernel/random/boot_id)" >$RUN/$1.pid; }
# recorded NAME: the pid of a recorded process that still runs.
recorded() {
  local p t b
  read -r p t b 2>/dev/null <$RUN/$1.pid || return 1
  [ -n "$t" ] && [ "$b" = "$(cat /proc/sys/kernel/random/boot_id)" ] && [ "$t" = "$(began $p)" ] && echo $p
}
# start NAME cmd...: a daemon; the recorded pid is that of the started process itself.
start() { local n=$1; shift; setsid "$@" >>$LOG/$n.log 2>&1 </dev/null & record $n $!; }
alive() { recorded $1 >/dev/null; }
# stop NAME [SIGNAL]: ends one recorded daemon and waits for it.
stop() {
  local p i
  p=$(recorded $1) || { rm -f $RUN/$1.pid; return 0; }
  kill -${2:-TERM} $p 2>/dev/null; for i in $(seq 100); do alive $1 || break; sleep 0.1; done
  alive $1 && kill -KILL $p 2>/dev/null
  rm -f $RUN/$1.pid
}
nodepid() { recorded node-$1.init; }       # the node's PID 1, as the host sees it
inode() { local n=$1; shift; nsenter -t $(nodepid $n) -m -u -i -n -p -- "$@"; }   # run a command "on" a node
nctr() { local n=$1; shift; inode $n ctr -n k8s.io "$@"; }
# nstart N NAME cmd...: a daemon on a node. nsenter forks once (pid namespace), so the child is recorded: it is the daemon.
nstart() {
  local n=$1 name=$2 np w i p=; shift 2
  np=$(nodepid $n)                         # expanded here: a substitution in the background job would be taken for the child
  setsid nsenter -t $np -m -u -i -n -p -- "$@" >>$LOG/node-$n.$name.log 2>&1 </dev/null & w=$!
  for i in $(seq 100); do
    read -r p _ 2>/dev/null </proc/$w/task/$w/children || true   # no line end there, so read fails in any case
    [ -n "$p" ] && grep -qx nsenter /proc/$w/comm 2>/dev/null && break
    sleep 0.05
  done
  record node-$n.$name $p
}
wait_for() { local t=$1 i; shift; for i in $(seq $((t*5))); do "$@" >/dev/null 2>&1 && return 0; sleep 0.2; done; echo "timeout: $*" >&2; return 1; }
