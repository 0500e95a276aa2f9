# Goes on where heap.pl is ready: the store is used. Sessions come and go and are seen again, some two thousand times a second on a
# fast machine.
my @ids = keys %records;
while (1) {
    for ( 1 .. 100 ) {
        my $at = int rand @ids;
        my $record = $records{ $ids[$at] };
        $record->{visits}[ rand 8 ]++;
        $record->{score} = rand;
        if ( rand() < 0.1 ) {
            delete $records{ $ids[$at] };
            $ids[$at] = sprintf '%08x-%04d', int rand 2**32, $n++;
            $records{ $ids[$at] } = record($n);
        }
    }
    select undef, undef, undef, 0.05;
}
