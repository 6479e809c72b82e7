# Locks on one handle of a file, one step after the other, each answer on a line.
#
# locks.pl FILE [tag=TEXT] STEP...
#   fs fx fu        flock: shared, exclusive, unlock, without waiting; Fs Fx wait
#   r:S:L w:S:L u:S:L   fcntl: read lock, write lock, unlock of L bytes from S, without waiting; R W wait
#   g:S:L:r|w       who would hinder such a lock
#   touch:FILE waitf:FILE sleep:SECONDS alarm:SECONDS
use strict; use warnings; use Fcntl ':flock'; use POSIX (); use Time::HiRes 'sleep';
$| = 1;
my $file = shift;
my $tag = $ARGV[0] =~ /^tag=(.*)/ ? "$1 " : '';
shift if $tag;
open(my $handle, '+<', $file) or die "open: $!";
POSIX::sigaction(POSIX::SIGALRM(), POSIX::SigAction->new(sub { }, POSIX::SigSet->new, 0));

sub range { # command, type, start, length -> what fcntl says, struct flock
  my ($command, $type, $start, $length) = splice(@_, 0, 4);
  my $lock = pack('s s x4 q q l x4', $type, 0, $start, $length, 0);
  my $said = fcntl($handle, $command, $lock) ? 'ok' : "$!";
  return ($said, $lock);
}

for my $step (@ARGV) {
  my ($verb, $start, $length, $kind) = split /:/, $step;
  my $said;
  if ($verb =~ /^f([sxu])$/) { $said = flock($handle, { s => LOCK_SH | LOCK_NB, x => LOCK_EX | LOCK_NB, u => LOCK_UN }->{$1}) ? 'ok' : "$!" }
  elsif ($verb =~ /^F([sx])$/) { $said = flock($handle, { s => LOCK_SH, x => LOCK_EX }->{$1}) ? 'ok' : "$!" }
  elsif ($verb =~ /^[rwu]$/) { ($said) = range(6, { r => 0, w => 1, u => 2 }->{$verb}, $start, $length) }
  elsif ($verb =~ /^[RW]$/) { ($said) = range(7, { R => 0, W => 1 }->{$verb}, $start, $length) }
  elsif ($verb eq 'g') {
    ($said, my $lock) = range(5, { r => 0, w => 1 }->{$kind}, $start, $length);
    my ($type, undef, $from, $bytes, $pid) = unpack('s s x4 q q l', $lock);
    $said = $type == 2 ? 'free' : "held: type $type, $from, $bytes" . ($pid ? ', by a process here' : '') if $said eq 'ok';
  }
  elsif ($verb eq 'sleep') { sleep $start; next }
  elsif ($verb eq 'alarm') { alarm $start; next }
  elsif ($verb eq 'touch') { open(my $mark, '>', $start); next }
  elsif ($verb eq 'waitf') { my $tries = 0; sleep 0.02 while !-e $start && $tries++ < 1500; next }
  print "$tag$step: $said\n" if defined $said;
}
