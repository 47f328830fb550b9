/** Counts of latencies in buckets that are at most 1/128 of their value wide: no list grows while the load runs. */
final class Latencies {
    private static final int FINE_BITS = 7;
    private static final int FINE = 1 << FINE_BITS;
    private final long[] counts = new long[(64 - FINE_BITS + 1) * FINE];
    private long count;

    /** One latency; a negative one counts as zero. Only the owner's thread may call it. */
    void record(long nanos) {
        counts[bucket(Math.max(nanos, 0))]++;
        count++;
    }

    void add(Latencies other) {
        for (int i = 0; i < counts.length; i++) {
            counts[i] += other.counts[i];
        }
        count += other.count;
    }

    long count() {
        return count;
    }

    /** The upper edge, in microseconds, of the bucket below or in which that share lies; 0 without any. */
    double microsAt(double share) {
        long wanted = Math.max(1, (long) Math.ceil(count * share));
        long seen = 0;
        int last = -1;
        for (int i = 0; i < counts.length && seen < wanted; i++) {
            seen += counts[i];
            last = counts[i] > 0 ? i : last;
        }
        return last < 0 ? 0 : upperNanos(last) / 1000.0;
    }

    private static int bucket(long nanos) {
        if (nanos < FINE) {
            return (int) nanos;
        }
        int shift = 63 - Long.numberOfLeadingZeros(nanos) - FINE_BITS;
        return (shift + 1) * FINE + (int) (nanos >>> shift) - FINE;
    }

    private static long upperNanos(int bucket) {
        if (bucket < FINE) {
            return bucket;
        }
        int shift = bucket / FINE - 1;
        return ((long) (bucket % FINE + FINE + 1) << shift) - 1;
    }
}
