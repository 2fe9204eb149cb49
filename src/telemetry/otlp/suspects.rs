//! Which record of a refused request is the reason: less is asked for at a time, until one record is refused alone.
//!
//! Invariants: each refusal leaves at most half as many records under suspicion; a batch costs at most `MOST_REFUSALS` of them, and is given
//! up whole after that. A collector that has refused all of a batch so is not asked in halves again before it has taken something.

#[derive(Debug, Default)]
pub struct Suspects {
    /// So many of the next records hold one that is refused; 0: nothing is known of them.
    records: u64,
    /// Of this batch.
    refusals: u32,
    /// Something of this batch was taken.
    is_partly_taken: bool,
    /// Everything is refused.
    is_pointless: bool,
}

impl Suspects {
    /// A new batch.
    pub fn begin(&mut self) {
        (self.records, self.refusals, self.is_partly_taken) = (0, 0, false);
    }

    /// How many records to send, of `most`.
    pub fn limit(&self, most: usize) -> usize {
        match self.records {
            0 => most,
            records => usize::try_from(records / 2).unwrap_or(usize::MAX).clamp(1, most),
        }
    }

    /// Whether some of the records that come next are under suspicion.
    pub fn are_some(&self) -> bool {
        self.records > 0
    }

    /// A request of so many records was refused, where at most `wanted` were to be in it. Whether to ask for less.
    pub fn refused(&mut self, records: u64, wanted: usize) -> bool {
        // With more in it than was wanted, it cannot be taken apart.
        if records <= 1 || records > wanted as u64 || self.is_pointless || self.refusals >= MOST_REFUSALS {
            return false;
        }
        self.refusals += 1;
        self.records = records;
        true
    }

    pub fn taken(&mut self, records: u64) {
        self.records = self.records.saturating_sub(records);
        (self.is_partly_taken, self.is_pointless) = (true, false);
    }

    /// So many were given up.
    pub fn given_up(&mut self, records: u64) {
        self.records = 0;
        self.is_pointless |= records > 1 && !self.is_partly_taken;
    }
}

/// Enough for five guilty records of the largest batch.
const MOST_REFUSALS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a batch of which these records are refused: how many are given up, and by how many requests.
    fn sent(suspects: &mut Suspects, batch: std::ops::Range<u64>, is_guilty: impl Fn(u64) -> bool) -> (Vec<u64>, u32) {
        let (mut at, mut lost, mut requests) = (batch.start, Vec::new(), 0);
        suspects.begin();
        while at < batch.end {
            let wanted = suspects.limit(4096);
            let records = (batch.end - at).min(wanted as u64);
            requests += 1;
            if !(at..at + records).any(&is_guilty) {
                suspects.taken(records);
                at += records;
            } else if !suspects.refused(records, wanted) {
                suspects.given_up(records);
                lost.extend(at..at + records);
                at += records;
            }
        }
        (lost, requests)
    }

    #[test]
    fn the_guilty_ones_alone_are_given_up() {
        for guilty in [vec![0], vec![4095], vec![17, 18], vec![5, 1000, 2000, 4000]] {
            let (lost, requests) = sent(&mut Suspects::default(), 0..4096, |number| guilty.contains(&number));
            assert_eq!(lost, guilty);
            assert!(requests <= 26 * u32::try_from(guilty.len()).unwrap() + 1, "{requests}");
        }
    }

    #[test]
    fn a_collector_that_refuses_everything_is_soon_asked_once_a_batch_until_it_takes_something() {
        let mut suspects = Suspects::default();
        let (lost, requests) = sent(&mut suspects, 0..4096, |_| true);
        assert_eq!(lost.len(), 4096);
        assert!(requests < 80, "{requests}");
        assert_eq!(sent(&mut suspects, 4096..8192, |_| true).1, 1);
        assert_eq!(sent(&mut suspects, 8192..8200, |_| false).1, 1);
        assert_eq!(sent(&mut suspects, 8200..8300, |number| number == 8250).0, [8250]);
    }

    #[test]
    fn what_cannot_be_taken_apart_is_given_up_at_once() {
        let mut suspects = Suspects::default();
        assert!(!suspects.refused(10, 5));
    }
}
