/// The bucket of a relative position (key − query) of a bidirectional encoder.
///
/// Half of the buckets are for keys after the query. Of each half, distances below half of it have a bucket of their own, and
/// the others share buckets that grow with the logarithm of the distance up to `max_distance`, beyond which all share the last.
/// The logarithm is formed in f32, as published: it decides at the edges of buckets.
pub fn bucket(relative: isize, buckets: usize, max_distance: usize) -> usize {
    let half = buckets / 2;
    let after = if relative > 0 { half } else { 0 };
    let distance = relative.unsigned_abs();
    let exact = half / 2;
    if distance < exact {
        return after + distance;
    }
    let ratio = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
    let further = (ratio * (half - exact) as f32) as usize;
    after + (exact + further).min(half - 1)
}

/// The buckets of the relative positions −(l − 1)..l, in order: one for each row of the bias of sequences of `l` tokens.
pub(super) fn buckets_of(l: usize, buckets: usize, max_distance: usize) -> Vec<u32> {
    let reach = l.saturating_sub(1) as isize;
    (-reach..=reach).map(|r| bucket(r, buckets, max_distance) as u32).collect()
}
