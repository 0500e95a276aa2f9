# Builds a large hash of structured records (the shape of a session store or an in-memory index), tells that it is
# ready, and keeps it. Arguments: seed, how much to fill in MiB, file to create when ready.
use strict;
use warnings;

my ( $seed, $mib, $ready ) = @ARGV;
srand($seed);
my @cities = qw(Oslo Lagos Lima Osaka Pune Quito Turin York Accra Bergen Cairo Dhaka);
my %records;
my $n = 0;

sub record {
    my ($n) = @_;
    return {
        name   => "user-$n",
        city   => $cities[ rand @cities ],
        mail   => "user$n\@example.org",
        score  => rand,
        visits => [ map { int rand 1_000_000 } 1 .. 8 ],
        note   => 'seen ' . ( '.' x rand 60 ),
    };
}

sub resident_mib {
    open my $f, '<', '/proc/self/statm' or die "statm: $!";
    my @fields = split ' ', <$f>;
    return $fields[1] * 4096 / 1048576;
}

while (1) {
    for ( 1 .. 500 ) {
        my $id = sprintf '%08x-%04d', int rand 2**32, $n++;
        $records{$id} = record($n);
    }
    last if resident_mib() >= $mib;
}
open my $f, '>', $ready or die "$ready: $!";
print {$f} "$n records\n";
close $f;
sleep 100 while 1;
